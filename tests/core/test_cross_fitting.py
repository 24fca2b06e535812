"""What to fit on where there are no other normals: cross-fitting as guides/without-anomalies.md has it (clause L3)."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from anomnorm_core import Normalizer, cdf

Detector = Callable[[np.ndarray], np.ndarray]
IMAGES, DIGITS = load_digits(return_X_y=True)
TRAINED, PARTS = 110, 10


def nearest(normals: np.ndarray) -> Detector:
    neighbors = NearestNeighbors(n_neighbors=3).fit(normals)
    return lambda images: neighbors.kneighbors(images)[0].mean(axis=1)  # type: ignore[no-any-return]


def mahalanobis(normals: np.ndarray) -> Detector:
    mean, precision = normals.mean(axis=0), np.linalg.inv(np.cov(normals.T) + 0.25 * np.eye(normals.shape[1]))
    return lambda images: np.sqrt(np.einsum("ij,jk,ik->i", images - mean, precision, images - mean))


@pytest.mark.clause("L3")
@pytest.mark.parametrize("train", [nearest, mahalanobis])
def test_cross_fitting_gives_about_as_many_false_alarms_as_sigmas_say(
    train: Callable[[np.ndarray], Detector],
) -> None:
    known, unseen = [], []
    for digit in range(10):
        images = IMAGES[digit == DIGITS]
        images = images[np.random.default_rng(digit).permutation(len(images))]
        normals, new = images[:TRAINED], images[TRAINED:]
        record = cdf.init()
        for part in np.array_split(np.arange(TRAINED), PARTS):
            record = cdf.update(record, train(np.delete(normals, part, axis=0))(normals[part]))
        detector = train(normals)
        for fit, flagged in ((cdf.update(cdf.init(), detector(normals)), known), (record, unseen)):
            flagged.append(Normalizer.cdf(fit, threshold=2.0)(detector(new))["pred_labels"].mean())
    assert np.mean(known) > 0.3
    assert 0.01 < np.mean(unseen) < 0.045
