"""anomalib 2's own post-processor and ours, for a batch of scores and maps. A worker of ``bench.py``.

Runs where anomalib 2 is installed, which is not the development environment: ``nox -s anomalib`` makes one. Prints one
JSON object: milliseconds of one call by post-processor, normalized maps and masks included.
"""

import json
import sys
from typing import Any

import torch
from kernels import HIGH, LOW, SHAPE, THRESHOLD, maps
from measuring import seconds, use_cores


def measure(arguments: list[str] | None = None) -> dict[str, Any]:
    """What is found."""
    # torchvision's compiled operators do not load beside the CPU build of torch, and it imports where they are defined.
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    from anomalib.data import InferenceBatch
    from anomalib.post_processing import PostProcessor

    from anomnorm_torch import Normalizer
    from anomnorm_torch.anomalib import MinMaxPostProcessor

    use_cores(1)
    torch.set_num_threads(1)
    x = torch.from_numpy(maps())
    batch = InferenceBatch(pred_score=x.amax((1, 2, 3)), anomaly_map=x)
    numbers = {
        "_image_threshold": THRESHOLD,
        "_pixel_threshold": THRESHOLD,
        "image_min": LOW,
        "image_max": HIGH,
        "pixel_min": LOW,
        "pixel_max": HIGH,
    }
    found = {"a copy": seconds(lambda: torch.empty(SHAPE).copy_(x), 25)}
    for name, made in (("anomalib 2, PostProcessor", PostProcessor()), ("MinMaxPostProcessor", MinMaxPostProcessor())):
        made.load_state_dict({key: torch.tensor(value) for key, value in numbers.items()})
        with torch.no_grad():
            found[name] = seconds(lambda made=made: made(batch), 25)
    normalizer = Normalizer.min_max((LOW, HIGH), (LOW, HIGH), threshold=THRESHOLD)
    found["Normalizer"] = seconds(lambda: normalizer(batch.pred_score, batch.anomaly_map), 25)
    return {name: 1e3 * value for name, value in found.items()}


if __name__ == "__main__":
    json.dump(measure(), sys.stdout)
