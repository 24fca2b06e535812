"""Which of the two Lightning distributions a trainer comes from."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as lp
    import pytorch_lightning as pl

    LightningModule = pl.LightningModule | lp.LightningModule
    Trainer = pl.Trainer | lp.Trainer
else:  # importing one takes seconds, and the other may not be there
    LightningModule = Trainer = Any

__all__ = ["LightningModule", "Trainer", "is_of_lightning", "part"]

# They hold the same code under two names, and the classes of one are strangers to the other. The callbacks run under
# either, so what they need of Lightning is looked up where the trainer or module at hand was defined.
_DISTRIBUTIONS = ("pytorch_lightning", "lightning.pytorch")


def part(of: Any, name: str) -> Any:
    """The module ``name`` of the distribution that the class of ``of``, or a base of it, belongs to.

    Args:
        of: a trainer, a LightningModule or a LightningDataModule.
        name: relative to the distribution, ``"utilities.seed"`` for example.
    """
    for base in type(of).__mro__:
        for distribution in _DISTRIBUTIONS:
            if base.__module__.startswith(f"{distribution}."):
                return import_module(f"{distribution}.{name}")
    raise TypeError(f"{type(of).__name__} belongs to neither pytorch_lightning nor lightning.pytorch.")


def is_of_lightning(kind: type) -> bool:
    """Whether a class, or a base of it, belongs to one of the distributions."""
    names = tuple(f"{distribution}." for distribution in _DISTRIBUTIONS)
    return any(base.__module__.startswith(names) for base in kind.__mro__)
