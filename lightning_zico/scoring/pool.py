"""A pool of spawned processes: what takes its process down, hangs or eats the memory costs one result."""

import gc
import itertools
import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

import cloudpickle

from lightning_zico.errors import CacheError, traceback_of
from lightning_zico.scoring.scorer import described

T = TypeVar("T")
R = TypeVar("R")

# A forked process would inherit torch's threads and locks in whatever state they are.
_CONTEXT = multiprocessing.get_context("spawn")

# How often the memory of busy processes is looked at: page faults fill about 1 GB/s, so that a limit is passed by some
# 50 MB at most.
_MEMORY_POLL_S = 0.05

_worker_idx = 0


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What came of an item: its result, or the reason why there is none; and how long that took, in seconds."""

    result: R | None
    error: str | None
    traceback: str | None = field(default=None, compare=False)
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Limits:
    """What an item may take before its process is killed.

    Args:
        timeout_s: Seconds; the start of the process, and its loading of the function, do not count.
        memory_bytes: Resident memory, on top of what the process held before.
        num_attempts: How often an item is tried whose process dies by itself, each time in a fresh process: the death
            may have been another's doing, such as that of a system out of memory.
    """

    timeout_s: float | None = None
    memory_bytes: int | None = None
    num_attempts: int = 1


def outcomes(
    function: Callable[[T], R],
    items: Iterable[T],
    num_workers: int,
    limits: Limits,
    *,
    share_process: bool = True,
) -> Generator[tuple[T, Outcome[R]], None, None]:
    """Call a function on items in other processes, and give what comes of each as it comes.

    All travels by cloudpickle, so that lambdas and what a script or a notebook defines can be sent.

    Args:
        function: Sent once to each process.
        items: Taken one at a time, when a process is free for it. One that cannot be sent has an error.
        num_workers: How many processes there are at a time.
        limits: Of each item.
        share_process: Run one item after the other in a process, instead of each in one of its own.

    Yields:
        Item and outcome, in the order in which they finish. When the generator is closed, all processes end.

    Raises:
        TypeError: If ``function`` cannot be sent.
        RuntimeError: If no process starts, or one cannot load ``function``.
        CacheError: If that is what ``function`` raises: it is no item's fault.
    """
    setup = packed(function)
    tasks, again = map(Parcel, items), deque[Parcel[T]]()
    idle, busy = list[_Worker[T, R]](), list[_Worker[T, R]]()
    any_started = False
    try:
        while True:
            while len(busy) < num_workers and (task := again.popleft() if again else next(tasks, None)):
                if task.unsent is not None:
                    yield task.item, task.unsent
                    continue
                idle = [worker for worker in idle if worker.process.is_alive()]
                taken = [worker.idx for worker in (*idle, *busy)]
                free = next(idx for idx in itertools.count() if idx not in taken)
                worker = idle.pop() if idle else _Worker[T, R](setup, limits, free)
                busy.append(worker)
                worker.begin(task)
            if not busy:
                return
            ends = [end for worker in busy for end in (worker.pipe, worker.process.sentinel)]
            patience = min(worker.patience for worker in busy)
            wait(ends, None if patience == math.inf else max(0.0, patience))
            for worker in list(busy):
                outcome = worker.outcome()
                any_started = any_started or worker.is_ready
                if outcome is None:
                    continue
                if not any_started:
                    raise RuntimeError(
                        f"No worker process starts: {outcome.error}; the reason may stand above. A script that uses "
                        'processes needs what it does besides defining under `if __name__ == "__main__":`.'
                    )
                busy.remove(worker)
                if share_process and worker.process.is_alive():
                    idle.append(worker)
                else:
                    worker.end()
                task = worker.task
                if worker.died and task.num_attempts < limits.num_attempts:
                    again.append(task)
                else:
                    yield task.item, outcome
    finally:
        for worker in idle + busy:
            worker.end()


def packed(function: Callable[..., Any]) -> bytes:
    """Make the message that a function is sent as.

    Raises:
        TypeError: If it cannot be sent.
    """
    try:
        return cloudpickle.dumps(function)
    except Exception as raised:
        raise TypeError(
            "What all worker processes need (batches, proxies, loss function, data module, callbacks) cannot be sent "
            f"to them: {described(raised)}. Make it picklable, or score in this process."
        ) from raised


class Parcel(Generic[T]):
    """An item and the message that it is sent as, or what came of it if it cannot be sent."""

    def __init__(self, item: T) -> None:
        self.item = item
        self.num_attempts = 0
        self.message = b""
        self.unsent: Outcome[Any] | None = None
        try:
            self.message = cloudpickle.dumps(item)
        except Exception as raised:
            reason = f"cannot be sent to a worker process: {described(raised)}"
            self.unsent = Outcome(None, reason, traceback_of(raised))


def answer(function: Callable[[Any], Any], message: bytes) -> bytes:
    """Call a function on the item in a message, and make the message of its outcome, to be read by `said_in`."""
    try:
        item = pickle.loads(message)
    except Exception as raised:
        reason = f"cannot be loaded in a worker process: {described(raised)}"
        return pickle.dumps(Outcome[Any](None, reason, traceback_of(raised)))
    start = time.monotonic()
    try:
        return cloudpickle.dumps(Outcome[Any](function(item), None, seconds=time.monotonic() - start))
    except CacheError as raised:
        return pickle.dumps(CacheError(str(raised)))
    except Exception as raised:
        return pickle.dumps(Outcome[Any](None, described(raised), traceback_of(raised), time.monotonic() - start))


def unloaded(error: Exception) -> bytes:
    """Make the message that a function cannot be loaded, to be read by `said_in`."""
    return pickle.dumps(described(error))


def not_loaded(reason: str) -> RuntimeError:
    """Make the exception for a function that a worker cannot load."""
    return RuntimeError(
        "A worker process cannot load what is to be scored with (batches, proxies, loss function, data "
        f"module): {reason}. Put what it misses where other processes can import it."
    )


def said_in(message: bytes) -> Outcome[Any] | None:
    """Read what a worker says: an outcome, or None if it waits for what comes next.

    Raises:
        RuntimeError: If it cannot load the function.
        CacheError: If the cache failed.
    """
    said = pickle.loads(message)
    if isinstance(said, CacheError):
        raise said
    if isinstance(said, str):
        raise not_loaded(said)
    outcome: Outcome[Any] | None = said
    return outcome


class _Worker(Generic[T, R]):
    """A process and the task that it is at."""

    task: Parcel[T]

    def __init__(self, setup: bytes, limits: Limits, idx: int) -> None:
        self.idx = idx
        self.pipe, other_end = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(other_end, idx), daemon=True)
        with _deaf_to_ctrl_c():
            self.process.start()
        other_end.close()  # so that the pipe ends when the process does
        self.setup, self.limits = setup, limits
        self.is_listening = self.is_ready = self.died = False
        self.started, self.bytes_before = math.inf, 0

    def begin(self, task: Parcel[T]) -> None:
        """Take a task, and send it as soon as the process is ready: until then, nothing is the task's doing."""
        self.task = task
        task.num_attempts += 1
        if self.is_ready:
            self._send()

    @property
    def patience(self) -> float:
        """How long nobody needs to look at the process unless it says something, in seconds."""
        if not self.is_ready:
            return math.inf
        poll = math.inf if self.limits.memory_bytes is None else _MEMORY_POLL_S
        timeout_s = math.inf if self.limits.timeout_s is None else self.limits.timeout_s
        return min(poll, timeout_s - self._seconds)

    def outcome(self) -> Outcome[R] | None:
        """What came of the task; None as long as nothing did.

        Raises:
            RuntimeError: If the process cannot load the function.
            CacheError: If the cache failed.
        """
        try:
            while self.pipe.poll():
                said = said_in(self.pipe.recv_bytes())
                if said is not None:
                    return said
                if self.is_listening:
                    self.is_ready = True
                    self._send()
                else:
                    self.is_listening = True  # before, a long message would block
                    self.pipe.send_bytes(self.setup)
        except (EOFError, ConnectionError):
            self.process.join()
        if not self.process.is_alive():
            self.died = True
            tries = f", in {self.task.num_attempts} attempts" if self.task.num_attempts > 1 else ""
            return self._failed(f"the process died ({ending(self.process.exitcode)}){tries}")
        return self._over_limit() if self.is_ready else None

    def end(self) -> None:
        if hasattr(os, "killpg") and self.process.pid is not None:
            with suppress(OSError):  # there is no group before `_serve`, or any more
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.pipe.close()

    @property
    def _seconds(self) -> float:
        return max(0.0, time.monotonic() - self.started)

    def _send(self) -> None:
        self.started = time.monotonic()
        if self.limits.memory_bytes is not None:
            self.bytes_before = resident_bytes(self.process.pid)
        with suppress(ConnectionError):  # that an idle process has died, `outcome` finds out
            self.pipe.send_bytes(self.task.message)

    def _over_limit(self) -> Outcome[R] | None:
        reason = None
        if self.limits.timeout_s is not None and self._seconds > self.limits.timeout_s:
            reason = f"took more than {self.limits.timeout_s:g} s"
        elif self.limits.memory_bytes is not None:
            taken = resident_bytes(self.process.pid) - self.bytes_before
            if taken > self.limits.memory_bytes:
                reason = (
                    f"took {taken / 1e6:,.0f} MB of memory, above the limit of {self.limits.memory_bytes / 1e6:,.0f} MB"
                )
        if reason is None:
            return None
        failed = self._failed(reason)
        self.end()
        return failed

    def _failed(self, reason: str) -> Outcome[R]:
        return Outcome(None, reason, seconds=self._seconds)


