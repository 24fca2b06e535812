"""The code that README and docs show runs as pasted, and the demo gives what it promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from code_blocks import FENCE, PAGES, ROOT, programs

METHOD = ROOT / "tests" / "interchange" / "logistic_method"  # the package that docs/guides/add-a-method.md makes


# Each program as the main module of an own namespace and folder; a process for each would import everything anew.
RUNNER = """
import os, sys, traceback, types
for number, program in enumerate(open(sys.argv[1]).read().split(chr(0))):
    os.makedirs(f"{sys.argv[1]}-{number}")
    os.chdir(f"{sys.argv[1]}-{number}")
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        exec(compile(program, f"<program {number}>", "exec"), main.__dict__)
    except BaseException:
        traceback.print_exc()
        sys.exit(f"program {number}:\\n{program}")
"""


def test_blocks_that_continue_are_run_with_those_before() -> None:
    page = next(page for page in PAGES if page.name == "jax.md" and page.parent.name == "guides")
    found = programs(page)
    assert len(found) < len(FENCE.findall(page.read_text()))
    assert all("import" in program for program in found)


def test_only_blocks_that_import_anomalib_are_left_to_its_environment() -> None:
    left = {str(page.relative_to(ROOT)): programs(page, anomalib=True) for page in PAGES}
    assert [name for name, found in left.items() if found] == ["docs/guides/anomalib.md", "docs/start/anomalib.md"]
    assert all("\nfrom anomalib" in program for found in left.values() for program in found)


PAGES_WITH_CODE = [page for page in PAGES if programs(page)]


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run_as_pasted(page: Path, tmp_path: Path) -> None:
    (tmp_path / "programs").write_text("\0".join(programs(page)))
    command = [sys.executable, "-c", RUNNER, str(tmp_path / "programs")]
    found = os.environ | {"PYTHONPATH": str(METHOD)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300, env=found)
    assert result.returncode == 0, result.stderr


def test_every_relative_link_leads_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken
