"""Placement of candidates without a score among those that have it, by another score.

Index conventions:
    n: candidates with the other score
    m: those of them that also have the score
"""

import math

import numpy as np
from scipy import stats

from lightning_zico.ranking.aggregate import Values, check_finite


def placed_beside(scores: Values, others: Values) -> list[float | None]:
    r"""Fill in missing scores at the quantile given by another score.

    .. math::
        q_i = \frac{r_i - 1/2}{n}, \qquad s_i = Q(q_i), \qquad Q\Bigl(\frac{k - 1/2}{m}\Bigr) = s_{(k)}

    with :math:`r_i` the rank of candidate :math:`i` by the other score (1 is worst, ties share the mean of their
    ranks) among the :math:`n` candidates that have it, :math:`s_{(1)} \le \dots \le s_{(m)}` the known scores, and
    :math:`Q` linear between these points. Below the first and above the last point, :math:`Q` is constant, so no
    candidate is placed before the best or after the worst of those with a score. The order of the candidates does not
    matter.

    Args:
        scores: One score per candidate, higher is better; None if missing.
        others: The other scores of the same candidates, higher is better; None if missing.

    Returns:
        ``scores`` with the gaps filled; None for a candidate that lacks both.

    Raises:
        ValueError: If the two differ in length, or a score is NaN or infinite.

    Example:
        >>> placed_beside([1.0, None, 3.0, 5.0], [10.0, 25.0, 20.0, 30.0])  # between the second and the third
        [1.0, 3.75, 3.0, 5.0]
    """
    if len(scores) != len(others):
        raise ValueError(
            f"There are {len(scores)} scores and {len(others)} others: expected one of each per candidate."
        )
    check_finite("scores", scores)
    check_finite("others", others)
    known = np.sort(np.array([s for s, other in zip(scores, others, strict=True) if None not in (s, other)], float))
    if not known.size:
        return list(scores)
    table = np.array([math.nan if other is None else other for other in others], dtype=np.float64)
    there = np.logical_not(np.isnan(table))
    places = np.full(len(table), math.nan)
    places[there] = (stats.rankdata(table[there]) - 0.5) / there.sum()
    points = (np.arange(known.size) + 0.5) / known.size
    filled = np.interp(places, points, known)
    return [
        None if s is None and other is None else s if s is not None else float(value)
        for s, other, value in zip(scores, others, filled, strict=True)
    ]
