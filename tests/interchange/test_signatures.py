"""The same functions with the same arguments in every package: what is written for one can be read for another."""

import inspect
from typing import Any

import pytest
from conformance.backend import (
    CDF_FUNCTIONS,
    DECISION_FUNCTIONS,
    HISTOGRAM_FUNCTIONS,
    MIN_MAX_FUNCTIONS,
    NORMAL_FUNCTIONS,
)

import anomnorm_core
import anomnorm_jax
import anomnorm_torch

FUNCTIONS = {
    "min_max": MIN_MAX_FUNCTIONS,
    "two_slope": MIN_MAX_FUNCTIONS,
    "cdf": CDF_FUNCTIONS,
    "normal": NORMAL_FUNCTIONS,
    "threshold": (*DECISION_FUNCTIONS, *HISTOGRAM_FUNCTIONS),
}
NAMES = [f"{module}.{name}" for module, names in FUNCTIONS.items() for name in names]


def arguments(package: Any, name: str) -> list[tuple[str, str, Any]]:
    module, function = name.split(".")
    parameters = inspect.signature(getattr(getattr(package, module), function)).parameters.values()
    # Where a record is made differs: a namespace, a device, nothing.
    return [(p.name, p.kind.name, p.default) for p in parameters if p.name not in ("xp", "device")]


@pytest.mark.parametrize("name", NAMES)
def test_the_packages_agree(name: str) -> None:
    core, torch, jax = (arguments(package, name) for package in (anomnorm_core, anomnorm_torch, anomnorm_jax))
    assert core == torch == jax


CALLS = [
    "__call__",
    "of",
    "min_max",
    "cdf",
    "denormalize",
    "raw_threshold",
    "with_threshold",
    "from_fit",
    "load",
    "save",
    "plot",
]


@pytest.mark.parametrize("name", CALLS)
def test_the_normalizers_agree(name: str) -> None:
    found = []
    for package in (anomnorm_core, anomnorm_torch, anomnorm_jax):
        function = package.Normalizer.forward if (package, name) == (anomnorm_torch, "__call__") else None
        function = function or getattr(package.Normalizer, name)
        found.append([(p.name, p.kind.name, p.default) for p in inspect.signature(function).parameters.values()])
    assert found[0] == found[1] == found[2]


def test_the_search_is_the_one_of_core() -> None:
    for name in ("adaptive", "normal_quantile", "streamed_adaptive", "streamed_normal_quantile", "streamed_quantile"):
        core, torch, jax = (
            getattr(package.threshold, name) for package in (anomnorm_core, anomnorm_torch, anomnorm_jax)
        )
        assert core is torch is jax


def test_every_package_has_the_same_methods() -> None:
    registries = [package.methods.METHODS for package in (anomnorm_core, anomnorm_torch, anomnorm_jax)]
    assert {*registries[0]} <= {*registries[1]} & {*registries[2]}
    for name in registries[0]:
        assert registries[0][name].method is registries[1][name].method is registries[2][name].method
