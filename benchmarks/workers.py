"""Work in processes of their own, so that a candidate that takes its process down costs one result."""

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")

# A forked process would inherit torch's threads and locks in whatever state they are.
_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What came of a task: its result, or the reason why there is none."""

    result: T | None
    error: str | None


def outcomes(
    tasks: Mapping[str, Callable[[], T]], num_workers: int, timeout_s: float, *, share_process: bool = True
) -> Generator[tuple[str, Outcome[T]], None, None]:
    """Run tasks in other processes, with one thread each, and give what comes of them as it comes.

    Args:
        tasks: By name; they and their results must be picklable.
        num_workers: How many run at a time.
        timeout_s: What takes longer, the start of its process included, is ended and has an error.
        share_process: Run one task after the other in a process, instead of each in one of its own.

    Yields:
        Name and outcome. When the iterator is closed, all processes end.
    """
    waiting, idle, busy = deque(tasks.items()), list[_Worker](), list[_Worker]()
    try:
        while waiting or busy:
            while waiting and len(busy) < num_workers:
                idle = [worker for worker in idle if worker.process.is_alive()]
                worker = idle.pop() if idle else _Worker()
                busy.append(worker)
                worker.begin(*waiting.popleft(), timeout_s)
            soonest = min(worker.deadline for worker in busy)
            wait([worker.pipe for worker in busy], max(0.0, soonest - time.monotonic()))
            for worker in list(busy):
                outcome = worker.outcome()
                if outcome is not None:
                    busy.remove(worker)
                    if share_process and worker.process.is_alive():
                        idle.append(worker)
                    else:
                        worker.end()
                    yield worker.name, outcome
    finally:
        for worker in idle + busy:
            worker.end()


class _Worker:
    """A process and the task that it is at."""

    def __init__(self) -> None:
        self.pipe, other_end = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(other_end,), daemon=True)
        self.process.start()
        other_end.close()  # so that the pipe ends when the process does
        self.name, self.deadline, self.timeout_s = "", 0.0, 0.0

    def begin(self, name: str, task: Callable[[], object], timeout_s: float) -> None:
        self.name, self.timeout_s, self.deadline = name, timeout_s, time.monotonic() + timeout_s
        with suppress(ConnectionError):  # that an idle process has died, `outcome` finds out
            self.pipe.send(task)

    def outcome(self) -> Outcome[Any] | None:
        """What came of the task; None as long as nothing did."""
        if self.pipe.poll():
            try:
                return self.pipe.recv()  # type: ignore[no-any-return]
            except (EOFError, ConnectionError):
                self.process.join()
                return Outcome(None, f"the process died (exit code {self.process.exitcode})")
        if time.monotonic() > self.deadline:
            self.end()
            return Outcome(None, f"took more than {self.timeout_s:g} s")
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection) -> None:
    """Answer every task that comes through the pipe, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends this process
    torch.set_num_threads(1)
    with suppress(EOFError, ConnectionError):  # so it goes when the parent is killed
        while True:
            pipe.send(_outcome_of(pipe.recv()))


def _outcome_of(task: Callable[[], T]) -> Outcome[T]:
    try:
        return Outcome(task(), None)
    except Exception as error:
        return Outcome(None, f"{type(error).__name__}: {' '.join(str(error).split())}")
