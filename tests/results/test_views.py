"""What figures show is what counting and comparing gives."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_zico import Leaderboard, ZeroShotSelector
from lightning_zico.report.figures import MOST_DOTS, Agreement, Finals, TradeOff
from lightning_zico.results import Final, views
from tests.modules import Classifier, make_batches
from tests.reference.ranking import tau_b
from tests.report.boards import CARDS, card, plain, repeated, searched, with_finals

FEW = st.integers(0, 4).map(float)


def places(board: Leaderboard) -> list[int]:
    return views.ranks_by_score(board.rows, board.provenance)


def trade_off(board: Leaderboard, cost: str = "macs") -> TradeOff:
    return views.trade_off(board.rows, board.provenance, cost)


def agreement(board: Leaderboard) -> Agreement:
    return views.agreement(board.rows, board.provenance)


def finals(board: Leaderboard) -> Finals:
    return views.finals(board.rows, board.provenance)


@given(st.lists(st.tuples(FEW, FEW), max_size=12), st.booleans())
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]], higher: bool) -> None:
    board = plain(*(card(str(idx), score, cost) for idx, (cost, score) in enumerate(points)), higher_is_better=higher)
    figure = trade_off(board if points else Leaderboard(()))
    sign = 1 if higher else -1

    def beaten(idx: int) -> bool:
        cost, gain = points[idx][0], sign * points[idx][1]
        return any(c <= cost and sign * s >= gain and (c, s) != points[idx] for c, s in points)

    assert sorted(dot.name for dot in figure.on_front) == sorted(str(i) for i in range(len(points)) if not beaten(i))
    costs = [dot.cost for dot in figure.on_front]
    assert costs == sorted(costs)
    assert figure.num_candidates == len(figure.dots) == len(points)


@given(st.lists(FEW, max_size=8), st.booleans())
def test_places_are_the_ranks_of_the_leaderboard(scores: list[float], higher: bool) -> None:
    board = plain(*(card(str(idx), score, 1.0) for idx, score in enumerate(scores)), higher_is_better=higher)
    board = board if scores else Leaderboard(())
    assert places(board) == [row["rank"] for row in board]


def test_places_go_by_the_score_after_finals_and_by_repeats_after_a_race() -> None:
    names = [row["name"] for row in views.with_score(with_finals().rows)]
    assert dict(zip(names, places(with_finals()), strict=True)) == {
        "good": 2, "best": 1, "small": 4, "no macs": 5, "dear": 3,
    }  # fmt: skip
    assert [(dot.name, dot.rank) for dot in finals(with_finals()).dots] == [("good", 2), ("best", 1), ("dear", 3)]
    with pytest.raises(ValueError, match="has no finals"):
        finals(repeated())


def test_trade_off_follows_the_direction_and_leaves_out_what_has_no_cost() -> None:
    figure = trade_off(plain())
    assert {dot.name for dot in figure.dots} == {"small", "good", "dear", "best"}
    assert [dot.name for dot in figure.on_front] == ["small", "good", "best"]
    assert [dot.name for dot in trade_off(plain(higher_is_better=False)).on_front] == ["small"]
    assert trade_off(Leaderboard(())).dots == ()
    with pytest.raises(ValueError, match=r"Invalid cost='flops': .* Expected one of zico, macs"):
        trade_off(plain(), "flops")


def test_of_very_many_candidates_the_first_are_drawn_and_all_of_the_front() -> None:
    board = searched(num_more=3 * MOST_DOTS).to_leaderboard()
    cheap = min((row for row in board if row["score"] is not None), key=lambda row: row["cost_params"])
    figure = trade_off(board, "cost_params")
    assert len(figure.dots) == MOST_DOTS
    assert figure.on_front[0].name == cheap["name"]
    last = plain(*(card(str(idx), float(-idx), float(-idx)) for idx in range(MOST_DOTS + 5)))  # all are on the front
    assert len(trade_off(last).on_front) == MOST_DOTS + 5


def test_agreement_is_kendalls_tau_of_the_pairs_that_both_have() -> None:
    figure = agreement(plain())
    assert figure.names == ("ranking", "macs", "params")
    zico = {c.name: c["zico"].value for c in CARDS}
    values: dict[str, Any] = {name: {c.name: c[name].value for c in CARDS} for name in ("macs", "params")}
    values["ranking"] = zico
    for a, row in zip(figure.names, figure.taus, strict=True):
        for b, tau in zip(figure.names, row, strict=True):
            both = [n for n in zico if zico[n] is not None and None not in (values[a][n], values[b][n])]
            assert len(both) == (4 if "macs" in (a, b) else 5)
            assert tau == pytest.approx(tau_b([values[a][n] for n in both], [values[b][n] for n in both]))


def test_a_tau_that_is_not_defined_is_none() -> None:
    alone = agreement(plain(card("one", 1.0, 2.0)))
    assert alone.taus == ((None,) * 3,) * 3
    assert alone.labels == (("-",) * 3,) * 3
    figure = agreement(plain(card("one", 1.0, 2.0), card("two", 2.0, 2.0)))
    assert dict(zip(figure.names, figure.taus[0], strict=True)) == {"ranking": 1.0, "macs": None, "params": None}


@pytest.mark.parametrize("rank_by", ["zico", "latency"])
def test_agreement_of_the_ranking_is_that_of_the_notes(rank_by: str) -> None:
    candidates = {str(width): lambda width=width: Classifier(width) for width in (2, 3, 5, 8)}
    board = ZeroShotSelector(proxies=["zico", "latency"], rank_by=rank_by).rank(candidates, make_batches())
    figure = agreement(board)
    of_ranking = dict(zip(figure.names, figure.taus[0], strict=True))
    for name, tau in board.provenance["kendall_with"].items():
        assert of_ranking[name] == pytest.approx(tau)


def test_the_history_keeps_each_improvement() -> None:
    result = searched()
    figure = views.history(result.history, result.provenance)
    assert [dot.trial for dot in figure.dots] == [0, 2, 3, 4]
    running = [max(row["score"] for row in result.history[: dot.trial + 1] if row["score"]) for dot in figure.best]
    assert [dot.score for dot in figure.best] == running
    assert figure.line[-1].trial == len(result) - 1


def test_what_was_only_computed_beside_is_not_printed_unless_it_decides() -> None:
    asked = {"proxies": ["zico", "macs", "params"], "asked": ["zico"]}
    board = plain(**asked)
    assert views.columns_to_print(board.rows, board.provenance) == ["zico"]
    by_size = plain(**asked | {"rank_by": "params"})
    assert views.columns_to_print(by_size.rows, by_size.provenance) == ["zico", "params"]
    controlled = [{**row, "controlled": 0.5} for row in board]  # computed for the user, but no proxy
    assert views.columns_to_print(controlled, board.provenance) == ["zico", "controlled"]
    assert views.columns_to_print(plain().rows, plain().provenance) == ["zico", "macs", "params"]  # not recorded


@given(st.lists(st.tuples(FEW, st.none() | FEW), min_size=1, max_size=8))
def test_profiles_have_each_number_at_its_position_in_the_order(numbers: list[tuple[float, float | None]]) -> None:
    board = plain(*(card(str(idx), zico, macs) for idx, (zico, macs) in enumerate(numbers)))
    figure = views.profiles(board.rows, board.provenance)
    assert figure.columns == ("ranking", "macs", "params")
    assert [line.rank for line in figure.lines] == [row["rank"] for row in board]
    for column in ("ranking", "macs"):
        idx = figure.columns.index(column)
        heights = [line.heights[idx] for line in figure.lines]
        numbers_of = [row["score" if column == "ranking" else column] for row in board]
        present = [number for number in numbers_of if number is not None]
        for height, number in zip(heights, numbers_of, strict=True):
            if number is None:
                assert height is None
            else:  # twice the number of others below, and once that of equals
                below = sum(2 if other < number else other == number for other in present) - 1
                assert height == (below / 2 / (len(present) - 1) if len(present) > 1 else 0.5)
    assert [line.values[1] for line in figure.lines] == [row["macs"] for row in board]


def test_profiles_are_those_of_the_first_forty() -> None:
    figure = views.profiles(*_long())
    assert [line.name for line in figure.lines] == [str(idx) for idx in range(40)]
    assert figure.title == "Profiles of the candidates (the first 40 of 50)"


def test_profiles_accent_the_first_by_score_whoever_won_the_finals() -> None:
    rows, _ = _long()
    held = {"monitor": "val_loss", "mode": "min", "finalists": 2, "final_epochs": 1, "halving": False}
    board = Leaderboard(rows, {"rank_by": "zico"}).with_finals([Final("45", 0.1, 1), Final("0", 0.2, 1)], held)
    assert [row["name"] for row in board][:2] == ["45", "0"]
    figure = views.profiles(board.rows, board.provenance)
    assert [line.name for line in figure.lines] == [str(idx) for idx in range(40)]
    assert [line.rank for line in figure.accented] == [1, 2, 3, 4, 5]


def _long() -> tuple[Any, Any]:
    board = plain(*(card(str(idx), float(-idx), 1.0) for idx in range(50)))
    return board.rows, board.provenance
