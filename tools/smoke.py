"""Try installed packages in an environment that has no others: ``python -P tools/smoke.py FILE core torch``.

Each loads the saved normalizer, a CDF of maps, and gives the labels that core gives.
"""

import importlib
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import anomnorm_core


def main(file: str, *names: str) -> None:
    normalizer = anomnorm_core.Normalizer.load(file)
    maps = np.random.default_rng(0).lognormal(size=(4, 1, *normalizer.to_fit().resolution)).astype("float32")
    expected = normalizer(anomaly_maps=maps)
    assert expected["anomaly_maps"].min() < 0.5 <= expected["anomaly_maps"].max()
    for name in names:
        package = importlib.import_module(f"anomnorm_{name}")
        missing = [member for member in package.__all__ if not hasattr(package, member)]
        assert not missing, missing
        assert package.__version__ == version(f"anomnorm-{name}")
        found = package.Normalizer.load(file)(anomaly_maps=array(name, maps))
        for key, values in expected.items():
            # Labels and masks are the same, scores are so within the error bounds of float32.
            np.testing.assert_allclose(np.asarray(found[key]), values, rtol=0, atol=1e-6 * (values.dtype != bool))
        print(package.__name__, package.__version__)
    for framework in {"torch", "jax"} - set(names):
        assert find_spec(framework) is None, framework
    command = Path(sys.executable).with_name("anomnorm")
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "apply" in shown


def array(name: str, values: np.ndarray) -> Any:
    """The values as the package's framework has them."""
    if name == "torch":
        return importlib.import_module("torch").from_numpy(values)
    return importlib.import_module("jax.numpy").asarray(values) if name == "jax" else values


if __name__ == "__main__":
    main(*sys.argv[1:])
