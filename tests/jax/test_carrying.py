"""Runs and normalizers as values that JAX carries: donated, scanned, mapped over, debugged, ended inside of jit."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anomnorm_core import AnomnormError, InsufficientDataError, InvalidScoreError, NotFittedError, OptionError
from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook, NormalizationHook, Normalizer, cdf, min_max

RNG = np.random.default_rng(71)
LABELS = np.arange(12) % 3 == 1
DATA = {
    "pred_scores": np.exp(RNG.normal(size=12) + LABELS).astype("f4"),
    "anomaly_maps": np.exp(RNG.normal(size=(12, 1, 2, 3)) + LABELS[:, None, None, None]).astype("f4"),
    "label": LABELS,
    "mask": (RNG.random((12, 2, 3)) < 0.4) & LABELS[:, None, None],
}
BATCHES = [{name: part[i : i + 4] for name, part in DATA.items()} for i in (0, 4, 8)]
STACKED = {name: part.reshape(3, 4, *part.shape[1:]) for name, part in DATA.items()}
SEARCHING = {
    "min-max": MinMaxNormalizationHook(),
    "cdf": CdfNormalizationHook(progress=False),
    "two-slope": NormalizationHook("two-slope"),
}
GIVEN = {"min-max": MinMaxNormalizationHook(1.5), "cdf": CdfNormalizationHook(1.5, center="pixel", progress=False)}
SEARCHES = pytest.mark.parametrize("hook", SEARCHING.values(), ids=SEARCHING)
ALL = pytest.mark.parametrize(
    "hook", [*SEARCHING.values(), *GIVEN.values()], ids=[*SEARCHING, *map("{}, given".format, GIVEN)]
)


def records(hook: NormalizationHook) -> Any:
    """What a scan of one's own makes for a method with sigmas; nothing for others."""
    if hook.method != "cdf":
        return None
    normal = ~LABELS
    return tuple(
        cdf.update(cdf.init(shape), DATA[name], where=normal)
        for name, shape in (("pred_scores", ()), ("anomaly_maps", (2, 3)))
    )


def started(hook: NormalizationHook) -> Any:
    return hook.on_validation_epoch_start(hook.setup(BATCHES[0]), dict, BATCHES)


def validated(hook: NormalizationHook) -> Any:
    run = started(hook)
    for batch in BATCHES:
        run, _ = hook.on_validation_batch_end(run, batch)
    return run


def kinds(tree: Any) -> Any:
    return jax.tree.structure(tree), [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        values = [np.asarray(value) for value in (a, b)]
        if path[-1] == jax.tree_util.GetAttrKey("sigmas"):  # the halves of a float64
            values = [value.view("f8") for value in values]
        np.testing.assert_allclose(*values, rtol=1e-6, atol=1e-6)


# One structure, of finite values, no buffer twice.


@pytest.mark.clause("L6")
@ALL
def test_runs_and_normalizers_have_one_structure_of_finite_arrays(hook: NormalizationHook) -> None:
    fresh, empty = hook.setup(BATCHES[0]), hook.empty(BATCHES[0])
    run = validated(hook)
    normalizer = hook.on_validation_epoch_end(run)
    for found in (started(hook), run, hook.emptied(run), hook.merge(run, hook.emptied(run))):
        assert kinds(found) == kinds(fresh)
    for changed in (
        normalizer,
        hook.with_threshold(normalizer, 1.25),
        hook.on_test_start(normalizer),
        normalizer.without_manual_threshold(),
        hook.on_validation_epoch_end(run, normalizer),
    ):
        assert kinds(changed) == kinds(empty)
    for tree in (fresh, empty, run, normalizer):
        leaves = jax.tree.leaves(tree)
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.size]
        assert len(set(pointers)) == len(pointers)


