"""What the clauses say, one number at a time and independent of every array library.

Exact rationals for min-max, 50 digits for logarithms and the normal distribution, exact summation for moments. Values
arrive as Python floats that are exactly representable in the dtype under test.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath

mpmath.mp.dps = 50

# dtype: (bits of the significand, smallest normal exponent, largest finite number)
_FORMATS = {
    "float64": (53, -1022, float.fromhex("0x1.fffffffffffffp+1023")),
    "float32": (24, -126, float.fromhex("0x1.fffffep+127")),
    "float16": (11, -14, 65504.0),
    "bfloat16": (8, -126, float.fromhex("0x1.fep+127")),
}


def arithmetic(dtype: str) -> str:
    """The dtype that parameters are rounded to, and that results have, for scores of ``dtype`` (clauses N4, N9)."""
    return "float64" if dtype == "float64" else "float32"


def smallest_normal(dtype: str) -> float:
    """The smallest positive number that is not subnormal."""
    return math.ldexp(1.0, _FORMATS[dtype][1])


def largest(dtype: str) -> float:
    """The largest finite number."""
    return _FORMATS[dtype][2]


def ulp(value: float, dtype: str) -> float:
    """Distance to the next number of larger magnitude, for the binade of ``value``."""
    digits, smallest, _ = _FORMATS[dtype]
    exponent = math.frexp(value)[1] - 1 if value else smallest
    return math.ldexp(1.0, max(exponent, smallest) - digits + 1)


def rounded(value: float, dtype: str) -> float:
    """``value`` rounded to ``dtype``, ties to even."""
    if not math.isfinite(value) or dtype == "float64":
        return value
    step = Fraction(ulp(value, dtype))
    result = float(round(Fraction(value) / step) * step)  # Python rounds fractions half to even
    return result if abs(result) <= _FORMATS[dtype][2] else math.copysign(math.inf, value)


def next_up(value: float, dtype: str) -> float:
    """The next larger number of ``dtype``."""
    return -next_down(-value, dtype)


def next_down(value: float, dtype: str) -> float:
    """The next smaller number of ``dtype``; -inf after the last."""
    if dtype == "float64":
        return math.nextafter(value, -math.inf)
    if value <= 0:
        return rounded(value - ulp(value, dtype), dtype)
    # Below a power of two the numbers lie twice as close.
    half = value - ulp(value, dtype) / 2
    return half if rounded(half, dtype) == half else value - ulp(value, dtype)


def all_16_bit(dtype: str) -> list[float]:
    """Every finite number of float16 or bfloat16, in ascending order, one zero."""
    values = set()
    for bits in range(0x8000):
        if dtype == "float16":
            (value,) = struct.unpack("<e", struct.pack("<H", bits))
        else:
            (value,) = struct.unpack("<f", struct.pack("<I", bits << 16))
        if math.isfinite(value):
            values |= {value, -value}
    return sorted(values)


def min_max(x: float, threshold: float, low: float, high: float) -> float:
    """Clauses N1, N6, N7."""
    return _ramp(x, threshold, Fraction(high) - Fraction(low))


def two_slope(x: float, threshold: float, low: float, high: float) -> float:
    """Clauses N1b, N6, N7."""
    span, t = Fraction(high) - Fraction(low), Fraction(threshold)
    side = t - Fraction(low) if x < threshold else Fraction(high) - t
    return _ramp(x, threshold, 2 * side if span > 0 and 20 * side >= span else span)


def _ramp(x: float, threshold: float, width: Fraction) -> float:
    """From 0 to 1 over ``width``, 1/2 at the threshold."""
    if math.isnan(x):
        return math.nan
    if math.isinf(x) or width == 0:
        return 0.5 if x == threshold else float(x > threshold)
    exact = (Fraction(x) - Fraction(threshold)) / width + Fraction(1, 2)
    return float(min(max(exact, Fraction(0)), Fraction(1)))


def z_score(x: float, center: float, std: float) -> mpmath.mpf:
    """Clauses N2, N6."""
    if math.isnan(x):
        return mpmath.nan
    if x <= 0:
        return -mpmath.inf
    if math.isinf(x):
        return mpmath.inf
    return (_log(x) - mpmath.mpf(center)) / mpmath.mpf(std)


@lru_cache(maxsize=2**16)
def _log(x: float) -> mpmath.mpf:
    return mpmath.log(mpmath.mpf(x))


def raw_z_score(x: float, center: float, std: float) -> mpmath.mpf:
    """Clauses N3b, N6: without a logarithm."""
    return (mpmath.mpf(x) - mpmath.mpf(center)) / mpmath.mpf(std)


@lru_cache(maxsize=2**16)
def normal(x: float, threshold: float, std: float) -> float:
    """Clauses N3b, N6, N7, of a raw score and a raw threshold; a deviation of 0 is one that is rounding."""
    if math.isnan(x):
        return math.nan
    if math.isinf(x) or x == threshold or std == 0:
        return 0.5 if x == threshold else float(x > threshold)
    return phi(raw_z_score(x, threshold, std))


@lru_cache(maxsize=2**16)
def cdf(x: float, threshold: float, std: float) -> float:
    """Clauses N3, N6, N7, of a raw score and a raw threshold; a deviation of 0 is one that is rounding."""
    if math.isnan(x):
        return math.nan
    if x <= 0 or math.isinf(x) or x == threshold or std == 0:
        return 0.5 if x == threshold else float(x > threshold)
    return phi((_log(x) - _log(threshold)) / mpmath.mpf(std))


def phi(z: mpmath.mpf | float) -> float:
    """The distribution function of the standard normal distribution."""
    if math.isnan(z):
        return math.nan
    if abs(z) > 40:  # no float64 lies between the value and its limit
        return float(z > 0)
    return float(mpmath.erfc(-mpmath.mpf(z) / mpmath.sqrt(2)) / 2)


def is_constant(mean: float, std: float, center: float, least: float = 2.0**-24) -> bool:
    """Clause N7: whether a deviation of logarithms or, with ``least=2**-126``, of raw scores is rounding."""
    return std <= max(2.0**-21 * max(abs(mean), abs(center)), least)


def raw_threshold(sigmas: float, mean: float, std: float, center: float) -> float:
    """Clauses N3 and N7: where a threshold in sigmas is among raw scores."""
    exp = mpmath.exp(mpmath.mpf(center))
    if not is_constant(mean, std, center):
        return float(mpmath.exp(mpmath.mpf(center) + mpmath.mpf(std) * mpmath.mpf(sigmas)))
    if sigmas == 0:
        return float(exp)
    return _beyond(exp * (1 + mpmath.sign(sigmas) * mpmath.mpf(2) ** -21), sigmas)


def raw_threshold_of_raw_scores(sigmas: float, mean: float, std: float, center: float) -> float:
    """Clauses N3b and N7: the same without a logarithm."""
    if not is_constant(mean, std, center, 2.0**-126):
        return float(mpmath.mpf(center) + mpmath.mpf(std) * mpmath.mpf(sigmas))
    floor = max(mpmath.mpf(2) ** -21 * max(abs(mean), abs(center)), mpmath.mpf(2) ** -126)
    return _beyond(center + mpmath.sign(sigmas) * floor, sigmas) if sigmas else center


def _beyond(edge: mpmath.mpf, side: float) -> float:
    """The first float32 above ``edge``, for a positive ``side``, or below it."""
    near = rounded(float(edge), "float32")
    if side > 0:
        return near if near > edge else next_up(near, "float32")
    return near if near < edge else next_down(near, "float32")


def z_bound(z: mpmath.mpf | float, std: float, dtype: str, log_size: float) -> float:
    """Clause N13 for z of logarithms, of which ``log_size`` is the largest absolute one of scores and centre."""
    if dtype == "float64":
        return 4 * ulp(float(z), dtype) + 4 * ulp(max(log_size, 1.0), dtype) / std
    return 4 * ulp(float(z), "float32") + 2.0**-30 / std


def raw_z_bound(z: mpmath.mpf | float, std: float, dtype: str) -> float:
    """Clause N13 for z of raw scores; what is below the smallest normal number, a difference too, may count as zero."""
    return 4 * ulp(float(z), arithmetic(dtype)) + smallest_normal(arithmetic(dtype)) * (1 + 1 / std)


def unit_bound(dtype: str) -> float:
    """Clause N13 for normalized scores."""
    return 8 * ulp(1.0, dtype) if dtype == "float64" else 2.0**-23


def moments(scores: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation (ddof 1) of the logarithm (clause S3)."""
    return raw_moments(mpmath.log(mpmath.mpf(score)) for score in scores)


def raw_moments(scores: Iterable[Any]) -> tuple[float, float]:
    """Mean and standard deviation (ddof 1) of the scores themselves (clauses N3b, S3)."""
    values = [mpmath.mpf(score) for score in scores]
    mean = mpmath.fsum(values) / len(values)
    variance = mpmath.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return float(mean), float(mpmath.sqrt(variance))


def shrunk(stds: Sequence[float], counts: Sequence[int]) -> list[float]:
    """Deviations of pixels of a map, shrunk toward what is typical of them (clause S3); none may be zero."""
    freedom = [count - 1 for count in counts]
    noise = [mpmath.psi(1, mpmath.mpf(d) / 2) for d in freedom]
    own = [
        2 * mpmath.log(std) - mpmath.psi(0, mpmath.mpf(d) / 2) + mpmath.log(mpmath.mpf(d) / 2)
        for std, d in zip(stds, freedom, strict=True)
    ]
    typical = mpmath.fdot(freedom, own) / sum(freedom)
    differences = [(value - typical) ** 2 - each for value, each in zip(own, noise, strict=True)]
    spread = max(mpmath.mpf(0), mpmath.fdot(freedom, differences) / sum(freedom))
    # An average of both, each with the other's variance as its weight.
    return [
        float(mpmath.exp((each * typical + spread * value) / (each + spread) / 2))
        for value, each in zip(own, noise, strict=True)
    ]


def normal_quantile(u: float) -> mpmath.mpf:
    """The inverse of the normal CDF, for 0 < u < 1."""
    return mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(u) - 1)


def f1(threshold: float, scores: Sequence[float], labels: Sequence[int]) -> Fraction:
    """F1 of the rule ``score >= threshold``, exactly; 0 where it is undefined."""
    flagged = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
    hits = sum(label != 0 for label in flagged)
    total = sum(label != 0 for score, label in zip(scores, labels, strict=True) if not math.isnan(score))
    return Fraction(2 * hits, len(flagged) + total) if flagged or total else Fraction(0)


def adaptive(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Clause T2 by trying every score: the largest of those with the largest F1."""
    candidates = [score for score in scores if math.isfinite(score)]
    return max(candidates, key=lambda threshold: (f1(threshold, scores, labels), threshold))


def quantile(scores: Sequence[float], share: Fraction) -> float:
    """The smallest score that at least this share of the scores does not exceed."""
    valid = sorted(score for score in scores if not math.isnan(score))
    return valid[max(math.ceil(share * len(valid)), 1) - 1]
