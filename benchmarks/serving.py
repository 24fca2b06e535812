"""How long a new process takes to load a saved normalizer and to score a batch, imports included.

``python benchmarks/serving.py FILE`` needs only anomnorm-core. It starts processes of its own, so that each imports
everything, and reports the median.
"""

import subprocess
import sys
import time
from statistics import median

PROGRAM = """
import sys
import numpy as np
from anomnorm_core import Normalizer

normalizer = Normalizer.load(sys.argv[1])
resolution = normalizer.to_fit().resolution or (256, 256)
result = normalizer(anomaly_maps=np.ones((32, 1, *resolution), dtype=np.float32))
assert result["anomaly_maps"].shape == (32, 1, *resolution)
foreign = {"torch", "jax", "pytorch_lightning", "flax"} & set(sys.modules)
assert not foreign, foreign
"""


def main() -> None:
    times = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", PROGRAM, sys.argv[1]], check=True)
        times.append(time.perf_counter() - start)
    print(f"load and score a batch of 32 in a new process: {median(times):.2f} s (fastest {min(times):.2f} s)")


if __name__ == "__main__":
    main()