@ALL
def test_a_whole_epoch_under_debug_nans_debug_infs_and_strict_promotion(hook: NormalizationHook) -> None:
    expected = hook.on_test_batch_end(hook.on_validation_epoch_end(validated(hook)), DATA)
    with (
        jax.debug_nans(True),
        jax.debug_infs(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        normalizer = hook.on_validation_epoch_end(validated(hook), hook.empty(DATA))
        found = hook.on_test_batch_end(hook.on_test_start(normalizer), {**DATA, "valid": LABELS})
        jax.jit(hook.on_validation_epoch_end)(hook.setup(DATA))  # of nothing: still no NaN
    assert found["pred_scores"].tolist() == expected["pred_scores"].tolist()


@ALL
def test_runs_and_normalizers_can_be_donated(hook: NormalizationHook) -> None:
    step = jax.jit(lambda run, batch: hook.on_validation_batch_end(run, batch)[0], donate_argnums=0)
    run = jax.tree.map(jnp.array, started(hook))
    for batch in BATCHES:
        run = step(run, batch)
    end = jax.jit(hook.on_validation_epoch_end, donate_argnums=1)
    assert_same(end(run, hook.empty(DATA)), hook.on_validation_epoch_end(validated(hook)))
    fresh = hook.setup(BATCHES[0])
    jax.jit(lambda run: run, donate_argnums=0)(fresh)


# Scans, maps, branches; hooks inside of jit.


@ALL
def test_an_epoch_is_one_scan_and_epochs_are_a_scan_of_it(hook: NormalizationHook) -> None:
    def epoch(normalizer: Normalizer, gain: jax.Array) -> tuple[Normalizer, jax.Array]:
        run = hook.on_validation_epoch_start(hook.setup(BATCHES[0]), statistics=records(hook))
        run, _ = jax.lax.scan(hook.on_validation_batch_end, run, STACKED)
        normalizer = hook.on_validation_epoch_end(run, normalizer)
        return normalizer, hook.on_test_batch_end(normalizer, {"pred_scores": gain * DATA["pred_scores"]})[
            "pred_labels"
        ]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scanned, labels = jax.jit(lambda: jax.lax.scan(epoch, hook.empty(BATCHES[0]), jnp.asarray([1.0, 100.0])))()
    run = validated(hook)
    assert_same(scanned, hook.on_validation_epoch_end(run))
    assert labels[0].tolist() == hook.on_test_batch_end(scanned, DATA)["pred_labels"].tolist()
    assert labels[1].all()


@SEARCHES
def test_runs_of_several_detectors_are_mapped_over(hook: NormalizationHook) -> None:
    gains = jnp.asarray([1.0, 1.25])
    start = started(hook)

    def detector(gain: jax.Array) -> Normalizer:
        scaled = {**DATA, "pred_scores": gain * DATA["pred_scores"], "anomaly_maps": gain * DATA["anomaly_maps"]}
        return hook.on_validation_epoch_end(hook.on_validation_batch_end(start, scaled)[0])

    found = jax.jit(jax.vmap(detector))(gains)
    for i, gain in enumerate(gains):
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], found), detector(gain))


@ALL
def test_a_branch_takes_a_batch_or_leaves_it(hook: NormalizationHook) -> None:
    @jax.jit
    def step(run: Any, batch: Any, taken: jax.Array) -> Any:
        return jax.lax.cond(taken, lambda run: hook.on_validation_batch_end(run, batch)[0], lambda run: run, run)

    run = started(hook)
    for batch in BATCHES:
        run = step(step(run, batch, jnp.asarray(True)), batch, jnp.asarray(False))
    assert_same(run, validated(hook))


def test_hooks_are_static_under_jit() -> None:
    traces = 0

    @jax.jit
    def score(hook: NormalizationHook, normalizer: Normalizer, outputs: Any) -> Any:
        nonlocal traces
        traces += 1
        return hook.on_predict_batch_end(normalizer, outputs)

    for hook in (*SEARCHING.values(), CdfNormalizationHook(progress=False)):  # the last one equals another
        assert not jax.tree.leaves(hook)
        normalizer = hook.on_validation_epoch_end(validated(hook))
        expected = hook.on_predict_batch_end(normalizer, DATA)
        found = score(hook, normalizer, DATA)
        assert found["pred_labels"].tolist() == expected["pred_labels"].tolist()
    assert traces == 3

    class Own(NormalizationHook):
        pass

    assert jax.tree.leaves({"hook": Own("two-slope")}) == []


# Ends inside of jit.


@pytest.mark.clause("T1", "T4")
@ALL
def test_an_end_inside_of_jit_is_the_end_outside(hook: NormalizationHook) -> None:
    run = validated(hook)
    end = jax.jit(hook.on_validation_epoch_end)
    found = hook.on_validation_epoch_end(run)
    assert_same(end(run), found)
    assert_same(end(run, hook.empty(DATA)), found)
    manual = hook.with_threshold(found, pixel_threshold=2.5)
    assert_same(end(run, manual), hook.on_validation_epoch_end(run, manual))
    assert end(run, manual).thresholds["pixel"].origin == "manual"


def ended(hook: NormalizationHook, outputs: dict[str, Any]) -> Normalizer:
    """The end inside of jit of a run that validates with the data it was fitted on."""

    @jax.jit
    def program() -> Normalizer:
        image = cdf.update(cdf.init(), outputs["pred_scores"])
        statistics = (image, None) if hook.method == "cdf" else (min_max.init(), None)
        run = hook.on_validation_epoch_start(hook.setup(outputs), statistics=statistics)
        return hook.on_validation_epoch_end(hook.on_validation_batch_end(run, outputs)[0])

    return program()


