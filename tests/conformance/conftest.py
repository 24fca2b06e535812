"""Which backends run, on which dtypes, with which exceptions, and the table at the end."""

from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from conformance.backend import PARTS, Backend, available, load

_BACKENDS = pytest.StashKey[list[Backend]]()
_RESULTS = pytest.StashKey[dict[tuple[str, str], list[str]]]()
_PROPERTY = "anomnorm clauses"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backends",
        default="all",
        help="comma-separated backends to test: names (numpy, jax, ...), ids with a variant (jax-jit), or all",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RESULTS] = defaultdict(list)
    if config.getoption("--backends", default="all") != "all":
        _selected(config)  # a wrong name is an error before anything is collected
    config.pluginmanager.register(_Collector(config), "anomnorm-conformance-table")


class _Collector:
    """Gathers outcomes from reports, which also arrive from the workers of a parallel run."""

    def __init__(self, config: pytest.Config) -> None:
        self._results = config.stash[_RESULTS]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == _PROPERTY and (report.when == "call" or report.failed):
                backend, *clauses = str(value).split()
                word = "xfail" if hasattr(report, "wasxfail") else report.outcome
                for clause in clauses:
                    self._results[backend, clause].append(word)


def _selected(config: pytest.Config) -> list[Backend]:
    if _BACKENDS not in config.stash:
        request = config.getoption("--backends", default="all")
        names = available() if request == "all" else [name.strip() for name in request.split(",")]
        try:
            config.stash[_BACKENDS] = [backend for name in names for backend in load(name)]
        except LookupError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[_BACKENDS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" not in metafunc.fixturenames:
        return
    (needed,) = {mark.args[0] for mark in metafunc.definition.iter_markers("needs")} or {"kernels"}
    if needed not in PARTS:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: needs {needed!r}, which is none of {PARTS}")
    backends = [backend for backend in _selected(metafunc.config) if needed in backend.parts]
    if "dtype" in metafunc.fixturenames:
        wanted = {mark.args[0] for mark in metafunc.definition.iter_markers("dtypes")}
        cases = [
            pytest.param(backend, dtype, id=f"{backend.id}-{dtype}")
            for backend in backends
            for dtype in backend.dtypes
            if not wanted or any(dtype in names for names in wanted)
        ]
        metafunc.parametrize(("backend", "dtype"), cases, scope="session", indirect=["backend"])
    else:
        cases = [pytest.param(backend, id=backend.id) for backend in backends]
        metafunc.parametrize("backend", cases, scope="session", indirect=True)


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture(autouse=True)
def _context(request: pytest.FixtureRequest) -> Iterator[None]:
    if "backend" not in request.fixturenames:
        yield
        return
    backend = request.getfixturevalue("backend")
    dtype = request.getfixturevalue("dtype") if "dtype" in request.fixturenames else backend.usual_dtype
    with backend.context(dtype):
        yield


def _backend_of(item: pytest.Item) -> Backend | None:
    backend = item.callspec.params.get("backend") if hasattr(item, "callspec") else None
    return backend if isinstance(backend, Backend) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    own = [(item, backend) for item in items if item.path.parent == here and (backend := _backend_of(item))]
    if not own:
        return
    for item, backend in own:
        clauses = _clauses(item)
        if not clauses or not item.name.startswith(f"test_{clauses[0].lower()}_"):
            raise pytest.UsageError(f"{item.nodeid}: mark the clauses it checks, and begin its name with the first")
        item.user_properties.append((_PROPERTY, " ".join((backend.id, *clauses))))
    whole_suite = all("::" not in arg and Path(arg.split("::")[0]).suffix != ".py" for arg in config.args)
    for backend in _selected(config):
        mine = [item for item, owner in own if owner is backend]
        if whole_suite and not mine:
            raise pytest.UsageError(f"backend {backend.id} collects no test")
        for pattern, reason in backend.exceptions.items():
            matching = [item for item in mine if fnmatch(item.name, pattern)]
            if whole_suite and not matching:
                raise pytest.UsageError(f"backend {backend.id}: the exception {pattern!r} matches no test")
            for item in matching:
                item.add_marker(pytest.mark.xfail(strict=True, reason=reason))


def _clauses(item: pytest.Item) -> tuple[str, ...]:
    return tuple(clause for mark in item.iter_markers("clause") for clause in mark.args)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = config.stash[_RESULTS]
    if not results:
        return
    backends = sorted({backend for backend, _ in results})
    clauses = sorted({clause for _, clause in results}, key=lambda clause: (clause[0], int(clause[1:])))
    width = max(map(len, backends))
    terminalreporter.section("clauses proven: tests passed by each backend")
    terminalreporter.write_line(" " * width + "".join(f"{clause:>6}" for clause in clauses))
    for backend in backends:
        cells = (_cell(results.get((backend, clause), [])) for clause in clauses)
        terminalreporter.write_line(f"{backend:<{width}}" + "".join(f"{cell:>6}" for cell in cells))


def _cell(outcomes: list[str]) -> str:
    if not outcomes:
        return "-"
    if "failed" in outcomes:
        return "FAIL"
    passed = str(outcomes.count("passed"))
    return passed + "x" if "xfail" in outcomes else passed
