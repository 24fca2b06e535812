"""JAX, operation by operation and jitted."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from anomnorm_jax import _counter, cdf, min_max, threshold
from conformance.backend import Backend, Description


class JaxJit(Backend):
    name = "jax"
    variant = "jit"
    dtypes = ("float64", "float32", "float16", "bfloat16")
    min_max = min_max
    cdf = cdf
    threshold = threshold
    order_slack: ClassVar = {"float64": 8, "float32": 2}  # XLA's erfc
    moments_rtol = 1e-5

    def asarray(self, values: Any, dtype: str) -> jax.Array:
        # Outside a float64 context JAX has no float64 and warns that it gives float32.
        available = jax.dtypes.canonicalize_dtype(dtype) if dtype == "float64" else dtype
        return jnp.asarray(np.array(values), dtype=available)

    def to_numpy(self, array: Any) -> np.ndarray:
        kind = "f" if jnp.issubdtype(array.dtype, jnp.floating) else "b" if array.dtype == bool else "i"
        return np.asarray(array).astype({"f": np.float64, "i": np.int64, "b": np.bool_}[kind])

    def describe(self, array: Any) -> Description:
        return Description(str(array.dtype), array.shape, str(array.device))

    def default_dtype(self) -> str:
        return str(jnp.zeros(()).dtype)

    def count(self, field: Any) -> int:
        # Both kinds of record: the two halves of one count, or a count for each pixel.
        return _counter.to_int(field) if field.shape == (2,) else super().count(field)

    def context(self, dtype: str) -> AbstractContextManager[Any]:
        return jax.enable_x64(dtype == "float64")


class JaxEager(JaxJit):
    variant = "eager"

    def context(self, dtype: str) -> AbstractContextManager[Any]:
        return self._eager(dtype)

    @contextmanager
    def _eager(self, dtype: str) -> Iterator[None]:
        with super().context(dtype), jax.disable_jit():
            yield


BACKENDS = (JaxEager, JaxJit)
