"""Detectors of scikit-learn's and PyOD's interface: scikit-learn's own checks, signs, labels, and honest rates."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from expected import best_threshold, moments
from scipy.stats import betabinom
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.covariance import EllipticEnvelope
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import f1_score, make_scorer
from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import OneClassSVM
from sklearn.utils.estimator_checks import parametrize_with_checks

from anomnorm_core import Normalizer, OptionError, fitting
from anomnorm_core.sklearn import NormalizedDetector

RNG = np.random.default_rng(0)
FEW = "ignore:.* normal validation samples cannot guarantee:anomnorm_core.ThresholdWarning"


class Distances(BaseEstimator):  # type: ignore[misc]
    """PyOD's interface: larger is more anomalous. The distance to the nearest known sample, 0 for a known one."""

    def fit(self, X: np.ndarray, y: Any = None) -> Self:
        assert y is None
        self.known_ = np.asarray(X)
        self.decision_scores_ = self.decision_function(X)
        self.labels_ = (self.decision_scores_ > np.quantile(self.decision_scores_, 0.9)).astype(int)
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return np.abs(np.asarray(X)[:, None] - self.known_[None]).sum(axis=2).min(axis=1)  # type: ignore[no-any-return]


class First(BaseEstimator):  # type: ignore[misc]
    """The first feature, of which nobody knows what a larger one means."""

    def fit(self, X: np.ndarray, y: Any = None) -> Self:
        self.fitted_ = True
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(X)[:, 0]


class Likelihoods(OutlierMixin, First):  # type: ignore[misc]
    """scikit-learn's interface: larger is more normal."""

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        return self.decision_function(X) - 3.0


class Yes(First):
    """The same of PyOD's interface."""

    def fit(self, X: np.ndarray, y: Any = None) -> Self:
        self.decision_scores_ = self.decision_function(X)
        return self


# Their y has labels of which nobody can know which is normal; the other instance is told.
UNKNOWN = dict.fromkeys(
    ("check_estimators_dtypes", "check_classifier_data_not_an_array", "check_fit2d_1feature"),
    "y has the labels 1 and 2, which normal_label=None refuses",
)


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [
        NormalizedDetector(IsolationForest(n_estimators=5)),
        NormalizedDetector(IsolationForest(n_estimators=5), normal_label=1, cv=0.3, false_alarm_rate=0.1),
        NormalizedDetector(make_pipeline(StandardScaler(), OneClassSVM(nu=0.1)), normal_label=1, false_alarm_rate=0.1),
    ],
    expected_failed_checks=lambda detector: {} if detector.normal_label else UNKNOWN,
)
def test_scikit_learn_s_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def new_normals(count: int) -> np.ndarray:
    return RNG.standard_t(5, size=(count, 4))


@pytest.mark.clause("T7")
@pytest.mark.parametrize("cv", [5, 0.5, "prefit"])
@pytest.mark.parametrize("name", ["LocalOutlierFactor", "EllipticEnvelope", "Distances"])
def test_the_promised_rate_is_kept_by_new_normals(cv: Any, name: str) -> None:
    detectors = {
        "LocalOutlierFactor": LocalOutlierFactor(novelty=True),
        "EllipticEnvelope": EllipticEnvelope(random_state=0),
        "Distances": Distances(),
    }
    rate, count, held_out = 0.05, 600, 2000
    estimator = detectors[name].fit(new_normals(count)) if cv == "prefit" else detectors[name]
    detector = NormalizedDetector(estimator, false_alarm_rate=rate, cv=cv, random_state=0).fit(new_normals(count))
    observed = int(np.sum(detector.predict(new_normals(held_out)) == -1))
    n = count // 2 if cv == 0.5 else count
    reached = math.floor(rate * (n + 1)) - 1  # of n normals reach the threshold; of new ones, then, a Beta share
    low, high = betabinom.ppf([1e-4, 1 - 1e-4], held_out, reached + 1, n - reached)
    assert low <= observed <= high
    assert detector.normalizer_.thresholds["image"].guaranteed == (cv != 5)
    # What a threshold of scores of its own training data gives, of a detector that knows those.
    if name == "Distances":
        known = detector.estimator_.known_
        dishonest = NormalizedDetector(detector.estimator_, method="min-max", false_alarm_rate=rate, cv="prefit")
        assert np.mean(dishonest.fit(known).predict(new_normals(held_out)) == -1) > 0.9


