"""Evolution: the best archs so far, and mutants of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_zico.ranking import crowding_distances, front_numbers
from lightning_zico.results import ScoreCard
from lightning_zico.scoring.choice import Choice, combined
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
        num_initial: As long as the population is smaller, an arch is drawn from the space, or ``start`` is mutated.
        start: Arch to begin with, as its string; None for none.

    Raises:
        ValueError: If a number is not positive.

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

    def propose(self, space: SearchSpace[Any], population: "Population", rng: random.Random, num_more: int = 0) -> Any:
        """Propose an arch, which may be known or over the budget.

        Args:
            space: That it is of.
            population: The best so far.
            rng: Decides.
            num_more: Mutations beyond those that are usual.
        """
        if len(population) >= self.num_initial:
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
        self._rank_by = rank_by
        self._members: list[Member] = []
        self._standings: list[tuple[float, float]] = []  # of each member, higher is better

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: Member) -> None:
        """Let an arch join, and the worst leave if there are too many: of equals the one that joined first.

        An arch that failed does not join.
        """
        if self._choice_fails(member.card):
            return
        members = [*self._members, member]
        scores = scores_of([each.card for each in members], self._choice, self._rank_by)
        kept = [(each, score) for each, score in zip(members, scores, strict=True) if score is not None]
        standings = _standings([(score, *(-cost for cost in each.costs)) for each, score in kept])
        self._members = [each for each, _ in kept]
        if len(kept) > self._size:
            worst = min(range(len(kept)), key=standings.__getitem__)
            del self._members[worst], standings[worst]
        self._standings = standings

    def parent(self, tournament_size: int, rng: random.Random) -> str:
        """Draw members, and give the arch of the best of them."""
        drawn = [rng.randrange(len(self)) for _ in range(tournament_size)]
        return self._members[max(drawn, key=self._standings.__getitem__)].arch

    def _choice_fails(self, card: ScoreCard) -> bool:
        return scores_of([card], self._choice, self._rank_by) == [None]


def scores_of(cards: Sequence[ScoreCard], choice: Choice, rank_by: str) -> list[float | None]:
    """Score archs as one set, so that higher is better; None where there is no score to rank by."""
    if rank_by in choice.recipes:
        cards, _ = combined(cards, choice.recipes[rank_by], choice)
    return [None if card.error is not None else choice.directed(card, rank_by) for card in cards]


def _standings(points: Sequence[tuple[float, ...]]) -> list[tuple[float, float]]:
    """Order points: by the front, then by the distance from others on it; by the value itself where it is one."""
    if not points or len(points[0]) == 1:
        return [(point[0], 0.0) for point in points]
    fronts = front_numbers(points)
    standings = [(0.0, 0.0)] * len(points)
    for number in set(fronts):
        idxs = [idx for idx, front in enumerate(fronts) if front == number]
        for idx, distance in zip(idxs, crowding_distances([points[idx] for idx in idxs]), strict=True):
            standings[idx] = (-float(number), distance)
    return standings
