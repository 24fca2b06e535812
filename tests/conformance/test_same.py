"""Variants made from the source of another one (compiled, exported, ...) give what that one gives, on one corpus."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from conformance import oracle, programs
from conformance.assertions import assert_close, assert_order, assert_sides
from conformance.backend import Backend, reference_of
from conformance.programs import CALLS, CASES, CLAUSES, Inputs, Results
from conformance.test_normalizer import fitted

KERNELS = [group for group in CLAUSES if group != "normalizer"]


Read = dict[str, tuple[Any, np.ndarray]]  # what is known of a result beside its values, and those


def _read(backend: Backend, results: Results) -> Read:
    return {name: (backend.describe(value), backend.to_numpy(value)) for name, value in results.items()}


# A program is compiled once, whatever is asserted about its results.
@lru_cache
def kernel_results(backend: Backend, dtype: str) -> list[Read]:
    with backend.context(dtype):
        given = [programs.as_arrays(backend, programs.corpus(case, dtype), dtype) for case in CASES]
        program = backend.program(programs.kernels(backend), programs.empty_records(backend), given[0])
        return [_read(backend, program(inputs)) for inputs in given]


@lru_cache
def normalizer_results(backend: Backend, dtype: str) -> tuple[list[Inputs], list[Read]]:
    with backend.context(dtype):
        given = list(programs.normalizer_inputs(backend, dtype))
        normalizers = {kind: fitted(backend, dtype, kind) for kind in CALLS}
        program = backend.program(programs.normalizers, normalizers, given[0])
        inputs = [{name: backend.to_numpy(value) for name, value in each.items()} for each in given]
        return inputs, [_read(backend, program(each)) for each in given]


def _differences(name: str, case: Any, all_found: Read, all_expected: Read, variant: Backend, dtype: str) -> list[str]:
    """A line for each of the first results of one name that are too far from those of the reference."""
    found, expected = all_found[name], all_expected[name]
    if found[0] != expected[0]:
        return [f"{name}: {found[0]}, expected {expected[0]}"]
    values, wanted = found[1], expected[1]
    allowed = np.zeros(values.shape)
    if values.dtype != np.float64:
        near = values == wanted
    elif ".update" in name:
        whole = all_expected[name.removesuffix("_tail")][1]
        near = _near_record(name.rpartition(".")[2], values, wanted, whole, variant.moments_rtol)
    else:
        allowed = allowed + programs.tolerances(name, case, wanted, dtype)
        with np.errstate(invalid="ignore"):
            near = (values == wanted) | (np.abs(values - wanted) <= allowed) | (np.isnan(values) & np.isnan(wanted))
    return [
        f"{name}{list(at)}: found {values[at].item()!r}, expected {wanted[at].item()!r} (+- {allowed[at]:.2g})"
        for at in map(tuple, np.argwhere(~near)[:3].tolist())
    ]


def _require_same_names(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys(), f"results of one alone: {sorted(found.keys() ^ expected.keys())}"


def _near_record(field: str, values: np.ndarray, wanted: np.ndarray, whole: np.ndarray, rtol: float) -> np.ndarray:
    """Ranges exactly, moments of the scores here, whose deviation is at least a thousandth of the mean, nearly."""
    if field in ("min", "max"):
        return values == wanted
    if field.endswith("_tail"):  # what is left of a moment, below its last place: far below its tolerance
        return np.abs(values - wanted) <= rtol * (1 + np.abs(wanted)) + 2 * np.spacing(np.abs(whole).astype("f4"))
    return np.isclose(values, wanted, rtol=4 * rtol, atol=0.0)


GROUPS = pytest.mark.parametrize(
    "group", [pytest.param(group, marks=pytest.mark.clause(*CLAUSES[group])) for group in KERNELS]
)


@pytest.mark.needs("kernels")
@GROUPS
def test_same_results_of_every_function(variant: Backend, dtype: str, group: str) -> None:
    if group.startswith("threshold") and "histogram" not in variant.parts:
        pytest.skip("a part that it does not have")
    wrong, seen = [], 0
    pairs = zip(CASES, kernel_results(variant, dtype), kernel_results(reference_of(variant), dtype), strict=True)
    for case, found, expected in pairs:
        _require_same_names(found, expected)
        for name in (each for each in found if each.startswith(group)):
            seen += 1
            lines = _differences(name, case, found, expected, variant, dtype)
            wrong += [f"{case.name}: {line}" for line in lines]
    assert not wrong, f"{variant.id} {dtype}: {len(wrong)} results differ\n" + "\n".join(wrong[:8])
    assert seen


@pytest.mark.needs("kernels")
@pytest.mark.clause("N4", "N4b", "N5", "N6", "N13")
def test_same_sides_order_and_accuracy(variant: Backend, dtype: str) -> None:
    """Within the variant's own results too, whatever the reference says: sides and 1/2 to the last bit."""
    for case, found in zip(CASES, kernel_results(variant, dtype), strict=True):
        assert all(name.startswith(tuple(KERNELS)) for name in found)  # each is compared above
        given = programs.corpus(case, dtype)
        t, low, high, raw, std, sigmas = (float(given[n]) for n in ("threshold", "low", "high", "raw", "std", "sigmas"))
        exact_std = 0.0 if oracle.is_constant(case.mean, std, case.mean) else std
        raw_std = 0.0 if oracle.is_constant(case.mean, std, case.mean, 2.0**-126) else std
        for unit, flagged, values, threshold, exact in (
            ("min_max.normalize", "flag", given["x"], t, lambda x: oracle.min_max(x, t, low, high)),  # noqa: B023
            ("two_slope.normalize", "flag", given["x"], t, lambda x: oracle.two_slope(x, t, low, high)),  # noqa: B023
            ("cdf.normalize", "flag raw", given["positive"], raw, lambda x: oracle.cdf(x, raw, exact_std)),  # noqa: B023
            ("cdf.sigmas", "flag z", given["z"], sigmas, None),
            ("normal.normalize", "flag", given["x"], t, lambda x: oracle.normal(x, t, raw_std)),  # noqa: B023
        ):
            units, scores = found[unit][1].tolist(), values.tolist()
            if case.name in ("unfitted", "backwards") and unit != "cdf.sigmas":
                assert all(map(math.isnan, units))
                continue
            assert_sides(variant, scores, units, found[flagged][1].tolist(), threshold)
            assert_order(variant, dtype, scores, units)
            if exact is not None:
                assert_close(variant, units, list(map(exact, scores)), oracle.unit_bound(dtype), scores)


@pytest.mark.needs("normalizer")
@pytest.mark.clause(*CLAUSES["normalizer"])
@pytest.mark.parametrize("kind", CALLS)
def test_same_results_of_normalizers(variant: Backend, dtype: str, kind: str) -> None:
    inputs, all_found = normalizer_results(variant, dtype)
    _, all_expected = normalizer_results(reference_of(variant), dtype)
    wrong = []
    for given, found, expected in zip(inputs, all_found, all_expected, strict=True):
        _require_same_names(found, expected)
        for name in (each for each in found if each.startswith(f"normalizer {kind}/")):
            wrong += _differences(name, None, found, expected, variant, dtype)
        for unit, flagged in (("pred_scores", "pred_labels"), ("anomaly_maps", "pred_masks")):
            units, flags = (found[f"normalizer {kind}/{field}"][1] for field in (unit, flagged))
            for at in map(tuple, np.argwhere((units >= 0.5) != flags)[:3]):
                wrong.append(
                    f"{unit} x={given[unit][at].item()!r}: normalized {units[at].item()!r}, flagged {flags[at]}"
                )
    assert not wrong, f"{variant.id} {dtype}: {len(wrong)} results differ\n" + "\n".join(wrong[:8])
