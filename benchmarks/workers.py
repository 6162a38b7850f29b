"""Tasks in processes of their own, with one thread each, so that one that takes its process down costs one result."""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import TypeAlias, TypeVar

import torch

from lightning_zico.scoring.pool import Limits, Outcome
from lightning_zico.scoring.pool import outcomes as outcomes_of

__all__ = ["Outcome", "outcomes"]

T = TypeVar("T")
Task: TypeAlias = tuple[str, Callable[[], T]]


def outcomes(
    tasks: Mapping[str, Callable[[], T]], num_workers: int, timeout_s: float, *, share_process: bool = True
) -> Generator[tuple[str, Outcome[T]], None, None]:
    """Run tasks in other processes and give what comes of them as it comes.

    Args:
        tasks: By name.
        num_workers: How many run at a time.
        timeout_s: What takes longer is ended and has an error.
        share_process: Run one task after the other in a process, instead of each in one of its own.

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
