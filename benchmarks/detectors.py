"""What the calibration study uses: real data that scikit-learn bundles, random splits of them, anomaly detectors."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPRegressor

Score = Callable[[np.ndarray], np.ndarray]  # samples (N, features) to raw scores (N,), larger is more anomalous

POSITIVE = (
    "nearest neighbours",
    "Mahalanobis",
    "PCA",
    "isolation forest",
    "autoencoder",
    "autoencoder, largest error",
)
ZEROS = "outside the usual range"  # its scores are zero for many normals
SIGNED = "isolation forest, signed"  # its scores have both signs, so they have no logarithm
DETECTORS = (*POSITIVE, ZEROS, SIGNED)
FOLDS = 5


class DataSet(NamedTuple):
    """Samples of which some are normal by choice."""

    normal: np.ndarray  # (N, features) float64
    anomalous: np.ndarray  # (M, features) float64
    scaled: bool  # whether features have units of their own, to be divided by the deviation of the training data


class Scores(NamedTuple):
    """Raw scores of one split by one detector."""

    train: np.ndarray  # (T,) of the normals that the detector was trained on
    crossed: np.ndarray  # (T,) of the same, each by a detector that was trained on the other folds
    pool: np.ndarray  # (P,) of normals that it has not seen
    anomalous: np.ndarray  # (M,)


def _digits(*normal: int) -> DataSet:
    images, digit = load_digits(return_X_y=True)
    images, is_normal = images / 16, np.isin(digit, normal)
    return DataSet(images[is_normal], images[~is_normal], scaled=False)


def _breast_cancer() -> DataSet:
    samples, benign = load_breast_cancer(return_X_y=True)
    return DataSet(samples[benign == 1], samples[benign == 0], scaled=True)


def _wine() -> DataSet:
    samples, cultivar = load_wine(return_X_y=True)
    return DataSet(samples[cultivar == 1], samples[cultivar != 1], scaled=True)


IMAGES = ("digits 0 to 8", "digit 3")
DATA: dict[str, Callable[[], DataSet]] = {
    "digits 0 to 8": lambda: _digits(*range(9)),
    "digit 3": lambda: _digits(3),
    "breast cancer": _breast_cancer,
    "wine": _wine,
}


def split(data: DataSet, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A third of the normals to train on, the others, and the anomalies; features in units of the training data."""
    normal = rng.permutation(data.normal)
    train, pool = np.split(normal, [len(normal) // 3])
    if not data.scaled:
        return train, pool, data.anomalous
    mean, std = train.mean(axis=0), train.std(axis=0)
    train, pool, anomalous = ((part - mean) / std for part in (train, pool, data.anomalous))
    return train, pool, anomalous


def scores(data: DataSet, seed: tuple[int, ...]) -> dict[str, Scores]:
    """The raw scores of all detectors, trained on one random split."""
    rng = np.random.default_rng(seed)
    train, pool, anomalous = split(data, rng)
    number = int(rng.integers(2**31))
    detectors = fit(train, number)
    fold = rng.permutation(len(train)) % FOLDS
    crossed = {name: np.empty(len(train)) for name in DETECTORS}
    for each in range(FOLDS):
        for name, score in fit(train[fold != each], number).items():
            crossed[name][fold == each] = score(train[fold == each])
    return {
        name: Scores(score(train), crossed[name], score(pool), score(anomalous)) for name, score in detectors.items()
    }


class Maps(NamedTuple):
    """Anomaly maps of one split of images."""

    train: np.ndarray  # (T, H, W) of the normals that the detector was trained on
    pool: np.ndarray  # (P, H, W) of normals that it has not seen


def maps(data: DataSet, seed: tuple[int, ...]) -> dict[str, Maps]:
    """The autoencoder's error of each pixel, as it is and smoothed."""
    rng = np.random.default_rng(seed)
    train, pool, _ = split(data, rng)
    errors, side = _autoencoder(train, int(rng.integers(2**31))), int(train.shape[1] ** 0.5)
    squares = Maps(*(errors(part).reshape(-1, side, side) for part in (train, pool)))
    smoothed = Maps(*(uniform_filter(part, (0, 3, 3)) for part in squares))
    return {"squared errors": squares, "squared errors, smoothed": smoothed}


def fit(train: np.ndarray, seed: int) -> dict[str, Score]:
    """Detectors by name, trained on normal samples (N, features)."""
    neighbours = NearestNeighbors(n_neighbors=5).fit(train)
    mean = train.mean(axis=0)
    # The ridge is that of PaDiM; pixels that never change would have no inverse.
    inverse = np.linalg.inv(np.cov(train, rowvar=False) + 0.01 * np.eye(train.shape[1]))
    pca = PCA(0.9, svd_solver="full").fit(train)
    forest = IsolationForest(random_state=seed).fit(train)
    errors = _autoencoder(train, seed)
    low, high = np.quantile(train, (0.005, 0.995), axis=0)
    return {
        "nearest neighbours": lambda x: neighbours.kneighbors(x)[0].mean(axis=1),
        "Mahalanobis": lambda x: np.sqrt(np.einsum("ni,ij,nj->n", x - mean, inverse, x - mean)),
        "PCA": lambda x: np.square(x - pca.inverse_transform(pca.transform(x))).mean(axis=1),
        "isolation forest": lambda x: -forest.score_samples(x),
        "autoencoder": lambda x: errors(x).mean(axis=1),
        "autoencoder, largest error": lambda x: errors(x).max(axis=1),
        ZEROS: lambda x: (np.maximum(x - high, 0) + np.maximum(low - x, 0)).sum(axis=1),
        SIGNED: lambda x: -forest.decision_function(x),
    }


def _autoencoder(train: np.ndarray, seed: int) -> Score:
    """Squared errors (N, features) of a network with one narrow hidden layer."""
    width = max(2, train.shape[1] // 4)
    network = MLPRegressor(
        hidden_layer_sizes=(width,),
        activation="tanh",
        batch_size=min(32, len(train)),
        learning_rate_init=0.01,
        max_iter=60,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is trained for so long and no longer
        network.fit(train, train)
    return lambda x: np.square(x - network.predict(x))
