"""The benchmark program runs and reports every row; what it measures is nobody's verdict."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"
PAGE = FOLDER.parent / "docs" / "benchmarks.md"


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line]


def test_every_row_of_the_page_is_measured() -> None:
    result = subprocess.run(
        [sys.executable, str(FOLDER / "bench.py"), "--quick"], capture_output=True, text=True, check=False, timeout=400
    )
    assert result.returncode == 0, result.stderr
    found, published = rows(result.stdout), rows(PAGE.read_text(encoding="utf-8"))
    names = [row[0] for row in found]
    assert len(names) > 40
    assert {"min-max normalize", "CDF normalize", "per-pixel moments update", "`anomnorm_jax`"} <= set(names)
    assert names == [row[0] for row in published][: len(names)]


def test_every_way_to_run_a_normalizer_is_compared() -> None:
    program = FOLDER / "parity.py"
    result = subprocess.run(
        [sys.executable, str(program), "--quick"], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    found = [line.split(" | ") for line in result.stdout.splitlines() if line.startswith("|")][2:]
    assert [row[0].removeprefix("| ").split(",")[0] for row in found] == [*["NumPy"], *["PyTorch"] * 3, *["JAX"] * 2]
    assert all(row[1] == "0" for row in found)  # labels that differ under min-max
    page = PAGE.with_name("parity.md").read_text(encoding="utf-8")
    assert [row[0] for row in found] == [line.split(" | ")[0] for line in page.splitlines() if line[:1] == "|"][2:]
