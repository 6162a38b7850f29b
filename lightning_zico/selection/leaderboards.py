"""Make the leaderboard from all cards, with its agreement with the baselines and the part that one does not explain."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_zico.proxies import BASELINES, Prior
from lightning_zico.ranking import kendall_where_both, size_controlled
from lightning_zico.results import HeldOutDifference, Leaderboard, Score, ScoreCard, rank_key, ranks_of
from lightning_zico.scoring.choice import Choice
from lightning_zico.scoring.provenance import recipe_facts
from lightning_zico.selection.tally import Tally

_PROBE = "ridge_probe"


def leaderboard_of(
    tally: Tally, *, controlled_by: str | None, seed: int, provenance: Mapping[str, Any]
) -> tuple[Leaderboard, list[ScoreCard]]:
    """Make the leaderboard from all cards so far.

    Args:
        tally: The cards; at least one.
        controlled_by: Name of the baseline for the column ``controlled``; None for no such column.
        seed: The seed of the bootstrap.
        provenance: Facts that only the caller knows.

    Returns:
        The leaderboard, and the cards behind it, in the order in which candidates were offered.
    """
    cards, choice = tally.merge(), tally.choice
    order = order_by_score(cards, choice)
    if controlled_by is not None:
        cards = with_controlled(cards, order, choice, controlled_by)
    leaderboard = Leaderboard.of(
        cards,
        rank_by=choice.rank_by,
        columns=[*choice.columns, *(["controlled"] if controlled_by else [])],
        higher_is_better=choice.higher_is_better(),
        uncertainty=tally.uncertainty(seed=seed) if tally.repeats > 1 else None,
        provenance={
            **provenance,
            **_facts(tally),
            "controlled_by": controlled_by,
            "kendall_with": agreement_with_baselines(cards, order),
            "kendall_with_prior": agreement_with_prior(cards, order, choice),
            "kendall_of_ridge_probe_with_prior": agreement_with_prior(
                cards, [_read_probe(card) for card in cards], choice
            ),
            **({"held_out_difference": _compare_first(cards, order)} if tally.repeats == 1 else {}),
        },
    )
    return leaderboard, cards


def _facts(tally: Tally) -> dict[str, Any]:
    choice, cards, in_use = tally.choice, tally.first_cards(), tally.recipes_in_use()
    members = in_use[choice.rank_by].recipe.members if choice.rank_by in in_use else (choice.rank_by,)
    facts = {
        "rank_by": choice.rank_by,
        "higher_is_better": choice.higher_is_better(),
        "proxies": [proxy.name for proxy in choice.proxies],
        "asked": list(choice.asked),
        "recipes": {name: recipe_facts(used, choice.recipes[name], cards) for name, used in in_use.items()},
        "repeats": tally.repeats,
        "num_instances": tally.num_instances,
        "num_of_a_zoo": tally.num_of_a_zoo,
        "num_pretrained": tally.num_pretrained,
        "needs_pretrained": any(p.needs_pretrained for p in choice.proxies if p.name in members),
        "priors": {p.name: p.source for p in choice.proxies if isinstance(p, Prior) and p.source is not None},
    }
    if tally.repeats > 1:
        facts |= {
            "num_with_same_weights": tally.num_with_same_weights(),
            "equal_repeats": tally.equal_repeats(),
        }
    return facts


def order_by_score(cards: Sequence[ScoreCard], choice: Choice) -> list[float | None]:
    """Return the rank of each card as in the leaderboard, negated so that higher is better; None if it has none."""
    scores = [(choice.direct_score(card), len(card[choice.rank_by].by_repeat)) for card in cards]
    ranks = ranks_of([rank_key(score, num_repeats, higher_is_better=True) for score, num_repeats in scores])
    return [None if rank is None else -float(rank) for rank in ranks]


def with_controlled(
    cards: Sequence[ScoreCard], order: Sequence[float | None], choice: Choice, baseline: str
) -> list[ScoreCard]:
    """Add the column ``controlled`` to cards: the part of the ranking that a baseline does not explain."""
    residuals = size_controlled(order, [card[baseline].value for card in cards])
    added = []
    for card, residual in zip(cards, residuals, strict=True):
        error = None if residual is not None else card[choice.rank_by].error or card[baseline].error or card.untrainable
        added.append(replace(card, scores={**card.scores, "controlled": Score("controlled", residual, error)}))
    return added


def agreement_with_baselines(cards: Sequence[ScoreCard], order: Sequence[float | None]) -> dict[str, float | None]:
    """Compare a ranking with that by each trivial baseline, on the candidates that have both.

    Returns:
        Kendall's tau by baseline; None if it is not defined.
    """
    return {name: kendall_where_both(order, [card[name].value for card in cards]) for name in BASELINES}


def agreement_with_prior(cards: Sequence[ScoreCard], order: Sequence[float | None], choice: Choice) -> float | None:
    """Compare a ranking with that by known numbers; None if there are none, or the tau is not defined."""
    if "prior" not in choice.columns:
        return None
    return kendall_where_both(order, [choice.direct_score(card, "prior") for card in cards])


def _read_probe(card: ScoreCard) -> float | None:
    return card[_PROBE].value if _PROBE in card.scores else None


def _compare_first(cards: Sequence[ScoreCard], order: Sequence[float | None]) -> HeldOutDifference | None:
    """Compare the first two candidates of a ranking; None if fewer than two have a rank."""
    ranked = [(score, card) for score, card in zip(order, cards, strict=True) if score is not None]
    first = [card for _, card in sorted(ranked, key=lambda pair: -pair[0])[:2]]  # stable
    return held_out_difference(*first) if len(first) == 2 else None


def held_out_difference(first: ScoreCard, second: ScoreCard) -> HeldOutDifference | None:
    """Compare two candidates by the samples that `ridge_probe` predicts right from all others.

    Returns:
        The difference of the accuracies with its standard error, from the differences of single samples; None if one
        of them lacks the predictions, or they are of other samples.
    """
    details = [card.scores[_PROBE].details if _PROBE in card.scores else {} for card in (first, second)]
    is_right, other = (np.array([*map(int, each.get("is_right", ""))]) for each in details)
    if len(is_right) < 2 or details[0]["samples"] != details[1].get("samples"):
        return None
    differences = 100.0 * (is_right - other)
    return {
        "first": first.name,
        "second": second.name,
        "points": float(differences.mean()),
        "std_error": float(differences.std(ddof=1) / len(differences) ** 0.5),
        "num_samples": len(differences),
    }
