"""Executors: where jobs run. The scores are the same numbers wherever that is."""

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from lightning_zico.results import ScoreCard
from lightning_zico.scoring.arguments import positive, whole_number
from lightning_zico.scoring.pool import Limits, Outcome, outcomes, resident_bytes, retire_worker, worker_idx
from lightning_zico.scoring.process_state import autocasts, is_tainted
from lightning_zico.scoring.work import Executor, Job, Work

# A process may die through no fault of its candidate, such as when the system is out of memory; twice is no accident.
_NUM_ATTEMPTS = 2


class SerialExecutor:
    """Runs jobs in this process, one after the other."""

    def run(self, works: Sequence[Work], jobs: Iterable[Job]) -> Generator[tuple[Job, ScoreCard], None, None]:
        """Score each job's candidate by its work, in the order in which they come."""
        for job in jobs:
            yield job, works[job.repeat_idx].score(job.candidate)


class ProcessExecutor:
    """Runs jobs in processes of their own, which may die, hang or fill the memory without harm to the others.

    Batches and proxies are sent to each process once, candidates as factories, by cloudpickle; an instance travels with
    its weights. The processes are spawned, so a script needs its own code under ``if __name__ == "__main__":``.

    Scores are bit for bit those of `SerialExecutor` where both compute with as many threads. Another number of threads
    sums in another order: most scores then move by less than 1e-5 of their value, those that divide by differences of
    gradients (ZiCo on two batches) by up to one percent (measured with one and two threads on small networks). For the
    same numbers, give this process ``torch.set_num_threads(1)`` before either.

    Worker processes end with this process, also when it is killed. What a candidate started and did not end is ended
    with its worker, which is replaced: on Linux all of it, on other systems what stays in the worker's process group,
    and on Windows nothing. One kind of process is not found: one with a session and an environment of its own, whose
    worker then died by itself.

    Args:
        num_workers: Processes; one a core if None. Each computes with its share of the cores, and never with more
            threads than this process does (``torch.get_num_threads()``).
        timeout_s: What takes longer, building included, is ended: its row says so. The start of a process is not
            counted.
        memory_bytes: Likewise a candidate that takes more resident memory than that. It is looked at twenty times a
            second, without the processes that it starts; needs ``/proc``, as Linux has it.

    Raises:
        ValueError: If a number is not positive, or memory cannot be looked at on this system.
    """

    def __init__(
        self, num_workers: int | None = None, timeout_s: float | None = None, memory_bytes: int | None = None
    ) -> None:
        if num_workers is not None:
            num_workers = whole_number("num_workers", num_workers, 1)
        timeout_s, memory_bytes = positive("timeout_s", timeout_s), positive("memory_bytes", memory_bytes)
        if memory_bytes is not None and not resident_bytes(None):
            raise ValueError("`memory_bytes` needs `/proc`, which this system lacks. Leave it out.")
        self.num_workers = num_workers
        self.timeout_s = timeout_s
        self.memory_bytes = memory_bytes

    def run(self, works: Sequence[Work], jobs: Iterable[Job]) -> Generator[tuple[Job, ScoreCard], None, None]:
        """Score each job's candidate by its work, and give each as it is finished.

        A candidate whose process dies is tried once more, in a fresh one.

        Raises:
            TypeError: If a work cannot be sent.
            RuntimeError: If no process starts, or one cannot load the works.
            CacheError: If a work's cache fails.
        """
        num_workers = self.num_workers or num_cores()
        scoring = Scoring.by(works, num_threads=max(1, num_cores() // num_workers))
        limits = Limits(self.timeout_s, self.memory_bytes, _NUM_ATTEMPTS)
        with closing(outcomes(scoring, jobs, num_workers, limits)) as coming:
            for job, outcome in coming:
                yield job, scoring.card(job, outcome)


@dataclass(frozen=True)
class Scoring:
    """Scores jobs in another process as this one would.

    Args:
        works: By ``repeat_idx``.
        settings: Of torch, all of which numbers depend on.
        autocasts: As `process_state.autocasts` lists them; numbers depend on these as well.
    """

    works: Sequence[Work]
    settings: Mapping[str, Any]
    autocasts: Sequence[tuple[str, bool, torch.dtype]]

    @classmethod
    def by(cls, works: Sequence[Work], num_threads: int) -> "Scoring":
        """Take over the settings of this process, with at most that many threads."""
        settings = {
            "num_threads": min(num_threads, torch.get_num_threads()),
            "default_dtype": torch.get_default_dtype(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "deterministic_debug_mode": torch.get_deterministic_debug_mode(),
        }
        return cls(list(works), settings, autocasts())

    def __call__(self, job: Job) -> ScoreCard:
        """Score a job's candidate by its work; a worker whose process it changed for good ends with it."""
        for name, value in self.settings.items():
            getattr(torch, f"set_{name}")(value)
        work = self.works[job.repeat_idx]
        with ExitStack() as casting:
            for kind, is_enabled, dtype in self.autocasts:
                torch.set_autocast_dtype(kind, dtype)
                if is_enabled:
                    casting.enter_context(torch.autocast(kind, dtype))
            card = replace(work, placement=work.placement.of_worker(worker_idx())).score(job.candidate)
        if is_tainted():
            retire_worker()
        return card

    def card(self, job: Job, outcome: Outcome[ScoreCard]) -> ScoreCard:
        """Take the card that came of a job, or make that of a job that came to nothing."""
        if outcome.result is not None:
            return outcome.result
        names = self.works[job.repeat_idx].names
        return ScoreCard.failed(job.candidate.name, names, str(outcome.error), outcome.seconds, outcome.traceback)


def executor_of(executor: Executor | Literal["processes"] | None, timeout_s: float | None) -> Executor:
    """Turn what the user gives into an executor.

    Raises:
        ValueError: If it is another name or a class, or there is a timeout that it cannot keep.
    """
    if executor == "processes":
        return ProcessExecutor(timeout_s=timeout_s)
    if isinstance(executor, str | type) or not (executor is None or callable(getattr(executor, "run", None))):
        raise ValueError(
            f'`executor` is {executor!r}; needed is None, "processes", or an executor such as `RayExecutor()`.'
        )
    if timeout_s is not None:
        raise ValueError(
            f"`timeout_s` is {timeout_s!r}, and only a process of its own can be ended. Pass "
            '`executor="processes"`, or `ProcessExecutor(timeout_s=...)` or `RayExecutor(timeout_s=...)` as the '
            "executor."
        )
    return executor or SerialExecutor()


def num_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
