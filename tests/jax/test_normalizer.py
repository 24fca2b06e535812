"""The normalizer as a pytree, and from hooks."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from anomnorm_core import AnomnormError, NotFittedError
from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook, Normalizer, threshold

RNG = np.random.default_rng(3)
SCORES = np.exp(RNG.normal(size=32)).astype(np.float32)
MAPS = np.exp(RNG.normal(size=(32, 1, 4, 5))).astype(np.float32)
MEAN, STD = RNG.normal(size=(4, 5)) * 0.1, RNG.uniform(0.3, 0.8, size=(4, 5))


def normalizers() -> dict[str, Normalizer]:
    return {
        "min-max": Normalizer.min_max((0.1, 4.0), (0.0, 6.0), threshold=1.5),
        "cdf": Normalizer.cdf((0.1, 0.4), (MEAN, STD), threshold=2.0, pixel_threshold=1.0),
        "cdf raw": Normalizer.cdf((0.1, 0.4), (MEAN, STD), threshold=2.0, units="raw"),
    }


KINDS = pytest.mark.parametrize("kind", normalizers())


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(np.asarray(a[name]), np.asarray(b[name])) for name in a)


@KINDS
def test_it_is_a_pytree_whose_values_compile_nothing_anew(kind: str) -> None:
    traces = 0

    @jax.jit
    def score(normalizer: Normalizer, scores: jax.Array, maps: jax.Array) -> dict[str, jax.Array]:
        nonlocal traces
        traces += 1
        return normalizer(scores, maps)

    first = normalizers()[kind]
    moved = (
        first.with_threshold(1.25, pixel_threshold=1.0) if kind == "cdf" else first.with_threshold(1.25, units="raw")
    )
    refitted = jax.tree.map(lambda leaf: leaf * 1.01, moved)
    for normalizer in (first, moved, refitted):
        assert same(score(normalizer, SCORES, MAPS), normalizer(SCORES, MAPS))
    assert traces == 1
    leaves, structure = jax.tree.flatten(first)
    assert same(jax.tree.unflatten(structure, leaves)(SCORES), first(SCORES))


def test_a_call_is_one_program_and_raw_values_are_not_copied() -> None:
    normalizer = normalizers()["cdf"]
    scores = jnp.asarray(SCORES)
    result = normalizer(scores, MAPS, extras=("raw", "z"))
    assert result["pred_scores_raw"] is scores
    text = str(jax.make_jaxpr(lambda n, x, m: n(x, m))(normalizer, scores, MAPS))
    assert "callback" not in text
    assert "device_put" not in text


@pytest.mark.clause("T4")
@KINDS
def test_thresholds_can_be_traced(kind: str) -> None:
    normalizer = normalizers()[kind]
    sweep = jnp.asarray([0.5, 1.5, 2.5])
    flagged = jax.vmap(lambda t: normalizer(SCORES, threshold=t)["pred_labels"].sum())(sweep)
    moved = jax.jit(lambda n, t: n.with_threshold(t))(normalizer, sweep[1])
    assert int(flagged[1]) == int(moved(SCORES)["pred_labels"].sum())
    constant = jax.jit(lambda n: n.with_threshold(1.5))(normalizer)
    assert same(constant(SCORES), moved(SCORES))
    assert flagged[0] >= flagged[1] >= flagged[2]
    assert flagged[0] > flagged[2]


@KINDS
def test_gradients_are_finite(kind: str) -> None:
    normalizer = normalizers()[kind]
    edge = jnp.asarray([0.0, -1.0, 1.5, 1e30, 2.0])
    gradient = jax.grad(lambda x: normalizer(x)["pred_scores"].sum())(edge)
    assert jnp.isfinite(gradient).all()
    assert gradient[2] > 0


def test_a_tracer_has_a_readable_repr() -> None:
    seen = []
    jax.jit(lambda n: seen.append(repr(n)))(normalizers()["cdf"])
    assert seen == ["Normalizer(method='cdf', traced)"]


def test_strict_promotion_and_ranks() -> None:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for kind, normalizer in normalizers().items():
            names = ("margin",) if kind == "min-max" else ("z",)
            result = normalizer(jnp.asarray(SCORES, jnp.bfloat16), MAPS, extras=names, threshold=1.0)
            assert result["pred_scores"].dtype == jnp.bfloat16
            assert normalizer.denormalize(result["pred_scores"], result["anomaly_maps"])
        labels, masks = jnp.asarray(SCORES > 2), jnp.asarray(MAPS > 3)
        record = threshold.update(threshold.init(), jnp.asarray(MAPS), masks)
        for found in (
            threshold.adaptive(jnp.asarray(SCORES), labels),
            threshold.normal_quantile(jnp.asarray(SCORES), 0.9, labels=labels),
            threshold.streamed_adaptive(record),
            threshold.streamed_quantile(record, 0.9),
        ):
            assert jnp.isfinite(found)


# Hooks.


def fit(hook: Any, *, maps: bool = True) -> Any:
    batch = {"pred_scores": SCORES} | ({"anomaly_maps": MAPS} if maps else {})
    state = hook.setup(batch)
    if isinstance(hook, CdfNormalizationHook):
        state = hook.on_validation_epoch_start(state, lambda batch: batch, [batch])
    else:
        state = hook.on_validation_epoch_start(state)
        state, _ = hook.on_validation_batch_end(state, batch)
    return hook.on_validation_epoch_end(state)


HOOKS = {
    "min-max": MinMaxNormalizationHook(1.5),
    "min-max shared": MinMaxNormalizationHook(1.5, pixel_threshold=2.0, shared_range=True),
    "cdf": CdfNormalizationHook(1.0, progress=False),
    "cdf pixel": CdfNormalizationHook(1.0, pixel_threshold=0.5, center="pixel", progress=False),
}


@pytest.mark.clause("P1")
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("maps", [True, False])
def test_a_hooks_normalizer_gives_what_its_steps_give(kind: str, maps: bool, tmp_path: Path) -> None:
    hook = HOOKS[kind]
    state = fit(hook, maps=maps)
    normalizer = hook.normalizer(state)
    scores, test_maps = SCORES * 1.1, MAPS * 1.1 if maps else None
    outputs = {"pred_scores": scores} | ({"anomaly_maps": test_maps} if maps else {})
    result = hook.on_predict_batch_end(state, outputs)
    assert same(normalizer(scores, test_maps), result)
    normalizer.save(tmp_path / "n")
    loaded = Normalizer.load(tmp_path / "n")
    assert same(loaded(scores, test_maps), result)
    assert loaded.fitted_state().fitted_with[0] == "anomnorm-jax"
    pixels = MAPS.size if kind == "min-max" else 32
    counts = loaded.fitted_state().counts
    if kind != "min-max shared":  # whose image level counts pixels
        assert counts == {"image": (32, 0)} | ({"pixel": (pixels, 0)} if maps else {})
    # None follows the image threshold, a number does not.
    assert (loaded.fitted_state().pixel_threshold is None) is (hook.pixel_threshold is None)


@pytest.mark.clause("N8")
def test_a_hook_hands_out_no_normalizer_before_a_fit_nor_inside_jit() -> None:
    hook = HOOKS["min-max"]
    with pytest.raises(NotFittedError, match="not been fitted"):
        hook.normalizer(hook.setup({"pred_scores": SCORES}))
    state = fit(hook)
    with pytest.raises(AnomnormError, match=r"outside jax\.jit"):
        jax.jit(lambda s: hook.normalizer(s)(SCORES))(state)


# Exports.


@pytest.mark.clause("P4")
def test_an_exported_detector_accepts_another_threshold_in_a_process_without_anomnorm(tmp_path: Path) -> None:
    normalizer = normalizers()["cdf"]
    weights = jnp.asarray(RNG.normal(size=(4, 5)))

    @jax.jit
    def detector(images: jax.Array, threshold: jax.Array) -> dict[str, jax.Array]:
        maps = jnp.exp(images * weights)
        return normalizer(anomaly_maps=maps, threshold=threshold)

    (batch,) = jax.export.symbolic_shape("batch")
    arguments = jax.ShapeDtypeStruct((batch, 4, 5), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    (tmp_path / "detector").write_bytes(jax.export.export(detector)(*arguments).serialize())
    images = (0.2 * RNG.normal(size=(6, 4, 5))).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    program = """
        import json, pathlib, sys
        import jax.export
        import numpy as np
        detector = jax.export.deserialize(pathlib.Path("detector").read_bytes())
        images = np.load("images.npy")
        results = [detector.call(images, np.float32(t)) for t in (0.5, 1.5)]
        print(json.dumps([[result["pred_labels"].tolist(), result["pred_scores"].tolist()] for result in results]))
        assert not [name for name in sys.modules if name.startswith("anomnorm")]
    """
    served = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    labels = []
    for t, (flags, units) in zip((0.5, 1.5), json.loads(served.stdout), strict=True):
        expected = detector(jnp.asarray(images), jnp.float32(t))
        assert flags == expected["pred_labels"].tolist()
        np.testing.assert_array_equal(np.float32(units), np.asarray(expected["pred_scores"]))
        assert [unit >= 0.5 for unit in units] == flags
        labels.append(flags)
    assert labels[0] != labels[1]
