"""Arguments that several commands have."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anomnorm_core.cli.labels import ANOMALOUS_WORDS, NORMAL_WORDS, Labels
from anomnorm_core.cli.table import SCORE_NAMES, Wanted

Commands = Any  # what `argparse` keeps private: the subparsers

FORMATS = """Scores are read from CSV (.csv, .tsv, .txt; delimiter and header are found out), from NumPy's .npy and
.npz, and from .parquet where pyarrow is installed. A row of text is a line. An array of shape (N,) is one
column; in an .npz each array of shape (N,) is a column of its name; columns without a name have
numbers, from 1. An empty field, or null, is a score that is not defined (NaN)."""


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], short: str, text: str
) -> argparse.ArgumentParser:
    """A parser for the command ``name``, with the docstring-like help ``text``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=short, description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.set_defaults(run=run)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_columns(parser: argparse.ArgumentParser, *, labels: bool = True, names: bool = False) -> None:
    """How scores are read."""
    group = parser.add_argument_group("how scores are read")
    usual = ", ".join(SCORE_NAMES)
    group.add_argument(
        "--score", metavar="COLUMN", help=f"column of the scores; default: the only one, or the first of {usual}"
    )
    if labels:
        group.add_argument("--label", metavar="COLUMN", help="column that says what is normal and what anomalous")
        either = group.add_mutually_exclusive_group()
        either.add_argument(
            "--normal", metavar="WORD", action="append", help="label of normal rows, all others being anomalous"
        )
        either.add_argument(
            "--anomalous",
            metavar="WORD",
            action="append",
            help="label of anomalous rows, all others being normal. Both may be repeated. Without either, "
            f"{', '.join(NORMAL_WORDS)} are normal and {', '.join(ANOMALOUS_WORDS)} anomalous, and any other label is "
            "an error",
        )
    if names:
        group.add_argument("--name", metavar="COLUMN", help="column with what each row is called, a path for example")
    group.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        help="precision of the scores, where a file of text does not say it: float32 for what a network gave, so that "
        "rows at a threshold are decided as there; default: that of the file, float64 for text",
    )
    group.add_argument("--delimiter", metavar="CHARACTER", type=_character, help="of text; default: found out")
    group.add_argument(
        "--decimal", choices=(".", ","), default=".", help="of numbers in text; with a comma lines are read slowly"
    )
    group.add_argument(
        "--header", action=argparse.BooleanOptionalAction, help="whether the first line has names; default: found out"
    )


def wanted(arguments: argparse.Namespace) -> Wanted:
    """What `add_columns` found."""
    given = vars(arguments)
    labels = Labels.of(given.get("normal") or (), given.get("anomalous") or ())
    plain = ("score", "label", "name", "dtype", "delimiter", "decimal", "header")
    columns: dict[str, Any] = {name: given.get(name) for name in plain}
    return Wanted(labels=labels, **columns)


def add_output(parser: argparse.ArgumentParser, text: str, *, required: bool = True) -> None:
    """Where the result goes."""
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=required, help=text)
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def _character(text: str) -> str:
    text = {"tab": "\t", "\\t": "\t", "space": " "}.get(text, text)
    if len(text) != 1 or text in '"\r\n':
        raise argparse.ArgumentTypeError(f"{text!r} is not one character, 'tab' or 'space'")
    return text
