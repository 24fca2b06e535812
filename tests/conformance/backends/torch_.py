"""PyTorch, eager and compiled."""

from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from anomnorm_torch import cdf, min_max, threshold
from conformance.backend import (
    CDF_FUNCTIONS,
    MIN_MAX_FUNCTIONS,
    THRESHOLD_FUNCTIONS,
    Backend,
    Description,
)

torch._dynamo.config.recompile_limit = 256
torch._dynamo.config.accumulated_recompile_limit = 1024
torch._dynamo.config.fail_on_recompile_limit_hit = True  # else the compiled variant would silently test the eager one


class TorchEager(Backend):
    name = "torch"
    variant = "eager"
    dtypes = ("float64", "float32", "float16", "bfloat16")
    min_max = min_max
    cdf = cdf
    threshold = threshold

    def asarray(self, values: Any, dtype: str) -> torch.Tensor:
        return torch.as_tensor(np.array(values)).to(getattr(torch, dtype))

    def to_numpy(self, array: Any) -> np.ndarray:
        return (array.double() if array.is_floating_point() else array).numpy()

    def describe(self, array: Any) -> Description:
        return Description(str(array.dtype).removeprefix("torch."), tuple(array.shape), str(array.device))


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(function, fullgraph=True, dynamic=True)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except torch._dynamo.exc.Unsupported as error:
            # Without fullgraph an error on a static shape reaches the caller from the eager code; do as it does.
            if "Observed exception" not in str(error):
                raise
            return function(*args, **kwargs)

    return run


def _compiled(module: Any, names: tuple[str, ...], host: tuple[str, ...]) -> SimpleNamespace:
    # Finalizers and init run on the host, once per stage.
    functions = {name: getattr(module, name) for name in names}
    return SimpleNamespace(
        **{name: function if name in host else _compile(function) for name, function in functions.items()}
    )


class TorchCompiled(TorchEager):
    variant = "compiled"
    min_max = _compiled(min_max, MIN_MAX_FUNCTIONS, ("init", "bounds"))
    cdf = _compiled(cdf, CDF_FUNCTIONS, ("init", "mean_std"))
    threshold = _compiled(threshold, THRESHOLD_FUNCTIONS, ())


BACKENDS = (TorchEager, TorchCompiled)