@pytest.mark.clause("T1", "T2", "T7", "S3")
@pytest.mark.filterwarnings("ignore:.*are not distributed as the method supposes:anomnorm_core.FitWarning")
def test_a_prefit_detector_has_the_normalizer_of_its_scores() -> None:
    train, normals, anomalies = RNG.normal(size=(50, 3)), RNG.normal(size=(150, 3)), RNG.normal(3.0, size=(40, 3))
    samples, labels = np.concatenate([normals, anomalies]), np.repeat([0, 1], (150, 40))
    inner = EllipticEnvelope().fit(train)
    scores = -inner.score_samples(samples)
    mean, std = moments(scores[:150])
    for options, expected in (
        ({"threshold": 2.0}, math.exp(mean + 2 * std)),
        ({"false_alarm_rate": 0.05}, np.nextafter(np.sort(scores[:150])[math.ceil(151 * 0.95) - 1], np.inf)),
        ({"threshold": "adaptive"}, best_threshold(scores, labels == 1)),
        ({"threshold": "normal_quantile"}, np.nextafter(scores[:150].max(), np.inf)),
    ):
        detector = NormalizedDetector(inner, cv="prefit", **options).fit(samples, labels)
        assert detector.estimator_ is inner
        np.testing.assert_allclose(detector.normalizer_.to_fit().image.parameters, (mean, std), rtol=1e-12)  # type: ignore[union-attr]
        assert detector.threshold_ == pytest.approx(expected, rel=1e-15 if "threshold" in options else 0)


@pytest.mark.clause("N4", "N6")
@pytest.mark.parametrize("inner", [Likelihoods(), Yes()])
@pytest.mark.parametrize("method", ["normal", "min-max", "two-slope"])
def test_everything_agrees_at_the_threshold_to_the_bit(inner: Any, method: str) -> None:
    calibration = RNG.normal(size=(400, 2))
    detector = NormalizedDetector(inner.fit(calibration), method=method, cv="prefit").fit(calibration)
    t, sign, shift = detector.threshold_, *((-1, 3.0) if isinstance(inner, OutlierMixin) else (1, 0.0))
    raw = np.concatenate([[t, np.nextafter(t, np.inf), np.nextafter(t, -np.inf)], RNG.normal(t, 1.0, size=200)])
    samples = np.stack([sign * raw + shift, raw], axis=1)
    exact = np.flatnonzero(-detector.score_samples(samples) == raw)  # the shift is rounded
    assert exact.size > 20
    found = -detector.score_samples(samples)
    flagged = detector.predict(samples) == -1
    np.testing.assert_array_equal(flagged, found >= t)
    np.testing.assert_array_equal(flagged, detector.normalized_scores(samples) >= 0.5)
    np.testing.assert_array_equal(flagged, detector.decision_function(samples) < 0)
    assert flagged.any()
    assert not flagged.all()
    at = np.full((3, 2), [[sign * t + shift, 0.0]])
    if -detector.score_samples(at)[0] == t:
        assert detector.normalized_scores(at)[0] == 0.5
        assert detector.predict(at)[0] == -1


def test_what_larger_means_is_found_out_or_has_to_be_said() -> None:
    normals, odd = np.abs(RNG.normal(size=(300, 2))), np.full((1, 2), 9.0)
    for inner in (
        make_pipeline(StandardScaler(), IsolationForest(n_estimators=20)),
        LocalOutlierFactor(novelty=True),
        OneClassSVM(nu=0.1),
        Distances(),
        make_pipeline(StandardScaler(), Distances()),
        FrozenEstimator(Distances().fit(normals)),
        GridSearchCV(Distances(), {}, scoring=lambda *_: 0.0),
    ):
        detector = NormalizedDetector(inner, random_state=0, cv=3).fit(np.concatenate([normals, normals + 0.01]))
        assert detector.normalized_scores(odd) > 0.5
        assert detector.predict(odd) == -1
        assert detector.decision_function(odd) < 0 < detector.decision_function(normals).max()
    with pytest.raises(OptionError, match=r'First is more normal.*larger_means="normal"'):
        NormalizedDetector(First()).fit(normals)
    for means, flagged in (("anomalous", True), ("normal", False)):
        detector = NormalizedDetector(First(), larger_means=means).fit(normals)
        assert bool(detector.predict(odd) == -1) is flagged
    with pytest.raises(OptionError, match="'larger'"):
        NormalizedDetector(First(), larger_means="larger").fit(normals)
    with pytest.raises(OptionError, match="novelty=True"):
        NormalizedDetector(LocalOutlierFactor()).fit(normals)


