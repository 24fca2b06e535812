"""False alarms per pixel with and without shrunk deviations, for docs/evidence/pixel-deviations.md (clause S3).

``python benchmarks/pixel_deviations.py`` writes the page, in less than a minute; ``--quick`` prints one of few draws.
Scores of normal images are drawn (log-normal, of known deviations) or are reconstruction errors of real images, the
digits of scikit-learn; the moments come from n of them, and all rates from others, which nothing has seen.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from contents import with_contents
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from anomnorm_core import cdf

PAGE = Path(__file__).parent.parent / "docs" / "evidence" / "pixel-deviations.md"
IMAGES = (5, 20, 50, 500)
SIZE = (24, 24)
HELD_OUT = 300
SHIFT = 4.0  # an anomaly, in true deviations of its pixel

# Log scores of some images to fit on and of others, and the true deviations of the pixels.
Maps = tuple[np.ndarray, np.ndarray, np.ndarray]
Maker = Callable[[np.random.Generator, int], Maps]


def drawn(differ: float = 0.0, *, smooth: float = 0.0, quiet: bool = False, zeros: bool = False) -> Maker:
    """Normal log scores: how much the logarithms of the pixels' deviations differ, and what maps they form.

    Args:
        differ: standard deviation of the logarithms of the deviations.
        smooth: over how many pixels the scores of an image are alike (standard deviation of a Gaussian filter).
        quiet: whether pixels around a square in the middle deviate by a tenth of the others.
        zeros: whether half of the pixels are zero in 70 to 100% of the images that are fitted.
    """

    def make(random: np.random.Generator, images: int) -> Maps:
        std = 0.1 * np.exp(differ * random.normal(size=SIZE))
        if quiet:
            std[:6], std[-6:], std[:, :6], std[:, -6:] = (std[0, 0] / 10,) * 4
        scores = random.normal(size=(images + HELD_OUT, *SIZE))
        if smooth:
            scores = gaussian_filter(scores, (0.0, smooth, smooth), mode="wrap")
            scores /= scores.std()
        scores = scores * std - 2.0
        fitted, held_out = scores[:images], scores[images:]
        if zeros:
            share = random.uniform(0.0, 0.3, size=SIZE)
            share[:, SIZE[1] // 2 :] = 1.0
            fitted[random.random(fitted.shape) >= share] = -np.inf
        return fitted, held_out, std

    return make


def digits(smooth: float) -> Maker:
    """Squared errors of images of one digit, reconstructed from 8 principal components of 60 others.

    Args:
        smooth: standard deviation of the Gaussian filter over each map, as many detectors have one.
    """
    data = load_digits()
    pixels = data.images.reshape(len(data.images), -1).astype(np.float32)

    def make(random: np.random.Generator, images: int) -> Maps:
        own = random.permutation(pixels[data.target == random.integers(10)])
        detector = PCA(8, svd_solver="full").fit(own[:60])
        errors = (own[60:] - detector.inverse_transform(detector.transform(own[60:]))) ** 2
        errors[:, own[:60].std(axis=0) == 0] = 0.0  # always blank: nothing but rounding
        maps = gaussian_filter(errors.reshape(-1, 8, 8), (0.0, smooth, smooth))
        with np.errstate(divide="ignore"):
            scores = np.log(maps)
        held_out = np.where(np.isfinite(scores[images:]), scores[images:], np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # pixels that are always blank
            std = np.nanstd(held_out, axis=0, ddof=1)
        return scores[:images], held_out, np.where(np.isfinite(held_out).sum(axis=0) < 20, np.nan, std)

    return make


SCENES: dict[str, tuple[Maker, tuple[int, ...]]] = {
    "all alike": (drawn(), IMAGES),
    "all alike, smooth maps": (drawn(smooth=2.0), IMAGES),
    "a little unlike (10% of the pixels deviate by more than 1.3 x the typical)": (drawn(0.2), IMAGES),
    "unlike (10%: more than 2.5 x)": (drawn(0.7), IMAGES),
    "unlike, smooth maps": (drawn(0.7, smooth=2.0), IMAGES),
    "most unlike (10%: more than 7 x)": (drawn(1.5), IMAGES),
    "a quiet border, a tenth of the object": (drawn(quiet=True), IMAGES),
    "a little unlike, half of them mostly zero": (drawn(0.2, zeros=True), IMAGES),
    "digits, PCA": (digits(0.0), IMAGES[:3]),
    "digits, PCA, smoothed": (digits(1.0), IMAGES[:3]),
}


def rates(fitted: np.ndarray, held_out: np.ndarray, std: np.ndarray, level: str) -> list[float]:
    """What a fit at ``level`` gives, in the order of the table's columns, rates in percent.

    False alarms at 2 and 3 sigmas; those at 2 sigmas of the pixels with the largest deviations; anomalies found at 3
    sigmas, and where 2.28% are false alarms; and the root mean squared error of the logarithms of the deviations.
    """
    record = cdf.update(cdf.init(fitted.shape[1:]), np.exp(fitted))
    mean, found = cdf.mean_std(record, level=level)
    known = np.isfinite(std)
    mean, found, std, held_out = mean[known], found[known], std[known], held_out[:, known]
    z, anomalous = (((held_out + shift * std) - mean) / found for shift in (0.0, SHIFT))
    valid = np.isfinite(z)
    largest = valid & (std >= np.quantile(std, 0.9))
    shares = (
        z[valid] >= 2,
        z[valid] >= 3,
        z[largest] >= 2,
        anomalous[valid] >= 3,
        anomalous[valid] >= np.quantile(z[valid], 1 - 0.0228),
    )
    return [*(100 * float(np.mean(each)) for each in shares), float(np.sqrt(np.mean(np.log(found / std) ** 2)))]


def rows(repetitions: int) -> Iterator[list[str]]:
    for name, (make, counts) in SCENES.items():
        for images in counts:
            draws = [make(np.random.default_rng([7, images, i]), images) for i in range(repetitions)]
            plain, shrunk = (np.mean([rates(*maps, level) for maps in draws], axis=0) for level in ("image", "pixel"))
            places = (2, 2, 1, 0, 0, 2)
            pairs = (f"{a:.{digits}f} → {b:.{digits}f}" for a, b, digits in zip(plain, shrunk, places, strict=True))
            yield [name, str(images), *pairs]


def constant_pixels(repetitions: int) -> Iterator[list[str]]:
    """Scores in whole steps, each as large as a typical deviation or three of them: constant pixels by chance."""
    for steps in (1.0, 3.0):
        for images in IMAGES[:3]:
            found = []
            for i in range(repetitions):
                random = np.random.default_rng([8, images, i])
                std = 0.3 * np.exp(0.3 * random.normal(size=SIZE))
                level = random.uniform(5.0, 60.0, size=SIZE)
                scores = np.rint(level + std * random.normal(size=(images + HELD_OUT, *SIZE)) / (0.3 * steps))
                record = cdf.update(cdf.init(SIZE), scores[:images])
                mean, shrunk = cdf.mean_std(record, level="pixel")
                flat = shrunk <= 2.0**-21 * mean
                above = scores[images:] > np.exp(mean) * (1 + 2.0**-20)
                found.append([flat.mean(), above[:, flat].mean() if flat.any() else 0.0])
            share, alarms = np.transpose(found)
            rate = f"{100 * np.average(alarms, weights=share):.1f}" if share.any() else "-"
            yield [f"{steps:.0f}", str(images), f"{100 * share.mean():.1f}", rate]


def table(head: list[str], lines: Iterator[list[str]]) -> str:
    numbers = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, numbers, *lines))


def page(repetitions: int) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-learn"))
    head = ["pixels", "n", "false alarms at 2 sigmas, %", "at 3 sigmas, %", "at 2 sigmas, largest deviations, %"]
    head += ["anomalies found at 3 sigmas, %", "found with 2.28% of false alarms, %", "error of the deviation"]
    flat = ["a step, in typical deviations", "n", "constant pixels, %", "of new normal scores there, above, %"]
    return f"""# Deviations of pixels

Few normal images say little about one pixel: with five of them, a quarter of the deviations come out below 0.7 of the
true ones, and there normal scores raise false alarms. But a map has thousands of pixels, which say together how large
a deviation typically is, and how much pixels differ. So under the CDF the deviation of each pixel is shrunk toward the
typical one (clause [S3](../reference/specification.md#s3-the-score-distribution-record)), as far as their differences
may be chance.
`own = log(s^2) - digamma(d / 2) + log(d / 2)` estimates the logarithm of a pixel's variance from `d = n - 1` degrees of
freedom without bias, and varies by `noise = trigamma(d / 2)`. With means over the pixels, weighted by `d`:

    typical = mean(own)
    spread  = max(0, mean((own - typical)^2 - noise))
    std     = exp((noise typical + spread own) / (noise + spread) / 2)

This is the estimator of Cui, Hwang, Qiu, Blades and Churchill (Biostatistics 6, 2005, 59-75), made for the same
question about genes. It is computed when a fit ends; records, their merging and their memory are as before.

## What it changes

Each cell: without → with. Two sigmas promise 2.28% of false alarms, three 0.135%. *Largest deviations*: the tenth of
the pixels that truly deviate most. *Anomalies*: scores {SHIFT:.0f} true deviations above normal ones; with the true
means and deviations 84% are above three sigmas, and 98% above the threshold that 2.28% of the normal scores exceed.
*Error of the deviation*: root mean square of log(estimate / true). Means over {repetitions} fits with `center="pixel"`
(under the default, `center="image"`, sigmas count from the mean of the image scores, and promise no rate per pixel), of
maps of {SIZE[0]} x {SIZE[1]} pixels (digits: 8 x 8), each tried on {HELD_OUT} new images (digits: 64 to 118).
Written by `python benchmarks/pixel_deviations.py` with anomnorm {version("anomnorm-core")}, {packages}.

{table(head, rows(repetitions))}

- **False alarms** become fewer at every n, most where pixels are alike and at three sigmas. What remains at n = 5
  comes from the means, which five images do not tell either: scores vary around an estimated mean by `sqrt(1 + 1 / n)`
  deviations.
- **Anomalies**: at equally many false alarms no row finds fewer, and with five images all find more. At equally many
  sigmas fewer are found where the deviations were too small before.
- **Where pixels truly differ**, or n is large, each keeps its own deviation.
- **The pixels that deviate most** pay for it: they are taken for less extreme than they are, and raise more false
  alarms than without, mostly where pixels differ a little and n is small. The others raise fewer.
- **Smooth maps**: neighbours come out large or small together, which looks as if pixels were more alike than they are.
  That part of their differences is taken for chance (*digits, PCA, smoothed*), until there are more images.
- **Other distributions**: logarithms of squared errors are skewed to the left, so that *digits, PCA* stays below what
  two sigmas promise with or without.

## Constant pixels

A pixel whose scores are all the same keeps the deviation zero (clause N7: flagged from the first number above), and
has no influence on the others. Floating-point scores that agree to 21 bits in several images did not come out alike by
chance: the detector gives a constant there, and a spread borrowed from other pixels would hide what rises from it. It
is otherwise where scores come in coarse steps (maps saved with 8 bits), and n is small:

{table(flat, constant_pixels(repetitions))}

Do not fit on such maps with few images; give the scores of the detector.

## Without it

`cdf.mean_std(record)` without `level="pixel"` gives deviations as they are, and `Normalizer.of` takes them:

```python
import numpy as np

from anomnorm_core import Normalizer, cdf

scores, maps = np.exp(np.random.default_rng(0).normal(size=(2, 5, 4, 4)))
image = cdf.update(cdf.init(), scores.max(axis=(1, 2)))
pixel = cdf.update(cdf.init((4, 4)), maps)
normalizer = Normalizer.of("cdf", image, cdf.mean_std(pixel), threshold=2.0)
```

Checkpoints of anomalib 0.3 and files keep the deviations that they have.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few fits, and print instead of writing the page")
    if parser.parse_args().quick:
        print(page(2))
    else:
        PAGE.write_text(with_contents(page(20)), encoding="utf-8")
        print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
