"""The table shows every column, the reasons and the notes, and takes names for text."""

import html
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from lightning_zico import Leaderboard
from lightning_zico.report.table import Column, Table, as_markdown
from lightning_zico.results import leaderboard_table
from tests.report.boards import searched

TAUS = {"params": 0.95, "macs": None}


def make(**provenance: Any) -> Leaderboard:
    rows = [
        {"rank": 1, "name": "[b]bold", "score": 2.5, "zico": 2.5, "params": 1234567.0, "error": None, "seconds": 0.125},
        {"rank": None, "name": "bad", "score": None, "zico": None, "params": None, "error": "[i]no", "seconds": 0.0},
    ]
    return Leaderboard(tuple(rows), provenance)


def drawn(leaderboard: Leaderboard, width: int = 160, **kwargs: Any) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(leaderboard_table(leaderboard, **kwargs))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_rows_stand_best_first_with_their_numbers() -> None:
    lines = [line.split() for line in drawn(make(rank_by="zico"))]
    assert lines[0] == ["Ranked", "by", "zico"]
    assert ["rank", "name", "zico", "params", "seconds"] in lines
    first = lines.index(["1", "[b]bold", "2.50", "1,234,567", "0.12"])
    assert lines[first + 1] == ["-", "bad", "-", "-", "0"]


def test_reasons_and_notes_stand_below() -> None:
    leaderboard = make(rank_by="zico", kendall_with=TAUS)
    text = " ".join(" ".join(drawn(leaderboard)).split())
    assert text.endswith(" ".join(["bad: [i]no", *leaderboard.notes]))
    assert len(leaderboard.notes) == 2


def test_the_title_is_the_users() -> None:
    assert drawn(make(), title="Mine")[0] == "Mine"
    assert drawn(make())[0] == "Ranked by score"


def test_an_empty_leaderboard_is_an_empty_table() -> None:
    assert leaderboard_table(Leaderboard(())).row_count == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00123, "0.00123"),
        (-0.04567, "-0.0457"),
        (0.123, "0.12"),
        (0.0, "0"),
        (3e-9, "3e-09"),
        (12345.678, "12,345.68"),
        (1e30, "1e+30"),
        (-2.5e17, "-2.5e+17"),
    ],
)
def test_small_and_large_numbers_keep_their_digits(value: float, text: str) -> None:
    row = {"rank": 1, "name": "a", "score": value, "zico": value, "error": None, "seconds": value}
    assert ["1", "a", text, text] in [line.split() for line in drawn(Leaderboard((row,), {"rank_by": "zico"}))]


NAMES = ["mobilenetv3_large_100.ra_in1k", "b"]


def wide(names: list[str] = NAMES, num_proxies: int = 12, rank_by: str = "p07") -> Leaderboard:
    rows = []
    for rank, name in enumerate(names, 1):
        numbers = {f"p{idx:02}": 612345.0 + idx for idx in range(num_proxies)}
        rows.append({"rank": rank, "name": name, "score": numbers["p07"], **numbers, "error": None, "seconds": 0.5})
    return Leaderboard(tuple(rows), {"rank_by": rank_by})


@pytest.mark.parametrize("width", range(50, 200, 7))
def test_a_narrow_terminal_shows_fewer_columns_and_cuts_none(width: int) -> None:
    board = wide()
    lines = drawn(board, width)
    assert max(map(len, lines)) <= width
    headers = next(line.split() for line in lines if "name" in line)
    shown = [f"p{idx:02}" for idx in range(12) if f"p{idx:02}" in headers]
    assert "p07" in shown
    assert headers == ["rank", "name", *shown, *(["seconds"] if "seconds" in headers else [])]
    members = [name for name in shown if name != "p07"]
    assert members == [f"p{idx:02}" for idx in range(12) if idx != 7][: len(members)]  # from the right they go
    for rank, row in enumerate(board, 1):
        cells = [str(rank), row["name"], *(f"{row[name]:,.0f}" for name in shown)]
        assert any(line.split()[: len(cells)] == cells for line in lines)
    left_out = 12 + 3 - len(headers)
    text = " ".join(" ".join(lines).split())
    assert (f"{left_out} column" in text) == ("left out; `to_csv` and `to_html` include all" in text) == (left_out > 0)


