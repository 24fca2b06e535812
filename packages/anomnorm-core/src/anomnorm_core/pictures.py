"""Images and maps of any layout and library as NumPy arrays that can be shown."""

from typing import Any

import numpy as np

from anomnorm_core._arrays import to_host
from anomnorm_core.checks import without_channel
from anomnorm_core.errors import OptionError


def as_rgb(images: Any) -> np.ndarray:
    """Images as uint8 (B, H, W, 3).

    Args:
        images: (B, H, W), (B, C, H, W) or (B, H, W, C) of any array library, C = 1, 3 or 4; a fourth channel is
            ignored. uint8 and booleans are shown as they are, and so are floats between 0 and 1. Other numbers, those
            of standardized images for example, are spread over their range, each image for itself. What is not finite
            is black.

    Raises:
        OptionError: they have another shape.
    """
    array = to_host(images)
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim == 4 and array.shape[1] in (1, 3, 4) and (array.shape[3] not in (1, 3, 4) or array.shape[1] == 3):
        array = np.moveaxis(array, 1, 3)
    if array.ndim != 4 or array.shape[3] not in (1, 3, 4) or 0 in array.shape[1:]:
        raise OptionError(
            f"the images have shape {np.shape(images)}; (B, H, W), (B, C, H, W) or (B, H, W, C) with 1, 3 or 4 "
            "channels are needed."
        )
    array = array[..., :3]
    if array.dtype != np.uint8:
        array = _to_bytes(array.astype(np.float64))
    return np.broadcast_to(array, (*array.shape[:3], 3))


def _to_bytes(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    low = np.min(values, axis=(1, 2, 3), keepdims=True, initial=np.inf, where=known)
    high = np.max(values, axis=(1, 2, 3), keepdims=True, initial=-np.inf, where=known)
    inside = (low >= 0) & (high <= 1)
    low, high = np.where(inside, 0.0, low), np.where(inside, 1.0, high)
    span = np.where(high > low, high - low, 1.0)
    shown = np.where(known, (values - low) / span, 0.0)
    return np.round(255 * np.clip(shown, 0, 1)).astype(np.uint8)


def as_maps(maps: Any, argument: str) -> np.ndarray:
    """Maps or masks (B, 1, H, W), (B, H, W) or (B, H, W, 1) of any library as (B, H, W).

    Raises:
        OptionError: they have another shape; it names ``argument``.
    """
    array = to_host(maps)
    shape = without_channel(array.shape)
    if len(shape) != 3 or 0 in shape[1:]:
        raise OptionError(f"{argument} has shape {array.shape}; (B, 1, H, W), (B, H, W) or (B, H, W, 1) is needed.")
    return array.reshape(shape)
