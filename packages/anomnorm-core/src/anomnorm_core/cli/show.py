"""``anomnorm show``: what is in the file of a normalizer."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from anomnorm_core.cli.arguments import Commands, add_command
from anomnorm_core.file import describe
from anomnorm_core.normalizer import Normalizer

_TEXT = """Say what is in the file of a fitted normalizer: method, parameters, thresholds with their origin and
the share of false alarms that is expected of them, and what some normalized scores are in raw units.

  anomnorm show detector.safetensors
  anomnorm show detector.safetensors --json | jq .levels.image.threshold.raw

With --json it is one object. Of maps, whose pixels have parameters of their own, it has the shape and the
smallest and largest value."""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "show", run, "what is in the file of a normalizer", _TEXT)
    parser.add_argument("file", metavar="FILE", type=Path, help="a fitted normalizer (.safetensors)")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> None:
    """Print the summary, or all of it as JSON."""
    normalizer = Normalizer.load(arguments.file)
    print(json.dumps(_facts(normalizer), indent=2) if arguments.json else normalizer.summary())


def _facts(normalizer: Normalizer) -> dict[str, Any]:
    fit = normalizer.to_fit()
    about, _ = describe(fit)
    for level, facts in about["levels"].items():
        fitted, threshold = fit.level(level), fit.thresholds[level]
        named = zip(fit.method.parameters, fitted.parameters, strict=True)
        facts["parameters"] = {name: _value(array) for name, array in named}
        rule = {name: facts.pop(name) for name in ("sigmas", "origin", "fixed", "guaranteed")}
        rate = {"false_alarm_rate": threshold.false_alarm_rate}
        facts.pop("false_alarm_rate")
        facts["threshold"] = {"raw": _value(threshold.raw)} | rule | rate
        if fit.method.positive:
            facts["zeros"] = _value(fitted.known_zeros)
    return about


def _value(array: np.ndarray) -> float | dict[str, Any]:
    if array.ndim == 0:
        return float(array)
    return {"shape": list(array.shape), "min": float(array.min()), "max": float(array.max())}
