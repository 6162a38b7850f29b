"""Evolution: the best archs so far, and mutants of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_zico._typing import is_count
from lightning_zico.ranking import crowding_distances, front_numbers
from lightning_zico.results import ScoreCard
from lightning_zico.scoring.choice import Choice, choose_applicable, lacking_of, trains
from lightning_zico.spaces import SearchSpace


@dataclass(frozen=True)
class Evolution:
    """Propose mutants of the best archs so far.

    The parent is the best of a few random members of the population; the proposal is a mutant of it, made by the
    space's own `mutate`. Every scored arch joins the population, and when it is full the worst one leaves.

    Args:
        population_size: Largest number of members.
        tournament_size: Number of members that are drawn to choose a parent from. With 1, every member is equally
            likely to be a parent, as in the published search of ZiCo and ZenNAS.
        num_mutations: How often a parent is mutated; two in the published search. If the mutants near a parent have all
            been scored, it is mutated more often.
        num_initial: As long as the population is smaller than this, an arch is drawn from the space, or ``start`` is
            mutated. A population with a smaller ``population_size`` evolves as soon as it is full.
        start: Arch to begin with, as its string; None to draw from the space.

    Raises:
        ValueError: If a number is not positive.
        TypeError: If ``start`` is not a string.

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
            if not is_count(value):
                raise ValueError(f"Invalid Evolution({name}={value!r}): expected a whole number of at least 1.")
            object.__setattr__(self, name, int(value))
        if self.start is not None and not isinstance(self.start, str):
            raise TypeError(
                f"Invalid Evolution(start={self.start!r}): expected the arch's string, `str(arch)`, or None."
            )

    def propose(self, space: SearchSpace[Any], population: "Population", rng: random.Random, num_more: int = 0) -> Any:
        """Propose an arch, which may be known or over the budget.

        Args:
            space: Space of the arch.
            population: The best archs so far.
            rng: Generator of the random choices.
            num_more: Number of additional mutations.
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
        arch: String of the arch.
        card: Its scores; the card's name is that string.
        costs: Costs to keep low, in the order of the search's ``against``.
    """

    arch: str
    card: ScoreCard
    costs: tuple[float, ...]


class Population:
    """The best archs so far, by ranks among themselves.

    A recipe that combines ranks is defined for a set: here, the score of an arch is that within the population, the
    newcomer included, and it is computed again for all members whenever one joins. So members are compared with their
    present competitors; ranks among all archs ever scored would spend most of their range on early archs that were
    beaten long ago. With costs to keep low, members are ordered as in NSGA-II: by their front of score and costs, and
    within a front by their distance from the others.

    Args:
        size: Largest number of members.
        choice: The proxies, the recipes and the score to rank by.

    Attributes:
        members: The members, in the order in which they joined.
    """

    def __init__(self, size: int, choice: Choice) -> None:
        self._size = size
        self._choice = choice
        self._recipe = choice.recipe
        self.members: list[Member] = []
        # Contents of the members' cards as columns, for speed: each of 10^5 newcomers is compared with all members.
        names = {name for link in choice.chains for name in link}
        self._columns: dict[str, list[float | None]] = {name: [] for name in names}  # higher is better
        self._low: list[tuple[float, ...]] = []  # costs, higher is better
        self._lacking: list[frozenset[str]] = []
        self._standings = _Standings([])

    def __len__(self) -> int:
        return len(self.members)

    def add(self, member: Member) -> None:
        """Add an arch, and remove the worst if there are too many: among equals the one that joined first.

        An arch that failed does not join. An arch for which a member of the recipe has no number may make a fallback
        replace the recipe, for as long as the arch stays.
        """
        if self._fails(member.card):
            return
        self.members.append(member)
        for name, column in self._columns.items():
            column.append(self._choice.direct_score(member.card, name))
        self._low.append(tuple(-cost for cost in member.costs))
        self._lacking.append(lacking_of(member.card))
        scores = self._scores()
        for idx in [idx for idx, score in enumerate(scores) if score is None][::-1]:
            self._remove(idx)
        defined = [score for score in scores if score is not None]
        self._standings = _Standings([(score, *low) for score, low in zip(defined, self._low, strict=True)])
        if len(self) > self._size:
            self._remove(self._standings.remove_worst())

    def parent(self, tournament_size: int, rng: random.Random) -> str:
        """Draw members, and return the arch of the best of them."""
        drawn = [rng.randrange(len(self)) for _ in range(tournament_size)]
        return self.members[max(drawn, key=self._standings.of)].arch

    @property
    def best(self) -> str | None:
        """The arch with the best standing; None if the population is empty."""
        return self.members[self._standings.best()].arch if self.members else None

    def _fails(self, card: ScoreCard) -> bool:
        recipe = None if self._recipe is None else choose_applicable([lacking_of(card)], self._recipe).recipe
        used = (self._choice.rank_by,) if recipe is None else recipe.members
        return not trains(card) or any(card[name].value is None for name in used)

    def _scores(self) -> list[float | None]:
        """Score the members as one set, as `scores_of` does."""
        if self._recipe is None:
            return list(self._columns[self._choice.rank_by])
        return choose_applicable(self._lacking, self._recipe).values(self._columns)

    def _remove(self, idx: int) -> None:
        del self.members[idx], self._lacking[idx], self._low[idx]
        for column in self._columns.values():
            del column[idx]


def scores_of(cards: Sequence[ScoreCard], choice: Choice) -> list[float | None]:
    """Score archs as one set, so that higher is better; None for archs without a score to rank by."""
    if choice.recipe is not None:
        cards, _ = choice.combine(cards, choice.recipe)
    return [None if card.error is not None else choice.direct_score(card) for card in cards]


class _Standings:
    """Standings of points: by their front, then by their distance from others on it.

    With a single objective, points stand by its value. Distances are computed only for the fronts that are requested.

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
        """Return the standing of a point; higher is better."""
        front = self._fronts[idx]
        if self._has_fronts and front not in self._measured:
            self._measured.add(front)
            idxs = [other for other, number in enumerate(self._fronts) if number == front]
            for other, distance in zip(idxs, crowding_distances([self._points[i] for i in idxs]), strict=True):
                self._distances[other] = distance
        return -front, self._distances[idx]

    def best(self) -> int:
        """Return the index of the best point, the first among equals; only distances on the first front are needed."""
        return max((idx for idx, front in enumerate(self._fronts) if front == 0), key=self.of)

    def remove_worst(self) -> int:
        """Remove the worst point, the first among equals; the standings of all others stay the same.

        Returns:
            Its index.
        """
        last = max(self._fronts)
        worst = min((idx for idx, front in enumerate(self._fronts) if front == last), key=self.of)
        # The distances on its front have been computed with this point among the neighbours.
        del self._points[worst], self._fronts[worst], self._distances[worst]
        return worst
