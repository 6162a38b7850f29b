"""Scores of one candidate, and the result of training it for a while."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# Start of the reason when a proxy's formula has no meaning for a candidate.
NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
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
        repeats: The numbers that the value is the mean of, one per repeat; empty if nothing was repeated.
        traceback: Traceback of the exception behind ``error``; None if there was none, or the reason is complete.
    """

    name: str
    value: float | None
    error: str | None = None
    seconds: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    std_error: float | None = None
    repeats: tuple[float, ...] = ()
    traceback: str | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Score":
        """Make a score from its fields, as returned by ``dataclasses.asdict`` or read from JSON."""
        return cls(**{**data, "repeats": tuple(data.get("repeats", ()))})  # JSON has no tuples


@dataclass(frozen=True)
class ScoreCard:
    """All scores of one candidate.

    Args:
        name: Name of the candidate.
        scores: Scores by proxy name.
        error: Why nothing could be scored (the candidate does not build, has no usable loss, is over budget); else
            None.
        seconds: Total time it took, in seconds.
        untrainable: Why the candidate cannot be ranked although it was scored: its training step fails, its loss is
            not finite, or none of its parameters is trainable; or something passed to score it, such as ``step=``,
            fails; else None.
        weights: Hash of the weights that it was scored with, which shows whether repeats had fresh weights; None if it
            did not build.
        process_changes: Settings of the process, such as torch's default dtype, that the candidate changed while it was
            built or scored, and that were put back.

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

    def to_dict(self) -> dict[str, Any]:
        """Turn into plain dictionaries, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ScoreCard":
        """Make a card from what `to_dict` returned."""
        scores = {name: Score.from_dict(score) for name, score in data["scores"].items()}
        changes = tuple(data.get("process_changes", ()))
        return cls(
            data["name"], scores, data["error"], data["seconds"], data["untrainable"], data.get("weights"), changes
        )

    def plot(self, proxy: str = "zico", ax: Any = None) -> tuple[Any, Any]:
        """Draw what each layer added to a score; see `report.plot_layers`."""
        from lightning_zico.report import plot_layers

        return plot_layers(self, proxy, ax)


@dataclass(frozen=True)
class Final:
    """Result of training a candidate for a while.

    Args:
        name: Name of the candidate.
        value: The monitored metric; None if training failed.
        num_epochs: Number of epochs that it was trained for.
        error: Why there is no value; None if there is one.
    """

    name: str
    value: float | None
    num_epochs: int
    error: str | None = None
