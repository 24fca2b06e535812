"""Promised against observed false-alarm rates on real data, for the pages on calibration and on methods.

``nox -s calibration`` runs it; ``-- --quick`` takes one small data set and few splits, and prints instead of writing.
The texts are in calibration_notes.md and which_method_notes.md; every figure in them is put there by this program.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from calibration_pictures import draw_by_size, draw_reliability
from calibration_study import ALLOWED, PROMISED_RATES, Study, failures, run
from calibration_tables import figures, guarantee_table, main_table, range_table
from contents import with_contents

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent / "docs"
PAGES = {"calibration_notes.md": "evidence/calibration.md", "which_method_notes.md": "guides/which-method.md"}


def write(study: Study, seconds: float) -> None:
    """Both pages and their pictures."""
    values = figures(study, seconds)
    for notes, page in PAGES.items():
        text = (FOLDER / notes).read_text(encoding="utf-8").format(**values)
        if page.startswith("evidence/"):
            text = with_contents(text)
        (DOCS / page).write_text(text, encoding="utf-8")
        print(f"wrote docs/{page}: {words(text)} words besides tables")
    draw_reliability(study.mean, DOCS / "images" / "calibration.png")
    draw_by_size(study.mean, DOCS / "images" / "which-method.png")


def words(text: str) -> int:
    """Of a page, without its tables."""
    return sum(len(line.split()) for line in text.splitlines() if not line.startswith("|"))


def _processor_seconds() -> float:
    """What this process and its workers have computed."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one data set, few splits; print instead of writing")
    quick = parser.parse_args(arguments).quick
    if quick:
        study = run(("wine",), splits=2, sizes=(5, 20))
        print(main_table(study), guarantee_table(study), range_table(study), sep="\n\n")
    else:
        study = run(workers=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        write(study, _processor_seconds())
    if found := failures(study):
        raise SystemExit("\n".join(["These guarantees do not hold:", *found]))
    print(f"All guarantees hold: at most {ALLOWED} times {' and '.join(map(str, PROMISED_RATES))}.")


if __name__ == "__main__":
    main()
