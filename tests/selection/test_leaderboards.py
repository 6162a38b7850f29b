"""A leaderboard is made from all cards: its order, its agreement with the baselines, what one does not explain."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from lightning_zico import Candidate, Leaderboard, Score, ScoreCard, ZeroShotSelector
from lightning_zico.proxies import BASELINES
from lightning_zico.ranking import get_recipe
from lightning_zico.scoring.choice import Choice
from lightning_zico.selection.leaderboards import order_by_score
from tests.modules import (
    Classifier,
    Numbered,
    make_batches,
)
from tests.selection.test_selector import MEMBERS, Data, Quadruple, Repeating, broken, numbers_of, simulated


def test_the_controlled_column_is_what_a_line_through_the_ranks_leaves() -> None:
    widths = {str(width): lambda width=width: Classifier(width) for width in (2, 3, 5, 8, 13)}
    selector = ZeroShotSelector(controlled_by="sum_log_numel")
    leaderboard = selector.rank({**widths, "broken": broken}, Data())
    assert leaderboard.columns[-3:] == ["controlled", "error", "seconds"]
    assert leaderboard.provenance["controlled_by"] == "sum_log_numel"
    rows = [row for row in leaderboard if row["rank"]]
    y, x = (stats.rankdata([row[name] for row in rows]) for name in ("score", "sum_log_numel"))
    residuals = y - np.polyval(np.polyfit(x, y, 1), x)
    np.testing.assert_allclose([row["controlled"] for row in rows], residuals, atol=1e-9)  # a fit in float64
    assert leaderboard.rows[-1]["controlled"] is None
    assert "cannot be built" in selector.cards_["broken"]["controlled"].error


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_controlled_by_itself_leaves_nothing(baseline: str) -> None:
    selector = ZeroShotSelector(proxies=baseline, controlled_by=baseline)
    leaderboard = selector.rank([Classifier, Quadruple, Repeating], Data())
    assert [row["controlled"] for row in leaderboard] == [0.0] * 3


@pytest.mark.parametrize("lower", [False, True])
def test_agreement_with_the_baselines_is_that_of_scipy_on_the_ranked_rows(lower: bool) -> None:
    table = torch.randn(12, len(MEMBERS), generator=torch.Generator().manual_seed(0)).tolist()
    modules = [Numbered(numbers_of(*values)) for values in table]
    modules[3].numbers["naswot"] = float("nan")
    modules[4].numbers["params"] = float("nan")
    selector = simulated(rank_by="naswot")
    selector.proxies[1].higher_is_better = not lower
    leaderboard = selector.rank(modules, make_batches())
    for baseline, tau in leaderboard.provenance["kendall_with"].items():
        rows = [row for row in leaderboard if row["rank"] and row[baseline] is not None]
        assert len(rows) == (10 if baseline == "params" else 11)
        expected = stats.kendalltau([row["score"] for row in rows], [row[baseline] for row in rows]).statistic
        if baseline in ("num_layers", "sum_log_numel"):  # the same for all
            assert tau is None
        else:
            assert tau == pytest.approx(-expected if lower else expected, abs=1e-12)


def test_a_ranking_by_the_size_has_a_note() -> None:
    widths = {str(width): lambda width=width: Classifier(width) for width in (2, 3, 5)}
    leaderboard = ZeroShotSelector(proxies="params").rank(widths, Data())
    assert leaderboard.notes[-1] == (
        "This ranking adds little to counting weights: it is almost the same as by "
        "params (1.00), macs (1.00), sum_log_numel (1.00)."
    )


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_leaderboard_knows_why_a_number_is_missing(repeats: int) -> None:
    class Still(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * 0

    selector = ZeroShotSelector(proxies=["params", "zico"], repeats=repeats)
    leaderboard = selector.rank({"fine": Classifier, "still": Still}, Data())
    assert not leaderboard.errors
    reason = selector.cards_["still"]["zico"].error
    assert "are zero" in reason
    assert leaderboard.missing["zico"] == {reason: ["still"]}
    assert f"zico has no number for 1 of 2 scored candidates: {reason}" in leaderboard.notes
    assert Leaderboard.from_json(leaderboard.to_json()) == leaderboard


def test_members_that_a_fallback_dropped_are_listed_once() -> None:
    class Flat(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(50, 8), nn.ReLU(), nn.Linear(8, 3))

    selector = ZeroShotSelector()
    leaderboard = selector.rank([Candidate("without", Flat, blocks=["network.1"]), Quadruple], Data())
    recipe = get_recipe("balanced+synflow")
    used = get_recipe("without_blocks")
    dropped = leaderboard.provenance["recipes"]["balanced+synflow"]["dropped"]
    assert set(dropped) == set(recipe.members) - set(used.members)
    of_fallback = set(get_recipe("macs+expressivity").members)  # which no recipe that was used has
    assert set(leaderboard.missing) <= set(dropped) | of_fallback
    assert leaderboard.missing["az_trainability"]
    assert not any("scored candidates" in note for note in leaderboard.notes)


@given(st.lists(st.tuples(st.none() | st.integers(-2, 2).map(float), st.integers(1, 3)), min_size=1, max_size=7))
def test_the_order_by_score_is_that_of_the_leaderboard(scores: list[tuple[float | None, int]]) -> None:
    """More repeats come first, as after a race, then the better score; equal ones share a rank."""
    cards = [
        ScoreCard(
            str(idx),
            {
                "latency": Score(
                    "latency", value, None if value is not None else "no", by_repeat=(value or 0.0,) * count
                )
            },
        )
        for idx, (value, count) in enumerate(scores)
    ]
    choice = Choice.of("latency")  # lower is better
    counts = {card.name: {"num_repeats": len(card["latency"].by_repeat)} for card in cards}
    board = Leaderboard.of(cards, rank_by="latency", columns=["latency"], higher_is_better=False, uncertainty=counts)
    ranks = {row["name"]: row["rank"] for row in board}
    expected = [None if ranks[card.name] is None else -float(ranks[card.name]) for card in cards]
    assert order_by_score(cards, choice) == expected
    for card, (value, count) in zip(cards, scores, strict=True):
        better = [(n, v) for v, n in scores if v is not None and value is not None and (-n, v) < (-count, value)]
        assert ranks[card.name] == (None if value is None else 1 + len(better))
