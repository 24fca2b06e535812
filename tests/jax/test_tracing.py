"""What JAX users expect of every function: it traces once, holds no host callback, batches and differentiates."""

import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from anomnorm_jax import (
    CdfNormalizationHook,
    MinMaxNormalizationHook,
    NormalizationHook,
    cdf,
    min_max,
    normal,
    threshold,
    two_slope,
)

HOOKS = pytest.mark.parametrize(
    "hook",
    [
        MinMaxNormalizationHook(threshold=1.5),
        MinMaxNormalizationHook(threshold=1.5, shared_range=True),
        NormalizationHook("two-slope", threshold=1.5),
        CdfNormalizationHook(threshold=1.5, progress=False),
        CdfNormalizationHook(threshold=1.5, center="pixel", progress=False),
    ],
    ids=["min_max", "min_max-shared", "two_slope", "cdf", "cdf-pixel"],
)
SEARCHING = pytest.mark.parametrize("hook", [MinMaxNormalizationHook(), CdfNormalizationHook(progress=False)], ids=type)
SHAPE = (4, 1, 2, 3)
SCORES = np.exp(np.linspace(-1.0, 2.0, math.prod(SHAPE), dtype=np.float32)).reshape(SHAPE)


def _batch(seed: int) -> jax.Array:
    return jnp.asarray(np.exp(np.random.default_rng(seed).normal(size=SHAPE)), dtype=jnp.float32)


def _predict(weight: jax.Array, batch: jax.Array) -> dict[str, jax.Array]:
    """A detector: maps proportional to the input, image scores from them."""
    maps = weight * batch
    return {"anomaly_maps": maps, "pred_scores": jnp.mean(maps, axis=(1, 2, 3)) + weight}


def _run(hook: NormalizationHook, weight: jax.Array, seeds: range = range(3), run: Any = None) -> Any:
    """A run that validates with what it was fitted on."""
    outputs = [_predict(weight, _batch(seed)) for seed in seeds]
    run = hook.on_validation_epoch_start(hook.setup(outputs[0]) if run is None else run, dict, outputs)
    for output in outputs:
        run, _ = hook.on_validation_batch_end(run, output)
    return run


def _fitted(hook: NormalizationHook, weight: jax.Array) -> Any:
    return hook.on_validation_epoch_end(_run(hook, weight))


@contextmanager
def _compilations(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What JAX traced or compiled inside the block, by its own account."""
    found: list[str] = []
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        yield found
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("jax")]
    found += [message for message in messages if message.startswith(("Compiling", "Finished tracing"))]


@HOOKS
def test_nothing_compiles_anew_over_epochs_thresholds_and_batches(
    hook: NormalizationHook, caplog: pytest.LogCaptureFixture
) -> None:
    def epoch(number: int, scale: float, *thresholds: float) -> None:
        run = _run(hook, jnp.float32(scale), range(10 * number, 10 * number + 3), start)
        normalizer = hook.on_validation_epoch_end(run, before)
        for each in (before, normalizer, *(hook.with_threshold(normalizer, value, 2 * value) for value in thresholds)):
            for seed in range(3):
                outputs = _predict(jnp.float32(scale), _batch(seed + number))
                score(each, outputs)
                if each is not before:
                    hook.on_test_batch_end(each, outputs)
                    hook.on_predict_batch_end(each, {**outputs, "image_path": [str(seed)]})

    jax.clear_caches()
    score = jax.jit(hook.on_test_batch_end)
    start, before = (make(_predict(jnp.float32(1), _batch(0))) for make in (hook.setup, hook.empty))
    with _compilations(caplog) as first:
        epoch(0, 1.0)
    assert first  # this way of counting counts
    with _compilations(caplog) as later:
        epoch(1, 3.0, 0.5, 2)  # integers are thresholds too
        epoch(2, 0.25, 7.0)
    assert not later


@HOOKS
def test_whole_steps_are_compiled_functions_traced_once(hook: NormalizationHook) -> None:
    traces = 0

    @jax.jit
    def validate(run: Any, weight: jax.Array, batch: jax.Array) -> Any:
        nonlocal traces
        traces += 1
        return hook.on_validation_batch_end(run, _predict(weight, batch))

    @jax.jit
    def test(normalizer: Any, weight: jax.Array, batch: jax.Array) -> Any:
        nonlocal traces
        traces += 1
        return hook.on_test_batch_end(normalizer, _predict(weight, batch))

    run = hook.setup(_predict(jnp.float32(1), _batch(0)))
    for epoch in range(3):
        weight = jnp.float32(1 + epoch)
        training = [_predict(weight, _batch(seed)) for seed in range(3)]
        run = expected = hook.on_validation_epoch_start(run, dict, training)
        for seed in range(3):
            run, found = validate(run, weight, _batch(seed))
            expected, outputs = hook.on_validation_batch_end(expected, _predict(weight, _batch(seed)))
            for a, b in zip(jax.tree.leaves((run, found)), jax.tree.leaves((expected, outputs)), strict=True):
                np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)
        normalizer = hook.with_threshold(hook.on_validation_epoch_end(run), 1.25 + epoch)
        found, expected_outputs = (
            step(normalizer, weight, _batch(epoch))
            for step in (test, lambda n, w, b: hook.on_test_batch_end(n, _predict(w, b)))
        )
        assert set(found) == set(expected_outputs) == {"pred_scores", "anomaly_maps", "pred_labels", "pred_masks"}
        for name in ("pred_scores", "anomaly_maps"):
            np.testing.assert_allclose(np.asarray(found[name]), np.asarray(expected_outputs[name]), atol=1e-6)
    assert traces == 2


def _primitives(jaxpr: Any) -> Iterator[str]:
    """Names of all primitives, those of nested functions too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for nested in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "eqns")):
            inner = getattr(nested, "jaxpr", nested)
            if hasattr(inner, "eqns"):
                yield from _primitives(inner)


def _touches_host(function: Callable[..., Any], *args: Any) -> list[str]:
    closed = jax.make_jaxpr(function)(*args)
    words = ("callback", "infeed", "outfeed", "debug", "print", "io_", "device_put")
    found = [name for name in _primitives(closed.jaxpr) if any(word in name for word in words)]
    return found + [str(effect) for effect in closed.effects]


def test_the_search_for_host_primitives_finds_them() -> None:
    @jax.jit
    def inner(x: jax.Array) -> jax.Array:
        jax.debug.print("{}", x)
        return x

    def pure(x: jax.Array) -> jax.Array:
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), jnp.float32), x)  # type: ignore[no-any-return]

    assert _touches_host(lambda x: inner(x) + 1, jnp.float32(1))
    assert _touches_host(pure, jnp.float32(1))


@pytest.mark.clause("L8")
@SEARCHING
def test_nothing_on_the_per_batch_path_calls_the_host(hook: NormalizationHook) -> None:
    outputs = _predict(jnp.float32(1), _batch(0)) | {"label": jnp.arange(4) % 2, "valid": jnp.arange(4) < 3}
    fresh, empty = hook.setup(outputs), hook.empty(outputs)
    for method, state in (
        (hook.on_validation_batch_end, fresh),
        (hook.on_test_batch_end, empty),
        (hook.on_predict_batch_end, empty),
        (hook._collect, fresh),
        (hook.emptied, fresh),
    ):
        assert not _touches_host(method, state, outputs) if method != hook.emptied else not _touches_host(method, state)
    names = set(_primitives(jax.make_jaxpr(hook.on_validation_batch_end)(fresh, outputs).jaxpr))
    assert names & {"scatter-add", "scatter_add", "scatter"}  # nested functions were looked into
    assert _touches_host(hook.on_validation_epoch_end, fresh)


@pytest.mark.clause("N8")
def test_under_a_trace_finalizers_of_nothing_give_nan_and_no_error() -> None:
    for level, record in (("image", cdf.init()), ("pixel", cdf.init((2, 3)))):
        moments = jax.jit(partial(cdf.mean_std, level=level))(record)
        assert np.isnan(moments).all()
    low, high = jax.jit(min_max.bounds)(min_max.init())
    assert np.isnan(min_max.normalize(jnp.ones(2), 0.0, low, high)).all()


# vmap


@pytest.mark.clause("N12")
def test_vmap_of_normalize_equals_a_loop() -> None:
    rows = jnp.asarray(SCORES.reshape(4, 6))
    thresholds, lows = jnp.asarray([0.5, 1.0, 2.0, 4.0]), jnp.asarray([0.0, 0.1, 0.2, 0.3])
    highs, stds = lows + 5.0, jnp.asarray([0.5, 1.0, 0.25, 0.0])
    cases: list[tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]] = [
        (min_max.normalize, (rows, thresholds, lows, highs)),
        (two_slope.normalize, (rows, thresholds, lows, highs)),
        (cdf.standardize, (rows, lows, stds)),
        (cdf.normalize, (rows, thresholds, lows, stds)),
        (threshold.flag, (rows, thresholds)),
    ]
    for function, args in cases:
        found = np.asarray(jax.vmap(function)(*args))
        loop = np.stack([np.asarray(function(*(arg[i] for arg in args))) for i in range(len(rows))])
        np.testing.assert_array_max_ulp(found.astype(np.float32), loop.astype(np.float32), maxulp=2)


def test_vmap_over_many_detectors_keeps_their_statistics_apart() -> None:
    scores = jnp.asarray(np.exp(np.random.default_rng(3).normal(size=(5, 8))), dtype=jnp.float32)
    records = jax.vmap(cdf.update, in_axes=(None, 0))(cdf.init(), scores)
    means, stds = jax.vmap(cdf.mean_std)(records)
    logs = np.log(np.asarray(scores, dtype=np.float64))
    np.testing.assert_allclose(means, logs.mean(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stds, logs.std(axis=1, ddof=1), rtol=1e-5)
    ranges = jax.vmap(min_max.update, in_axes=(None, 0))(min_max.init(), scores)
    np.testing.assert_array_equal(ranges.max, np.asarray(scores).max(axis=1))


# Gradients


def _assert_gradient(found: jax.Array, expected: Any, rtol: float = 2e-6) -> None:
    np.testing.assert_allclose(np.asarray(found, dtype=np.float64), expected, rtol=rtol, atol=1e-12)


def test_gradient_of_standardize_is_one_over_x_std() -> None:
    x = np.concatenate([SCORES.ravel(), np.float32([2.0**-120, 1e-6, 1.0, 1e6, 1e30])])
    mean, std, center = np.float32(0.7), np.float32(0.3), np.float32(-0.2)
    for at in (None, center):
        found = jax.vmap(jax.grad(cdf.standardize), in_axes=(0, None, None, None))(jnp.asarray(x), mean, std, at)
        _assert_gradient(found, 1.0 / (x.astype(np.float64) * float(std)))


def test_gradients_of_standardize_with_respect_to_its_moments() -> None:
    x = SCORES.ravel()
    mean, std = np.float32(0.7), np.float32(0.3)
    logs = np.log(x.astype(np.float64))
    by_mean, by_std = jax.vmap(jax.grad(cdf.standardize, argnums=(1, 2)), in_axes=(0, None, None))(x, mean, std)
    _assert_gradient(by_mean, np.full(x.shape, -1.0 / float(std)))
    _assert_gradient(by_std, -(logs - float(mean)) / float(std) ** 2, rtol=1e-5)
    centred = jax.grad(lambda m, c: cdf.standardize(jnp.float32(2.0), m, std, c), argnums=(0, 1))(mean, np.float32(0.1))
    _assert_gradient(jnp.stack(centred), [0.0, -1.0 / float(std)])  # the mean cancels


def test_gradients_of_min_max_normalize_inside_the_range() -> None:
    x = np.float32([0.25, 0.75, 1.5, 2.5, 2.75])
    t, low, high = 1.25, 0.0, 3.5
    grad = jax.vmap(jax.grad(min_max.normalize, argnums=(0, 1, 2, 3)), in_axes=(0, None, None, None))
    span, distance = high - low, x.astype(np.float64) - t
    expected = [np.full(5, 1 / span), np.full(5, -1 / span), distance / span**2, -distance / span**2]
    for found, wanted in zip(grad(jnp.asarray(x), t, low, high), expected, strict=True):
        _assert_gradient(found, wanted)


def test_gradient_of_cdf_normalize_is_the_normal_density() -> None:
    z = np.linspace(-6, 6, 49, dtype=np.float32)
    t = np.float32(0.3125)
    density = np.exp(-0.5 * (z.astype(np.float64) - float(t)) ** 2) / math.sqrt(2 * math.pi)
    by_z, by_t = jax.vmap(jax.grad(cdf.normalize_standardized, argnums=(0, 1)), in_axes=(0, None))(jnp.asarray(z), t)
    _assert_gradient(by_z, density, rtol=1e-5)
    _assert_gradient(by_t, -density, rtol=1e-5)
    std, raw = np.float32(0.4), np.float32(1.7)
    x = SCORES.ravel()
    by_x, by_raw = jax.vmap(jax.grad(cdf.normalize, argnums=(0, 1)), in_axes=(0, None, None, None))(x, raw, 0.2, std)
    distance = np.log(x.astype(np.float64) / float(raw)) / float(std)
    slope = np.exp(-0.5 * distance**2) / math.sqrt(2 * math.pi) / float(std)
    _assert_gradient(by_x, slope / x, rtol=1e-5)
    _assert_gradient(by_raw, -slope / float(raw), rtol=1e-5)


@pytest.mark.clause("N4")
def test_gradients_at_the_threshold_are_those_of_the_formula() -> None:
    # Where the repair of rounding acts: at the threshold and next to it.
    t = np.float32(1.7)
    around = jnp.asarray([t, np.nextafter(t, np.float32(0)), np.nextafter(t, np.float32(9))])
    std = 0.4
    for function, arguments, expected in (
        (min_max.normalize, (0.0, 4.0), [1 / 4] * 3),
        (two_slope.normalize, (0.0, 4.0), [1 / (2 * 2.3), 1 / (2 * 1.7), 1 / (2 * 2.3)]),
        (cdf.normalize, (0.2, std), [1 / math.sqrt(2 * math.pi) / std / 1.7] * 3),
        (lambda z, t: cdf.normalize_standardized(z, t), (), [1 / math.sqrt(2 * math.pi)] * 3),
        (normal.normalize, (0.2, std), [1 / math.sqrt(2 * math.pi) / std] * 3),
    ):
        gradient = jax.vmap(jax.grad(lambda x, f=function, a=arguments: f(x, t, *a)))(around)
        _assert_gradient(gradient, expected, rtol=1e-5)


EDGES = [-np.inf, -3.0e38, -1.0, -0.0, 0.0, 2.0**-126, 0.5, 1.0, 2.0, 3.0, 3.5, 1e30, 3.0e38]


@pytest.mark.clause("N6", "N7")
@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (2.0, 2.0), (-3.0e38, 3.0e38)])
def test_gradients_of_min_max_normalize_are_finite_everywhere(low: float, high: float) -> None:
    # at both ends of the clip (0.5 and 3.5 for a threshold of 2), at the threshold, and without a range
    finite = jnp.asarray([x for x in EDGES if math.isfinite(x)], dtype=jnp.float32)
    value = jax.vmap(jax.value_and_grad(min_max.normalize, argnums=(0, 1, 2, 3)), in_axes=(0, None, None, None))(
        finite, 2.0, low, high
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(value))


