"""Estimates with their intervals: area under the curve, accuracy, ratio of errors. Only arrays are known here."""

import numpy as np

Z = 1.959964  # two-sided 95%


def auc(positive, negative) -> dict[str, float]:
    """P(positive > negative) + P(equal) / 2 with DeLong's 95% interval: {"auc", "low", "high"}.

    DeLong's variance is 0 where one group lies wholly above the other. The interval is then the exact binomial one of as many
    independent comparisons as the smaller group allows.

    Args:
        positive, negative: scores, (M,) and (N,), one at least of each.
    """
    positive, negative = np.asarray(positive, float), np.asarray(negative, float)
    of_positive = _share_below(positive, negative)  # (M,), for each positive the share of negatives below it
    of_negative = 1 - _share_below(negative, positive)  # (N,), for each negative the share of positives above it
    area = of_positive.mean()
    smaller = min(len(positive), len(negative))
    if area in (0.0, 1.0) or smaller < 2:
        bound = 0.025 ** (1 / smaller)
        low, high = (bound, 1.0) if area == 1 else (0.0, 1 - bound) if area == 0 else (0.0, 1.0)
    else:
        half = Z * np.sqrt(of_positive.var(ddof=1) / len(positive) + of_negative.var(ddof=1) / len(negative))
        low, high = max(0.0, area - half), min(1.0, area + half)
    return {"auc": float(area), "low": float(low), "high": float(high)}


def _share_below(scores, others):
    """For each score the share of the others that are smaller, equal ones counting half."""
    others = np.sort(others)
    return (np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")) / (2 * len(others))


def share(successes: int, count: int) -> dict[str, float]:
    """A share with Wilson's 95% interval: {"accuracy", "low", "high", "count"}."""
    p, z2 = successes / count, Z**2
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = Z * np.sqrt(p * (1 - p) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return {"accuracy": p, "low": float(max(0.0, centre - half)), "high": float(min(1.0, centre + half)), "count": count}


def ratio(after, before, seed: int = 0, resamples: int = 2000) -> dict[str, float]:
    """mean(after) / mean(before) of paired errors (N,), with the 95% percentile interval of a bootstrap over the pairs."""
    after, before = np.asarray(after, float), np.asarray(before, float)
    picks = np.random.default_rng(seed).integers(0, len(after), (resamples, len(after)))  # (R, N)
    ratios = after[picks].mean(1) / before[picks].mean(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {"ratio": float(after.mean() / before.mean()), "low": float(low), "high": float(high)}