@pytest.mark.clause("N8", "S6", "S7")
@pytest.mark.parametrize(
    ("hook", "scores", "error", "message"),
    [
        (MinMaxNormalizationHook(1.0), [np.nan, np.inf], NotFittedError, "no valid value to fit on"),
        (CdfNormalizationHook(1.0), [2.0, 0.0], InsufficientDataError, "too few valid values"),
        (CdfNormalizationHook(1.0, on_invalid="raise"), [1.0, 2.0, -1.0], InvalidScoreError, 'on_invalid="raise"'),
        (CdfNormalizationHook(1e9), [1.0, 2.0], OptionError, "could not place its threshold"),
        (MinMaxNormalizationHook(capacity=1), [1.0, 2.0], AnomnormError, "capacity"),
        (CdfNormalizationHook(1.0), [1.0, 2.0, -1.0, -2.0], InvalidScoreError, "more than a third of all"),
        (MinMaxNormalizationHook(1.0), [1.0, 2.0, np.nan], None, ""),
    ],
    ids=["nothing", "one", "invalid", "threshold", "capacity", "too many", "left out"],
)
def test_what_an_end_inside_of_jit_cannot_raise_is_raised_at_the_first_use(
    hook: NormalizationHook, scores: list[float], error: type[Exception] | None, message: str
) -> None:
    outputs = {"pred_scores": np.float32(scores)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normalizer = ended(hook, outputs)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(normalizer))
    traced = jax.jit(lambda normalizer: normalizer(np.float32([-5.0, 0.5, 99.0])))(normalizer)
    if error is None:
        assert normalizer(np.float32([99.0]))["pred_labels"].all()
        return
    for use in (hook.on_test_start, normalizer, lambda _: normalizer.to_fit(), lambda n: hook.with_threshold(n, 1.0)):
        with pytest.raises(error, match=message):
            use(normalizer if use is not normalizer else outputs["pred_scores"])
    with pytest.raises(error, match=message):
        hook.on_predict_batch_end(normalizer, outputs)
    assert np.isnan(traced["pred_scores"]).all()
    assert not traced["pred_labels"].any()


# Records of one's own.


@pytest.mark.clause("L3", "S1")
def test_records_of_a_scan_of_ones_own_take_the_place_of_a_pass() -> None:
    hook = SEARCHING["cdf"]

    def step(record: Any, batch: Any) -> tuple[Any, None]:
        image = cdf.update(record[0], batch["pred_scores"], where=~batch["label"])
        return (image, cdf.update(record[1], batch["anomaly_maps"], where=~batch["label"])), None

    made, _ = jax.lax.scan(step, (cdf.init(), cdf.init((2, 3))), STACKED)
    run = hook.on_validation_epoch_start(hook.setup(DATA), statistics=made)
    assert_same(run, started(hook))
    jax.jit(lambda run: run, donate_argnums=0)(run)
    assert int(made[0].count) == 8  # it is still the caller's
    direct = Normalizer.cdf(*made, threshold=2.0)
    given = CdfNormalizationHook(2.0)
    ended = given.on_validation_epoch_end(given.on_validation_epoch_start(given.setup(DATA), statistics=made))
    for name, value in direct(DATA["pred_scores"], DATA["anomaly_maps"]).items():
        assert value.tolist() == ended(DATA["pred_scores"], DATA["anomaly_maps"])[name].tolist()
    for wrong in ((made[0], None), (min_max.init(), made[1]), (made[0], cdf.init((4, 4))), (made[1], made[0])):
        with pytest.raises(AnomnormError, match=r"level record does not belong to this run"):
            hook.on_validation_epoch_start(hook.setup(DATA), statistics=wrong)


@pytest.mark.clause("L1", "L3")
def test_a_fit_is_taken_again_by_later_validations() -> None:
    hook = SEARCHING["cdf"]
    begun = started(hook)
    run, expected = validated(hook), hook.on_validation_batch_end(begun, BATCHES[1])[0]
    for again in (hook.emptied(run), hook.on_validation_epoch_start(run, statistics=(run.image, run.pixel))):
        assert_same(again, begun)
        assert_same(hook.on_validation_batch_end(again, BATCHES[1])[0], expected)


@pytest.mark.clause("S1")
def test_a_method_without_sigmas_goes_on_from_given_records() -> None:
    hook = MinMaxNormalizationHook(1.5)
    wide = min_max.update(min_max.init(), np.float32([-9.0, 99.0]))
    run = hook.on_validation_epoch_start(hook.setup(DATA), statistics=(wide, wide))
    run, _ = hook.on_validation_batch_end(run, DATA)
    assert [float(value) for value in hook.on_validation_epoch_end(run).image.parameters] == [-9.0, 99.0]
    jax.jit(lambda run: run, donate_argnums=0)(run)


def test_a_pass_does_not_begin_inside_of_jit() -> None:
    hook, seen = SEARCHING["cdf"], []
    with pytest.raises(AnomnormError, match="a scan of your own and give them as statistics"):
        jax.jit(lambda run: hook.on_validation_epoch_start(run, lambda batch: seen.append(batch) or batch, BATCHES))(
            hook.setup(DATA)
        )
    with pytest.raises(TypeError, match="give on_validation_epoch_start predict and batches"):
        hook.on_validation_epoch_start(hook.setup(DATA))
    assert not seen
