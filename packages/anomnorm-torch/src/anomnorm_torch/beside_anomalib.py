"""Components of anomalib beside which a callback would normalize a second time; anomalib is not imported."""

from collections.abc import Iterable
from typing import Any

from anomnorm_core.errors import AnomnormError

_BEFORE_2 = {"NormalizationCallback", "MinMaxNormalizationCallback", "CdfNormalizationCallback"}
_POST_PROCESSOR = "PostProcessor"  # since 2.0: a callback that is a part of the model too
_ACTS = {
    "enable_normalization": "normalizes the scores",
    # It would label by the thresholds of its own; in `forward`, and so in exports, raw scores by 0.5.
    "enable_thresholding": "makes labels by thresholds of its own",
}


def require_alone(beside: Iterable[Any], name: str) -> None:
    """Refuse a run in which anomalib normalizes or thresholds too.

    Args:
        beside: the other callbacks of the trainer, and the post-processor of the module.
        name: of the callback of this package, for the message.

    Raises:
        AnomnormError: such a component is there; the message says what to write.
    """
    for component in beside:
        names = {base.__name__ for base in type(component).__mro__ if base.__module__.startswith("anomalib.")}
        kind = type(component).__name__
        if not names.isdisjoint(_BEFORE_2):
            raise AnomnormError(
                f"{kind} of anomalib normalizes the scores, and {name} would do so a second time. Use one of them: "
                f"anomalib 1.x takes another one as Engine(normalization={name}(...))."
            )
        acts = [does for option, does in _ACTS.items() if getattr(component, option, False)]
        if _POST_PROCESSOR in names and acts:
            raise AnomnormError(
                f"the model's post-processor ({kind}) {' and '.join(acts)}, and {name} does so too. Use one of them: "
                f"give the model post_processor=False; or leave {name} out, and give the model a post-processor of "
                "anomnorm_torch.anomalib."
            )
