"""What figures show is what counting and comparing gives."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_zico import Leaderboard, ZeroShotSelector
from lightning_zico.report.series import agreement, finalists, pareto_front, places, scored, trade_off
from tests.modules import Classifier, make_batches
from tests.reference.ranking import tau_b
from tests.report.boards import CARDS, card, plain, repeated, with_finals

FEW = st.integers(0, 4).map(float)


@given(st.lists(st.tuples(FEW, FEW), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    costs, gains = [cost for cost, _ in points], [gain for _, gain in points]

    def beaten(idx: int) -> bool:
        return any(c <= costs[idx] and g >= gains[idx] and (c, g) != points[idx] for c, g in points)

    front = pareto_front(costs, gains)
    assert sorted(front) == [idx for idx in range(len(points)) if not beaten(idx)]
    assert [costs[idx] for idx in front] == sorted(costs[idx] for idx in front)


@given(st.lists(FEW, max_size=8), st.booleans())
def test_places_are_the_ranks_of_the_leaderboard(scores: list[float], higher: bool) -> None:
    board = plain(*(card(str(idx), score, 1.0) for idx, score in enumerate(scores)), higher_is_better=higher)
    board = board if scores else Leaderboard(())
    assert places(board) == [row["rank"] for row in board]


def test_places_go_by_the_score_after_finals_and_by_repeats_after_a_race() -> None:
    assert dict(zip([row["name"] for row in scored(with_finals())], places(with_finals()), strict=True)) == {
        "good": 2, "best": 1, "small": 4, "no macs": 5, "dear": 3,
    }  # fmt: skip
    assert [(row["name"], place) for row, place in finalists(with_finals())] == [("good", 2), ("best", 1), ("dear", 3)]
    assert finalists(repeated()) == []


def test_trade_off_follows_the_direction_and_leaves_out_what_has_no_cost() -> None:
    rows, front = trade_off(plain())
    assert {row["name"] for row in rows} == {"small", "good", "dear", "best"}
    assert [rows[idx]["name"] for idx in front] == ["small", "good", "best"]
    rows, front = trade_off(plain(higher_is_better=False))
    assert [rows[idx]["name"] for idx in front] == ["small"]
    assert trade_off(Leaderboard(())) == ([], [])
    with pytest.raises(ValueError, match=r"Invalid cost='flops': .* Expected one of zico, macs"):
        trade_off(plain(), "flops")


def test_agreement_is_kendalls_tau_of_the_pairs_that_both_have() -> None:
    names, taus = agreement(plain())
    assert names == ["ranking", "macs", "params"]
    zico = {c.name: c["zico"].value for c in CARDS}
    values: dict[str, Any] = {name: {c.name: c[name].value for c in CARDS} for name in ("macs", "params")}
    values["ranking"] = zico
    for a, row in zip(names, taus, strict=True):
        for b, tau in zip(names, row, strict=True):
            both = [n for n in zico if zico[n] is not None and None not in (values[a][n], values[b][n])]
            assert len(both) == (4 if "macs" in (a, b) else 5)
            assert tau == pytest.approx(tau_b([values[a][n] for n in both], [values[b][n] for n in both]))


def test_a_tau_that_is_not_defined_is_none() -> None:
    assert agreement(plain(card("one", 1.0, 2.0)))[1] == [[None] * 3] * 3
    names, taus = agreement(plain(card("one", 1.0, 2.0), card("two", 2.0, 2.0)))
    assert dict(zip(names, taus[0], strict=True)) == {"ranking": 1.0, "macs": None, "params": None}


@pytest.mark.parametrize("rank_by", ["zico", "latency"])
def test_agreement_of_the_ranking_is_that_of_the_notes(rank_by: str) -> None:
    candidates = {str(width): lambda width=width: Classifier(width) for width in (2, 3, 5, 8)}
    board = ZeroShotSelector(proxies=["zico", "latency"], rank_by=rank_by).rank(candidates, make_batches())
    names, taus = agreement(board)
    of_ranking = dict(zip(names, taus[0], strict=True))
    for name, tau in board.provenance["kendall_with"].items():
        assert of_ranking[name] == pytest.approx(tau)
