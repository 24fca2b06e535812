"""The hooks beside what JAX users have: NNX, Orbax, models that are pytrees."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from anomnorm_core import InsufficientDataError, NotFittedError, ResolutionError
from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook, cdf, min_max
from anomnorm_jax.nnx import AnomalyScoreDistribution, MinMax, Normalization, Statistics

RNG = np.random.default_rng(61)
LABELS = np.arange(12) % 3 == 1
SCORES, MAPS = np.exp(RNG.normal(size=12) + LABELS).astype("f4"), np.exp(RNG.normal(size=(12, 2, 3))).astype("f4")
DATA = {"pred_scores": SCORES, "anomaly_maps": MAPS, "label": LABELS.astype("i4")}
BATCHES = [{name: part[i : i + 4] for name, part in DATA.items()} for i in (0, 4, 8)]
HOOKS = pytest.mark.parametrize("hook", [MinMaxNormalizationHook(), CdfNormalizationHook(progress=False)])


def fitted(hook: Any) -> Any:
    state = hook.setup(DATA)
    if isinstance(hook, MinMaxNormalizationHook):
        state = hook.on_validation_epoch_start(state)
    else:
        state = hook.on_validation_epoch_start(state, dict, BATCHES)
    for outputs in BATCHES:
        state, _ = hook.on_validation_batch_end(state, outputs)
    return hook.on_validation_epoch_end(state)


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
        mean, std = moments.compute()[level]
        np.testing.assert_allclose(mean, np.log(values.astype("f8")).mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(std, np.log(values.astype("f8")).std(0, ddof=1), rtol=1e-5)


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
    assert float(ranges.compute()["image"][0]) == np.inf
    moments.update(pred_scores=SCORES[:1])
    with pytest.raises(InsufficientDataError):
        moments.compute()
    with pytest.raises(ResolutionError):
        AnomalyScoreDistribution((4, 4)).update(anomaly_maps=MAPS)


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
    state = fitted(hook)
    expected = hook.on_predict_batch_end(state, DATA)
    assert_equal(nnx.jit(lambda module, outputs: module(outputs))(module, DATA), expected)
    assert_equal(module.normalizer()(SCORES, MAPS), {n: v for n, v in expected.items() if n != "label"})
    assert module.fit_check() == (hook.fit_check(state) if isinstance(hook, CdfNormalizationHook) else None)

    fresh = Normalization(hook, DATA)
    with pytest.raises(NotFittedError):
        fresh.on_test_start()
    fresh.restore(module.to_arrays())
    fresh.on_predict_start()
    assert_equal(fresh(DATA), expected)

    module.with_threshold(1e6)
    assert not module(DATA)["pred_labels"].any()
    variables = nnx.state(module, Statistics)
    assert len(jax.tree.leaves(variables)) == len(jax.tree.leaves(nnx.state(module))) > 0
    if isinstance(hook, CdfNormalizationHook):
        with pytest.raises(TypeError, match="give on_validation_epoch_start predict and batches"):
            module.on_validation_epoch_start()


def test_the_package_does_not_need_flax() -> None:
    import subprocess
    import sys

    program = "import sys; sys.modules['flax'] = None; import anomnorm_jax as a; a.cdf.init(); a.Normalizer"
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False).returncode == 0


# Orbax


@pytest.mark.clause("L6")
@HOOKS
def test_orbax_saves_and_restores_a_state_alone_and_beside_the_weights(hook: Any, tmp_path: Path) -> None:
    state = fitted(hook)
    expected = hook.on_test_batch_end(state, DATA)
    weights = {"kernel": jnp.arange(6.0).reshape(2, 3)}
    fresh = hook.setup(DATA)
    saved: list[tuple[str, Any, Any]] = [
        ("alone", hook.to_arrays(state), hook.to_arrays(fresh)),
        (
            "beside",
            {"weights": weights, "normalization": hook.to_arrays(state)},
            {"weights": jax.tree.map(jnp.zeros_like, weights), "normalization": hook.to_arrays(fresh)},
        ),
    ]
    with ocp.StandardCheckpointer() as checkpointer:
        for name, tree, template in saved:
            checkpointer.save(tmp_path / name, tree)
            checkpointer.wait_until_finished()
            found = checkpointer.restore(tmp_path / name, template)
            arrays = found if name == "alone" else found["normalization"]
            restored = hook.restore(fresh, arrays)
            assert_equal(hook.on_test_batch_end(restored, DATA), expected)
            assert hook.thresholds(restored) == hook.thresholds(state)


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
    def validate(state: Any, model: Linear, batch: jax.Array) -> Any:
        return hook.on_validation_batch_end(state, outputs(model, batch))[0]

    state, losses = hook.setup(outputs(model, rows[0])), []
    for _ in range(3):
        for batch in rows:
            model, moments, loss = train(model, moments, batch)
            losses.append(float(loss))
        if isinstance(hook, MinMaxNormalizationHook):
            state = hook.on_validation_epoch_start(state)
        else:
            state = hook.on_validation_epoch_start(state, lambda batch, tree=model: outputs(tree, batch), rows)
        for batch in rows:
            state = validate(state, model, batch)
        state = hook.on_validation_epoch_end(state)
    assert losses[-1] < losses[0]
    raw = np.concatenate([outputs(model, batch)["pred_scores"] for batch in rows])
    if isinstance(hook, MinMaxNormalizationHook):
        # Computed once more, outside of the compiled step.
        np.testing.assert_allclose(min_max.bounds(state.image), [raw.min(), raw.max()], rtol=1e-5)
    else:
        mean, _ = cdf.mean_std(state.image)
        np.testing.assert_allclose(mean, np.log(raw.astype("f8")).mean(), rtol=1e-5)
    found = hook.on_predict_batch_end(state, outputs(model, rows[0] + 9))
    assert found["pred_labels"].all()
    assert not hook.on_predict_batch_end(state, outputs(model, rows[0]))["pred_labels"].any()
