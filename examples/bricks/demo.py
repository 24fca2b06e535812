"""The demo: real images, a detector in PyTorch Lightning and one in Flax, two normalizations in both frameworks.

Run with ``nox -s demo``, or ``python examples/digits/demo.py --output picture.png``.
"""

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import flax_detector
import lightning_detector
import numpy as np
from data import NORMAL_DIGITS, load
from evaluation import Result
from picture import draw

METHODS = ("min-max", "CDF")
COLUMNS = {
    "level": "{}",
    "method": "{}",
    "trained in": "{}",
    "raw threshold": "{}",
    "sigmas": "{}",
    "AUROC raw": "{:.3f}",
    "AUROC norm.": "{:.3f}",
    "F1 raw": "{:.3f}",
    "F1 norm.": "{:.3f}",
    "labels differ": "{}",
    "scores differ": "{:.1e}",
}
BEFORE = f"""
Handwritten digits: {", ".join(map(str, NORMAL_DIGITS))} are normal. Anomalies are other digits, and normal ones with a
damaged patch, the pixels of which are known. An autoencoder was trained on normal digits, once in PyTorch Lightning and
once in Flax. How badly it reproduces a pixel is the pixel's raw score, and the mean of those the image's. Thresholds
were found on validation data, where they have the best F1; all figures are of test data.
"""
AFTER = """
raw threshold  an image or a pixel is flagged from this raw score on; the CDF gives each pixel its own
sigmas         the same threshold in standard deviations above normal (CDF)
AUROC, F1      how well normal and anomalous are told apart, by raw scores and by normalized ones (F1: 0.5 or more).
               Normalization keeps what the raw scores knew; only the pixels' AUROC changes under the CDF, because
               pixels get scales of their own
labels differ  how often PyTorch and JAX decide differently on the same raw scores, both reading one file
scores differ  at most by so much, of these
"""


def run(epochs: int = 60) -> tuple[list[Result], list[Result]]:
    """Train and evaluate; return the results of the Lightning and of the Flax detector, one for each method."""
    data = load()
    return (
        [lightning_detector.run(method, *data, epochs=epochs) for method in METHODS],
        [flax_detector.run(method, *data, epochs=epochs) for method in METHODS],
    )


def table(results: list[Result]) -> str:
    """The rows of all results, image level first."""
    rows = sorted((_readable(row) for result in results for row in result.rows()), key=lambda row: row["level"])
    cells = [list(COLUMNS), *([form.format(row[name]) for name, form in COLUMNS.items()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    threshold = row["threshold"]
    low, high = (f"{value:.3f}" for value in (np.min(threshold.raw), np.max(threshold.raw)))
    sigmas = "-" if threshold.sigmas is None else f"{threshold.sigmas:.2f}"
    return row | {"raw threshold": low if low == high else f"{low} to {high}", "sigmas": sigmas}


def main() -> None:
    """Run, print the table, write the picture."""
    # Of what Lightning has to say, the progress bars are enough here.
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.filterwarnings(
        "ignore", message=".*treespec, LeafSpec.*|.*does not have many workers.*|.*logging interval.*"
    )
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo.png"), help="where the picture goes")
    output = parser.parse_args().output.resolve()
    lightning, flax = run()
    draw(lightning, load()[2], output)
    print(BEFORE)
    print(table(lightning + flax))
    print(AFTER)
    print(f"Picture: {output}")


if __name__ == "__main__":
    main()
