"""Models of anomalib with untrained backbones, on made images with drawn defects: nothing is downloaded."""

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib_models import SIZE

# This folder, too, is found under the name anomalib.
if find_spec("anomalib.post_processing") is None:
    collect_ignore_glob = ["*"]
else:
    # torchvision's compiled operators do not load beside the CPU build of torch, and it imports where they are defined.
    _operators = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import anomalib.models  # noqa: F401
        from anomalib.data import Folder
        from anomalib.engine import Engine
        from lightning import seed_everything
        from PIL import Image


KINDS = ("InvalidScore", "Threshold", "Fit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            # Warnings of anomalib and of what it uses are their matter; ours are errors.
            for action in ("ignore", *(f"error::anomnorm_core.{kind}Warning" for kind in KINDS)):
                item.add_marker(pytest.mark.filterwarnings(action), append=False)


def _picture(random: np.random.Generator, *, defect: bool) -> tuple[np.ndarray, np.ndarray]:
    """A texture with a label in one corner, which differs from picture to picture, and where a defect was drawn."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    waves = 30 * np.sin(columns / 3 + random.uniform(0, 6)) + 20 * np.cos(rows / 4 + random.uniform(0, 6))
    picture = 128 + waves[..., None] + random.normal(0, 8, (SIZE, SIZE, 3))
    picture[44:60, 36:60] = np.kron(random.integers(0, 2, (4, 6)) * 60 + 100, np.ones((4, 4)))[..., None]
    mask = np.zeros((SIZE, SIZE), np.uint8)
    if defect:
        top, left = random.integers(4, 28), random.integers(4, 48)
        mask[top : top + 12, left : left + 12] = 255
        picture[mask > 0] += random.uniform(20, 70, 3)
    return np.clip(picture, 0, 255).astype(np.uint8), mask


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with normal images to train and test with, images with defects, and their masks."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    (root / "masks").mkdir()
    for name, count in (("train", 32), ("good", 80), ("defect", 32)):
        (root / name).mkdir()
        for index in range(count):
            picture, mask = _picture(random, defect=name == "defect")
            Image.fromarray(picture).save(root / name / f"{index:03}.png")
            if name == "defect":
                Image.fromarray(mask).save(root / "masks" / f"{index:03}.png")
    return root


@pytest.fixture(scope="session")
def data(images: Path) -> Callable[..., "Folder"]:
    """Makes a data module: half of the normal test images and of the defects are for validation."""

    def make(*, masks: bool = True) -> "Folder":
        return Folder(
            name="made",
            root=images,
            normal_dir="train",
            normal_test_dir="good",
            abnormal_dir="defect",
            mask_dir="masks" if masks else None,
            train_batch_size=8,
            eval_batch_size=8,
            num_workers=0,
            val_split_mode="from_test",
            seed=0,
        )

    return make


@pytest.fixture
def engine(tmp_path: Path) -> Callable[..., "Engine"]:
    """Makes an engine, whose runs always have the same random numbers."""

    def make(**more: Any) -> "Engine":
        seed_everything(0, verbose=False)
        options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
        return Engine(default_root_dir=tmp_path / "results", **options | more)

    return make
