"""The code that README and docs show runs as pasted, and the demo gives what it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("packages/*/README.md"))]
FENCE = re.compile(r"(<!-- continue -->\n)?^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def _programs() -> list[object]:
    # A block stands for itself, unless the page says that it continues the one above.
    programs = []
    for page in PAGES:
        blocks: list[str] = []
        for continues, code in FENCE.findall(page.read_text()):
            blocks = [*blocks, code] if continues else [code]
            name = f"{page.relative_to(ROOT)}-{len(programs)}"
            programs.append(pytest.param("\n".join(blocks), id=name))
    return programs


@pytest.mark.parametrize("program", _programs())
def test_code_blocks_run_as_pasted(program: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120
    )
    assert result.returncode == 0, result.stderr


def test_every_relative_link_leads_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken
