"""Names under which a step hands over its scores, and the message when they are not there (clause L5).

Two spellings are understood, of dictionaries and of objects with attributes alike: ``pred_scores`` and
``anomaly_maps``, which anomaly detectors in Lightning have always returned, and ``pred_score`` and ``anomaly_map`` of
newer ones. Names only: reading and writing arrays is the business of each framework package.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from anomnorm_core.checks import is_channels_last, without_channel
from anomnorm_core.errors import OutputError

ArrayT = TypeVar("ArrayT")


@dataclass(frozen=True)
class Fields:
    """Field names of one spelling."""

    scores: str
    maps: str
    labels: tuple[str, ...]  # ground truth per image; the first one present counts
    masks: tuple[str, ...]  # ground truth per pixel, likewise
    valid: str  # False for what only pads a batch
    pred_labels: str
    pred_masks: str

    def spelled(self, name: str) -> str:
        """This spelling of a field of results, which have the plural: ``anomaly_maps_z`` becomes ``anomaly_map_z``."""
        for plural, mine in (
            (PLURAL.scores, self.scores),
            (PLURAL.maps, self.maps),
            (PLURAL.pred_labels, self.pred_labels),
            (PLURAL.pred_masks, self.pred_masks),
        ):
            if name == plural or name.startswith(f"{plural}_"):
                return mine + name.removeprefix(plural)
        return name


PLURAL = Fields(
    scores="pred_scores",
    maps="anomaly_maps",
    labels=("label", "gt_label"),
    masks=("mask", "gt_mask"),
    valid="valid",
    pred_labels="pred_labels",
    pred_masks="pred_masks",
)
SINGULAR = Fields(
    scores="pred_score",
    maps="anomaly_map",
    labels=("gt_label", "label"),
    masks=("gt_mask", "mask"),
    valid="valid",
    pred_labels="pred_label",
    pred_masks="pred_mask",
)
SCORES, MAPS = PLURAL.scores, PLURAL.maps
LEVEL = {SCORES: "image", MAPS: "pixel"}  # whose statistics are for which field


def spelling(has: Callable[[str], bool], outputs: object) -> Fields:
    """Which spelling ``outputs`` have.

    Args:
        has: whether they have a field of this name that is not None.
        outputs: of a step, for the message.

    Raises:
        OutputError: they have neither scores nor maps, or scores in one spelling and maps in the other.
    """
    there = [fields for fields in (PLURAL, SINGULAR) if has(fields.scores) or has(fields.maps)]
    if len(there) == 1:
        return there[0]
    kind, names = type(outputs).__name__, ", ".join(sorted(repr(str(name)) for name in _names(outputs)))
    holding = f"({kind}) hold {names}" if names else f"are of type {kind}, which holds no names"
    if there:
        raise OutputError(
            f"the step's outputs {holding}, in two spellings: 'pred_scores' and 'anomaly_maps', or 'pred_score' and "
            "'anomaly_map'. Use one of them, so that none is left as it is."
        )
    raise OutputError(
        f"the step's outputs {holding}, but normalization needs 'pred_scores' of shape (B,) or 'anomaly_maps' of shape "
        "(B, 1, H, W), (B, H, W) or (B, H, W, 1), or 'pred_score' or 'anomaly_map': return a dict with at least one of "
        "them, {'pred_scores': scores, 'anomaly_maps': maps}, or an object that has them as attributes."
    )


def _names(outputs: object) -> Iterable[object]:
    if isinstance(outputs, Mapping):
        return outputs
    for names in ("_fields", "__dataclass_fields__", "__dict__"):
        found: Iterable[object] = getattr(outputs, names, ())
        if found:
            return found
    return ()


def without_last_channel(maps: ArrayT) -> ArrayT:
    """Maps (B, H, W, 1) of any library as (B, H, W): what was fitted of pixels is (H, W). Others as they are."""
    array: Any = maps
    found: ArrayT = array[..., 0] if is_channels_last(array.shape) else array
    return found


def shaped_as(shape: tuple[int, ...] | None, result: Mapping[str, Any]) -> dict[str, Any]:
    """``result`` with a channel axis at the end of maps and masks, if the maps that were given have this ``shape``."""
    if shape is None or not is_channels_last(shape):
        return dict(result)
    pixels = MAPS, PLURAL.pred_masks
    return {name: value[..., None] if name.startswith(pixels) else value for name, value in result.items()}


def parts_of(kind: str, dimensions: Iterable[int]) -> list[str]:
    """Which of a model's outputs are scores and which maps, if they come as a tuple or alone: the names of the fields.

    Args:
        kind: type of the outputs, for the message.
        dimensions: of each array: up to two are those of scores, more are those of maps.

    Raises:
        OutputError: there are not scores, maps, or one of each.
    """
    names = [SCORES if count <= 2 else MAPS for count in dimensions]
    if not names or len(set(names)) < len(names):
        listed = ", ".join(names) or "nothing"
        raise OutputError(
            f"the model returns a {kind} that reads as {listed} (arrays of up to two axes are scores, others maps); it "
            "needs scores, maps, or one of each. Return a dict with 'pred_scores' and 'anomaly_maps'."
        )
    return names


def require_shapes(scores: tuple[int, ...], maps: tuple[int, ...] | None) -> None:
    """Raise `OutputError` unless scores and maps are of one batch and of the shapes of clause L5.

    Scores are (B,) or (B, 1), maps (B, 1, H, W), (B, H, W) or (B, H, W, 1). An axis in the wrong place would otherwise
    be normalized without a complaint.
    """
    if len(scores) != 1 and not (len(scores) == 2 and scores[1] == 1):
        remedy = "Take one column of several, that of the anomalous class for example"
        if not scores:
            remedy = "A batch of one is squeezed to nothing by .squeeze(): use .reshape(-1)"
        elif len(scores) > 2:
            remedy = "If these are maps, they belong under the name of those"
        raise OutputError(
            f"the image scores have shape {scores}; one score for each image is needed, shape (B,) or (B, 1). {remedy}."
        )
    if maps is None:
        return
    if not (len(maps) == 3 or (len(maps) == 4 and (maps[1] == 1 or is_channels_last(maps)))):
        remedy = "Reduce several channels to one, by their mean for example"
        if len(maps) == 2:
            remedy = "Give a single map an axis for the batch, with maps[None]"
        raise OutputError(
            f"the anomaly maps have shape {maps}; (B, 1, H, W), (B, H, W) or (B, H, W, 1) is needed. {remedy}."
        )
    if 0 in without_channel(maps)[-2:]:
        raise OutputError(f"the anomaly maps have shape {maps}, which is no pixel; height and width are at least 1.")
    if scores[0] != maps[0]:
        raise OutputError(f"there are {scores[0]} image scores but {maps[0]} anomaly maps.")


def require_truth(
    labels: tuple[int, ...] | None, masks: tuple[int, ...] | None, scores: tuple[int, ...], maps: tuple[int, ...] | None
) -> None:
    """Raise `OutputError` unless there is a label for each score, and for each map a mask of its height and width."""
    if labels is not None and labels != scores[:1]:
        raise OutputError(
            f"there are {labels[0]} labels but {scores[0]} image scores; 'label' or 'gt_label' has one for each image."
        )
    if masks is None or maps is None:
        return
    if len(without_channel(masks)) != 3 or without_channel(masks) != without_channel(maps):
        raise OutputError(
            f"'mask' or 'gt_mask' has shape {masks} and the anomaly maps have {maps}; give a mask of the height and "
            "width of the map for each image. Resize masks to the maps' resolution, or maps to that of the masks."
        )


def wrong_type(name: str, found: str, needed: str, where: str = "the step's outputs") -> OutputError:
    """The error for a field ``name`` that holds a ``found`` instead of a ``needed``."""
    return OutputError(f"{name!r} in {where} is of type {found}; it must be {needed} of real numbers.")


def require_no_mapping(value: object) -> None:
    """Raise `OutputError` for outputs handed to a normalizer as one dictionary."""
    if isinstance(value, Mapping):
        raise OutputError(
            "a normalizer takes scores and maps as arguments: give outputs.get('pred_scores') and "
            "outputs.get('anomaly_maps'), not the dictionary itself."
        )


def missing_values() -> OutputError:
    """The error for a normalizer that was called with nothing."""
    return OutputError("a normalizer needs pred_scores of shape (B,) or anomaly_maps of shape (B, H, W); got neither.")


def require_normalized_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """`require_shapes` where scores may be missing beside maps."""
    maps = shapes.get(MAPS)
    require_shapes(shapes.get(SCORES, (maps or ())[:1]), maps)
