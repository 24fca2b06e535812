"""Detectors with scikit-learn's or PyOD's interface: normalized scores, and a threshold found on honest ones.

It needs scikit-learn: ``pip install 'anomnorm-core[sklearn]'``. PyOD is not imported.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self, SupportsFloat

import numpy as np

from anomnorm_core import fitting
from anomnorm_core.checks import report_undefined
from anomnorm_core.errors import OptionError
from anomnorm_core.normalizer import Normalizer
from anomnorm_core.options import Transform

try:
    from sklearn.base import BaseEstimator, MetaEstimatorMixin, OutlierMixin, clone, is_outlier_detector
    from sklearn.ensemble import IsolationForest
    from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
    from sklearn.utils import _safe_indexing, check_random_state, get_tags, indexable
    from sklearn.utils.validation import _num_samples, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "anomnorm_core.sklearn needs scikit-learn 1.6 or later: pip install 'anomnorm-core[sklearn]'"
    ) from error

AUTO, PREFIT = "auto", "prefit"


class NormalizedDetector(MetaEstimatorMixin, OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """A detector whose scores are normalized to [0, 1] with 0.5 at a threshold that keeps what it promises.

    A detector scores its own training data more normal than new data. Threshold and statistics are therefore of scores
    of samples that it was not trained on: of each fold of the normal samples by a clone trained on the others
    (cross-fitting), or of a share that is kept out of training. Anomalous samples, where ``y`` knows some, never train
    a detector, and enter no statistics of normal ones.

    Raw scores are here what they are in all of anomnorm: larger where more anomalous. `decision_function`,
    `score_samples` and `predict` have scikit-learn's signs. Normalized scores are no probabilities (how unusual a
    normal sample would be says nothing about how frequent anomalies are), so there is no ``predict_proba``.

    Example::

        detector = NormalizedDetector(IsolationForest(), false_alarm_rate=0.01).fit(X)
        detector.normalized_scores(new)  # 0.5 at the threshold, larger where more anomalous
        detector.predict(new)            # -1 where that is 0.5 or more, else 1
        detector.save("detector.safetensors")

    Args:
        estimator: a detector of scikit-learn's or PyOD's interface, or a pipeline that ends in one; it is cloned, not
            changed. None: ``IsolationForest()``.
        method: ``"cdf"``, the log-normal CDF; ``"normal"``, the same without the logarithm (``transform="identity"``
            elsewhere; an attribute of that name would make a transformer of this estimator); ``"min-max"``,
            ``"two-slope"`` or that of a registered one. ``"auto"``: ``"cdf"`` where all normal raw scores are above
            zero, as those of ``IsolationForest`` and ``LocalOutlierFactor`` are, else ``"normal"``, as for
            ``OneClassSVM``. Where there are too few samples for a rate, the logarithm predicts it better.
        threshold: a number, in sigmas under the CDF, else in raw units; or how it is found: ``"false_alarm_rate"``,
            ``"normal_quantile"`` or, with ``y``, ``"adaptive"``, the best F1. See `fitting.normalizer`.
        false_alarm_rate, confidence, normal_quantile: the numbers of these rules.
        cv: how samples come to be scored by a detector that was not trained on them. A number of folds (shuffled), or a
            splitter of scikit-learn whose test folds hold each sample once: cross-fitting, after which the detector is
            trained on all normal samples. A share between 0 and 1: so many are kept out, and it stays trained on the
            others. ``"prefit"``: ``estimator`` is fitted, and `fit` gets samples that it has not seen. With these two
            the rate is guaranteed (T7), if so many samples were scored; with folds it is observed: on four data sets
            of scikit-learn, six detectors promised 1% and gave 0.6 to 1.3% with five folds, but 1.3 to 3.2% with a
            fifth kept out, which is too few samples for 1% there, and up to 21% by their own training data
            (benchmarks/sklearn_detectors.py).
        larger_means: what a larger score of ``estimator`` means: ``"normal"``, as in scikit-learn, or ``"anomalous"``,
            as in PyOD. ``"auto"``: the latter if it has ``decision_scores_``, which PyOD's detectors have after their
            fit; the former if scikit-learn takes it for an outlier detector; anything else is refused.
        normal_label: the label of normal samples in ``y``; every other one is of anomalies. None: 0 where no label is
            below 0 and some are 0, as in all of anomnorm; 1 where there are -1 and 1 alone, as in scikit-learn;
            anything else is refused, ones alone too.
        random_state: of the folds and, where it has none itself, of the detector.

    Attributes:
        estimator_: the fitted detector.
        normalizer_: the `Normalizer` of its raw scores. Another one moves the threshold:
            ``detector.normalizer_ = detector.normalizer_.with_threshold(2.5)``.
        threshold_: the threshold in raw units: flagged is what has this raw score or more.
        offset_: the smallest `score_samples` that is not flagged; ``decision_function = score_samples - offset_``.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Sample weights are refused: a threshold for a rate counts samples.
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        method: str = AUTO,
        threshold: SupportsFloat | str | None = "false_alarm_rate",
        false_alarm_rate: float = 0.01,
        confidence: float | None = None,
        normal_quantile: float = 1.0,
        cv: Any = 5,
        larger_means: str = AUTO,
        normal_label: Any = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.method = method
        self.threshold = threshold
        self.false_alarm_rate = false_alarm_rate
        self.confidence = confidence
        self.normal_quantile = normal_quantile
        self.cv = cv
        self.larger_means = larger_means
        self.normal_label = normal_label
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        inner = get_tags(IsolationForest() if self.estimator is None else self.estimator).input_tags
        tags.input_tags.sparse, tags.input_tags.allow_nan = inner.sparse, inner.allow_nan
        return tags

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train the detector, and fit normalizer and threshold on samples that it was not trained on.

        Args:
            X: of shape (n_samples, n_features), whatever the detector takes.
            y: labels of shape (n_samples,), see ``normal_label``; None: all samples are normal.

        Raises:
            ValueError: labels are unknown or ambiguous, or there are too few samples.
            OptionError: an option has a value that is not allowed.
            NotFittedError, InvalidScoreError: the detector's scores give no normalizer, as of `fitting.normalizer`.
        """
        validate_data(self, X, skip_check_array=True)
        X, y = indexable(X, y)
        if _num_samples(X) < 2:
            raise ValueError(
                f"n_samples={_num_samples(X)}: at least two samples are needed, and for a small rate many."
            )
        anomalous = _anomalous(y, _num_samples(X), self.normal_label)
        if isinstance(self.cv, str):
            if self.cv != PREFIT:
                raise OptionError(f'cv={self.cv!r} is not an option; give a number of folds, a share or "prefit".')
            check_is_fitted(self.estimator)
            self.estimator_, scores, labels = self.estimator, self._scores(self.estimator, X), anomalous
        elif isinstance(self.cv, float):
            self.estimator_, scores, labels = self._held_out(X, anomalous, self.cv)
        else:
            self.estimator_, scores, labels = self._cross_fitted(X, anomalous)
        found = fitting.normalizer(
            fitting.record(scores, labels, method=self._method(scores[~labels])),
            threshold=self.threshold,
            normal_quantile=self.normal_quantile,
            false_alarm_rate=self.false_alarm_rate,
            confidence=self.confidence,
        )
        is_crossed = not isinstance(self.cv, str | float)
        self.normalizer_ = _without_guarantee(found) if is_crossed else found
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Raw scores with scikit-learn's sign, of shape (n_samples,): smaller where more anomalous."""
        return -self._raw(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """``score_samples(X) - offset_``, of shape (n_samples,): negative where flagged."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """-1 for samples that are flagged and 1 for others, of shape (n_samples,).

        Flagged is what has a raw score of at least the threshold, which is where the normalized score is at least 0.5.
        """
        raw = self._raw(X)
        return np.where(self.normalizer_(raw)["pred_labels"], -1, 1)

    def normalized_scores(self, X: Any) -> np.ndarray:
        """Normalized scores, of shape (n_samples,): in [0, 1], larger where more anomalous, 0.5 at the threshold."""
        raw = self._raw(X)
        return self.normalizer_(raw)["pred_scores"]

    @property
    def threshold_(self) -> float:
        """The threshold in raw units."""
        return float(self.normalizer_.thresholds["image"].raw)

    @property
    def offset_(self) -> float:
        """The smallest of `score_samples` that is not flagged."""
        return float(np.nextafter(-self.threshold_, np.inf))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``normalizer_`` to a file that all packages read. The detector is not in it; see `from_normalizer`.

        Raises:
            OSError: it cannot be written.
        """
        check_is_fitted(self)
        self.normalizer_.save(path)

    @classmethod
    def from_normalizer(
        cls, estimator: Any, normalizer: Normalizer | str | os.PathLike[str], *, larger_means: str = AUTO
    ) -> Self:
        """A fitted `NormalizedDetector` of a fitted detector and the normalizer of its scores, or that one's file.

        Raises:
            FileFormatError: the file is damaged, foreign, or of a newer format.
            sklearn.exceptions.NotFittedError: ``estimator`` is not fitted.
        """
        check_is_fitted(estimator)
        detector = cls(estimator, cv=PREFIT, larger_means=larger_means)
        detector.estimator_ = estimator
        detector.normalizer_ = normalizer if isinstance(normalizer, Normalizer) else Normalizer.load(normalizer)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(estimator, name):
                setattr(detector, name, getattr(estimator, name))
        return detector

    def _raw(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        if not hasattr(self.estimator_, "n_features_in_"):  # else it looks at them itself
            validate_data(self, X, reset=False, skip_check_array=True)
        raw = self._scores(self.estimator_, X)
        report_undefined(int(np.isnan(raw).sum()))
        return raw

    def _scores(self, estimator: Any, X: Any) -> np.ndarray:
        """Raw scores of a fitted detector, larger where more anomalous. float64, as decisions are made in."""
        # Those of score_samples do not depend on an offset of the detector's own.
        function = getattr(estimator, "score_samples", None) or getattr(estimator, "decision_function", None)
        if function is None:
            raise OptionError(
                f"{type(estimator).__name__} scores no new samples: it has neither score_samples nor "
                "decision_function. (LocalOutlierFactor has them with novelty=True.)"
            )
        scores = np.asarray(function(X), dtype=np.float64)
        return -scores if _is_larger_normal(estimator, self.larger_means) else scores

    def _method(self, normals: np.ndarray) -> str:
        """The method's name, given the raw scores of normal samples."""
        if self.method != AUTO:
            return self.method
        return (Transform.LOG if np.all(normals > 0) else Transform.IDENTITY).method

    def _template(self) -> Any:
        """A clone of the detector to be trained, with this one's random state where it has none."""
        template: Any = clone(IsolationForest() if self.estimator is None else self.estimator)
        if self.random_state is None:
            return template
        random = check_random_state(self.random_state)
        for name, value in sorted(template.get_params(deep=True).items()):
            if value is None and (name == "random_state" or name.endswith("__random_state")):
                template.set_params(**{name: random.randint(np.iinfo(np.int32).max)})
        return template

    def _held_out(self, X: Any, anomalous: np.ndarray, share: float) -> tuple[Any, np.ndarray, np.ndarray]:
        """The detector trained on a part of the normals, and the scores and labels of everything else."""
        if not 0 < share < 1:
            raise OptionError(
                f"cv={share} is no share of the samples; give one above 0 and below 1, or a number of folds."
            )
        normals = np.flatnonzero(~anomalous)
        trained, kept = train_test_split(normals, test_size=share, random_state=self.random_state)
        estimator = self._template().fit(_safe_indexing(X, trained), None)
        rest = np.concatenate([kept, np.flatnonzero(anomalous)])
        return estimator, self._scores(estimator, _safe_indexing(X, rest)), anomalous[rest]

    def _cross_fitted(self, X: Any, anomalous: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
        """The detector trained on all normals, and scores of all samples by clones that were not trained on them."""
        template, times = self._template(), np.zeros(len(anomalous), dtype=int)
        scores = np.empty(len(anomalous))
        for train, test in self._folds(X, anomalous):
            estimator: Any = clone(template)
            estimator.fit(_safe_indexing(X, train[~anomalous[train]]), None)
            scores[test] = self._scores(estimator, _safe_indexing(X, test))
            times[test] += 1
        if np.any(times != 1):
            raise ValueError(
                f"cv={self.cv!r} puts {int(np.sum(times != 1))} of {len(times)} samples into no test fold, or into "
                "several; give a splitter that puts each into one, as KFold does."
            )
        return template.fit(_safe_indexing(X, np.flatnonzero(~anomalous)), None), scores, anomalous

    def _folds(self, X: Any, anomalous: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if hasattr(self.cv, "split"):
            return iter(self.cv.split(X, anomalous))
        if isinstance(self.cv, bool) or not isinstance(self.cv, int | np.integer) or self.cv < 2:
            raise OptionError(
                f"cv={self.cv!r} is not an option; give a number of folds from 2 on, a share between 0 and 1, "
                '"prefit" or a splitter of scikit-learn.'
            )
        # Anomalies shall not be all in one fold.
        kind = StratifiedKFold if anomalous.sum() >= self.cv else KFold
        return iter(kind(int(self.cv), shuffle=True, random_state=self.random_state).split(anomalous, anomalous))


def _is_larger_normal(estimator: Any, larger_means: str) -> bool:
    """Whether a larger score of a fitted detector means more normal, see `NormalizedDetector`."""
    if larger_means != AUTO:
        if larger_means not in ("normal", "anomalous"):
            raise OptionError(
                f"larger_means={larger_means!r} is not an option; use one of 'auto', 'normal', 'anomalous'."
            )
        return larger_means == "normal"
    detector = estimator
    while True:  # what a pipeline ends in, a search has found, or is frozen
        if hasattr(detector, "steps"):
            detector = detector.steps[-1][1]
        elif hasattr(detector, "best_estimator_"):
            detector = detector.best_estimator_
        elif type(detector).__name__ == "FrozenEstimator":
            detector = detector.estimator
        else:
            break
    # PyOD's detectors are outlier detectors to scikit-learn as well, so this comes first.
    if hasattr(detector, "decision_scores_"):
        return False
    if is_outlier_detector(detector):
        return True
    raise OptionError(
        f"whether a larger score of {type(detector).__name__} is more normal or more anomalous is not known: it is no "
        'outlier detector of scikit-learn, nor has it PyOD\'s decision_scores_. Say larger_means="normal" or '
        '"anomalous".'
    )


def _anomalous(y: Any, samples: int, normal_label: Any) -> np.ndarray:
    """Which samples are anomalous by their labels: booleans (n_samples,)."""
    if y is None:
        return np.zeros(samples, dtype=bool)
    labels = np.asarray(y)
    if labels.shape != (samples,):
        raise ValueError(f"y has shape {labels.shape}; one label for each of {samples} samples is needed.")
    if np.iscomplexobj(labels):
        raise ValueError("Complex data not supported: y holds labels.")
    if labels.dtype.kind == "f" and np.any(np.isnan(labels)):
        raise ValueError("y has NaN; leave out samples of which nothing is known, or call them normal.")
    try:
        found = np.unique(labels).tolist()
    except TypeError:
        raise ValueError("y has labels of several types, None for example; give them one type.") from None
    if normal_label is None:
        normal_label = _normal_label(found)
    anomalous: np.ndarray = labels != normal_label
    if np.all(anomalous):
        raise ValueError(f"no sample has the label {normal_label!r} of normal ones; y has {_listed(found)}.")
    return anomalous


def _normal_label(found: list[Any]) -> int:
    """The label of normal samples, given all labels in ascending order."""
    if found == [-1, 1]:
        return 1
    if found[0] == 0:  # False too
        return 0
    raise ValueError(
        f"y has the labels {_listed(found)}, and which of them is normal is not known: it is 0 where no label is below "
        "that, and 1 beside -1. Say it, normal_label=1 for example, or leave y out if all samples are normal."
    )


def _listed(found: list[Any]) -> str:
    return ", ".join(map(repr, found[:5])) + (", ..." if len(found) > 5 else "")


def _without_guarantee(normalizer: Normalizer) -> Normalizer:
    """The same, but the rate of its threshold is expected alone: fold detectors are not the one that scores later."""
    fit = normalizer.to_fit()
    level = fit.level("image")
    threshold = fit.threshold("image")
    return Normalizer.from_fit(replace(fit, image=replace(level, threshold=replace(threshold, guaranteed=False))))
