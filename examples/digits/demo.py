"""The demo: real images, a detector in PyTorch Lightning and one in Flax, both normalizations in both frameworks.

Run with ``nox -s demo``, or ``python examples/digits/demo.py --output picture.png``.
"""

import argparse
import logging
import warnings
from pathlib import Path

import flax_detector
import lightning_detector
from data import NORMAL_DIGITS, load
from evaluation import Result
from picture import draw

METHODS = ("min-max", "CDF")
COLUMNS = {
    "level": "{}",
    "method": "{}",
    "detector": "{}",
    "threshold": "{:.3f}",
    "AUROC raw": "{:.3f}",
    "AUROC unit": "{:.3f}",
    "F1 raw": "{:.3f}",
    "F1 unit": "{:.3f}",
    "max difference": "{:.1e}",
    "labels differ": "{}",
}


def run(epochs: int = 60) -> tuple[list[Result], list[Result]]:
    """Train and evaluate; return the results of the Lightning and of the Flax detector, one for each method."""
    data = load()
    return (
        [lightning_detector.run(method, *data, epochs=epochs) for method in METHODS],
        [flax_detector.run(method, *data, epochs=epochs) for method in METHODS],
    )


def table(results: list[Result]) -> str:
    """The rows of all results, image level first."""
    rows = sorted((row for result in results for row in result.rows()), key=lambda row: str(row["level"]))
    cells = [list(COLUMNS), *([form.format(row[name]) for name, form in COLUMNS.items()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


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
    print(f"\nHandwritten digits: {', '.join(map(str, NORMAL_DIGITS))} are normal, the others anomalous.\n")
    print(table(lightning + flax))
    print(
        "\nthreshold: in raw units for min-max, in sigmas for the CDF; chosen on validation data for the best F1.\n"
        "F1 raw: raw scores against the threshold in raw units. F1 unit: unit scores against 0.5.\n"
        "Pixel AUROC may change under the CDF, which gives each pixel a scale of its own; all else keeps its order.\n"
        "max difference, labels differ: PyTorch against JAX on the same raw scores.\n"
        f"\nPicture: {output}"
    )


if __name__ == "__main__":
    main()
