"""A validation run with hooks over one or several devices and processes, as a program that prints what was found.

``python sharded_run.py WAYS DEVICES AXES [PORT PROCESS FOLDER]``: with a port, one of two processes, which save and
restore a checkpoint in the folder. WAYS are "jit", "shard_map" or both with a comma between; AXES are "Auto", where the
compiler finds the shardings, or "Explicit", where they are part of the types.
"""

import dataclasses
import json
import sys
from functools import partial
from typing import Any

import jax

chosen, devices, axes, *process = sys.argv[1].split(","), int(sys.argv[2]), *sys.argv[3:]
jax.config.update("jax_num_cpu_devices", devices)
if process:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{process[0]}", num_processes=2, process_id=int(process[1]))

import numpy as np  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec  # noqa: E402

from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook, cdf, min_max  # noqa: E402

RNG = np.random.default_rng(59)
LABELS = (np.arange(32) % 3 == 1).astype("i4")
MASKS = RNG.random((32, 4, 4)) < 0.3 * LABELS[:, None, None]
SCORES = np.exp(RNG.normal(size=32) + LABELS).astype("f4")
MAPS = np.exp(RNG.normal(size=(32, 4, 4)) + MASKS).astype("f4")
DATA = {"pred_scores": SCORES, "anomaly_maps": MAPS, "label": LABELS, "mask": MASKS}
# The same as columns and with the channels last, padded, and with samples and pixels that are ignored.
VALID = np.arange(32) % 8 != 5
KNOWN = np.where(np.arange(32) % 8 == 6, -1, LABELS)
SHAPED = {
    "pred_scores": np.where(VALID, SCORES, np.float32(1e6))[:, None],
    "anomaly_maps": np.where(VALID[:, None, None], MAPS, np.float32(1e6))[..., None],
    "label": KNOWN[:, None],
    "mask": np.where(RNG.random((32, 4, 4)) < 0.2, -1, MASKS)[..., None].astype("i4"),
    "valid": VALID,
}

mesh = Mesh(np.array(jax.devices()), ("batch",), axis_types=(AxisType[axes],))
split = NamedSharding(mesh, PartitionSpec("batch"))


