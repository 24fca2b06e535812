"""``anomnorm report``: a page about a normalizer and the scores that it judges."""

import argparse
from pathlib import Path

import numpy as np

from anomnorm_core.cli.arguments import FORMATS, Commands, add_columns, add_command, add_output, wanted
from anomnorm_core.cli.outputs import require_writable
from anomnorm_core.cli.progress import blocks_of
from anomnorm_core.cli.table import TableError, UsageError
from anomnorm_core.cli.tables import open_table
from anomnorm_core.normalizer import Normalizer
from anomnorm_core.threshold.choice import IGNORED

_TEXT = f"""Write a page about a fitted normalizer and, where given, the scores that it judges: statistics, thresholds
and what they mean, charts, errors and the samples that a person should look at. It is one HTML file that needs
no network. Charts need matplotlib: pip install 'anomnorm-core[plot]'.

  anomnorm report detector.safetensors scores.csv --label label --name path -o report.html

All scores, labels and names are held in memory.

{FORMATS}"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "report", run, "a page about a normalizer and scores", _TEXT)
    parser.add_argument("file", metavar="FILE", type=Path, help="a fitted normalizer (.safetensors)")
    parser.add_argument("scores", metavar="SCORES", nargs="*", help="files of scores; several are one sample")
    parser.add_argument("--title", default="Normalization report", help="of the page")
    add_output(parser, "file of the page (.html)")
    add_columns(parser, names=True)


def run(arguments: argparse.Namespace) -> None:
    """Read everything and write the page."""
    from anomnorm_core.report import write_report

    given = wanted(arguments)
    if not arguments.scores and (given.label or given.name):
        raise UsageError("--label and --name are of SCORES, and there are none.")
    target = require_writable(arguments.output, force=arguments.force)
    normalizer = Normalizer.load(arguments.file)
    tables = [open_table(path, given) for path in arguments.scores]
    scores = labels = names = None
    if tables:
        held = [(block.scores, block.kinds, block.names) for block in blocks_of(tables)]
        if not sum(len(block) for block, _, _ in held):
            raise TableError("there are no rows in the files of scores.")
        scores = np.concatenate([block for block, _, _ in held])
        if given.label is not None:
            kinds = np.concatenate([kinds for _, kinds, _ in held if kinds is not None])
            labels = np.where(kinds == IGNORED, -1, kinds)
        if given.name is not None:
            names = [name for _, _, some in held for name in some or ()]
    write_report(target, normalizer, scores, labels, names=names, title=arguments.title)
    print(f"{target}: a page about {arguments.file}" + ("" if scores is None else f" and {scores.size} scores"))
