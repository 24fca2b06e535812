"""Heat maps and their table on disk."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anomnorm_core import HeatMapFolder, Normalizer, OptionError, OutputError, write_heat_maps
from anomnorm_core.plot import style

matplotlib = pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
MAPS = np.array([[[0.0, 0.0], [4.0, 1.0]], [[0.5, 0.0], [0.0, 1.0]]], dtype="f4")
NORMALIZER = Normalizer.min_max((0.0, 4.0), (0.0, 4.0), threshold=2.0)
IMAGES = np.full((2, 40, 60, 3), 100, dtype=np.uint8)
LINE = [int(style.FLAGGED[i : i + 2], 16) for i in (1, 3, 5)]


def outputs(**options: Any) -> dict[str, np.ndarray]:
    return NORMALIZER(anomaly_maps=MAPS, **options)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read(path: Path | None) -> np.ndarray:
    assert path is not None
    return np.asarray(Image.open(path))


def test_the_image_is_tinted_and_the_flagged_part_outlined(tmp_path: Path) -> None:
    maps = np.kron(MAPS, np.ones((1, 20, 30), "f4"))  # as large as the images
    paths = write_heat_maps(tmp_path, IMAGES, NORMALIZER(anomaly_maps=maps))
    drawn = read(paths[0])
    assert drawn.shape == (40, 60, 3)
    for row, column, u in ((5, 5, 0.0), (30, 15, 1.0), (30, 45, 0.25)):
        color = 255 * np.array(matplotlib.colormaps[style.NORMALIZED_MAP](u)[:3])
        expected = 100 + 0.65 * u * (color - 100)
        np.testing.assert_allclose(drawn[row, column], expected, atol=1, err_msg=str(u))
    outlined = (drawn == LINE).all(axis=2)
    frame = np.zeros((40, 60), bool)
    frame[20, :30] = frame[20:, 29] = True  # the border of the image is none of the flagged part
    np.testing.assert_array_equal(outlined, frame)
    assert not (read(paths[1]) == LINE).all(axis=2).any()


def test_maps_grow_to_the_size_of_the_image(tmp_path: Path) -> None:
    drawn = read(write_heat_maps(tmp_path / "a", IMAGES, outputs())[0])
    outlined = (drawn == LINE).all(axis=2)
    assert outlined[20, :30].all()
    assert outlined[20:, 29].all()
    np.testing.assert_array_equal(drawn[5, 55], [100] * 3)
    alone = read(write_heat_maps(tmp_path / "b", None, outputs())[1])
    expected = matplotlib.colormaps[style.NORMALIZED_MAP](outputs()["anomaly_maps"][1], bytes=True)[..., :3]
    np.testing.assert_array_equal(alone, expected)


def test_the_table_has_what_the_outputs_have(tmp_path: Path) -> None:
    result = outputs(extras=["raw", "margin"])
    paths = write_heat_maps(tmp_path, IMAGES, result, names=["test/bad/000.jpg", "x.17"])
    assert [path and path.name for path in paths] == ["bad_000.png", "x.17.png"]
    rows = table(tmp_path)
    assert list(rows[0]) == ["name", "heat_map", "pred_scores_raw", "pred_scores_margin", "pred_scores", "pred_labels"]
    assert [row["name"] for row in rows] == ["test/bad/000.jpg", "x.17"]
    assert [row["heat_map"] for row in rows] == ["bad_000.png", "x.17.png"]
    assert [np.float32(row["pred_scores_raw"]) for row in rows] == [4, 1]
    assert [np.float32(row["pred_scores"]) for row in rows] == result["pred_scores"].tolist()
    assert [row["pred_labels"] for row in rows] == ["1", "0"]


def test_no_name_is_taken_twice_or_leads_elsewhere(tmp_path: Path) -> None:
    with HeatMapFolder(tmp_path) as folder:
        names = ["a/b/0.png", "c/b/0.jpg", "../../B/0", "/", "\u00e4 \\?.tif", ".."]
        found = [folder.add(IMAGES, outputs(), names[i : i + 2]) for i in (0, 2, 4)]
    written = [path.name for pair in found for path in pair if path]
    assert written == ["b_0.png", "b_0-2.png", "B_0-3.png", "image.png", "\u00e4___.png", "image-2.png"]
    assert {path.name for path in tmp_path.iterdir()} == {*written, "scores.csv"}
    assert [row["name"] for row in table(tmp_path)] == names


def test_batches_go_on_with_the_numbers_and_padding_is_left_out(tmp_path: Path) -> None:
    folder = HeatMapFolder(tmp_path / "new" / "one")
    folder.add(IMAGES, outputs())
    assert not (folder.path / "scores.csv").exists()
    paths = folder.add(IMAGES, outputs() | {"valid": np.array([True, False])})
    assert folder.close() == folder.path / "scores.csv"
    assert paths == [folder.path / "000002.png", None]
    assert [row["heat_map"] for row in table(folder.path)] == [f"00000{i}.png" for i in range(3)]


def test_scores_alone_and_objects_with_attributes(tmp_path: Path) -> None:
    result = NORMALIZER(np.array([1.0, 3.0]), extras=["raw"])
    assert write_heat_maps(tmp_path / "a", None, result) == [None, None]
    assert [row["heat_map"] for row in table(tmp_path / "a")] == ["", ""]
    singular = {"pred_score": "pred_scores", "pred_label": "pred_labels", "pred_score_raw": "pred_scores_raw"}
    batch = SimpleNamespace(**{name: result[plural] for name, plural in singular.items()}, anomaly_map=None)
    write_heat_maps(tmp_path / "b", None, batch)
    assert table(tmp_path / "b") == table(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred_labels": None}, "the outputs have no 'pred_labels'.*Normalize them first"),
        ({"pred_masks": None}, "the outputs have no 'pred_masks'"),
        ({"anomaly_maps": MAPS}, "'anomaly_maps' holds 0 to 4, which are no normalized scores"),
        ({"pred_scores": np.array([-0.1, np.nan])}, "'pred_scores' holds -0.1 to -0.1, which are no"),
    ],
)
def test_what_is_not_normalized_is_refused_and_leaves_no_table(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(OutputError, match=message):
        write_heat_maps(tmp_path, IMAGES, outputs() | change)
    assert not [*tmp_path.iterdir()]


def test_an_error_in_a_later_batch_leaves_no_table(tmp_path: Path) -> None:
    def run() -> None:
        with HeatMapFolder(tmp_path) as folder:
            folder.add(IMAGES, outputs())
            folder.add(IMAGES, outputs(extras=["raw"]))

    with pytest.raises(OutputError, match=r"hold pred_scores_raw, .* and those of earlier batches pred_scores, "):
        run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.png", "000001.png"]
    for argument in ({"images": IMAGES[:1]}, {"names": ["a"]}, {"valid": [True]}):
        with HeatMapFolder(tmp_path / str(*argument)) as folder, pytest.raises(OptionError, match="has 1 elements"):
            folder.add(**{"images": IMAGES, "outputs": outputs()} | argument)


def test_nothing_is_overwritten_unless_asked_for(tmp_path: Path) -> None:
    write_heat_maps(tmp_path / "a", IMAGES, outputs(), names=["old", "first"])
    with pytest.raises(FileExistsError, match=r"a holds 'first.png' and 2 more: .* overwrite=True to replace"):
        write_heat_maps(tmp_path / "a", IMAGES, outputs())
    write_heat_maps(tmp_path / "a", IMAGES, outputs(), names=["new", "first"], overwrite=True)
    kept = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert kept == ["first.png", "new.png", "scores.csv"]
    (tmp_path / "a" / "mine.png").touch()  # what no former run has listed is somebody's
    with pytest.raises(FileExistsError, match=r"a holds 'mine.png': .* Name another folder\.$"):
        write_heat_maps(tmp_path / "a", IMAGES, outputs(), overwrite=True)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted([*kept, "mine.png"])
    with pytest.raises(FileExistsError, match="is a file"):
        HeatMapFolder(tmp_path / "a" / "mine.png")


def test_without_matplotlib_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"anomnorm-core\[plot\]"):
        HeatMapFolder(tmp_path / "a")
    assert not [*tmp_path.iterdir()]


def test_a_long_name_of_any_script_fits_into_a_folder(tmp_path: Path) -> None:
    outputs = {"pred_scores": np.zeros(1), "pred_labels": np.zeros(1, bool), "anomaly_maps": np.zeros((1, 4, 4))}
    (path,) = write_heat_maps(tmp_path / "a", None, outputs | {"pred_masks": np.zeros((1, 4, 4), bool)}, ["é" * 300])
    assert path is not None
    assert path.is_file()


@pytest.mark.parametrize(("field", "shape"), [("pred_labels", (2,)), ("pred_masks", (1, 3, 4))])
def test_labels_of_another_shape_are_refused_before_anything_is_written(
    field: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    outputs = {"pred_scores": np.zeros(1), "pred_labels": np.zeros(1, bool), "anomaly_maps": np.zeros((1, 4, 4))}
    outputs |= {"pred_masks": np.zeros((1, 4, 4), bool)} | {field: np.zeros(shape, bool)}
    with pytest.raises(OutputError, match=f"'{field}' has shape"):
        write_heat_maps(tmp_path / "a", None, outputs)
    assert not [*(tmp_path / "a").iterdir()]
