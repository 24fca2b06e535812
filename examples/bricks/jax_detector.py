"""A whole training with Flax NNX: a detector of defects in a brick pavement, on several devices.

    pip install "packages/anomnorm-core[plot]" packages/anomnorm-jax flax optax scikit-image scikit-learn
    python examples/bricks/jax_detector.py

trains for about half a minute, until the validation AUROC rises no more, prints what the best epoch finds in the test
images, and leaves in the folder ``bricks-jax``:

    checkpoints             weights, statistics and thresholds of the best epoch (Orbax)
    detector.safetensors    the normalizer, for NumPy, PyTorch and JAX
    report.html             what the thresholds mean, on the test images
    heat_maps               a picture of each test image, and a table of their scores
"""

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from data import Patches, load
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn.metrics import roc_auc_score

from anomnorm_core import FitWarning
from anomnorm_jax import CdfNormalizationHook, HeatMapFolder

PATIENCE = 5  # epochs
Batch = dict[str, jax.Array]


class Detector(nnx.Module):
    """Each neighbourhood of 8x8 pixels passes through three numbers; what does not come back is anomalous."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.encoder = nnx.Conv(1, 32, (8, 8), strides=4, padding="VALID", rngs=rngs)
        self.down, self.up = nnx.Linear(32, 3, rngs=rngs), nnx.Linear(3, 32, rngs=rngs)
        self.decoder = nnx.ConvTranspose(32, 1, (4, 4), strides=(4, 4), rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        padded = jnp.pad(4 * images - 2, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
        return nnx.sigmoid(self.decoder(nnx.relu(self.up(self.down(nnx.relu(self.encoder(padded)))))))


@nnx.jit
def train(detector: Detector, optimizer: nnx.Optimizer, batch: Batch) -> None:
    def loss(model: Detector) -> jax.Array:
        errors = jnp.mean((model(batch["image"]) - batch["image"]) ** 2, axis=(1, 2, 3))
        return jnp.mean(errors, where=batch["valid"])

    optimizer.update(detector, nnx.grad(loss)(detector))


@nnx.jit
def predict(detector: Detector, batch: Batch) -> dict[str, jax.Array]:
    error = (detector(batch["image"]) - batch["image"]) ** 2
    maps = nnx.avg_pool(jnp.pad(error, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect"), (7, 7))
    # Rows that only pad the batch (valid) are left out of all that is fitted or counted.
    truth = {name: batch[name] for name in ("label", "mask", "valid")}
    return {"pred_scores": maps.max(axis=(1, 2, 3)), "anomaly_maps": maps, **truth}


def batches(patches: Patches, size: int = 8) -> list[dict[str, np.ndarray]]:
    """Batches of one size, so that nothing compiles anew: ``valid`` is False where the last one is padded."""
    padding = -len(patches.label) % size
    parts = {"image": patches.image[..., None], "label": patches.label, "mask": patches.mask}
    parts["valid"] = np.ones(len(patches.label), bool)
    padded = {
        name: np.concatenate([part, np.zeros((padding, *part.shape[1:]), part.dtype)]) for name, part in parts.items()
    }
    return [{name: part[i : i + size] for name, part in padded.items()} for i in range(0, len(padded["label"]), size)]


# Five percent of new normal images may be flagged. Sigmas are those of normal images that the detector was not trained
# on. The pixels' threshold has the best F1 on the validation masks.
hook = CdfNormalizationHook(
    "false_alarm_rate",
    false_alarm_rate=0.05,
    pixel_threshold="adaptive",
    source="validation",
    extras=("raw",),
    progress=False,
)


def fit(folder: Path, normal: list[Batch], validation: list[Batch], epochs: int) -> None:
    """Train until the validation AUROC has not risen for some epochs; keep the best epoch in ``folder``."""
    detector = Detector(nnx.Rngs(0))
    optimizer = nnx.Optimizer(detector, optax.adam(5e-3), wrt=nnx.Param)
    run, order = hook.setup(predict(detector, validation[0])), np.random.default_rng(0)
    options = ocp.CheckpointManagerOptions(max_to_keep=1, best_fn=lambda metrics: metrics["auroc"])
    best, best_epoch = 0.0, 0
    with ocp.CheckpointManager(folder, options=options) as checkpoints:
        for epoch in range(epochs):
            for index in order.permutation(len(normal)):
                train(detector, optimizer, normal[index])
            run = hook.on_validation_epoch_start(run, lambda batch: predict(detector, batch), validation)
            for batch in validation:
                run, _ = hook.on_validation_batch_end(run, predict(detector, batch))
            normalizer = hook.on_validation_epoch_end(run)
            scores, label = hook.labelled_scores(run)
            auroc = roc_auc_score(label, scores)
            parts = {"weights": nnx.state(detector), "normalizer": normalizer}
            args = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
            checkpoints.save(epoch, args=ocp.args.Composite(**args), metrics={"auroc": auroc})
            if auroc > best:
                best, best_epoch = auroc, epoch
            if epoch - best_epoch >= PATIENCE:
                break
    print(f"stopped after {epoch + 1} epochs; the best validation AUROC is {best:.3f}")


def test(folder: Path, patches: Patches, place: NamedSharding) -> None:
    """Restore the best epoch of ``folder/checkpoints``, and write what it finds in the test images."""
    data = [jax.device_put(batch, place) for batch in batches(patches, 32)]
    detector = Detector(nnx.Rngs(1))
    parts = {"weights": nnx.state(detector), "normalizer": hook.empty(predict(detector, data[0]))}
    with ocp.CheckpointManager(folder / "checkpoints") as checkpoints:
        args = {name: ocp.args.StandardRestore(part) for name, part in parts.items()}
        restored = checkpoints.restore(checkpoints.best_step(), args=ocp.args.Composite(**args))
    nnx.update(detector, restored["weights"])
    normalizer = hook.on_test_start(restored["normalizer"])
    normalizer.save(folder / "detector.safetensors")
    print(normalizer.summary())

    results = [hook.on_test_batch_end(normalizer, predict(detector, batch)) for batch in data]
    with HeatMapFolder(folder / "heat_maps", overwrite=True) as heat_maps:
        names = iter(patches.name)
        for batch, outputs in zip(data, results, strict=True):
            heat_maps.add(batch["image"], outputs, [next(names, "padding") for _ in batch["valid"]])

    found = {name: np.concatenate([np.asarray(outputs[name]) for outputs in results]) for name in results[0]}
    found = {name: values[found["valid"]] for name, values in found.items()}
    raw_scores, raw_maps, anomalous = found["pred_scores_raw"], found["anomaly_maps_raw"], patches.label == 1
    normalizer.report(
        folder / "report.html",
        raw_scores,
        patches.label,
        anomaly_maps=raw_maps,
        images=patches.image,
        masks=patches.mask,
        names=patches.name,
    )
    print(f"anomalies found: {found['pred_labels'][anomalous].mean():.1%}")
    print(f"false alarms: {found['pred_labels'][~anomalous].mean():.1%}")
    print(f"AUROC of images: {roc_auc_score(patches.label, raw_scores):.3f}")
    print(f"AUROC of pixels: {roc_auc_score(patches.mask.ravel(), raw_maps.ravel()):.3f}")


def main(folder: Path = Path("bricks-jax"), epochs: int = 30) -> None:
    warnings.simplefilter("ignore", FitWarning)  # of the first epochs, whose scores are like no distribution
    jax.config.update("jax_num_cpu_devices", 4)  # where there is no accelerator, as if there were four
    place = NamedSharding(Mesh(jax.devices(), ("batch",)), PartitionSpec("batch"))
    folder, patches = folder.resolve(), load()
    normal = [jax.device_put(batch, place) for batch in batches(patches["train"])]
    validation = [jax.device_put(batch, place) for batch in batches(patches["validation"], 32)]
    fit(folder / "checkpoints", normal, validation, epochs)
    test(folder, patches["test"], place)
    print(f"results are in {folder}")


if __name__ == "__main__":
    main()
