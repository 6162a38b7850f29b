"""Scores of one candidate, and the result of training it for a while."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table as RichTable

from lightning_zico.report import Column, Layers, Table, as_html, as_text, draw, for_terminal
from lightning_zico.report.table import number
from lightning_zico.results.rows import margin_of
from lightning_zico.texts import count, shortened

# Start of the reason when a proxy's formula has no meaning for a candidate.
NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, repr=False)
class Score:
    """One proxy's number for one candidate, or the reason why it is missing.

    Args:
        name: Name of the proxy.
        value: A finite number, or None if scoring failed; the mean if there were several repeats.
        error: Why there is no value; None if there is one.
        seconds: Time it took, in seconds. A pass that several proxies share is charged to the first of them.
        layers: What each layer added to the value, by parameter name; empty if the proxy has no such parts.
        details: How the number was computed: which differentiation, on which device, in which precision, ...
        std_error: Standard error of the mean, from the deviation between repeats; None for fewer than two.
        by_repeat: The numbers that the value is the mean of, one per repeat; empty if nothing was repeated.
        traceback: Traceback of the exception behind ``error``; None if there was none, or the reason is complete.
    """

    name: str
    value: float | None
    error: str | None = None
    seconds: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    std_error: float | None = None
    by_repeat: tuple[float, ...] = ()
    traceback: str | None = None

    def __repr__(self) -> str:
        value = f"{self.value!r}{margin_of(vars(self))}"
        error = f", error={shortened(self.error)}" if self.error else ""
        layers = f", {count(len(self.layers), 'layer')}" if self.layers else ""
        return f"<Score {shortened(self.name)}: {value}{layers}{error}>"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Score":
        """Make a score from its fields, as returned by ``dataclasses.asdict`` or read from JSON."""
        data = dict(data)
        by_repeat = data.pop("repeats", ())  # the name in files of earlier versions
        return cls(**{**data, "by_repeat": tuple(data.get("by_repeat", by_repeat))})  # JSON has no tuples


@dataclass(frozen=True, repr=False)
class ScoreCard:
    """All scores of one candidate.

    Args:
        name: Name of the candidate.
        scores: Scores by proxy name.
        error: Why nothing could be scored (the candidate does not build, has no usable loss, is over budget); else
            None.
        seconds: Total time it took, in seconds.
        untrainable: Why the candidate cannot be ranked although it was scored: its training step fails, its loss is
            not finite or depends on none of its parameters, none of these is trainable, or its weights have no
            gradient; or something passed to score it, such as ``step=``, fails; else None.
        weights: Hash of the weights that it was scored with, which shows whether repeats had fresh weights; None if it
            did not build.
        process_changes: Settings of the process, such as torch's default dtype, that the candidate changed while it was
            built or scored, and that were put back.
        hyperparameters: The plain values that the candidate saved with ``save_hyperparameters``, by name.

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
    weights: str | None = None
    process_changes: Sequence[str] = ()
    hyperparameters: Mapping[str, bool | int | float | str | None] = field(default_factory=dict)

    @classmethod
    def failed(
        cls, name: str, proxies: Sequence[str], error: str, seconds: float = 0.0, traceback: str | None = None
    ) -> "ScoreCard":
        """Make the card of a candidate that could not be scored at all."""
        scores = {proxy: Score(proxy, None, error, traceback=traceback) for proxy in proxies}
        return cls(name, scores, error, seconds)

    @property
    def traceback(self) -> str | None:
        """Traceback of the first exception behind an error; None if there was none."""
        return next((score.traceback for score in self.scores.values() if score.traceback), None)

    def __getitem__(self, name: str) -> Score:
        return self.scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        missing = sum(score.value is None for score in self.scores.values())
        without = f", {missing} missing" if missing else ""
        return f"<ScoreCard of {shortened(self.name)} with {count(len(self), 'score')}{without}>"

    def __str__(self) -> str:
        """A table with a row for each score, and the reasons of missing ones."""
        return as_text(_table_of(self))

    def _repr_html_(self) -> str:
        """The same as HTML, for notebooks."""
        return as_html(_table_of(self))

    def to_dict(self) -> dict[str, Any]:
        """Turn into plain dictionaries, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ScoreCard":
        """Make a card from what `to_dict` returned."""
        scores = {name: Score.from_dict(score) for name, score in data["scores"].items()}
        return cls(
            data["name"],
            scores,
            data["error"],
            data["seconds"],
            data["untrainable"],
            data.get("weights"),
            tuple(data.get("process_changes", ())),
            data.get("hyperparameters", {}),
        )

    def plot(self, proxy: str = "zico", ax: Any = None) -> tuple[Any, Any]:
        """Draw with matplotlib what each layer added to a score.

        Args:
            proxy: Proxy of the score; ZiCo and others that are sums over layers have such parts.
            ax: Axes to draw in; new ones if None.

        Returns:
            Figure and axes, the first layer on top.

        Raises:
            ValueError: If the card has no such score, or the score no parts.
            ModuleNotFoundError: If matplotlib is not installed.
        """
        return draw(layers_of(self, proxy), ax)


@dataclass(frozen=True)
class Final:
    """Result of training a candidate for a while.

    Args:
        name: Name of the candidate.
        value: The monitored metric; None if training failed.
        num_epochs: Number of epochs that it was trained for.
        error: Why there is no value; None if there is one.
        by_seed: The metric with each seed, of which the value is the mean; empty if training failed.
    """

    name: str
    value: float | None
    num_epochs: int
    error: str | None = None
    by_seed: tuple[float, ...] = ()


def layers_of(card: ScoreCard, proxy: str) -> Layers:
    """Show what each layer of a candidate added to a score.

    Raises:
        ValueError: If the card has no such score, or the score has no parts.
    """
    added = card[proxy].layers if proxy in card.scores else {}
    if not added:
        able = ", ".join(name for name in card if card[name].layers) or "none"
        raise ValueError(
            f"Invalid proxy='{proxy}': it has no parts by layer for '{card.name}'. "
            f"Scores of this card with parts: {able}."
        )
    score = card[proxy]
    return Layers(card.name, proxy, f"{score.value:.6g}{margin_of({'std_error': score.std_error})}", added)


def card_table(card: ScoreCard) -> RichTable:
    """Return a score card as a table of rich, for the terminal."""
    return for_terminal(_table_of(card))


def _value_of(score: Score) -> str:
    # With more digits than in a leaderboard, where a row has many numbers.
    return "-" if score.value is None else f"{score.value:,.6g}"


def _table_of(card: ScoreCard) -> Table:
    """Return the scores of one candidate as a table, with a row for each proxy."""
    scores = list(card.scores.items())
    values = tuple(_value_of(score) + margin_of({"std_error": score.std_error}) for _, score in scores)
    columns = [
        Column("proxy", tuple(name for name, _ in scores), is_text=True, is_needed=True),
        Column("value", values, is_needed=True),
        Column("seconds", tuple(number(score.seconds) for _, score in scores)),
    ]
    whole = card.error or card.untrainable
    reasons = [f"{card.name}: {whole}"] if whole else []
    reasons += [f"{name}: {score.error}" for name, score in scores if score.error and score.error != card.error]
    return Table(f"Scores of {card.name}", tuple(columns), tuple(reasons))
