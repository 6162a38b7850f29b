"""Tasks in separate processes with one thread each, so that a crash costs only one result."""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import TypeAlias, TypeVar

import torch

from lightning_zico.scoring.executors.pool import Limits, Outcome
from lightning_zico.scoring.executors.pool import outcomes as outcomes_of

__all__ = ["Outcome", "outcomes"]

T = TypeVar("T")
Task: TypeAlias = tuple[str, Callable[[], T]]


def outcomes(
    tasks: Mapping[str, Callable[[], T]], num_workers: int, timeout_s: float, *, share_process: bool = True
) -> Generator[tuple[str, Outcome[T]], None, None]:
    """Run tasks in other processes and yield their outcomes as they arrive.

    Args:
        tasks: Functions to call, by name.
        num_workers: Number of tasks that run at a time.
        timeout_s: Seconds; a task that takes longer is ended and has an error.
        share_process: Run several tasks in a process, one after the other, instead of each in its own.

    Yields:
        Name and outcome. When the iterator is closed, all processes end.
    """
    limits = Limits(timeout_s)
    with closing(outcomes_of(_run, tasks.items(), num_workers, limits, share_process=share_process)) as coming:
        for (name, _), outcome in coming:
            yield name, outcome


def _run(task: Task[T]) -> T:
    torch.set_num_threads(1)
    _, function = task
    return function()
