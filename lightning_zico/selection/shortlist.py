"""Candidates that can still finish among the first, while others are being scored."""

import math
from collections.abc import Sequence
from itertools import compress

import numpy as np

from lightning_zico.candidates import Candidate
from lightning_zico.results import ScoreCard
from lightning_zico.scoring.choice import Choice


class Shortlist:
    """Hold the candidates that can still finish among the first; the others, with their modules, can be released.

    A recipe ranks only when all scores are there, and which fallback will rank is not known before. Candidate A is
    certainly behind candidate B if B is at least as good by every score that may count, and B was offered earlier
    (equal scores keep that order) or is better by a member of each recipe. A candidate behind a dropped one is also
    behind those that caused the drop, so only the candidates that are held need to be counted.

    A candidate without the numbers of a recipe may be ranked among those that have them, and how high is not known
    before. So it is only compared with candidates that lack the numbers of the same recipes, and because it may share a
    rank with them, it is behind those that were offered earlier.

    With a single score, k candidates are held. With a recipe, there may be many, and with several repeats
    almost all: built modules from a generator then stay in memory, while factories take none.

    Args:
        choice: The proxies, the recipes and the score to rank by.
        top_k: How many of the first candidates are wanted.
    """

    def __init__(self, choice: Choice, top_k: int = 1) -> None:
        self._members = choice.chains
        self._choice = choice
        self._top_k = top_k
        self._candidates: list[Candidate] = []
        self._scores: np.ndarray | None = None  # [held, directed scores of one recipe after the other]
        self._offer_idxs = np.empty(0, dtype=np.int64)
        self._num_ahead = np.empty(0, dtype=np.int64)  # how many others are certainly ahead of each
        self._lacks: np.ndarray | None = None  # [held, recipes], whether one of its numbers is missing

    def add(self, candidate: Candidate, offer_idx: int, cards: Sequence[ScoreCard]) -> None:
        """Add a candidate, and drop those that can no longer finish among the first. Candidates may come in any order.

        Args:
            candidate: A candidate that was scored.
            offer_idx: Its position in the order in which candidates were offered, from 0.
            cards: The cards of all its repeats; each of them counts.
        """
        direct = self._choice.direct_score
        values = [[direct(card, name) for card in cards for name in names] for names in self._members]
        scores = [[-math.inf if value is None else value for value in of_recipe] for of_recipe in values]
        row = np.array([score for of_recipe in scores for score in of_recipe])
        others = np.empty((0, len(row))) if self._scores is None else self._scores
        starts = np.cumsum([0, *map(len, scores)])[:-1]
        lacks = np.array([-math.inf in of_recipe for of_recipe in scores])
        others_lack = np.empty((0, len(lacks)), dtype=bool) if self._lacks is None else self._lacks
        alike = (others_lack == lacks).all(axis=1)
        # in each recipe, and not a candidate that a fallback may rank among others
        differs = np.logical_or.reduceat(others != row, starts, axis=1).all(axis=1) & (not lacks.any())
        num_ahead = np.sum(alike & (others >= row).all(axis=1) & (differs | (self._offer_idxs < offer_idx)))
        if num_ahead >= self._top_k or lacks.all():
            return
        self._num_ahead += alike & (others <= row).all(axis=1) & (differs | (self._offer_idxs > offer_idx))
        stays = self._num_ahead < self._top_k
        self._candidates = [*compress(self._candidates, stays), candidate]
        self._scores = np.vstack([others[stays], row])
        self._lacks = np.vstack([others_lack[stays], lacks])
        self._offer_idxs = np.append(self._offer_idxs[stays], offer_idx)
        self._num_ahead = np.append(self._num_ahead[stays], num_ahead)

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates that can still finish among the first."""
        return list(self._candidates)
