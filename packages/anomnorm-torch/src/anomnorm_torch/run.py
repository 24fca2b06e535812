"""What one validation run gathers, and the fit that comes of it (clauses L1, S1 to S8, T1 to T6)."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from anomnorm_core.checks import counts_of, report_invalid, share_of_zeros
from anomnorm_core.errors import AnomnormError, ResolutionError
from anomnorm_core.fields import MAPS, SCORES
from anomnorm_core.fit import Fit, LevelFit
from anomnorm_core.fit_check import FitCheck
from anomnorm_core.method import Kernels
from anomnorm_core.options import LEVELS, OnInvalid, Origin, Per, Rules, Source
from anomnorm_core.threshold import ScoreHistogram as CoreHistogram
from anomnorm_core.threshold.choice import IGNORED, NORMAL, UNLABELLED, Choice, Gathered, conclude, labels_of
from anomnorm_torch import threshold
from anomnorm_torch._kernels import evaluated
from anomnorm_torch._tensors import arithmetic, largest_defined, wide
from anomnorm_torch._version import __version__
from anomnorm_torch.outputs import GroundTruth
from anomnorm_torch.processes import concatenated, gathered, total

_PADDING = 4  # in place of a label: the sample does not even count as one that is ignored


class Records:
    """The statistics of both levels, updated batch by batch.

    Args:
        kernels: of the method.
        options: of the method.
        device: where the records are.
    """

    def __init__(self, kernels: Kernels, options: Mapping[str, Any], device: torch.device) -> None:
        self._kernels, self._options, self._device = kernels, options, device
        self._shared = bool(options.get("shared_range", False))  # one range, of the maps where there are any
        self._image: Any = kernels.init(device=device)
        self._pixel: Any = None  # until there are maps

    def add(self, scores: Tensor, maps: Tensor | None, where: Tensor | None = None) -> None:
        """Add raw scores (B,) and maps of a batch, both or, after an error, none. No host synchronization."""
        update, pixel = self._kernels.update, self._pixel
        if self._shared and maps is not None:
            scores, maps = maps, None
        if maps is not None:
            pixel = self._empty(tuple(maps.shape[-2:])) if pixel is None else pixel
            pixel = update(pixel, maps, where=where)
        self._image, self._pixel = update(self._image, scores, where=where), pixel

    def _empty(self, shape: tuple[int, ...]) -> Any:
        return self._kernels.init(shape, device=self._device)

    def merge_processes(self, group: Any = None) -> None:
        """Take over the values of all processes of the group; None: of all. Each of them has to call it.

        Raises:
            ResolutionError: the processes have maps of different height and width.
        """
        shape = (0, 0) if self._pixel is None else tuple(self._pixel.count.shape) or (1, 1)
        shapes = {tuple(each.tolist()) for each in gathered(torch.tensor(shape, device=self._device), group)} - {(0, 0)}
        if len(shapes) > 1:
            raise ResolutionError(f"the processes have anomaly maps of (H, W) = {sorted(shapes)}; they need one size.")
        self._image = self._pooled(self._image, group)
        if shapes:
            self._pixel = self._pooled(self._empty(shapes.pop()) if self._pixel is None else self._pixel, group)

    def _pooled(self, record: Any, group: Any) -> Any:
        columns = [gathered(field, group) for field in record]
        first, *others = (type(record)(*fields) for fields in zip(*columns, strict=True))
        for other in others:
            first = self._kernels.merge(first, other)
        return first

    def report_invalid(self, on_invalid: OnInvalid | None, source: Source | None = None) -> bool:
        """Warn about, or refuse, what was left out so far (clause S6), and return whether anything was.

        Waits for the device.

        Args:
            on_invalid: None refuses what is no fit, and says nothing else.
            source: where the normal data come from, if these are records of such.

        Raises:
            InvalidScoreError: something was left out and ``on_invalid`` is ``RAISE``, or so much that the rest is no
                fit.
        """
        present = zip(LEVELS, (self._image, self._pixel), strict=True)
        counts = {level: counts_of(record) for level, record in present if record is not None}
        return report_invalid(counts, on_invalid, method=self._kernels.method, source=source)

    def finish(self) -> Fit:
        """The parameters, without thresholds.

        Raises:
            NotFittedError, InsufficientDataError: a level has too few valid values (clauses S6, S7).
        """
        levels = {"image": self._level("image", self._image)}
        if self._shared:
            levels["pixel"] = levels["image"]
        elif self._pixel is not None:
            levels["pixel"] = self._level("pixel", self._pixel)
        method = self._kernels.method
        return Fit(method, **levels, options=self._options, fitted_with=("anomnorm-torch", __version__))

    def _level(self, level: str, record: Any) -> LevelFit:
        parameters = tuple(value.cpu().numpy() for value in self._kernels.finalize(record, level=level))
        zeros = None
        if self._kernels.method.positive:
            zeros = share_of_zeros(record.count.cpu().numpy(), record.zeros.cpu().numpy())
        return LevelFit(parameters, None, int(record.count.max()), counts_of(record).left_out, zeros)


class Run:
    """A validation run: the raw image scores with their labels, and the pixels in a histogram of fixed size.

    Samples without a label count as normal; a warning says how many they were, where that matters.

    Args:
        kernels: of the method.
        options: of the method.
        device: where everything is kept.
        draft: parameters that were fitted before the run; None: the run's ``records`` give them at its end.
        pixels: the rule by which a pixel threshold has to be found; None: none has.
        per: under a false-alarm rate, of what it is the share.
    """

    def __init__(
        self,
        kernels: Kernels,
        options: Mapping[str, Any],
        device: torch.device,
        *,
        draft: Fit | None = None,
        pixels: Origin | None = Origin.ADAPTIVE,
        per: Per | str = Per.PIXEL,
    ) -> None:
        self.draft, self._device = draft, device
        self.records = Records(kernels, options, device) if draft is None else None
        self.standardizer = None if draft is None else Standardizer(kernels, draft, device)
        self._scores = _Column(torch.float32, device)
        self._labels = _Column(torch.uint8, device)
        self._pixels = None if pixels is None else threshold.init(device=device)
        self._normals_alone = pixels is Origin.FALSE_ALARM_RATE
        self._maxima = _Column(torch.float32, device) if self._normals_alone and per == Per.IMAGE else None
        self._images: Tensor | int = 0  # normal ones that have maps
        self._maps = 0  # batches with maps

    def add(
        self,
        scores: Tensor,
        maps: Tensor | None,
        truth: GroundTruth,
        valid: Tensor | None = None,
        *,
        units: Tensor | None,
    ) -> None:
        """Add a batch. No host synchronization.

        Args:
            scores: raw image scores (B,).
            maps: raw maps.
            truth: labels and masks.
            valid: (B,); False for what only pads the batch.
            units: the maps in the method's units, of which the pixel threshold is found.
        """
        if self.records is not None:
            self.records.add(scores, maps, valid)
        anomalous, masks, ignored = truth
        labels = torch.full_like(scores, UNLABELLED, dtype=torch.uint8) if anomalous is None else anomalous.byte()
        if ignored is not None:
            labels = labels.masked_fill(ignored, IGNORED)
        labels = labels.to(scores.device)
        if valid is not None:
            labels = labels.masked_fill(~valid, _PADDING)
        self._scores.add(arithmetic(scores).detach())
        self._labels.add(labels)
        if self._maxima is not None:
            largest = torch.full((len(labels),), torch.nan, device=labels.device)
            if units is not None:  # a map without a defined pixel is the smallest
                largest = largest_defined(arithmetic(units)).detach()
                largest = largest.masked_fill(largest.isnan(), -torch.inf)
            self._maxima.add(largest)
        if units is None or self._pixels is None:
            return
        self._maps += 1
        # The pixels of a normal image are known to be normal; those of an anomalous one are not known.
        normal = (labels == NORMAL) | (labels == UNLABELLED)
        if self._normals_alone:
            self._images, masks = self._images + normal.sum(), None
        self._pixels = threshold.update(self._pixels, units, masks, where=normal if masks is None else valid)

    def merge_processes(self, group: Any = None) -> None:
        """Take over the samples of all processes of the group; None: of all. Each of them has to call it.

        Raises:
            AnomnormError: one process has a pixel threshold to find, and another has not.
        """
        if self.records is not None:
            self.records.merge_processes(group)
        own = [self._scores, self._labels, *([] if self._maxima is None else [self._maxima])]
        values = [column.values().to(self._device) for column in own]
        precise = wide(self._device)
        mine = [values[0].dtype == torch.float64, self._pixels is not None, self._maps, int(self._images)]
        double, searching, self._maps, self._images = map(int, total(torch.tensor(mine, device=self._device), group))
        columns = concatenated(torch.stack([column.to(precise) for column in values]), group)
        dtypes = (torch.float64 if double else torch.float32, torch.uint8, torch.float32)
        for column, together, dtype in zip(own, columns, dtypes, strict=False):
            column.replace(together.to(dtype))
        if searching not in (0, torch.distributed.get_world_size(group)):
            raise AnomnormError(
                "the module has a pixel threshold of its own in some processes and not in others. Let it have one, "
                "and the same, in all of them."
            )
        if self._pixels is not None:
            self._pixels = threshold.ScoreHistogram(*(total(counts, group) for counts in self._pixels))

    def finish(self, choices: Mapping[str, Choice], rules: Rules, *, unseen: bool = True) -> Fit:
        """The fit of this run, with its thresholds.

        Args:
            choices: where the thresholds come from, by level.
            rules: the numbers of the rules.
            unseen: whether the run's normal samples are others than those that the draft was fitted on.

        Raises:
            NotFittedError, InsufficientDataError: there are too few valid values, or none to place a threshold by.
        """
        fit = cast("Fit", self.draft)
        pixels = None
        if self._pixels is not None and self._maps:
            pixels = CoreHistogram(*(field.cpu().numpy() for field in self._pixels))
        scores, labels = self._samples(self._scores), self._samples(self._labels)
        maxima = None if self._maxima is None else self._samples(self._maxima)
        gathered = Gathered(scores, labels, pixels, int(self._images), maxima)
        where = "the step's outputs or in the batch"
        return conclude(fit, choices, rules, gathered, where=where, unseen=unseen)

    def _samples(self, column: "_Column") -> np.ndarray:
        """The values of the samples that do not pad."""
        found: np.ndarray = column.values()[self._labels.values() != _PADDING].cpu().numpy()
        return found

    def labelled_scores(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The raw image scores (N,) and their labels (see `labels_of`), on the host."""
        return self._samples(self._scores), labels_of(self._samples(self._labels))

    def fit_check(self, fit: Fit, *, unseen: bool = True) -> FitCheck | None:
        """How ``fit`` does on the normal samples of this run (clause S9); None without any.

        Args:
            fit: with its parameters.
            unseen: whether those are other samples than it was fitted on.
        """
        scores, labels = self._samples(self._scores), self._samples(self._labels)
        check = FitCheck.of_scores(fit, scores[labels == NORMAL], unseen=unseen)
        return check if check.normals else None


