"""How much of the tests runs: the usual verdict, or everything."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

SPECIFICATION = Path(__file__).parents[1] / "docs" / "reference" / "specification.md"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--deep", action="store_true", help="2,000 made-up inputs for each such test instead of 25")
    parser.addoption("--full", action="store_true", help="all backends on all tests and dtypes, and the slow tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    clauses = set(re.findall(r"^### ([A-Z]\d+[a-z]?):", SPECIFICATION.read_text(encoding="utf-8"), flags=re.MULTILINE))
    for item in items:
        if unknown := {clause for mark in item.iter_markers("clause") for clause in mark.args} - clauses:
            raise pytest.UsageError(f"{item.nodeid}: {sorted(unknown)} are no clauses of {SPECIFICATION.name}")
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


_STATES: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _same_random_numbers_in_any_order(request: pytest.FixtureRequest) -> None:
    """A test draws the numbers that it drew yesterday, whichever tests its worker ran before."""
    generator = getattr(request.module, "RNG", None)
    if isinstance(generator, np.random.Generator):
        state = _STATES.setdefault(request.module.__name__, generator.bit_generator.state)
        generator.bit_generator.state = state
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="module")
def optimized() -> Iterator[None]:
    """Let JAX's compiler do its whole work, which the session ``tests`` leaves out: for tests of numerical accuracy."""
    import jax

    before = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1"
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Make sure that the tests of a group reach one worker: each other one would make again what they share."""
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if getattr(session.config.option, "loadgroup", False) and not all("@" in item.nodeid for item in grouped):
        raise pytest.UsageError("this pytest-xdist overlooks groups with this pytest: see constraints.txt")


def pytest_configure(config: pytest.Config) -> None:
    # Fixtures are the same for every example; the time of one depends on what has to be compiled.
    common: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    settings.register_profile("usual", max_examples=25, derandomize=True, **common)
    settings.register_profile("deep", max_examples=2000, print_blob=True, **common)
    settings.load_profile("deep" if config.getoption("--deep") else "usual")
