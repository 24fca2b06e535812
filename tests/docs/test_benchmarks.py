"""The benchmark program runs and reports every row; what it measures is nobody's verdict."""

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.clause("N13")
def test_every_backend_is_within_the_published_bounds() -> None:
    program = FOLDER / "accuracy.py"
    result = subprocess.run(
        [sys.executable, str(program), "--quick"], capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 0, result.stderr
    dtypes = ("float64", "float32", "float16", "bfloat16")
    found = [row for row in rows(result.stdout) if row[0] in dtypes]
    published = rows(PAGE.with_name("accuracy.md").read_text(encoding="utf-8"))
    expected = [row[:2] for row in published if row[0] in dtypes and "compiled" not in row[1]]
    assert [row[:2] for row in found] == expected
    assert len(found) == 4 * (3 + 3 + 3 + 2)
    assert all(float(row[-1]) <= 1.0 for row in found), found  # the share of the bound


def test_a_block_of_every_float32_number_is_looked_at() -> None:
    program = (
        "import sys; sys.path[:0] = ['benchmarks', 'tests']; import exhaustive as e; e.BLOCK = 2**12\n"
        "e.BACKENDS = ('numpy', 'torch-eager', 'jax-jit'); e.KEYS = range(-e.LARGEST, e.LARGEST, e.BLOCK)\n"
        "assert e.numbers(-2, 1).tolist() == [-2.0**-148, -2.0**-149, 0.0, 2.0**-149]\n"
        "one = e.KEYS.index(0x3F800000 // e.BLOCK * e.BLOCK - e.LARGEST % e.BLOCK)\n"
        "for check in e.CHECKS:\n"
        "    parts = [e.look((check, block))[2] for block in (0, one, one + 1, len(e.KEYS) - 1)]\n"
        "    for name in e.BACKENDS:\n"
        "        total = parts[0][name]\n"
        "        for part in parts[1:]: total = e.merged(total, part[name])\n"
        "        assert total['decisions'] == 0\n"
        "        assert check == 'decision' or (0 < total['error'] <= 2**-23 and total['outside'] == 0)\n"
        "print('fine')"
    )
    root = FOLDER.parent
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300, cwd=root
    )
    assert result.stdout.strip() == "fine", result.stderr
