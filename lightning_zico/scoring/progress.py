"""Progress of a ranking or a search: to the user's callbacks, in the log, and on a terminal."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeAlias

from lightning.pytorch.utilities import rank_zero_only
from rich import get_console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lightning_zico.errors import InvalidArgumentError
from lightning_zico.results import ScoreCard
from lightning_zico.texts import printable, shortened

_log = logging.getLogger(__name__)

# Interval of the lines in the log: 120 lines in an hour.
_LOG_INTERVAL_S = 30.0
# What describes the state of a ranking may sort all cards. It runs at most once a second, and takes 5 % of the time.
_STATE_INTERVAL_S, _MOST_TIME_FOR_STATE = 1.0, 0.05


class ScoringCallback(Protocol):
    """Sees each score card as soon as it is there."""

    def on_candidate_scored(self, card: ScoreCard) -> None:
        """Called in the process that ranks or searches, after each candidate, in the order in which they finish.

        Args:
            card: All scores of the candidate, or the reason why it failed. With ``repeats``, the method is called after
                each repeat, and scores are means over the repeats so far. The score of a recipe is not on the card,
                since it depends on all candidates.
        """


CallbackLike: TypeAlias = Callable[[ScoreCard], Any] | ScoringCallback


def callbacks_of(given: CallbackLike | Sequence[CallbackLike]) -> tuple[Callable[[ScoreCard], Any], ...]:
    """Return the functions to call with each score card.

    Raises:
        InvalidArgumentError: If one of ``given`` is neither a function nor has a method `on_candidate_scored`.
    """
    return tuple(_callback_of(each) for each in (given if isinstance(given, Iterable) else [given]))


def _callback_of(given: Any) -> Callable[[ScoreCard], Any]:
    function = getattr(given, "on_candidate_scored", given)
    if isinstance(given, type) or not callable(function):
        hint = " Pass an instance." if isinstance(given, type) else ""
        raise InvalidArgumentError(
            f"Invalid callbacks: {given!r} is neither a function of a score card nor an object with a method "
            f"`on_candidate_scored(card)`.{hint} Callbacks of training belong to the trainer."
        )
    return function


def is_interactive(enabled: bool) -> bool:
    """Whether to show anything: only if enabled, on a terminal, and on the first rank."""
    return enabled and _is_first_rank() and get_console().is_terminal


def _is_first_rank() -> bool:
    return getattr(rank_zero_only, "rank", 0) in (0, None)


@dataclass(frozen=True)
class ProgressReport:
    """Where progress is reported.

    Args:
        what: What runs, such as "Ranking".
        callbacks: Functions to call with each score card.
        enabled: Whether to show a bar on a terminal, and lines in the log if there is none.
    """

    what: str
    callbacks: tuple[Callable[[ScoreCard], Any], ...] = ()
    enabled: bool = True

    @contextmanager
    def follow(self, total: int | None, describe: Callable[[], str], num_done: int = 0) -> Iterator["Follower"]:
        """Report progress while the body runs.

        Args:
            total: Number of score cards to come; None if unknown.
            describe: Describes the state in words, such as the best candidate so far.
            num_done: Number of cards from an earlier run.
        """
        with _bar(self.what, is_shown=is_interactive(self.enabled)) as bar:
            follower = Follower(self, bar, bar.add_task("", total=total, completed=num_done), describe)
            yield follower
        follower.log_end()


class Follower:
    """Follows one run; made by `ProgressReport.follow`."""

    def __init__(self, report: ProgressReport, bar: Progress, task: TaskID, describe: Callable[[], str]) -> None:
        self._report, self._bar, self._task, self._describe = report, bar, task, describe
        self._began = self._last_line = time.monotonic()
        self._num_before = self._num_done
        self._state, self._next_state = "", 0.0
        self._logs = report.enabled and bar.disable and _is_first_rank()

    @property
    def _num_done(self) -> int:
        return int(self._bar.tasks[0].completed)

    def begin(self, name: str) -> None:
        """Show on the terminal which candidate is next."""
        self._update(self._num_done, name)

    def finish(self, card: ScoreCard, num_done: int | None = None) -> None:
        """Report a card; an exception of a callback propagates.

        Args:
            card: The card.
            num_done: Number of cards so far; None for one more than before.
        """
        self._update(self._num_done + 1 if num_done is None else num_done)
        _log.debug("%s: %s", shortened(card.name), printable(card.error or f"scored in {card.seconds:.2f} s"))
        if self._logs and time.monotonic() - self._last_line >= _LOG_INTERVAL_S:
            self._last_line = time.monotonic()
            _log.info("%s", self._line())
        for callback in self._report.callbacks:
            callback(card)

    def log_end(self) -> None:
        """Log that the run is complete."""
        if self._logs:
            self._next_state = 0.0
            _log.info("%s", self._line())

    def _update(self, num_done: int, name: str | None = None) -> None:
        if self._bar.disable:
            self._bar.update(self._task, completed=num_done)
            return
        shown = self._describe_at_times() if name is None else f"{self._describe_at_times()}; {name}"
        self._bar.update(self._task, completed=num_done, description=printable(shown.removeprefix("; ")))

    def _describe_at_times(self) -> str:
        start = time.monotonic()
        if start >= self._next_state:
            self._state = self._describe()
            took = time.monotonic() - start
            self._next_state = start + max(_STATE_INTERVAL_S, took / _MOST_TIME_FOR_STATE)
        return self._state

    def _line(self) -> str:
        """Return how far the run is, such as ``Ranking: 12 of 64 in 0:01:02, 0:04:29 left, best 'net', 0 rejected``."""
        total, seconds = self._bar.tasks[0].total, time.monotonic() - self._began
        num_here = self._num_done - self._num_before
        parts = [f"{self._num_done:,}{'' if total is None else f' of {total:,.0f}'} in {_in_words(seconds)}"]
        if total is not None and num_here and self._num_done < total:
            parts.append(f"{_in_words(seconds / num_here * (total - self._num_done))} left")
        state = printable(" ".join(self._describe_at_times().split()))
        return f"{self._report.what}: {', '.join([*parts, *([state] if state else [])])}"


def _in_words(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _bar(what: str, *, is_shown: bool) -> Progress:
    """Create a bar that disappears when it is done."""
    # A candidate's name is text, not rich's markup.
    last = TextColumn("{task.description}", markup=False)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), last)
    return Progress(
        *columns,
        console=get_console(),
        transient=True,
        disable=not is_shown,
        speed_estimate_period=7200,  # estimate from the last hours, since a candidate may take minutes
    )
