"""Several objectives at once: which candidates no other one beats in all of them, and how crowded they stand.

Index conventions:
    n: candidates
    M: objectives
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def front_numbers(points: Sequence[Sequence[float]]) -> list[int]:
    """Number the fronts that candidates stand on.

    One candidate dominates another if it is at least as good in every objective, and better in one. Front 0 is
    dominated by nobody; front 1 by candidates of front 0 alone, and so on. With one objective they are the distinct
    values.

    Args:
        points: ``[n, M]``, higher is better.

    Returns:
        ``[n]``, 0 for the best.

    Example:
        >>> front_numbers([(1.0, 3.0), (2.0, 2.0), (1.0, 2.0)])
        [0, 0, 1]

    Source:
        Deb et al., *NSGA-II*, IEEE TEC 2002, "fast non-dominated sort"; here all pairs are compared at once, and each
        front takes its part out of the numbers of those who dominate.
    """
    if not points:
        return []
    table = np.array(points, dtype=np.float64)  # [n, M]
    as_good: NDArray[np.bool_] = np.logical_and.reduce([column[:, None] >= column for column in table.T])  # [n, n]
    dominates = as_good & ~as_good.T
    fronts = np.full(len(table), -1)
    num_dominating = dominates.sum(axis=0)
    number = 0
    while (left := fronts < 0).any():
        front = left & (num_dominating == 0)
        fronts[front] = number
        num_dominating -= dominates[front].sum(axis=0)
        number += 1
    return fronts.tolist()


def first_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Find the candidates that no other dominates, as `front_numbers` has them on front 0.

    Whoever is compared is compared with the front alone, so that ten thousands take no matrix of all pairs.

    Args:
        points: ``[n, M]``, higher is better.

    Returns:
        Their places, in order.

    Example:
        >>> first_front([(1.0, 3.0), (2.0, 2.0), (1.0, 2.0)])
        [0, 1]
    """
    if not points:
        return []
    table = np.array(points, dtype=np.float64)  # [n, M]
    order = np.lexsort(-table.T[::-1])  # the best in the first objective first, so that nobody dominates an earlier one
    front: list[int] = []
    for place in order.tolist():
        held = table[front]
        if not (np.all(held >= table[place], axis=1) & np.any(held > table[place], axis=1)).any():
            front.append(place)
    return sorted(front)


def crowding_distances(points: Sequence[Sequence[float]]) -> list[float]:
    r"""Measure how far from its neighbours a candidate stands among those of its front.

    .. math::
        d_i = \sum_m \frac{x_m(i + 1) - x_m(i - 1)}{\max x_m - \min x_m}

    with :math:`i \pm 1` the next ones in the order by objective :math:`m`. The first and the last in an objective are
    infinitely far.

    Args:
        points: ``[n, M]``, of one front.

    Returns:
        ``[n]``, no unit; whoever is farther from the others is worth more to keep.

    Example:
        >>> crowding_distances([(0.0, 4.0), (1.0, 1.0), (4.0, 0.0)])
        [inf, 2.0, inf]

    Source:
        Deb et al., *NSGA-II*, IEEE TEC 2002, "crowding-distance-assignment".
    """
    table = np.array(points, dtype=np.float64)
    distances: NDArray[np.float64] = np.zeros(len(table))
    for column in table.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]]
        distances[order[[0, -1]]] = np.inf
        if spread > 0:
            distances[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return distances.tolist()
