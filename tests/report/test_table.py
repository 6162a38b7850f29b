"""The table shows every column, the reasons and the notes, and takes names for text."""

from typing import Any

from rich.console import Console

from lightning_zico import Leaderboard
from lightning_zico.report import leaderboard_table

TAUS = {"params": 0.95, "macs": None}


def make(**provenance: Any) -> Leaderboard:
    rows = [
        {"rank": 1, "name": "[b]bold", "score": 2.5, "zico": 2.5, "params": 1234567.0, "error": None, "seconds": 0.125},
        {"rank": None, "name": "bad", "score": None, "zico": None, "params": None, "error": "[i]no", "seconds": 0.0},
    ]
    return Leaderboard(tuple(rows), provenance)


def drawn(leaderboard: Leaderboard, **kwargs: Any) -> list[str]:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(leaderboard_table(leaderboard, **kwargs))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_rows_stand_best_first_with_their_numbers() -> None:
    lines = [line.split() for line in drawn(make(rank_by="zico"))]
    assert lines[0] == ["Ranked", "by", "zico"]
    assert ["rank", "name", "zico", "params", "seconds"] in lines
    first = lines.index(["1", "[b]bold", "2.50", "1,234,567", "0.12"])
    assert lines[first + 1] == ["-", "bad", "-", "-", "0.00"]


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
