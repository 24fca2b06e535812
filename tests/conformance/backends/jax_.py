"""JAX: operation by operation, jitted, and exported to StableHLO."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, ClassVar

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from anomnorm_core.checks import Counts
from anomnorm_jax import Normalizer, _counter, cdf, min_max, normal, threshold, two_slope
from anomnorm_jax.methods import METHODS
from conformance.backend import Backend, Description


class JaxJit(Backend):
    name = "jax"
    variant = "jit"
    dtypes = ("float64", "float32", "float16", "bfloat16")
    parts = ("kernels", "histogram", "search", "normalizer")
    min_max = min_max
    two_slope = two_slope
    cdf = cdf
    normal = normal
    threshold = threshold
    normalizer = Normalizer
    methods = METHODS
    order_slack: ClassVar = {"float64": 2.0**-49, "float32": 2.0**-23}  # XLA's erfc
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
        # The two halves of one count or of those of a histogram; else counts as they are, of pixels for example.
        if field.shape in ((2,), (2, 2**18)) and field.dtype == jnp.uint32:
            upper, lower = np.asarray(field, dtype=np.uint64)
            return int(np.sum(upper << 32)) + int(np.sum(lower))
        return super().count(field)

    def counts(self, record: Any) -> Counts:
        return _counter.counts_of(record)

    def context(self, dtype: str) -> AbstractContextManager[Any]:
        return jax.enable_x64(dtype == "float64")

    def program(self, function: Any, kept: Any, example: dict[str, Any]) -> Any:
        compiled = jax.jit(function)
        return lambda inputs: compiled(kept, inputs)


class JaxEager(JaxJit):
    variant = "eager"
    same_as = "jax-jit"
    compared: ClassVar = {"kernels": ("float32",), "normalizer": ()}  # eight times as many programs as jit has

    def context(self, dtype: str) -> AbstractContextManager[Any]:
        return self._eager(dtype)

    @contextmanager
    def _eager(self, dtype: str) -> Iterator[None]:
        with super().context(dtype), jax.disable_jit():
            yield


class JaxExported(JaxJit):
    """`jax.export` with a symbolic batch, serialized and read back, thresholds as arguments."""

    variant = "exported"
    same_as = "jax-jit"
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
        shapes = {name: (str(value.dtype), value.shape[1:]) for name, value in inputs.items()}
        key = (id(normalizer), str(shapes), extras)
        if key not in self._programs:
            program = self.program(lambda kept, given: kept(**given, extras=extras), normalizer, inputs)
            # The normalizer stays alive with its program, so that its id stays its own.
            self._programs[key] = (normalizer, program)
        return self._programs[key][1](inputs)  # type: ignore[no-any-return]

    def program(self, function: Any, kept: Any, example: dict[str, Any]) -> Any:
        (batch,) = jax.export.symbolic_shape("batch")
        shapes = {
            name: jax.ShapeDtypeStruct(value.shape if "threshold" in name else (batch, *value.shape[1:]), value.dtype)
            for name, value in example.items()
        }
        exported = jax.export.export(jax.jit(partial(function, kept)))(shapes)
        return jax.export.deserialize(exported.serialize()).call


BACKENDS = (JaxEager, JaxJit, JaxExported)
