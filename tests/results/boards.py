"""Leaderboards for tests of results."""

from typing import Any

from lightning_zico import Leaderboard, Score, ScoreCard


def card(name: str, value: float | None, error: str | None = None) -> ScoreCard:
    error = error or (None if value is not None else "failed")
    return ScoreCard(name, {"zico": Score("zico", None if error else value, error), "params": Score("params", 3.0)})


def make(*cards: ScoreCard, **kwargs: Any) -> Leaderboard:
    return Leaderboard.of(cards, rank_by="zico", columns=["zico", "params"], provenance={"seed": 0}, **kwargs)


def noted(**taus: float | None) -> Leaderboard:
    cards = [card("a", 1.0), card("b", 2.0), card("c", None)]
    recipes = {"balanced": {"used": "size", "members": ["params", "macs"], "aggregate": "log_rank"}}
    provenance = {"rank_by": "balanced", "recipes": recipes, "kendall_with": taus}
    return Leaderboard.of(cards, rank_by="zico", columns=["zico", "params"], provenance=provenance)


def missing(*errors: tuple[str | None, str | None], **provenance: Any) -> Leaderboard:
    """A ranking by params of candidates c0, c1, ... whose `zico` and `snip` fail for these reasons."""
    cards = []
    for idx, (zico, snip) in enumerate(errors):
        scores = {"params": Score("params", 9.0 - idx)}
        scores["zico"] = Score("zico", None if zico else 1.0, zico)
        scores["snip"] = Score("snip", None if snip else 1.0, snip)
        cards.append(ScoreCard(f"c{idx}", scores))
    cards.append(ScoreCard.failed("broken", ["params", "zico", "snip"], "does not build"))
    columns = ["params", "zico", "snip"]
    return Leaderboard.of(cards, rank_by="params", columns=columns, provenance={"rank_by": "params", **provenance})
