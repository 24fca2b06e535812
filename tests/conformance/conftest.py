"""Which backends run, on which dtypes, with which exceptions, and the table at the end."""

from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from conformance.backend import PARTS, Backend, available, load, reference_of

_BACKENDS = pytest.StashKey[list[Backend]]()
_RESULTS = pytest.StashKey[dict[tuple[str, str], list[str]]]()
_PROPERTY = "anomnorm clauses"
_DIRECT = "-"  # in its place stands the backend that a variant is compared with


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
                backend, reference, *clauses = str(value).split()
                word = _word(report)
                for clause in clauses:
                    same = word == "passed" and reference != _DIRECT
                    self._results[backend, clause].append(f"={reference}" if same else word)


def _word(report: pytest.TestReport) -> str:
    """How a test ended; a failure that is no failed assertion is an error."""
    if hasattr(report, "wasxfail"):
        return "xfail"
    crash = getattr(report.longrepr, "reprcrash", None)
    if report.failed and crash is not None and not crash.message.startswith(("assert", "AssertionError", "Failed")):
        return "error"
    return report.outcome


def _selected(config: pytest.Config) -> list[Backend]:
    if _BACKENDS not in config.stash:
        request = config.getoption("--backends", default="all")
        names = available() if request == "all" else [name.strip() for name in request.split(",")]
        try:
            backends = [backend for name in names for backend in load(name)]
            # What is compiled takes longest, and comes first, so that no worker waits for it in the end.
            config.stash[_BACKENDS] = sorted(backends, key=lambda backend: not backend.same_as)
            for backend in backends:
                if backend.same_as:
                    reference_of(backend)
        except LookupError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[_BACKENDS]


# Half types take as many tests and programs as float32: by default in the tests of the clauses about dtypes.
_CLAUSES_OF_HALF_TYPES = {"N4", "N9"}
_HALF_TYPES = {"float16", "bfloat16"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize ``backend``, all that are tested directly, or ``variant``, those compared with another backend."""
    (fixture,) = {"backend", "variant"}.intersection(metafunc.fixturenames) or {None}
    if fixture is None:
        return
    (needed,) = {mark.args[0] for mark in metafunc.definition.iter_markers("needs")} or {"kernels"}
    if needed not in PARTS:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: needs {needed!r}, which is none of {PARTS}")
    full = metafunc.config.getoption("--full")
    backends = [backend for backend in _selected(metafunc.config) if needed in backend.parts]
    if fixture == "variant":
        backends = [backend for backend in backends if backend.same_as]
    elif not full:
        backends = [backend for backend in backends if not backend.same_as]
    if "registered" in metafunc.fixturenames:
        cases = [
            pytest.param(backend, name, id=f"{backend.id}-{name}") for backend in backends for name in backend.methods
        ]
        metafunc.parametrize((fixture, "registered"), cases, scope="session", indirect=[fixture])
    elif "dtype" in metafunc.fixturenames:
        wanted = {mark.args[0] for mark in metafunc.definition.iter_markers("dtypes")}
        clauses = {clause for mark in metafunc.definition.iter_markers("clause") for clause in mark.args}
        left_out = set() if full or fixture == "variant" or clauses & _CLAUSES_OF_HALF_TYPES else _HALF_TYPES
        cases = [
            pytest.param(backend, dtype, id=f"{backend.id}-{dtype}")
            for backend in backends
            for dtype in (backend.dtypes if full else backend.compared.get(needed, backend.dtypes))
            if (not wanted or any(dtype in names for names in wanted)) and dtype not in left_out
        ]
        metafunc.parametrize((fixture, "dtype"), cases, scope="session", indirect=[fixture])
    else:
        cases = [pytest.param(backend, id=backend.id) for backend in backends]
        metafunc.parametrize(fixture, cases, scope="session", indirect=True)


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture(scope="session")
def variant(request: pytest.FixtureRequest) -> Backend:
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
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    backend = parameters.get("backend", parameters.get("variant"))
    return backend if isinstance(backend, Backend) else None


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    own = [(item, backend) for item in items if item.path.parent == here and (backend := _backend_of(item))]
    if not own:
        return
    # Of parts and dtypes that no backend here has, pytest makes one skipped test each.
    items[:] = [item for item in items if not any("empty parameter set" in str(mark) for mark in item.own_markers)]
    missed = {id(item) for item, backend in own if not item.name.startswith(f"test_{backend.aim}")}
    items[:] = [item for item in items if id(item) not in missed]
    own = [(item, backend) for item, backend in own if id(item) not in missed]
    for item, backend in own:
        clauses = _clauses(item)
        direct = "backend" in item.callspec.params  # type: ignore[attr-defined]
        begins = clauses[0].lower() if direct and clauses else "same"
        if not clauses or not item.name.startswith(f"test_{begins}_"):
            raise pytest.UsageError(f"{item.nodeid}: mark the clauses it checks, and begin its name with the first")
        # What is compiled once serves all tests of a backend in one dtype: one worker takes them.
        dtype = item.callspec.params.get("dtype", backend.usual_dtype)  # type: ignore[attr-defined]
        item.add_marker(pytest.mark.xdist_group(f"{backend.id}-{dtype}"))
        item.user_properties.append(
            (_PROPERTY, " ".join((backend.id, _DIRECT if direct else backend.same_as, *clauses)))
        )
    whole_suite = all("::" not in arg and Path(arg.split("::")[0]).suffix != ".py" for arg in config.args)
    for backend in _selected(config):
        mine = [item for item, owner in own if owner is backend]
        if whole_suite and not mine:
            raise pytest.UsageError(f"backend {backend.id} collects no test")
        for pattern, reason in backend.exceptions.items():
            matching = [item for item in mine if fnmatch(item.name, pattern)]
            if whole_suite and config.getoption("--full") and not matching:
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
    clauses = sorted(
        {clause for _, clause in results}, key=lambda clause: (clause[0], int(clause[1:].rstrip("ab")), clause)
    )
    width = max(map(len, backends))
    terminalreporter.section("clauses proven: tests passed by each backend")
    terminalreporter.write_line(" " * width + "".join(f"{clause:>6}" for clause in clauses))
    for backend in backends:
        cells = (_cell(results, backend, clause) for clause in clauses)
        terminalreporter.write_line(f"{backend:<{width}}" + "".join(f"{cell:>6}" for cell in cells))
    pairs = {(name, word[1:]) for (name, _), words in results.items() for word in words if word.startswith("=")}
    for backend, reference in sorted(pairs):
        terminalreporter.write_line(
            f"{backend}: = where its results are those of {reference}, ? where that did not pass or run"
        )


def _cell(results: dict[tuple[str, str], list[str]], backend: str, clause: str) -> str:
    outcomes = results.get((backend, clause), [])
    if not outcomes:
        return "-"
    if "failed" in outcomes:
        return "FAIL"
    if "error" in outcomes:
        return "ERROR"
    if set(outcomes) == {"skipped"}:
        return "-"
    passed = str(outcomes.count("passed"))
    if passed == "0" and (references := {word[1:] for word in outcomes if word.startswith("=")}):
        (reference,) = references
        # P4 is about that comparison itself, and no other clause is proven by being like what is not.
        passed = "=" if clause == "P4" or _cell(results, reference, clause)[0].isdigit() else "?"
    return passed + "x" if "xfail" in outcomes else passed
