"""Names under which a step hands over its scores, and the message when they are not there (clause L5).

Two layouts are understood: dictionaries, as anomaly detectors in Lightning have always returned them, and objects
with attributes, as newer ones do. Names only: reading and writing arrays is the business of each framework package.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from anomnorm_core.errors import OutputError


@dataclass(frozen=True)
class Fields:
    """Field names of one layout."""

    scores: str
    maps: str
    labels: tuple[str, ...]  # ground truth per image; the first one present counts
    pred_labels: str
    pred_masks: str


MAPPING_FIELDS = Fields(
    scores="pred_scores",
    maps="anomaly_maps",
    labels=("label", "gt_label"),
    pred_labels="pred_labels",
    pred_masks="pred_masks",
)
ATTRIBUTE_FIELDS = Fields(
    scores="pred_score",
    maps="anomaly_map",
    labels=("gt_label", "label"),
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


def wrong_type(name: str, found: str, needed: str) -> OutputError:
    """The error for a field ``name`` that holds a ``found`` instead of a ``needed``."""
    return OutputError(f"{name!r} in the step's outputs is of type {found}; it must be {needed} of real numbers.")
