"""What a normalization method is, as a value, and where methods are found by their name."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from anomnorm_core.errors import OptionError
from anomnorm_core.options import Units


@dataclass(frozen=True)
class Method:
    """A way to turn raw scores into normalized ones, without arrays: the same value in every package.

    ``u = unit(x, T, *arguments)`` with the raw threshold ``T``; the arguments are the fitted parameters and, where
    thresholds can be given in sigmas, the center from which those count.
    """

    name: str  #: "min-max"; in options and files
    parameters: tuple[str, ...]  #: names of what is fitted, ("min", "max"); with sigmas, the location comes first
    per_pixel: bool = False  #: whether each pixel has its own parameters and threshold, arrays (H, W)
    sigmas: bool = False  #: whether thresholds can be given in sigmas; then it is fitted on normal data
    positive: bool = False  #: whether only scores above zero can be fitted and flagged (a logarithm is taken)
    extras: tuple[str, ...] = ()  #: names of what can be had beside the normalized score
    options: tuple[tuple[str, tuple[Any, ...]], ...] = ()  #: by name, the allowed values; the first is the default
    title: str = ""  #: for people; the name, where it is empty
    package: str = "anomnorm-core"  #: to install where a file names this method and nobody knows it

    @property
    def units(self) -> Units:
        """The units in which thresholds are given where nothing else is said."""
        return Units.SIGMAS if self.sigmas else Units.RAW

    def parse_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options with their values; raise `OptionError` for an unknown one or a value that is not allowed."""
        known = dict(self.options)
        for name, value in given.items():
            if name not in known:
                there = ", ".join(map(repr, known)) or "none"
                raise OptionError(f"{name}={value!r} is not an option of {self.name} normalization; there are {there}.")
            if not any(type(value) is type(allowed) and value == allowed for allowed in known[name]):
                allowed = ", ".join(map(repr, known[name]))
                raise OptionError(f"{name}={value!r} is not an option; use one of {allowed}.")
        return {name: given.get(name, values[0]) for name, values in self.options}

    def parse_extras(self, names: Any) -> tuple[str, ...]:
        """Return ``names`` as a tuple, each once; raise `OptionError` for one that this method does not have."""
        found = tuple(dict.fromkeys((names,) if isinstance(names, str) else names))
        there = (*self.extras, "raw", "invalid")
        for name in found:
            if name not in there:
                listed = ", ".join(map(repr, there))
                raise OptionError(f"extras: {self.name} normalization has no {name!r}; there are {listed}.")
        return found


@dataclass(frozen=True)
class Kernels:
    """A method in the arrays of one library.

    A record is a named tuple of arrays. Among its fields are ``count``, how many values were taken, and ``invalid``, of
    shape (3,), how many were left out because they are negative, NaN or infinite; where zeros cannot be fitted there is
    ``zeros`` too, of the shape of ``count``. Laws: ``init()`` is the identity of ``merge``, which is associative and
    commutative; updating with a concatenation equals merging the parts.

    ``unit`` and ``inverse`` get values, threshold and arguments in one floating dtype, and need not care for the other
    side of the threshold: what rounding did there is repaired for every method alike. At the threshold itself ``unit``
    has to give exactly 1/2. Functions of the host are needed in core alone.
    """

    method: Method  #: what is computed
    init: Callable[..., Any]  #: ``init(shape) -> record``; shape () or, per pixel, (H, W)
    update: Callable[..., Any]  #: ``update(record, scores, *, where=None) -> record``
    merge: Callable[[Any, Any], Any]  #: ``merge(record, record) -> record``
    finalize: Callable[..., tuple[Any, ...]]  #: ``finalize(record, *, level) -> parameters``
    unit: Callable[..., Any]  #: ``unit(x, T, *arguments) -> u``
    inverse: Callable[..., Any]  #: ``inverse(u, T, *arguments) -> x``
    extras: Mapping[str, Callable[..., Any]] = field(default_factory=dict)  #: by name, ``extra(x, T, *arguments)``
    raw_threshold: Callable[..., Any] | None = None  #: host, with sigmas: ``raw_threshold(t, *arguments, found) -> T``
    sigmas: Callable[..., Any] | None = None  #: host, with sigmas: ``sigmas(T, *arguments) -> t``
    check: Callable[..., str | None] | None = None  #: host: ``check(*parameters)``, what is wrong with them


class Registry(Mapping[str, Kernels]):
    """The methods of one package by name: its own, those given to `register`, and those of installed packages.

    Args:
        group: the entry points of installed packages, each of one `Kernels`.
        own: the package's own methods.
        host: whether it is core's, which computes thresholds for all packages.
    """

    def __init__(self, group: str, own: tuple[Kernels, ...], *, host: bool = False) -> None:
        self._group, self._host = group, host
        self._kernels = {kernels.method.name: kernels for kernels in own}
        self._own = frozenset(self._kernels)

    def register(self, kernels: Kernels) -> None:
        """Add a method, or other kernels of one that was registered before.

        Raises:
            OptionError: another method has this name, or functions are missing.
        """
        name, method = kernels.method.name, kernels.method
        missing = [repr(extra) for extra in method.extras if extra not in kernels.extras]
        if method.sigmas and "z" not in method.extras:
            missing.append("'z', which a method with sigmas has")
        if missing:
            raise OptionError(f"{name} normalization: its extras lack {', '.join(missing)}.")
        if self._host and method.sigmas and None in (kernels.raw_threshold, kernels.sigmas):
            raise OptionError(
                f"{name} normalization has sigmas: its kernels in core need raw_threshold(t, *arguments, found) and "
                "sigmas(T, *arguments)."
            )
        present = self._kernels.get(name, kernels)
        if present.method != method or (name in self._own and present != kernels):
            raise OptionError(f"a method of the name {name!r} is registered already; give this one another name.")
        self._kernels[name] = kernels

    def __getitem__(self, name: str) -> Kernels:
        if name not in self._kernels:
            for point in self._entry_points():
                if point.name == name:
                    self.register(point.load())
        if name not in self._kernels:
            from difflib import get_close_matches  # takes as long as all of this module

            close = get_close_matches(name.lower(), list(self), n=1)
            remedy = (
                f"Did you mean {close[0]!r}?"
                if close
                else f"One of another package needs its kernels here: {self._group.split('.')[0]}.register(KERNELS)."
            )
            raise OptionError(f"method={name!r} is unknown; there are {', '.join(map(repr, self))}. {remedy}")
        return self._kernels[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._kernels, *(point.name for point in self._entry_points())]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in list(iter(self))

    def _entry_points(self) -> Iterable[Any]:
        from importlib.metadata import entry_points  # a quarter of the time that the import of this package takes

        return entry_points(group=self._group)
