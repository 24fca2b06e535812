"""Handwritten digits with Flax Linen: 1 to 9 are normal, the zero is an anomaly. ``python examples/flax_linen.py``

The data are the 1,797 digits of 8x8 pixels that scikit-learn bundles. A validation is a run that goes from call to
call, like the variables of the model, and ends as a normalizer.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from sklearn.datasets import load_digits

from anomnorm_jax import MinMaxNormalizationHook, Normalizer


class Autoencoder(linen.Module):
    """Each image passes through ten numbers."""

    @linen.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        values = images.reshape(-1, 64)
        for width in (48, 10, 48):
            values = linen.relu(linen.Dense(width)(values))
        return linen.Dense(64)(values).reshape(-1, 8, 8)


model, optimizer = Autoencoder(), optax.adam(3e-3)
hook = MinMaxNormalizationHook()  # no threshold is given: the one of the best F1 on the validation labels


@jax.jit
def train(variables: dict, moments: optax.OptState, images: jax.Array) -> tuple[dict, optax.OptState]:
    gradients = jax.grad(lambda weights: jnp.mean((model.apply(weights, images) - images) ** 2))(variables)
    updates, moments = optimizer.update(gradients, moments)
    return optax.apply_updates(variables, updates), moments


@jax.jit
def predict(variables: dict, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    error = (model.apply(variables, batch["image"]) - batch["image"]) ** 2
    return {"pred_scores": error.mean(axis=(1, 2)), "anomaly_maps": error, "label": batch["label"]}


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
    variables = model.init(jax.random.key(0), normal[0]["image"])
    moments, run = optimizer.init(variables), hook.setup(predict(variables, normal[0]))
    for batch in epochs * normal:
        variables, moments = train(variables, moments, batch["image"])
    run = hook.on_validation_epoch_start(run)
    for batch in validation:
        run, _ = hook.on_validation_batch_end(run, predict(variables, batch))
    normalizer = hook.on_validation_epoch_end(run)

    raw = predict(variables, {"image": images[third], "label": label[third]})
    result = hook.on_predict_batch_end(normalizer, raw)
    found, truth = np.asarray(result["pred_labels"]), label[third] == 1
    print(normalizer)
    print(f"flagged: {(found & truth).sum()}/{truth.sum()} zeros, {(found & ~truth).sum()}/{(~truth).sum()} others")
    return normalizer, raw, result


if __name__ == "__main__":
    main()
