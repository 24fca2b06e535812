"""Handwritten digits (real images, bundled with scikit-learn): some are normal, the others are anomalies.

So that the pixel level has a ground truth too, some normal digits are damaged: a patch of another digit is pasted in,
and the pixels that changed are the mask.
"""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

NORMAL_DIGITS = (0, 4, 6)
PATCH = 4  # pixels
Batch = dict[str, np.ndarray]


class Split(NamedTuple):
    """Images and their ground truth."""

    images: np.ndarray  # (N, 1, 8, 8) float32 in [0, 1]
    labels: np.ndarray  # (N,) int64: 1 is anomalous
    masks: np.ndarray  # (M, 1, 8, 8) bool, M <= N: the anomalous pixels of the first images. The others are digits of
    #                    another class, where no single pixel is to blame

    def batches(self, size: int = 64) -> list[Batch]:
        """Dictionaries of ``image`` and ``label`` and, where there are masks, ``mask``."""
        starts = (*range(0, len(self.masks), size), *range(len(self.masks), len(self.labels), size))
        ends = (*starts[1:], len(self.labels))
        found = []
        for start, end in zip(starts, ends, strict=True):
            batch = {"image": self.images[start:end], "label": self.labels[start:end]}
            found.append(batch | ({"mask": self.masks[start:end]} if start < len(self.masks) else {}))
        return found


def load(seed: int = 0) -> tuple[Split, Split, Split]:
    """Training (normal digits only), validation and test data."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    normal = rng.permutation(images[np.isin(digits.target, NORMAL_DIGITS)])
    other = rng.permutation(images[~np.isin(digits.target, NORMAL_DIGITS)])[:240]
    train, rest = normal[:250], normal[250:]
    clean, to_damage = rest[:180], rest[180:]
    damaged, masks = _damage(to_damage, other, rng)
    validation, test = (
        _split(clean[part], damaged[part], masks[part], other[part]) for part in (slice(0, None, 2), slice(1, None, 2))
    )
    return _split(train, train[:0], masks[:0], train[:0]), validation, test


def _damage(images: np.ndarray, donors: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    damaged = images.copy()
    for image in damaged:
        row, column = rng.integers(0, images.shape[-1] - PATCH + 1, size=2)
        area = (..., slice(row, row + PATCH), slice(column, column + PATCH))
        image[area] = donors[rng.integers(len(donors))][area]
    return damaged, np.abs(damaged - images) > 0.25


def _split(clean: np.ndarray, damaged: np.ndarray, damage: np.ndarray, other: np.ndarray) -> Split:
    return Split(
        images=np.concatenate([clean, damaged, other]),
        labels=np.repeat([0, 1, 1], [len(clean), len(damaged), len(other)]),
        masks=np.concatenate([np.zeros(clean.shape, dtype=bool), damage]),
    )