def worker_idx() -> int:
    """Tell how many-th of the workers that are there at a time this process is; 0 if it is none."""
    return _worker_idx


def ending(exitcode: int | None) -> str:
    """Say how a process ended; a negative exit code is a signal's."""
    name = f", {signal.Signals(-exitcode).name}" if exitcode is not None and exitcode < 0 else ""
    return f"exit code {exitcode}{name}"


def resident_bytes(pid: int | None) -> int:
    """Ask the system how much memory a process holds, in bytes; 0 if it has ended.

    Args:
        pid: Of the process; None for this one.
    """
    try:
        fields = Path(f"/proc/{pid or 'self'}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Let what is started ignore Ctrl-C from its first moment: while it imports, it would print a traceback.

    Only the main thread can see to that.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(pipe: Connection, idx: int) -> None:
    """Load the function, then answer every item that comes through the pipe, until the other end is closed."""
    global _worker_idx
    _worker_idx = idx
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends this process
    if hasattr(os, "setsid"):
        os.setsid()  # so that what a candidate starts ends with this process
    with suppress(EOFError, ConnectionError):  # so it goes when the parent is killed
        pipe.send_bytes(pickle.dumps(None))
        try:
            function = pickle.loads(pipe.recv_bytes())
        except Exception as raised:
            pipe.send_bytes(unloaded(raised))
            return
        # What is imported by now stays. To look through it, as a full collection does once in some twenty scores, takes
        # longer than the score of a small network.
        gc.freeze()
        pipe.send_bytes(pickle.dumps(None))
        while True:
            pipe.send_bytes(answer(function, pipe.recv_bytes()))
