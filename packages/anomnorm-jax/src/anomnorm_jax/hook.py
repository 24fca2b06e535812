"""The callbacks' life cycle as functions of values: a run is collected, and a normalizer is what remains of it."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter, signature
from typing import Any, SupportsFloat, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from anomnorm_core.checks import Counts, report_invalid, require_count
from anomnorm_core.errors import AnomnormError, NotFittedError, OptionError, OutputError
from anomnorm_core.fields import LEVEL, MAPS, SCORES, shaped_as
from anomnorm_core.fit import Fit, LevelFit
from anomnorm_core.fit_check import FitCheck
from anomnorm_core.method import Kernels
from anomnorm_core.options import (
    LEVELS,
    OnInvalid,
    Origin,
    Per,
    Rules,
    Source,
    ThresholdRule,
    Units,
    parse_threshold_option,
    require_rule,
)
from anomnorm_core.threshold.choice import NORMAL, Choice, choose, conclude, labels_of, place, transform_of
from anomnorm_jax import _counter
from anomnorm_jax import run as _run
from anomnorm_jax._arrays import arithmetic, evaluated, is_traced, to_host
from anomnorm_jax._collectives import all_merge
from anomnorm_jax._sharding import like
from anomnorm_jax.methods import METHODS
from anomnorm_jax.normalizer import FITTED, Normalizer, centered, failure_code
from anomnorm_jax.outputs import Entries, Outputs, Scores, ground_truth, padding, read, replaced, used
from anomnorm_jax.run import Run

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")
Batches = Iterable[Batch] | Callable[[], Iterable[Batch]]  # or a function that gives them anew for each pass


@jax.tree_util.register_static
@dataclass(frozen=True, repr=False)
class NormalizationHook:
    """Normalize image-level and pixel-level anomaly scores to [0, 1] with 0.5 at the threshold, by any method.

    A run is a pytree of arrays that a validation run fills; at its end it becomes a `Normalizer`, which tests,
    predictions, checkpoints and exports take. Both have one structure from the beginning on, so that nothing compiles
    anew, and everything per batch is traceable. The hook itself is hashable and static under ``jax.jit``.

    Example::

        hook = NormalizationHook("two-slope")
        run, normalizer = hook.setup(outputs), hook.empty(outputs)
        for epoch in range(epochs):
            ...                                              # train
            run = hook.on_validation_epoch_start(run)
            for batch in validation:
                run, outputs = hook.on_validation_batch_end(run, predict(batch))
            normalizer = hook.on_validation_epoch_end(run, before=normalizer)
        outputs = hook.on_predict_batch_end(normalizer, predict(batch))

    Args:
        method: its name: ``"min-max"``, ``"two-slope"``, ``"cdf"``, ``"normal"`` or that of a registered one.
        threshold: in sigmas where the method has them, else in raw units; or how it is found when a validation run
            ends. ``"adaptive"`` (or None): the one of the best F1, by the labels and masks in the outputs.
            ``"normal_quantile"``: just above the normal samples. ``"false_alarm_rate"``: where a given share of new
            ones is expected to reach it (see `threshold.false_alarm_rate`).
        pixel_threshold: the same for the anomaly maps; ``"image"`` takes that of the images. None does as ``threshold``
            does, and takes a number that was given there.
        normal_quantile: which share of the normal samples must not be flagged, under ``"normal_quantile"`` and where
            ``"adaptive"`` finds no anomaly.
        capacity: how many image scores of a validation run there is room for, if a threshold has to be found: 5 or 9
            bytes each. A run with more is an error at its end.
        on_invalid: ``"warn"``: scores that cannot enter the statistics are left out and one warning per fit counts
            them; ``"raise"``: they are an error when the fit ends.
        source: with sigmas, what the batches of `on_validation_epoch_start` are: ``"train"`` (or None), or
            ``"validation"``, normal samples that unlike the training data the detector has not seen before, which then
            have to be labelled.
        progress: whether passes over the training data show a progress bar.
        options: of the method, by name.
        extras: what tests and predictions return beside the normalized scores and maps, under their names with ``_z``,
            ``_margin`` or ``_raw`` added: ``"z"`` (CDF), ``"margin"`` (min-max), ``"raw"``. ``"invalid"`` is (B,), True
            where the raw image score is NaN (clauses N6, N10).
        false_alarm_rate: under ``"false_alarm_rate"``, which share of new normal samples may be flagged.
        confidence: in which share of validation runs that rate shall hold, 0.9 for example; None: it holds on average.
            Of images, and of pixels with ``per="image"``.
        per: what the rate of the anomaly maps is a share of: ``"pixel"``, the pixels of normal images; ``"image"``, the
            normal images, which one flagged pixel flags.

    Raises:
        OptionError: the method is unknown, or an option has a value that is not allowed.
    """

    method: str
    threshold: float | ThresholdRule | str | None = None
    pixel_threshold: float | ThresholdRule | str | None = None
    normal_quantile: float = 1.0
    capacity: int = 2**16
    on_invalid: OnInvalid | str = OnInvalid.WARN
    source: Source | str | None = None
    progress: bool = True
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] | None = None
    extras: Iterable[str] = ()
    false_alarm_rate: float = 0.01
    confidence: float | None = None
    per: Per | str = Per.PIXEL

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_static(cls)

    def __post_init__(self) -> None:
        described = METHODS[self.method].method
        # Plain floats, also where an array of one number was given: a hook has to be hashable.
        for name in ("threshold", "pixel_threshold"):
            object.__setattr__(self, name, parse_threshold_option(getattr(self, name), name))
        for name, value in vars(self._rules).items():
            object.__setattr__(self, name, value)
        require_rule(self._rules, self.threshold, self.pixel_threshold)  # type: ignore[arg-type]
        object.__setattr__(self, "on_invalid", OnInvalid.parse(self.on_invalid, "on_invalid"))
        object.__setattr__(self, "source", Source.parse(self.source or Source.TRAIN, "source"))
        if self.source is Source.AUTO:
            raise OptionError(
                'source="auto" is for Lightning callbacks, which read the data themselves. Here the batches that '
                'on_validation_epoch_start gets are what is fitted: say what they are, "train" or "validation".'
            )
        if type(self.capacity) is not int or self.capacity < 1:
            raise OptionError(f"capacity={self.capacity!r} is no number of images; give a positive integer.")
        if type(self.progress) is not bool:
            raise OptionError(f"progress={self.progress!r} is not an option; use True or False.")
        parsed = described.parse_options(dict(self.options or {}))
        object.__setattr__(self, "options", tuple(sorted(parsed.items())))
        object.__setattr__(self, "extras", described.parse_extras(self.extras))

    def __repr__(self) -> str:
        """The call that makes this hook, with what differs from the defaults."""
        usual = METHODS[self.method].method.parse_options({})
        options = {name: value for name, value in self._options.items() if value != usual[name]}
        # The method's options are one argument of this class, and arguments of their own in others.
        values = {**vars(self), **self._options, "options": options}
        defaults = {"source": Source.TRAIN, "options": {}}
        parts = []
        for name, parameter in signature(type(self)).parameters.items():
            if name not in values:
                continue
            value = values[name]
            if parameter.default is Parameter.empty or value != defaults.get(name, parameter.default):
                shown = repr(str(value) if isinstance(value, str) else value)  # of an enumeration the plain string
                parts.append(shown if name == "method" else f"{name}={shown}")
        return f"{type(self).__name__}({', '.join(parts)})"

    # A validation run.

    def setup(self, outputs: Outputs) -> Run:
        """A run that has seen nothing, for steps that return ``outputs`` (an example, or its shapes).

        Raises:
            OutputError: the outputs hold neither scores nor maps.
        """
        entries = used(outputs, truth=False)
        values = jax.eval_shape(read, entries)
        choices = self._choices(Fit(self._kernels.method))
        run = _run.init(
            self._kernels,
            _resolution(values),
            capacity=self.capacity,
            dtype=jax.eval_shape(arithmetic, values.scores).dtype,
            scores=choices["image"].is_searched or self._is_for_normals(choices),
            pixels=choices["pixel"].is_searched,
            maxima=self._is_for_normals(choices) and self.per is Per.IMAGE,
        )
        return like(entries, run)

    def empty(self, outputs: Outputs) -> Normalizer:
        """The structure of the normalizers that validation runs of such steps end with: to restore checkpoints into.

        Its numbers are finite and mean nothing. Used with values it raises `NotFittedError`; traced it gives NaN and
        flags nothing (clause N8).

        Args:
            outputs: of a step, an example or its shapes.
        """
        entries = used(outputs, truth=False)
        structure = Normalizer.empty(self.method, self._options, _resolution(jax.eval_shape(read, entries)))
        normalizer: Normalizer = jax.tree.map(jnp.array, structure)
        return like(entries, normalizer)

    def on_validation_epoch_start(
        self,
        run: Run,
        predict: Callable[[Batch], Outputs] | None = None,
        batches: Batches[Batch] | None = None,
        *,
        statistics: tuple[Any, Any] | None = None,
    ) -> Run:
        """Begin a validation run: each stands for itself (clause L1).

        A method with sigmas is fitted here, with the current weights, by one pass over the normal training data; others
        are fitted by the validation run, and look at none of the arguments beside ``run``.

        Args:
            run: from `setup` or an earlier epoch; its values are replaced.
            predict: maps a batch to a step's outputs, in evaluation mode.
            batches: the normal training data: a list, a loader, or a function that returns an iterator over them.
                Samples are left out that the outputs label anomalous or ignored, or that ``valid`` says only pad.
            statistics: instead of a pass, the records of image scores and of maps (or None) that a scan of one's own
                has made with the method's ``init`` and ``update``; traceable. A method without sigmas goes on from
                them.

        Raises:
            NotFittedError, InsufficientDataError: there is no batch, no outputs, no normal sample, or too few valid
                scores to fit on.
            InvalidScoreError: more than a third of the scores cannot be fitted (clause S6) or, under
                ``on_invalid="raise"``, any.
            ResolutionError: maps do not have the height and width of `setup`.
            AnomnormError: the run is traced, and there are no ``statistics``.
        """
        self._require_run(run)
        kernels, sigmas = self._kernels, self._kernels.method.sigmas
        records = kernels.init(()), None if run.resolution is None else kernels.init(run.resolution)
        if statistics is not None:
            records = self._require_records(run, statistics)
        image, pixel = like(run, records)
        run = replace(self._ungathered(run), image=image, pixel=pixel)
        if not sigmas:
            return run
        if statistics is None:
            run = self._passed(run, predict, batches)
        if not is_traced(run):
            self._parameters(run, OnInvalid(self.on_invalid))
            _mark(run, True)
        return run

    def _passed(self, run: Run, predict: Callable[[Batch], Outputs] | None, batches: Batches[Batch] | None) -> Run:
        if predict is None or batches is None:
            raise TypeError(
                f"{self.method} normalization is fitted on normal data: give on_validation_epoch_start predict and "
                "batches, or statistics."
            )
        if is_traced(run):
            raise AnomnormError(
                "a pass over the training data is made outside jax.jit. Inside, update the method's records in a scan "
                "of your own and give them as statistics=(image, pixel)."
            )
        from tqdm.auto import tqdm  # here, because a tenth of the time of importing the package would be for it

        logger.info("Collecting the statistics of the normal data to normalize the scores.")
        source = batches if isinstance(batches, Iterable) or not callable(batches) else batches()
        given, samples = 0, []
        for batch in tqdm(source, desc="Collecting normal scores", leave=False, disable=not self.progress):
            given += 1
            outputs = predict(batch)
            if outputs is not None:
                entries = used(outputs)
                run = self._collect(run, entries)
                samples.append(next(iter(entries.values())).shape[0])
        counts = self._counts(run)["image"]
        if not counts.valid + counts.left_out:
            raise NotFittedError(_nothing_collected(source, given, samples))
        return run

    def on_validation_batch_end(self, run: Run, outputs: Outputs) -> tuple[Run, Any]:
        """Take note of a batch. With sigmas, the outputs come back with z-scores, else as they are.

        Args:
            run: begun with `on_validation_epoch_start`.
            outputs: of a step; None is a skipped batch.

        Raises:
            NotFittedError: the run of a method with sigmas was not fitted (outside of a trace).
            OutputError: the outputs hold neither scores nor maps.
            ResolutionError: the maps do not have the fitted height and width.
        """
        self._require_run(run)
        fitted = self._require_fit(run)
        if outputs is None:
            return run, outputs
        run, z = self._validate(run, used(outputs))
        _mark(run, fitted)
        return run, replaced(outputs, z) if z else outputs

    def _require_fit(self, run: Run) -> bool:
        """Whether the run of a method with sigmas is known to be fitted, which makes z-scores of its batches.

        Raises:
            NotFittedError: it is not. (A traced one has no values to look at: its z-scores are NaN.)
        """
        if not self._kernels.method.sigmas or run.__dict__.get(_FITTED):
            return True
        if is_traced(run.image):
            return False
        if not np.any(to_host(run.image.count)):
            raise NotFittedError(
                f"{self.method} normalization is fitted before validation batches come, and this run is not: call run "
                "= hook.on_validation_epoch_start(run, predict, batches) first, with the normal training batches."
            )
        return True

    def on_validation_epoch_end(self, run: Run, before: Normalizer | None = None) -> Normalizer:
        """What remains of a validation run: its normalizer, of the structure of `empty`.

        It finds the thresholds that nobody gave, on the host, and says what was left out of the statistics and how the
        fit does on normal validation samples (clause S9). Traceable: then the host is called from the compiled program,
        nothing is said, and what would have been raised is raised where the normalizer is first used with values.

        Args:
            run: at its end.
            before: the normalizer so far, whose manual thresholds stay.

        Raises:
            NotFittedError, InsufficientDataError: nothing was seen, too few valid scores to fit on, or none to place a
                threshold by.
            InvalidScoreError: more than a third of the scores cannot be fitted (clause S6) or, under
                ``on_invalid="raise"``, any.
            AnomnormError: ``capacity`` was too small.
        """
        self._require_run(run)
        if before is not None:
            self._require_normalizer(before)
        if is_traced((run, before)):
            return self._traced_end(run, before)
        self._require_seen(run)
        parameters = self._parameters(run, None if self._kernels.method.sigmas else OnInvalid(self.on_invalid))
        fit = self._ended(jax.tree.map(to_host, run), jax.tree.map(to_host, parameters), before)
        check = self.fit_check(run)
        # Once for each hook: its options stay, and so does what there is to say about them.
        told = check is None or fit.is_constant or hasattr(self, "_reported")
        if check is not None and not told and check.report(transform_of(self._kernels.method)):
            object.__setattr__(self, "_reported", True)
        if not hasattr(self, "_rate_reported") and fit.report_rate():
            object.__setattr__(self, "_rate_reported", True)
        return like(run, self._structure(run).filled(fit))

    def _require_seen(self, run: Run) -> None:
        """Raise `NotFittedError` for a run that has nothing to fit on, in words for who has made it so."""
        counts = self._counts(run)["image"]
        if counts.valid + counts.left_out:
            return
        if self._kernels.method.sigmas:
            self._require_fit(run)
        raise NotFittedError(
            "this validation run has seen no sample. Each batch gives the run that the next one takes: run, outputs = "
            "hook.on_validation_batch_end(run, outputs); batches without outputs (None) and samples that only pad "
            "('valid' is False) do not count."
        )

    def _traced_end(self, run: Run, before: Normalizer | None) -> Normalizer:
        structure = self._structure(run)
        records = {"image": run.image, "pixel": run.pixel}
        parameters = {
            level: self._kernels.finalize(record, level=level)
            for level, record in records.items()
            if record is not None
        }

        def finish(run: Run, parameters: Any, before: Normalizer | None) -> Normalizer:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    run, parameters = jax.tree.map(np.asarray, (run, parameters))
                    known = self._parameters(run, OnInvalid(self.on_invalid), parameters)
                    return structure.filled_on_host(self._ended(run, known, before))
                except AnomnormError as error:
                    return replace(structure, status=np.asarray(failure_code(error), np.uint8))  # type: ignore[arg-type]

        shapes = jax.eval_shape(lambda: structure)
        ended: Normalizer = jax.pure_callback(finish, shapes, run, parameters, before, vmap_method="sequential")
        return ended

    def _ended(self, run: Run, parameters: Mapping[str, Any], before: Normalizer | None) -> Fit:
        """The fit with its thresholds, of values on the host. It runs inside of a callback too: nothing here is JAX."""
        kernels, counts = self._kernels, self._counts(run)
        levels = {}
        for level, arrays in parameters.items():
            record = getattr(run, level)
            zeros = _counter.share_of_zeros(record) if kernels.method.positive else None
            most = _counter.largest(record.count)
            levels[level] = LevelFit(tuple(map(np.asarray, arrays)), None, most, counts[level].left_out, zeros)
        fit = Fit(kernels.method, **levels, options=self._options, fitted_with=Normalizer._package)
        usable = before is not None and int(to_host(before.status)) == FITTED
        choices = self._choices(before.to_fit() if before is not None and usable else Fit(kernels.method))
        unseen = self.source is not Source.VALIDATION
        return conclude(fit, choices, self._rules, _run.on_host(run), where="the step's outputs", unseen=unseen)

    def fit_check(self, run: Run) -> FitCheck | None:
        """How a fit with sigmas does on the labelled normal samples of a validation run; None without any (S9).

        Under ``source="validation"`` those are taken for the samples of the fit.
        """
        self._require_run(run)
        if run.normals is None or run.moments is None:
            return None
        fitted_on, unseen = _counter.largest(to_host(run.image.count)), self.source != Source.VALIDATION
        check = FitCheck.of(fitted_on, to_host(run.normals), to_host(run.moments), unseen=unseen)
        return check if check.normals else None

    def labelled_scores(self, run: Run) -> tuple[np.ndarray, np.ndarray | None]:
        """The raw image scores of a validation run and their labels, on the host: for reports and pictures.

        Returns:
            Scores (N,), and labels (N,): 0 for normal, and for what has no label as it counts as normal; 1 for
            anomalous; -1 for what is ignored. None where no sample has a label.

        Raises:
            NotFittedError: the run keeps no scores, because the hook was given its thresholds.
            AnomnormError: there was no room for all scores.
        """
        self._require_run(run)
        gathered = _run.on_host(run)
        if gathered is None or run.scores is None:
            raise NotFittedError(
                "this run keeps no image scores, as no threshold is looked for among them. Let the hook find its "
                "threshold, or keep the scores of the steps yourself, from before on_validation_batch_end."
            )
        return gathered.scores, labels_of(gathered.labels)

    # Workers.

    def emptied(self, run: Run) -> Run:
        """The run without what the validation has shown; a fit with sigmas stays. Traceable.

        A worker begins from it, and so does a validation that takes the fit of the one before.
        """
        self._require_run(run)
        if self._kernels.method.sigmas:
            return self._ungathered(run)
        return self.on_validation_epoch_start(run)

    def merge(self, a: Run, b: Run) -> Run:
        """The run of what ``a`` and ``b`` have seen; at least one of them began from `emptied`. Traceable.

        A fit with sigmas is made in `on_validation_epoch_start`: workers validate with one, and do not make their own.

        Raises:
            AnomnormError: both were fitted, each on its own (outside of a trace, which has no values to compare).
        """
        for run in (a, b):
            self._require_run(run)
        if self._kernels.method.sigmas and not is_traced((a, b)) and not _equal((a.image, a.pixel), (b.image, b.pixel)):
            raise AnomnormError(
                "both runs were fitted, each on other data, and a finished fit is not merged. Let the workers begin "
                "from hook.emptied(run) of one run; or merge records with the method's merge, and give the result to "
                "on_validation_epoch_start as statistics."
            )
        merged: Run = _merge(self, a, b)
        return merged

    def all_merge(self, run: Run, axis_name: str) -> Run:
        """The `merge` of the runs of all shards, inside of ``jax.shard_map`` over ``axis_name``: the same on each.

        Each of them began from `emptied`; the result is merged into the run that was emptied. Everything that the
        shards have seen is exchanged, so do it once for many batches.
        """
        return all_merge(run, axis_name, self.merge)

    # Tests and predictions.

    def on_test_start(self, normalizer: Normalizer) -> Normalizer:
        """The normalizer with its thresholds resolved, before the first batch (clauses T1, N8).

        A number that this hook was given wins over the one of a restored checkpoint, unless that is manual. Normalized
        scores have their threshold at 0.5: that is where metrics of a test belong (clause L7).

        Raises:
            NotFittedError: nothing has been fitted.
        """
        self._require_normalizer(normalizer)
        normalizer.require_fitted()
        fit = normalizer.to_fit()
        choices = self._choices(fit)
        if all(choice.value is None for choice in choices.values()):
            return normalizer
        return like(normalizer, normalizer.filled(place(fit, choices)))

    def on_predict_start(self, normalizer: Normalizer) -> Normalizer:
        """The normalizer with its thresholds resolved. See `on_test_start`."""
        return self.on_test_start(normalizer)

    def on_test_batch_end(self, normalizer: Normalizer, outputs: Outputs) -> Any:
        """The outputs with normalized scores and maps, labels, masks and ``extras``. None, a skipped batch, stays None.

        Raises:
            NotFittedError: nothing has been fitted.
            OutputError: the outputs hold neither scores nor maps.
            ResolutionError: the maps do not have the fitted height and width (CDF).
        """
        self._require_normalizer(normalizer)
        if outputs is None:
            return outputs
        entries = used(outputs, truth=False)
        scores, maps, extras = entries.get(SCORES), entries.get(MAPS), self.extras
        return replaced(outputs, normalizer(scores, maps, valid=padding(entries), extras=extras))

    def on_predict_batch_end(self, normalizer: Normalizer, outputs: Outputs) -> Any:
        """The outputs with normalized scores and maps, labels and masks. See `on_test_batch_end`."""
        return self.on_test_batch_end(normalizer, outputs)

    def with_threshold(
        self,
        normalizer: Normalizer,
        threshold: SupportsFloat | None = None,
        pixel_threshold: SupportsFloat | None = None,
        *,
        units: Units | str | None = None,
    ) -> Normalizer:
        """The normalizer with manual thresholds, which stay through later validation runs that get it as ``before``.

        See `anomnorm_core.Normalizer.with_threshold`.

        Raises:
            NotFittedError: nothing has been fitted.
            OptionError: a number is not finite, or not between 0 and 1 if normalized.
        """
        self._require_normalizer(normalizer)
        normalizer.require_fitted()
        return like(normalizer, normalizer.with_threshold(threshold, pixel_threshold, units=units))

    # What the above is made of.

    @property
    def _kernels(self) -> Kernels:
        return METHODS[self.method]

    @property
    def _options(self) -> dict[str, Any]:
        return dict(self.options or ())

    @property
    def _rules(self) -> Rules:
        return Rules(self.normal_quantile, self.false_alarm_rate, self.confidence, self.per)

    @staticmethod
    def _is_for_normals(choices: Mapping[str, Choice]) -> bool:
        """Whether the pixel threshold is found among the pixels of normal images alone (clause T7)."""
        return choices["pixel"].origin is Origin.FALSE_ALARM_RATE

    def _choices(self, fit: Fit) -> dict[str, Choice]:
        return choose({"image": self.threshold, "pixel": self.pixel_threshold}, fit)  # type: ignore[dict-item]

    def _structure(self, run: Run) -> Normalizer:
        return Normalizer.empty(self.method, self._options, run.resolution)

    @partial(jax.jit, static_argnums=0)
    def _collect(self, run: Run, entries: Entries) -> Run:
        values = read(entries)
        _require_maps(run, values)
        truth = ground_truth(entries, values, masks=False)
        if truth.labels is None and self.source is Source.VALIDATION:
            raise NotFittedError(
                "source=\"validation\" fits on the normal validation samples, but the outputs have no 'label' or "
                "'gt_label' that tells which those are. Return labels, 0 for normal."
            )
        normal = None if truth.labels is None else truth.labels == jnp.uint8(NORMAL)
        where = normal if truth.valid is None else truth.valid if normal is None else truth.valid & normal
        return _run.fitted(self._kernels, run, values, where, shared=self._is_shared)

    @partial(jax.jit, static_argnums=0)
    def _validate(self, run: Run, entries: Entries) -> tuple[Run, dict[str, Array]]:
        values = read(entries)
        _require_maps(run, values)
        truth = ground_truth(entries, values, masks=run.pixels is not None)
        kernels, scored = self._kernels, {SCORES: values.scores} | ({} if values.maps is None else {MAPS: values.maps})
        z: dict[str, Array] = {}
        if kernels.method.sigmas:
            records = {"image": run.image} | ({} if run.pixel is None else {"pixel": run.pixel})
            found = {level: kernels.finalize(record, level=level) for level, record in records.items()}
            for name, x in scored.items():
                level = LEVEL[name]
                arguments = centered(self.method, self._options.items(), level, found["image"], found[level])
                z[name] = evaluated(kernels.extras["z"], x, 1.0, arguments)
        else:
            run = _run.fitted(kernels, run, values, truth.valid, shared=self._is_shared)
        normals_alone = self._is_for_normals(self._choices(Fit(kernels.method)))
        maps, scores = z.get(MAPS, values.maps), z.get(SCORES)
        if normals_alone and run.pixels is not None and maps is None:
            raise OutputError(
                "the outputs have no maps, and those of others have: the false-alarm rate of pixels counts images, and "
                "each needs its map. Return maps for each batch, or give another pixel_threshold."
            )
        run = _run.gathered(run, values.scores, maps, scores, truth, normals_alone=normals_alone)
        return run, shaped_as(entries[MAPS].shape if MAPS in entries else None, z)

    @property
    def _is_shared(self) -> bool:
        return bool(self._options.get("shared_range"))

    def _ungathered(self, run: Run) -> Run:
        """The run without what its validation has shown."""
        names = ("scores", "labels", "seen", "pixels", "normals", "moments")
        return replace(run, **{name: jax.tree.map(jnp.zeros_like, getattr(run, name)) for name in names})

    def _parameters(
        self, run: Run, on_invalid: OnInvalid | None, computed: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The parameters of each level that has seen values, and what there is to say of those that were left out.

        Args:
            run: fitted, with values.
            on_invalid: None: it was said before, and only what is no fit is refused.
            computed: the parameters, inside of a callback, where nothing is JAX.
        """
        method, counts = self._kernels.method, self._counts(run)
        source = Source(self.source or Source.TRAIN) if method.sigmas else None
        if on_invalid is OnInvalid.RAISE:
            report_invalid(counts, on_invalid, method=method, source=source)
        records = {
            level: getattr(run, level)
            for level, each in counts.items()
            if level == "image" or each.valid + each.left_out
        }
        for level, record in records.items():  # an unusable fit is an error, whatever was left out
            most = _counter.largest(to_host(record.count))
            require_count(level, counts[level], minimum=2 if method.sigmas else 1, most=most)
        report_invalid(counts, on_invalid, method=method, source=source)
        if computed is not None:
            return {level: computed[level] for level in records}
        return {level: self._kernels.finalize(record, level=level) for level, record in records.items()}

    def _counts(self, run: Run) -> dict[str, Counts]:
        records = {level: getattr(run, level) for level in LEVELS if getattr(run, level) is not None}
        return {level: _counter.counts_of(record) for level, record in records.items()}

    def _require_run(self, run: Any) -> None:
        if isinstance(run, Run) and run.method == self.method:
            return
        found = f"one of {run.method} normalization" if isinstance(run, Run) else type(run).__name__
        raise AnomnormError(
            f"the first argument must be a run of this hook, found {found}. Begin with run = hook.setup(outputs); "
            "on_validation_batch_end returns two values: run, outputs = hook.on_validation_batch_end(run, outputs)."
        )

    def _require_records(self, run: Run, statistics: tuple[Any, Any]) -> tuple[Any, Any]:
        image, pixel = statistics
        inits = self._kernels.init, lambda: None if run.resolution is None else self._kernels.init(run.resolution)
        for level, record, init in zip(LEVELS, (image, pixel), inits, strict=True):
            shapes: list[Any] = [
                (jax.tree.structure(each), [leaf.shape for leaf in jax.tree.leaves(each)])
                for each in (jax.eval_shape(init), jax.eval_shape(lambda given=record: given))
            ]
            if shapes[0] != shapes[1]:
                raise AnomnormError(
                    f"statistics: the {level}-level record does not belong to this run. Make it with the init and "
                    f"update of {self.method} normalization, for maps of the height and width of setup; where there "
                    "are none, it is None."
                )
        # A copy: a buffer of the caller's, or one that stands in both, could not be donated.
        copies: tuple[Any, Any] = jax.tree.map(jnp.array, (image, pixel))
        return copies

    def _require_normalizer(self, normalizer: Any) -> None:
        if isinstance(normalizer, Normalizer):
            if (normalizer.method, normalizer.options) == (self.method, self.options):
                return
            found = f"one of {normalizer.method} normalization with {dict(normalizer.options)}"
        else:
            found = type(normalizer).__name__
        raise AnomnormError(
            f"a normalizer of this hook ({self.method} with {self._options}) is needed, found {found}. "
            "on_validation_epoch_end(run) returns it, and hook.empty(outputs) has its structure before."
        )


