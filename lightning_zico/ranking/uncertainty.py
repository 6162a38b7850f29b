"""Uncertainty of a ranking, estimated from repeats of the scores with other weights and batches.

Index conventions:
    n: candidates
    T: resamples of a bootstrap that are ranked together
    R: repeats; repeat r uses the same seed and batches for every candidate, so all comparisons are paired
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lightning_zico.ranking.correlation import Array, Interval

Repeats: TypeAlias = Sequence[float]

# Level of the intervals.
_LEVEL = 0.95

# Ten thousand candidates with ten repeats then need 80 MB.
_TOGETHER = 100


class Uncertainty(NamedTuple):
    """Uncertainty of one candidate's rank. All fields but the last are None for a single repeat.

    Attributes:
        std_error: Standard error of the mean score.
        rank_low: Best rank in the 95 % interval.
        rank_high: Worst rank in the 95 % interval.
        p_best: Probability that the candidate is the best.
        tie: Number of the tie group, 1 for the first. The candidates of a group cannot be distinguished from its first.
        num_repeats: Number of times the candidate was scored.
    """

    std_error: float | None
    rank_low: int | None
    rank_high: int | None
    p_best: float | None
    tie: int | None
    num_repeats: int


def uncertainties(scores: Sequence[Repeats], *, num_resamples: int = 1000, seed: int = 0) -> list[Uncertainty]:
    """Estimate how certain the rank of each candidate is, in a ranking by the mean score.

    Args:
        scores: Scores of each candidate in the same repeats, higher is better.
        num_resamples: Number of bootstrap resamples, at least 1.
        seed: Seed of the bootstrap.

    Returns:
        One uncertainty per candidate, in the same order.

    Raises:
        ValueError: If candidates differ in their number of repeats, or ``num_resamples`` is below 1.

    Example:
        >>> clear, level, even = uncertainties([[5.0, 6.0, 5.5], [1.0, 2.0, 1.7], [2.0, 1.0, 1.6]])
        >>> (clear.rank_low, clear.rank_high, clear.p_best, clear.tie)
        (1, 1, 1.0, 1)
        >>> (level.rank_low, level.rank_high, level.tie, even.tie)
        (2, 3, 2, 2)

    Source:
        Bootstrap of ranks: Goldstein & Spiegelhalter, *League tables and their limitations*, JRSS A 1996. Here, whole
        repeats are drawn, the same for all candidates. With three or fewer repeats, the intervals are too narrow.
    """
    counts = {len(repeats) for repeats in scores}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(f"The candidates have {sorted(counts)} repeats: expected the same number for all, at least 1.")
    if counts <= {1}:
        return [Uncertainty(None, None, None, None, None, 1) for _ in scores]
    ranks = bootstrap_ranks(np.array(scores, dtype=np.float64), num_resamples=num_resamples, seed=seed)
    is_first = ranks == 1
    chances = (is_first / is_first.sum(axis=1, keepdims=True)).mean(axis=0).tolist()  # [n]; ties share the chance
    found = []
    for repeats, own, chance, group in zip(scores, ranks.T, chances, tie_groups(scores), strict=True):
        found.append(Uncertainty(standard_error(repeats), *rank_interval(own), chance, group, len(repeats)))
    return found


def tie_groups(scores: Sequence[Repeats]) -> list[int]:
    """Number the tie groups, from the top of the ranking down.

    A candidate joins the group above it as long as the interval of its difference from the *first* of the group
    includes zero. Otherwise, it starts the next group. If neighbours were compared instead, a long sequence of small
    steps would form one group whose ends are far apart.

    Args:
        scores: Scores of each candidate in the same repeats, at least two, higher is better.

    Returns:
        One group number per candidate, in the same order; 1 for the group of the best.

    Example:
        >>> tie_groups([[1.0, 2.0], [8.0, 9.0], [9.0, 8.0]])
        [2, 1, 1]
    """
    groups = [0] * len(scores)
    first: Repeats | None = None
    number = 0
    for idx in sorted(range(len(scores)), key=lambda idx: -statistics.fmean(scores[idx])):
        interval = None if first is None else difference_interval(first, scores[idx])
        if interval is None or not interval.low <= 0 <= interval.high:
            first, number = scores[idx], number + 1
        groups[idx] = number
    return groups


def standard_error(repeats: Repeats) -> float | None:
    """Estimate the standard error of a mean from the sample deviation; None for fewer than two numbers."""
    return statistics.stdev(repeats) / math.sqrt(len(repeats)) if len(repeats) > 1 else None


def bootstrap_ranks(table: Array, *, num_resamples: int = 1000, seed: int = 0) -> NDArray[np.int32]:
    """Rank candidates by the means of resampled repeats.

    Args:
        table: Scores ``[n, R]``, higher is better. Repeats are drawn with replacement, the same for all candidates.
        num_resamples: Number of resamples, at least 1.
        seed: Seed of the resampling.

    Returns:
        Ranks ``[num_resamples, n]``, 1 for the best; equal means share the better rank, as in a leaderboard.

    Raises:
        ValueError: If a score is not finite, or ``num_resamples`` is below 1.
    """
    if num_resamples < 1:
        raise ValueError(
            f"Invalid num_resamples={num_resamples}: expected at least 1, and about 1000 for stable intervals."
        )
    if not np.isfinite(table).all():
        raise ValueError("A score is NaN or infinite: expected finite scores. Leave out the candidates that failed.")
    num_candidates, num_repeats = table.shape
    draws = np.random.default_rng(seed).integers(num_repeats, size=(num_resamples, num_repeats))
    ranks = np.empty((num_resamples, num_candidates), dtype=np.int32)
    for start in range(0, num_resamples, _TOGETHER):
        means = table[:, draws[start : start + _TOGETHER]].mean(axis=2)  # [n, T, R] -> [n, T]
        ranks[start : start + _TOGETHER] = stats.rankdata(-means, method="min", axis=0).T
    return ranks


def rank_interval(ranks: NDArray[Any]) -> tuple[int, int]:
    """Find the ranks between which the middle 95 % of a candidate's resampled ranks lie, both included."""
    ends = ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2)
    low, high = np.quantile(ranks, ends, method="inverted_cdf")  # only ranks that occur, none in between
    return int(low), int(high)


def difference_interval(a: Repeats, b: Repeats) -> Interval:
    r"""Compute the confidence interval of the mean difference of two candidates from their differences in each repeat.

    .. math::
        \bar d \pm t_{0.975, R - 1} \frac{s_d}{\sqrt R}

    with :math:`d_r = a_r - b_r`, :math:`s_d` their standard deviation and :math:`t` the quantile of Student's
    distribution. For normally distributed differences, it covers in 95 of 100 cases even with two repeats, unlike a
    bootstrap.

    Args:
        a: One score per repeat.
        b: Scores of the other candidate in the same repeats.

    Raises:
        ValueError: If there are fewer than two repeats, or the two differ in their number.

    Example:
        >>> difference_interval([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
        Interval(low=2.0, high=2.0)

    Source:
        Student, *The probable error of a mean*, Biometrika 1908; the paired t-test.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    error = standard_error(differences)
    if error is None:
        raise ValueError(
            f"The number of repeats is {len(differences)}: expected at least 2, to estimate how much they vary."
        )
    mean = statistics.fmean(differences)
    margin = float(stats.t.ppf((1 + _LEVEL) / 2, len(differences) - 1)) * error
    return Interval(mean - margin, mean + margin)
