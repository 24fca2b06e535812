"""What a normalization callback leaves in a module: the fit of its last validation run (clauses L6, N8, T4)."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from anomnorm_core import cdf as core_cdf
from anomnorm_core._schema import check_description
from anomnorm_core.errors import AnomnormError
from anomnorm_core.file import compose, describe
from anomnorm_core.fit import Fit, LevelFit
from anomnorm_core.fit_check import FitCheck
from anomnorm_core.methods import METHODS
from anomnorm_core.options import LEVELS, Origin
from anomnorm_torch.normalizer import Normalizer

NAME = "normalization_metrics"  # of the attribute, as in anomalib 0.3
_LOAD = "load_"  # what the key of the text begins with, whoever is to load it
_ABOUT = f"{_LOAD}with_anomnorm_torch_NormalizationMixin"  # what torch lists where a module has not the mixin
_RANGE = {"min", "max"}  # keys of anomalib 0.3 to 1.1
_RANGES = ("pred_scores.", "anomaly_maps.")  # prefixes of those in anomalib 1.2, by level
_BOXES = "box_scores."  # and of one that no level has
_MOMENTS = {f"{level}_{name}" for level in LEVELS for name in ("mean", "std")}
_HALF = (torch.float16, torch.bfloat16)
_SIZE = 2048  # of the text, or a multiple of it


class Slot(nn.Module):
    """Holds a fit for a module whose state dict it joins; it has neither parameters nor buffers of its own.

    So nothing that averages, broadcasts or converts a module's tensors touches it. Its keys in the state dict are the
    arrays of a complete fit, and one text that says the rest. Before the first complete one there are none.

    Args:
        fit: of the method and with the options that are expected; None takes those of the state dict that comes.
    """

    prefix = f"{NAME}."  # of its keys in the state dict of a LightningModule
    about_key = _ABOUT  # of the text

    def __init__(self, fit: Fit | None = None) -> None:
        super().__init__()
        self._fit = Fit(METHODS["min-max"].method) if fit is None else fit
        self._takes_any = fit is None
        self.device = torch.device("cpu")  # where the module is
        self.draft: Fit | None = None  # parameters of a validation run that goes on
        self.placed: Fit | None = None  # the fit with the thresholds of a test or prediction that goes on
        self.fit_check: FitCheck | None = None  # of the last validation run (clause S9)
        self.in_state_dict = True  # that of a sharded module is saved and loaded in parts, and this beside it
        self.is_restored = False  # whether it was given what a checkpoint holds beside the state dict
        self.trainer: Any = None  # of the stage that goes on or was the last one; not in copies
        self.unused_thresholds: set[str] = set()  # of the module that are no numbers, of which a warning told
        self._manual: set[str] = set()  # levels whose threshold was set here, not where a checkpoint comes from
        self._cached: tuple[torch.device, Normalizer] | None = None  # in a tuple, so that it is no submodule
        self._text: bytes | None = None  # of the state dict, which callbacks that average ask for in every batch

    @property
    def fit(self) -> Fit:
        """The fit; it may be empty or lack thresholds."""
        return self._fit

    @fit.setter
    def fit(self, fit: Fit) -> None:
        self._fit, self._cached, self._text, self._takes_any = fit, None, None, False

    @property
    def is_complete(self) -> bool:
        """Whether there is a fit with all of its thresholds."""
        image, pixel = self._fit.image, self._fit.pixel
        return image is not None and all(each is None or each.threshold is not None for each in (image, pixel))

    @property
    def normalizer(self) -> Normalizer:
        """The fit, ready to score, on the module's device. Setting it keeps its manual thresholds over a checkpoint's.

        Raises:
            NotFittedError: nothing was fitted, or a threshold is missing.
        """
        if self._cached is None or self._cached[0] != self.device:
            self._cached = (self.device, Normalizer(self._fit).to(self.device))
        return self._cached[1]

    @normalizer.setter
    def normalizer(self, normalizer: Normalizer) -> None:
        self.set_manually(normalizer.to_fit())

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "normalizer":  # torch would make a submodule of it, and never come to the setter
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def set_manually(self, fit: Fit) -> None:
        """Take over a fit whose manual thresholds were set by the user of this process (clause T4)."""
        self.fit = fit
        present = {level: getattr(fit, level) for level in LEVELS}
        self._manual = {level for level, fitted in present.items() if _is_manual(fitted)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.device = fn(torch.empty(0, device=self.device)).device
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __iter__(self) -> Iterator[str]:
        # A module of anomalib 1.2 iterates over the metrics that it expects here, to save their classes.
        return iter(())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "trainer": None}

    @property
    def _is_running(self) -> bool:
        """Whether a stage of a trainer goes on, and this is not the trainer restoring a checkpoint.

        So it is a callback or the module that exchanges weights, for a validation with averaged ones for example.
        """
        trainer = self.trainer
        return (
            trainer is not None
            and trainer.state.status == "running"
            and not trainer._checkpoint_connector._loaded_checkpoint
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:  # noqa: ARG002
        if self.in_state_dict:
            destination.update({prefix + name: value for name, value in self.entries().items()})

    def entries(self) -> dict[str, Tensor]:
        """What the state dict holds of a complete fit, by key without prefix; empty before the first one."""
        if not self.is_complete:
            return {}
        about, arrays = describe(self._fit)
        if self._text is None:
            text = json.dumps(about | {"digest": digest_of(about, arrays)}).encode()
            # Of one size for all fits: a callback that averages state dicts would stumble over another one.
            self._text = text.ljust(-(-len(text) // _SIZE) * _SIZE)
        entries = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        return entries | {self.about_key: torch.frombuffer(bytearray(self._text), dtype=torch.uint8)}

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],  # noqa: ARG002  # the signature is torch's
        strict: bool,  # noqa: ARG002
        missing_keys: list[str],  # noqa: ARG002
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if self.in_state_dict:
            own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
            self._take(own, prefix, unexpected_keys, error_msgs, running=self._is_running)

    def take(self, entries: Mapping[str, Tensor]) -> None:
        """Take over what `entries` has given, from a checkpoint that holds it beside the state dict.

        Raises:
            RuntimeError: it cannot be used.
        """
        errors: list[str] = []
        self._take(entries, self.prefix, errors, errors, running=False)
        if errors:
            raise RuntimeError("\n".join(errors))
        self.is_restored = True

    def _take(
        self,
        own: Mapping[str, Tensor],
        prefix: str,
        unexpected_keys: list[str],
        error_msgs: list[str],
        *,
        running: bool,
    ) -> None:
        if not own:  # no error: a checkpoint of a run without normalization
            if self._fit.image is not None and not running:
                warnings.warn(
                    f"the state dict holds no statistics of the {self._fit.method.name} normalization: those that the "
                    "module had belong to other weights and were dropped. Run a validation to fit new ones.",
                    stacklevel=2,
                )
                self.fit, self.fit_check = Fit(self._fit.method, options=self._fit.options), None
            return
        kept = running and self._fit.image is not None
        if kept and (self.trainer.validating or self.trainer.sanity_checking):
            return  # the fit of this validation run is of the weights that are validated, whichever are put back now
        try:
            fit, known = self._read(own)
            fit = self._with_manual(fit)
        except (AnomnormError, ValueError, KeyError) as error:
            if kept:  # averaged with those of other state dicts
                return
            error_msgs.append(f"{prefix.rstrip('.')}: the statistics in the state dict cannot be used: {error}")
            return
        expected = self._fit.method
        if fit.method != expected and not self._takes_any:
            error_msgs.append(
                f"{prefix.rstrip('.')}: the checkpoint holds the statistics of {fit.method.name} normalization, and "
                f"this run uses {expected.name}. Use the callback of that method, or remove the keys that begin with "
                f"{prefix!r} from the state dict and fit again."
            )
            return
        unexpected_keys.extend(prefix + name for name in own if name not in known)
        self.fit = fit
        self.fit_check = None  # of another process's validation run

    def _read(self, own: Mapping[str, Tensor]) -> tuple[Fit, set[str]]:
        """The fit of a state dict, and the keys that it consists of."""
        arrays = {name: _array(value) for name, value in own.items()}
        key = next((name for name in arrays if name.startswith(_LOAD)), None)
        if key is not None:
            about = json.loads(arrays[key].astype(np.uint8).tobytes())
            check_description(about)
            fit = compose(about, arrays)
            known = describe(fit)[1]
            halved = any(own[name].dtype in _HALF for name in known)  # which has other digits
            if not halved and about["digest"] != digest_of(about, {name: arrays[name] for name in known}):
                raise ValueError(
                    "they do not belong together: something has changed them since they were saved, as a callback does "
                    "that averages state dicts. Leave their keys out of that, and of the state dict that is loaded"
                )
            return fit, {key, *known}
        # One range for both levels, or one for each; two-slope has it too.
        present = self._fit if self._fit.method.parameters == ("min", "max") else Fit(METHODS["min-max"].method)
        if arrays.keys() >= _RANGE:
            return _fit_of_ranges(arrays, present, ("", "")), _RANGE
        if f"{_RANGES[0]}min" in arrays:
            fit = _fit_of_ranges(arrays, present, _RANGES)
            return fit, {key for key in arrays if key.startswith((*_RANGES, _BOXES))}
        if arrays.keys() >= {"image_mean", "image_std"}:
            present = self._fit if self._fit.method == core_cdf.METHOD else Fit(core_cdf.METHOD)
            return _fit_of_moments(arrays, present), _MOMENTS
        raise ValueError(f"its keys {', '.join(sorted(arrays))} are those of no method")

    def _with_manual(self, fit: Fit) -> Fit:
        for level in sorted(self._manual) if fit.method == self._fit.method else ():
            mine, theirs = getattr(self._fit, level), getattr(fit, level)
            if mine is not None and theirs is not None and mine.threshold is not None:
                fit = fit.placed(level, mine.threshold.value, mine.threshold.fixed, Origin.MANUAL)
        return fit


def carrier_of(module: Any) -> Any:
    """What carries the slot of a module: its post-processor, where that is one of `anomnorm_torch.anomalib`, or it."""
    part = getattr(module, "post_processor", None)
    return part if isinstance(getattr(part, NAME, None), Slot) else module


def _is_manual(fitted: LevelFit | None) -> bool:
    return fitted is not None and fitted.threshold is not None and fitted.threshold.origin is Origin.MANUAL


def _array(value: Tensor) -> np.ndarray:
    value = value.detach().cpu()
    found: np.ndarray = (value.float() if value.dtype in _HALF else value).numpy()
    return found


def digest_of(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Of everything that a state dict holds, as far as float32, to which some devices convert it, has its digits."""
    digest = hashlib.sha256(json.dumps({**about, "digest": None}, sort_keys=True).encode())
    with np.errstate(over="ignore"):
        for name in sorted(arrays):
            digest.update(arrays[name].astype(np.float32).tobytes())
    return digest.hexdigest()


