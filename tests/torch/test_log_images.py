"""Histograms of validation runs in loggers, and pictures of metrics."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from scripted_module import ScriptedModule, loader, samples, trainer

from anomnorm_core import NotFittedError, OptionError
from anomnorm_torch import AnomalyScoreDistribution, CdfNormalizationCallback, MinMax, MinMaxNormalizationCallback

RNG = np.random.default_rng(18)
SCORES, LABELS = np.round(RNG.lognormal(size=20), 3).astype("f4"), np.repeat([0, 1, -1], [12, 6, 2])


class PictureLogger(CSVLogger):
    """Takes pictures as that of Weights & Biases does."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.pictures: list[tuple[str, Any, int | None]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.pictures += [(key, image, step) for image in images]


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("prefix", ["normalization", ""])
def test_each_validation_run_gives_a_histogram(prefix: str, tmp_path: Path) -> None:
    callback = MinMaxNormalizationCallback("adaptive", log_images=True, log_prefix=prefix)
    takes, plain, shown = PictureLogger(tmp_path), CSVLogger(tmp_path), pyplot.get_fignums()
    data = loader(samples(SCORES, labels=LABELS))
    run = trainer(callback, logger=[takes, plain], max_epochs=2)
    run.fit(ScriptedModule(), data, data)
    name = "normalization/image_scores" if prefix else "image_scores"
    assert [(key, step) for key, _, step in takes.pictures] == [(name, 7), (name, 14)]
    known, anomalous = SCORES[LABELS >= 0], SCORES[LABELS == 1]
    best = max(anomalous, key=lambda at: (np.sum(anomalous >= at) / (6 + np.sum(known >= at)), at))
    for gain, (_, figure, _) in zip((1, 2), takes.pictures, strict=True):
        raw, normalized = figure.axes
        assert legend(raw)[:2] == ["normal, n = 12", "anomalous, n = 6"]
        (threshold,) = [line for line in raw.lines if str(line.get_label()).startswith("threshold")]
        assert threshold.get_xdata() == pytest.approx([gain * best] * 2)
        assert raw.child_axes[0].get_xticks().tolist() == pytest.approx([gain * SCORES.min(), gain * SCORES.max()])
        assert normalized.get_xlabel() == "normalized image score"
    assert pyplot.get_fignums() == shown


def test_unlabelled_runs_and_a_module_with_a_threshold_of_its_own(tmp_path: Path) -> None:
    callback, takes = CdfNormalizationCallback(log_images=True), PictureLogger(tmp_path)
    data = loader(samples(SCORES, labels=False))
    trainer(callback, logger=takes).fit(ScriptedModule(threshold=1.5), data, data)
    ((_, figure, _),) = takes.pictures
    assert legend(figure.axes[0])[0] == "all, n = 20"
    assert legend(figure.axes[0])[1].endswith("(1.5 sigmas)")


def test_without_a_logger_or_prefix(tmp_path: Path) -> None:
    data = loader(samples(SCORES, labels=LABELS))
    run = trainer(MinMaxNormalizationCallback(2.0, log_images=True), logger=CSVLogger(tmp_path), max_epochs=2)
    with pytest.warns(UserWarning, match="log_images=True: CSVLogger takes no pictures") as warned:
        run.fit(ScriptedModule(), data, data)
    assert len([each for each in warned if "log_images" in str(each.message)]) == 1
    with pytest.warns(UserWarning, match="log_images=True: the trainer has no logger"):
        trainer(MinMaxNormalizationCallback(2.0, log_images=True)).validate(ScriptedModule(), data, verbose=False)
    with pytest.raises(OptionError, match="nothing is logged with log_prefix=None"):
        MinMaxNormalizationCallback(log_images=True, log_prefix=None)
    takes = PictureLogger(tmp_path)
    trainer(MinMaxNormalizationCallback(2.0), logger=takes).validate(ScriptedModule(), data, verbose=False)
    assert not takes.pictures
    assert "log_images=True" in repr(MinMaxNormalizationCallback(log_images=True))


@pytest.mark.skipif(not (find_spec("tensorboard") or find_spec("tensorboardX")), reason="no TensorBoard")
def test_tensorboard_gets_a_figure(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path, name="", version="")
    data = loader(samples(SCORES, labels=LABELS))
    run = trainer(MinMaxNormalizationCallback(2.0, log_images=True), logger=board)
    run.validate(ScriptedModule(), data, verbose=False)
    board.experiment.flush()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"normalization/image_scores" in events.read_bytes()
    assert b"\x89PNG" in events.read_bytes()


def test_metrics_draw_their_statistics() -> None:
    mpl.use("agg")
    scores, maps = torch.tensor(SCORES), torch.rand(20, 2, 3)
    ranges, moments = MinMax(), AnomalyScoreDistribution()
    for metric in (ranges, moments):
        metric.update(scores, maps)
    logs = np.log(SCORES.astype("f8"))
    for metric, expected in (
        (ranges, {"min": SCORES.min(), "max": SCORES.max(), "pixel_min": maps.min(), "pixel_max": maps.max()}),
        (moments, {"mean": logs.mean(), "std": logs.std(ddof=1)}),
    ):
        figure, axes = metric.plot()
        assert {line.get_label(): line.get_ydata()[0] for line in axes.lines} == pytest.approx(expected, rel=1e-5)
        first = metric.compute()
        metric.update(2 * scores)
        figure, axes = metric.plot([first, metric.compute()])
        assert [line.get_ydata().shape for line in axes.lines] == [(2,)] * len(expected)
        assert figure.axes == [axes]
        assert metric.plot(first, ax=axes)[1] is axes
    only = AnomalyScoreDistribution()
    only.update(None, maps)
    with pytest.raises(NotFittedError, match="no image-level statistics to draw"):
        only.plot()
    pyplot.close("all")