def test_as_many_columns_are_shown_as_fit() -> None:
    board = wide()
    full = Console(width=500).measure(leaderboard_table(board)).maximum
    assert "left out" not in " ".join(drawn(board, full))
    one_less = " ".join(" ".join(drawn(board, full - 1)).split())
    assert "1 column that does not fit is left out" in one_less
    assert "seconds" not in one_less
    assert "p11" in one_less


def test_names_that_fit_in_no_case_are_folded_into_half_of_the_width() -> None:
    name = "".join(f"{idx:03}" for idx in range(60))
    lines = drawn(wide([name]), 80)
    pieces = [part for line in lines for part in line.split() if part.isdigit() and len(part) >= 20]
    assert "".join(pieces) == name
    assert min(map(len, pieces[:-1])) >= 40
    assert "612,352" in " ".join(lines)


def test_what_decided_in_finals_is_never_left_out() -> None:
    rows = [{"rank": 1, "name": "a", "score": 1.0, "final": 0.25, "final_rank": 1, "final_epochs": 2}]
    rows[0] |= {**wide(["a"]).rows[0], "rank": 1}
    text = " ".join(drawn(Leaderboard(tuple(rows), {"rank_by": "p07", "finals": HELD}), 40))
    assert "final" in text.split()
    assert "0.25" in text
    assert "612,352" in text


HELD = {"monitor": "val_loss", "mode": "min", "finalists": 1, "final_epochs": 2, "halving": False}


def test_markdown_has_the_cells_of_the_printed_table_and_no_markup_of_names() -> None:
    rows = [{**row, "name": row["name"] + "|<b>_x_"} for row in make().rows]
    board = Leaderboard(tuple(rows), {"rank_by": "zico", "kendall_with": TAUS})
    table, below = board.to_markdown().split("\n\n")
    header, line, *cells = [text.strip("| ").split(" | ") for text in table.splitlines()]
    assert header == ["rank", "name", "zico", "params", "seconds"]
    assert line == ["---:", "---", "---:", "---:", "---:"]
    assert [html.unescape(cell) for cell in cells[0]] == ["1", "[b]bold|<b>_x_", "2.50", "1,234,567", "0.12"]
    assert all(mark not in table for mark in ("<", "[", "_x", "x_"))
    bad, *notes = below.splitlines()
    assert html.unescape(bad) == "- bad|<b>_x_: [i]no"
    assert [html.unescape(note) for note in notes] == [f"- {note}" for note in board.notes]


ODD_NAMES = [
    *("__init__", "_x_", "___", "a__b_", "stem.__class__", "# failed", "1. foo", "12) foo", "- x", "+ x", "---"),
    *("@torvalds", "#123", "$x^2$", "~~gone~~", "**bold**", "`code`", "[a](b)", "![a](b)", "<b>", "&amp;", "> quoted"),
    *("a|b", "back\\slash", "```", "~~~", "a_b_c", "é_ü", "| --- |", "===", "[ ] task"),
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_markdown_renders_every_name_as_the_text_that_it_is(name: str) -> None:
    def render(text: str) -> list[Any]:
        table = Table("", (Column("name", (text,), is_text=True),), reasons=(text,), notes=(f"{text}: {text}",))
        return MarkdownIt().enable(["table", "strikethrough"]).parse(as_markdown(table))

    tokens = render(name)
    assert [token.type for token in tokens] == [token.type for token in render("a")]
    _, *parts = [token.children for token in tokens if token.type == "inline"]
    assert {part.type for cell in parts for part in cell} == {"text"}
    assert ["".join(part.content for part in cell) for cell in parts] == [name, name, f"{name}: {name}"]


def test_markdown_is_written_to_a_file_and_a_search_has_it_too(tmp_path: Path) -> None:
    path = make().to_markdown(tmp_path / "board.md")
    assert path.read_text(encoding="utf-8") == make().to_markdown()
    lines = searched().to_markdown().splitlines()
    assert [line.split(" | ")[1] for line in lines[2:7]] == ["e", "c", "d", "a", "b"]
    assert make().head(1).to_markdown().count("\n| ") == 2
