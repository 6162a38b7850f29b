"""What figures show: frozen numbers, and the words around them. Nothing here draws, or knows where they come from.

A figure is decided here once, and drawn twice: by matplotlib in `report.plots` and by Vega-Lite in `report.vega`. To
add one, write its class here, a function for it in each of these two, and one in `results.views` that fills it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from lightning_zico.texts import count

# With more candidates than this, an axis of names is not readable; the table has all of them.
MOST_NAMES = 40
# More dots than this slow down a browser, and overlap.
MOST_DOTS = 2000
# Shown for a tau that is not defined.
UNDEFINED = "-"
_LONGEST = 400  # characters of names in a caption
_NUM_ACCENTED = 5  # lines that can be told from the others


@dataclass(frozen=True)
class RankDot:
    """A candidate's rank by score; its interval and its probability of being the best are None with one repeat."""

    name: str
    rank: int
    score: float
    low: int | None = None
    high: int | None = None
    p_best: float | None = None


@dataclass(frozen=True)
class Ranks:
    """Each candidate's rank by score with its 95 % interval.

    Args:
        rank_by: Name of the score.
        dots: The candidates to draw, best first.
        num_scored: Number of all candidates with a score.
    """

    rank_by: str
    dots: tuple[RankDot, ...]
    num_scored: int

    @property
    def are_repeated(self) -> bool:
        """Whether any candidate has an interval."""
        return any(dot.low is not None for dot in self.dots)

    @property
    def title(self) -> str:
        """Title above the figure."""
        num_shown = len(self.dots)
        return "Ranks" if num_shown == self.num_scored else f"Ranks (the first {num_shown:,} of {self.num_scored:,})"

    @property
    def x_label(self) -> str:
        """Label of the ranks."""
        interval = ", with its 95 % interval" if self.are_repeated else "; no interval with one repeat"
        return f"rank by {self.rank_by}{interval}"

    @property
    def text(self) -> str:
        """Description of the figure, for all readers and for those who cannot see it."""
        return "The dot is a candidate's rank by score, " + (
            "the bar the 95 % interval of its rank over the repeats."
            if self.are_repeated
            else "which comes from one repeat and so has no interval."
        )


@dataclass(frozen=True)
class TradeOffDot:
    """A candidate's score with its standard error, None with one repeat, and its cost."""

    name: str
    cost: float
    score: float
    margin: float | None = None


