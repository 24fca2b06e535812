"""The protocol that a backend implements to be tested, and the registry of backends.

A backend says how to make and read its arrays and hands over its functions. See docs/guides/add-a-backend.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, NamedTuple

import numpy as np

from anomnorm_core.checks import Counts

ENTRY_POINT_GROUP = "anomnorm.conformance_backends"

MIN_MAX_FUNCTIONS = ("init", "update", "merge", "bounds", "normalize", "margin", "denormalize")  # of two_slope too
CDF_FUNCTIONS = (
    "init",
    "update",
    "merge",
    "mean_std",
    "standardize",
    "normalize",
    "normalize_standardized",
    "denormalize",
)
NORMAL_FUNCTIONS = tuple(name for name in CDF_FUNCTIONS if name != "normalize_standardized")
DECISION_FUNCTIONS = ("flag",)
HISTOGRAM_FUNCTIONS = ("init", "update", "merge")
SEARCH_FUNCTIONS = ("false_alarm_rate",)
# What a backend may offer; a test asks for one of them.
PARTS = ("kernels", "histogram", "search", "normalizer")


class Description(NamedTuple):
    """What is compared before values are."""

    dtype: str
    shape: tuple[int, ...]
    device: str


class Backend(ABC):
    """One library in one variant (eager, jitted, compiled, ...)."""

    name: str  # the library: "torch"
    variant: str = ""  # "eager"; may be empty
    aim: str = ""  # of a wrong backend: the tests that it is for have names that begin with this
    same_as: str = ""  # the id of the backend that this one is compiled from: its results have to be the same
    compared: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # by part, the dtypes in which they are by default; else all
    dtypes: tuple[str, ...]  # floating dtypes of scores, of "float64", "float32", "float16", "bfloat16"
    parts: tuple[str, ...] = ("kernels",)  # of PARTS
    min_max: Any  # kernels: has the functions of MIN_MAX_FUNCTIONS
    two_slope: Any  # kernels: likewise
    cdf: Any  # kernels: has the functions of CDF_FUNCTIONS
    normal: Any  # kernels: has the functions of NORMAL_FUNCTIONS
    threshold: Any  # kernels: has DECISION_FUNCTIONS; histogram, search: HISTOGRAM_ and SEARCH_FUNCTIONS too
    normalizer: Any  # normalizer: a class with the constructors and methods of anomnorm_core.Normalizer
    methods: Mapping[str, Any] = {}  # normalizer: by name, the anomnorm_core.Kernels that it was made of
    order_slack: ClassVar[Mapping[str, float]] = {}  # clause N5, by dtype of results: how much a larger score may lose
    moments_rtol: float = 1e-6  # clause S4: 1e-6 with float64 accumulators, 1e-5 with compensated float32
    exceptions: ClassVar[Mapping[str, str]] = {}  # test id pattern: reason. Strict: one that passes is a failure

    @property
    def id(self) -> str:
        """Name and variant."""
        return f"{self.name}-{self.variant}" if self.variant else self.name

    @property
    def usual_dtype(self) -> str:
        """For tests that are not about dtypes."""
        return "float32" if "float32" in self.dtypes else self.dtypes[0]

    @abstractmethod
    def asarray(self, values: Any, dtype: str) -> Any:
        """Make an array of the given floating, integer (``"int32"``, ``"int64"``) or ``"bool"`` dtype."""

    @abstractmethod
    def to_numpy(self, array: Any) -> np.ndarray:
        """Read an array exactly: floats as float64, integers as int64, booleans as bool."""

    @abstractmethod
    def describe(self, array: Any) -> Description:
        """Dtype by name, shape, device by name."""

    def default_dtype(self) -> str:
        """The floating dtype that integers turn into (clause N9)."""
        return "float32"

    def count(self, field: Any) -> int:
        """The total of a field of counts of a record, as a Python integer."""
        return int(self.to_numpy(field).sum())

    def counts(self, record: Any) -> Counts:
        """How many values a record has taken, and left out for which reason."""
        zeros = getattr(record, "zeros", None)
        causes = self.to_numpy(record.invalid).tolist()
        return Counts(self.count(record.count), 0 if zeros is None else self.count(zeros), *causes)

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
        """Call a normalizer, or what was exported from it. Thresholds are raw: arrays of shape () or (H, W)."""
        result: dict[str, Any] = normalizer(
            pred_scores, anomaly_maps, threshold=threshold, pixel_threshold=pixel_threshold, extras=extras
        )
        return result

    def program(
        self, function: Callable[[Any, dict[str, Any]], dict[str, Any]], kept: Any, example: dict[str, Any]
    ) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """``function(kept, inputs)`` as this variant runs it: compiled or exported once, for inputs like ``example``.

        Batches of scores may have another size than those of the example.
        """
        del example
        return lambda inputs: function(kept, inputs)

    def context(self, dtype: str) -> AbstractContextManager[Any]:
        """Entered around a test that computes in ``dtype``."""
        return nullcontext()


# Where the backends of this repository live: imported when asked for, so that testing one needs only its library.
_OWN: dict[str, str] = {
    "numpy": "conformance.backends.numpy_",
    "array-api-strict": "conformance.backends.strict",
    "torch": "conformance.backends.torch_",
    "jax": "conformance.backends.jax_",
}
_MUTANTS = "conformance.mutants"


def available() -> list[str]:
    """Names that ``--backends`` takes: those of this repository and installed plug-ins."""
    return [*_OWN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))]


def load(request: str) -> list[Backend]:
    """Backends for one item of ``--backends``: a name (all variants), an id (one variant), or ``mutants``."""
    if request == "mutants":
        return [mutant() for mutant in import_module(_MUTANTS).MUTANTS.values()]
    providers: dict[str, Callable[[], Any]] = {
        point.name: point.load for point in entry_points(group=ENTRY_POINT_GROUP)
    }
    providers |= {name: lambda path=path: import_module(path) for name, path in _OWN.items()}
    for name, provider in providers.items():
        if request == name or request.startswith(f"{name}-"):
            provided = provider()
            classes = provided.BACKENDS if hasattr(provided, "BACKENDS") else provided
            backends: list[Backend] = [backend() for backend in classes]
            chosen = [backend for backend in backends if request in (name, backend.name, backend.id)]
            if chosen:
                return chosen
    raise LookupError(f"no backend {request!r}; there are {', '.join(available())}")


@lru_cache
def reference_of(variant: Backend) -> Backend:
    """The backend whose results ``variant`` has to give; `LookupError` if there is none that is tested by itself."""
    for backend in load(variant.same_as):
        if backend.id == variant.same_as and not backend.same_as:
            return backend
    raise LookupError(f"backend {variant.id}: same_as={variant.same_as!r} is the id of no backend tested by itself")
