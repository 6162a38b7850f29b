"""Executors run jobs in this process or in others; the scores are the same."""

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import torch

from lightning_zico.results import ScoreCard
from lightning_zico.scoring.arguments import positive, whole_number
from lightning_zico.scoring.executors.base import CallingExecutor, Executor, Job
from lightning_zico.scoring.executors.pool import Limits, Outcome, outcomes, resident_bytes, retire_worker, worker_idx
from lightning_zico.scoring.process_state import OF_NUMBERS, UNREADABLE, autocasts, is_tainted
from lightning_zico.scoring.scorer import Scorer

T = TypeVar("T")
R = TypeVar("R")

# A process may die without the candidate's fault, such as when the system runs out of memory, but hardly twice.
_NUM_ATTEMPTS = 2


class SerialExecutor:
    """Run jobs in this process, one after the other."""

    def run(self, scorers: Sequence[Scorer], jobs: Iterable[Job]) -> Generator[tuple[Job, ScoreCard], None, None]:
        """Score each job's candidate with its scorer, in the given order."""
        for job in jobs:
            yield job, scorers[job.repeat_idx].score(job.candidate)


class ProcessExecutor:
    """Run jobs in separate processes, which may die, hang or fill the memory without affecting the others.

    Batches and proxies are sent to each process once, and candidates as factories, with cloudpickle; an instance is
    sent with its weights. The processes are spawned, so put a script's own code under ``if __name__ == "__main__":``.

    Scores are bit-identical to those of `SerialExecutor`, provided the number of threads is the same. With a different
    number of threads, sums are computed in a different order: most scores then change by less than 1e-5 of their value,
    and scores that divide by differences of gradients (ZiCo on two batches) by up to one percent (measured with one and
    two threads on small networks). To get the same numbers, call ``torch.set_num_threads(1)`` in this process before
    you use either executor.

    Worker processes end with this process, even if it is killed. If a candidate leaves processes behind, its worker is
    replaced, and they end with it: on Linux all of them, on other systems those in the worker's process group, and on
    Windows none. One kind of process is not found: one with its own session and environment whose worker then died by
    itself.

    Args:
        num_workers: Number of processes; one per core if None. Each computes with its share of the cores, and never
            with more threads than this process (``torch.get_num_threads()``).
        timeout_s: Time limit per candidate, in seconds, including building but not the start of a process. A candidate
            that takes longer is ended and becomes a row with that reason.
        memory_bytes: Limit on the resident memory that a candidate adds, not counting processes that it starts. It is
            checked twenty times a second; a candidate above it is ended and becomes a row with that reason. Needs
            ``/proc``, as on Linux.

    Raises:
        ValueError: If a number is not positive, or memory cannot be measured on this system.
    """

    def __init__(
        self, num_workers: int | None = None, timeout_s: float | None = None, memory_bytes: int | None = None
    ) -> None:
        if num_workers is not None:
            num_workers = whole_number("num_workers", num_workers, 1)
        timeout_s, memory_bytes = positive("timeout_s", timeout_s), positive("memory_bytes", memory_bytes)
        if memory_bytes is not None and not resident_bytes(None):
            raise ValueError("`memory_bytes` needs `/proc`, which this system does not have. Leave it out.")
        self.num_workers = num_workers
        self.timeout_s = timeout_s
        self.memory_bytes = memory_bytes

    def run(self, scorers: Sequence[Scorer], jobs: Iterable[Job]) -> Generator[tuple[Job, ScoreCard], None, None]:
        """Score each job's candidate with its scorer, and yield each card when it is finished.

        A candidate whose process dies is tried once more in a new process.

        Raises:
            TypeError: If a scorer cannot be sent.
            RuntimeError: If no process starts, or one cannot load the scorers.
            CacheError: If a scorer's cache fails.
        """
        scoring = JobRunner(list(scorers))
        with closing(self.call(scoring, lambda _: jobs)) as coming:
            for job, outcome in coming:
                yield job, scoring.card(job, outcome)

    def call(
        self, function: Callable[[T], R], items: Callable[[int], Iterable[T | None]]
    ) -> Generator[tuple[T, Outcome[R]], None, None]:
        """Call a function on items; see `CallingExecutor.call`. An item whose process dies is tried once more.

        Raises:
            TypeError: If the function cannot be sent.
            RuntimeError: If no process starts, or one cannot load the function.
        """
        num_workers = self.num_workers or num_cores()
        as_here = AsHere.of(function, num_threads=max(1, num_cores() // num_workers))
        yield from outcomes(
            as_here, items(num_workers), num_workers, Limits(self.timeout_s, self.memory_bytes, _NUM_ATTEMPTS)
        )


@dataclass(frozen=True)
class AsHere(Generic[T, R]):
    """Call a function in another process as in this one; retire the worker if a call changed its process for good.

    Args:
        function: The function to call.
        settings: The settings of torch that numbers depend on, by their names in `process_state.OF_NUMBERS`.
        autocasts: The state of autocast, as `process_state.autocasts` lists it; numbers depend on it as well.
    """

    function: Callable[[T], R]
    settings: Mapping[str, Any]
    autocasts: Sequence[tuple[str, bool, torch.dtype]]

    @classmethod
    def of(cls, function: Callable[[T], R], num_threads: int) -> "AsHere[T, R]":
        """Copy the settings of this process, with at most ``num_threads`` threads."""
        settings = {switch.name: switch.value() for switch in OF_NUMBERS if switch.name != "autocast"}
        settings = {name: value for name, value in settings.items() if value is not UNREADABLE}
        settings["torch's number of threads"] = min(num_threads, torch.get_num_threads())
        return cls(function, settings, autocasts())

    def __call__(self, item: T) -> R:
        """Call the function with the settings."""
        for switch in OF_NUMBERS:
            if switch.name in self.settings and switch.value() != self.settings[switch.name]:
                switch.write(self.settings[switch.name])
        with ExitStack() as casting:
            for kind, is_enabled, dtype in self.autocasts:
                torch.set_autocast_dtype(kind, dtype)
                if is_enabled:
                    casting.enter_context(torch.autocast(kind, dtype))
            result = self.function(item)
        if is_tainted():
            retire_worker()
        return result


@dataclass(frozen=True)
class JobRunner:
    """Score jobs in another process.

    Args:
        scorers: Scorers, indexed by ``repeat_idx``.
    """

    scorers: Sequence[Scorer]

    def __call__(self, job: Job) -> ScoreCard:
        """Score a job's candidate with its scorer, on the device of this worker."""
        scorer = self.scorers[job.repeat_idx]
        return replace(scorer, placement=scorer.placement.of_worker(worker_idx())).score(job.candidate)

    def card(self, job: Job, outcome: Outcome[ScoreCard]) -> ScoreCard:
        """Return the job's score card, or a failed card if the job produced none."""
        if outcome.result is not None:
            return outcome.result
        names = self.scorers[job.repeat_idx].names
        return ScoreCard.failed(job.candidate.name, names, str(outcome.error), outcome.seconds, outcome.traceback)


def executor_of(executor: Executor | Literal["processes"] | None, timeout_s: float | None) -> Executor:
    """Return the executor for the user's argument.

    Raises:
        ValueError: If it is another name or a class, or if there is a timeout that the executor cannot enforce.
    """
    if executor == "processes":
        return ProcessExecutor(timeout_s=timeout_s)
    if isinstance(executor, str | type) or not (executor is None or callable(getattr(executor, "run", None))):
        raise ValueError(
            f'Invalid executor={executor!r}: expected None, "processes", or an executor such as `RayExecutor()`.'
        )
    if timeout_s is not None:
        raise ValueError(
            f"`timeout_s={timeout_s!r}` needs candidates to run in separate processes. Pass "
            '`executor="processes"`, or `ProcessExecutor(timeout_s=...)` or `RayExecutor(timeout_s=...)` as the '
            "executor."
        )
    return executor or SerialExecutor()


def finals_executor_of(executor: CallingExecutor | Literal["processes"] | None, most: int) -> CallingExecutor | None:
    """Return the executor for the user's argument ``finals_executor``; None for this process.

    Args:
        executor: The argument.
        most: Number of finalists: a `ProcessExecutor` starts no more workers, so that each has more threads.

    Raises:
        ValueError: If it is another name or a class, or an executor that cannot train.
    """
    executor = ProcessExecutor() if executor == "processes" else executor
    if isinstance(executor, str | type) or not (executor is None or callable(getattr(executor, "call", None))):
        raise ValueError(
            f'Invalid finals_executor={executor!r}: expected None, "processes", `ProcessExecutor(...)`, '
            "`RayExecutor(...)` or another executor that has `call`."
        )
    if isinstance(executor, ProcessExecutor):
        capped = copy(executor)
        capped.num_workers = min(capped.num_workers or num_cores(), most)
        return capped
    return executor


def num_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
