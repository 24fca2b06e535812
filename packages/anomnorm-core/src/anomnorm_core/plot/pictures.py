"""Images and maps of any layout and library as NumPy arrays that can be shown."""

from io import BytesIO
from typing import Any

import numpy as np

from anomnorm_core._arrays import to_host
from anomnorm_core.checks import without_channel
from anomnorm_core.errors import OptionError
from anomnorm_core.plot.style import FLAGGED, NORMALIZED_MAP

_OPACITY = 0.65  # of the tint where the normalized score is 1
_LINE = tuple(bytes.fromhex(FLAGGED.removeprefix("#")))


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
    shape = array.shape
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim == 4 and array.shape[1] in (1, 3, 4) and (array.shape[3] not in (1, 3, 4) or array.shape[1] == 3):
        array = np.moveaxis(array, 1, 3)
    if array.ndim != 4 or array.shape[3] not in (1, 3, 4) or 0 in array.shape[1:]:
        raise OptionError(
            f"the images have shape {shape}; (B, H, W), (B, C, H, W) or (B, H, W, C) with 1, 3 or 4 "
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


def overlay(image: np.ndarray | None, normalized: np.ndarray, flagged: np.ndarray) -> np.ndarray:
    """A heat map: the image, tinted the more the higher the normalized map is, with a line around what is flagged.

    Args:
        image: (H, W, 3) uint8, whose size the heat map gets; None: the map is drawn alone, in its own size.
        normalized: map (h, w) from 0 to 1; NaN is not tinted.
        flagged: mask (h, w).

    Returns:
        (H, W, 3) uint8.
    """
    from matplotlib import colormaps
    from PIL import Image

    if image is None:
        drawn = colormaps[NORMALIZED_MAP](normalized, bytes=True)[..., :3].astype(np.float64)
    else:
        size = image.shape[1::-1]
        known = np.nan_to_num(normalized, nan=0.0).astype(np.float32)
        grown = np.clip(np.asarray(Image.fromarray(known).resize(size, Image.Resampling.BILINEAR)), 0, 1)
        flagged = np.asarray(Image.fromarray(flagged).resize(size, Image.Resampling.NEAREST))
        tint = colormaps[NORMALIZED_MAP](grown)[..., :3] * 255
        opacity = _OPACITY * grown[..., None]
        drawn = (1 - opacity) * image + opacity * tint
    drawn[_edge(flagged, max(1, min(flagged.shape) // 150))] = _LINE
    found: np.ndarray = np.round(drawn).astype(np.uint8)
    return found


def _edge(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask that are nearer than ``width`` to one outside; what is outside of the picture is not."""
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: np.ndarray = mask & ~inner
    return edge


def png(picture: np.ndarray) -> bytes:
    """The file of a picture (H, W, 3) uint8."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()
