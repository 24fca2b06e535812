"""A whole training with Flax NNX: epochs, early stopping, the best checkpoint, and its use in another process.

The 1,797 handwritten digits of 8x8 pixels that scikit-learn bundles: 1 to 9 are normal, the zero is an anomaly. Run it
with ``python examples/flax_training.py``; it serves the best epoch with ``python examples/flax_training.py FOLDER``.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from anomnorm_jax import CdfNormalizationHook

SIZE = 64  # of a batch: the last one is padded, so that nothing compiles for it
PATIENCE = 5  # epochs
Batch = dict[str, np.ndarray]


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
def train(detector: Detector, optimizer: nnx.Optimizer, batch: Batch) -> None:
    def loss(model: Detector) -> jax.Array:
        errors = jnp.mean((model(batch["image"]) - batch["image"]) ** 2, axis=(1, 2))
        return jnp.mean(errors, where=batch["valid"])

    optimizer.update(detector, nnx.grad(loss)(detector))


@nnx.jit
def predict(detector: Detector, batch: Batch) -> dict[str, jax.Array]:
    error = (detector(batch["image"]) - batch["image"]) ** 2 + 1e-6  # its logarithm is taken
    # Rows that only pad the batch are left out of all that is fitted or counted.
    return {"pred_scores": error.mean((1, 2)), "anomaly_maps": error, "label": batch["label"], "valid": batch["valid"]}


def data() -> tuple[list[Batch], list[Batch], list[Batch]]:
    """Batches to train on (normal digits), to validate and to test with."""
    digits = load_digits()
    images, label = (digits.images / 16).astype(np.float32), digits.target == 0
    first, second, third = np.array_split(np.random.default_rng(0).permutation(len(label)), 3)
    return tuple(batches(images[part], label[part]) for part in (first[~label[first]], second, third))


def batches(images: np.ndarray, label: np.ndarray) -> list[Batch]:
    padding = -len(label) % SIZE
    parts = {"image": images, "label": label, "valid": np.ones(len(label), bool)}
    padded = {
        name: np.concatenate([part, np.zeros((padding, *part.shape[1:]), part.dtype)]) for name, part in parts.items()
    }
    return [{name: part[i : i + SIZE] for name, part in padded.items()} for i in range(0, len(label) + padding, SIZE)]


# Fitted on the normal validation images, which the detector was not trained on. No threshold is given: it is the one of
# the best F1 on the validation labels.
hook = CdfNormalizationHook(source="validation", progress=False)


def fit(folder: Path, epochs: int = 100) -> None:
    """Train until the validation AUROC has not risen for some epochs; keep the best epoch in ``folder``."""
    normal, validation, _ = data()
    detector = Detector(nnx.Rngs(0))
    optimizer = nnx.Optimizer(detector, optax.adam(3e-3), wrt=nnx.Param)
    run = hook.setup(predict(detector, validation[0]))
    options = ocp.CheckpointManagerOptions(max_to_keep=1, best_fn=lambda metrics: metrics["auroc"])
    with ocp.CheckpointManager(folder, options=options) as checkpoints:
        best, best_epoch = 0.0, 0
        for epoch in range(epochs):
            for batch in normal:
                train(detector, optimizer, batch)
            run = hook.on_validation_epoch_start(run, lambda batch: predict(detector, batch), validation)
            scores = []
            for batch in validation:
                run, outputs = hook.on_validation_batch_end(run, predict(detector, batch))
                scores.append(outputs["pred_scores"])  # z-scores
            normalizer = hook.on_validation_epoch_end(run)
            valid, label = (np.concatenate([batch[name] for batch in validation]) for name in ("valid", "label"))
            auroc = roc_auc_score(label[valid], np.concatenate(scores)[valid])
            parts = {"weights": nnx.state(detector), "normalizer": normalizer}
            args = ocp.args.Composite(**{name: ocp.args.StandardSave(part) for name, part in parts.items()})
            checkpoints.save(epoch, args=args, metrics={"auroc": auroc})
            if auroc > best:
                best, best_epoch = auroc, epoch
                print(
                    f"epoch {epoch:2d}: AUROC {auroc:.3f}, threshold {normalizer.thresholds['image'].sigmas:.2f} sigmas"
                )
            if epoch - best_epoch >= PATIENCE:
                break
        checkpoints.wait_until_finished()
        print(f"stopped after epoch {epoch}; kept epoch {checkpoints.best_step()}")


def serve(folder: Path) -> None:
    """Restore the best epoch of ``folder`` and test it."""
    *_, test = data()
    detector = Detector(nnx.Rngs(1))
    parts = {"weights": nnx.state(detector), "normalizer": hook.empty(predict(detector, test[0]))}
    with ocp.CheckpointManager(folder) as checkpoints:
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(part) for name, part in parts.items()})
        restored = checkpoints.restore(checkpoints.best_step(), args=args)
    nnx.update(detector, restored["weights"])
    normalizer = hook.on_test_start(restored["normalizer"])
    print(normalizer)
    results = [hook.on_test_batch_end(normalizer, predict(detector, batch)) for batch in test]
    found, label, valid = (
        np.concatenate([part[name] for part in results]) for name in ("pred_labels", "label", "valid")
    )
    assert not found[~valid].any()  # padding is never flagged
    normal = valid & ~label
    print(f"flagged: {(found & label).sum()}/{label.sum()} zeros, {(found & normal).sum()}/{normal.sum()} others")


def main() -> None:
    if len(sys.argv) > 1:
        serve(Path(sys.argv[1]).resolve())
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        fit(folder)
        subprocess.run([sys.executable, __file__, str(folder)], check=True)


if __name__ == "__main__":
    main()
