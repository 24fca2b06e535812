"""The report: a page that stands alone, with the numbers that others compute too."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_page import Page
from scipy import stats
from sklearn.metrics import f1_score, precision_score, recall_score

from anomnorm_core import Normalizer, OptionError, cdf

RNG = np.random.default_rng(7)
NORMALS = np.exp(RNG.normal(size=60))
MAPS = np.exp(RNG.normal(size=(60, 4, 5)) * np.linspace(0.5, 1.5, 5))
SCORES = np.exp(np.r_[RNG.normal(size=45), RNG.normal(2.5, 1.0, size=15)])
LABELS = np.r_[np.zeros(45, int), np.ones(15, int)]
SOME = np.asarray([0, 1, 2, 58, 59])
CDF = Normalizer.cdf(cdf.update(cdf.init(), NORMALS), threshold=1.5)
WITH_MAPS = Normalizer.cdf(
    cdf.update(cdf.init(), NORMALS), cdf.update(cdf.init((4, 5)), MAPS), threshold=1.5, pixel_threshold=2.0
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where matplotlib is not installed: quick, where numbers are what is looked at."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_the_fit_alone_says_what_was_fitted_and_what_scores_mean(path: Path) -> None:
    CDF.report(path, title="A <fit>")
    page = Page(path)
    logs = np.log(NORMALS)
    mean, std = logs.mean(), logs.std(ddof=1)
    assert page.text.count("A <fit>") == 2
    statistics = "Statistics by level"
    assert page.numbers(statistics, "Mean of log scores") == pytest.approx({"image": mean}, rel=1e-5)
    assert page.numbers(statistics, "Std of log scores") == pytest.approx({"image": std}, rel=1e-5)
    assert page.column(statistics, "Values") == {"image": "60"}
    marks = np.asarray([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
    z = 1.5 + stats.norm.ppf(marks)
    table = "Normalized image scores, and who reaches them"
    assert list(page.numbers(table, "Raw")) == [f"{mark:g}" for mark in marks]
    assert list(page.numbers(table, "Raw").values()) == pytest.approx(np.exp(mean + std * z), rel=1e-5)
    assert list(page.numbers(table, "Sigmas").values()) == pytest.approx(z, rel=1e-3)
    expected = 100 * stats.t.sf(z / np.sqrt(1 + 1 / 60), 59)
    assert list(page.numbers(table, "New normals reaching it").values()) == pytest.approx(expected, rel=5e-3)
    assert page.column("Thresholds by level", "Expected false alarms") == {"image": f"{expected[3]:.3g}%"}
    assert "svg" not in page.tags


@pytest.mark.parametrize("method", ["min-max", "two-slope", "normal", "cdf"])
@pytest.mark.parametrize("is_labelled", [True, False])
def test_every_method_has_a_report(method: str, is_labelled: bool, path: Path) -> None:
    normalizer = Normalizer.of(method, (0.5, 3.0), (0.25, 4.0) if method == "min-max" else None, threshold=2.0)
    normalizer.report(path, SCORES, LABELS if is_labelled else None)
    page = Page(path)
    low, high = [*page.tables["Statistics by level"][1][1:3]]
    assert (low, high) == ("0.5", "3")
    assert page.column("Samples and how many of them are flagged", "Flagged")["All"] == str(
        normalizer(SCORES)["pred_labels"].sum()
    )
    assert page.tags.count("svg") == (2 if not is_labelled else 4 if normalizer.to_fit().method.sigmas else 3)


@pytest.mark.usefixtures("no_charts")
def test_decisions_and_false_alarms_are_those_that_others_count(path: Path) -> None:
    scores, labels = np.r_[SCORES, np.nan, 1e3, -1.0], np.r_[LABELS, 1, -1, 0].astype(float)
    labels[0] = np.nan
    CDF.report(path, scores[:, None], labels, names=[f"sample {i}" for i in range(63)])
    page = Page(path)
    flagged, known = scores >= CDF.thresholds["image"].raw, labels >= 0
    counted = page.numbers("Samples and how many of them are flagged", "Number")
    assert counted == {"All": 63, "Normal": 45, "Anomalous": 16, "Ignored": 2, "NaN, never flagged": 1}
    truth = labels[known] > 0
    decided = "Decisions at the threshold"
    for name, metric in (("F1", f1_score), ("Precision", precision_score), ("Recall", recall_score)):
        assert page.numbers(decided, name)["image"] == pytest.approx(metric(truth, flagged[known]), abs=6e-4)
    alarms, normals = int(np.sum(flagged & (labels == 0))), 45
    assert page.numbers(decided, "False alarms")["image"] == alarms
    interval = stats.binomtest(alarms, normals).proportion_ci(method="exact")
    assert f"{alarms} of {normals} normal samples are flagged" in page.text
    assert f"from {100 * interval.low:.3g}% to {100 * interval.high:.3g}%" in page.text
    best = max(f1_score(truth, scores[known] >= t) for t in scores[known & ~np.isnan(scores)])
    assert f"best F1 of these samples is {best:.3f}" in page.text
    reached = CDF(scores)["pred_scores"]
    expected = [100 * np.mean(reached[labels == 1] >= mark) for mark in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)]
    table = "Normalized image scores, and who reaches them"
    assert list(page.numbers(table, "Anomalies here").values()) == pytest.approx(expected, rel=5e-3)


@pytest.mark.usefixtures("no_charts")
def test_the_worst_samples_are_named(path: Path) -> None:
    scores, labels = np.r_[SCORES, np.nan], np.r_[LABELS, 1]
    CDF.report(path, scores, labels, names=[f"{i}.png" for i in range(61)])
    normals, anomalies, undefined = (
        rows[1:]
        for name, rows in Page(path).tables.items()
        if name.endswith("est scores") or name.startswith("Samples without")
    )
    order = np.argsort(SCORES)
    top, bottom = [i for i in order[::-1] if i < 45][:6], [i for i in order if i >= 45][:6]
    assert [row[0] for row in normals] == [f"{i}.png" for i in top]
    assert [row[0] for row in anomalies] == [f"{i}.png" for i in bottom]
    assert [row[0] for row in undefined] == ["60.png"]
    assert float(normals[0][1]) == pytest.approx(SCORES[top[0]], rel=1e-5)
    assert float(normals[0][2]) == pytest.approx(CDF(SCORES)["pred_scores"][top[0]], abs=6e-5)
    assert [row[3] for row in normals] == ["yes" if CDF(SCORES)["pred_labels"][i] else "no" for i in top]


def test_names_are_text_whatever_they_hold(path: Path) -> None:
    hostile = [
        "<script>alert(1)</script>",
        '"><img src=x onerror=y>',
        "a\u202egnp.exe",
        "b\x00\x1b[31m",
        "&lt;",
        "$x^2$",
    ]
    WITH_MAPS.report(path, np.arange(6.0)[::-1], anomaly_maps=MAPS[:6], names=hostile, title="</title><script>")
    page = Page(path)  # which finds no tag of theirs
    rows = page.tables["Samples with the highest scores"][1:]
    assert [row[0] for row in rows] == [*hostile[:2], "a\\u202egnp.exe", "b\\x00\\x1b[31m", *hostile[4:]]


def test_maps_have_pictures_and_pixels_are_counted(path: Path) -> None:
    masks, images = RNG.random((5, 4, 5)) > 0.8, RNG.random((5, 3, 8, 10))
    given = {"anomaly_maps": MAPS[SOME][:, None], "images": images, "masks": masks[..., None]}
    WITH_MAPS.report(path, SCORES[SOME], LABELS[SOME], **given)
    page = Page(path)
    flagged = MAPS[SOME] >= WITH_MAPS.thresholds["pixel"].raw
    decided = page.numbers("Decisions at the threshold", "F1")
    assert decided["pixel"] == pytest.approx(f1_score(masks.ravel(), flagged.ravel()), abs=6e-4)
    pictures = [value for tag, name, value in page.attributes if tag == "image" and name == "href"]
    assert len(pictures) >= 5 * 4  # input, raw map, normalized map and contour of each sample
    described = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(described) == 4 + 5
    assert all(described)
    raw = WITH_MAPS.thresholds["pixel"].raw
    shown = page.column("Thresholds by level", "Raw")["pixel"].split(" to ")
    assert [float(shown[0]), float(shown[-1])] == pytest.approx([raw.min(), raw.max()], rel=1e-5)


def test_the_same_input_gives_the_same_bytes(path: Path) -> None:
    written = []
    for _ in range(2):
        WITH_MAPS.report(path, SCORES[SOME], LABELS[SOME], anomaly_maps=MAPS[SOME])
        written.append(path.read_bytes())
    assert written[0] == written[1]


@pytest.mark.usefixtures("no_charts")
def test_without_matplotlib_there_are_tables_and_a_remedy(path: Path) -> None:
    WITH_MAPS.report(path, SCORES, LABELS, anomaly_maps=MAPS)
    page = Page(path)
    assert "svg" not in page.tags
    assert 'pip install "anomnorm-core[plot]"' in page.text
    assert page.column("Samples and how many of them are flagged", "Number")["All"] == "60"


@pytest.mark.parametrize("scores", [[np.nan] * 4, [np.inf, -np.inf, 0.0, -1.0], [2.0] * 4], ids=["nan", "inf", "same"])
@pytest.mark.parametrize("labels", [[0, 1, 0, 1], [-1, np.nan, -1, -1]], ids=["known", "ignored"])
def test_scores_of_any_kind_have_a_report(scores: list[float], labels: list[float], path: Path) -> None:
    CDF.report(path, np.asarray(scores), labels)
    nan = np.sum(np.isnan(scores))
    counted = Page(path).column("Samples and how many of them are flagged", "Number")
    assert counted.get("NaN, never flagged", "0") == str(nan)


def wrong() -> Iterator[Any]:
    yield {"labels": LABELS}, "neither pred_scores nor anomaly_maps"
    yield {"pred_scores": SCORES, "labels": LABELS[1:]}, "labels has 59 entries for 60 scores"
    yield {"pred_scores": SCORES, "names": ["a"]}, "names has 1 entries for 60 scores"
    yield {"pred_scores": SCORES, "labels": ["normal"] * 60}, "labels, of type list, hold no numbers"
    yield {"pred_scores": []}, "pred_scores is empty"
    yield {"pred_scores": SCORES, "images": MAPS}, "images are given, but no anomaly_maps"
    yield {"pred_scores": SCORES, "anomaly_maps": MAPS, "masks": MAPS[:, 1:]}, "masks are of"


@pytest.mark.parametrize(("given", "message"), list(wrong()), ids=lambda each: each if isinstance(each, str) else "")
def test_what_cannot_be_shown_leaves_the_old_file(given: dict[str, Any], message: str, path: Path) -> None:
    path.write_text("old")
    with pytest.raises(OptionError, match=message):
        WITH_MAPS.report(path, **given)
    assert path.read_text() == "old"
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        CDF.report(path)
    assert path.read_text() == "old"
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


def test_a_missing_folder_is_known_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Normalizer, "to_fit", lambda _: pytest.fail("worked"))
    with pytest.raises(FileNotFoundError, match="folder"):
        CDF.report(tmp_path / "none" / "report.html")


def test_what_a_fit_does_not_know_is_not_claimed(path: Path) -> None:
    normalizer = Normalizer.min_max((0.0, 4.0), threshold=1.5)
    normalizer.report(path)
    page = Page(path)
    assert page.column("Thresholds by level", "Expected false alarms") == {"image": "unknown"}
    assert page.tables["Normalized image scores, and who reaches them"][0] == ["Normalized", "Raw"]
    assert "Nothing is known about normal samples" in page.text
