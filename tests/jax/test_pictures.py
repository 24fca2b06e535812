"""Pictures and heat maps of JAX arrays: those of the same numbers in NumPy."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import anomnorm_core
from anomnorm_jax import HeatMapFolder, MinMaxNormalizationHook, Normalizer, plot, write_heat_maps

pyplot = pytest.importorskip("matplotlib.pyplot")
RNG = np.random.default_rng(18)
SCORES, MAPS = RNG.uniform(1, 4, size=6).astype("f4"), RNG.uniform(0, 4, size=(6, 4, 5, 1)).astype("f4")
LABELS, IMAGES = np.array([0, 0, 0, 1, 1, 1]), RNG.uniform(size=(6, 8, 10, 3)).astype("f4")


def test_pictures_of_a_hook_are_those_of_numpy(tmp_path: Path) -> None:
    hook = MinMaxNormalizationHook()
    raw = {"pred_scores": jnp.asarray(SCORES), "anomaly_maps": jnp.asarray(MAPS), "label": jnp.asarray(LABELS)}
    run = hook.on_validation_epoch_start(hook.setup(raw))
    run, _ = hook.on_validation_batch_end(run, raw)
    normalizer: Any = hook.on_validation_epoch_end(run)
    assert isinstance(normalizer, Normalizer)
    normalizer.save(tmp_path / "file")
    portable = anomnorm_core.Normalizer.load(tmp_path / "file")
    given = jnp.asarray(SCORES), jnp.asarray(LABELS)
    pairs = [
        (normalizer.plot(*given), portable.plot(SCORES, LABELS)),
        (plot.thresholds(normalizer, *given), plot.thresholds(portable, SCORES, LABELS)),
        (plot.false_alarms(normalizer, *given), plot.false_alarms(portable, SCORES, LABELS)),
    ]
    for (_, mine), (_, theirs) in pairs:
        for found, expected in zip(np.ravel(mine), np.ravel(theirs), strict=True):
            assert found.lines
            for line, other in zip(found.lines, expected.lines, strict=True):
                np.testing.assert_array_equal(line.get_xydata(), other.get_xydata())
    _, cells = plot.maps(normalizer, jnp.asarray(IMAGES), raw["anomaly_maps"], index=[5])
    np.testing.assert_array_equal(cells[0, 1].images[0].get_array(), MAPS[5, ..., 0])
    pyplot.close("all")

    result = normalizer(raw["pred_scores"], raw["anomaly_maps"], extras=["raw"])
    mine = write_heat_maps(tmp_path / "jax", jnp.asarray(IMAGES), result, names=[f"{i}.png" for i in range(6)])
    with HeatMapFolder(tmp_path / "numpy") as folder:
        expected = {name: np.asarray(value) for name, value in result.items()}
        theirs = folder.add(IMAGES, expected, [f"{i}.png" for i in range(6)])
    for one, other in zip(
        (*mine, tmp_path / "jax" / "scores.csv"), (*theirs, tmp_path / "numpy" / "scores.csv"), strict=True
    ):
        assert one is not None
        assert other is not None
        assert one.read_bytes() == other.read_bytes()
    lines = (tmp_path / "jax" / "scores.csv").read_text().splitlines()
    assert lines[0] == "name,heat_map,pred_scores_raw,pred_scores,pred_labels"
    assert len(lines) == 7
