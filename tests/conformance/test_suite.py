"""The suite itself is tested: it fails wrong backends, and refuses to be green about nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from conformance.mutants import KILLED_BY, MUTANTS

HERE = Path(__file__).parent
pytestmark = pytest.mark.xdist_group("suite")  # one run of the wrong backends for all


def _run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    selected = (str(HERE), f"--ignore={__file__}")  # this file would run itself for ever
    command = [sys.executable, "-m", "pytest", *selected, "-q", "-p", "no:xdist", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd or HERE.parent.parent)


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, str]]:
    """What the table of one run of all wrong backends says, by backend and clause."""
    # Without hypothesis, which takes its time to find the simplest of all failures.
    without = f"--ignore={HERE / 'test_adversarial.py'}"
    result = _run("--backends", "mutants", without, "--tb=no", "-r", "N")
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if "clauses proven" in line) + 1
    clauses = lines[start].split()
    rows = (line.split() for line in lines[start + 1 :] if line.startswith("mutant-") and ":" not in line)
    return {name.removeprefix("mutant-"): dict(zip(clauses, cells, strict=True)) for name, *cells in rows}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_backends_fail(mutant: str, table: dict[str, dict[str, str]]) -> None:
    # "ERROR" would be a mutant that cannot even run.
    assert table[mutant][KILLED_BY[mutant]] == "FAIL"


def test_an_unknown_backend_is_an_error_that_lists_the_known_ones() -> None:
    result = _run("--backends", "nunpy")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no backend 'nunpy'" in result.stdout + result.stderr
    assert "numpy, array-api-strict, torch, jax" in result.stdout + result.stderr


_PLUG_IN = """
from conformance.backends.numpy_ import NumPy

class Backend(NumPy):
    name = "numpy"
    variant = "test"
    {body}

BACKENDS = (Backend,)
"""


@pytest.mark.parametrize(
    ("body", "options", "message"),
    [
        ('exceptions = {"test_n1_nothing_like_this*": "a reason"}', ["--full"], "matches no test"),
        ('exceptions = {"test_n1_golden_rows*": "it passes"}', ["-k", "test_n1_"], "XPASS(strict)"),
        # Without --full this test is not collected.
        ('exceptions = {"test_n1_golden_rows*float16*": "a reason"}', ["-k", "test_n1_golden"], ""),
    ],
)
def test_exceptions_are_strict(
    body: str, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backend_under_test.py").write_text(_PLUG_IN.format(body=body))
    info = tmp_path / "backend_under_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: backend-under-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[anomnorm.conformance_backends]\nundertest = backend_under_test\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = _run("--backends", "undertest", *options)
    assert (result.returncode == pytest.ExitCode.OK) == (not message), result.stdout + result.stderr
    assert message in result.stdout + result.stderr
