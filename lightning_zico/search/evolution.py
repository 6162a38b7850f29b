"""Evolution: the best archs so far, and mutants of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_zico.ranking import crowding_distances, front_numbers
from lightning_zico.results import ScoreCard
from lightning_zico.scoring.choice import Choice, combined, lacking_of, trains, used_for, values_of
from lightning_zico.spaces import SearchSpace


@dataclass(frozen=True)
class Evolution:
    """Propose mutants of the best archs so far.

    The parent is the best of a few members of the population, drawn at random; the proposal is its mutant, by the
    space's own `mutate`. Whoever is scored joins the population, and when it is full the worst leaves it.

    Args:
        population_size: Most members.
        tournament_size: How many members are drawn to choose a parent from. With 1 every member is a parent as often as
            any other, as in the published search of ZiCo and ZenNAS.
        num_mutations: How often a parent is mutated; two in the published search. Where the mutants near a parent have
            all been scored, it is mutated more often.
        num_initial: As long as the population is smaller, an arch is drawn from the space, or ``start`` is mutated. A
            population that has room for fewer evolves as soon as it is full.
        start: Arch to begin with, as its string; None for none.

    Raises:
        ValueError: If a number is not positive.
        TypeError: If ``start`` is no string.

    Source:
        Tournament: Real et al., *Regularized Evolution for Image Classifier Architecture Search*, AAAI 2019,
        arXiv:1802.01548; there the oldest leaves the population, here the worst, as in SLDGroup/ZiCo,
        ``evolution_search.py``.
    """

    population_size: int = 64
    tournament_size: int = 8
    num_mutations: int = 1
    num_initial: int = 10
    start: str | None = None

    def __post_init__(self) -> None:
        for name in ("population_size", "tournament_size", "num_mutations", "num_initial"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`Evolution({name}={value!r})`: needed is a whole number from 1.")
        if self.start is not None and not isinstance(self.start, str):
            raise TypeError(f"`Evolution(start={self.start!r})`: needed is the arch's string, `str(arch)`, or None.")

    def propose(self, space: SearchSpace[Any], population: "Population", rng: random.Random, num_more: int = 0) -> Any:
        """Propose an arch, which may be known or over the budget.

        Args:
            space: That it is of.
            population: The best so far.
            rng: Decides.
            num_more: Mutations beyond those that are usual.
        """
        if len(population) >= min(self.num_initial, self.population_size):
            arch, num_mutations = space.parse(population.parent(self.tournament_size, rng)), self.num_mutations
        elif self.start is not None:
            arch, num_mutations = space.parse(self.start), 1
        else:
            arch, num_mutations = space.sample(rng), 0
        for _ in range(num_mutations + num_more):
            arch = space.mutate(arch, rng)
        return arch


class Member(NamedTuple):
    """An arch that was scored.

    Args:
        arch: Its string.
        card: Its scores; the card's name is that string.
        costs: What is to be kept low besides, in the order of the search's ``against``.
    """

    arch: str
    card: ScoreCard
    costs: tuple[float, ...]


class Population:
    """The best archs so far, by ranks among themselves.

    A recipe that combines ranks is defined for a set: its score of an arch is that within the population, newcomer
    included, and is computed anew for all members whenever one comes. So members compare with who competes with them
    now; ranks among all archs ever scored would spend most of their range on early ones that are long beaten. With
    costs to be kept low, members are ordered as in NSGA-II: by their front of score and costs, and on one front by how
    far they stand from the others.

    Args:
        size: Most members.
        choice: What is computed and combined.
        rank_by: Name of the score that decides.
    """

    def __init__(self, size: int, choice: Choice, rank_by: str) -> None:
        self._size = size
        self._choice = choice
        self._recipe = choice.recipes.get(rank_by)
        self._rank_by = rank_by
        self._members: list[Member] = []
        # What the members' cards say, kept apart: a newcomer looks at all members, and there are 10^5 newcomers.
        names = {name for link in choice.read_by(rank_by) for name in link}
        self._columns: dict[str, list[float | None]] = {name: [] for name in names}  # higher is better
        self._low: list[tuple[float, ...]] = []  # costs, higher is better
        self._lacking: list[frozenset[str]] = []
        self._standings = _Standings([])

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: Member) -> None:
        """Let an arch join, and the worst leave if there are too many: of equals the one that joined first.

        An arch that failed does not join. One that a member of the recipe has no number for may make a fallback take
        the recipe's place, for as long as it stays.
        """
        if self._fails(member.card):
            return
        self._members.append(member)
        for name, column in self._columns.items():
            column.append(self._choice.directed(member.card, name))
        self._low.append(tuple(-cost for cost in member.costs))
        self._lacking.append(lacking_of(member.card))
        scores = self._scores()
        for idx in [idx for idx, score in enumerate(scores) if score is None][::-1]:
            self._remove(idx)
        kept = [score for score in scores if score is not None]
        self._standings = _Standings([(score, *low) for score, low in zip(kept, self._low, strict=True)])
        if len(self) > self._size:
            self._remove(self._standings.remove_worst())

    def parent(self, tournament_size: int, rng: random.Random) -> str:
        """Draw members, and give the arch of the best of them."""
        drawn = [rng.randrange(len(self)) for _ in range(tournament_size)]
        return self._members[max(drawn, key=self._standings.of)].arch

    @property
    def best(self) -> str | None:
        """The arch that stands best; None if nobody has joined."""
        return self._members[self._standings.best()].arch if self._members else None

    def _fails(self, card: ScoreCard) -> bool:
        used = used_for([lacking_of(card)], self._recipe).recipe.members if self._recipe else (self._rank_by,)
        return not trains(card) or any(card[name].value is None for name in used)

    def _scores(self) -> list[float | None]:
        """Score the members as one set, as `scores_of` does."""
        if self._recipe is None:
            return list(self._columns[self._rank_by])
        return values_of(used_for(self._lacking, self._recipe), self._columns)

    def _remove(self, idx: int) -> None:
        del self._members[idx], self._lacking[idx], self._low[idx]
        for column in self._columns.values():
            del column[idx]


def scores_of(cards: Sequence[ScoreCard], choice: Choice, rank_by: str) -> list[float | None]:
    """Score archs as one set, so that higher is better; None where there is no score to rank by."""
    if rank_by in choice.recipes:
        cards, _ = combined(cards, choice.recipes[rank_by], choice)
    return [None if card.error is not None else choice.directed(card, rank_by) for card in cards]


class _Standings:
    """How points stand among each other: by the front, then by the distance from others on it.

    Where there is one objective they stand by its value. Distances are measured on the fronts that somebody asks for.

    Args:
        points: ``[n, M]``, higher is better.
    """

    def __init__(self, points: Sequence[tuple[float, ...]]) -> None:
        self._points = list(points)
        self._has_fronts = bool(points) and len(points[0]) > 1
        self._fronts = front_numbers(points) if self._has_fronts else [0] * len(points)
        self._distances = [0.0 if self._has_fronts else point[0] for point in points]
        self._measured: set[int] = set()  # fronts with distances

    def of(self, idx: int) -> tuple[int, float]:
        """Tell where a point stands; higher is better."""
        front = self._fronts[idx]
        if self._has_fronts and front not in self._measured:
            self._measured.add(front)
            idxs = [other for other, number in enumerate(self._fronts) if number == front]
            for other, distance in zip(idxs, crowding_distances([self._points[i] for i in idxs]), strict=True):
                self._distances[other] = distance
        return -front, self._distances[idx]

    def best(self) -> int:
        """Find the best point, of equals the first, by the distances on the first front alone."""
        return max((idx for idx, front in enumerate(self._fronts) if front == 0), key=self.of)

    def remove_worst(self) -> int:
        """Let the worst point go, of equals the first; all others stay where they stand.

        Returns:
            Its index.
        """
        last = max(self._fronts)
        worst = min((idx for idx, front in enumerate(self._fronts) if front == last), key=self.of)
        # The distances on its front are measured by now, with it among the neighbours.
        del self._points[worst], self._fronts[worst], self._distances[worst]
        return worst
