"""Handwritten digits with Flax NNX: 1 to 9 are normal, the zero is an anomaly. ``python examples/flax_nnx.py``

The data are the 1,797 digits of 8x8 pixels that scikit-learn bundles. The normalization is a module beside the model.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from anomnorm_jax import CdfNormalizationHook, Normalizer
from anomnorm_jax.nnx import Normalization


class Detector(nnx.Module):
    """Each image passes through ten numbers; its score and its map are what is lost of it."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        sizes = ((64, 48), (48, 10), (10, 48), (48, 64))
        self.layers = nnx.List([nnx.Linear(*size, rngs=rngs) for size in sizes])

    def __call__(self, images: jax.Array) -> jax.Array:
        *hidden, last = self.layers
        values = images.reshape(-1, 64)
        for layer in hidden:
            values = nnx.relu(layer(values))
        return last(values).reshape(-1, 8, 8)


@nnx.jit
def train(detector: Detector, optimizer: nnx.Optimizer, images: jax.Array) -> None:
    gradients = nnx.grad(lambda model: jnp.mean((model(images) - images) ** 2))(detector)
    optimizer.update(detector, gradients)


@nnx.jit
def predict(detector: Detector, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    error = (detector(batch["image"]) - batch["image"]) ** 2 + 1e-6  # its logarithm is taken
    return {"pred_scores": error.mean(axis=(1, 2)), "anomaly_maps": error, "label": batch["label"]}


validate = nnx.jit(lambda normalization, outputs: normalization.on_validation_batch_end(outputs))


def batches(images: np.ndarray, label: np.ndarray, size: int = 64) -> list[dict[str, np.ndarray]]:
    starts = range(0, len(images), size)
    return [{"image": images[start : start + size], "label": label[start : start + size]} for start in starts]


def main(epochs: int = 30) -> tuple[Normalizer, dict[str, jax.Array], dict[str, jax.Array]]:
    """Train, validate and predict; return the normalizer, and raw and normalized outputs of the test images."""
    digits = load_digits()
    images, label = (digits.images / 16).astype(np.float32), (digits.target == 0).astype(np.int32)
    first, second, third = np.array_split(np.random.default_rng(0).permutation(len(label)), 3)
    first = first[label[first] == 0]
    normal, validation = batches(images[first], label[first]), batches(images[second], label[second])
    detector = Detector(nnx.Rngs(0))
    optimizer = nnx.Optimizer(detector, optax.adam(3e-3), wrt=nnx.Param)
    # No threshold is given: the one of the best F1 on the validation labels.
    normalization = Normalization(CdfNormalizationHook(progress=False), predict(detector, normal[0]))
    for batch in epochs * normal:
        train(detector, optimizer, batch["image"])
    normalization.on_validation_epoch_start(lambda batch: predict(detector, batch), normal)
    for batch in validation:
        validate(normalization, predict(detector, batch))
    normalization.on_validation_epoch_end()

    raw = predict(detector, {"image": images[third], "label": label[third]})
    result = normalization(raw)
    found, truth = np.asarray(result["pred_labels"]), label[third] == 1
    print(normalization.normalizer)
    print(f"flagged: {(found & truth).sum()}/{truth.sum()} zeros, {(found & ~truth).sum()}/{(~truth).sum()} others")
    return normalization.normalizer, raw, result


if __name__ == "__main__":
    main()