@pytest.mark.clause("N6", "N7")
@pytest.mark.parametrize("std", [0.5, 0.0])
@pytest.mark.parametrize("center", [None, 0.25])
def test_gradients_of_the_cdf_are_finite_everywhere(std: float, center: float | None) -> None:
    def unit(x: jax.Array, mean: jax.Array, std: jax.Array, t: jax.Array) -> jax.Array:
        return cdf.normalize(x, t, mean, std, center)

    def standardized(x: jax.Array, mean: jax.Array, std: jax.Array, t: jax.Array) -> jax.Array:
        return cdf.normalize_standardized(cdf.standardize(x, mean, std, center), t)

    finite = jnp.asarray([x for x in EDGES if math.isfinite(x)], dtype=jnp.float32)
    for function in (unit, standardized):
        u, gradients = jax.vmap(jax.value_and_grad(function, argnums=(0, 1, 2, 3)), in_axes=(0, None, None, None))(
            finite, 0.25, std, 1.0
        )
        assert np.isfinite(u).all()
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        assert not np.asarray(gradients[0])[np.asarray(finite) <= 0].any()  # flat where there is no logarithm


@pytest.mark.clause("N6", "N7", "N3b")
@pytest.mark.parametrize("std", [0.5, 0.0])
def test_gradients_of_the_cdf_without_its_logarithm_are_finite_everywhere(std: float) -> None:
    for function in (
        lambda x, mean, std, t: normal.normalize(x, t, mean, std, 0.25),
        lambda x, mean, std, t: jnp.clip(normal.standardize(x, mean, std, t), -9.0, 9.0),
    ):
        u, gradients = jax.vmap(jax.value_and_grad(function, argnums=(0, 1, 2, 3)), in_axes=(0, None, None, None))(
            jnp.asarray(EDGES, dtype=jnp.float32), 0.25, std, 1.0
        )
        assert np.isfinite(u).all()
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        assert np.asarray(gradients[0]).any() == (std > 0)


