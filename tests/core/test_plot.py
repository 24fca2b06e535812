"""The numbers in the pictures: lines, bars, marks and outlines against what is computed here from the definitions."""

import io
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, t

from anomnorm_core import Normalizer, NotFittedError, OptionError, cdf, min_max, normal, plot, threshold
from anomnorm_core.plot import style
from anomnorm_core.plot.false_alarm_rates import band

pyplot = pytest.importorskip("matplotlib.pyplot")
RNG = np.random.default_rng(18)
NORMALS, ANOMALIES = np.round(RNG.lognormal(0, 0.4, 60), 2), np.round(RNG.lognormal(1, 0.4, 20), 2)  # with ties
SCORES, LABELS = np.concatenate([NORMALS, ANOMALIES]), np.repeat([0, 1], [60, 20])
MEAN, STD = 0.1, 0.5  # of logarithms


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    pyplot.close("all")


def logarithmic(**options: Any) -> Normalizer:
    return Normalizer.cdf((MEAN, STD), **{"threshold": 2.0} | options)


def by_label(axes: Any, start: str) -> Any:
    """The only line or bar whose label begins so."""
    (found,) = [each for each in (*axes.lines, *axes.patches) if str(each.get_label()).startswith(start)]
    return found


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def counted(scores: np.ndarray, labels: np.ndarray, at: float) -> list[float]:
    """F1, precision, recall and false-alarm rate in percent, one sample after the other."""
    hits = sum(score >= at for score, label in zip(scores, labels, strict=True) if label > 0)
    alarms = sum(score >= at for score, label in zip(scores, labels, strict=True) if label == 0)
    missed = (labels > 0).sum() - hits
    precision = hits / (hits + alarms) if hits + alarms else np.nan
    f1, recall = 2 * hits / (2 * hits + missed + alarms), hits / (labels > 0).sum()
    return [100 * f1, 100 * precision, 100 * recall, 100 * alarms / (labels == 0).sum()]


CURVES = ("F1", "precision", "recall", "false-alarm rate")


def test_each_threshold_has_its_rates() -> None:
    scores = np.append(SCORES, [np.nan, np.nan, 3.0, np.inf, -1.0])  # a normal and an anomaly that are never flagged
    labels = np.append(LABELS, [0, 1, -1, 1, 0])
    _, axes = plot.thresholds(logarithmic(), scores, labels[:, None])
    known = labels >= 0
    expected_x = sorted({score for score in scores[known] if np.isfinite(score)})
    expected = np.transpose([counted(scores[known], labels[known], at) for at in expected_x])
    raw = np.exp(MEAN + 2 * STD)
    for name, curve, here in zip(CURVES, expected, counted(scores[known], labels[known], raw), strict=True):
        line = by_label(axes, name)
        np.testing.assert_allclose(line.get_xdata(), expected_x)
        np.testing.assert_allclose(line.get_ydata(), curve, err_msg=name)
        assert line.get_drawstyle() == "steps-pre"  # between two scores the next one decides
        assert line.get_label() == f"{name}, {here:.3g}% at the threshold"
        marks = [each for each in axes.lines if each.get_color() == line.get_color() and each.get_marker() == "o"]
        assert [(*mark.get_xdata(), *mark.get_ydata()) for mark in marks] == [(pytest.approx(raw), pytest.approx(here))]
    assert by_label(axes, "threshold").get_xdata() == pytest.approx([raw, raw])
    assert by_label(axes, "threshold").get_label() == f"threshold {raw:.4g} (2 sigmas)"


@pytest.mark.clause("T2")
def test_the_best_f1_is_that_of_the_search() -> None:
    _, axes = plot.thresholds(logarithmic(), SCORES.astype("f4"), LABELS)
    best = by_label(axes, "best F1")
    found = float(threshold.adaptive(SCORES.astype("f4"), LABELS))
    assert best.get_xdata().tolist() == [found]
    assert best.get_ydata()[0] == pytest.approx(counted(SCORES.astype("f4"), LABELS, found)[0])
    assert axes.get_xscale() == "log"


