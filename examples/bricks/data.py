"""Patches of a brick pavement; scratches, stains and missing pieces are drawn into some of them.

The photograph comes with scikit-image (``skimage.data.brick``, 512x512 pixels, public domain). Training, validation and
test patches are cut from blocks of their own, so that they share no pixel. NumPy alone: both frameworks use it.
"""

from typing import NamedTuple

import numpy as np
import skimage

SIZE = 96  # pixels of a patch, in height and width
BLOCK = 128  # pixels of a block
PARTS = {"train": (320, 0), "validation": (160, 60), "test": (160, 60)}  # how many normal and anomalous patches
DEFECTS = ("scratch", "stain", "missing-piece")


class Patches(NamedTuple):
    """N patches with their ground truth."""

    image: np.ndarray  # (N, 96, 96) float32 in [0, 1]
    label: np.ndarray  # (N,) int64: 0 is normal, 1 anomalous
    mask: np.ndarray  # (N, 96, 96) uint8: 1 where a defect was drawn
    name: list[str]  # for example "scratch/007.png"


def load(seed: int = 0) -> dict[str, Patches]:
    """The patches of each part; those to train on are normal."""
    rng = np.random.default_rng(seed)
    photograph = skimage.data.brick().astype(np.float32) / 255
    return {part: _part(photograph, part, *counts, rng) for part, counts in PARTS.items()}


def _part(photograph: np.ndarray, part: str, normal: int, anomalous: int, rng: np.random.Generator) -> Patches:
    blocks = [(row, column) for row in range(4) for column in range(4) if _part_of(row, column) == part]
    kinds = rng.permutation(["normal"] * normal + [DEFECTS[i % len(DEFECTS)] for i in range(anomalous)])
    image, mask = np.empty((len(kinds), SIZE, SIZE), np.float32), np.zeros((len(kinds), SIZE, SIZE), np.uint8)
    for i, kind in enumerate(kinds):
        top, left = np.multiply(blocks[i % len(blocks)], BLOCK) + rng.integers(0, BLOCK - SIZE + 1, size=2)
        patch = photograph[top : top + SIZE, left : left + SIZE]
        image[i] = patch[:, ::-1] if rng.random() < 0.5 else patch
        if kind != "normal":
            image[i], mask[i] = _damaged(image[i], kind, rng)
    image = np.clip(2 * image - 0.4, 0, 1)  # with more contrast than the photograph
    names = [f"{kind}/{i:03d}.png" for i, kind in enumerate(kinds)]
    return Patches(image, (kinds != "normal").astype(np.int64), mask, names)


def _part_of(row: int, column: int) -> str:
    """A chessboard: one colour to train on, the other for validation and test."""
    if (row + column) % 2 == 0:
        return "train"
    return "validation" if row % 2 == 0 else "test"


def _damaged(patch: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The patch with one defect, and its mask."""
    angle, (x, y) = rng.uniform(0, np.pi), rng.uniform(SIZE / 5, SIZE * 4 / 5, size=2)
    down, right = np.mgrid[:SIZE, :SIZE]
    along = (right - x) * np.cos(angle) + (down - y) * np.sin(angle)
    across = (down - y) * np.cos(angle) - (right - x) * np.sin(angle)
    length, width = rng.uniform(5, 9, size=2)
    if kind == "scratch":
        length, width, bend = 2.5 * length, width / 8, rng.uniform(-0.012, 0.012)
        mask = (abs(along) < length) & (abs(across - bend * along**2) < width)
        return patch + rng.choice([-0.14, 0.22]) * mask, mask
    if kind == "stain":
        distance = np.hypot(along / length, across / width)
        return patch * (1 - 0.6 * np.clip(3 - 3 * distance, 0, 1)), distance < 0.95
    corners = abs(along + across) < 0.8 * (length + width)  # cut off
    mask = (abs(along) < length) & (abs(across) < width) & corners
    return np.where(mask, 0.5 + 0.08 * rng.standard_normal(patch.shape), patch), mask
