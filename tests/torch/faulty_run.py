"""Trainings of three epochs that save their last checkpoint, and can die at a stage of the second, as a program.

``python faulty_run.py '[["cdf", FOLDER, STAGE], ...]'``: each training in a process of its own (forked, so that nothing
is imported again), one after the other. Without a stage (null) it goes on from the last checkpoint, if there is one, to
the end. Prints for each of them how its process ended, what it left in the folder, and the statistics.
"""

import json
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from pytorch_lightning.callbacks import ModelCheckpoint
from scripted_module import ScriptedModule, loader, samples, trainer

from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback
from anomnorm_torch.callback import Normalization
from anomnorm_torch.run import Records, Run

RNG = np.random.default_rng(83)
LABELS = np.arange(12) % 3 == 1
SCORES = np.exp(RNG.normal(size=12) + LABELS)
MAPS = np.exp(RNG.normal(size=(12, 3, 3)) + LABELS[:, None, None])
CLASSES = {"min-max": MinMaxNormalizationCallback, "cdf": CdfNormalizationCallback}
STAGES: dict[str, tuple[Any, str]] = {  # what each stage calls
    "collection": (Records, "add"),
    "update": (Run, "add"),
    "finish": (Records, "finish"),
    "threshold": (Run, "finish"),
    "checkpoint": (Normalization, "on_save_checkpoint"),
}


def die_in_second_epoch(owner: Any, name: str, module: ScriptedModule) -> None:
    """Replace a function by one that ends the process, as a power cut does, at its second call of the second epoch."""
    original, calls = getattr(owner, name), 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if module.current_epoch == 1:
            calls += 1
            if calls == 2 or name in ("finish", "on_save_checkpoint"):
                os._exit(9)
        return original(*args, **kwargs)

    setattr(owner, name, deadly)


def train(kind: str, folder: Path, stage: str | None) -> dict[str, Any]:
    module = ScriptedModule()
    if stage is not None:
        die_in_second_epoch(*STAGES[stage], module)
    saving = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    run = trainer(CLASSES[kind](), saving, max_epochs=3, enable_checkpointing=True, num_sanity_val_steps=0)
    training = loader(samples(SCORES[~LABELS], MAPS[~LABELS]))
    last = folder / "last.ckpt"
    run.fit(module, training, loader(samples(SCORES, MAPS, LABELS)), ckpt_path=last if last.exists() else None)
    state = {name: value.tolist() for name, value in module.normalization_metrics.state_dict().items()}
    return {"epochs": run.current_epoch, "gain": module.gain.item(), "state": state}


def in_a_process(kind: str, folder: Path, stage: str | None) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            found = train(kind, folder, stage)
            os.write(writing, json.dumps(found).encode())  # less than the pipe holds
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = sorted(path.name for path in folder.iterdir())
    return {"code": code, "left": left, "found": json.loads(text) if text else None}


logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.simplefilter("ignore")
print(json.dumps([in_a_process(kind, Path(folder), stage) for kind, folder, stage in json.loads(sys.argv[1])]))
