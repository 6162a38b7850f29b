"""Who may yet be among the first, while candidates are still being scored."""

import math
from collections.abc import Sequence

import numpy as np

from lightning_zico.candidates import Candidate
from lightning_zico.results import ScoreCard
from lightning_zico.scoring.choice import Choice


class Contenders:
    """Holds on to the candidates that may come first, so that the others, built modules among them, can be let go.

    A recipe ranks when all scores are there, and it is not known before which fallback will. A candidate comes behind
    one that is as good by every score that may count, if that one was offered earlier (equal scores keep that order) or
    is better by a member of each recipe. Whoever comes behind one that was dropped comes behind all that it was dropped
    for, so that these alone need to be counted.

    A candidate without the numbers of a recipe may be placed beside those that have them, and how high is not known
    before. So it is compared with those alone that lack the numbers of the same recipes, and as it may share a place
    with them, it comes behind those that were offered earlier.

    By one score one is held. By the members of a recipe it may be many, and in several repeats almost all: whoever
    offers built modules from a generator keeps them in memory then, and whoever offers factories does not.

    Args:
        rank_by: Name of the score that decides.
        choice: What is computed.
        num_places: How many of the first are wanted.
    """

    def __init__(self, rank_by: str, choice: Choice, num_places: int = 1) -> None:
        self._members = choice.read_by(rank_by)
        self._choice = choice
        self._num_places = num_places
        self._candidates: list[Candidate] = []
        self._scores: np.ndarray | None = None  # [contenders, directed scores of one recipe after the other]
        self._places = np.empty(0, dtype=np.int64)  # as how many-th each was offered
        self._num_ahead = np.empty(0, dtype=np.int64)  # how many others certainly come before each
        self._lacks: np.ndarray | None = None  # [contenders, recipes], whether one of its numbers is missing

    def add(self, candidate: Candidate, place: int, cards: Sequence[ScoreCard]) -> None:
        """Add a candidate, in whatever order they come, and drop who can no longer be among the first.

        Args:
            candidate: That was scored.
            place: As how many-th it was offered.
            cards: Of all its repeats; each counts.
        """
        values = [[self._choice.directed(card, name) for card in cards for name in names] for names in self._members]
        scores = [[-math.inf if value is None else value for value in of_recipe] for of_recipe in values]
        row = np.array([score for of_recipe in scores for score in of_recipe])
        others = np.empty((0, len(row))) if self._scores is None else self._scores
        starts = np.cumsum([0, *map(len, scores)])[:-1]
        lacks = np.array([-math.inf in of_recipe for of_recipe in scores])
        others_lack = np.empty((0, len(lacks)), dtype=bool) if self._lacks is None else self._lacks
        alike = (others_lack == lacks).all(axis=1)
        # in each recipe, and not a candidate that may be placed beside others
        differs = np.logical_or.reduceat(others != row, starts, axis=1).all(axis=1) & (not lacks.any())
        num_ahead = np.sum(alike & (others >= row).all(axis=1) & (differs | (self._places < place)))
        if num_ahead >= self._num_places or lacks.all():
            return
        self._num_ahead += alike & (others <= row).all(axis=1) & (differs | (self._places > place))
        stays = self._num_ahead < self._num_places
        self._candidates = [held for held, kept in zip(self._candidates, stays, strict=True) if kept] + [candidate]
        self._scores = np.vstack([others[stays], row])
        self._lacks = np.vstack([others_lack[stays], lacks])
        self._places = np.append(self._places[stays], place)
        self._num_ahead = np.append(self._num_ahead[stays], num_ahead)

    @property
    def candidates(self) -> list[Candidate]:
        """Those that may yet be among the first."""
        return list(self._candidates)
