"""The hooks beside what JAX users have: NNX, Orbax, models that are pytrees."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from expected import moments as expected_moments
from flax import nnx, serialization

from anomnorm_core import (
    AnomnormError,
    InsufficientDataError,
    NotFittedError,
    OptionError,
    OutputError,
    ResolutionError,
)
from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook, NormalizationHook
from anomnorm_jax.nnx import AnomalyScoreDistribution, Fitted, MinMax, Normalization, Statistics

RNG = np.random.default_rng(61)
LABELS = np.arange(12) % 3 == 1
SCORES, MAPS = np.exp(RNG.normal(size=12) + LABELS).astype("f4"), np.exp(RNG.normal(size=(12, 2, 3))).astype("f4")
DATA = {"pred_scores": SCORES, "anomaly_maps": MAPS, "label": LABELS.astype("i4")}
BATCHES = [{name: part[i : i + 4] for name, part in DATA.items()} for i in (0, 4, 8)]
HOOKS = pytest.mark.parametrize(
    "hook", [MinMaxNormalizationHook(), NormalizationHook("two-slope", 1.5), CdfNormalizationHook(progress=False)]
)


def fitted(hook: Any) -> Any:
    run = hook.on_validation_epoch_start(hook.setup(DATA), dict, BATCHES)
    for outputs in BATCHES:
        run, _ = hook.on_validation_batch_end(run, outputs)
    return run, hook.on_validation_epoch_end(run)


def assert_equal(found: Any, expected: Any) -> None:
    for name, value in expected.items():
        assert np.asarray(found[name]).tolist() == np.asarray(value).tolist(), name


# NNX


@pytest.mark.clause("S1")
def test_metrics_inside_nnx_jit_equal_the_functions() -> None:
    @nnx.jit
    def step(ranges: MinMax, moments: AnomalyScoreDistribution, outputs: Any) -> None:
        ranges.update(**outputs)
        moments.update(**outputs)

    ranges, moments = MinMax(), AnomalyScoreDistribution((2, 3))
    for outputs in BATCHES:
        step(ranges, moments, outputs)
    assert [float(value) for value in ranges.compute()["image"]] == [SCORES.min(), SCORES.max()]
    assert [float(value) for value in ranges.compute()["pixel"]] == [MAPS.min(), MAPS.max()]
    for level, values in (("image", SCORES), ("pixel", MAPS)):
        (mean, std), wanted = moments.compute()[level], expected_moments(values)
        np.testing.assert_allclose(mean, wanted[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(std, wanted[1], rtol=1e-5)


@pytest.mark.clause("S1")
def test_metrics_merge_reset_and_check() -> None:
    halves = [(MinMax(), AnomalyScoreDistribution()) for _ in range(2)]
    for (ranges, moments), part in zip(halves, (SCORES[:5], SCORES[5:]), strict=True):
        ranges.update(pred_scores=part)
        moments.update(pred_scores=part, anomaly_maps=MAPS)  # maps without a shape are left alone
    (ranges, moments), (others, rest) = halves
    ranges.merge(others)
    moments.merge(rest)
    assert float(ranges.compute()["image"][1]) == SCORES.max()
    np.testing.assert_allclose(moments.compute()["image"][0], np.log(SCORES.astype("f8")).mean(), rtol=1e-5)
    assert set(moments.compute()) == {"image"}
    ranges.reset(), moments.reset()
    assert float(ranges.compute()["image"][0]) > float(ranges.compute()["image"][1])
    moments.update(pred_scores=SCORES[:1])
    with pytest.raises(InsufficientDataError):
        moments.compute()
    with pytest.raises(ResolutionError):
        AnomalyScoreDistribution((4, 4)).update(anomaly_maps=MAPS)


@pytest.mark.clause("S1", "N3b")
def test_a_metric_of_scores_of_any_sign() -> None:
    whole, other = AnomalyScoreDistribution(transform="identity"), AnomalyScoreDistribution(None, "identity")
    whole.update(pred_scores=-SCORES[:5])
    other.update(pred_scores=-SCORES[5:])
    whole.merge(other)
    expected = -SCORES.astype("f8").mean(), SCORES.astype("f8").std(ddof=1)
    np.testing.assert_allclose(whole.compute()["image"], expected, rtol=1e-5)
    with pytest.raises(OptionError, match="the other one has transform='log', and this one 'identity'"):
        whole.merge(AnomalyScoreDistribution())


@pytest.mark.clause("L5")
def test_metrics_take_either_spelling_and_leave_padding_out() -> None:
    @nnx.jit
    def step(ranges: MinMax, moments: AnomalyScoreDistribution, where: Any, outputs: Any) -> None:
        ranges.update(**outputs)
        moments.update(**outputs, where=where)

    valid, where = np.arange(12) % 4 != 3, LABELS == 0
    scores = np.where(valid, SCORES, np.float32(1e6))[:, None]
    for spelled in (("pred_scores", "anomaly_maps"), ("pred_score", "anomaly_map")):
        ranges, moments = MinMax(), AnomalyScoreDistribution((2, 3))
        step(ranges, moments, where, dict(zip(spelled, (scores, MAPS[..., None]), strict=True)) | {"valid": valid})
        assert [float(value) for value in ranges.compute()["image"]] == [SCORES[valid].min(), SCORES[valid].max()]
        assert [float(value) for value in ranges.compute()["pixel"]] == [MAPS[valid].min(), MAPS[valid].max()]
        for level, values in (("image", SCORES), ("pixel", MAPS)):
            mean = np.log(values[valid & where].astype("f8")).mean(0)
            np.testing.assert_allclose(moments.compute()[level][0], mean, rtol=1e-5, atol=1e-6)
    with pytest.raises(OutputError, match="hold 'label', but normalization needs"):
        ranges.update(label=LABELS)


@pytest.mark.clause("L4")
@HOOKS
def test_a_hook_as_a_module(hook: Any) -> None:
    module, traces = Normalization(hook, DATA), 0

    @nnx.jit
    def validate(module: Normalization, outputs: Any) -> Any:
        nonlocal traces
        traces += 1
        return module.on_validation_batch_end(outputs)

    for _ in range(2):
        module.on_validation_epoch_start(dict, BATCHES)
        for outputs in BATCHES:
            validate(module, outputs)
        module.on_validation_epoch_end()
    assert traces == 1
    run, normalizer = fitted(hook)
    expected = hook.on_predict_batch_end(normalizer, DATA)
    assert_equal(nnx.jit(lambda module, outputs: module(outputs))(module, DATA), expected)
    assert_equal(module.normalizer(SCORES, MAPS), {n: v for n, v in expected.items() if n != "label"})
    assert module.fit_check() == hook.fit_check(run)

    fresh = Normalization(hook, DATA)
    with pytest.raises(NotFittedError):
        fresh.on_test_start()
    saved = nnx.state(module, Fitted)
    assert jax.tree.structure(saved) == jax.tree.structure(nnx.state(fresh, Fitted))
    nnx.update(fresh, jax.tree.map(jnp.array, saved))
    fresh.on_predict_start()
    assert_equal(fresh(DATA), expected)

    module.with_threshold(1e6, units="raw")
    assert not module(DATA)["pred_labels"].any()
    module.on_validation_epoch_end()  # and it stays
    assert not module(DATA)["pred_labels"].any()
    variables = nnx.state(module, Statistics), nnx.state(module, Fitted)
    assert len(jax.tree.leaves(variables)) == len(jax.tree.leaves(nnx.state(module))) > 0
    if isinstance(hook, CdfNormalizationHook):
        with pytest.raises(TypeError, match="give on_validation_epoch_start predict and batches"):
            module.on_validation_epoch_start()


def test_a_module_ends_its_run_inside_nnx_jit() -> None:
    hook = CdfNormalizationHook(progress=False)
    module = Normalization(hook, DATA)
    module.on_validation_epoch_start(dict, BATCHES)

    @nnx.jit
    def rest(module: Normalization) -> None:
        for outputs in BATCHES:
            module.on_validation_batch_end(outputs)
        module.on_validation_epoch_end()

    rest(module)
    assert_equal(module(DATA), hook.on_predict_batch_end(fitted(hook)[1], DATA))


def test_the_package_does_not_need_flax() -> None:
    import subprocess
    import sys

    program = "import sys; sys.modules['flax'] = None; import anomnorm_jax as a; a.cdf.init(); a.Normalizer"
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False).returncode == 0


# Orbax


@pytest.mark.clause("L6")
@HOOKS
def test_orbax_saves_and_restores_a_normalizer_alone_and_beside_the_weights(hook: Any, tmp_path: Path) -> None:
    normalizer = hook.with_threshold(fitted(hook)[1], pixel_threshold=2.5)
    expected = hook.on_test_batch_end(normalizer, DATA)
    weights, empty = {"kernel": jnp.arange(6.0).reshape(2, 3)}, hook.empty(DATA)
    saved: list[tuple[str, Any, Any]] = [
        ("alone", normalizer, empty),
        ("beside", {"weights": weights, "normalizer": normalizer}, {"weights": weights, "normalizer": empty}),
    ]
    with ocp.StandardCheckpointer() as checkpointer:
        for name, tree, template in saved:
            checkpointer.save(tmp_path / name, tree)
            checkpointer.wait_until_finished()
            found = checkpointer.restore(tmp_path / name, template)
            restored = found if name == "alone" else found["normalizer"]
            assert_equal(hook.on_test_batch_end(hook.on_test_start(restored), DATA), expected)
            assert repr(restored.thresholds) == repr(normalizer.thresholds)  # with where they come from


@pytest.mark.clause("L6")
@HOOKS
def test_flax_serialization_writes_and_reads_a_normalizer(hook: Any) -> None:
    normalizer = hook.with_threshold(fitted(hook)[1], pixel_threshold=2.5)
    tree = {"step": jnp.asarray(3), "normalizer": normalizer}
    data = serialization.to_bytes(tree)
    restored = serialization.from_bytes({"step": jnp.asarray(0), "normalizer": hook.empty(DATA)}, data)["normalizer"]
    assert jax.tree.structure(restored) == jax.tree.structure(normalizer)
    assert [leaf.dtype for leaf in jax.tree.leaves(restored)] == [leaf.dtype for leaf in jax.tree.leaves(normalizer)]
    assert_equal(hook.on_test_batch_end(restored, DATA), hook.on_test_batch_end(normalizer, DATA))
    assert repr(restored.thresholds) == repr(normalizer.thresholds)


@pytest.mark.clause("L6", "P3")
def test_arrays_of_another_method_or_with_other_options_are_refused() -> None:
    for made, other in (
        (MinMaxNormalizationHook(1.0), NormalizationHook("two-slope", 1.0)),
        (CdfNormalizationHook(1.0), CdfNormalizationHook(1.0, center="pixel")),
    ):
        leaves = jax.tree.leaves(fitted(made)[1])
        restored = jax.tree.unflatten(jax.tree.structure(other.empty(DATA)), leaves)
        for use in (lambda n: n(DATA["pred_scores"]), other.on_test_start, lambda n: n.thresholds):
            with pytest.raises(AnomnormError, match="restored from one of another method"):
                use(restored)


# A model that is a pytree, and optax alone


class Linear(NamedTuple):
    """As Equinox has it: the model is the tree of its parameters, and calling it is a pure function."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, rows: jax.Array) -> jax.Array:
        return rows @ self.weight + self.bias


