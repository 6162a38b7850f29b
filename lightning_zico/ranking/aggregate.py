"""Combination of several proxies into one number by their ranks; ties share the mean of their ranks.

Index conventions:
    M: member proxies
    n: candidates that have a score from every member
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# Scores of one proxy, one per candidate; None where scoring failed.
Values: TypeAlias = Sequence[float | None]


def log_rank(scores: Mapping[str, Values]) -> list[float | None]:
    r"""Sum the logarithms of the ranks that the members give each candidate.

    A low rank costs more than a high rank gains, so a candidate needs good ranks from every member.

    .. math::
        s_i = \sum_m \log \frac{r_m(i)}{n}

    with :math:`r_m(i)` the rank of candidate :math:`i` by member :math:`m` (1 is worst) among the :math:`n` candidates
    that have a score from every member. The value depends on the whole set: one more candidate changes all
    values, so values of two sets cannot be compared.

    Args:
        scores: One score per candidate for each member, in the same order for all. Higher is better, so negate scores
            for which lower is better. None if missing.

    Returns:
        One value per candidate, no unit, at most 0, higher is better. None for a candidate that lacks any score,
        because a sum over fewer members would not be comparable. Equal products of ranks give equal values.

    Raises:
        ValueError: If there is no member, members differ in length, or a score is NaN or infinite.

    Example:
        >>> log_rank({"zico": [1.0, 7.0, None], "params": [10.0, 20.0, 30.0]})  # n = 2: log(1/2) + log(1/2), 0
        [-1.3862943611198906, 0.0, None]

    Source:
        Lee & Ham, *AZ-NAS*, CVPR 2024, arXiv:2403.19232; cvlab-yonsei/AZ-NAS, ``tss_general.ipynb``. Same values as
        that code, except for failed candidates: there, they get a score of minus infinity, which still occupies a rank;
        here, they are None.
    """
    ranks, complete = _ranks(scores)
    num_members, num_ranked = ranks.shape
    # Doubled ranks are whole numbers even for ties, so their products are exact, and equal candidates stay equal.
    products = [math.prod(doubled) for doubled in (2 * ranks.T).astype(int).tolist()]
    return _spread([math.log(p) - math.log((2 * num_ranked) ** num_members) for p in products], complete)


def mean_rank(scores: Mapping[str, Values]) -> list[float | None]:
    r"""Average the ranks that the members give each candidate.

    .. math::
        s_i = \frac{1}{M} \sum_m \frac{r_m(i)}{n}

    with :math:`r_m(i)` and :math:`n` as in `log_rank`. Here too, one more candidate changes all values.

    Args:
        scores: As for `log_rank`, which also lists the exceptions.

    Returns:
        One value per candidate, no unit, above 0 and at most 1, higher is better. None for a candidate that lacks any
        score.

    Example:
        >>> mean_rank({"zico": [1.0, 7.0, None], "params": [20.0, 10.0, 30.0]})
        [0.75, 0.75, None]
    """
    ranks, complete = _ranks(scores)
    return _spread((ranks.sum(axis=0) / max(ranks.size, 1)).tolist(), complete)


def size_controlled(scores: Values, baseline: Values) -> list[float | None]:
    r"""Remove from the ranks of a proxy what the ranks of a baseline explain.

    The rest shows whether the proxy knows more than the size: if its ranking is that of the baseline, all values are
    zero.

    .. math::
        e_i = (y_i - \bar y) - \frac{\sum_j (x_j - \bar x)(y_j - \bar y)}{\sum_j (x_j - \bar x)^2} (x_i - \bar x)

    with :math:`y` the ranks of the scores and :math:`x` those of the baseline: the residual of the least-squares
    line. If the baseline is constant, it is the centred ranks of the scores. The value depends on the whole set.

    Args:
        scores: One score per candidate; None if missing.
        baseline: Baseline values of the same candidates, such as their numbers of parameters; None if missing.

    Returns:
        One value per candidate, in ranks, with mean zero; higher is better if it is for the scores. None for a
        candidate that lacks either value.

    Raises:
        ValueError: If the two differ in length, or a score is NaN or infinite.

    Example:
        >>> size_controlled([1.0, 4.0, 2.0, 8.0], [10.0, 20.0, 30.0, 40.0])
        [-0.3, 0.9, -0.9, 0.3]
    """
    ranks, complete = _ranks({"scores": scores, "baseline": baseline})
    y, x = ranks - (ranks.shape[1] + 1) / 2  # the mean of the ranks is that of 1, ..., n, even with ties
    variation = x @ x
    if variation > 0:
        # Centred ranks are multiples of 1/2, so everything but the division is exact, and equal residuals stay equal.
        # The rounding errors of `scipy.stats.linregress` would look like differences in a later ranking.
        y = (y * variation - x * (x @ y)) / variation
    return _spread((y + 0.0).tolist(), complete)  # no negative zeros


def _ranks(scores: Mapping[str, Values]) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Rank the complete candidates, 1 for the lowest: ``[M, n]``, and which of all candidates these ``n`` are."""
    if not scores:
        raise ValueError("`scores` is empty: expected at least one member proxy. Name the proxies to combine.")
    lengths = {name: len(values) for name, values in scores.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"The members have different numbers of scores, {lengths}: expected one per candidate from each. Use None "
            "for missing scores."
        )
    for name, values in scores.items():
        check_finite(name, values)
    table = np.array([[math.nan if v is None else v for v in values] for values in scores.values()], dtype=np.float64)
    complete = np.logical_not(np.isnan(table).any(axis=0))
    ranks: NDArray[np.float64] = stats.rankdata(table[:, complete], axis=1)
    return ranks, complete


def check_finite(name: str, values: Values) -> None:
    """Check that no score is NaN or infinite.

    Raises:
        ValueError: If a score is.
    """
    for position, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise ValueError(
                f"Score {position} of '{name}' is {value}: expected a finite number. Use None where scoring failed."
            )


def _spread(values: Sequence[float], complete: NDArray[Any]) -> list[float | None]:
    """Return the values at the positions of their candidates, and None elsewhere."""
    remaining = iter(values)
    return [next(remaining) if there else None for there in complete.tolist()]
