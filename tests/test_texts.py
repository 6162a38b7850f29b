"""Names are texts: nothing that reads or shows them does what they say, and nothing fails on them."""

import ast
import csv
import io
import re
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from lightning_zico import Leaderboard, Prior
from lightning_zico.results import leaderboard_table
from lightning_zico.texts import all_of, as_written, count, defused, plural, printable

NAMES = (
    "\udcff\x1b[31m",
    "=1+1",
    "+x",
    "-x",
    "@x",
    "\tx",
    "\rx",
    "'=y",
    "\u202egnp.exe",
    "[/bold]",
    "two\nlines",
    "é ☃",
)


def board() -> Leaderboard:
    rows: list[dict[str, Any]] = [
        {"rank": rank, "name": name, "score": -1.5, "params": -1.5, "error": None, "seconds": 0.5}
        for rank, name in enumerate(NAMES, 1)
    ]
    rows.append(
        {**rows[0], "rank": None, "name": "failed \ud800", "score": None, "params": None, "error": "=\x1b[2J \ud800"}
    )
    return Leaderboard(tuple(rows), {"rank_by": "params", "missing": {}, "note": "\ud800"})


@given(st.text())
def test_a_terminal_only_reads(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert not {unicodedata.category(char) for char in shown.replace("\n", "")} & {"Cc", "Cs", "Zl", "Zp"}
    assert printable(shown) == shown


@given(st.text())
def test_a_cell_is_no_formula_and_its_text_is_not_lost(text: str) -> None:
    assert not defused(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert as_written(defused(text)) == text


def test_a_file_of_comma_separated_values_has_no_formulas_and_numbers_stay_numbers(tmp_path: Path) -> None:
    board().to_csv(tmp_path / "board.csv")
    rows = list(csv.DictReader(io.StringIO(board().to_csv(), newline="")))
    assert [as_written(row["name"]) for row in rows[:-1]] == [printable(name) for name in NAMES]
    assert {row["score"] for row in rows[:-1]} == {"-1.5"}
    assert not any(row[key].startswith(("=", "@", "\t", "\r")) for row in rows for key in ("name", "error"))
    lines = [[row["name"], row["params"]] for row in rows[1:-1]]
    with (tmp_path / "known.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["name", "params"], *lines])
    assert Prior.from_csv(tmp_path / "known.csv").values == dict.fromkeys(map(printable, NAMES[1:]), -1.5)


def test_names_survive_every_way_out(tmp_path: Path) -> None:
    path = board().to_json(tmp_path / "board.json")
    assert [row["name"] for row in Leaderboard.from_json(path)] == [row["name"] for row in board()]
    board().to_html(tmp_path / "board.html")
    logger = CSVLogger(tmp_path)
    board().log(logger)
    assert "\\x1b[31m" in Path(logger.log_dir, "metrics.csv").read_text(encoding="utf-8")
    for shown in (str(board()), leaderboard_table(board())):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        Console(file=stream, width=300).print(shown, markup=False)
        stream.flush()
        written = stream.buffer.getvalue().decode()
        assert "\x1b" not in written
        assert "\\udcff\\x1b[31m" in written


@pytest.mark.parametrize("number", ["6_3", "inf", "-inf", "nan", "1e999", "٣", "0x1", "", "1,5"])
def test_what_is_no_number_in_a_table_is_none_in_a_prior(number: str, tmp_path: Path) -> None:
    (tmp_path / "known.csv").write_text(f'name,accuracy\na,"{number}"\n', encoding="utf-8")
    with pytest.raises(ValueError, match="expected a finite number"):
        Prior.from_csv(tmp_path / "known.csv")


@pytest.mark.parametrize("number", ["63", "-6.3", "+.63e2", " 6.3E+1 ", "6."])
def test_what_is_a_number_in_a_table_is_one_in_a_prior(number: str, tmp_path: Path) -> None:
    (tmp_path / "known.csv").write_text(f"name,accuracy\na,{number}\n", encoding="utf-8")
    assert Prior.from_csv(tmp_path / "known.csv").values == {"a": float(number)}


def test_a_field_that_is_too_long_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "known.csv").write_text(f"name,accuracy\na,1\n{'x' * 200_000},1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot be read .* from line 3 on: field larger than"):
        Prior.from_csv(tmp_path / "known.csv")


PACKAGE = Path(__file__).parent.parent / "lightning_zico"
NOUNS = (
    "arch",
    "batch",
    "candidate",
    "class",
    "epoch",
    "finalist",
    "layer",
    "model",
    "pass",
    "process",
    "repeat",
    "score",
)
IRREGULAR = {"batch": "batches", "class": "classes", "pass": "passes", "process": "processes"}


@given(st.integers(0, 10**6), st.sampled_from(NOUNS))
def test_a_noun_is_in_the_singular_only_after_one(number: int, noun: str) -> None:
    expected = noun if number == 1 else IRREGULAR.get(noun, f"{noun}s")
    assert plural(number, noun) == expected
    assert count(number, noun) == f"{number:,} {expected}"
    assert all_of(number, noun) == (f"The only {noun}" if number == 1 else f"All {number:,} {expected}")


def counts_before_plurals(file: Path) -> list[str]:
    """List where an f-string writes a number before a plural itself; constants are known to be above one."""
    after = re.compile(rf" ({'|'.join(IRREGULAR.get(noun, f'{noun}s') for noun in NOUNS)})\b")
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        for number, text in pairwise(node.values) if isinstance(node, ast.JoinedStr) else ():
            is_count = isinstance(number, ast.FormattedValue) and not ast.unparse(number.value).isupper()
            if is_count and isinstance(text, ast.Constant) and after.match(text.value):
                found.append(f"{file.relative_to(PACKAGE)}:{node.lineno} {ast.unparse(number)}{text.value[:20]}")
    return found


@pytest.mark.parametrize("part", ["bridge", "cli", "report", "results", "selection"])
def test_counts_agree_with_their_nouns(part: str) -> None:
    assert [place for file in sorted((PACKAGE / part).rglob("*.py")) for place in counts_before_plurals(file)] == []
