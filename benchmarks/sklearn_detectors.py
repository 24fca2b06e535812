"""What thresholds of scikit-learn's and PyOD's detectors promise and give: `anomnorm_core.sklearn`'s defaults.

Two thirds of the normals of each data set are what `fit` gets; the others are new. ``python
benchmarks/sklearn_detectors.py`` prints tables in some minutes; PyOD's detectors are in them if it is installed.
"""

import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from detectors import DATA, DataSet
from sklearn.base import clone
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.model_selection import KFold, train_test_split
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

from anomnorm_core import AnomnormError, fitting

SPLITS, FOLDS, SHARE = 20, 5, 0.2
RATES = (0.05, 0.01)
SIGMAS = {2.0: 0.0228, 3.0: 0.00135}
Scores = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def detectors(seed: int) -> dict[str, tuple[Any, int]]:
    """Detectors by name, each with the sign that makes its scores larger for anomalies."""
    found = {
        "IsolationForest": (IsolationForest(random_state=seed), -1),
        "LocalOutlierFactor": (LocalOutlierFactor(novelty=True), -1),
        "OneClassSVM": (OneClassSVM(nu=0.1), -1),
        "EllipticEnvelope": (EllipticEnvelope(random_state=seed), -1),
    }
    try:
        from pyod.models.ecod import ECOD
        from pyod.models.knn import KNN
    except ImportError:
        return found
    return found | {"PyOD KNN": (KNN(), 1), "PyOD ECOD": (ECOD(), 1)}


def scored(detector: Any, sign: int) -> Callable[[np.ndarray], np.ndarray]:
    function = detector.score_samples if hasattr(detector, "score_samples") else detector.decision_function
    return lambda x: sign * np.asarray(function(x), dtype=np.float64)


def scores_of(data: DataSet, template: Any, sign: int, seed: int) -> Scores:
    """By the way of calibration: the scores that the threshold is found on, those of new normals, of anomalies."""
    train, new = train_test_split(data.normal, test_size=1 / 3, random_state=seed)
    mean, std = train.mean(axis=0), train.std(axis=0) if data.scaled else 1.0
    train, new, anomalies = ((part - mean) / std for part in (train, new, data.anomalous))
    final = scored(clone(template).fit(train), sign)
    crossed = np.empty(len(train))
    for fit, fold in KFold(FOLDS, shuffle=True, random_state=seed).split(train):
        crossed[fold] = scored(clone(template).fit(train[fit]), sign)(train[fold])
    part, kept = train_test_split(train, test_size=SHARE, random_state=seed)
    partial = scored(clone(template).fit(part), sign)
    return {
        "its own training data": (final(train), final(new), final(anomalies)),
        f"{FOLDS} folds, trained on all": (crossed, final(new), final(anomalies)),
        f"{SHARE:.0%} kept out": (partial(kept), partial(new), partial(anomalies)),
        f"{SHARE:.0%} kept out, trained on all": (partial(kept), final(new), final(anomalies)),
    }


def table(title: str, columns: list[str], rows: dict[str, list[str]]) -> None:
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def main(splits: int = SPLITS) -> None:
    warnings.simplefilter("ignore")
    alarms: dict[tuple[str, ...], list[float]] = defaultdict(list)
    found: dict[tuple[str, ...], list[float]] = defaultdict(list)
    spread: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for seed in range(splits):
        for data_name, load in DATA.items():
            data = load()
            for name, (template, sign) in detectors(seed).items():
                for way, (known, new, anomalies) in scores_of(data, template, sign, seed).items():
                    for method in ("cdf", "normal"):
                        for threshold in (*RATES, *SIGMAS):
                            given = {"threshold": threshold}
                            if threshold in RATES:
                                given = {"threshold": "false_alarm_rate", "false_alarm_rate": threshold}
                            try:
                                record = fitting.record(known, method=method)
                                normalizer = fitting.normalizer(record, **given)
                            except AnomnormError:
                                continue
                            key = (name, way, method, str(threshold))
                            alarms[key].append(normalizer(new)["pred_labels"].mean())
                            spread[(*key, data_name)].append(alarms[key][-1])
                            found[key].append(normalizer(anomalies)["pred_labels"].mean())
        print(f"split {seed + 1} of {splits}", file=sys.stderr)
    ways = list(dict.fromkeys(key[1] for key in alarms))
    names = list(dict.fromkeys(key[0] for key in alarms))

    def cell(name: str, way: str, threshold: float, *methods: str) -> str:
        keys = [key for method in methods if (key := (name, way, method, str(threshold))) in alarms]
        if not keys:
            return "-"
        worst = max(np.mean(each) for other, each in spread.items() if other[:4] == keys[0])
        return f"{np.mean(alarms[keys[0]]):.2%} (worst data {worst:.2%}), {np.mean(found[keys[0]]):.0%}"

    for rate in RATES:  # with the default method: the CDF of logarithms, where there are any
        rows = {name: [cell(name, way, rate, "cdf", "normal") for way in ways] for name in names}
        table(f"False alarms for {rate:.0%}, and anomalies found", ways, rows)
    few, crossed = ways[2], ways[1]
    for title, way, threshold in (
        (f"False alarms for 1%, {few}", few, 0.01),
        *((f"False alarms at {t:g} sigmas, which say {rate:.2%}, {crossed}", crossed, t) for t, rate in SIGMAS.items()),
    ):
        rows = {name: [cell(name, way, threshold, method) for method in ("cdf", "normal")] for name in names}
        table(f"{title}, and anomalies found", ["cdf", "normal"], rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
