"""The command line: ``anomnorm``, or ``python -m anomnorm_core``."""

import argparse
import sys
import traceback
import warnings
from collections.abc import Sequence

from anomnorm_core._version import __version__
from anomnorm_core.cli import apply, fit, report, set_threshold, show
from anomnorm_core.cli.table import UsageError
from anomnorm_core.errors import AnomnormError, FitWarning, InvalidScoreWarning, ThresholdWarning

_TEXT = """Normalize anomaly scores that are in files: 0.5 is the decision threshold.

  anomnorm fit scores.csv --label label --threshold false_alarm_rate --rate 0.01 -o detector.safetensors
  anomnorm show detector.safetensors
  anomnorm apply detector.safetensors new.csv -o normalized.csv
  anomnorm set-threshold detector.safetensors 2.5 --units sigmas
  anomnorm report detector.safetensors scores.csv --label label -o report.html

The file of a fitted normalizer is the one that the Python packages anomnorm-core, anomnorm-torch and
anomnorm-jax read and write. Exit codes: 0 fine, 1 data or files, 2 usage, 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: as after ``anomnorm``; None: those of this process.

    Returns:
        The exit code: 0; 1 after an error in data or files; 2 after one in the arguments, for some of which argparse
        raises ``SystemExit(2)`` itself; 130 when interrupted.
    """
    parser = argparse.ArgumentParser(
        "anomnorm", description=_TEXT, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"anomnorm-core {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (show, fit, apply, set_threshold, report):
        command.add(commands)
    given = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            for category in (FitWarning, InvalidScoreWarning, ThresholdWarning):
                warnings.simplefilter("always", category)
            given.run(given)
    except (AnomnormError, OSError, KeyboardInterrupt) as error:
        if given.debug:
            traceback.print_exc()
        print(f"anomnorm: error: {_message(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _message(error: BaseException) -> str:
    """One line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = "interrupted; no file was left unfinished" if isinstance(error, KeyboardInterrupt) else str(error)
    return " ".join(text.split())


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"anomnorm: warning: {message}", file=sys.stderr)
