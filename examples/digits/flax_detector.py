"""The same autoencoder in Flax NNX, with the JAX hooks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from data import Split
from evaluation import Result, best_threshold
from flax import nnx
from tqdm import tqdm

from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook, cdf, min_max

Batch = dict[str, np.ndarray]
HOOKS = {"min-max": MinMaxNormalizationHook, "CDF": CdfNormalizationHook}


class Detector(nnx.Module):
    """Normal digits pass through eight numbers and come back; what does not come back is anomalous."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.model = nnx.Sequential(
            nnx.Linear(64, 32, rngs=rngs),
            nnx.relu,
            nnx.Linear(32, 8, rngs=rngs),
            nnx.Linear(8, 32, rngs=rngs),
            nnx.relu,
            nnx.Linear(32, 64, rngs=rngs),
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.model(images.reshape(len(images), -1)).reshape(images.shape)


@nnx.jit
def train_step(detector: Detector, optimizer: nnx.Optimizer, images: jax.Array) -> jax.Array:
    loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(images) - images) ** 2))(detector)
    optimizer.update(detector, gradients)
    return loss


@nnx.jit
def predict_step(detector: Detector, batch: Batch) -> dict[str, jax.Array]:
    error = jnp.abs(batch["images"] - detector(batch["images"]))
    window = {"window_dimensions": (1, 1, 3, 3), "window_strides": (1, 1, 1, 1), "padding": "SAME"}
    total = jax.lax.reduce_window(error, 0.0, jax.lax.add, **window)
    maps = total / jax.lax.reduce_window(jnp.ones_like(error), 0.0, jax.lax.add, **window)
    scores = maps.mean(axis=(1, 2, 3))
    truth = {"label": batch["labels"], "mask": batch["masks"], "has_mask": batch["has_mask"]}
    return {"pred_scores": scores, "anomaly_maps": maps, "raw_scores": scores, "raw_maps": maps, **truth}


def run(method: str, train: Split, validation: Split, test: Split, epochs: int) -> Result:
    """Train a detector and normalize with the hook of ``method``."""
    detector = Detector(nnx.Rngs(0))
    optimizer = nnx.Optimizer(detector, optax.adam(1e-2), wrt=nnx.Param)
    order = np.random.default_rng(0)
    for _ in tqdm(range(epochs), desc=f"Flax, {method}"):
        for batch in _batches(Split(*(part[order.permutation(len(train.labels))] for part in train))):
            train_step(detector, optimizer, batch["images"])

    def predict(batch: Batch) -> dict[str, jax.Array]:
        return predict_step(detector, batch)

    hook = HOOKS[method](threshold=0.0)  # a better one follows from the validation data
    state = hook.setup(predict(_batches(validation)[0]))
    if method == "CDF":
        state = hook.on_validation_epoch_start(state, predict, _batches(train))
    else:
        state = hook.on_validation_epoch_start(state)
    seen = []
    for batch in _batches(validation):
        state, outputs = hook.on_validation_batch_end(state, predict(batch))
        seen.append(outputs)
    state = hook.on_validation_epoch_end(state)

    scores = _concatenate(seen)  # raw under min-max, z-scores under the CDF
    has_mask = scores["has_mask"]
    state = hook.with_threshold(
        state,
        best_threshold(scores["label"], scores["pred_scores"]),
        best_threshold(scores["mask"][has_mask], scores["anomaly_maps"][has_mask]),
    )
    fields = _concatenate([hook.on_predict_batch_end(state, predict(batch)) for batch in _batches(test)])
    finalize = cdf.mean_std if method == "CDF" else min_max.bounds
    statistics = [[np.asarray(value) for value in finalize(record)] for record in (state.image, state.pixel)]
    return Result("JAX", method, fields, np.float32([state.image_threshold, state.pixel_threshold]), statistics)


def _batches(split: Split, size: int = 64) -> list[Batch]:
    return [
        {name: part[start : start + size] for name, part in split._asdict().items()}
        for start in range(0, len(split.labels), size)
    ]


def _concatenate(outputs: list[Any]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([np.asarray(entry[name]) for entry in outputs]) for name in outputs[0]}
