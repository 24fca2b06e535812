"""What a validation run has seen so far, in arrays of fixed shapes (clauses L1, L2, L8, T2, T5)."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from anomnorm_core.errors import AnomnormError
from anomnorm_core.fit_check import LIMITS, counted, moments
from anomnorm_core.method import Kernels
from anomnorm_core.threshold.choice import NORMAL, UNLABELLED, Gathered
from anomnorm_jax import threshold
from anomnorm_jax._arrays import largest_defined, to_host
from anomnorm_jax._sharding import automatic
from anomnorm_jax.outputs import GroundTruth, Scores


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["image", "pixel", "scores", "labels", "maxima", "seen", "pixels", "normals", "moments"],
    meta_fields=["method", "resolution"],
)
@dataclass(frozen=True, eq=False)
class Run:
    """A validation run: a pytree of finite arrays, of one structure from `NormalizationHook.setup` on.

    It can be donated, scanned and mapped over. Laws: what ``init`` gives is the identity of ``merge``; ``merge`` is
    associative, and commutative but for the order of the scores, which does not matter.
    """

    image: Any  #: the method's record of the image scores
    pixel: Any  #: and of the maps; None where the steps return none
    scores: Array | None  #: (capacity,) float32, or float64 for float64 scores: raw image scores; None: none are needed
    labels: Array | None  #: (capacity,) uint8: NORMAL, ANOMALOUS, UNLABELLED or IGNORED
    maxima: Array | None  #: (capacity,) float32: largest pixel of each map, in the units of its threshold; None: unused
    seen: Array  #: () uint32: images so far; those beyond the capacity are counted and not kept
    pixels: threshold.ScoreHistogram | None  #: those whose truth is known, or of normal images alone; None: none
    normals: Array | None  #: with sigmas, (5,) uint32: normal validation samples, as ``fit_check.counted`` has them
    moments: Array | None  #: and (4,), of the dtype of the scores: as ``fit_check.moments`` has them
    method: str  #: its name
    resolution: tuple[int, int] | None  #: height and width of the maps


def init(
    kernels: Kernels,
    resolution: tuple[int, int] | None,
    *,
    capacity: int,
    dtype: Any,
    scores: bool,
    pixels: bool,
    maxima: bool = False,
) -> Run:
    """A run that has seen nothing.

    Args:
        kernels: of the method.
        resolution: height and width of the maps; None without any.
        capacity: how many image scores there is room for.
        dtype: of them.
        scores, pixels, maxima: whether a threshold will be looked for among these.
    """
    return Run(
        image=kernels.init(()),
        pixel=None if resolution is None else kernels.init(resolution),
        scores=jnp.zeros((capacity,), dtype=dtype) if scores else None,
        labels=jnp.zeros((capacity,), dtype=jnp.uint8) if scores else None,
        maxima=jnp.zeros((capacity,), dtype=jnp.float32) if maxima and resolution is not None else None,
        seen=jnp.zeros((), dtype=jnp.uint32),
        pixels=threshold.init() if pixels and resolution is not None else None,
        normals=jnp.zeros((1 + 2 * len(LIMITS),), dtype=jnp.uint32) if kernels.method.sigmas else None,
        moments=jnp.zeros((4,), dtype=dtype) if kernels.method.sigmas else None,
        method=kernels.method.name,
        resolution=resolution,
    )


def fitted(kernels: Kernels, run: Run, values: Scores, where: Array | None, *, shared: bool) -> Run:
    """The run whose records have seen a batch.

    Args:
        kernels: of the method.
        run: so far.
        values: of the batch.
        where: booleans of shape (B,): samples that take part; None: all.
        shared: whether the image level has the record of the maps too.
    """
    pixel = run.pixel
    if pixel is not None and values.maps is not None:
        pixel = kernels.update(pixel, values.maps, where=where)
    of_images = values.maps if shared and values.maps is not None else values.scores
    return replace(run, image=kernels.update(run.image, of_images, where=where), pixel=pixel)


@automatic
def gathered(
    run: Run, scores: Array, maps: Array | None, z: Array | None, truth: GroundTruth, *, normals_alone: bool = False
) -> Run:
    """The run that has noted a validation batch for its thresholds.

    Args:
        run: so far.
        scores: raw image scores.
        maps: of the batch, raw or in sigmas, as the method has thresholds.
        z: image scores in sigmas, for the fit check; None: there is none to be made.
        truth: what is known about the samples.
        normals_alone: whether the pixel threshold is found among the pixels of normal images alone.
    """
    images = scores.shape[0]
    valid = jnp.ones((images,), dtype=bool) if truth.valid is None else truth.valid
    known = jnp.full((images,), UNLABELLED, dtype=jnp.uint8) if truth.labels is None else truth.labels
    kept, labels, maxima, pixels = run.scores, run.labels, run.maxima, run.pixels
    normals, of_normals = run.normals, run.moments
    if kept is not None and labels is not None:
        after = jnp.cumsum(valid.astype(jnp.uint32), dtype=jnp.uint32)
        positions = jnp.where(valid, run.seen + after - jnp.uint32(1), jnp.uint32(kept.shape[0]))  # the last is dropped
        kept = kept.at[positions].set(scores.ravel().astype(kept.dtype), mode="drop")
        labels = labels.at[positions].set(known, mode="drop")
        if maxima is not None and maps is not None:
            largest = largest_defined(maps).astype(maxima.dtype)
            maxima = maxima.at[positions].set(jnp.where(jnp.isnan(largest), -jnp.inf, largest), mode="drop")
    normal = valid & (known == jnp.uint8(NORMAL))
    if pixels is not None and maps is not None:
        if truth.masks is not None and not normals_alone:
            pixels = threshold.update(pixels, maps, truth.masks, where=valid)
        else:  # of an anomalous image the pixels are unknown; without any label all are taken for normal
            pixels = threshold.update(pixels, maps, where=valid if truth.labels is None else normal)
    if normals is not None and of_normals is not None and z is not None and truth.labels is not None:
        flat = z.ravel()
        normals = normals + jnp.stack(counted(flat, lambda which: jnp.sum(which & normal, dtype=jnp.uint32)))
        of_normals = _together(of_normals, moments(flat.astype(of_normals.dtype), normal))
    seen = run.seen + jnp.sum(valid, dtype=jnp.uint32)
    run = replace(run, scores=kept, labels=labels, maxima=maxima, seen=seen, pixels=pixels)
    return replace(run, normals=normals, moments=of_normals)


def merge(kernels: Kernels, a: Run, b: Run) -> Run:
    """The run of both; the scores of ``b`` follow those of ``a``.

    With sigmas, the records were fitted before the run and stay those of ``a``.
    """
    image, pixel, kept, labels, maxima, pixels = a.image, a.pixel, a.scores, a.labels, a.maxima, a.pixels
    if not kernels.method.sigmas:
        image = kernels.merge(image, b.image)
        pixel = None if pixel is None else kernels.merge(pixel, b.pixel)
    if kept is not None and labels is not None:
        capacity = kept.shape[0]
        index = jnp.arange(capacity, dtype=jnp.uint32)
        positions = jnp.where(index < b.seen, a.seen + index, jnp.uint32(capacity))  # the last is dropped
        kept = kept.at[positions].set(b.scores, mode="drop")
        labels = labels.at[positions].set(b.labels, mode="drop")
        maxima = None if maxima is None else maxima.at[positions].set(b.maxima, mode="drop")
    if pixels is not None and b.pixels is not None:
        pixels = threshold.merge(pixels, b.pixels)
    normals = None if a.normals is None or b.normals is None else a.normals + b.normals
    of_normals = None if a.moments is None or b.moments is None else _together(a.moments, b.moments)
    return Run(image, pixel, kept, labels, maxima, a.seen + b.seen, pixels, normals, of_normals, a.method, a.resolution)


def _together(a: Array, b: Array) -> Array:
    """The `fit_check.moments` of the z-scores of both (Chan, Golub and LeVeque; Terriberry, for the cubes)."""
    count = a[0] + b[0]
    share = b[0] / jnp.maximum(count, 1)
    apart = b[1] - a[1]
    between = a[0] * share * apart**2
    cubes = between * apart * (1 - 2 * share) + 3 * apart * ((1 - share) * b[2] - share * a[2])
    return jnp.stack([count, a[1] + share * apart, a[2] + b[2] + between, a[3] + b[3] + cubes])


def on_host(run: Run) -> Gathered | None:
    """What a search for thresholds needs, in NumPy; None where the run keeps nothing, because nothing is searched.

    Raises:
        AnomnormError: there was no room for all scores.
    """
    if run.scores is None and run.pixels is None:
        return None
    seen = int(to_host(run.seen))
    scores, labels = (np.zeros(0, np.float32) if each is None else to_host(each) for each in (run.scores, run.labels))
    if run.scores is not None and seen > scores.size:
        raise AnomnormError(
            f"the validation run had {seen} images, and the hook keeps the scores of {scores.size} to find a threshold "
            f"among them. Make the hook with capacity={seen} or more, or give it a threshold."
        )
    pixels = None if run.pixels is None else jax.tree.map(to_host, run.pixels)
    labels = labels[:seen]
    images = int(np.sum((labels == NORMAL) | (labels == UNLABELLED)))
    maxima = None if run.maxima is None else to_host(run.maxima)[:seen]
    return Gathered(scores[:seen], labels, pixels, images, maxima)
