"""The detector of ``lightning_detector.py`` on the command line, with everything in a file (LightningCLI).

    pip install "packages/anomnorm-core[plot]" packages/anomnorm-torch scikit-image "jsonargparse[signatures]"
    cd examples/bricks
    python lightning_cli.py fit --config lightning_cli.yaml
    python lightning_cli.py test --config lightning_cli.yaml --ckpt_path bricks-cli/checkpoints/best.ckpt

The first trains for about half a minute. The second, a process of its own, prints what the best epoch finds in the test
images, and leaves in the folder ``bricks-cli`` a picture of each and the normalizer, for NumPy, PyTorch and JAX.
"""

import logging
import warnings
from pathlib import Path

from lightning_detector import Bricks, Detector
from pytorch_lightning.cli import LightningCLI

from anomnorm_core import FitWarning
from anomnorm_torch import NormalizationCallback


class CLI(LightningCLI):
    """With a normalizer beside the results of the test."""

    def after_test(self) -> None:
        normalization = next(each for each in self.trainer.callbacks if isinstance(each, NormalizationCallback))
        normalizer = normalization.normalizer(self.model)
        normalizer.save(Path(self.trainer.default_root_dir) / "detector.safetensors")
        print(normalizer.summary())


if __name__ == "__main__":
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec).*")
    warnings.simplefilter("ignore", FitWarning)  # of the first epochs; the logs have the fit check of all
    CLI(Detector, Bricks)