def test_gradients_of_a_loss_over_a_map_with_bad_pixels_are_finite() -> None:
    maps = jnp.asarray(SCORES).at[0, 0, 0, :].set(jnp.asarray([0.0, -1.0, 2.0**-126]))
    mean, std = jnp.zeros((2, 3)), jnp.ones((2, 3)).at[0, 1].set(0.0)
    gradient = jax.grad(lambda x: jnp.sum(cdf.normalize(x, 2.7, mean, std)))(maps)
    assert np.isfinite(gradient).all()
    assert np.count_nonzero(gradient) > 12


def test_gradients_equal_finite_differences_in_both_modes() -> None:
    with jax.enable_x64(True):
        x = jnp.asarray([0.3, 0.9, 1.7, 2.6])
        moments = (jnp.asarray(0.2), jnp.asarray(0.6))
        check_grads(lambda x, t, a, b: min_max.normalize(x, t, a, b), (x, 1.1, 0.0, 4.0), order=1)
        check_grads(lambda x, m, s: cdf.standardize(x, m, s), (x, *moments), order=1)
        check_grads(lambda x, m, s, c: cdf.standardize(x, m, s, c), (x, *moments, jnp.asarray(-0.4)), order=1)
        check_grads(lambda z, t: cdf.normalize_standardized(z, t), (x - 1.0, jnp.asarray(0.05)), order=1)
        check_grads(lambda x, t, s: cdf.normalize(x, t, 0.2, s), (x, jnp.asarray(1.1), jnp.asarray(0.6)), order=2)
        check_grads(lambda x, t, s: normal.normalize(x, t, 0.2, s), (x - 1, jnp.asarray(0.1), moments[1]), order=1)
        check_grads(lambda x, c, s: normal.standardize(x, 0.2, s, c), (x - 1, *moments), order=1)
        check_grads(lambda x, t: two_slope.normalize(x, t, 0.0, 4.0), (x, 1.1), order=1)


def test_float32_gradients_agree_in_forward_and_reverse_mode() -> None:
    def unit(x: jax.Array) -> jax.Array:
        return cdf.normalize(x, 1.6, 0.2, 0.6)

    x = jnp.asarray(SCORES.ravel())
    np.testing.assert_allclose(jax.jacfwd(unit)(x), jax.jacrev(unit)(x), rtol=1e-5, atol=1e-9)


# Strict modes


