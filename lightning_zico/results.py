"""Results: plain frozen data that outlive the models they speak of. Nothing here knows of torch."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]

# Columns of every leaderboard; those of the proxies stand between the first and the last of them.
_FIRST_COLUMNS = ("rank", "name", "score")
_LAST_COLUMNS = ("error", "seconds")
FIXED_COLUMNS = frozenset(_FIRST_COLUMNS + _LAST_COLUMNS)
# What no proxy may be called.
RESERVED_NAMES = FIXED_COLUMNS | {"controlled", "default", "all"}

# From this tau on a ranking is called the baseline's own.
_SAME_RANKING = 0.9

# How the reason begins where a proxy's formula has no meaning for a candidate.
NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Score:
    """One proxy's number for one candidate, or the reason why there is none.

    Args:
        name: Of the proxy.
        value: A finite number, or None if scoring failed.
        error: Why there is no value; None if there is one.
        seconds: Time it took, in seconds. A pass that several proxies share is charged to the first of them.
        layers: What each layer added to the value, by parameter name; empty where a proxy has no such parts.
        details: How the number came about: what differentiated, on which device, in which precision, ...
    """

    name: str
    value: float | None
    error: str | None = None
    seconds: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreCard:
    """All scores of one candidate.

    Args:
        name: Of the candidate.
        scores: By proxy name.
        error: Why nothing could be scored (the candidate does not build, has no usable loss, is over budget); else
            None.
        seconds: Time it took in all, in seconds.
        untrainable: Why the candidate cannot be ranked although it was scored: its loss is not finite, or none of its
            parameters is trainable; else None.

    Example:
        >>> card = ScoreCard("mlp", {"zico": Score("zico", 12.5)})
        >>> card["zico"].value
        12.5
    """

    name: str
    scores: Mapping[str, Score]
    error: str | None = None
    seconds: float = 0.0
    untrainable: str | None = None

    @classmethod
    def failed(cls, name: str, proxies: Sequence[str], error: str, seconds: float = 0.0) -> "ScoreCard":
        """Make the card of a candidate of which nothing could be scored."""
        return cls(name, {proxy: Score(proxy, None, error) for proxy in proxies}, error, seconds)

    def __getitem__(self, name: str) -> Score:
        return self.scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Turn into plain dictionaries, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ScoreCard":
        """Make a card from what `to_dict` gave."""
        scores = {name: Score(**score) for name, score in data["scores"].items()}
        return cls(data["name"], scores, data["error"], data["seconds"], data["untrainable"])


@dataclass(frozen=True)
class Leaderboard:
    """Candidates ranked, best first, failed ones last.

    Args:
        rows: One a candidate: ``rank`` (1 is best, equal scores share a rank, None if failed), ``name``, ``score``
            (what was ranked by), one key for each proxy (its value or None), ``error`` (None or the reason),
            ``seconds``.
        provenance: All that the numbers depend on, in plain values.

    Example:
        >>> cards = [ScoreCard("a", {"zico": Score("zico", 1.0)}), ScoreCard("b", {"zico": Score("zico", 2.0)})]
        >>> leaderboard = Leaderboard.of(cards, rank_by="zico", columns=["zico"])
        >>> [(row["rank"], row["name"]) for row in leaderboard]
        [(1, 'b'), (2, 'a')]
    """

    rows: tuple[Row, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        cards: Sequence[ScoreCard],
        *,
        rank_by: str,
        columns: Sequence[str],
        higher_is_better: bool = True,
        provenance: Mapping[str, Any] | None = None,
    ) -> "Leaderboard":
        """Rank score cards.

        Args:
            cards: In the order in which the candidates were offered; equal scores keep that order.
            rank_by: Name of the score to rank by.
            columns: Names of the scores to show.
            higher_is_better: Direction of that score.
            provenance: Kept as it is.
        """
        rows = [_row_of(card, rank_by, columns) for card in cards]
        ranked = [row for row in rows if row["score"] is not None]
        ranked.sort(key=lambda row: row["score"], reverse=higher_is_better)  # stable, also in reverse
        for position, row in enumerate(ranked):
            tied = position > 0 and row["score"] == ranked[position - 1]["score"]
            row["rank"] = ranked[position - 1]["rank"] if tied else position + 1
        failed = [row for row in rows if row["score"] is None]
        return cls((*ranked, *failed), dict(provenance or {}))

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        """A line for each candidate, and the notes; `report.table.leaderboard_table` draws all columns."""
        lines = [
            f"{row['rank']}. {row['name']}  {row['score']:.6g}" if row["rank"] else f"-. {row['name']}  {row['error']}"
            for row in self.rows
        ]
        return "\n".join([*lines, *self.notes])

    @property
    def notes(self) -> list[str]:
        """What is to be known of the ranking before it is believed, in sentences.

        What the recipe that ranks combines, and which one took the place of a recipe whose members do not apply;
        Kendall's tau of the ranking with each trivial baseline on the same candidates, and in words where one of them
        gives almost the same.
        """
        notes = []
        for name, recipe in self.provenance.get("recipes", {}).items():
            members = f"{recipe['aggregate'] or 'the score'} of {', '.join(recipe['members'])}."
            if recipe["used"] != name:
                instead = f"{recipe['used']} takes its place for all of them"
                notes.append(f"Not every member of {name} applies to these candidates; {instead}: {members}")
            elif name == self.provenance.get("rank_by"):
                notes.append(f"{name}: {members}")
        taus = {name: tau for name, tau in self.provenance.get("kendall_with", {}).items() if tau is not None}
        if taus:
            said = ", ".join(f"{name} {tau:.2f}" for name, tau in taus.items())
            notes.append(f"Kendall's tau of this ranking with the trivial baselines: {said}.")
        alike = [f"{name} ({tau:.2f})" for name, tau in taus.items() if tau > _SAME_RANKING]
        if alike:
            notes.append(f"This ranking is what counting weights gives: almost the same as by {', '.join(alike)}.")
        return notes

    @property
    def best(self) -> str | None:
        """Name of the first candidate; None if all failed."""
        return self.rows[0]["name"] if self.rows and self.rows[0]["rank"] else None

    @property
    def errors(self) -> dict[str, str]:
        """Reasons of the candidates that failed, by name."""
        return {row["name"]: row["error"] for row in self.rows if row["rank"] is None}

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in the order of `to_pandas` and `to_csv`."""
        proxies = [key for key in self.rows[0] if key not in FIXED_COLUMNS] if self.rows else []
        return [*_FIRST_COLUMNS, *proxies, *_LAST_COLUMNS]

    def to_dict(self) -> dict[str, Any]:
        """Turn into ``{"rows": [...], "provenance": {...}}``, best first."""
        return {"rows": [dict(row) for row in self.rows], "provenance": dict(self.provenance)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Leaderboard":
        """Make a leaderboard from what `to_dict` gave."""
        return cls(tuple(dict(row) for row in data["rows"]), dict(data["provenance"]))

    def to_json(self, path: str | Path | None = None) -> str:
        """Turn into JSON, and write it to a file if a path is given."""
        return _written(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", path)

    @classmethod
    def from_json(cls, source: str | Path) -> "Leaderboard":
        """Read what `to_json` gave.

        Args:
            source: The JSON text, or the path of a file with it. Text starts with a brace, and a path does not.
        """
        is_text = isinstance(source, str) and source.lstrip().startswith("{")
        return cls.from_dict(json.loads(str(source) if is_text else Path(source).read_text(encoding="utf-8")))

    def to_csv(self, path: str | Path | None = None) -> str:
        """Turn into comma-separated values with a header, and write them to a file if a path is given."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return _written(text.getvalue(), path)

    def to_pandas(self) -> Any:
        """Turn into a `pandas.DataFrame` with the same columns; ``rank`` is a nullable integer.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "`to_pandas` needs pandas: `pip install 'lightning-zico[pandas]'`. `to_csv` and `to_dict` need nothing."
            ) from error
        return pandas.DataFrame(list(self.rows), columns=self.columns).astype({"rank": "Int64"})


def _row_of(card: ScoreCard, rank_by: str, columns: Sequence[str]) -> Row:
    scored = card.scores.get(rank_by)
    error = card.error or card.untrainable or (scored.error if scored else f"`{rank_by}` was not computed")
    values = {name: card.scores[name].value if name in card.scores else None for name in columns}
    return {
        "rank": None,
        "name": card.name,
        "score": scored.value if scored and not error else None,
        **values,
        "error": error,
        "seconds": card.seconds,
    }


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text
