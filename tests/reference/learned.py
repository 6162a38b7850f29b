"""The learned ranking by loops and an inverted matrix."""

import math

import numpy as np
from scipy import stats

from tests.reference.ranking import rank

RHO = 0.8


def normal_scores(values):
    return [float(stats.norm.ppf((r - 0.5) / len(values))) for r in rank(values)]


def seen(scores, members):
    """The prior's s and the features x, by position of each candidate that has a score."""
    ranked = [idx for idx, score in enumerate(scores) if score is not None]
    s = dict(zip(ranked, normal_scores([scores[idx] for idx in ranked]), strict=True))
    x = {idx: [] for idx in ranked}
    for values in members.values():
        there = [idx for idx in ranked if values[idx] is not None]
        known = dict(zip(there, normal_scores([values[idx] for idx in there]), strict=True))
        for idx in ranked:
            x[idx].append(known.get(idx, s[idx]))
    return s, x if members else {idx: [s[idx]] for idx in ranked}


def targets(s, labels):
    mean = sum(s[idx] for idx in labels) / len(labels)
    variance = sum((s[idx] - mean) ** 2 for idx in labels) / len(labels)
    spread = math.sqrt(RHO**2 * variance + 1 - RHO**2)
    return {idx: RHO * mean + spread * z for idx, z in zip(labels, normal_scores(list(labels.values())), strict=True)}


def kernel(a, b):
    d2 = sum((u - v) ** 2 for u, v in zip(a, b, strict=True)) / len(a)
    return (1 - RHO**2) * math.exp(-d2 / 2)


def posterior(scores, members, labels):
    """Mean and variance of f by position, t, and the factor of the variances."""
    s, x = seen(scores, members)
    labels = {idx: label for idx, label in labels.items() if label is not None}
    t = targets(s, labels)
    known = list(labels)
    covariance = np.array([[kernel(x[i], x[j]) + (i == j) * 0.5 * (1 - RHO**2) for j in known] for i in known])
    inverse = np.linalg.inv(covariance)
    residuals = np.array([t[i] - RHO * s[i] for i in known])
    mean, variance = {}, {}
    for i in s:
        k = np.array([kernel(x[i], x[j]) for j in known])
        mean[i] = RHO * s[i] + k @ inverse @ residuals
        variance[i] = kernel(x[i], x[i]) - k @ inverse @ k
    return mean, variance, t, (4 + residuals @ inverse @ residuals) / (4 + len(known))


def first_left(scores, labels):
    """The position of the best by score that was not tried."""
    left = [idx for idx, score in enumerate(scores) if score is not None and idx not in labels]
    return max(left, key=lambda idx: scores[idx])


def believed(scores, members, labels, pending):
    """Mean and variance of f by position, and t, as if the candidates in training had their means as labels."""
    s, x = seen(scores, members)
    mean, _, t, _ = posterior(scores, members, labels)
    t = {**t, **{idx: mean[idx] for idx in pending}}
    known = list(t)
    covariance = np.array([[kernel(x[i], x[j]) + (i == j) * 0.5 * (1 - RHO**2) for j in known] for i in known])
    inverse = np.linalg.inv(covariance)
    residuals = np.array([t[i] - RHO * s[i] for i in known])
    rows = {i: np.array([kernel(x[i], x[j]) for j in known]) for i in s}
    means = {i: RHO * s[i] + k @ inverse @ residuals for i, k in rows.items()}
    return means, {i: kernel(x[i], x[i]) - k @ inverse @ k for i, k in rows.items()}, t


def gains(scores, members, labels, pending=()):
    """Integrate the improvement over the normal distribution of f + eps, by position of each candidate that is left."""
    mean, variance, t = believed(scores, members, labels, pending)
    at = np.linspace(-9, 9, 4001)
    found = {}
    for idx in mean:
        if idx not in labels and idx not in pending:
            deviation = math.sqrt(variance[idx] + 0.5 * (1 - RHO**2))
            better = np.maximum(mean[idx] + deviation * at - max(mean[j] for j in t), 0)
            found[idx] = float(np.sum(better * stats.norm.pdf(at)) * (at[1] - at[0]))
    return found


def ranks(scores, members, labels, noise_of_labels=0.16):
    """Expected rank and the unrounded ends of its interval, by position."""
    s, _ = seen(scores, members)
    mean, variance, t, scale = posterior(scores, members, labels)
    noise = 0.5 * (1 - RHO**2)
    deviation = {i: math.sqrt(scale * (variance[i] + (0 if i in t else noise))) for i in s}
    quantile = stats.t.ppf(0.975, 4 + len(t))
    n, num = len(s), len(t)
    found = {}
    for i in s:
        others = [j for j in s if j != i]
        if i in t:
            ahead = sum(t[j] > t[i] for j in t) + (sum(t[j] == t[i] for j in t)) / 2
            p = [stats.norm.sf(t[i], RHO * s[j], math.sqrt(scale * 1.5 * (1 - RHO**2))) for j in t]
            places = quantile * (n - num) / num * math.sqrt(sum(q * (1 - q) for q in p))
            label = stats.norm.ppf(ahead / num) * math.sqrt(1 + noise_of_labels**2)  # with noise, so of this variance
            # Bayes' rule on a grid: a standard normal result, and a label with noise.
            if noise_of_labels:
                at = np.linspace(-8, 8, 100_001)
                weights = stats.norm.pdf(at) * stats.norm.pdf(label, at, noise_of_labels)
                weights /= weights.sum()
                mean_of = weights @ at
                deviation_of = math.sqrt(weights @ (at - mean_of) ** 2)
                share = weights @ stats.norm.cdf(at)
            else:
                mean_of, deviation_of, share = label, 0, ahead / num
            low, high = (stats.norm.cdf(mean_of + sign * quantile * deviation_of) for sign in (-1, 1))
            middle = n * share + 0.5
            found[i] = (
                middle,
                middle - math.hypot(places, n * (share - low)),
                middle + math.hypot(places, n * (high - share)),
            )
        else:
            middle = 1 + sum(
                stats.norm.cdf((mean[j] - mean[i]) / math.hypot(deviation[i], deviation[j])) for j in others
            )
            ends = [mean[i] + sign * quantile * deviation[i] for sign in (1, -1)]
            found[i] = (
                middle,
                *(1 + sum(stats.norm.sf(end, mean[j], deviation[j]) for j in others) for end in ends),
            )
    return {i: tuple(min(max(value, 1), n) for value in own) for i, own in found.items()}
