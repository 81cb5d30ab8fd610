"""Confidence intervals of means, AUROCs, correlations and mean IoUs.

All are closed formulas: they draw nothing at random. benchmarks/coverage.py measures how often they contain the true value.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, stats

Interval = tuple[float, float]
UNDEFINED: Interval = (np.nan, np.nan)


def jackknife_interval(
    estimate: float,
    left_out: Float[np.ndarray, " image"],
    confidence: float,
    freedom: float | None = None,
    within: Interval = (-np.inf, np.inf),
) -> Interval:
    """Compute Student's t interval of a statistic from its values without one image each; NaN for fewer than two images.

    left_out: the statistic of all images but one. freedom: degrees of freedom of the t quantile (default: images - 1). within:
    the range of the statistic.

    The jackknife's standard error is not too small on average, even if the statistic jumps when a class disappears (Efron and
    Stein 1981, Annals of Statistics 9:586). The interval reaches from the estimate to the estimate without the jackknife's bias
    (Quenouille 1956), plus t standard errors on both sides. It is therefore an interval both of the statistic's average over
    samples of this size and of its value in an infinitely large sample.
    """
    count = len(left_out)
    if count < 2:
        return UNDEFINED
    deviation = left_out - left_out.mean()
    error = np.sqrt((count - 1) / count * (deviation**2).sum())
    bias = (count - 1) * (left_out.mean() - estimate)
    reach = stats.t.ppf((1 + confidence) / 2, count - 1 if freedom is None else freedom) * error
    low, high = np.clip([estimate - max(bias, 0) - reach, estimate - min(bias, 0) + reach], *within)
    return float(low), float(high)


def mean_interval(value: Float[np.ndarray, " image"], confidence: float) -> Interval:
    """Compute the interval of a mean by Student's t with Hall's correction for skewness; NaN for fewer than two images.

    The transformation g(T) = T + T² a / 3 + T³ a² / 27 + a / 6 with a = skewness / √n removes the skewness of
    T = (mean - true mean) / standard error (Hall 1992, Journal of the Royal Statistical Society B 54:221). The interval holds
    the means for which g(T) is between the quantiles of Student's t. Without skewness it is Student's interval.
    """
    count = len(value)
    if count < 2:
        return UNDEFINED
    mean, error = value.mean(), value.std(ddof=1) / np.sqrt(count)
    skewness = stats.skew(value) if error > 1e-12 * abs(mean) else 0.0
    a = skewness / np.sqrt(count)
    quantile = stats.t.ppf((1 + confidence) / 2, count - 1)
    low, high = (mean - _untransform(end, a) * error for end in (quantile, -quantile))
    return float(low), float(high)


def _untransform(transformed: float, a: float) -> float:
    """Return T from g(T) = ((1 + a T / 3)³ - 1) / a + a / 6."""
    return transformed if abs(a) < 1e-6 else 3 / a * (np.cbrt(1 + a * (transformed - a / 6)) - 1)


def placements(
    inside: Float[np.ndarray, " image"], outside: Float[np.ndarray, " other"]
) -> tuple[Float[np.ndarray, " image"], Float[np.ndarray, " other"]]:
    """Compute the share of the other side's values that are smaller (inside) or larger (outside) than each value.

    Ties count half. The mean of either array is the AUROC.
    """
    ranks = stats.rankdata(np.concatenate([inside, outside]))
    above = (ranks[: len(inside)] - stats.rankdata(inside)) / len(outside)
    below = (ranks[len(inside) :] - stats.rankdata(outside)) / len(inside)
    return above, 1 - below


def auroc_interval(inside: Float[np.ndarray, " image"], outside: Float[np.ndarray, " other"], confidence: float) -> Interval:
    """Compute the interval of the AUROC, the wider end of two on each side; NaN for fewer than two images on a side.

    The first is DeLong's (1988, Biometrics 44:837) on the logit scale, with Satterthwaite's degrees of freedom. Its
    variance comes from the sample. It is too small, or zero, if few pairs of images are in the wrong order. The second is
    Newcombe's method 5 (2006, Statistics in Medicine 25:559). Its variance depends only on the true AUROC, so it has a width
    even if the AUROC is 0 or 1.
    """
    if min(len(inside), len(outside)) < 2:
        return UNDEFINED
    above, below = placements(inside, outside)
    area = float(above.mean())
    parts = [(side.var(ddof=1) / len(side), len(side)) for side in (above, below)]
    variance = parts[0][0] + parts[1][0]
    low, high = _newcombe_interval(area, len(inside), len(outside), confidence)
    if 0 < area < 1 and variance > 0:
        logit = np.log(area / (1 - area))
        reach = stats.t.ppf((1 + confidence) / 2, _satterthwaite(*parts)) * np.sqrt(variance) / (area * (1 - area))
        low = min(low, _logistic(logit - reach))
        high = max(high, _logistic(logit + reach))
    return low, high


def _logistic(logit: float) -> float:
    return float(stats.logistic.cdf(logit))


def _newcombe_interval(area: float, inside: int, outside: int, confidence: float) -> Interval:
    """Return the AUROCs that are at most z of their own standard errors from the measured one."""
    quantile = stats.norm.ppf((1 + confidence) / 2)
    extra = (inside + outside) / 2 - 1

    def error(true: float) -> float:
        spread = 1 + extra * (1 - true) / (2 - true) + extra * true / (1 + true)
        return float(np.sqrt(true * (1 - true) * spread / (inside * outside)))

    def lower(area: float) -> float:
        if area == 0:
            return 0.0
        end = min(area, 1 - 1e-12)  # 1 is a root of its own
        return float(optimize.brentq(lambda true: area - true - quantile * error(true), 0, end))

    return lower(area), 1 - lower(1 - area)  # the error is the same at 1 - true


def correlation_interval(
    value: Float[np.ndarray, " image"], labelled: Bool[np.ndarray, " image"], confidence: float
) -> Interval:
    """Compute the interval of the correlation of a value with a label, the wider end of two on each side.

    Both are on Fisher's scale, arctanh r. The first is Fisher's, which assumes normal values. The second is the jackknife's,
    with Satterthwaite's degrees of freedom over the images with and without the label; it assumes no distribution. NaN for
    fewer than two images on a side, and if the correlation without one image is undefined, 1 or -1.
    """
    sides = labelled, ~labelled
    if min(side.sum() for side in sides) < 2:
        return UNDEFINED
    correlation = np.corrcoef(value, labelled)[0, 1]
    without_one = _correlations_without_one(value, labelled.astype(float))
    if not (np.abs([correlation, *without_one]) < 1 - 1e-12).all():
        return UNDEFINED
    z, left_out = np.arctanh(correlation), np.arctanh(without_one)
    squares = (left_out - left_out.mean()) ** 2
    freedom = _satterthwaite(*((squares[side].sum(), int(side.sum())) for side in sides))
    low, high = jackknife_interval(z, left_out, confidence, freedom)
    reach = stats.norm.ppf((1 + confidence) / 2) / np.sqrt(len(value) - 3)
    return float(np.tanh(min(low, z - reach))), float(np.tanh(max(high, z + reach)))


def _satterthwaite(*parts: tuple[float, int]) -> float:
    """Return the degrees of freedom of a sum of variances, each given with its number of images; infinity for no variance."""
    total = sum(variance for variance, _ in parts)
    return float(total**2 / sum(variance**2 / (count - 1) for variance, count in parts)) if total > 0 else np.inf


def _correlations_without_one(
    first: Float[np.ndarray, " image"], second: Float[np.ndarray, " image"]
) -> Float[np.ndarray, " image"]:
    """Compute the correlation of all images but one, for each image; NaN where the others are equal."""
    scale = len(first) / (len(first) - 1)  # without one image, a sum of centred products is smaller by scale * its product
    first, second = first - first.mean(), second - second.mean()
    variances = []
    for side in (first, second):
        total = side @ side
        rest = total - scale * side**2
        variances.append(np.where(rest > 1e-12 * total, rest, np.nan))
    return (first @ second - scale * first * second) / np.sqrt(variances[0] * variances[1])