@HOOKS
def test_a_training_loop_in_plain_jax(hook: Any) -> None:
    rows = jnp.asarray(RNG.normal(size=(3, 8, 4)), dtype=jnp.float32)
    model = Linear(jnp.zeros((4, 4)), jnp.zeros(4))
    optimizer = optax.adam(1e-1)
    moments = optimizer.init(model)

    def outputs(model: Linear, batch: jax.Array) -> dict[str, jax.Array]:
        return {"pred_scores": jnp.mean((model(batch) - batch) ** 2, axis=1), "label": jnp.zeros(len(batch), jnp.int32)}

    @jax.jit
    def train(model: Linear, moments: Any, batch: jax.Array) -> Any:
        loss, gradients = jax.value_and_grad(lambda tree: outputs(tree, batch)["pred_scores"].mean())(model)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(model, updates), moments, loss

    @jax.jit
    def validate(run: Any, model: Linear, batch: jax.Array) -> Any:
        return hook.on_validation_batch_end(run, outputs(model, batch))[0]

    example = outputs(model, rows[0])
    run, normalizer, losses = hook.setup(example), hook.empty(example), []
    for _ in range(3):
        for batch in rows:
            model, moments, loss = train(model, moments, batch)
            losses.append(float(loss))
        run = hook.on_validation_epoch_start(run, lambda batch, tree=model: outputs(tree, batch), rows)
        for batch in rows:
            run = validate(run, model, batch)
        normalizer = hook.on_validation_epoch_end(run, normalizer)
    assert losses[-1] < losses[0]
    raw = np.concatenate([outputs(model, batch)["pred_scores"] for batch in rows])
    # Computed once more, outside of the compiled step.
    expected = np.log(raw.astype("f8")).mean() if isinstance(hook, CdfNormalizationHook) else raw.min()
    np.testing.assert_allclose(normalizer.image.parameters[0], expected, rtol=1e-5)
    normalizer = hook.on_test_start(normalizer)
    found = hook.on_predict_batch_end(normalizer, outputs(model, rows[0] + 9))
    assert found["pred_labels"].all()
    assert not hook.on_predict_batch_end(normalizer, outputs(model, rows[0]))["pred_labels"].any()
