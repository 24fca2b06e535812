"""Pictures of a validation run for the trainer's loggers."""

from typing import Any

import numpy as np

from anomnorm_core import Normalizer
from anomnorm_core.errors import OptionError, warn
from anomnorm_core.fit import Fit
from anomnorm_core.plot import scores
from anomnorm_core.plot.style import require_matplotlib
from anomnorm_torch.framework import Trainer
from anomnorm_torch.run import Run


class HistogramLog:
    """The score histograms of each validation run.

    The run's samples are kept from its end to the moment at which all thresholds are known.

    Args:
        prefix: of the name under which the pictures are logged.

    Raises:
        OptionError: there is no prefix.
        ModuleNotFoundError: matplotlib is not installed.
    """

    def __init__(self, prefix: str | None) -> None:
        require_matplotlib()
        if prefix is None:
            raise OptionError("log_images=True: nothing is logged with log_prefix=None; give a text, or no pictures.")
        self._key = f"{prefix}/image_scores" if prefix else "image_scores"
        self._samples: tuple[np.ndarray, np.ndarray | None] | None = None
        self._reported = False  # whether a warning has said that no logger takes pictures

    def keep(self, run: Run) -> None:
        """Take the scores and labels of a run."""
        self._samples = run.labelled_scores()

    def send(self, trainer: Trainer, fit: Fit) -> None:
        """Give the picture to each logger that takes one.

        Those are TensorBoard's and others whose ``experiment`` has ``add_figure``, and loggers with ``log_image``, that
        of Weights & Biases for example. The first process alone does this.
        """
        samples, self._samples = self._samples, None
        if samples is None or not trainer.is_global_zero:
            return
        from matplotlib.figure import Figure

        left: list[str] = []
        loggers: list[Any] = trainer.loggers
        for logger in loggers:
            add_figure = getattr(logger.experiment, "add_figure", None)
            log_image: Any = getattr(logger, "log_image", None)
            if add_figure is None and log_image is None:
                left.append(type(logger).__name__)
                continue
            figure = Figure(figsize=(10, 4.4), layout="constrained")  # not one of pyplot: there is nothing to close
            scores(Normalizer(fit), *samples, ax=figure.subplots(1, 2))
            if add_figure is not None:
                add_figure(self._key, figure, global_step=trainer.global_step)
            else:
                log_image(key=self._key, images=[figure], step=trainer.global_step)
        if len(left) == len(loggers) and not self._reported:
            self._reported = True
            who = f"{' and '.join(left)} takes no pictures" if left else "the trainer has no logger"
            warn(
                f"log_images=True: {who}. TensorBoardLogger and loggers with log_image, WandbLogger for example, do.",
                UserWarning,
            )
