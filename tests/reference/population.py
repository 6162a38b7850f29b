"""A population that is ordered anew, all of it, whenever an arch joins."""

import math
from collections.abc import Sequence
from typing import Any

from lightning_zico.scoring.choice import Choice
from lightning_zico.search.evolution import Member, scores_of


class PlainPopulation:
    """As `evolution.Population`, which says what its arguments are; nothing is kept from one arch to the next."""

    def __init__(self, size: int, choice: Choice) -> None:
        self.size, self.choice = size, choice
        self.members: list[Member] = []
        self.standings: list[Any] = []

    def add(self, member: Member) -> None:
        if scores_of([member.card], self.choice) == [None]:
            return
        members = [*self.members, member]
        scores = scores_of([each.card for each in members], self.choice)
        kept = [(each, score) for each, score in zip(members, scores, strict=True) if score is not None]
        self.members = [each for each, _ in kept]
        self.standings = standings_of([(score, *(-cost for cost in each.costs)) for each, score in kept])
        if len(kept) > self.size:
            worst = self.standings.index(min(self.standings))
            del self.members[worst], self.standings[worst]


def standings_of(points: Sequence[tuple[float, ...]]) -> list[Any]:
    """Order by the value where it is one, else by front and crowding distance; higher is better."""
    if points and len(points[0]) == 1:
        return [point[0] for point in points]
    standings: dict[int, tuple[int, float]] = {}
    left, number = set(range(len(points))), 0
    while left:
        front = sorted(idx for idx in left if not any(dominates(points[other], points[idx]) for other in left))
        for idx, distance in zip(front, crowding([points[idx] for idx in front]), strict=True):
            standings[idx] = (-number, distance)
        left -= set(front)
        number += 1
    return [standings[idx] for idx in range(len(points))]


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def crowding(points: Sequence[tuple[float, ...]]) -> list[float]:
    distances = [0.0] * len(points)
    for objective in range(len(points[0])):
        values = [point[objective] for point in points]
        order = sorted(range(len(points)), key=values.__getitem__)
        spread = values[order[-1]] - values[order[0]]
        distances[order[0]] = distances[order[-1]] = math.inf
        for position in range(1, len(order) - 1):
            if spread > 0:
                distances[order[position]] += (values[order[position + 1]] - values[order[position - 1]]) / spread
    return distances
