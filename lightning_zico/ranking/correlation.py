"""How well scores foretell what training finds: over all pairs, at the top, and in lost accuracy.

Every measure is a pure function of two sequences with one number a candidate. Where it is not defined it is None, never
NaN.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = Sequence[float] | Array


class Interval(NamedTuple):
    """Two ends, both included."""

    low: float
    high: float


def kendall(a: Numbers, b: Numbers) -> float | None:
    """Compute Kendall's tau-b: concordant minus discordant pairs, as a share of the pairs that are not tied.

    Args:
        a: One number a candidate, such as scores.
        b: Of the same candidates, such as accuracies after training.

    Returns:
        From -1 to 1, no unit; 1 is the same order, 0 none in common. None for fewer than two candidates, or if either
        is constant.

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


def spearman(a: Numbers, b: Numbers) -> float | None:
    """Compute Spearman's rho: Pearson's correlation of the ranks, ties sharing the mean of theirs.

    Args:
        a: As for `kendall`, which also says what is raised.
        b: Likewise.

    Returns:
        From -1 to 1, no unit; 1 is the same order, 0 none in common. None where `kendall` is.

    Example:
        >>> round(spearman([1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 40.0]), 4)
        0.8

    Source:
        Spearman, *The proof and measurement of association between two things*, 1904; `scipy.stats.spearmanr`.
    """
    a, b = _paired(a, b)
    return None if _is_constant(a) or _is_constant(b) else float(stats.spearmanr(a, b).statistic)


def ndcg(scores: Numbers, truth: Numbers, k: float | None = None) -> float | None:
    r"""Compute the normalised discounted cumulative gain: what the best by score are worth, the first the most.

    .. math::
        \text{nDCG}_k = \frac{\sum_{j=1}^{k} g_{\sigma(j)} / \log_2(1 + j)}{\sum_{j=1}^{k} g_{(j)} / \log_2(1 + j)},
        \qquad g_i = \frac{t_i - \min t}{\max t - \min t}

    with :math:`\sigma(j)` the candidate at place :math:`j` by score, :math:`g_{(j)}` the :math:`j`-th largest gain, and
    :math:`t` the truth. The gain is the truth itself, shifted and scaled to run from 0 for the worst candidate to 1 for
    the best: without the shift, accuracies between .90 and .94 would give every order an nDCG near 1. Candidates with
    equal scores share the mean of their gains, which is the expectation over all orders of them.

    Args:
        scores: One a candidate, higher is better.
        truth: Of the same candidates, such as accuracies after training, higher is better.
        k: How many count from the top: a whole number, or a fraction of all candidates (0.1 for nDCG@10 %, rounded, at
            least one); 1 is the first alone, 1.0 is all. None for all.

    Returns:
        From 0 to 1, no unit; 1 is the best order. It has no fixed value for a random order. None for fewer than two
        candidates, or if the truth is constant.

    Raises:
        ValueError: If the two differ in length, a number is missing, NaN or infinite, or ``k`` is out of range.

    Example:
        >>> round(ndcg([1.0, 2.0, 3.0], [0.90, 0.94, 0.92]), 4)  # (1/2 + 1/log2(3)) / (1 + 1/2/log2(3))
        0.8597

    Source:
        Järvelin & Kekäläinen, *Cumulated gain-based evaluation of IR techniques*, ACM TOIS 2002, whose gains enter as
        they are; Burges et al., ICML 2005, have this discount, and gains :math:`2^g - 1`, which are made for grades.
        Ties as in McSherry & Najork, ECIR 2008. Same numbers as scikit-learn's ``ndcg_score`` of the scaled truth.
        Týbl & Neumann, *VKDNW*, arXiv:2502.04975, use it for zero-shot search; their code gives ``ndcg_score`` the
        accuracies unscaled, so that its values cannot be compared with ours.
    """
    scores, truth = _paired(scores, truth)
    top = _count_of(k, len(truth))
    if _is_constant(truth):
        return None
    gains = truth / np.abs(truth).max()  # first, so that the range of huge numbers does not overflow
    gains = (gains - gains.min()) / (gains.max() - gains.min())
    discounts = 1 / np.log2(np.arange(2, len(gains) + 2))  # [n]
    discounts[top:] = 0
    _, group = np.unique(-scores, return_inverse=True)  # of equal scores, the best group first
    shared = (np.bincount(group, gains) / np.bincount(group))[np.sort(group)]  # [n], by place
    return min(float(shared @ discounts) / float(np.sort(gains)[::-1] @ discounts), 1.0)  # rounding may lift it over 1