@dataclass(frozen=True)
class TradeOff:
    """The score against a cost, with the Pareto front: the candidates that no other beats in both.

    Args:
        rank_by: Name of the score.
        cost: Name of the cost; lower is better.
        dots: The candidates to draw, best score first.
        front: Indices of the front among the dots, cheapest first.
        num_candidates: Number of all candidates with a score and a cost.
        higher_is_better: Direction of the score.
    """

    rank_by: str
    cost: str
    dots: tuple[TradeOffDot, ...]
    front: tuple[int, ...]
    num_candidates: int
    higher_is_better: bool = True

    @property
    def on_front(self) -> tuple[TradeOffDot, ...]:
        """The dots of the front, cheapest first."""
        return tuple(self.dots[idx] for idx in self.front)

    @property
    def is_logarithmic(self) -> bool:
        """Whether the costs have a logarithmic axis, which they need to be positive for."""
        return bool(self.dots) and min(dot.cost for dot in self.dots) > 0

    @property
    def title(self) -> str:
        """Title above the figure."""
        return f"Score against {self.cost}"

    @property
    def y_label(self) -> str:
        """Label of the scores."""
        return self.rank_by + ("" if self.higher_is_better else " (lower is better)")

    @property
    def text(self) -> str:
        """Description of the figure, for all readers and for those who cannot see it."""
        text = (
            "Each dot is a candidate. Orange dots are the Pareto front: no other candidate costs no more and scores no "
            f"{'less' if self.higher_is_better else 'more'}. The front has {len(self.front)} of "
            f"{count(self.num_candidates, 'candidate')}"
        )
        names = ", ".join(dot.name for dot in self.on_front[:MOST_NAMES])
        text += f", from the cheapest: {names}." if len(names) <= _LONGEST else "."
        if len(self.dots) < self.num_candidates:
            text += f" The figure shows these and the best ones, {len(self.dots)} in total."
        return text


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau of every two columns; the ranking comes first.

    Args:
        names: Names of the columns.
        taus: A row of taus for each column; None where tau is not defined.
    """

    names: tuple[str, ...]
    taus: tuple[tuple[float | None, ...], ...]

    title = "Agreement of the proxies: Kendall's tau"
    text = (
        "Kendall's tau of every two columns, including the trivial baselines: 1 (blue) means the same order, -1 "
        "(orange) the opposite order, and a dash that tau is not defined."
    )

    @property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """The taus as texts."""
        return tuple(tuple(UNDEFINED if tau is None else f"{tau:.2f}" for tau in row) for row in self.taus)


@dataclass(frozen=True)
class ProfileLine:
    """A candidate's numbers in all columns of `Profiles`.

    Args:
        name: Name of the candidate.
        rank: Its rank by score.
        values: Its number in each column; None if it has none.
        heights: Position of each number in the order of its column, from 0, the lowest, to 1, the highest.
    """

    name: str
    rank: int
    values: tuple[float | None, ...]
    heights: tuple[float | None, ...]


@dataclass(frozen=True)
class Profiles:
    """Parallel coordinates: a line for each candidate across all columns; the ranking comes first.

    Args:
        rank_by: Name of the score.
        columns: Names of the columns.
        lines: The candidates to draw, the best score first.
        num_scored: Number of all candidates with a score.
    """

    rank_by: str
    columns: tuple[str, ...]
    lines: tuple[ProfileLine, ...]
    num_scored: int

    @property
    def title(self) -> str:
        """Title above the figure."""
        num_shown = len(self.lines)
        part = "" if num_shown == self.num_scored else f" (the first {num_shown:,} of {self.num_scored:,})"
        return f"Profiles of the candidates{part}"

    @property
    def text(self) -> str:
        """Description of the figure, for all readers and for those who cannot see it."""
        return (
            "Each line is a candidate. Its height on an axis is its position among the candidates of the figure in the "
            "order of that column, the best of the ranking and the highest numbers on top. Lines that cross show "
            f"columns that disagree. The first {len(self.accented)} by score are blue."
            if len(self.lines) > 1
            else "Each line is a candidate."
        )

    @property
    def accented(self) -> tuple[ProfileLine, ...]:
        """The lines to draw in the accent colour: the first ones by score."""
        return self.lines[:_NUM_ACCENTED]


@dataclass(frozen=True)
class FinalDot:
    """What came of training a finalist; the value is None if training failed.

    Args:
        name: Name of the candidate.
        value: The monitored metric.
        num_epochs: Number of epochs that it was trained for.
        rank: Its rank by score.
    """

    name: str
    value: float | None
    num_epochs: int
    rank: int

    @property
    def epochs(self) -> str:
        """The number of epochs in words."""
        return f"{self.num_epochs} epoch{'s' * (self.num_epochs != 1)}"


@dataclass(frozen=True)
class Finals:
    """Results of training the finalists.

    Args:
        monitor: Name of the metric.
        lower_is_better: Direction of the metric.
        dots: The finalists, the winner first, failed ones last.
    """

    monitor: str
    lower_is_better: bool
    dots: tuple[FinalDot, ...]

    title = "Finals"

    @property
    def x_label(self) -> str:
        """Label of the metric."""
        return f"{self.monitor} ({'lower' if self.lower_is_better else 'higher'} is better)"

    @property
    def text(self) -> str:
        """Description of the figure, for all readers and for those who cannot see it."""
        better = "lower" if self.lower_is_better else "higher"
        return (
            f"Results of training the finalists, the winner first; {better} is better. A finalist without a dot failed."
        )


@dataclass(frozen=True)
class Layers:
    """What each layer of a candidate added to its score.

    Args:
        name: Name of the candidate.
        proxy: Name of the proxy.
        score: The score with its standard error, as text.
        added: What each layer added, the first layer first.
    """

    name: str
    proxy: str
    score: str
    added: Mapping[str, float]

    @property
    def title(self) -> str:
        """Title above the figure."""
        return f"Layers of {self.name}: {self.proxy} {self.score}"

    @property
    def x_label(self) -> str:
        """Label of what the layers added."""
        return f"added to {self.proxy}"

    @property
    def text(self) -> str:
        """Description of the figure, for all readers and for those who cannot see it."""
        return f"What each layer of {self.name} added to its score by {self.proxy}, the first layer on top."


@dataclass(frozen=True)
class TrialDot:
    """A scored trial of a search."""

    trial: int
    score: float
    name: str


@dataclass(frozen=True)
class History:
    """The score of each trial of a search, and the best so far.

    Args:
        rank_by: Name of the score.
        dots: The trials to draw, in their order.
        best: The trials that were better than all before them, in their order.
        num_trials: Number of all trials.
        num_scored: Number of those with a score.
    """

    rank_by: str
    dots: tuple[TrialDot, ...]
    best: tuple[TrialDot, ...]
    num_trials: int
    num_scored: int

    title = "Search"

    @property
    def line(self) -> tuple[TrialDot, ...]:
        """The best so far; the last one lasts until the end."""
        last = (TrialDot(self.num_trials - 1, self.best[-1].score, self.best[-1].name),) if self.best else ()
        return (*self.best, *last)

    @property
    def text(self) -> str:
        """Description of the figure, for all readers and for those who cannot see it."""
        text = "Each dot is a scored arch; the line is the best score so far."
        if len(self.dots) < self.num_scored:
            text += f" The figure shows {len(self.dots)} of {count(self.num_scored, 'dot')}."
        return text


Figure: TypeAlias = Ranks | TradeOff | Agreement | Profiles | Finals | Layers | History
