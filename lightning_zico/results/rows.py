"""Rows of results: their columns, ranks, and how they are written and read."""

import csv
import io
import json
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, TypeAlias

from lightning_zico.texts import defused

Row: TypeAlias = dict[str, Any]

# Columns of every leaderboard; the proxies' columns come between the first and the last ones.
FIRST_COLUMNS = ("rank", "name", "score")
FINAL_COLUMNS = ("final", "final_rank", "final_epochs")  # only after finals
LAST_COLUMNS = ("error", "seconds")
# After the first columns, if candidates were scored in several repeats.
UNCERTAINTY_COLUMNS = ("std_error", "rank_low", "rank_high", "p_best", "tie", "num_repeats")
FIXED_COLUMNS = frozenset(FIRST_COLUMNS + FINAL_COLUMNS + UNCERTAINTY_COLUMNS + LAST_COLUMNS)
MISSING_COLUMN = "missing"  # the last one of a file of comma-separated values
WHOLE_NUMBERS = ("rank", "final_rank", "final_epochs", "rank_low", "rank_high", "tie", "num_repeats")
# Names that no proxy may have.
RESERVED_NAMES = FIXED_COLUMNS | {MISSING_COLUMN, "controlled", "default", "all"}


def standing_of(row: Row, higher_is_better: bool) -> tuple[int, float]:
    """Return the sort key of a row with a score, higher is better: a row with more repeats stayed longer in a race."""
    return row.get("num_repeats") or 0, row["score"] if higher_is_better else -row["score"]


def margin_of(row: Row) -> str:
    """Return the standard error of a row's score as text to append; an empty text if there is no error."""
    return "" if row.get("std_error") is None else f" ± {row['std_error']:.2g}"


def numbered(values: Sequence[Any]) -> list[int]:
    """Number places from 1; equal neighbours share a place."""
    ranks: list[int] = []
    for position, value in enumerate(values):
        tied = position > 0 and value == values[position - 1]
        ranks.append(ranks[-1] if tied else position + 1)
    return ranks


def ranks_of(scores: Sequence[Any], higher_is_better: bool = True) -> list[int | None]:
    """Return the place of each score, 1 for the best; equal scores share a place, and a missing score has none.

    Args:
        scores: Numbers, or other values that can be compared with each other; None for no score.
        higher_is_better: Direction of the scores.

    Example:
        >>> ranks_of([1.0, None, 3.0, 1.0])
        [2, None, 1, 2]
    """
    ordered = sorted((score for score in scores if score is not None), reverse=higher_is_better)
    places = dict(zip(reversed(ordered), reversed(numbered(ordered)), strict=True))
    return [None if score is None else places[score] for score in scores]


def read_json(source: str | Path) -> Any:
    """Parse JSON: the text, which starts with a brace, or the path of a file with it."""
    is_text = isinstance(source, str) and source.lstrip().startswith("{")
    return json.loads(str(source) if is_text else Path(source).read_text(encoding="utf-8"))


def check_rows(rows: Sequence[Row], needed: Set[str], whose: str) -> None:
    """Raise KeyError if a row lacks a column."""
    for row in rows:
        if missing := needed - set(row):
            raise KeyError(f"A row of {whose} has no {', '.join(sorted(missing))}.")


def as_csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Return comma-separated values with a header; a cell never starts a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")  # cells with either are quoted; that of the line is removed
    lines = []
    for cells in (columns, *([row.get(column) for column in columns] for row in rows)):
        writer.writerow([defused(cell) if isinstance(cell, str) else cell for cell in cells])
        lines.append(text.getvalue().removesuffix("\r\n"))
        text.seek(0)
        text.truncate()
    return "".join(f"{line}\n" for line in lines)


def written(text: str, path: str | Path | None) -> str:
    """Write a text to a file if a path is given, and return it."""
    if path is not None:
        # A name read from a file system may hold what UTF-8 cannot write.
        Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")
    return text
