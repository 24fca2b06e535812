"""What the callbacks do, written once for both Lightning distributions: neither is imported here."""

from anomnorm_torch.life_cycle.cdf import CdfNormalization
from anomnorm_torch.life_cycle.min_max import MinMaxNormalization

__all__ = ["CdfNormalization", "MinMaxNormalization"]
