"""array-api-strict: the specification uses nothing beyond the array API standard."""

from types import SimpleNamespace
from typing import Any, ClassVar

import array_api_strict as xp
import numpy as np

from anomnorm_core import cdf, min_max, normal, threshold, two_slope
from conformance.backend import (
    CDF_FUNCTIONS,
    DECISION_FUNCTIONS,
    HISTOGRAM_FUNCTIONS,
    MIN_MAX_FUNCTIONS,
    NORMAL_FUNCTIONS,
    Backend,
    Description,
)


def _with_own_init(module: Any, names: tuple[str, ...]) -> SimpleNamespace:
    functions = {name: getattr(module, name) for name in names}
    return SimpleNamespace(**functions | {"init": lambda *args: module.init(*args, xp=xp)})


class Strict(Backend):
    name = "array-api-strict"
    dtypes = ("float64", "float32")
    order_slack: ClassVar = {"float64": 2.0**-49}  # SciPy's erfc
    parts = ("kernels", "histogram")
    min_max = _with_own_init(min_max, MIN_MAX_FUNCTIONS)
    two_slope = _with_own_init(two_slope, MIN_MAX_FUNCTIONS)
    cdf = _with_own_init(cdf, CDF_FUNCTIONS)
    normal = _with_own_init(normal, NORMAL_FUNCTIONS)
    threshold = _with_own_init(threshold, (*DECISION_FUNCTIONS, *HISTOGRAM_FUNCTIONS))

    def asarray(self, values: Any, dtype: str) -> Any:
        return xp.asarray(np.array(values, dtype=dtype))

    def to_numpy(self, array: Any) -> np.ndarray:
        values = np.asarray(array)
        return values.astype({"f": np.float64, "i": np.int64, "b": np.bool_}[values.dtype.kind])

    def describe(self, array: Any) -> Description:
        return Description(str(np.asarray(array).dtype), array.shape, str(array.device))

    def default_dtype(self) -> str:
        return "float64"


BACKENDS = (Strict,)
