"""Names under which a step hands over its scores, and the message when they are not there (clause L5).

Two layouts are understood: dictionaries, as anomaly detectors in Lightning have always returned them, and objects
with attributes, as newer ones do. Names only: reading and writing arrays is the business of each framework package.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from anomnorm_core.errors import OutputError


@dataclass(frozen=True)
class Fields:
    """Field names of one layout."""

    scores: str
    maps: str
    labels: tuple[str, ...]  # ground truth per image; the first one present counts
    masks: tuple[str, ...]  # ground truth per pixel, likewise
    valid: str  # False for what only pads a batch
    pred_labels: str
    pred_masks: str


MAPPING_FIELDS = Fields(
    scores="pred_scores",
    maps="anomaly_maps",
    labels=("label", "gt_label"),
    masks=("mask", "gt_mask"),
    valid="valid",
    pred_labels="pred_labels",
    pred_masks="pred_masks",
)
SCORES, MAPS = MAPPING_FIELDS.scores, MAPPING_FIELDS.maps
LEVEL = {SCORES: "image", MAPS: "pixel"}  # whose statistics are for which field
ATTRIBUTE_FIELDS = Fields(
    scores="pred_score",
    maps="anomaly_map",
    labels=("gt_label", "label"),
    masks=("gt_mask", "mask"),
    valid="valid",
    pred_labels="pred_label",
    pred_masks="pred_mask",
)


def missing_fields(kind: str, found: Iterable[object], *, attributes: bool) -> OutputError:
    """The error for outputs of type ``kind`` whose fields ``found`` include neither scores nor maps.

    ``attributes`` says whether objects with attributes would have been understood.
    """
    names = ", ".join(sorted(repr(name) for name in found)) or "nothing"
    objects = ", or the attributes 'pred_score' or 'anomaly_map' on an object" if attributes else ""
    return OutputError(
        f"the step's outputs ({kind}) hold {names}, but normalization needs 'pred_scores' of shape (B,) or "
        f"'anomaly_maps' of shape (B, 1, H, W) or (B, H, W) in a dict{objects}. Return at least one of them."
    )


def require_shapes(scores: tuple[int, ...], maps: tuple[int, ...] | None) -> None:
    """Raise `OutputError` unless scores are (B,) or (B, 1) and maps (B, 1, H, W) or (B, H, W), of one batch (L5).

    An axis in the wrong place would otherwise be normalized without a complaint.
    """
    if len(scores) != 1 and not (len(scores) == 2 and scores[1] == 1):
        raise OutputError(
            f"the image scores have shape {scores}; one score for each image is needed, shape (B,) or (B, 1). Reshape "
            "them, with .reshape(-1) for example."
        )
    if maps is None:
        return
    if not (len(maps) == 3 or (len(maps) == 4 and maps[1] == 1)):
        raise OutputError(
            f"the anomaly maps have shape {maps}; (B, 1, H, W) or (B, H, W) is needed. Drop a channel axis at "
            "the end with maps[..., 0], and reduce several channels to one, by their mean for example."
        )
    if 0 in maps[-2:]:
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
    if (
        len(masks) not in (3, 4)
        or (len(masks) == 4 and masks[1] != 1)
        or (*masks[:1], *masks[-2:])
        != (
            *maps[:1],
            *maps[-2:],
        )
    ):
        raise OutputError(
            f"'mask' or 'gt_mask' has shape {masks} and the anomaly maps have {maps}; give a mask of the height and "
            "width of the map for each image. Resize masks to the maps' resolution, or maps to that of the masks."
        )


def wrong_type(name: str, found: str, needed: str, where: str = "the step's outputs") -> OutputError:
    """The error for a field ``name`` that holds a ``found`` instead of a ``needed``."""
    return OutputError(f"{name!r} in {where} is of type {found}; it must be {needed} of real numbers.")


def require_no_other_layout(found: Mapping[str, object]) -> None:
    """Raise `OutputError` for a dictionary with a field under its name on an object, where it would be ignored."""
    for name in ("scores", "maps"):
        mine, other = getattr(MAPPING_FIELDS, name), getattr(ATTRIBUTE_FIELDS, name)
        if found.get(mine) is None and found.get(other) is not None:
            raise OutputError(f"the step's outputs hold {other!r}; in a dictionary the name is {mine!r}.")


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
