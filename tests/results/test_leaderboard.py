"""Results are plain data that survive being written and read."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_zico import Leaderboard, Score, ScoreCard, SearchResult

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
    assert header == "rank,name,score,zico,params,error,seconds,missing"
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
        "balanced fell back to size (log_rank of params, macs) for all of these candidates.",
        "Kendall's tau of this ranking with the trivial baselines: params 0.95, macs 0.90, sum_log_numel -1.00.",
        "This ranking adds little to counting weights: it is almost the same as by params (0.95).",
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


REASON = st.one_of(st.none(), st.sampled_from(["E: no", "not applicable: no", "F"]))


@given(st.lists(st.tuples(REASON, REASON), max_size=6))
def test_every_missing_number_of_a_ranked_candidate_has_its_reason_and_no_other(errors: list[Any]) -> None:
    leaderboard = missing(*errors)
    told = {
        (proxy, name): reason
        for proxy, reasons in leaderboard.missing.items()
        for reason, names in reasons.items()
        for name in names
    }
    wanted = {("zico", f"c{idx}"): zico for idx, (zico, _) in enumerate(errors) if zico}
    wanted |= {("snip", f"c{idx}"): snip for idx, (_, snip) in enumerate(errors) if snip}
    assert told == wanted
    assert set(told) == {(p, row["name"]) for row in leaderboard if row["rank"] for p in row if row[p] is None} - {
        ("error", row["name"]) for row in leaderboard
    }
    again = Leaderboard.from_json(leaderboard.to_json())
    assert again.missing == leaderboard.missing
    assert ("missing" in leaderboard.provenance) == bool(told)


@given(st.lists(st.tuples(REASON, REASON), max_size=6))
def test_csv_says_in_its_last_column_why_numbers_of_a_candidate_are_missing(errors: list[Any]) -> None:
    reader = csv.DictReader(io.StringIO(missing(*errors).to_csv()))
    told = {row["name"]: row["missing"] for row in reader}
    assert list(reader.fieldnames or ())[-1] == "missing"
    wanted = {"broken": ""}  # whose error says it
    for idx, (zico, snip) in enumerate(errors):
        wanted[f"c{idx}"] = "; ".join([f"zico: {zico}"] * bool(zico) + [f"snip: {snip}"] * bool(snip))
    assert told == wanted


def test_one_cause_that_takes_many_proxies_is_written_once_and_told_in_one_note() -> None:
    leaderboard = missing(("E: no", "E: no"), (None, None), ("E: no", "E: no"))
    assert leaderboard.provenance["missing"] == [
        {"reason": "E: no", "proxies": ["zico", "snip"], "names": ["c0", "c2"]}
    ]
    assert leaderboard.notes == ["zico, snip have no number for 2 of 3 scored candidates: E: no"]
    assert leaderboard.notes[0] in str(leaderboard)


def test_of_several_reasons_the_most_frequent_is_told_and_how_many_there_are() -> None:
    leaderboard = missing(("E: no", None), ("F", None), ("F", "F"))
    assert leaderboard.notes == [
        "zico has no number for 3 of 3 scored candidates (the most frequent of 2 reasons, 2 times): F",
        "snip has no number for 1 of 3 scored candidates: F",
    ]


def test_notes_on_missing_numbers_stay_few() -> None:
    proxies = [f"p{idx:02}" for idx in range(25)]
    scores = {name: Score(name, None, "same" if idx < 20 else name) for idx, name in enumerate(proxies)}
    board = Leaderboard.of(
        [ScoreCard("a", {"params": Score("params", 1.0), **scores})], rank_by="params", columns=["params", *proxies]
    )
    first, *_, last = board.notes
    assert first == f"{', '.join(proxies[:10])} and 10 more have no number for 1 of 1 scored candidates: same"
    assert last == "Numbers are missing in 3 more columns; `Leaderboard.missing` says why."
    assert len(board.notes) == 4


def lacking(member: str, reason: str, count: int = 1, num_reasons: int = 1) -> dict[str, Any]:
    return {"member": member, "reason": reason, "name": "c0", "count": count, "num_reasons": num_reasons}


def test_what_the_note_on_a_replaced_recipe_says_is_not_said_again() -> None:
    recipe = {"used": "size", "members": ["params"], "aggregate": None, "dropped": ["snip"]}
    recipe["lacking"] = [lacking("snip", "not applicable: it has none.")]
    errors = [("not applicable: a", "not applicable: it has none."), (None, None)]
    assert missing(*errors, recipes={"mine": recipe}).notes == [
        "mine fell back to size (the score of params) for all of these candidates: snip does not hold for c0: it has "
        "none.",
        "zico has no number for 1 of 2 scored candidates: not applicable: a",
    ]
    assert "snip" in missing(*errors, recipes={"mine": recipe}).missing


def test_a_reason_that_several_members_share_is_said_once() -> None:
    recipe = {"used": "size", "members": ["params"], "aggregate": None, "dropped": ["snip", "zen", "naswot", "ntk"]}
    reason = "not applicable: it has none."
    shared = [lacking(member, reason, 3) for member in ("snip", "zen", "naswot")]
    recipe["lacking"] = [*shared, lacking("ntk", reason, 2), lacking("fisher", "KeyError: 'x'", 3)]
    assert missing(recipes={"mine": recipe}).notes == [
        "mine fell back to size (the score of params) for all of these candidates: snip, zen and naswot do not hold "
        "for c0 and 2 more: it has none; ntk does not hold for c0 and 1 more: it has none; fisher failed for c0 and 2 "
        "more: KeyError: 'x'."
    ]


def test_notes_name_who_is_placed_beside_the_others_by_what_and_why() -> None:
    recipe = {"used": "mine", "members": ["params", "snip"], "aggregate": "log_rank", "dropped": []}
    recipe["beside"] = {"used": "size", "members": ["params"], "names": ["c0", "c1"]}
    recipe["lacking"] = [lacking("snip", "KeyError: 'x'", count=2, num_reasons=2)]
    board = missing(recipes={"mine": recipe})
    placed = (
        "mine does not hold for c0, c1; these are placed among the others by size (params), "
        "at the same quantile of the scores: "
        "snip failed for c0 and 1 more (the most frequent of 2 reasons): KeyError: 'x'."
    )
    assert board.notes == [placed]
    assert Leaderboard.from_json(board.to_json()).notes == [placed]
    fallen = recipe | {"used": "other"}
    assert missing(recipes={"mine": fallen}).notes == [
        "mine fell back to other (log_rank of params, snip) for all of these candidates.",
        placed.replace("mine does", "other does"),
    ]


def test_json_of_before_reasons_were_kept_still_reads() -> None:
    data = missing(("E: no", None)).to_dict()
    del data["provenance"]["missing"]
    old = Leaderboard.from_dict(data)
    assert old.missing == {}
    assert old.notes == []


def test_rows_that_are_none_are_refused_with_what_they_lack() -> None:
    rows = [{"rank": 1, "name": "a"}]
    with pytest.raises(KeyError, match=r"A row of the leaderboard has no error, score\."):
        Leaderboard.from_dict({"rows": rows, "provenance": {}})
    with pytest.raises(KeyError, match=r"A row of the history has no arch, error, score, trial\."):
        SearchResult.from_dict({"history": [{"rank": 1}], "provenance": {}})


def test_a_name_that_utf8_cannot_write_loses_no_file(tmp_path: Path) -> None:
    leaderboard = make(card("caf\udce9", 1.0), card("b", 2.0))
    leaderboard.to_csv(tmp_path / "board.csv")
    assert "caf\\udce9" in (tmp_path / "board.csv").read_text(encoding="utf-8")
    leaderboard.to_json(tmp_path / "board.json")
    assert Leaderboard.from_json(tmp_path / "board.json") == leaderboard
