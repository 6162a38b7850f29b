"""Jobs, and what runs them: one candidate to score in one repeat."""

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from lightning_zico.candidates import Candidate
from lightning_zico.results import ScoreCard
from lightning_zico.scoring.executors.messages import Outcome
from lightning_zico.scoring.scorer import Scorer

T = TypeVar("T")
R = TypeVar("R")


class Job(NamedTuple):
    """One candidate to score in one repeat.

    Args:
        candidate: The candidate to score.
        repeat_idx: Index of the scorer of the repeat.
    """

    candidate: Candidate
    repeat_idx: int = 0


class Executor(Protocol):
    """Runs jobs somewhere; the scores are the same everywhere.

    An executor that runs jobs on other machines sends them `Scorer.in_memory()` of each scorer, since large samples are
    in files of this machine.
    """

    def run(self, scorers: Sequence[Scorer], jobs: Iterable[Job]) -> Generator[tuple[Job, ScoreCard], None, None]:
        """Score each job's candidate with the scorer of its repeat.

        Args:
            scorers: Scorers, indexed by ``repeat_idx``.
            jobs: Jobs, taken one at a time, and never many more than are running, so that a generator's candidates are
                not all alive at once.

        Yields:
            Each job with its card when it is finished, in any order. Closing the generator stops the running jobs.
        """
        ...


class CallingExecutor(Executor, Protocol):
    """An executor that also calls any function in other processes, as finals do."""

    def call(
        self, function: Callable[[T], R], items: Callable[[int], Iterable[T | None]]
    ) -> Generator[tuple[T, Outcome[R]], None, None]:
        """Call a function on items.

        Args:
            function: The function to call; sent once to each process.
            items: Returns the items, given how many run at the same time. They are taken when there is room for one.
                None means that the next item is not known before the next outcome.

        Yields:
            Each item with its outcome when it is finished. Closing the generator stops the running calls.
        """
        ...
