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

from anomnorm_core import AnomnormError, OptionError, Origin
from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook, NormalizationHook, Normalizer, threshold
from anomnorm_jax.normalizer import _ORIGINS

RNG = np.random.default_rng(3)
SCORES = np.exp(RNG.normal(size=32)).astype(np.float32)
MAPS = np.exp(RNG.normal(size=(32, 1, 4, 5))).astype(np.float32)
MEAN, STD = RNG.normal(size=(4, 5)) * 0.1, RNG.uniform(0.3, 0.8, size=(4, 5))


def normalizers() -> dict[str, Normalizer]:
    return {
        "min-max": Normalizer.min_max((0.1, 4.0), (0.0, 6.0), threshold=1.5),
        "cdf": Normalizer.cdf((0.1, 0.4), (MEAN, STD), threshold=2.0, pixel_threshold=1.0),
        "cdf raw": Normalizer.cdf((0.1, 0.4), (MEAN, STD), threshold=2.0, units="raw"),
        "two-slope": Normalizer.of("two-slope", (0.1, 4.0), (0.0, 6.0), threshold=1.5),
        "normal": Normalizer.cdf((0.1, 0.4), (MEAN, STD), threshold=2.0, transform="identity"),
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
    moved = first.with_threshold(1.25, units="raw")
    sharper = first.with_threshold(0.75, 0.6, units="normalized")
    refitted = Normalizer.of(
        first.method, (0.2, 0.5), (MEAN, STD) if first.method in ("cdf", "normal") else (0.2, 0.9), threshold=1.0
    )
    for normalizer in (first, moved, sharper, refitted):
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
def test_raw_thresholds_can_be_traced(kind: str) -> None:
    normalizer = normalizers()[kind]
    sweep = jnp.asarray([0.5, 1.5, 2.5])
    flagged = jax.vmap(lambda t: normalizer(SCORES, threshold=t)["pred_labels"].sum())(sweep)
    assert flagged.tolist() == [(np.float32(t) <= SCORES).sum() for t in sweep]
    moved = normalizer.with_threshold(1.5, units="raw")
    found = jax.jit(lambda normalizer, t: normalizer(SCORES, MAPS, threshold=t))(normalizer, sweep[1])
    assert found["pred_scores"].tolist() == moved(SCORES)["pred_scores"].tolist()
    # Where there are no sigmas, pixels that follow the images do it here too; else they keep their own.
    follows = kind in ("min-max", "two-slope")
    expected = moved if follows else normalizer
    assert found["pred_masks"].tolist() == expected(anomaly_maps=MAPS)["pred_masks"].tolist()
    own = np.full((4, 5), 1.5) if not follows else 1.5
    by_pixel = normalizer(SCORES, MAPS, pixel_threshold=own)
    assert by_pixel["pred_masks"].tolist() == (np.float32(1.5) <= MAPS).tolist()
    with pytest.raises(OptionError, match=r"threshold has shape \(3,\); one number"):
        normalizer(SCORES, threshold=sweep)
    with pytest.raises(OptionError, match="not finite"):
        normalizer(SCORES, threshold=float("nan"))
    if "cdf" in kind:
        with pytest.raises(OptionError, match="not a positive number of float32"):
            normalizer(SCORES, threshold=-1.0)
    with pytest.raises(AnomnormError, match=r"made outside jax\.jit"):
        jax.jit(lambda n: n.with_threshold(1.5))(normalizer)


@KINDS
def test_thresholds_are_kept_to_the_last_bit_of_what_decides(kind: str) -> None:
    normalizer = normalizers()[kind].with_threshold(1.1)
    found = normalizer.thresholds["image"]
    if found.sigmas is None:
        assert found.raw == np.float64(np.float32(1.1))
    else:
        assert found.sigmas == 1.1
        place = np.float64(np.float32(0.1)) + np.float64(np.float32(0.4)) * 1.1
        assert found.raw == np.float64(np.float32(place if kind == "normal" else np.exp(place)))
    assert str(found.origin) == "manual"


@pytest.mark.clause("L5")
@KINDS
def test_padding_is_never_flagged_and_still_normalized(kind: str) -> None:
    normalizer = normalizers()[kind]
    whole = normalizer(SCORES, MAPS)
    valid = np.arange(32) < 20
    found = normalizer(SCORES[:, None], MAPS, valid=valid)
    assert found["pred_labels"][:, 0].tolist() == (np.asarray(whole["pred_labels"]) & valid).tolist()
    assert found["pred_masks"].tolist() == (np.asarray(whole["pred_masks"]) & valid[:, None, None, None]).tolist()
    assert found["pred_scores"][:, 0].tolist() == whole["pred_scores"].tolist()


def test_what_a_checkpoint_says_of_origins_means_the_same_for_ever() -> None:
    # Append new ones at the end.
    expected = ["manual", "option", "module", "adaptive", "normal_quantile", "image", "unknown"]
    assert [str(origin) for origin in _ORIGINS][:7] == expected
    assert set(_ORIGINS) == set(Origin)


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
            names = ("z",) if "cdf" in kind or kind == "normal" else ("margin",)
            result = normalizer(jnp.asarray(SCORES, jnp.bfloat16), MAPS, extras=names, threshold=1.0)
            assert result["pred_scores"].dtype == jnp.float32
            assert normalizer.denormalize(result["pred_scores"], result["anomaly_maps"])
        labels, masks = jnp.asarray(SCORES > 2), jnp.asarray(MAPS > 3)
        record = threshold.update(threshold.init(), jnp.asarray(MAPS), masks, where=labels)
        assert jax.tree.leaves(threshold.merge(record, record))[2].dtype == jnp.uint32


# Hooks.


HOOKS = {
    "min-max": MinMaxNormalizationHook(1.5),
    "min-max shared": MinMaxNormalizationHook(1.5, pixel_threshold=2.0, shared_range=True),
    "two-slope": NormalizationHook("two-slope", 1.5),
    "cdf": CdfNormalizationHook(1.0, progress=False),
    "cdf pixel": CdfNormalizationHook(1.0, pixel_threshold=0.5, center="pixel", progress=False),
    "normal": CdfNormalizationHook(1.0, progress=False, transform="identity"),
}


@pytest.mark.clause("P1", "P2")
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("maps", [True, False])
def test_the_normalizer_of_a_hook_is_saved_and_loaded(kind: str, maps: bool, tmp_path: Path) -> None:
    hook = HOOKS[kind]
    batch = {"pred_scores": SCORES} | ({"anomaly_maps": MAPS} if maps else {})
    run = hook.on_validation_epoch_start(hook.setup(batch), dict, [batch])
    run, _ = hook.on_validation_batch_end(run, batch)
    normalizer = hook.on_validation_epoch_end(run)
    scores, test_maps = SCORES * 1.1, MAPS * 1.1 if maps else None
    outputs = {"pred_scores": scores} | ({"anomaly_maps": test_maps} if maps else {})
    result = hook.on_predict_batch_end(normalizer, outputs)
    assert same(normalizer(scores, test_maps), result)
    normalizer.save(tmp_path / "n")
    loaded = Normalizer.load(tmp_path / "n")
    assert same(loaded(scores, test_maps), result)
    assert jax.tree.structure(loaded) == jax.tree.structure(hook.empty(batch))
    fit = loaded.to_fit()
    assert fit.fitted_with[0] == "anomnorm-jax"
    pixels = 32 if "cdf" in kind or kind == "normal" else MAPS.size
    assert (fit.level("image").valid, fit.level("image").invalid) == (pixels if maps and "shared" in kind else 32, 0)
    if maps:
        assert fit.level("pixel").valid == pixels
        assert str(fit.threshold("pixel").origin) == ("image" if hook.pixel_threshold is None else "option")


# Exports.


@pytest.mark.clause("P4")
def test_an_exported_detector_accepts_another_threshold_in_a_process_without_anomnorm(tmp_path: Path) -> None:
    normalizer = normalizers()["cdf"]
    weights = jnp.asarray(RNG.normal(size=(4, 5)))

    @jax.jit
    def detector(images: jax.Array, threshold: jax.Array) -> dict[str, jax.Array]:
        maps = jnp.exp(images * weights)
        return normalizer(anomaly_maps=maps, threshold=threshold, pixel_threshold=threshold)

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
