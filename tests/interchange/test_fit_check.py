"""The check of a fit finds the same in a Lightning training and in a loop of hooks (clause S9)."""

import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from expected import fit_check, moments
from scripted_module import ScriptedModule, loader, samples, trainer

from anomnorm_core import FitWarning
from anomnorm_jax import CdfNormalizationHook
from anomnorm_torch import CdfNormalizationCallback

RNG = np.random.default_rng(61)
TRAINING = np.exp(RNG.normal(size=60)).astype("f4")
SCORES = np.exp(RNG.gumbel(0.8, 1.2, size=120)).astype("f4")
LABELS = np.arange(120) % 4 - 1  # -1 is ignored
NORMAL = SCORES[LABELS == 0]


@pytest.mark.clause("S9")
@pytest.mark.parametrize("source", ["train", "validation"])
def test_both_packages_find_the_same_and_say_it_in_the_same_words(source: str) -> None:
    fit = TRAINING if source == "train" else NORMAL
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FitWarning)
        callback = CdfNormalizationCallback(1.0, source=source)
        data: Any = loader(samples(SCORES, None, LABELS), 16)
        trainer(callback).fit(ScriptedModule(), loader(samples(TRAINING)), data)
        hook = CdfNormalizationHook(1.0, source=source, progress=False)
        run = hook.on_validation_epoch_start(
            hook.setup({"pred_scores": SCORES}), dict, [{"pred_scores": fit, "label": np.zeros(len(fit), int)}]
        )
        run, _ = hook.on_validation_batch_end(run, {"pred_scores": SCORES, "label": LABELS})
        hook.on_validation_epoch_end(run)
    mean, std = moments(fit)
    z = (np.log(NORMAL.astype("f8")) - mean) / std
    expected = pytest.approx(fit_check(z, len(fit), unseen=source == "train"), rel=1e-5, abs=1e-6)
    found = callback.fit_check, hook.fit_check(run)
    for check in found:
        assert check is not None
        assert asdict(check) == expected
    messages = [str(each.message).split(" (Their")[0] for each in caught if each.category is FitWarning]
    assert len(messages) == 2 * (source == "train")
    assert len(set(messages)) == (source == "train")
