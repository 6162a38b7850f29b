"""How well scores predict the results of training: over all pairs, at the top, and in lost accuracy.

Every measure is a pure function of two sequences with one number per candidate. Where it is not defined, it returns
None, never NaN.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lightning_zico.errors import number_of

Array: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = Sequence[float] | Array


class Interval(NamedTuple):
    """An interval that includes both ends."""

    low: float
    high: float


def kendall(a: Numbers, b: Numbers) -> float | None:
    """Compute Kendall's tau-b: concordant minus discordant pairs, as a fraction of the pairs that are not tied.

    Args:
        a: One number per candidate, such as its score.
        b: Numbers of the same candidates, such as accuracies after training.

    Returns:
        Tau from -1 to 1, no unit; 1 is the same order, 0 no relation. None for fewer than two candidates, or if either
        argument is constant.

    Raises:
        ValueError: If the two differ in length, or a number is missing, NaN or infinite.

    Example:
        >>> round(kendall([1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 40.0]), 4)  # 5 pairs agree, 1 does not
        0.6667

    Source:
        Kendall, *The treatment of ties in ranking problems*, Biometrika 1945; `scipy.stats.kendalltau`.
    """
    a, b = _paired(a, b)
    return None if _is_constant(a) or _is_constant(b) else float(stats.kendalltau(a, b).statistic)


def kendall_interval(tau: float, n: int, *, num_draws: int = 1000, seed: int = 0) -> Interval:
    r"""Compute the 95 % interval of Kendall's tau of a few candidates, for which a bootstrap is too narrow.

    It has all :math:`\tau_0` for which the measured tau lies between the quantiles 2.5 and 97.5 % of the taus of n
    candidates, where the two numbers of a candidate are normal with the correlation :math:`\sin(\pi \tau_0 / 2)`, whose
    tau is :math:`\tau_0`. Only ranks matter, so any increasing functions of normal numbers will do.

    Args:
        tau: The measured tau.
        n: Number of candidates, at least 2.
        num_draws: Number of simulated taus for each :math:`\tau_0`, of which there are 101.
        seed: Seed of the simulation.

    Example:
        >>> low, high = kendall_interval(1.0, 4)
        >>> low < 0.5, high
        (True, 1.0)

    Source:
        Test inversion (Neyman 1937) by simulation; Kendall's tau of normal numbers: Greiner, 1909.
    """
    generator = np.random.default_rng(seed)
    a = np.sort(generator.normal(size=(num_draws, n)), axis=1)
    noise = generator.normal(size=(num_draws, n))
    first, second = np.triu_indices(n, 1)
    inside = []
    for candidate in np.linspace(-1, 1, 101):
        correlation = math.sin(math.pi / 2 * candidate)
        b = correlation * a + math.sqrt(1 - correlation**2) * noise
        taus = np.sign(b[:, second] - b[:, first]).mean(axis=1)
        if min(np.mean(taus <= tau + 1e-9), np.mean(taus >= tau - 1e-9)) > 0.025:
            inside.append(float(candidate))
    return Interval(inside[0], inside[-1])


def kendall_where_both(a: Sequence[float | None], b: Sequence[float | None]) -> float | None:
    """Compute `kendall` on the candidates that have both numbers.

    Args:
        a: One number per candidate; None if it is missing.
        b: Numbers of the same candidates.

    Returns:
        Tau from -1 to 1, no unit; None where `kendall` is.

    Raises:
        ValueError: If the two differ in length, or a number is NaN or infinite.

    Example:
        >>> kendall_where_both([1.0, None, 3.0], [1.0, 2.0, 3.0])
        1.0
    """
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return kendall([x for x, _ in both], [y for _, y in both])


def spearman(a: Numbers, b: Numbers) -> float | None:
    """Compute Spearman's rho: Pearson's correlation of the ranks; ties share the mean of their ranks.

    Args:
        a: As for `kendall`, which also lists the exceptions.
        b: As for `kendall`.

    Returns:
        Rho from -1 to 1, no unit; 1 is the same order, 0 no relation. None where `kendall` is.

    Example:
        >>> round(spearman([1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 40.0]), 4)
        0.8

    Source:
        Spearman, *The proof and measurement of association between two things*, 1904; `scipy.stats.spearmanr`.
    """
    a, b = _paired(a, b)
    return None if _is_constant(a) or _is_constant(b) else float(stats.spearmanr(a, b).statistic)


def ndcg(scores: Numbers, truth: Numbers, k: float | None = None) -> float | None:
    r"""Compute the normalised discounted cumulative gain: the value of the best by score, weighted by their places.

    .. math::
        \text{nDCG}_k = \frac{\sum_{j=1}^{k} g_{\sigma(j)} / \log_2(1 + j)}{\sum_{j=1}^{k} g_{(j)} / \log_2(1 + j)},
        \qquad g_i = \frac{t_i - \min t}{\max t - \min t}

    with :math:`\sigma(j)` the candidate at place :math:`j` by score, :math:`g_{(j)}` the :math:`j`-th largest gain, and
    :math:`t` the truth. The gain is the truth, shifted and scaled to range from 0 for the worst candidate to 1 for the
    best. Without the shift, accuracies between .90 and .94 would give every order an nDCG near 1. Candidates with equal
    scores share the mean of their gains, which is the expectation over all their orders.

    Args:
        scores: One score per candidate, higher is better.
        truth: Values of the same candidates, such as accuracies after training, higher is better.
        k: How many candidates count from the top: a whole number, or a fraction of all candidates (0.1 for nDCG@10 %,
            rounded, at least one). 1 is only the first, 1.0 is all. None for all.

    Returns:
        nDCG from 0 to 1, no unit; 1 is the best order. A random order has no fixed value. None for fewer than two
        candidates, or if the truth is constant.

    Raises:
        ValueError: If the two differ in length, a number is missing, NaN or infinite, or ``k`` is out of range.

    Example:
        >>> round(ndcg([1.0, 2.0, 3.0], [0.90, 0.94, 0.92]), 4)  # (1/2 + 1/log2(3)) / (1 + 1/2/log2(3))
        0.8597

    Source:
        Järvelin & Kekäläinen, *Cumulated gain-based evaluation of IR techniques*, ACM TOIS 2002, which uses the gains
        unchanged. Burges et al., ICML 2005, use this discount, with gains :math:`2^g - 1`, which are meant for grades.
        Ties as in McSherry & Najork, ECIR 2008. Same values as scikit-learn's ``ndcg_score`` of the scaled truth.
        Týbl & Neumann, *VKDNW*, arXiv:2502.04975, use it for zero-shot search. Their code passes unscaled accuracies to
        ``ndcg_score``, so its values cannot be compared with ours.
    """
    scores, truth = _paired(scores, truth)
    top = _count_of(k, len(truth))
    if _is_constant(truth):
        return None
    gains = truth / np.abs(truth).max()  # first, so that the range of huge numbers does not overflow
    gains = (gains - gains.min()) / (gains.max() - gains.min())
    discounts = 1 / np.log2(np.arange(2, len(gains) + 2))  # [n]
    discounts[top:] = 0
    _, group = np.unique(-scores, return_inverse=True)  # groups of equal scores, the best first
    shared = (np.bincount(group, gains) / np.bincount(group))[np.sort(group)]  # [n], by place
    return min(float(shared @ discounts) / float(np.sort(gains)[::-1] @ discounts), 1.0)  # rounding may exceed 1


def regret_at_k(scores: Numbers, truth: Numbers, k: float = 1) -> float | None:
    """Compute the loss from training only the ``k`` best by score and keeping the best of them.

    Args:
        scores: One score per candidate, higher is better.
        truth: Values of the same candidates, such as accuracies after training, higher is better.
        k: How many candidates are trained: a whole number, or a fraction of all candidates, as for `ndcg`.

    Returns:
        Best truth of all minus best truth of the chosen, in the unit of the truth; lower is better, 0 is no loss. If
        equal scores compete for the last places, it is the expectation over all their orders. None for no candidates.

    Raises:
        ValueError: If the two differ in length, a number is missing, NaN or infinite, or ``k`` is out of range.

    Example:
        >>> regret_at_k([3.0, 1.0, 2.0], [92.0, 90.0, 94.0])
        2.0
        >>> regret_at_k([3.0, 3.0, 2.0], [92.0, 90.0, 94.0])  # 92 or 90, each in half of the orders
        3.0
    """
    scores, truth = _paired(scores, truth)
    top = _count_of(k, len(truth))
    if not len(truth):
        return None
    losses = truth.max() - truth
    last = np.sort(scores)[::-1][:top][-1]  # the lowest chosen score
    sure = losses[scores > last]
    tied = np.sort(losses[scores == last])  # [T], the best first
    # `top - len(sure)` of the tied candidates are drawn. The best drawn one is at place j with the probability that
    # none before place j is drawn, minus the probability that none up to and including place j is drawn.
    places = np.arange(len(tied))
    none_up_to = np.cumprod((len(tied) - (top - len(sure)) - places) / (len(tied) - places))
    chances = -np.diff(none_up_to, prepend=1.0)
    return float(chances @ np.minimum(tied, sure.min(initial=np.inf)))


def bootstrap_interval(
    metric: Callable[[Any, Any], float | None],
    a: Numbers,
    b: Numbers,
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval | None:
    """Estimate how much a measure would vary with other candidates of the same kind.

    Candidates are drawn with replacement, each with both of its numbers. The interval spans the middle of the measures
    of the resamples. The same seed draws the same candidates for every measure. With a dozen or fewer candidates, the
    interval is too narrow.

    Args:
        metric: Function of two arrays, such as `kendall` or ``functools.partial(ndcg, k=0.1)``.
        a: One number per candidate.
        b: Numbers of the same candidates.
        level: Fraction of the resamples that the interval spans, above 0 and below 1.
        num_resamples: Number of resamples, at least 1.
        seed: Seed of the resampling.

    Returns:
        Interval in the unit of the measure. Resamples for which the measure is None are left out; None if all are.

    Raises:
        ValueError: If the two differ in length, a number is missing, NaN or infinite, or an option is out of range.

    Example:
        >>> scores, truth = range(30), [(7 * i) % 30 for i in range(30)]
        >>> low, high = bootstrap_interval(kendall, scores, truth)
        >>> low < kendall(scores, truth) < high
        True

    Source:
        Percentile bootstrap: Efron, *Nonparametric standard errors and confidence intervals*, 1981.
        `scipy.stats.bootstrap` does the same, but returns no interval if a single resample has no value.
    """
    a, b = _paired(a, b)
    if not 0 < level < 1:
        raise ValueError(f"Invalid level={level}: expected a fraction above 0 and below 1, such as 0.95.")
    if num_resamples < 1:
        raise ValueError(
            f"Invalid num_resamples={num_resamples}: expected at least 1, and about 1000 for stable intervals."
        )
    if not len(a):
        return None
    generator = np.random.default_rng(seed)
    draws = (generator.integers(len(a), size=len(a)) for _ in range(num_resamples))
    measured = [value for value in (metric(a[draw], b[draw]) for draw in draws) if value is not None]
    if not measured:
        return None
    low, high = np.quantile(measured, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _paired(a: Numbers, b: Numbers) -> tuple[Array, Array]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)  # None becomes NaN
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"The arguments have the shapes {list(a.shape)} and {list(b.shape)}: expected one number per candidate in "
            "each. Pass both in the same order of candidates."
        )
    bad = np.flatnonzero(~(np.isfinite(a) & np.isfinite(b)))
    if len(bad):
        raise ValueError(
            f"Candidate {bad[0]} has the numbers {a[bad[0]]} and {b[bad[0]]}: expected finite numbers. Leave out "
            "candidates that lack a number."
        )
    return a, b


def _is_constant(a: Array) -> bool:
    return len(a) < 2 or bool((a == a[0]).all())


def _count_of(k: float | None, num_candidates: int) -> int:
    if k is None:
        return num_candidates
    number = number_of(k)
    if isinstance(number, int) and number >= 1:
        return min(number, num_candidates)
    if isinstance(number, float) and 0 < number <= 1:
        return max(round(number * num_candidates), 1)
    raise ValueError(f"Invalid k={k!r}: expected a whole number of at least 1, or a fraction above 0.0 and up to 1.0.")
