"""Results are plain data that survive being written and read."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_zico import Leaderboard, Score, ScoreCard

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
ERRORS = st.one_of(st.none(), st.text(min_size=1))


def card(name: str, value: float | None, error: str | None = None) -> ScoreCard:
    error = error or (None if value is not None else "failed")
    return ScoreCard(name, {"zico": Score("zico", None if error else value, error), "params": Score("params", 3.0)})


def make(*cards: ScoreCard, **kwargs: Any) -> Leaderboard:
    return Leaderboard.of(cards, rank_by="zico", columns=["zico", "params"], provenance={"seed": 0}, **kwargs)


@given(st.lists(st.tuples(st.text(), st.one_of(st.none(), NUMBERS)), max_size=8), st.booleans())
def test_ranks_order_the_scores_and_failures_come_last(pairs: list[Any], higher_is_better: bool) -> None:
    leaderboard = make(*(card(name, value) for name, value in pairs), higher_is_better=higher_is_better)
    scores = [row["score"] for row in leaderboard if row["rank"]]
    assert scores == sorted(scores, reverse=higher_is_better)
    assert [row["rank"] for row in leaderboard][len(scores) :] == [None] * (len(pairs) - len(scores))
    for row in leaderboard.rows[: len(scores)]:
        better = [s for s in scores if (s > row["score"] if higher_is_better else s < row["score"])]
        assert row["rank"] == 1 + len(better)
    assert sorted(row["name"] for row in leaderboard) == sorted(name for name, _ in pairs)


@given(st.lists(st.tuples(st.text(), st.one_of(st.none(), NUMBERS), ERRORS), min_size=1, max_size=5))
def test_leaderboard_survives_json(pairs: list[Any]) -> None:
    leaderboard = make(*(card(*pair) for pair in pairs))
    assert Leaderboard.from_json(leaderboard.to_json()) == leaderboard
    assert Leaderboard.from_dict(json.loads(json.dumps(leaderboard.to_dict()))) == leaderboard


def test_leaderboard_is_written_to_files(tmp_path: Path) -> None:
    leaderboard = make(card("a", 1.0), card("b,\n", 2.0), card("c", None))
    leaderboard.to_json(tmp_path / "board.json")
    assert Leaderboard.from_json(tmp_path / "board.json") == leaderboard
    assert Leaderboard.from_json(str(tmp_path / "board.json")) == leaderboard
    leaderboard.to_csv(tmp_path / "board.csv")
    header, first = (tmp_path / "board.csv").read_text().splitlines()[:2]
    assert header == "rank,name,score,zico,params,error,seconds"
    assert first == '1,"b,'
    assert leaderboard.to_csv().count("failed") == 1


def test_pandas_has_the_same_columns_and_whole_ranks() -> None:
    frame = make(card("a", 1.0), card("b", None)).to_pandas()
    assert list(frame.columns) == ["rank", "name", "score", "zico", "params", "error", "seconds"]
    assert frame["rank"].tolist()[0] == 1
    assert frame["rank"].isna().tolist() == [False, True]
    assert list(make().to_pandas().columns) == ["rank", "name", "score", "error", "seconds"]


def test_without_pandas_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-zico\[pandas\]'"):
        make(card("a", 1.0)).to_pandas()


def test_card_survives_json_with_layers_and_details() -> None:
    before = ScoreCard("a", {"zico": Score("zico", 1.5, None, 0.1, {"fc.weight": 1.5}, {"axis": "batch"})}, None, 0.2)
    assert ScoreCard.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def test_numbers_that_are_not_finite_are_never_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        make(card("a", float("nan"))).to_json()


def test_str_names_everyone_and_best_and_errors_speak() -> None:
    leaderboard = make(card("a", 1.0), card("b", 2.0), card("c", None))
    assert str(leaderboard).splitlines() == ["1. b  2", "2. a  1", "-. c  failed"]
    assert leaderboard.best == "b"
    assert leaderboard.errors == {"c": "failed"}
    assert make(card("c", None)).best is None
    assert make().best is None


def noted(**taus: float | None) -> Leaderboard:
    cards = [card("a", 1.0), card("b", 2.0), card("c", None)]
    recipes = {"balanced": {"used": "size", "members": ["params", "macs"], "aggregate": "log_rank"}}
    provenance = {"rank_by": "balanced", "recipes": recipes, "kendall_with": taus}
    return Leaderboard.of(cards, rank_by="zico", columns=["zico", "params"], provenance=provenance)


def test_notes_speak_of_the_recipe_the_baselines_and_what_is_no_more_than_size() -> None:
    leaderboard = noted(params=0.95, macs=0.9, num_layers=None, sum_log_numel=-1.0)
    assert leaderboard.notes == [
        "Not every member of balanced applies to these candidates; size takes its place for all of them: log_rank of "
        "params, macs.",
        "Kendall's tau of this ranking with the trivial baselines: params 0.95, macs 0.90, sum_log_numel -1.00.",
        "This ranking is what counting weights gives: almost the same as by params (0.95).",
    ]
    assert str(leaderboard).splitlines() == ["1. b  2", "2. a  1", "-. c  failed", *leaderboard.notes]
    assert len(noted(params=0.9, macs=None).notes) == 2  # only above
    assert len(noted(params=None).notes) == 1
    assert make(card("a", 1.0)).notes == []


def test_a_recipe_of_one_member_is_its_score() -> None:
    recipe = {"used": "mine", "members": ["zico"], "aggregate": None}
    assert Leaderboard((), {"rank_by": "mine", "recipes": {"mine": recipe}}).notes == ["mine: the score of zico."]
    assert Leaderboard((), {"rank_by": "zico", "recipes": {"mine": recipe}}).notes == []


def test_notes_survive_json_and_leave_the_other_forms_alone() -> None:
    leaderboard = noted(params=0.95, macs=None)
    again = Leaderboard.from_json(leaderboard.to_json())
    assert again == leaderboard
    assert again.notes == leaderboard.notes
    assert again.to_csv() == leaderboard.to_csv()
    assert len(leaderboard.to_csv().splitlines()) == 4
    assert set(leaderboard.to_dict()) == {"rows", "provenance"}
