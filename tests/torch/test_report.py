"""The report of a callback: that of its last validation run, in real trainers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from report_page import Page
from scripted_module import ScriptedModule, loader, samples, trainer

from anomnorm_core import NotFittedError
from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback

RNG = np.random.default_rng(3)
SCORES = np.exp(np.r_[RNG.normal(size=30), RNG.normal(3, 1, size=10)]).astype("f4")
LABELS = np.r_[np.zeros(30, int), np.ones(9, int), -1]
VALIDATION = loader(samples(SCORES, None, LABELS))


def test_the_report_has_the_last_validation_run_at_the_present_threshold(tmp_path: Path) -> None:
    callback, module, path = CdfNormalizationCallback(source="validation"), ScriptedModule(), tmp_path / "report.html"
    run = trainer(callback, max_epochs=2)
    run.fit(module, loader(samples(SCORES[:30])), VALIDATION)
    callback.report(path, module, names=[f"{i}.png" for i in range(40)], title="Run")
    page = Page(path)
    flagged = (
        np.float32(2) * SCORES >= callback.thresholds["image"].raw
    )  # the module doubles scores in its second epoch
    table = "Samples and how many of them are flagged"
    expected = {"All": flagged.sum(), "Normal": flagged[:30].sum(), "Anomalous": flagged[30:39].sum()}
    assert page.numbers(table, "Flagged") == expected | {"Ignored": flagged[39:].sum()}
    lowest = 30 + int(np.argmin(SCORES[30:39]))
    assert page.tables["Anomalies with the lowest scores"][1][0] == f"{lowest}.png"

    callback.with_threshold(module, float(SCORES.max()) * 4, units="raw")
    callback.report(path, module)
    assert Page(path).numbers(table, "Flagged")["All"] == 0

    run.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert not checkpoint["callbacks"]
    assert 40 not in {each.numel() for each in checkpoint["state_dict"].values()}


def test_scores_of_another_fit_are_not_reported(tmp_path: Path) -> None:
    callback, module, path = MinMaxNormalizationCallback(), ScriptedModule(), tmp_path / "report.html"
    run = trainer(callback)
    with pytest.raises(NotFittedError):
        callback.report(path, module)
    run.validate(module, VALIDATION, verbose=False)
    run.save_checkpoint(tmp_path / "a.ckpt")
    run.validate(module, loader(samples(2 * SCORES, None, LABELS)), verbose=False)
    callback.report(path, module)
    path.unlink()
    run.test(module, VALIDATION, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    with pytest.raises(NotFittedError, match=r"trainer\.validate"):
        callback.report(path, module)
    assert not path.exists()


def test_a_run_that_reads_no_labels_says_so(tmp_path: Path) -> None:
    callback, module = MinMaxNormalizationCallback(2.0), ScriptedModule()
    trainer(callback).validate(module, VALIDATION, verbose=False)
    callback.report(tmp_path / "report.html", module)
    page = Page(tmp_path / "report.html")
    assert "No labels were given" in page.text
    assert page.numbers("Samples and how many of them are flagged", "Flagged") == {"All": np.sum(SCORES >= 2)}
