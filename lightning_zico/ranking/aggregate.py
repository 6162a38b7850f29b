"""One number from several proxies, by the ranks they give; ties share the mean of their ranks.

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

# Of one proxy, one a candidate; None where scoring failed.
Values: TypeAlias = Sequence[float | None]


def log_rank(scores: Mapping[str, Values]) -> list[float | None]:
    r"""Sum the logarithms of the ranks that the members give each candidate.

    A low rank costs more than a high one earns, so that a candidate must please every member.

    .. math::
        s_i = \sum_m \log \frac{r_m(i)}{n}

    with :math:`r_m(i)` the rank of candidate :math:`i` by member :math:`m` (1 is worst) among the :math:`n` candidates
    that have a score from every member. The value depends on the whole set: one more candidate changes all of them,
    so values of two sets cannot be compared.

    Args:
        scores: By member, one score a candidate, in the same order for all; higher is better, so negate those of
            which lower is. None where there is none.

    Returns:
        One a candidate, no unit, at most 0, higher is better. None for a candidate that lacks any score: a sum over
        fewer members would not be comparable. Equal products of ranks give equal values.

    Raises:
        ValueError: If there is no member, members differ in length, or a score is NaN or infinite.

    Example:
        >>> log_rank({"zico": [1.0, 7.0, None], "params": [10.0, 20.0, 30.0]})  # n = 2: log(1/2) + log(1/2), 0
        [-1.3862943611198906, 0.0, None]

    Source:
        Lee & Ham, *AZ-NAS*, CVPR 2024, arXiv:2403.19232; cvlab-yonsei/AZ-NAS, ``tss_general.ipynb``. Same numbers as
        that code, except that a failed candidate is left out there by a score of minus infinity, which still takes a
        rank, and here by None.
    """
    ranks, complete = _ranks(scores)
    num_members, num_ranked = ranks.shape
    # Doubled ranks are whole numbers also in ties: their product is exact, and so candidates that are equal stay equal.
    products = [math.prod(doubled) for doubled in (2 * ranks.T).astype(int).tolist()]
    return _spread([math.log(p) - math.log((2 * num_ranked) ** num_members) for p in products], complete)


def mean_rank(scores: Mapping[str, Values]) -> list[float | None]:
    r"""Average the ranks that the members give each candidate.

    .. math::
        s_i = \frac{1}{M} \sum_m \frac{r_m(i)}{n}

    with :math:`r_m(i)` and :math:`n` as in `log_rank`; here too one more candidate changes all values.

    Args:
        scores: As for `log_rank`, which also says what is raised.

    Returns:
        One a candidate, no unit, above 0 and at most 1, higher is better. None for a candidate that lacks any score.

    Example:
        >>> mean_rank({"zico": [1.0, 7.0, None], "params": [20.0, 10.0, 30.0]})
        [0.75, 0.75, None]
    """
    ranks, complete = _ranks(scores)
    return _spread((ranks.sum(axis=0) / max(ranks.size, 1)).tolist(), complete)


def size_controlled(scores: Values, baseline: Values) -> list[float | None]:
    r"""Take out of a proxy's ranks what the ranks of a baseline explain.

    What is left says whether the proxy knows more than the size: where its ranking repeats that of the baseline, all
    values are zero.

    .. math::
        e_i = (y_i - \bar y) - \frac{\sum_j (x_j - \bar x)(y_j - \bar y)}{\sum_j (x_j - \bar x)^2} (x_i - \bar x)

    with :math:`y` the ranks of the scores and :math:`x` those of the baseline: the residual of the least-squares
    line. Where the baseline is constant, the ranks of the scores, centred. The value depends on the whole set.

    Args:
        scores: One a candidate; None where there is none.
        baseline: Of the same candidates, such as their numbers of parameters.

    Returns:
        One a candidate, in ranks, with mean zero; higher is better if it is so for the scores. None for a candidate
        that lacks either.

    Raises:
        ValueError: If the two differ in length, or a score is NaN or infinite.

    Example:
        >>> size_controlled([1.0, 4.0, 2.0, 8.0], [10.0, 20.0, 30.0, 40.0])
        [-0.3, 0.9, -0.9, 0.3]
    """
    ranks, complete = _ranks({"scores": scores, "baseline": baseline})
    y, x = ranks - (ranks.shape[1] + 1) / 2  # a mean of ranks is that of 1, ..., n, also with ties
    variation = x @ x
    if variation > 0:
        # Centred ranks are halves, so that all but the division is exact and equal residuals come out equal;
        # `scipy.stats.linregress` leaves rounding errors, which a later ranking would take for differences.
        y = (y * variation - x * (x @ y)) / variation
    return _spread((y + 0.0).tolist(), complete)  # no negative zeros


def _ranks(scores: Mapping[str, Values]) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Rank what is complete, 1 for the lowest; ``[M, n]``, and which of all candidates these ``n`` are."""
    if not scores:
        raise ValueError("`scores` is empty; needed is at least one member proxy. Name the proxies to combine.")
    lengths = {name: len(values) for name, values in scores.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"The members have different numbers of scores: {lengths}; needed is one a candidate from each. Put None "
            "where there is none."
        )
    for name, values in scores.items():
        check_finite(name, values)
    table = np.array([[math.nan if v is None else v for v in values] for values in scores.values()], dtype=np.float64)
    complete = np.logical_not(np.isnan(table).any(axis=0))
    ranks: NDArray[np.float64] = stats.rankdata(table[:, complete], axis=1)
    return ranks, complete


def check_finite(name: str, values: Values) -> None:
    """Refuse NaN and infinite scores.

    Raises:
        ValueError: If there is one.
    """
    for position, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise ValueError(
                f"Score {position} of '{name}' is {value}; needed is a finite number. Put None where scoring failed."
            )


def _spread(values: Sequence[float], complete: NDArray[Any]) -> list[float | None]:
    """Put the values at the places of the candidates they belong to, and None elsewhere."""
    remaining = iter(values)
    return [next(remaining) if there else None for there in complete.tolist()]
