"""A leaderboard and the result of a search are sequences of rows, best first, that are also found by name."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_zico import Leaderboard, Score, ScoreCard, SearchResult
from lightning_zico.errors import UnknownNameError
from lightning_zico.results import ranked, ranks_of
from tests.results.boards import card, make

SCORES = st.lists(st.none() | st.integers(-3, 3).map(float), max_size=6)
KINDS = ("leaderboard", "search")


def result_of(kind: str, scores: list[float | None]) -> Leaderboard | SearchResult:
    if kind == "leaderboard":
        return make(*(card(f"c{idx}", score) for idx, score in enumerate(scores)))
    rows: list[dict[str, Any]] = [
        {
            "trial": idx,
            "rank": rank,
            "arch": f"c{idx}",
            "score": score,
            "on_front": rank == 1,
            "error": None if score is not None else "failed",
            "seconds": 0.5,
        }
        for idx, (score, rank) in enumerate(zip(scores, ranks_of(scores), strict=True))
    ]
    return SearchResult(tuple(rows))


def name_of(row: dict[str, Any]) -> str:
    return str(row.get("name", row.get("arch")))


@pytest.mark.parametrize("kind", KINDS)
@given(SCORES)
def test_rows_are_a_sequence_best_first(kind: str, scores: list[float | None]) -> None:
    result = result_of(kind, scores)
    rows = list(result)
    assert len(result) == len(rows) == len(scores)
    assert [result[idx] for idx in range(len(result))] == rows
    assert [result[idx - len(rows)] for idx in range(len(rows))] == rows
    assert list(result[1:3]) == rows[1:3]
    ranked = [score for score in scores if score is not None]
    assert [row["score"] for row in rows] == sorted(ranked, reverse=True) + [None] * (len(scores) - len(ranked))
    assert result.best == (name_of(rows[0]) if ranked else None)
    with pytest.raises(IndexError, match=f"Invalid row {len(rows)}: expected one of {len(rows)} row"):
        result[len(rows)]


@pytest.mark.parametrize("kind", KINDS)
@given(SCORES)
def test_rows_are_found_by_name(kind: str, scores: list[float | None]) -> None:
    result = result_of(kind, scores)
    for row in result:
        assert result[name_of(row)] is row
        assert name_of(row) in result
        assert row in result
    assert (result.best in result) == any(score is not None for score in scores)
    assert "d" not in result
    assert None not in result
    with pytest.raises(UnknownNameError, match=r"There is no (candidate|arch) named 'd'"):
        result["d"]


@pytest.mark.parametrize("kind", KINDS)
@given(SCORES, st.integers(0, 7))
def test_a_head_has_the_first_rows_and_keeps_their_ranks(kind: str, scores: list[float | None], n: int) -> None:
    result = result_of(kind, scores)
    head = result.head(n)
    assert type(head) is type(result)
    assert list(head) == list(result)[:n]
    if n and len(scores) > 1:
        assert head.head(1).notes[0].startswith("This is the")
    assert result.head(len(scores) + 1).notes == result.notes
    with pytest.raises(ValueError, match="Invalid n=-1"):
        result.head(-1)


@pytest.mark.parametrize("kind", KINDS)
@given(SCORES)
def test_results_survive_json_and_are_shown_shortly(kind: str, scores: list[float | None]) -> None:
    result = result_of(kind, scores)
    assert type(result).from_json(result.to_json()) == result
    assert len(result.to_csv().splitlines()) == 1 + len(scores) or not scores
    assert len(repr(result)) <= 3 * 120
    assert "\n" not in repr(result)
    assert "<table" in result._repr_html_()
    noun = {"leaderboard": "candidate", "search": "arch"}[kind]
    assert f" of {len(scores)} {noun}{'s' * (len(scores) != 1)} by " in repr(result)


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_of_a_card_has_one_more_figure(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranked, "html_of", lambda page: str(len(page.figures)))
    result = result_of(kind, [1.0, 2.0])
    best = ScoreCard("c1", {"zico": Score("zico", 2.0, layers={"0.weight": 2.0})})
    assert int(result.to_html(card=best)) == int(result.to_html()) + 1
    with pytest.raises(ValueError, match="it has no parts by layer for 'c0'"):
        result.to_html(card=card("c0", 1.0))


def test_a_history_stays_in_the_order_of_the_trials() -> None:
    result = result_of("search", [1.0, None, 3.0, 2.0])
    assert isinstance(result, SearchResult)
    assert [row["trial"] for row in result.history] == [0, 1, 2, 3]
    assert [row["trial"] for row in result.head(2).history] == [2, 3]
    assert [row["trial"] for row in result] == [2, 3, 0, 1]
