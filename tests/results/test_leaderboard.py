"""Results are plain data that survive being written and read."""

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_zico import Leaderboard, Score, ScoreCard, SearchResult, ZeroShotSelector
from lightning_zico.errors import UnknownNameError
from tests.modules import Classifier, make_batches
from tests.results.boards import card, make, missing

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
ERRORS = st.one_of(st.none(), st.text(min_size=1))


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
    assert leaderboard.to_json(tmp_path / "board.json") == tmp_path / "board.json"
    assert (tmp_path / "board.json").read_text(encoding="utf-8") == leaderboard.to_json()
    assert Leaderboard.from_json(tmp_path / "board.json") == leaderboard
    assert Leaderboard.from_json(str(tmp_path / "board.json")) == leaderboard
    assert leaderboard.to_csv(str(tmp_path / "board.csv")) == tmp_path / "board.csv"
    assert (tmp_path / "board.csv").read_text(encoding="utf-8") == leaderboard.to_csv()
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
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[pandas\]'"):
        make(card("a", 1.0)).to_pandas()


def test_numbers_that_are_not_finite_are_never_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        make(card("a", float("nan"))).to_json()


def test_str_names_all_candidates_and_their_errors() -> None:
    leaderboard = make(card("a", 1.0), card("b", 2.0), card("c", None))
    assert str(leaderboard).splitlines() == [
        "Ranked by zico",
        "rank  name  zico  params  seconds",
        "   1  b        2       3        0",
        "   2  a        1       3        0",
        "   -  c        -       3        0",
        "c: failed",
    ]
    assert leaderboard.best == "b"
    assert leaderboard.errors == {"c": "failed"}
    assert make(card("c", None)).best is None
    assert make().best is None


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


WRITTEN_BEFORE = Path(__file__).parent / "written_by_0_1"


def test_json_that_an_earlier_version_wrote_reads_back_and_is_written_the_same() -> None:
    leaderboard = Leaderboard.from_json(WRITTEN_BEFORE / "leaderboard.json")
    assert leaderboard.to_json() == (WRITTEN_BEFORE / "leaderboard.json").read_text(encoding="utf-8")
    assert leaderboard.best == "w4"
    assert leaderboard.notes[0] == "Finals: the first 2 by score were trained for 1 epoch; the lowest val_loss won."
    assert leaderboard.notes[1].startswith("By score, the first 3 are a tie that these repeats cannot distinguish: w4")
    assert "10.12 ± 0.75" in str(leaderboard)
    result = SearchResult.from_json(WRITTEN_BEFORE / "search.json")
    assert result.to_json() == (WRITTEN_BEFORE / "search.json").read_text(encoding="utf-8")
    assert result.best == "010101"
    assert "size: log_rank of params, macs." in result.notes


def test_rows_are_found_by_position_and_by_name() -> None:
    leaderboard = make(card("a", 1.0), card("b", 2.0), card("c", None))
    assert leaderboard[0] is leaderboard["b"] is leaderboard.rows[0]
    assert leaderboard[-1]["name"] == "c"
    assert leaderboard[:2] == leaderboard.rows[:2]
    assert len(leaderboard) == 3
    assert "a" in leaderboard
    assert "d" not in leaderboard
    assert 0 not in leaderboard
    assert dict(leaderboard["a"]) in leaderboard
    with pytest.raises(UnknownNameError, match=r"'bb'.*'b'"):
        leaderboard["bb"]
    with pytest.raises(IndexError):
        leaderboard[3]


def test_the_head_keeps_ranks_and_says_of_how_many_it_is() -> None:
    leaderboard = missing(("E: no", None), (None, None), ("E: no", "F"))
    head = leaderboard.head(2)
    assert head.rows == leaderboard.rows[:2]
    assert head.missing == {"zico": {"E: no": ["c0"]}}
    assert head.notes == [
        "These are the first 2 of 4 candidates.",
        "zico has no number for 1 of 2 scored candidates: E: no",
    ]
    assert head.head(1).notes[0] == "This is the first of 4 candidates."
    assert leaderboard.head(9).rows == leaderboard.rows
    assert leaderboard.head(9).notes == leaderboard.notes
    assert Leaderboard.from_json(head.to_json()) == head
    assert len(leaderboard.head(0)) == 0
    with pytest.raises(ValueError, match="Invalid n=-1"):
        leaderboard.head(-1)


def test_printing_shows_what_was_asked_for() -> None:
    text = str(ZeroShotSelector(proxies=["snip", "zico"]).rank([Classifier], make_batches()))
    assert text.splitlines()[1].split() == ["rank", "name", "snip", "zico", "seconds"]
    text = str(ZeroShotSelector(proxies="size", controlled_by="macs").rank([Classifier], make_batches()))
    assert text.splitlines()[1].split() == ["rank", "name", "size", "controlled", "seconds"]
    text = str(ZeroShotSelector(proxies=["snip", "params"]).rank([Classifier], make_batches()))
    assert text.splitlines()[1].split() == ["rank", "name", "snip", "params", "seconds"]


EVIL = "<script>alert(1)</script>\n   1  fake\x1b[2J\u202e"


def shown_by(leaderboard: Leaderboard) -> dict[str, str]:
    pytest.importorskip("vl_convert")
    return {
        "csv": leaderboard.to_csv(),
        "html": re.sub(r"<script.*?</script>|<style>.*?</style>", "", leaderboard.to_html(), flags=re.DOTALL),
        "str": str(leaderboard),
        "notebook": leaderboard._repr_html_(),
        "repr": repr(leaderboard),
    }


def test_names_and_reasons_are_written_without_control_characters_and_markup() -> None:
    scores = {"zico": Score("zico", 2.0), EVIL: Score(EVIL, None, EVIL)}
    cards = [ScoreCard(EVIL, scores), ScoreCard.failed(f"{EVIL}2", ["zico", EVIL], EVIL)]
    changed = {"rank_by": "zico", "recipes": {}, "note": EVIL, "kendall_with": {EVIL: 1.0}}
    board = Leaderboard.of(cards, rank_by="zico", columns=["zico", EVIL], provenance=changed)
    for form, text in shown_by(board).items():
        assert not [char for char in text if not char.isprintable() and char != "\n"], form
        assert "u202e" in text, form
        assert ("<script>" in text) == (form in ("csv", "str", "repr")), form
    assert not [line for line in str(board).splitlines() if line.split() == ["1", "fake"]]


def test_a_notebook_shows_the_first_rows_of_a_long_leaderboard() -> None:
    long = make(*(card(f"c{idx}", float(-idx)) for idx in range(500)))
    assert long._repr_html_().count("<tr>") == 1 + 100
    assert "These are the first 100 of 500 candidates." in long._repr_html_()
    assert make(card("a", 1.0))._repr_html_().count("<tr>") == 2