def _fit_of_ranges(arrays: Mapping[str, np.ndarray], present: Fit, prefixes: tuple[str, str]) -> Fit:
    """The fit of a min-max normalization of anomalib, without thresholds.

    Args:
        arrays: with ``min`` and ``max``.
        present: its method and options.
        prefixes: of the keys of images, and of pixels.
    """
    levels: dict[str, LevelFit | None] = {}
    for level, prefix in zip(LEVELS, prefixes, strict=True):
        values = tuple(arrays[prefix + name] for name in present.method.parameters)
        levels[level] = LevelFit(values) if np.all(np.isfinite(values)) else None  # it was never fitted
    return Fit(present.method, levels["image"], levels["pixel"], options=present.options)


def _fit_of_moments(arrays: Mapping[str, np.ndarray], present: Fit) -> Fit:
    """The fit of anomalib 0.3 without thresholds, in which a pixel (a border of zeros) may have no finite moments."""
    levels: dict[str, LevelFit | None] = dict.fromkeys(LEVELS)
    for level in LEVELS:
        mean, std = (arrays.get(f"{level}_{name}", np.empty(0)).astype(np.float64) for name in ("mean", "std"))
        known = np.isfinite(mean) & np.isfinite(std)
        if known.any():
            # The count is unknown, and two is the least for which there is a deviation.
            count = np.where(known, 2, 0)
            moments = np.where(known, mean, 0.0), np.where(known, std * std, 0.0)
            record = core_cdf.ScoreDistribution(count, *moments, np.zeros_like(count), np.zeros(3, np.int64))
            # Not told the level: these deviations stay as they are.
            levels[level] = LevelFit(tuple(np.asarray(each) for each in core_cdf.mean_std(record)))
    return Fit(present.method, levels["image"], levels["pixel"], options=present.options)