@partial(jax.jit, static_argnums=0)
def _merge(hook: NormalizationHook, a: Run, b: Run) -> Run:
    return _run.merge(hook._kernels, a, b)


def _nothing_collected(batches: Any, given: int, samples: list[int]) -> str:
    """Why a pass over ``given`` batches has found nothing to fit on, and what to do.

    Args:
        batches: what was passed over.
        given: how many there were.
        samples: in those of them that ``predict`` returned outputs for.
    """
    if not given and isinstance(batches, Iterator):
        return (
            "batches is an iterator that gives nothing any more: one can be passed over once, and each validation "
            "makes a pass. Give a list, a loader, or a function that returns a new iterator."
        )
    if not given:
        return (
            "batches is empty, so there is no normal data to fit on. Give batches of the training data (a loader that "
            "drops the last batch has none where there are fewer samples than one batch holds)."
        )
    if not samples:
        return f"predict returned None for all of {given} batches, so there are no scores to fit on. Return outputs."
    if not sum(samples):
        return f"all of {given} batches are of no sample, so there are no scores to fit on."
    return (
        f"none of {sum(samples)} samples that predict has scored is a normal one: by 'label', 'gt_label' or a mask "
        "they are anomalous (above 0) or ignored (below 0), or by 'valid' they only pad. Labels of normal samples are "
        "0; where all samples are normal, return none."
    )


def _mark(run: Run, fitted: bool) -> None:
    """Note outside of the tree that a run has a fit, so that nobody waits for the device to look again."""
    if fitted:
        object.__setattr__(run, _FITTED, True)


_FITTED = "_fitted"


def _resolution(values: Scores) -> tuple[int, int] | None:
    if values.maps is None:
        return None
    height, width = values.maps.shape[-2:]
    return height, width


def _require_maps(run: Run, values: Scores) -> None:
    """Raise `NotFittedError` for maps at a run that was set up without any."""
    if values.maps is not None and run.pixel is None:
        raise NotFittedError(
            "the outputs hold anomaly maps, but the run was set up from outputs without them. Call "
            "hook.setup(outputs) with outputs of the shape that the steps return, and fit again."
        )


def _equal(a: Any, b: Any) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=False)
    return all(np.array_equal(to_host(x), to_host(y)) for x, y in leaves)
