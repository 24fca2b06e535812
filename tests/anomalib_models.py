"""Small models of anomalib, which is imported where one is made, and their raw outputs."""

from typing import Any

import torch

SIZE = 64


def made(name: str, post_processor: Any = True, **more: Any) -> Any:
    """An untrained model, always with the same weights."""
    from anomalib import models
    from anomalib.pre_processing import PreProcessor

    torch.manual_seed(0)
    kind = getattr(models, name)
    pre_processor = PreProcessor(kind.configure_pre_processor(image_size=(SIZE, SIZE)).transform)
    small = {
        "Fastflow": {"flow_steps": 1},
        "Padim": {"layers": ["layer1", "layer2"], "n_features": 20},
        "Patchcore": {"layers": ["layer2"]},
    }[name]
    common = {"backbone": "resnet18", "pre_trained": False, "pre_processor": pre_processor, "visualizer": False}
    return kind(post_processor=post_processor, **common | small | more)


def raw_outputs(model: Any, dataset: Any, *, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw scores (N,) and maps (N, H, W) of a data set, without a trainer, in batches as it has them."""
    scores, maps = [], []
    model.model.eval()
    for start in range(0, len(dataset), size):
        batch = dataset.collate_fn([dataset[index] for index in range(start, min(start + size, len(dataset)))])
        with torch.no_grad():
            found = model.model(model.pre_processor.transform(batch.image))
        given = found.anomaly_map.amax((-2, -1)) if found.pred_score is None else found.pred_score
        scores.append(given.reshape(-1))
        maps.append(found.anomaly_map.reshape(-1, SIZE, SIZE))
    return torch.cat(scores), torch.cat(maps)