class Standardizer:
    """Raw scores and maps to z-scores, without a threshold.

    Args:
        kernels: of a method with sigmas.
        fit: its parameters.
        device: of what is given.
    """

    def __init__(self, kernels: Kernels, fit: Fit, device: torch.device) -> None:
        self._function, self._fit = kernels.extras["z"], fit
        # A threshold that is of no interest, and the parameters, in both dtypes: converting takes time in each batch.
        self._arguments = {
            (level, dtype): tuple(
                torch.tensor(value, dtype=dtype, device=device) for value in (1.0, *fit.arguments(level))
            )
            for level in LEVELS
            if getattr(fit, level) is not None
            for dtype in (torch.float32, wide(device))
        }

    def __call__(self, pred_scores: Tensor | None, anomaly_maps: Tensor | None) -> dict[str, Tensor]:
        """The z-scores of what is given.

        Raises:
            NotFittedError: maps are given, but none were fitted.
            ResolutionError: the maps do not have the fitted height and width.
        """
        given = ((SCORES, "image", pred_scores), (MAPS, "pixel", anomaly_maps))
        return {name: self.of(level, values) for name, level, values in given if values is not None}

    def of(self, level: str, values: Tensor) -> Tensor:
        """The z-scores of ``values`` of one level."""
        self._fit.level(level)  # which says what is missing
        x = arithmetic(values)
        t, *arguments = self._arguments[level, x.dtype]
        return evaluated(self._function, x, t, tuple(arguments))


