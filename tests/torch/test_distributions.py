"""Both Lightning distributions: either callback under either Trainer, in a list and alone."""

import subprocess
import sys
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from scripted_module import loader, numbers, samples

import anomnorm_torch
import anomnorm_torch.lightning

RNG = np.random.default_rng(29)
SCORES, MAPS = np.exp(RNG.normal(size=12)).astype("f4"), np.exp(RNG.normal(size=(12, 2, 3))).astype("f4")
LABELS = (SCORES > 1.5).astype(int)
TRAIN, DATA = samples(SCORES, MAPS), samples(SCORES, MAPS, LABELS, MAPS > 2)
FRAMEWORKS = {"pytorch_lightning": anomnorm_torch, "lightning.pytorch": anomnorm_torch.lightning}
NAMES = ["MinMaxNormalizationCallback", "CdfNormalizationCallback", "NormalizationCallback"]


def make(package: Any, name: str) -> Any:
    """The callback of that name, of the method that it needs."""
    return getattr(package, name)(*(["two-slope"] if name == "NormalizationCallback" else []))


def module(framework: Any) -> Any:
    class Module(framework.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return 0.0 * self.weight

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return {
                "pred_scores": batch["score"],
                "anomaly_maps": batch["map"],
                "label": batch["label"],
                "mask": batch.get("mask"),
            }

        validation_step = test_step = predict_step

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def trained(framework: Any, callbacks: Any) -> tuple[Any, Any]:
    trainer = framework.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    fitted = module(framework)
    trainer.fit(fitted, loader(TRAIN), loader(DATA))
    outputs = trainer.predict(fitted, loader(DATA))
    return fitted, {name: torch.cat([entry[name] for entry in outputs]) for name in ("pred_scores", "pred_masks")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ours", FRAMEWORKS)
@pytest.mark.parametrize("theirs", FRAMEWORKS)
def test_either_callback_works_in_a_list_of_either_trainer(name: str, ours: str, theirs: str) -> None:
    framework = import_module(theirs)
    callback = make(FRAMEWORKS[ours], name)
    fitted, found = trained(framework, [callback])
    reference = make(anomnorm_torch, name)
    expected_fit, expected = trained(import_module("pytorch_lightning"), [reference])
    for key, values in expected.items():
        assert found[key].tolist() == values.tolist(), key
    assert numbers(callback) == numbers(reference)
    for key, value in expected_fit.normalization_metrics.state_dict().items():
        np.testing.assert_array_equal(fitted.normalization_metrics.state_dict()[key].numpy(), value.numpy())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ours", FRAMEWORKS)
@pytest.mark.parametrize("theirs", FRAMEWORKS)
def test_alone_it_works_with_its_own_trainer_and_says_what_to_import_with_the_other(
    name: str, ours: str, theirs: str
) -> None:
    framework = import_module(theirs)
    callback = make(FRAMEWORKS[ours], name)
    if ours == theirs:
        fitted, _ = trained(framework, callback)
        assert fitted.normalization_metrics.fit.pixel is not None
        return
    right = FRAMEWORKS[theirs].__name__
    with pytest.raises(TypeError, match=rf"callbacks=\[callback\].* from {right} import {name} fits that"):
        trained(framework, callback)


@pytest.mark.parametrize("name", NAMES)
def test_the_classes_differ_in_their_base_alone(name: str) -> None:
    mine, other = getattr(anomnorm_torch, name), getattr(anomnorm_torch.lightning, name)
    assert set(vars(mine)) - {"__annotate__"} <= {"__doc__", "__module__", "__parameters__", "other_import"} | {
        name for name in vars(mine) if name.startswith(("__orig", "__static", "__first", "_abc", "__abstract"))
    }
    assert mine.__doc__ == other.__doc__
    assert mine.__mro__[1] is other.__mro__[1]


@pytest.mark.parametrize(("imported", "absent"), [(0, 1), (1, 0)])
def test_importing_one_does_not_import_the_other(imported: int, absent: int) -> None:
    statements = ["from anomnorm_torch import MinMaxNormalizationCallback", "import anomnorm_torch.lightning"]
    distributions = ["pytorch_lightning", "lightning.pytorch"]
    check = f"import sys; sys.exit({distributions[absent]!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", f"{statements[imported]}\n{check}"], check=False).returncode == 0


def test_a_stranger_to_both_is_refused() -> None:
    from anomnorm_torch.framework import part

    with pytest.raises(TypeError, match=r"object belongs to neither pytorch_lightning nor lightning\.pytorch"):
        part(object(), "utilities.seed")
