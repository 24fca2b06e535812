"""A report about a run of a hook, and about arrays of JAX."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from report_page import Page

from anomnorm_core import NotFittedError
from anomnorm_jax import MinMaxNormalizationHook

RNG = np.random.default_rng(5)
SCORES = RNG.gumbel(size=(4, 10)).astype("f4")
LABELS = RNG.integers(-1, 2, size=(4, 10))


def test_the_scores_of_a_run_have_a_report(tmp_path: Path) -> None:
    hook = MinMaxNormalizationHook(capacity=64)
    run = hook.on_validation_epoch_start(hook.setup({"pred_scores": SCORES[0]}))
    valid = jnp.arange(10) < 9
    for scores, labels in zip(SCORES, LABELS, strict=True):
        run, _ = hook.on_validation_batch_end(run, {"pred_scores": scores, "label": labels, "valid": valid})
    normalizer = hook.on_validation_epoch_end(run)
    scores, labels = hook.labelled_scores(run)
    np.testing.assert_array_equal(scores, SCORES[:, :9].ravel())
    np.testing.assert_array_equal(labels, LABELS[:, :9].ravel())
    normalizer.report(tmp_path / "a.html", jnp.asarray(scores), jnp.asarray(labels))
    flagged = scores >= normalizer.thresholds["image"].raw
    table = Page(tmp_path / "a.html").numbers("Samples and how many of them are flagged", "Flagged")
    assert table == {"All": flagged.sum()} | {
        name: flagged[labels == label].sum() for name, label in (("Normal", 0), ("Anomalous", 1), ("Ignored", -1))
    }


def test_samples_without_labels_have_none_and_a_run_that_keeps_none_says_so() -> None:
    hook = MinMaxNormalizationHook("normal_quantile")
    run = hook.on_validation_epoch_start(hook.setup({"pred_scores": SCORES[0]}))
    run, _ = hook.on_validation_batch_end(run, {"pred_scores": SCORES[0]})
    assert hook.labelled_scores(run)[1] is None
    hook = MinMaxNormalizationHook(1.0)
    with pytest.raises(NotFittedError, match="keeps no image scores"):
        hook.labelled_scores(hook.setup({"pred_scores": SCORES[0]}))