class _Column:
    """The values of all batches in one tensor, which grows by doubling.

    A tensor for each batch would be small and stay: scattered over the heap between the maps that come and go, such
    tensors keep the allocator from using the room of one map for the next (measured: 5 MB more for each batch).
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._values = torch.empty(0, dtype=dtype, device=device)
        self._count = 0

    def add(self, values: Tensor) -> None:
        """Copy ``values`` of shape (B,), on whichever device the first ones were."""
        old, end = self._values, self._count + values.numel()
        dtype = torch.promote_types(old.dtype, values.dtype)
        if end > old.numel() or dtype != old.dtype:
            device = old.device if self._count else values.device
            self._values = torch.empty(max(2 * end, 1024), dtype=dtype, device=device)
            self._values[: self._count] = old[: self._count]
        self._values[self._count : end] = values
        self._count = end

    def replace(self, values: Tensor) -> None:
        """Let ``values`` be all that there are."""
        self._values, self._count = values, values.numel()

    def values(self) -> Tensor:
        """All of them, shape (N,)."""
        return self._values[: self._count]


def some_weights(module: nn.Module) -> list[Tensor]:
    """A number from each of some parameters, the trained ones if there are any: others after an exchange of weights."""
    parameters = list(module.parameters())
    parameters = [parameter for parameter in parameters if parameter.requires_grad] or parameters
    found = []
    for parameter in parameters[:: max(len(parameters) // 16, 1)]:
        local = getattr(parameter, "to_local", None)  # of a shard
        found.append((parameter if local is None else local()).detach().reshape(-1)[:1].clone())
    return found
