"""Handwritten digits (real images, bundled with scikit-learn): some are normal, the others are anomalies.

So that the pixel level has a ground truth too, some normal digits are damaged: a patch of another digit is pasted in,
and the pixels that changed are the mask.
"""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

NORMAL_DIGITS = (0, 4, 6)
PATCH = 4  # pixels


class Split(NamedTuple):
    """Images and their ground truth."""

    images: np.ndarray  # (N, 1, 8, 8) float32 in [0, 1]
    labels: np.ndarray  # (N,) int64: 1 is anomalous
    masks: np.ndarray  # (N, 1, 8, 8) bool: anomalous pixels of damaged digits
    has_mask: np.ndarray  # (N,) bool: False for digits of another class, where no single pixel is to blame


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
    halves = [
        _split(clean[part], other[part], damaged[part], masks[part]) for part in (slice(0, None, 2), slice(1, None, 2))
    ]
    nothing = np.zeros(len(train), dtype=np.int64)
    return Split(train, nothing, np.zeros(train.shape, dtype=bool), nothing == 0), halves[0], halves[1]


def _damage(images: np.ndarray, donors: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    damaged = images.copy()
    for image in damaged:
        row, column = rng.integers(0, images.shape[-1] - PATCH + 1, size=2)
        area = (..., slice(row, row + PATCH), slice(column, column + PATCH))
        image[area] = donors[rng.integers(len(donors))][area]
    return damaged, np.abs(damaged - images) > 0.25


def _split(clean: np.ndarray, other: np.ndarray, damaged: np.ndarray, damage: np.ndarray) -> Split:
    no_mask = [np.zeros(part.shape, dtype=bool) for part in (clean, other)]
    sizes = [len(clean), len(other), len(damaged)]
    return Split(
        images=np.concatenate([clean, other, damaged]),
        labels=np.repeat([0, 1, 1], sizes),
        masks=np.concatenate([*no_mask, damage]),
        has_mask=np.repeat([True, False, True], sizes),
    )