def test_many_thresholds_are_thinned_to_some_that_are_exact() -> None:
    scores, labels = RNG.normal(size=20_000), RNG.random(20_000) < 0.3
    normalizer = Normalizer.min_max((-4.0, 4.0), threshold=1.0)
    _, axes = plot.thresholds(normalizer, scores, labels)
    line = by_label(axes, "F1")
    x, y = line.get_data()
    assert 500 < len(x) <= 2003
    assert np.diff(x).max() < np.diff(np.sort(scores)).max() + (scores.max() - scores.min()) / 1000
    for at in (0, 7, len(x) // 2, len(x) - 1):
        assert y[at] == pytest.approx(counted(scores, labels, x[at])[0])
    assert float(threshold.adaptive(scores, labels)) in x


def test_thresholds_need_both_kinds() -> None:
    with pytest.raises(OptionError, match="of 80 samples 80 are labelled normal and 0 anomalous"):
        plot.thresholds(logarithmic(), SCORES, 0 * LABELS)
    with pytest.raises(ValueError, match="labels of shape"):
        plot.thresholds(logarithmic(), SCORES, LABELS[:-1])
    with pytest.raises(OptionError, match="pred_scores is empty"):
        plot.scores(logarithmic(), [])


def bars(axes: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Edges and heights of the bars of a group: the outline goes up and down at each edge."""
    outline = by_label(axes, name).get_xy()
    return outline[::2, 0], outline[1:-1:2, 1]


@pytest.mark.parametrize("is_log", [True, False])
def test_bars_are_percents_of_their_group(is_log: bool) -> None:
    scores = np.append(SCORES, [0.0, np.nan, np.inf]) if is_log else np.append(SCORES, [np.nan, np.inf])
    labels = np.append(LABELS, [0, 0, 1] if is_log else [0, 1])
    normalizer = logarithmic() if is_log else Normalizer.min_max((0.0, 4.0), threshold=2.0)
    _, (raw, normalized) = normalizer.plot(scores, labels)
    for name, label in (("normal", 0), ("anomalous", 1)):
        members = scores[labels == label]
        edges, heights = bars(raw, name)
        inside = members[np.isfinite(members) & (members > 0)]
        np.testing.assert_allclose(heights, 100 * np.histogram(inside, edges)[0] / len(members))
        assert heights.sum() == pytest.approx(100 * len(inside) / len(members))
        assert (
            by_label(raw, name).get_label()
            == f"{name}, n = {len(members)} ({len(members) - len(inside)} cannot be drawn)"
        )
        with np.errstate(divide="ignore"):
            u = norm.cdf((np.log(members) - MEAN) / STD - 2) if is_log else np.clip((members - 2) / 4 + 0.5, 0, 1)
        edges, heights = bars(normalized, name)
        np.testing.assert_allclose(heights, 100 * np.histogram(u[~np.isnan(u)], edges)[0] / len(members), atol=1e-9)
        assert (edges[0], edges[-1]) == (0, 1)
    assert (raw.get_xscale() == "log") == is_log
    assert raw.get_xlabel() == "raw image score" + is_log * " (log scale)"
    assert by_label(normalized, "threshold").get_xdata() == [0.5, 0.5]
    assert len(legend(raw)) == 3


def test_one_large_score_does_not_hide_the_others() -> None:
    normalizer = Normalizer.min_max((1.0, 4.0), threshold=2.0)
    for scores, scale in ((np.append(SCORES, 1e4), "log"), (np.append(SCORES, [0, 1e4]), "linear"), (SCORES, "linear")):
        assert plot.scores(normalizer, scores)[1][0].get_xscale() == scale
        assert plot.thresholds(normalizer, scores, np.arange(len(scores)) % 2)[1].get_xscale() == scale


def test_without_labels_there_is_one_group() -> None:
    _, (raw, _) = plot.scores(logarithmic(), SCORES)
    assert legend(raw)[:1] == ["all, n = 80"]
    _, (raw, _) = plot.scores(logarithmic(), np.full(3, 2.0), [0, 0, -1])
    assert legend(raw)[:1] == ["normal, n = 2"]


def named(axes: Any) -> dict[str, float]:
    (top,) = axes.child_axes
    return {text.get_text(): tick for text, tick in zip(top.get_xticklabels(), top.get_xticks(), strict=True)}


def test_statistics_are_named_where_there_is_room() -> None:
    _, (raw, _) = plot.scores(logarithmic(), np.exp([MEAN - 4 * STD, MEAN + 4 * STD]))
    expected = {f"{k:+d}\u03c3" if k else "mean": np.exp(MEAN + k * STD) for k in range(-3, 4)}
    assert named(raw) == {name: pytest.approx(value) for name, value in expected.items()}
    _, (raw, _) = plot.scores(logarithmic(), np.exp([MEAN - 40 * STD, MEAN + 40 * STD]))
    assert named(raw) == {"mean": pytest.approx(np.exp(MEAN))}
    dotted = [line.get_xdata()[0] for line in raw.lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(sorted(dotted), sorted(expected.values()))
    _, (raw, _) = plot.scores(Normalizer.of("two-slope", (0.5, 4.0), threshold=2.0), SCORES)
    assert named(raw) == {"min": 0.5, "max": 4.0}


def test_pixels_have_a_band_of_thresholds() -> None:
    means, stds = np.array([[0.0, 1.0]]), np.array([[0.5, 0.25]])
    normalizer = Normalizer.cdf((0.0, 0.5), (means, stds), threshold=2.0, center="pixel")
    maps = RNG.lognormal(size=(5, 1, 1, 2)).astype("f4")
    masks = np.zeros((5, 1, 2), bool)
    masks[0, 0, 1] = True
    _, (raw, normalized) = plot.scores(normalizer, maps, masks, level="pixel")
    low, high = np.exp([1.0, 1.5])
    box = by_label(raw, "threshold").get_bbox()
    assert (box.x0, box.x1) == (pytest.approx(low), pytest.approx(high))
    assert legend(raw) == ["normal, n = 9", "anomalous, n = 1", f"threshold {low:.4g} to {high:.4g} (2 sigmas)"]
    u = norm.cdf((np.log(maps[:, 0].astype("f8")) - means) / stds - 2)
    edges, heights = bars(normalized, "anomalous")
    np.testing.assert_allclose(heights, 100 * np.histogram(u[masks], edges)[0])
    with pytest.raises(NotFittedError):
        plot.scores(logarithmic(), maps, level="pixel")


@pytest.mark.clause("T7")
def test_promised_and_observed_false_alarms() -> None:
    fitted = RNG.normal(size=40)
    normalizer = Normalizer.of("normal", normal.update(normal.init(), fitted), threshold=1.5)
    normals = np.append(RNG.normal(size=99), np.nan)
    _, axes = plot.false_alarms(normalizer, np.append(normals, 9.0), np.append(np.zeros(100), 1))
    x = np.sort(normals[:-1])
    promised = t.sf((x - fitted.mean()) / fitted.std(ddof=1) / np.sqrt(1 + 1 / 40), 39)
    line = by_label(axes, "normals, n = 100")
    np.testing.assert_allclose(line.get_xdata()[:-1], 100 * promised)
    np.testing.assert_allclose(line.get_ydata()[:-1], [np.sum(normals >= each) for each in x])
    assert line.get_ydata()[-1] == 0
    assert line.get_drawstyle() == "steps-pre"
    raw = fitted.mean() + 1.5 * fitted.std(ddof=1)
    here = t.sf(1.5 / np.sqrt(1 + 1 / 40), 39), np.mean(normals >= raw)
    assert by_label(axes, "threshold").get_xdata()[0] == pytest.approx(100 * here[0])
    assert by_label(axes, "threshold").get_ydata()[0] == pytest.approx(100 * here[1])
    assert legend(axes)[-1].endswith(f"{100 * here[0]:.2g}% promised, {100 * here[1]:.2g}% observed")


@pytest.mark.parametrize("fitted_on", [25, 0], ids=["fitted", "known"])
def test_the_band_holds_what_chance_explains(fitted_on: int) -> None:
    record = normal.update(normal.init(), RNG.normal(size=fitted_on)) if fitted_on else (0.0, 1.0)
    fit = Normalizer.of("normal", record, threshold=0.0).to_fit()
    rates, trials, samples = np.array([0.02, 0.1, 0.4]), 20_000, 50
    low, high = band(rates, fit, samples)
    mean, std = np.zeros(trials), np.ones(trials)
    z = norm.isf(rates)
    if fitted_on:  # as often as there are trials, and each fit makes its own promise
        mean = RNG.normal(size=trials) / np.sqrt(fitted_on)
        std = np.sqrt(RNG.chisquare(fitted_on - 1, trials) / (fitted_on - 1))
        z = t.isf(rates, fitted_on - 1) * np.sqrt(1 + 1 / fitted_on)
    flagged = RNG.binomial(samples, norm.sf(mean[:, None] + z * std[:, None]))
    slack = 5 * np.sqrt(0.025 / trials)
    assert np.all((flagged < low * samples).mean(0) < 0.025 + slack)
    assert np.all((flagged > high * samples).mean(0) < 0.025 + slack)
    assert np.all((flagged <= low * samples).mean(0) > 0.025 - slack)  # and no wider than that
    assert np.all((flagged >= high * samples).mean(0) > 0.025 - slack)


def test_false_alarms_need_normals_and_a_promise() -> None:
    with pytest.raises(OptionError, match="none of 80 samples is a normal one"):
        plot.false_alarms(logarithmic(), SCORES, LABELS * 0 + 1)
    with pytest.raises(NotFittedError, match="nothing is known about"):
        plot.false_alarms(Normalizer.min_max((0.0, 4.0), threshold=2.0), NORMALS)


MAPS = RNG.uniform(0, 1, size=(5, 4, 6)).astype("f4")
MAPS[1, :2, 3:] += 3  # touches the border
FLAGS = Normalizer.min_max((0.0, 4.0), (0.0, 4.0), threshold=2.0)
IMAGES = RNG.integers(0, 256, size=(5, 8, 12, 3), dtype=np.uint8)


def bounds(axes: Any, color: str) -> tuple[float, ...]:
    """Left, right, top and bottom of all outlines of that color, as shares of the picture."""
    from matplotlib.colors import to_rgba

    paths = [each for each in axes.collections if np.allclose(each.get_edgecolor()[:1], to_rgba(color))]
    points = np.concatenate([path.vertices for each in paths for path in each.get_paths()])
    return points[:, 0].min(), points[:, 0].max(), points[:, 1].min(), points[:, 1].max()


@pytest.mark.parametrize(
    "layout", [lambda m: m, lambda m: m[:, None], lambda m: m[..., None]], ids=["BHW", "B1HW", "BHW1"]
)
@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (IMAGES, IMAGES),
        (np.moveaxis(IMAGES, 3, 1) / 255, IMAGES),
        (IMAGES[..., :1], IMAGES[..., [0, 0, 0]]),
        (IMAGES[..., 0], IMAGES[..., [0, 0, 0]]),
    ],
    ids=["BHWC", "BCHW of floats", "one channel", "BHW"],
)
def test_rows_of_maps(images: Any, expected: np.ndarray, layout: Any) -> None:
    masks = np.zeros((5, 4, 6))
    masks[1, 3, 0] = 255
    _, axes = plot.maps(FLAGS, images, layout(MAPS), layout(masks), index=[1, 4])
    assert axes.shape == (2, 4)
    for row, index in zip(axes, (1, 4), strict=True):
        shown = [cell.images[0].get_array() for cell in row]
        np.testing.assert_array_equal(shown[0], expected[index])
        np.testing.assert_array_equal(shown[3], expected[index])
        np.testing.assert_array_equal(shown[1], MAPS[index])
        np.testing.assert_allclose(shown[2], np.clip((MAPS[index] - 2) / 4 + 0.5, 0, 1), rtol=1e-6)
        assert row[1].images[0].get_clim() == (MAPS[[1, 4]].min(), MAPS[[1, 4]].max())
        assert row[2].images[0].get_clim() == (0, 1)
        assert row[0].get_ylabel() == f"image {index}"
        assert all(cell.images[0].get_extent() == [0, 1, 1, 0] for cell in row)
    # Within half a pixel of the map, where the contour runs, and closed at the border.
    assert bounds(axes[0, 3], style.FLAGGED) == pytest.approx((3 / 6, 1, 0, 2 / 4), abs=1e-6)
    assert bounds(axes[0, 3], style.TRUTH) == pytest.approx((0, 1 / 6, 3 / 4, 1), abs=1e-6)
    assert not axes[1, 3].collections  # nothing is flagged


def test_standardized_images_are_spread_over_their_range() -> None:
    images = np.array([[[-2.0, 0.0], [2.0, np.nan]], [[0.25, 0.5], [0.5, 1.0]]])
    _, axes = plot.maps(FLAGS, images, MAPS[:2])
    assert axes[0, 0].images[0].get_array()[..., 0].tolist() == [[0, 128], [255, 0]]
    assert axes[1, 0].images[0].get_array()[..., 0].tolist() == [[64, 128], [128, 255]]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(OptionError, match="there are 5 images, 4 anomaly_maps; give as many of each"):
        plot.maps(FLAGS, IMAGES, MAPS[:4])
    with pytest.raises(OptionError, match=r"index=\[5\] is not in a batch of 5"):
        plot.maps(FLAGS, IMAGES, MAPS, index=[5])
    with pytest.raises(OptionError, match=r"images have shape \(4, 2, 4, 6\)"):
        plot.maps(FLAGS, np.zeros((5, 2, 4, 6)), MAPS)
    _, axes = pyplot.subplots()
    with pytest.raises(OptionError, match=r"ax holds 1 objects; 2 matplotlib\.axes\.Axes are needed"):
        plot.scores(FLAGS, SCORES, ax=axes)


def test_given_axes_are_drawn_into() -> None:
    figure, axes = pyplot.subplots(2, 4)
    assert plot.maps(FLAGS, IMAGES, MAPS, index=[0, 1], axes=axes)[0] is figure
    part = pyplot.figure().add_subfigure(pyplot.GridSpec(1, 1)[0])
    cells = part.subplots(1, 3)
    found, drawn = plot.scores(FLAGS, SCORES, ax=cells[:2])
    assert found is part.figure
    assert [*drawn] == [*cells[:2]]
    assert plot.thresholds(FLAGS, SCORES, LABELS, ax=cells[2])[1] is cells[2]


def luminance(color: str) -> float:
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_colors_are_legible_on_white_and_on_a_dark_page() -> None:
    for color in (style.NORMAL, style.ANOMALOUS, style.F1, style.PRECISION, style.INK):
        own = luminance(color) + 0.05
        assert own / (luminance("#181818") + 0.05) > 3, color
        assert 1.05 / own > 3, color


def test_pictures_for_either_ground_have_none_of_their_own() -> None:
    with pyplot.rc_context(dict(plot.EITHER_GROUND)):
        file = io.StringIO()
        plot.thresholds(logarithmic(), SCORES, LABELS)[0].savefig(file, format="svg")
    drawn = file.getvalue()
    assert style.INK in drawn
    assert style.F1 in drawn
    assert not any(color in drawn for color in ("#ffffff", "#000000", "white", "black"))


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "anomnorm-core\[plot\]"'):
        logarithmic().plot(SCORES)


def test_a_fit_of_records_can_be_drawn_as_well() -> None:
    normalizer = Normalizer.cdf(cdf.update(cdf.init(), NORMALS), threshold=2.0)
    assert plot.scores(normalizer, SCORES.astype("f2"))[0] is not plot.false_alarms(normalizer, NORMALS)[0]
    assert Normalizer.min_max(min_max.update(min_max.init(), SCORES), threshold=2.0).plot(SCORES)[1].shape == (2,)
