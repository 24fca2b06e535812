"""The code that pages show, as programs that can be pasted.

A block may continue the one before (``<!-- continue -->`` above it), and the first block of a program may say that it
needs anomalib (``<!-- needs anomalib -->``), which has an environment of its own: tests/anomalib runs those.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("packages/*/README.md"))]
FENCE = re.compile(r"(?:<!-- (continue|needs anomalib) -->\n)?^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def programs(page: Path, *, anomalib: bool = False) -> list[str]:
    """What can be pasted: each block for itself, or after those that it continues.

    Args:
        page: with the blocks.
        anomalib: whether to give those that need it, instead of those that do not.
    """
    found: list[tuple[bool, str]] = []
    for mark, code in FENCE.findall(page.read_text()):
        if mark == "continue":  # the longer one contains the shorter one
            needs, before = found.pop()
            found.append((needs, f"{before}\n{code}"))
        else:
            found.append((mark == "needs anomalib", code))
    return [code for needs, code in found if needs == anomalib]
