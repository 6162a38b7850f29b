"""Leaderboards for tests of drawings: with and without repeats, finals, failures, and names that want to be code."""

from typing import Any

from lightning_zico import Leaderboard, Score, ScoreCard, SearchResult
from lightning_zico.results import Final

# Ends scripts, opens elements, reads as a formula, as markup of a terminal, of Markdown and of a template.
EVIL = [
    "</script><script>window.attacked = 1</script>",
    '"><img src=x onerror="window.attacked = 2">',
    "$\\frac{$ & {{x}}",
]
VERSIONS = {"lightning_zico": "0.1.0", "torch": "2.14.1"}


def card(name: str, zico: float | None, macs: float | None, params: float = 1.0, error: str | None = None) -> ScoreCard:
    scores = {"zico": Score("zico", zico, error), "macs": Score("macs", macs), "params": Score("params", params)}
    return ScoreCard(name, scores, error, seconds=0.25)


def plain(*cards: ScoreCard, **provenance: Any) -> Leaderboard:
    provenance = {"rank_by": "zico", "higher_is_better": True, "seed": 3, "batches_hash": "c0ffee", **provenance}
    return Leaderboard.of(
        cards or CARDS,
        rank_by="zico",
        columns=["zico", "macs", "params"],
        higher_is_better=provenance["higher_is_better"],
        provenance={**provenance, "versions": VERSIONS},
    )


CARDS = (
    card("small", 1.0, 1e3, 10.0),
    card("good", 5.0, 2e3, 30.0),
    card("dear", 4.0, 9e3, 20.0),
    card("no macs", 3.0, None, 5.0),
    card("bad", None, None, error="does not build: <b>no</b>"),
    card("best", 7.0, 8e3, 40.0),
)


def repeated() -> Leaderboard:
    """Five candidates scored in several repeats, one of which left the race."""
    said = {
        name: {"std_error": 0.5, "rank_low": low, "rank_high": high, "p_best": p, "tie": tie, "num_repeats": count}
        for name, low, high, p, tie, count in [
            ("best", 1, 2, 0.75, 1, 4),
            ("good", 1, 3, 0.25, 1, 4),
            ("dear", 2, 3, 0.0, 2, 4),
            ("no macs", 4, 5, 0.0, 3, 1),
            ("small", 4, 5, 0.0, 3, 4),
        ]
    }
    return Leaderboard.of(
        CARDS,
        rank_by="zico",
        columns=["zico", "macs", "params"],
        uncertainty=said,
        provenance={"rank_by": "zico", "higher_is_better": True, "repeats": 4, "num_instances": 0},
    )


def with_finals() -> Leaderboard:
    """Three finalists, one of which failed; the second by score won."""
    held = {"monitor": "val_loss", "mode": "min", "finalists": 3, "final_epochs": 2, "halving": False}
    return repeated().with_finals(
        [Final("good", 0.25, 2), Final("best", 0.5, 2), Final("dear", None, 1, "RuntimeError: no")], held
    )


def searched(against: tuple[str, ...] = (), num_more: int = 0, first: str = "a") -> SearchResult:
    """A search of five trials, one of which failed, and of more that were worse and dearer than all before."""
    told = [(first, 2.0, 3e6), ("b", None, 1e6), ("c", 5.0, 9e6), ("d", 4.0, 3e6), ("e", 7.0, 8e6)]
    told += [(f"more {idx}", -1.0 - idx, 1e7 + idx) for idx in range(num_more)]
    ranks = {name: rank for rank, (name, _, _) in enumerate(sorted((t for t in told if t[1]), key=lambda t: -t[1]), 1)}
    rows = [
        {
            "trial": idx,
            "rank": ranks.get(name),
            "arch": name,
            "score": score,
            "zico": score,
            "latency": 0.5 / macs,
            "cost_macs": macs,
            "cost_params": macs,
            "on_front": name == "e",
            "error": None if score else "does not build",
            "seconds": 0.25,
        }
        for idx, (name, score, macs) in enumerate(told)
    ]
    provenance = {"rank_by": "zico", "higher_is_better": True, "space": "plainnet", "against": list(against)}
    return SearchResult(tuple(rows), {**provenance, "num_rejected": 12, "kendall_with": {"macs": 0.95, "depth": None}})
