"""NumPy: the reference, and the same with arrays that cannot be written to."""

from typing import Any, ClassVar

import numpy as np

from anomnorm_core import Normalizer, cdf, min_max, normal, threshold, two_slope
from anomnorm_core.methods import METHODS
from conformance.backend import Backend, Description


class NumPy(Backend):
    name = "numpy"
    dtypes = ("float64", "float32", "float16")
    order_slack: ClassVar = {"float64": 2.0**-49}  # SciPy's erfc
    parts = ("kernels", "histogram", "search", "normalizer")
    min_max = min_max
    two_slope = two_slope
    cdf = cdf
    normal = normal
    threshold = threshold
    normalizer = Normalizer
    methods = METHODS

    def asarray(self, values: Any, dtype: str) -> np.ndarray:
        return np.array(values, dtype=dtype)

    def to_numpy(self, array: Any) -> np.ndarray:
        array = np.asarray(array)
        return array.astype({"f": np.float64, "i": np.int64, "b": np.bool_}[array.dtype.kind])

    def describe(self, array: Any) -> Description:
        return Description(str(array.dtype), array.shape, "cpu")

    def default_dtype(self) -> str:
        return "float64"


class ReadOnlyNumPy(NumPy):
    variant = "readonly"
    same_as = "numpy"
    dtypes = ("float64", "float32")

    def asarray(self, values: Any, dtype: str) -> np.ndarray:
        array = super().asarray(values, dtype)
        array.setflags(write=False)
        return array


BACKENDS = (NumPy, ReadOnlyNumPy)
