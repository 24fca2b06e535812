"""The same functions with the same arguments in every package: what is written for one can be read for another."""

import inspect
from typing import Any

import pytest
from conformance.backend import CDF_FUNCTIONS, DECISION_FUNCTIONS, MIN_MAX_FUNCTIONS, THRESHOLD_FUNCTIONS

import anomnorm_core
import anomnorm_jax
import anomnorm_torch

FUNCTIONS = {
    "min_max": MIN_MAX_FUNCTIONS,
    "cdf": CDF_FUNCTIONS,
    "threshold": (*DECISION_FUNCTIONS, *THRESHOLD_FUNCTIONS),
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
