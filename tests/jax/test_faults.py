"""An error at any stage of a run leaves what was before it usable, and a repeated run gives the undisturbed result."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook

pytestmark = pytest.mark.clause("L6")

RNG = np.random.default_rng(89)
LABELS = np.arange(12) % 3 == 1
SCORES = np.exp(RNG.normal(size=12) + LABELS).astype("f4")
MAPS = np.exp(RNG.normal(size=(12, 3, 3)) + LABELS[:, None, None]).astype("f4")
HOOKS = pytest.mark.parametrize("hook", [MinMaxNormalizationHook(), CdfNormalizationHook(progress=False)], ids=type)
STAGES = ("start", "collection", "update", "end", "save")


class PowerCutError(Exception):
    pass


def batches(gain: float) -> list[dict[str, Any]]:
    """Outputs of a model whose scores depend on its only weight."""
    data = {"pred_scores": gain * SCORES, "anomaly_maps": gain * MAPS, "label": LABELS.astype("i4")}
    return [{name: jnp.asarray(value[i : i + 4]) for name, value in data.items()} for i in range(0, 12, 4)]


def epoch(hook: Any, before: tuple[Any, Any], gain: float, dies_at: str | None) -> tuple[Any, Any]:
    """A validation run after ``before``, a run and a normalizer: those of its end."""
    run, normalizer = before

    def stage(name: str, condition: bool = True) -> None:
        if name == dies_at and condition:
            raise PowerCutError

    def predict(batch: dict[str, Any]) -> dict[str, Any]:
        stage("collection", bool(batch["pred_scores"][0] != normals[0]["pred_scores"][0]))  # in the second batch
        return batch

    outputs = batches(gain)
    normals = [{name: value[batch["label"] == 0] for name, value in batch.items()} for batch in outputs]
    stage("start")
    run = hook.on_validation_epoch_start(run, predict, normals)
    for position, batch in enumerate(outputs):
        stage("update", position == 1)
        run, _ = hook.on_validation_batch_end(run, batch)
    stage("end")
    normalizer = hook.on_validation_epoch_end(run, normalizer)
    stage("save")
    return run, normalizer


@HOOKS
@pytest.mark.parametrize("dies_at", STAGES)
@pytest.mark.parametrize("how", ["in the same process", "from a checkpoint"])
def test_an_interrupted_run_is_repeated(hook: Any, dies_at: str, how: str) -> None:
    if dies_at == "collection" and isinstance(hook, MinMaxNormalizationHook):
        pytest.skip("nothing is collected")
    fresh = hook.setup(batches(1.0)[0]), hook.empty(batches(1.0)[0])
    first = epoch(hook, fresh, 1.0, None)
    first = first[0], hook.with_threshold(first[1], pixel_threshold=2.0)
    _, expected = epoch(hook, first, 2.0, None)
    before = jax.tree.map(np.array, first)
    with pytest.raises(PowerCutError):
        epoch(hook, first, 2.0, dies_at)
    jax.tree.map(np.testing.assert_array_equal, before, first)  # what was before is untouched
    begun = first if how == "in the same process" else (fresh[0], jax.tree.map(jnp.array, before[1]))
    _, found = epoch(hook, begun, 2.0, None)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