def globally(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The batch over all devices of all processes, each of which has made only its own part of it."""
    return {
        name: jax.make_array_from_callback(part.shape, split, lambda index, part=part: part[index])
        for name, part in batch.items()
    }


folder, saved = process[2] if process else "", []
BATCHES = {
    method: [globally({name: part[i : i + 8] for name, part in data.items()}) for i in range(0, 32, 8)]
    for method, data in (("min-max", DATA), ("cdf", SHAPED))
}


def run(hook: Any, update: Any) -> dict[str, Any]:
    """What a run finds whose batches go through ``update``, and whether its checkpoint holds the same."""
    batches = BATCHES[hook.method]
    begun = hook.on_validation_epoch_start(hook.setup(batches[0]), lambda batch: batch, batches)
    for batch in batches:
        begun = update(hook, begun, batch)
    empty, normalizer = hook.empty(batches[0]), hook.on_validation_epoch_end(begun)
    assert all(a.sharding == b.sharding for a, b in zip(*map(jax.tree.leaves, (empty, normalizer)), strict=True))
    result = hook.on_predict_batch_end(hook.on_test_start(normalizer), batches[1])
    assert result["pred_scores"].sharding.is_equivalent_to(split, result["pred_scores"].ndim)
    whole = jax.jit(lambda values: values, out_shardings=NamedSharding(mesh, PartitionSpec()))(result)
    fit, check = normalizer.to_fit(), hook.fit_check(begun)
    levels = {level: fit.level(level) for level in ("image", "pixel")}
    return {
        "parameters": {level: [array.tolist() for array in each.parameters] for level, each in levels.items()},
        "counts": {level: [each.valid, each.invalid] for level, each in levels.items()},
        "thresholds": {
            level: each.threshold.raw.tolist() if each.threshold.sigmas is None else each.threshold.sigmas
            for level, each in levels.items()
        },
        "check": None if check is None else dataclasses.astuple(check),
        "outputs": {name: np.asarray(value).tolist() for name, value in whole.items()},
        "restored": restored(hook, normalizer, empty),
    }


def restored(hook: Any, normalizer: Any, empty: Any) -> bool:
    """Whether Orbax, with all processes, restores into ``empty`` what it has saved."""
    import orbax.checkpoint as ocp

    if not folder:
        return True
    path = f"{folder}/{hook.method}-{jax.process_count()}-{devices}-{axes}-{len(saved)}"
    saved.append(path)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, normalizer)
        checkpointer.wait_until_finished()
        found = checkpointer.restore(path, empty)
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(normalizer), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) and a.sharding == b.sharding for a, b in leaves)


def jitted(hook: Any, run: Any, batch: Any) -> Any:
    return hook.on_validation_batch_end(run, batch)[0]


@partial(jax.jit, static_argnums=0)
def mapped(hook: Any, run: Any, batch: Any) -> Any:
    """The same with an axis name: each shard begins from nothing, and all of them are merged into the run."""

    def shard(begun: Any, part: Any) -> Any:
        return hook.all_merge(hook.on_validation_batch_end(begun, part)[0], "batch")

    specs = (PartitionSpec(), PartitionSpec("batch"))
    seen = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(hook.emptied(run), batch)
    return hook.merge(run, seen)


def split_selection() -> bool:
    """Whether shards that all see the same maps, and of which each selects its own, count each map once."""

    def shard(maps: Any, where: Any) -> Any:
        local = maps[: where.shape[0]]
        ranges = min_max.update(min_max.init(), local, where=where)
        moments = cdf.update(cdf.init((4, 4)), local, where=where)
        return jax.tree.map(lambda field: field[None], (ranges, moments))

    where = np.arange(32) % 3 == 0
    specs = (PartitionSpec(), PartitionSpec("batch"))
    shards = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("batch")))
    put = [jax.device_put(value, NamedSharding(mesh, spec)) for value, spec in zip((MAPS, where), specs, strict=True)]
    ranges, moments = shards(*put)
    chosen = where.reshape(devices, -1)
    same = [MAPS[: chosen.shape[1]][part] for part in chosen]
    counts = [len(part) for part in same]

    def adding(more: Any, maps: Any) -> Any:
        record = cdf.update(cdf.init((4, 4)), maps, where=jax.numpy.arange(32) < more[0])  # varies from here on
        return jax.tree.map(lambda field: field[None], cdf.update(record, maps))

    specs = (PartitionSpec("batch"), PartitionSpec())
    twice = jax.jit(jax.shard_map(adding, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("batch")))
    more = jax.device_put(np.arange(devices), NamedSharding(mesh, specs[0]))
    added = twice(more, jax.device_put(MAPS, NamedSharding(mesh, specs[1]))).count[:, 0, 0].tolist()
    return bool(
        added == [32 + first for first in range(devices)]
        and ranges.count[:, 1].tolist() == [16 * count for count in counts]
        and np.array_equal(np.asarray(moments.count), np.broadcast_to(np.reshape(counts, (-1, 1, 1)), (devices, 4, 4)))
        and np.allclose(moments.mean, [np.log(part.astype("f8")).mean(0) for part in same], atol=1e-6)
    )


def moved(hook: Any) -> bool:
    """Whether a normalizer that Orbax restored with its maps split over the devices scores like the one saved."""
    import tempfile

    import orbax.checkpoint as ocp

    batches = BATCHES[hook.method]
    begun = hook.on_validation_epoch_start(hook.setup(batches[0]), lambda batch: batch, batches)
    for batch in batches:
        begun = jitted(hook, begun, batch)
    normalizer = hook.on_validation_epoch_end(begun)
    rows, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("batch"), PartitionSpec()))
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows if leaf.shape == (4, 4) else whole),
        hook.empty(batches[0]),
    )
    with tempfile.TemporaryDirectory() as path, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(f"{path}/normalizer", normalizer)
        checkpointer.wait_until_finished()
        found = checkpointer.restore(f"{path}/normalizer", template)
    if hook.method == "cdf":
        assert found.pixel.parameters[0].sharding.is_equivalent_to(rows, 2)
    outputs, expected = (hook.on_predict_batch_end(each, batches[1]) for each in (found, normalizer))
    return all(bool((outputs[name] == expected[name]).all()) for name in expected)


HOOKS = {"min-max": MinMaxNormalizationHook(), "cdf": CdfNormalizationHook(progress=False)}
WAYS: dict[str, Any] = {"jit": jitted, "shard_map": mapped}
found: dict[str, Any] = {kind: {way: run(hook, WAYS[way]) for way in chosen} for kind, hook in HOOKS.items()}
found["normals"] = int((VALID & (KNOWN == 0)).sum())
if "shard_map" in chosen and not process:
    found["selected"] = split_selection()
    if axes == "Auto":  # else statistics and batches split over the same devices do not go together
        found["moved"] = all(moved(hook) for hook in HOOKS.values())
print(json.dumps(found))
