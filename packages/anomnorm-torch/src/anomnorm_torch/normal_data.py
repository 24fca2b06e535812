"""Which normal data a pass reads, and how far (clause L3)."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from torch.utils.data import DataLoader

from anomnorm_core.errors import AnomnormError, NotFittedError, OptionError
from anomnorm_core.options import OnInvalid, Source
from anomnorm_torch.framework import Trainer, part
from anomnorm_torch.loaders import Duplicates, NotRepeatable, begins_anew, read_all

# With so many normal validation samples source="auto" fits on those. Of scores as the CDF supposes them, ten promise
# 2.3% false alarms at two sigmas and give 4.5%, less than twice as many; five give 7.1%. Measured on detectors that
# know their training data (k-NN, Mahalanobis, PCA) ten give 6%, five 8 to 9%, and the training data 12 to 63%.
ENOUGH_NORMALS = 10

CalibrationLoader = Iterable[Any] | Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class PassOptions:
    """Options of a callback for its pass."""

    owner: str  # the name of the callback's class
    step: str
    source: Source
    limit_batches: int | float | None
    every_n_validations: int
    calibration_loader: CalibrationLoader | None
    on_invalid: OnInvalid

    @property
    def name(self) -> str:
        """Of the pass, in messages."""
        return f"the pass over the normal data that fits the statistics of {self.owner}"

    @property
    def known_source(self) -> Source | None:
        """Whether the data are those that the detector was trained on; None: nobody knows."""
        return self.source if self.calibration_loader is None else None

    @property
    def other_data(self) -> str:
        """What to do about data that the pass cannot be made on."""
        there = "give other data with calibration_loader=..."
        return f'{there}, or fit with source="validation"' if self.source is Source.TRAIN else there

    def __post_init__(self) -> None:
        if not isinstance(self.step, str):
            raise OptionError(f"step={self.step!r} is no name; give that of a step of the module.")
        limit, given = self.limit_batches, self.calibration_loader
        if not (limit is None or _is_count(limit) or (isinstance(limit, float) and 0.0 < limit <= 1.0)):
            raise OptionError(f"limit_batches={limit!r}: give a number of batches, or a share from above 0 to 1.0.")
        if not _is_count(runs := self.every_n_validations):
            raise OptionError(f"every_n_validations={runs!r}: give a number of validation runs from 1.")
        if given is None:
            return
        if not isinstance(given, Iterable) and not callable(given):
            raise OptionError(
                f"calibration_loader is a {type(given).__name__}; give a loader, or a function that returns one."
            )
        if hasattr(type(given), "__next__") and not hasattr(given, "__dict__"):
            raise self.read_once()
        if self.source is not Source.TRAIN:
            raise OptionError(f'calibration_loader and source="{self.source}" are two sources; give one of them.')

    def read_once(self) -> OptionError:
        """The error for an iterator as ``calibration_loader``."""
        return OptionError(
            f"calibration_loader is a {type(self.calibration_loader).__name__}, which can be read once, and it is read "
            "before each validation run: give a function that returns a new one."
        )


class NormalData:
    """The loaders of one pass: duplicates of the trainer's, or those that nobody else reads now.

    Args:
        trainer: the running trainer.
        options: of the callback.
    """

    def __init__(self, trainer: Trainer, options: PassOptions) -> None:
        self._trainer: Any = trainer
        self._options = options
        self._is_validation = options.source is not Source.TRAIN

    def loaders(self, duplicates: Duplicates, *, fitted: bool) -> list[Any] | None:
        """What to iterate over: all samples, or the share of this process; None to keep what a checkpoint restored."""
        trainer = self._trainer
        own = self._given()
        if own is None and not self._is_validation and trainer.train_dataloader is None:  # outside of trainer.fit
            own = self._of_hook(trainer.fit_loop._data_source, fitted=fitted)
            if own is None:
                return None
        if own is not None:
            return [self._duplicate(loader, duplicates) for loader in own]
        loop = trainer._evaluation_loop if self._is_validation else trainer.fit_loop
        running = flattened(trainer.val_dataloaders if self._is_validation else trainer.train_dataloader)

        def anew(index: int) -> Any:
            if not loop._data_source.is_module():
                return None
            loader = flattened(loop._data_source.dataloader())[index]
            return None if loader is running[index] else loader

        return [self._duplicate(loader, duplicates, partial(anew, index)) for index, loader in enumerate(running)]

    def _given(self) -> list[Any] | None:
        """The loaders for calibration, which nobody else reads now; None: there are none."""
        given = self._options.calibration_loader
        if given is None:
            return None
        if not isinstance(given, Iterable):
            make: Callable[[], Any] = given
            try:
                given = make()
                same = hasattr(type(given), "__next__") and make() is given
            except Exception as error:
                error.add_note("This was raised by the function that was given as calibration_loader.")
                raise
            if same:
                raise OptionError(
                    f"calibration_loader returns the same {type(given).__name__} again, which can be read once: let it "
                    "make a new one whenever it is called."
                )
        if not isinstance(given, list | tuple):
            return flattened(given) if hasattr(given, "flattened") else [given]
        if given and all(isinstance(each, DataLoader) for each in given):
            return list(given)
        shares = self._trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        return [given[shares["rank"] :: shares["num_replicas"]]]  # of batches

    def _of_hook(self, source: Any, *, fitted: bool) -> list[Any] | None:
        reason: Exception | None = None
        if source.is_module() and source.is_defined():
            try:
                return flattened(source.dataloader())
            except Exception as error:  # a datamodule that was set up for validation alone may fail in any way
                reason = error
        if fitted:
            if reason is not None:
                warnings.warn(
                    f"train_dataloader() failed with {reason!r}; the statistics restored from the checkpoint stay.",
                    stacklevel=2,
                )
            return None
        missing = (
            "trainer.validate() was called without a datamodule or module that provides train_dataloader(). Provide it"
            if reason is None
            else f"train_dataloader() failed with {reason!r}. Let it work in this stage too"
        )
        raise NotFittedError(
            f"the statistics are fitted on the normal training data, and this run has none: {missing}, load a "
            'checkpoint with statistics, or use calibration_loader=... or source="validation".'
        ) from reason

    def _duplicate(self, loader: Any, duplicates: Duplicates, anew: Callable[[], Any] | None = None) -> Any:
        """What is iterated for a ``loader``.

        Args:
            loader: of the trainer, or for this pass alone.
            duplicates: for one that shares the data.
            anew: gives another loader of the same data, or None; where it is left out, nobody else reads ``loader``.
        """
        try:
            twin = duplicates.of(loader)
            if anew is not None and hasattr(type(loader), "__next__"):
                with duplicates.in_use():
                    if not begins_anew(Duplicates(workers=1).of(loader)):
                        raise NotRepeatable(f"{type(loader).__name__} is its own iterator and goes on where it was")
        except NotRepeatable as reason:
            twin = loader if anew is None else anew()
            if twin is None:
                raise self._refusal(reason) from reason
            if loader is self._options.calibration_loader and hasattr(type(loader), "__next__"):
                raise self._options.read_once() from reason
            duplicates.keep(twin)
            if anew is None:
                return twin
        if isinstance(twin, DataLoader):
            read_all(twin, self._trainer)
        return twin

    def _refusal(self, reason: NotRepeatable) -> AnomnormError:
        data, hook = ("validation", "val") if self._is_validation else ("training", "train")
        return AnomnormError(
            f"{self._options.name} cannot read the {data} data beside the trainer: {reason}. Let {hook}_dataloader() "
            f"make the loader anew whenever it is called, or {self._options.other_data}."
        )

    def length(self, loader: Any) -> int | None:
        """The number of batches of a loader; None: it does not know."""
        length: int | None = part(self._trainer, "utilities.data").sized_len(loader)
        return length

    def limit(self, length: int | None, *, warns: bool = False) -> int | None:
        """How many batches to take, by a limit as Trainer(limit_train_batches=) has it; None: all.

        Args:
            length: of a loader.
            warns: whether to say that it is the number of batches between validations.
        """
        trainer, options = self._trainer, self._options
        limit = trainer.limit_val_batches if self._is_validation else trainer.limit_train_batches
        own = 1.0 if options.calibration_loader is not None else None  # the trainer's limit is about other data
        own = own if options.limit_batches is None else options.limit_batches
        if own is not None and not trainer.fast_dev_run:
            limit = own
        if isinstance(limit, int):
            return limit
        if length is not None:
            return None if limit == 1.0 else max(1, int(length * limit))
        if options.limit_batches is not None:
            if limit != 1.0:
                raise OptionError(f"limit_batches={limit} of a loader without a length: give a number of batches.")
            return None
        # A stream may have no end. Validating every so many batches says how many make an epoch.
        between = trainer.val_check_interval
        if not isinstance(between, int) or options.calibration_loader is not None:
            return None
        if warns:
            warnings.warn(
                f"{options.name} reads the first {between} batches of a loader without a length, as many as there "
                "are between two validation runs (val_check_interval). For another number, or all (1.0) if it has an "
                "end, give limit_batches=...",
                stacklevel=2,
            )
        return between

    def read(
        self, loader: Iterable[Any], wanted: int | None, length: int | None, is_enough: Callable[[], bool]
    ) -> Iterator[Any]:
        """The first batches, and never more than ``length``, although a sampler may go on for ever.

        Args:
            loader: one of `loaders`.
            wanted: so many batches; None: all.
            length: of the loader, if that is known.
            is_enough: whether it was right to want no more.
        """
        try:
            batches = iter(loader)
            for index in count():
                if index == length or (wanted is not None and index >= wanted and is_enough()):
                    return
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                yield batch
        except NotRepeatable as reason:
            raise self._refusal(reason) from reason


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def flattened(loaders: Any) -> list[Iterable[Any]]:
    """The data loaders of a trainer as a list: it takes one, or several in lists, dictionaries or a CombinedLoader."""
    if loaders is None:
        return []
    if hasattr(loaders, "flattened"):
        return list(loaders.flattened)
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return [part for each in loaders for part in flattened(each)] if isinstance(loaders, list | tuple) else [loaders]