def regret_at_k(scores: Numbers, truth: Numbers, k: float = 1) -> float | None:
    """Compute what is lost by training only the ``k`` best by score and keeping the best of these.

    Args:
        scores: One a candidate, higher is better.
        truth: Of the same candidates, such as accuracies after training, higher is better.
        k: How many are trained: a whole number, or a fraction of all candidates, as for `ndcg`.

    Returns:
        Best truth of all minus best truth of the chosen, in the truth's unit; lower is better, 0 is no loss. Where
        equal scores compete for the last places, the expectation over all orders of them. None for no candidates.

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
    last = np.sort(scores)[::-1][:top][-1]  # the lowest score that is chosen
    sure = losses[scores > last]
    tied = np.sort(losses[scores == last])  # [T], the best first
    # Of the tied ones, `top - len(sure)` are drawn. The best that is drawn is at place j with the probability that
    # none before it is, less the probability that none up to it is.
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
    """Say how far a measure would move with other candidates of the same kind.

    Candidates are drawn with replacement, each with both of its numbers, and the interval is what the middle of the
    resamples' measures spans. One seed draws the same candidates for every measure. With a dozen candidates or fewer
    the interval is too narrow.

    Args:
        metric: Of two arrays, such as `kendall` or ``functools.partial(ndcg, k=0.1)``.
        a: One number a candidate.
        b: Of the same candidates.
        level: Share of the resamples that the interval spans, above 0 and below 1.
        num_resamples: At least 1.
        seed: Of the drawing.

    Returns:
        In the measure's unit. Resamples of which the measure is None are left out; None if all are.

    Raises:
        ValueError: If the two differ in length, a number is missing, NaN or infinite, or an option is out of range.

    Example:
        >>> scores, truth = range(30), [(7 * i) % 30 for i in range(30)]
        >>> low, high = bootstrap_interval(kendall, scores, truth)
        >>> low < kendall(scores, truth) < high
        True

    Source:
        Percentile bootstrap: Efron, *Nonparametric standard errors and confidence intervals*, 1981.
        `scipy.stats.bootstrap` does the same, but has no answer where one resample has none.
    """
    a, b = _paired(a, b)
    if not 0 < level < 1:
        raise ValueError(f"`level` is {level}; needed is a share above 0 and below 1, such as 0.95.")
    if num_resamples < 1:
        raise ValueError(f"`num_resamples` is {num_resamples}; needed is at least 1, and some 1000 for steady ends.")
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
            f"The two have shapes {list(a.shape)} and {list(b.shape)}; needed is one number a candidate from each. "
            "Give both in the order of the candidates."
        )
    bad = np.flatnonzero(~(np.isfinite(a) & np.isfinite(b)))
    if len(bad):
        raise ValueError(
            f"Candidate {bad[0]} has the numbers {a[bad[0]]} and {b[bad[0]]}; needed are finite ones. Leave out the "
            "candidates that lack a number."
        )
    return a, b


def _is_constant(a: Array) -> bool:
    return len(a) < 2 or bool((a == a[0]).all())


def _count_of(k: float | None, num_candidates: int) -> int:
    if k is None:
        return num_candidates
    if isinstance(k, int) and k >= 1:
        return min(k, num_candidates)
    if isinstance(k, float) and 0 < k <= 1:
        return max(round(k * num_candidates), 1)
    raise ValueError(
        f"`k` is {k!r}; needed is a whole number from 1, or a fraction of the candidates above 0.0 and up to 1.0."
    )
