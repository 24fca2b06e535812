"""``anomnorm set-threshold``: move the threshold of a fitted normalizer."""

import argparse
from pathlib import Path

from anomnorm_core.cli.arguments import Commands, add_command, add_output
from anomnorm_core.cli.outputs import require_writable
from anomnorm_core.cli.table import UsageError
from anomnorm_core.normalizer import Normalizer
from anomnorm_core.options import Units

_TEXT = """Move the threshold of a fitted normalizer. Normalized scores move with it: 0.5 is always the threshold.

  anomnorm set-threshold detector.safetensors 2.5 --units sigmas
  anomnorm set-threshold detector.safetensors 0.7 --units normalized -o stricter.safetensors

The units are raw scores; sigmas, where the method counts in them (cdf, normal); or present normalized scores:
with 0.7, what has 0.7 now will have 0.5. Without -o the file itself is changed, at once or not at all. The
threshold is then a manual one, which later validation runs in training keep."""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "set-threshold", run, "move the threshold of a normalizer", _TEXT)
    parser.add_argument("file", metavar="FILE", type=Path, help="a fitted normalizer (.safetensors)")
    parser.add_argument("value", metavar="VALUE", type=float, nargs="?", help="new threshold of the image scores")
    parser.add_argument("--pixels", metavar="VALUE", type=float, help="new threshold of the maps")
    parser.add_argument("--units", choices=list(map(str, Units)), help="default: sigmas if the method has them, or raw")
    add_output(parser, "file to write instead of FILE", required=False)


def run(arguments: argparse.Namespace) -> None:
    """Save the normalizer with another threshold."""
    if arguments.value is None and arguments.pixels is None:
        raise UsageError("set-threshold needs a VALUE, or --pixels VALUE.")
    target = arguments.file
    if arguments.output is not None:
        target = require_writable(arguments.output, force=arguments.force)
    normalizer = Normalizer.load(arguments.file)
    moved = normalizer.with_threshold(arguments.value, arguments.pixels, units=arguments.units)
    moved.save(target)
    print(moved.summary())
