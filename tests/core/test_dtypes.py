"""Clause N9 for what only NumPy has: other byte orders, and numbers wider than float64."""

import numpy as np
import pytest

from anomnorm_core import Normalizer, cdf, min_max, threshold, two_slope


@pytest.mark.clause("N4", "N9")
def test_numbers_in_the_byte_order_of_another_machine() -> None:
    for dtype in ("f8", "f4", "f2"):
        native = np.array([0.1, 0.3, 2.0]).astype(dtype)
        swapped = native.astype(native.dtype.newbyteorder())
        for function in (
            lambda x: min_max.normalize(x, 0.1, 0.0, 1.0),
            lambda x: two_slope.normalize(x, 0.1, 0.0, 1.0),
            lambda x: cdf.standardize(x, 0.5, 0.25),
            lambda x: cdf.normalize(x, 0.1, 0.5, 0.25),
            lambda x: threshold.flag(x, 0.1),
        ):
            found = function(swapped)
            assert found.dtype.isnative
            assert found.tobytes() == function(native).tobytes()
        for module in (min_max, cdf):
            found, expected = (module.update(module.init(), array) for array in (swapped, native))
            assert [field.tolist() for field in found] == [field.tolist() for field in expected]


@pytest.mark.clause("N9")
@pytest.mark.skipif(np.finfo(np.longdouble).bits <= 64, reason="here it is float64")
def test_numbers_wider_than_the_reference_are_refused() -> None:
    wide = np.ones(3, dtype=np.longdouble)
    for function in (
        lambda: min_max.normalize(wide, 0.1, 0.0, 1.0),
        lambda: cdf.standardize(wide, 0.5, 0.25),
        lambda: threshold.flag(wide, 0.1),
        lambda: cdf.update(cdf.init(), wide),
    ):
        with pytest.raises(TypeError, match="float64 is the widest"):
            function()


@pytest.mark.clause("N9")
def test_subclasses_with_a_meaning_of_their_own() -> None:
    normalizer = Normalizer.min_max((0.0, 1.0), (0.0, 1.0), threshold=0.5)
    scores = np.array([0.25, 0.75])
    masked = np.ma.masked_array(scores, mask=[True, False])
    for given in ({"pred_scores": masked}, {"pred_scores": scores, "anomaly_maps": masked.reshape(2, 1, 1)}):
        with pytest.raises(TypeError, match=r"masked arrays are not understood.*numpy\.nan"):
            normalizer(**given)
    for given in (scores.view(np.recarray), scores.tolist()):
        result = normalizer(given)
        assert type(result["pred_scores"]) is np.ndarray
        assert result["pred_labels"].tolist() == [False, True]