def _strict_calls(dtype: Any) -> dict[str, Callable[[], Any]]:
    maps = jnp.asarray(SCORES, dtype=dtype)
    scores = maps[:, 0, 0, 0]
    pixel = jnp.ones(SHAPE[2:], dtype=jnp.float32)
    where = jnp.asarray([True, False, True, True])
    image_record, range_record = cdf.update(cdf.init(), scores), min_max.update(min_max.init(), scores)
    return {
        "min_max.update": lambda: min_max.update(min_max.init(), maps, where=where),
        "min_max.merge": lambda: min_max.merge(min_max.init(), min_max.init()),
        "min_max.normalize": lambda: min_max.normalize(maps, 1.0, *min_max.bounds(range_record)),
        "cdf.update": lambda: cdf.update(cdf.init(), scores, where=where),
        "cdf.merge": lambda: cdf.merge(image_record, image_record),
        "cdf.mean_std": lambda: cdf.mean_std(image_record),
        "cdf.standardize": lambda: cdf.standardize(maps, pixel, pixel, center_at=0.5),
        "cdf.standardize arrays": lambda: cdf.standardize(maps, pixel, pixel, center_at=pixel),
        "cdf.normalize": lambda: cdf.normalize(maps, pixel, pixel, pixel, center_at=0.5),
        "cdf.normalize_standardized": lambda: cdf.normalize_standardized(maps, pixel),
        "two_slope.normalize": lambda: two_slope.normalize(maps, 1.0, *min_max.bounds(range_record)),
        "threshold.flag": lambda: threshold.flag(maps, 1.0),
    }


@pytest.mark.parametrize(
    "dtype",
    [jnp.float32, jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.full), jnp.int32],
    ids=lambda dtype: dtype.__name__,
)
@pytest.mark.parametrize("name", list(_strict_calls(jnp.float32)))
def test_functions_work_under_strict_promotion(name: str, dtype: Any) -> None:
    expected = _strict_calls(dtype)[name]()
    call = _strict_calls(dtype)[name]
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        found = call()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_pixel_statistics_work_under_strict_dtype_promotion() -> None:
    with jax.numpy_dtype_promotion("strict"):
        record = cdf.update(cdf.init(SHAPE[2:]), jnp.asarray(SCORES))
        cdf.mean_std(cdf.merge(record, record), level="pixel")


@pytest.mark.clause("N7")
def test_constant_maps_are_fitted_without_a_nan_on_the_way() -> None:
    record = cdf.update(cdf.init((2, 3)), jnp.full((3, 2, 3), 20.0))
    with jax.disable_jit(), jax.debug_nans(True):
        _, std = cdf.mean_std(record, level="pixel")
    assert np.asarray(std).tolist() == np.zeros((2, 3)).tolist()


def test_pixel_statistics_work_under_strict_rank_promotion() -> None:
    with jax.numpy_rank_promotion("raise"):
        cdf.update(cdf.init(SHAPE[2:]), jnp.asarray(SCORES))


# export


@pytest.mark.parametrize("selected", [False, True], ids=["all", "where"])
def test_statistics_export_for_batches_of_any_size(selected: bool) -> None:
    (batch,) = jax.export.symbolic_shape("batch")
    maps = jax.ShapeDtypeStruct((batch, 1, 2, 3), jnp.float32)
    where = jax.ShapeDtypeStruct((batch,), bool) if selected else None
    for library, empty in ((min_max, min_max.init()), (cdf, cdf.init((2, 3))), (threshold, threshold.init())):
        program = jax.export.export(jax.jit(lambda r, x, w, f=library.update: tuple(f(r, x, where=w))))(
            empty, maps, where
        )
        for size in (1, 5):
            x = jnp.asarray(np.resize(SCORES, (size, 1, 2, 3)))
            mask = jnp.arange(size) % 2 == 0 if selected else None
            found, expected = program.call(empty, x, mask), library.update(empty, x, where=mask)
            for mine, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6)


def test_the_compiler_makes_one_loop_over_a_map() -> None:
    x = jnp.asarray(SCORES)
    program = min_max.normalize.lower(x, 1.0, 0.5, 2.0).compile().as_text()
    entry = program[program.index("ENTRY") :].splitlines()
    results = re.compile(rf"= \w+\[{','.join(map(str, SHAPE))}\]")  # of any dtype
    made = [line for line in entry if results.search(line) and "parameter(" not in line]
    assert len(made) == 1
    assert " fusion(" in made[0]
