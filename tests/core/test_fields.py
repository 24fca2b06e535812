"""Clause L5: under which names and in which shapes a step hands over its scores."""

import pytest

from anomnorm_core.errors import OutputError
from anomnorm_core.fields import PLURAL, SINGULAR, Fields, parts_of, require_shapes, require_truth, spelling

pytestmark = pytest.mark.clause("L5")


def spelled(*names: str) -> Fields:
    return spelling(set(names).__contains__, dict.fromkeys(names))


def test_either_spelling_is_found_and_results_are_written_in_it() -> None:
    for fields, names in (
        (PLURAL, ("pred_scores", "anomaly_maps", "pred_labels", "pred_masks")),
        (SINGULAR, ("pred_score", "anomaly_map", "pred_label", "pred_mask")),
    ):
        for present in (names[:1], names[1:2], (*names, "path")):
            assert spelled(*present) is fields
        for plural, name in zip(("pred_scores", "anomaly_maps", "pred_labels", "pred_masks"), names, strict=True):
            assert fields.spelled(plural) == name
            assert fields.spelled(f"{plural}_z") == f"{name}_z"
        assert fields.spelled("invalid") == "invalid"


@pytest.mark.parametrize("names", [("pred_scores", "anomaly_map"), ("pred_score", "anomaly_maps"), ("score",), ()])
def test_mixed_spellings_and_none_are_refused_with_what_was_found(names: tuple[str, ...]) -> None:
    with pytest.raises(OutputError, match=", ".join(sorted(map(repr, names))) or "which holds no names"):
        spelled(*names)


def test_a_model_may_return_scores_and_maps_in_any_order_or_alone() -> None:
    assert parts_of("tuple", [1, 4]) == ["pred_scores", "anomaly_maps"]
    assert parts_of("tuple", [3, 2]) == ["anomaly_maps", "pred_scores"]
    assert parts_of("Tensor", [4]) == ["anomaly_maps"]
    assert parts_of("Tensor", [1]) == ["pred_scores"]
    for dimensions in ([], [1, 1], [4, 3], [1, 4, 4]):
        with pytest.raises(OutputError, match="returns a tuple that reads as"):
            parts_of("tuple", dimensions)


@pytest.mark.parametrize("maps", [(2, 1, 6, 8), (2, 6, 8), (2, 6, 8, 1), (2, 1, 1, 1), (2, 1, 8, 1), (2, 8, 1, 1)])
def test_a_channel_axis_of_one_may_be_first_or_last(maps: tuple[int, ...]) -> None:
    require_shapes((2,), maps)
    require_shapes((2, 1), maps)
    require_truth((2,), maps, (2, 1), maps)


def test_masks_may_have_the_channel_axis_elsewhere() -> None:
    shapes = [(2, 1, 6, 8), (2, 6, 8), (2, 6, 8, 1)]
    for maps in shapes:
        for masks in shapes:
            require_truth(None, masks, (2,), maps)
        for wrong in ((2, 8, 6, 1), (2, 6, 8, 3), (1, 6, 8, 1), (2, 48)):
            with pytest.raises(OutputError, match="give a mask of the height"):
                require_truth(None, wrong, (2,), maps)


@pytest.mark.parametrize(
    ("scores", "maps", "remedy"),
    [
        ((32, 2), None, "one column of several"),
        ((), None, r"squeezed to nothing by .squeeze\(\)"),
        ((32, 1, 8, 8), None, "belong under the name of those"),
        ((64,), (64, 64), r"maps\[None\]"),
        ((2,), (2, 3, 6, 8), "their mean"),
    ],
)
def test_a_wrong_shape_is_refused_with_what_helps(
    scores: tuple[int, ...], maps: tuple[int, ...] | None, remedy: str
) -> None:
    with pytest.raises(OutputError, match=remedy):
        require_shapes(scores, maps)


@pytest.mark.parametrize("maps", [(2, 3, 6, 8), (2, 6, 8, 3), (2, 48), (2, 0, 8, 1), (2, 6, 0), (3, 6, 8, 1)])
def test_other_shapes_of_maps_are_refused(maps: tuple[int, ...]) -> None:
    with pytest.raises(OutputError, match="anomaly maps"):
        require_shapes((2,), maps)
