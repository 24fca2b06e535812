"""The same autoencoder in Flax NNX, with the JAX hooks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from data import Batch, Split
from evaluation import Result
from flax import nnx
from tqdm import tqdm

from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook

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
def train_step(detector: Detector, optimizer: nnx.Optimizer, images: jax.Array) -> None:
    gradients = nnx.grad(lambda model: jnp.mean((model(images) - images) ** 2))(detector)
    optimizer.update(detector, gradients)


@nnx.jit
def predict_step(detector: Detector, batch: Batch) -> dict[str, jax.Array]:
    error = jnp.abs(batch["image"] - detector(batch["image"]))
    window = {"window_dimensions": (1, 1, 3, 3), "window_strides": (1, 1, 1, 1), "padding": "SAME"}
    total = jax.lax.reduce_window(error, 0.0, jax.lax.add, **window)
    maps = total / jax.lax.reduce_window(jnp.ones_like(error), 0.0, jax.lax.add, **window)
    scores = maps.mean(axis=(1, 2, 3))
    truth = {name: batch[name] for name in ("label", "mask") if name in batch}
    # The hook normalizes pred_scores and anomaly_maps, by the labels and masks in these outputs.
    return {"pred_scores": scores, "anomaly_maps": maps, "raw_scores": scores, "raw_maps": maps, **truth}


def run(method: str, train: Split, validation: Split, test: Split, epochs: int) -> Result:
    """Train a detector, let the hook of ``method`` find the thresholds, and predict the test data."""
    detector = Detector(nnx.Rngs(0))
    optimizer = nnx.Optimizer(detector, optax.adam(1e-2), wrt=nnx.Param)
    order, normal = np.random.default_rng(0), train.batches()
    for _ in tqdm(range(epochs), desc=f"Flax, {method}"):
        for index in order.permutation(len(normal)):
            train_step(detector, optimizer, normal[index]["image"])

    def predict(batch: Batch) -> dict[str, jax.Array]:
        return predict_step(detector, batch)

    hook = HOOKS[method]()
    validation_run = hook.setup(predict(normal[0]))
    fit_on = (predict, normal) if method == "CDF" else ()
    validation_run = hook.on_validation_epoch_start(validation_run, *fit_on)
    for batch in validation.batches():
        validation_run, _ = hook.on_validation_batch_end(validation_run, predict(batch))
    normalizer = hook.on_validation_epoch_end(validation_run)

    results = [hook.on_predict_batch_end(normalizer, predict(batch)) for batch in test.batches()]
    names = ("pred_scores", "anomaly_maps", "pred_labels", "pred_masks", "raw_scores", "raw_maps")
    fields = {name: np.concatenate([np.asarray(outputs[name]) for outputs in results]) for name in names}
    return Result("JAX", method, normalizer, fields, test)
