"""Scores in many files, on the workers of a Dask cluster: one normalizer of them all, then each file normalized.

``python examples/dask_scores.py FOLDER`` takes the files FOLDER/*.npz with the arrays ``scores`` and ``labels`` (0 for
normal, 1 for anomalous); without a folder it makes some up. ``Client("tcp://...")`` in place of the local cluster uses
one that is there.
"""

import sys
import tempfile
from functools import reduce
from pathlib import Path

import dask.bag
import numpy as np
from dask.distributed import Client, LocalCluster

from anomnorm_core import Normalizer, fitting


def record(path: Path) -> fitting.Record:
    """What a normalizer needs of one file."""
    with np.load(path) as part:
        return fitting.record(part["scores"], part["labels"])


def fitted(paths: list[Path]) -> Normalizer:
    """The normalizer of all files: the workers read them, and records are merged as a tree."""
    whole = dask.bag.from_sequence(paths).map(record).fold(fitting.merge, split_every=4).compute()
    return fitting.normalizer(whole, threshold="false_alarm_rate", false_alarm_rate=0.001)


def normalize(path: Path, file: Path) -> int:
    """Write the normalized scores and labels of one file into FOLDER/normalized; how many are flagged."""
    with np.load(path) as part:
        result = Normalizer.load(file)(part["scores"])
    np.savez(path.parent / "normalized" / path.name, **result)
    return int(result["pred_labels"].sum())


def made_up(folder: Path) -> None:
    """Twelve files of unequal size, with two percent of anomalies."""
    rng = np.random.default_rng(0)
    for number in range(12):
        labels = (rng.random(1000 + 100 * number) < 0.02).astype(np.uint8)
        np.savez(folder / f"scores-{number}.npz", scores=rng.lognormal(3.0 * labels, 0.5), labels=labels)


def main(folder: Path) -> None:
    if not any(folder.glob("*.npz")):
        made_up(folder)
    paths, file = sorted(folder.glob("*.npz")), folder / "detector.safetensors"
    (folder / "normalized").mkdir(exist_ok=True)
    with LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        fitted(paths).save(file)
        flagged = dask.bag.from_sequence(paths).map(normalize, file).sum().compute()
    print(Normalizer.load(file).summary())
    print(f"{len(paths)} files by four workers, {flagged} samples flagged")

    alone = reduce(fitting.merge, map(record, paths))
    normalizer = fitting.normalizer(alone, threshold="false_alarm_rate", false_alarm_rate=0.001)
    normalizer.save(folder / "alone.safetensors")
    same = file.read_bytes() == (folder / "alone.safetensors").read_bytes()
    print(f"one process gives {'the same' if same else 'another'} file")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