def test_real_detectors_of_pyod() -> None:
    pytest.importorskip("pyod")
    from pyod.models.ecod import ECOD
    from pyod.models.knn import KNN

    table, benign = load_breast_cancer(return_X_y=True)
    for inner in (KNN(), ECOD(), make_pipeline(StandardScaler(), KNN())):
        detector = NormalizedDetector(inner, random_state=0).fit(table[benign == 1])
        normal, malignant = (detector.normalized_scores(table[benign == kind]) for kind in (1, 0))
        assert np.median(malignant) > np.median(normal)
        assert np.mean(normal >= 0.5) < 0.03 < np.mean(malignant >= 0.5) + 0.02  # ECOD finds few
        assert clone(detector).estimator is not inner


@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize(
    ("labels", "normal_label", "anomalous"),
    [
        ([0, 0, 0, 0, 1, 2], None, [4, 5]),
        ([False, False, False, False, True, True], None, [4, 5]),
        ([1, 1, 1, 1, -1, -1], None, [4, 5]),
        ([1, 1, 1, 1, 1, 1], 1, []),
        ([2, 2, 2, 2, 2, 3], 2, [5]),
        (["good"] * 5 + ["scratch"], "good", [5]),
        (None, None, []),
    ],
)
def test_anomalies_are_known_by_their_labels_and_never_trained_on(
    labels: Any, normal_label: Any, anomalous: list[int]
) -> None:
    samples = np.arange(60.0).reshape(60, 1) ** 1.1
    y = None if labels is None else np.repeat(labels, 10)
    marked = np.isin(np.arange(60) // 10, anomalous)
    for cv in (3, 0.4, KFold(4)):
        detector = NormalizedDetector(Distances(), method="normal", normal_label=normal_label, cv=cv, random_state=0)
        detector.fit(samples, y)
        known = np.isin(samples[:, 0], detector.estimator_.known_)
        assert not np.any(known & marked)
        count = int((~marked).sum())
        assert int(known.sum()) == (count if cv != 0.4 else count - math.ceil(count * 0.4))
        fit = detector.normalizer_.to_fit().level("image")
        assert fit.valid == (count if cv != 0.4 else math.ceil(count * 0.4))
        assert fit.parameters[0] > 0.5  # all of them were scored by detectors that do not know them


@pytest.mark.parametrize(
    ("labels", "normal_label", "message"),
    [
        ([1] * 6, None, "labels 1, and which of them is normal is not known"),
        ([-1, -1, 0, 0, 1, 1], None, "labels -1, 0, 1, and"),
        ([-1] * 6, None, "labels -1, and"),
        (["good"] * 6, None, "labels 'good', and"),
        ([0, 0, 0, 1, 1, math.nan], None, "y has NaN"),
        (["good", "good", None, "bad", "bad", "bad"], "good", "labels of several types"),
        ([0] * 6, 1, "no sample has the label 1 of normal ones; y has 0"),
        ([[0]] * 6, None, r"shape \(60, 1\)"),
    ],
)
def test_labels_of_two_meanings_are_refused(labels: Any, normal_label: Any, message: str) -> None:
    detector = NormalizedDetector(Distances(), normal_label=normal_label)
    with pytest.raises(ValueError, match=message):
        detector.fit(np.arange(60.0).reshape(60, 1), np.repeat(labels, 10, axis=0))


@pytest.mark.filterwarnings(FEW)
def test_options_that_do_not_fit_are_refused() -> None:
    samples = RNG.normal(size=(60, 2))
    for cv in (1, True, "folds", 1.5, 0.0):
        with pytest.raises(OptionError, match="cv="):
            NormalizedDetector(Distances(), cv=cv).fit(samples)
    with pytest.raises(ValueError, match="into no test fold, or into several"):
        NormalizedDetector(Distances(), cv=ShuffleSplit(3)).fit(samples)
    with pytest.raises(NotFittedError):
        NormalizedDetector(Distances(), cv="prefit").fit(samples)
    with pytest.raises(OptionError, match="method='minmax'"):
        NormalizedDetector(Distances(), method="minmax").fit(samples)
    with pytest.raises(TypeError, match="sample_weight"):
        NormalizedDetector(Distances()).fit(samples, sample_weight=np.ones(60))
    with pytest.raises(ValueError, match="X has 3 features"):  # PyOD's do not look
        NormalizedDetector(Distances()).fit(np.abs(samples)).predict(np.ones((1, 3)))
    with pytest.raises(NotFittedError):
        NormalizedDetector().save("nowhere")


@pytest.mark.filterwarnings(FEW)
def test_in_a_pipeline_and_a_search() -> None:
    table, benign = load_breast_cancer(return_X_y=True)
    y = np.where(benign == 1, 1, -1)  # scikit-learn's labels of normal samples and anomalies
    detector = NormalizedDetector(LocalOutlierFactor(novelty=True), threshold="adaptive", random_state=0)
    pipeline = make_pipeline(FunctionTransformer(np.log1p), StandardScaler(), detector)
    search = GridSearchCV(
        pipeline,
        {
            "normalizeddetector__estimator__n_neighbors": [5, 20],
            "normalizeddetector__method": ["two-slope", "cdf"],
        },
        scoring={"f1": make_scorer(f1_score, pos_label=-1), "auroc": "roc_auc"},
        refit="f1",
        cv=3,
    ).fit(table, y)
    assert search.best_score_ > 0.75
    assert search.cv_results_["mean_test_auroc"].max() > 0.9  # by the sign of decision_function
    found = search.best_estimator_[-1]
    steps = search.best_estimator_[:-1]
    assert np.mean(found.predict(steps.transform(table)) == y) > 0.8
    assert found.normalizer_.thresholds["image"].origin == "adaptive"
    assert not hasattr(clone(found), "normalizer_")
    pipeline.set_output(transform="default")  # a detector has none


def test_feature_names_reach_the_detector() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(np.abs(RNG.normal(size=(150, 2))), columns=["a", "b"])
    for inner in (IsolationForest(n_estimators=5), Distances()):
        detector = NormalizedDetector(inner, random_state=0).fit(frame)
        assert detector.feature_names_in_.tolist() == ["a", "b"]
        with pytest.raises(ValueError, match="feature names should match"):
            detector.predict(frame[["b", "a"]].rename(columns={"a": "c"}))


@pytest.mark.clause("P1", "P2")
def test_the_normalizer_is_a_file_and_the_detector_the_user_s(tmp_path: Path) -> None:
    samples = RNG.normal(size=(200, 3))
    detector = NormalizedDetector(IsolationForest(n_estimators=20), random_state=0).fit(samples)
    detector.save(tmp_path / "detector.safetensors")
    again = NormalizedDetector.from_normalizer(detector.estimator_, tmp_path / "detector.safetensors")
    np.testing.assert_array_equal(again.normalized_scores(samples), detector.normalized_scores(samples))
    np.testing.assert_array_equal(again.predict(samples), detector.predict(samples))
    assert again.n_features_in_ == 3
    # The same seed gives the same detector and the same file.
    fitted = NormalizedDetector(IsolationForest(n_estimators=20), random_state=0).fit(samples)
    np.testing.assert_array_equal(fitted.decision_function(samples), detector.decision_function(samples))
    # The threshold moves with the normalizer.
    again.normalizer_ = Normalizer.load(tmp_path / "detector.safetensors").with_threshold(0.0)
    assert np.mean(again.predict(samples) == -1) > 0.25
    assert np.all((again.decision_function(samples) < 0) == (again.predict(samples) == -1))


def test_cross_fitted_scores_are_those_of_clones_that_did_not_see_the_sample() -> None:
    samples = RNG.normal(size=(100, 2))
    detector = NormalizedDetector(Distances(), cv=KFold(4)).fit(samples)
    scores = np.empty(100)
    for train, test in KFold(4).split(samples):
        scores[test] = np.abs(samples[test][:, None] - samples[train]).sum(axis=2).min(axis=1)
    expected = fitting.normalizer(fitting.record(scores), threshold="false_alarm_rate").to_fit()
    assert detector.normalizer_.to_fit().level("image").parameters == expected.level("image").parameters
    assert detector.threshold_ == expected.threshold("image").raw
    np.testing.assert_array_equal(detector.estimator_.known_, samples)  # trained on all in the end


def test_without_scikit_learn_there_is_a_remedy_and_core_does_not_load_it() -> None:
    program = """
import sys, anomnorm_core
assert "sklearn" not in sys.modules
sys.modules["sklearn"] = None
try:
    import anomnorm_core.sklearn
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'anomnorm-core[sklearn]'" in result.stdout
