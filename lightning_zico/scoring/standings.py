"""Compare a ranking with those by the trivial baselines, and remove a baseline's part from it."""

from collections.abc import Sequence
from dataclasses import replace

from lightning_zico.proxies import BASELINES
from lightning_zico.ranking import kendall_where_both, size_controlled
from lightning_zico.results import Score, ScoreCard
from lightning_zico.scoring.choice import Choice


def standings_of(cards: Sequence[ScoreCard], rank_by: str, choice: Choice) -> list[float | None]:
    """Number the places from the last up, in the leaderboard's order: more repeats, as in a race, come first."""
    scores = [choice.directed(card, rank_by) for card in cards]
    keys = [None if s is None else (len(card[rank_by].repeats), s) for card, s in zip(cards, scores, strict=True)]
    places = {key: float(place) for place, key in enumerate(sorted({key for key in keys if key is not None}))}
    return [None if key is None else places[key] for key in keys]


def with_controlled(
    cards: Sequence[ScoreCard], standings: Sequence[float | None], rank_by: str, baseline: str
) -> list[ScoreCard]:
    """Add the column ``controlled`` to cards: the part of the ranking that a baseline does not explain."""
    residuals = size_controlled(standings, [card[baseline].value for card in cards])
    added = []
    for card, residual in zip(cards, residuals, strict=True):
        error = None if residual is not None else card[rank_by].error or card[baseline].error or card.untrainable
        added.append(replace(card, scores={**card.scores, "controlled": Score("controlled", residual, error)}))
    return added


def agreement_with_baselines(cards: Sequence[ScoreCard], standings: Sequence[float | None]) -> dict[str, float | None]:
    """Compare a ranking with that by each trivial baseline, on the candidates that have both.

    Returns:
        Kendall's tau by baseline; None if it is not defined.
    """
    return {name: kendall_where_both(standings, [card[name].value for card in cards]) for name in BASELINES}
