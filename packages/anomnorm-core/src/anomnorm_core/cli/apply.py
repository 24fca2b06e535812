"""``anomnorm apply``: normalized scores and labels of the scores in files."""

import argparse
from pathlib import Path

import numpy as np

from anomnorm_core.checks import report_undefined
from anomnorm_core.cli.arguments import FORMATS, Commands, add_columns, add_command, add_output, wanted
from anomnorm_core.cli.outputs import require_writable
from anomnorm_core.cli.progress import blocks_of
from anomnorm_core.cli.table import Table, TableError, UsageError
from anomnorm_core.cli.tables import open_table
from anomnorm_core.errors import OptionError
from anomnorm_core.fields import SCORES
from anomnorm_core.file import replacing
from anomnorm_core.normalizer import Normalizer

_SCORE, _LABEL = "normalized_score", "pred_label"

_TEXT = f"""Normalize scores: each row gets a {_SCORE}, with 0.5 at the threshold, and a {_LABEL}, 1 where
the score is flagged and 0 where not. Other columns and the order of the rows are kept.

  anomnorm apply detector.safetensors new.csv -o normalized.csv
  anomnorm apply detector.safetensors day1.csv day2.csv --extras z -o normalized/

OUT is of the kind of SCORES: CSV of CSV, with its delimiter; Parquet of Parquet; .npz of .npz. Of an .npy it is
an .npz of both columns, or an .npy of the normalized scores alone (what has 0.5 or more is flagged). Several
files of scores go to a folder OUT, under their own names. Scores pass through block by block, whatever the size
of the files.

Extras: z, the score in sigmas (cdf, normal), or margin, the distance from the threshold as a share of the range
(min-max, two-slope). They keep their order where the normalized score is 0 or 1.

{FORMATS}"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "apply", run, "normalize scores", _TEXT)
    parser.add_argument("file", metavar="FILE", type=Path, help="a fitted normalizer (.safetensors)")
    parser.add_argument("scores", metavar="SCORES", nargs="+", help="files of scores")
    parser.add_argument("--extras", metavar="NAME", action="append", help="one more column, see above; may be repeated")
    add_output(parser, "file for the result, or folder for those of several")
    add_columns(parser, labels=False)


def run(arguments: argparse.Namespace) -> None:
    """Write a table for each one."""
    normalizer = Normalizer.load(arguments.file)
    extras = _extras(normalizer, arguments.extras or [])
    tables = [open_table(path, wanted(arguments)) for path in arguments.scores]
    targets = _targets(tables, arguments.output)
    for table, target in zip(tables, targets, strict=True):
        _require_room(table, target, (_SCORE, _LABEL, *extras))
        require_writable(target, force=arguments.force)
    for table, target in zip(tables, targets, strict=True):
        _apply(normalizer, extras, table, target)


def _apply(normalizer: Normalizer, extras: tuple[str, ...], table: Table, target: Path) -> None:
    rows = flagged = undefined = 0
    with replacing(target) as file:
        writer = table.writer(target, file, (_SCORE, _LABEL, *extras))
        for block in blocks_of([table], whole=True):
            result = normalizer(block.scores, extras=extras)
            added = {_SCORE: result[SCORES], _LABEL: result["pred_labels"].astype(np.uint8)}
            writer.write(block, added | {extra: result[f"{SCORES}_{extra}"] for extra in extras})
            rows += block.scores.size
            flagged += int(result["pred_labels"].sum())
            undefined += int(np.isnan(block.scores).sum())
        if not rows:
            raise TableError(f"{table.path}: there are no rows in it.")
        writer.finish()
    report_undefined(undefined)
    print(f"{target}: {flagged} of {rows} rows are flagged")


def _extras(normalizer: Normalizer, names: list[str]) -> tuple[str, ...]:
    method = normalizer.to_fit().method
    try:
        extras = method.parse_extras(names)
    except OptionError as error:
        raise UsageError(f"--{error}") from None
    if {"raw", "invalid"} & set(extras):
        raise UsageError("--extras: the raw scores are in the table already, and those that are NaN are invalid.")
    return extras


def _targets(tables: list[Table], output: Path) -> list[Path]:
    """Where each result goes."""
    if len(tables) == 1 and not output.is_dir():
        return [output]
    names = [table.path.name for table in tables]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{names.count(name)} files are named {name}, and all results go to {output}.")
    output.mkdir(exist_ok=True)
    return [output / name for name in names]


def _require_room(table: Table, target: Path, names: tuple[str, ...]) -> None:
    """Raise `TableError` unless the columns can be added and the result can be of this kind."""
    if target.suffix.lower() not in table.outputs:
        raise TableError(f"{target}: the result for {table.path} has to end in {' or '.join(table.outputs)}.")
    for name in names:
        if name in table.columns:
            raise TableError(f"{table.path}: there is a column {name!r} already; rename it.")
