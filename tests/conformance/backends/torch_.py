"""PyTorch: eager, compiled, exported, and exported to ONNX."""

import io
import logging
import warnings
from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch

from anomnorm_torch import Normalizer, cdf, min_max, normal, threshold, two_slope
from anomnorm_torch.methods import METHODS
from conformance.backend import (
    CDF_FUNCTIONS,
    DECISION_FUNCTIONS,
    HISTOGRAM_FUNCTIONS,
    MIN_MAX_FUNCTIONS,
    NORMAL_FUNCTIONS,
    Backend,
    Description,
)

logging.getLogger("torch.__trace").propagate = False  # hundreds of lines in the report of a failure
torch._dynamo.config.recompile_limit = 1024
torch._dynamo.config.accumulated_recompile_limit = 1024
torch._dynamo.config.fail_on_recompile_limit_hit = True  # else the compiled variant would silently test the eager one


class TorchEager(Backend):
    name = "torch"
    variant = "eager"
    dtypes = ("float64", "float32", "float16", "bfloat16")
    parts = ("kernels", "histogram", "search", "normalizer")
    min_max = min_max
    two_slope = two_slope
    cdf = cdf
    normal = normal
    threshold = threshold
    normalizer = Normalizer
    methods = METHODS

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
    order_slack: ClassVar = {"float32": 2.0**-24}  # of its own normal distribution
    same_as = "torch-eager"
    compared: ClassVar = {"kernels": ("float64", "float32"), "normalizer": ("float32",)}
    parts = ("kernels", "histogram", "normalizer")  # a search runs on the host
    min_max = _compiled(min_max, MIN_MAX_FUNCTIONS, ("init", "bounds"))
    two_slope = _compiled(two_slope, MIN_MAX_FUNCTIONS, ("init", "bounds"))
    cdf = _compiled(cdf, CDF_FUNCTIONS, ("init", "mean_std"))
    normal = _compiled(normal, NORMAL_FUNCTIONS, ("init", "mean_std"))
    threshold = _compiled(threshold, (*DECISION_FUNCTIONS, *HISTOGRAM_FUNCTIONS), ("init",))

    def score(self, normalizer: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # The normalizer is an argument, so that another one of the same kind compiles nothing anew.
        return _compiled_call(normalizer, args, kwargs)

    def program(self, function: Any, kept: Any, example: dict[str, Any]) -> Any:
        compiled = torch.compile(function, fullgraph=True, dynamic=True)
        return lambda inputs: compiled(kept, inputs)


def _call(normalizer: Normalizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return normalizer.forward(*args, **kwargs)


_compiled_call = torch.compile(_call, fullgraph=True, dynamic=True)


class _Program(torch.nn.Module):
    """A function of normalizers and inputs as a module, which is what can be exported."""

    def __init__(self, function: Callable[..., Any], normalizers: dict[str, Normalizer]) -> None:
        super().__init__()
        self.function, self.kinds = function, list(normalizers)
        self.normalizers = torch.nn.ModuleList(normalizers.values())

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.function(dict(zip(self.kinds, self.normalizers, strict=True)), inputs)  # type: ignore[no-any-return]


class TorchExported(TorchEager):
    """`torch.export` with a dynamic batch, thresholds as inputs."""

    variant = "exported"
    order_slack: ClassVar = {"float32": 2.0**-24}  # as compiled
    same_as = "torch-eager"
    compared: ClassVar = {"normalizer": ("float64", "float32")}
    parts = ("normalizer",)

    def __init__(self) -> None:
        self._programs: dict[Any, tuple[Any, Any]] = {}

    def score(
        self,
        normalizer: Any,
        pred_scores: Any,
        anomaly_maps: Any = None,
        *,
        threshold: Any = None,
        pixel_threshold: Any = None,
        extras: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        given = {
            "pred_scores": pred_scores,
            "anomaly_maps": anomaly_maps,
            "threshold": threshold,
            "pixel_threshold": pixel_threshold,
        }
        inputs = {name: value for name, value in given.items() if value is not None}
        shapes = {name: (str(value.dtype), tuple(value.shape[1:])) for name, value in inputs.items()}
        key = (id(normalizer), str(shapes), extras)
        if key not in self._programs:
            program = self.program(lambda kept, given: kept["one"](**given, extras=extras), {"one": normalizer}, inputs)
            # The normalizer stays alive with its program, so that its id stays its own.
            self._programs[key] = (normalizer, program)
        return self._programs[key][1](inputs)  # type: ignore[no-any-return]

    def program(self, function: Any, kept: Any, example: dict[str, Any]) -> Any:
        return self._export(_Program(function, kept), example).module()

    def _export(self, module: _Program, inputs: dict[str, Any]) -> torch.export.ExportedProgram:
        batch = torch.export.Dim("batch")
        # An example of two samples: sizes 0 and 1 would be taken for constants.
        example = {
            name: value if "threshold" in name else torch.ones((2, *value.shape[1:]), dtype=value.dtype)
            for name, value in inputs.items()
        }
        dynamic = {name: {} if "threshold" in name else {0: batch} for name in inputs}
        return torch.export.export(module, (example,), dynamic_shapes=(dynamic,))


class TorchOnnx(TorchExported):
    """ONNX, in onnxruntime."""

    variant = "onnx"
    dtypes = ("float32",)
    compared: ClassVar = {}

    def program(self, function: Any, kept: Any, example: dict[str, Any]) -> Any:
        import onnxruntime

        module = _Program(function, kept)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own
            exported = torch.onnx.export(self._export(module, example), dynamo=True, verbose=False)
        model = io.BytesIO()
        assert exported is not None
        exported.save(model)
        session, names = onnxruntime.InferenceSession(model.getvalue()), list(module(example))

        def run(inputs: dict[str, Any]) -> dict[str, Any]:
            # An input that no result needs is none of the exported program.
            feed = {node.name: inputs[node.name.removeprefix("inputs_")].numpy() for node in session.get_inputs()}
            found = session.run(None, feed)
            return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

        return run


BACKENDS = (TorchEager, TorchCompiled, TorchExported, TorchOnnx)
