"""``anomnorm fit``: a normalizer of the scores in a file."""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from anomnorm_core import fitting, threshold
from anomnorm_core.cli.arguments import FORMATS, Commands, add_columns, add_command, add_output, wanted
from anomnorm_core.cli.outputs import require_writable
from anomnorm_core.cli.progress import blocks_of
from anomnorm_core.cli.table import Block, Table, TableError, UsageError
from anomnorm_core.cli.tables import open_table
from anomnorm_core.errors import OptionError
from anomnorm_core.method import Kernels
from anomnorm_core.methods import METHODS
from anomnorm_core.normalizer import Normalizer
from anomnorm_core.options import Origin, Rules, ThresholdRule, Transform, Units, parse_threshold
from anomnorm_core.threshold.choice import ANOMALOUS, IGNORED, NORMAL, Choice, place, transform_of
from anomnorm_core.threshold.search import Found

_RULES = (ThresholdRule.ADAPTIVE, ThresholdRule.NORMAL_QUANTILE, ThresholdRule.FALSE_ALARM_RATE)

_MANY = 2**17  # scores

_TEXT = f"""Fit a normalizer to scores, best those of a validation set that the detector has not seen, and find its
threshold.

  anomnorm fit scores.csv --label label --threshold false_alarm_rate --rate 0.01 -o detector.safetensors
  anomnorm fit normal.npy --method min-max --threshold normal_quantile -o detector.safetensors

--label names the column that says which rows are normal. Without it all of them are taken as normal. Rows with
an empty label are left out, and counted. cdf and normal are fitted on the normal rows, min-max and two-slope
on all. --threshold is one of

  adaptive          the best F1; needs --label (default)
  false_alarm_rate  what a share --rate of new normal samples is expected to reach
  normal_quantile   just above the normal rows, or above a share --quantile of them
  a NUMBER          in --units: sigmas if the method has them (cdf, normal), or raw scores

The exact threshold needs all scores at once: they are held in memory, with the search some 100 bytes for each
row. With --bounded-memory a histogram of fixed size is held in their place, for inputs larger than memory; the
threshold is then at the edge of a bin, of 0.2 to 0.4 percent of its value, and the shape of the scores is not
checked. Everything else is read block by block.

{FORMATS}"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "fit", run, "fit a normalizer to scores", _TEXT)
    parser.add_argument("scores", metavar="SCORES", nargs="+", help="files of scores; several are one sample")
    parser.add_argument("--method", default="cdf", help=f"{', '.join(METHODS)}, or a registered one; default: cdf")
    parser.add_argument(
        "--transform",
        choices=list(map(str, Transform)),
        help="of cdf: what is normally distributed, the logarithms of the scores (log, default) or the scores "
        "themselves, of any sign (identity, which is method normal)",
    )
    parser.add_argument("--threshold", metavar="RULE", default="adaptive", help="see above; default: adaptive")
    parser.add_argument("--units", choices=("raw", "sigmas"), help="of a NUMBER")
    parser.add_argument("--rate", type=float, help="of false_alarm_rate; default: 0.01")
    parser.add_argument(
        "--confidence",
        type=float,
        help="of false_alarm_rate: the rate holds for this share of validation sets; default: on average",
    )
    parser.add_argument("--quantile", type=float, help="of normal_quantile; default: 1")
    parser.add_argument("--bounded-memory", action="store_true", help="hold no scores, see above")
    add_output(parser, "file of the normalizer (.safetensors)")
    add_columns(parser)


def run(arguments: argparse.Namespace) -> None:
    """Fit, save and print the summary."""
    plan = _Plan.of(arguments)
    target = require_writable(arguments.output, force=arguments.force)
    tables = [open_table(path, wanted(arguments)) for path in arguments.scores]
    _report_unused_labels(tables)
    blocks = blocks_of(tables)
    normalizer = _bounded(plan, blocks) if arguments.bounded_memory else _exact(plan, blocks)
    normalizer.save(target)
    print(normalizer.summary())


@dataclass(frozen=True)
class _Plan:
    """What is fitted, and where the threshold comes from."""

    kernels: Kernels
    choice: Choice
    rules: Rules

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "_Plan":
        """From arguments that go together.

        Raises:
            UsageError: they do not.
        """
        given = arguments
        rule = given.threshold if given.threshold in _RULES else None
        for option, owner in (
            ("rate", "false_alarm_rate"),
            ("confidence", "false_alarm_rate"),
            ("quantile", "normal_quantile"),
        ):
            if getattr(given, option) is not None and rule != owner:
                raise UsageError(f"--{option} is of --threshold {owner}; the threshold here is {given.threshold}.")
        if rule == ThresholdRule.ADAPTIVE and given.label is None:
            raise UsageError(
                "--threshold adaptive needs labelled rows: give --label COLUMN; or, of normal rows alone, --threshold "
                "false_alarm_rate or normal_quantile."
            )
        if rule and given.units:
            raise UsageError(f"--units is of a NUMBER as threshold; here it is {rule}.")
        if given.confidence is not None and given.bounded_memory:
            raise UsageError("--confidence needs the scores themselves; leave out --bounded-memory.")
        if given.transform and given.method != "cdf":
            raise UsageError(f"--transform is of method cdf; the method here is {given.method}.")
        try:
            usual = Rules()
            rules = Rules(
                usual.normal_quantile if given.quantile is None else given.quantile,
                usual.false_alarm_rate if given.rate is None else given.rate,
                given.confidence,
            )
            method = Transform.parse(given.transform, "--transform").method if given.transform else given.method
            kernels = METHODS[method]
            if rule:
                return cls(kernels, Choice(Origin(rule)), rules)
            number = parse_threshold(_number(given.threshold), "--threshold")
            units = None if given.units is None else Units(given.units)
            if units is Units.SIGMAS and not kernels.method.sigmas:
                raise UsageError(f"--units sigmas: {method} has none; give the threshold in raw units.")
            return cls(kernels, Choice(Origin.OPTION, number, units), rules)
        except OptionError as error:
            raise UsageError(str(error)) from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        rules = ", ".join(_RULES)
        raise UsageError(f"--threshold {text}: give one of {rules}, or a number.") from None


def _report_unused_labels(tables: Iterable[Table]) -> None:
    """Warn of what looks like labels, and is not used."""
    for table in tables:
        if table.label is None:
            for name in ("label", "labels", "gt_label", "gt_labels", "target", "y"):
                if name in table.columns:
                    print(
                        f"anomnorm: warning: {table.path} has a column {name!r} that is not used: all rows count as "
                        f"normal. Give --label {name}.",
                        file=sys.stderr,
                    )
                    break


class _Rows:
    """The rows that are fitted, and how many of which kind there were."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self.normal = self._ignored = self._rows = 0

    def kept(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Scores and kinds of a block, without the rows that have no label."""
        kinds = np.zeros(block.scores.shape, dtype=np.int8) if block.kinds is None else block.kinds
        kept = kinds != IGNORED
        self._rows += kinds.size
        self._ignored += int(kinds.size - np.sum(kept))
        self.normal += int(np.sum(kinds == NORMAL))
        return block.scores[kept], kinds[kept]

    def report(self) -> None:
        """Say what was left out, once all are read; refuse rows that are no fit."""
        method = self._plan.kernels.method
        if self._rows == self._ignored:
            raise TableError("there are no rows to fit" + (": none has a label." if self._rows else "."))
        if self._ignored:
            print(f"anomnorm: {self._ignored} of {self._rows} rows have no label and are left out.", file=sys.stderr)
        if method.sigmas and not self.normal:
            raise TableError(
                f"none of {self._rows} rows is normal, and {method.name} is fitted on normal ones. Say which are, with "
                "--normal or --anomalous, or use --method min-max."
            )


def _exact(plan: _Plan, blocks: Iterable[Block]) -> Normalizer:
    """The normalizer, with all scores held in memory."""
    rows, name = _Rows(plan), plan.kernels.method.name
    parts = []
    for block in blocks:
        scores, kinds = rows.kept(block)
        parts.append(fitting.record(scores, kinds == ANOMALOUS, method=name))
    rows.report()
    record = reduce(fitting.merge, parts)
    parts.clear()
    rules, choice = plan.rules, plan.choice
    normalizer = fitting.normalizer(
        record,
        threshold=str(choice.origin) if choice.is_searched else choice.value,
        units=choice.units,
        normal_quantile=rules.normal_quantile,
        false_alarm_rate=rules.false_alarm_rate,
        confidence=rules.confidence,
    )
    fit = normalizer.to_fit()
    # Normalized scores and expected rates are told of sigmas too, wherever the threshold comes from.
    if fit.method.sigmas and not fit.is_constant and fit.threshold("image").fixed is not Units.SIGMAS:
        fitting.check(record, normalizer).report(transform_of(fit.method))
    return normalizer


def _bounded(plan: _Plan, blocks: Iterable[Block]) -> Normalizer:
    """The normalizer, with a histogram of the scores in their place."""
    rows, kernels = _Rows(plan), plan.kernels
    histogram, record = threshold.init(), kernels.init()
    waiting: list[tuple[np.ndarray, np.ndarray]] = []  # a histogram is large, and is not updated with a few scores
    for block in blocks:
        scores, kinds = rows.kept(block)
        record = kernels.update(record, scores[kinds == NORMAL] if kernels.method.sigmas else scores)
        waiting.append((scores, kinds))
        if sum(scores.size for scores, _ in waiting) >= _MANY:
            histogram = _counted(plan, histogram, waiting)
            waiting.clear()
    histogram = _counted(plan, histogram, waiting)
    rows.report()
    fit = Normalizer.fitted(kernels.method.name, record)
    found = {"image": _searched(plan, histogram, rows.normal)} if plan.choice.is_searched else {}
    fit = place(fit, {"image": plan.choice, "pixel": Choice(Origin.IMAGE)}, found)
    fit.report_rate()
    return Normalizer.from_fit(fit)


def _counted(
    plan: _Plan, record: threshold.ScoreHistogram, parts: list[tuple[np.ndarray, np.ndarray]]
) -> threshold.ScoreHistogram:
    """The histogram with the scores of the kinds that the rule looks at."""
    if not parts:
        return record
    scores, kinds = (np.concatenate(column) for column in zip(*parts, strict=True))
    taken = None if plan.choice.origin is Origin.ADAPTIVE else kinds == NORMAL
    values = np.where(scores <= 0, -np.inf, scores) if plan.kernels.method.positive else scores
    return threshold.update(record, values, kinds == ANOMALOUS, where=taken)


def _searched(plan: _Plan, record: threshold.ScoreHistogram, normal: int) -> Found:
    """The threshold in a histogram of image scores: each is one pixel of one image."""
    method, rules = plan.kernels.method, plan.rules
    if plan.choice.origin is Origin.ADAPTIVE:
        found = Found(threshold.streamed_adaptive(record, normal_quantile=rules.normal_quantile))
    elif plan.choice.origin is Origin.NORMAL_QUANTILE:
        found = threshold.streamed_normal_quantile(record, rules.normal_quantile, images=normal)
    else:
        found = threshold.streamed_false_alarm_rate(
            record, rules.false_alarm_rate, normal, transform=transform_of(method)
        )
    # Just above a score without a logarithm there is none either.
    least = np.finfo(np.float32).tiny if method.positive else -np.inf
    return found._replace(threshold=np.maximum(found.threshold, least))
