"""Who may yet be among the first, while candidates are still being scored."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lightning_zico.candidates import Candidate
from lightning_zico.results import ScoreCard
from lightning_zico.scoring.choice import Choice


class _Contender(NamedTuple):
    """A candidate that may yet be among the first.

    Args:
        candidate: To be built again.
        place: As how many-th it was offered: of equals the earlier is ahead.
        scores: For each recipe that may come to rank (or the one proxy that does) its members' scores, directed.
        num_ahead: How many others certainly come before it.
    """

    candidate: Candidate
    place: int
    scores: list[list[float]]
    num_ahead: int = 0


class Contenders:
    """Holds on to the candidates that may come first, so that the others, built modules among them, can be let go.

    A recipe ranks when all scores are there, and it is not known before which fallback will. A candidate comes behind
    one that is as good by every score that may count, if that one was offered earlier (equal scores keep that order) or
    is better by a member of each recipe. Whoever comes behind one that was dropped comes behind all that it was dropped
    for, so that these alone need to be counted.

    Args:
        rank_by: Name of the score that decides.
        choice: What is computed.
        num_places: How many of the first are wanted.
    """

    def __init__(self, rank_by: str, choice: Choice, num_places: int = 1) -> None:
        self._members = choice.read_by(rank_by)
        self._choice = choice
        self._num_places = num_places
        self._contenders: list[_Contender] = []

    def add(self, candidate: Candidate, place: int, cards: Sequence[ScoreCard]) -> None:
        """Add a candidate, in whatever order they come, and drop who can no longer be among the first.

        Args:
            candidate: That was scored.
            place: As how many-th it was offered.
            cards: Of all its repeats; each counts.
        """
        values = [[self._choice.directed(card, name) for card in cards for name in names] for names in self._members]
        scores = [[-math.inf if value is None else value for value in of_recipe] for of_recipe in values]
        new = _Contender(candidate, place, scores)
        num_ahead = sum(_is_ahead(other, new) for other in self._contenders)
        if num_ahead >= self._num_places or all(-math.inf in of_recipe for of_recipe in scores):
            return
        counted = [other._replace(num_ahead=other.num_ahead + _is_ahead(new, other)) for other in self._contenders]
        self._contenders = [other for other in counted if other.num_ahead < self._num_places]
        self._contenders.append(new._replace(num_ahead=num_ahead))

    @property
    def candidates(self) -> list[Candidate]:
        """Those that may yet be among the first."""
        return [contender.candidate for contender in self._contenders]


def _is_ahead(a: _Contender, b: _Contender) -> bool:
    pairs = list(zip(a.scores, b.scores, strict=True))
    as_good = all(x >= y for xs, ys in pairs for x, y in zip(xs, ys, strict=True))
    return as_good and (a.place < b.place or all(xs != ys for xs, ys in pairs))
