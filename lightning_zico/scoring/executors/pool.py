"""A pool of spawned processes: an item that kills its process, hangs or fills the memory costs only its own result.

Nothing here trusts a process that runs user code. It may close or fill its line, fork, stop or ignore signals, so no
call waits for it without a limit, and the processes that it starts end with it (`warden`).
"""

import gc
import itertools
import math
import multiprocessing.spawn
import os
import pickle
import secrets
import selectors
import signal
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from lightning_zico.scoring.executors.messages import Outcome as Outcome
from lightning_zico.scoring.executors.messages import (
    Parcel,
    answer,
    loading_error,
    pack,
    read_answer,
    report_loading_error,
)
from lightning_zico.scoring.executors.warden import (
    ENDING_S,
    Warden,
    children,
    end_family,
    has_survivors,
    lead_family,
    new_mark,
)
from lightning_zico.scoring.process_state import one_ranking

T = TypeVar("T")
R = TypeVar("R")

# A forked process would inherit torch's threads and locks in an unknown state.
_CONTEXT = multiprocessing.get_context("spawn")

# Interval for checking the memory of busy processes: page faults fill about 1 GB/s, so a limit is exceeded by about
# 50 MB at most.
_MEMORY_POLL_S = 0.05
# Interval for checking busy processes in any case: a process that has ended hangs up, unless it left a child behind.
_LIFE_POLL_S = 0.5
# How long a process may take to start and to load the function: importing torch from a slow disk takes minutes.
LOADING_S = 600.0
# How long to wait for a process that hung up; normally it is ending.
_HUNG_UP_S = 1.0
_HUNG_UP_POLL_S = 0.02

_PART = 2**20  # bytes to read at a time

# The header of a message to a worker is its length. The header of a message from a worker is the secret that it was
# started with, its pid, the task (0 before the first), whether the worker should be replaced, and the length.
_TO_WORKER = struct.Struct("!Q")
_FROM_WORKER = struct.Struct("!16sIQ?Q")

_worker_idx = 0
_is_tainted = False


@dataclass(frozen=True)
class Limits:
    """Limits on an item; above them, its process is killed.

    Args:
        timeout_s: Time limit, in seconds, without the start of the process and its loading of the function, which have
            their own, `LOADING_S`.
        memory_bytes: Limit on resident memory, in addition to what the process held before.
        num_attempts: How often to try an item whose process dies by itself, each time in a new process. The item may
            not be the cause; the system may be out of memory.
    """

    timeout_s: float | None = None
    memory_bytes: int | None = None
    num_attempts: int = 1


def outcomes(
    function: Callable[[T], R],
    items: Iterable[T | None],
    num_workers: int,
    limits: Limits,
    *,
    share_process: bool = True,
) -> Generator[tuple[T, Outcome[R]], None, None]:
    """Call a function on items in other processes, and yield each outcome when it is there.

    Everything is sent with cloudpickle, so lambdas and objects defined in a script or a notebook can be sent.

    Args:
        function: The function to call; sent once to each process.
        items: Items, taken one at a time when a process is free. An item that cannot be sent has an error as outcome.
            None means that the next item is not known before the next outcome.
        num_workers: Number of processes at a time.
        limits: Limits on each item.
        share_process: Run items one after the other in a process, instead of each in a separate process.

    Yields:
        Item and outcome, in the order in which they finish. When the generator is closed, all processes end.

    Raises:
        TypeError: If ``function`` cannot be sent.
        RuntimeError: If no process starts, or one cannot load ``function`` in time.
        CacheError: If ``function`` raises it, since that is not the item's fault.
    """
    setup = pack(function)
    tasks, again = (None if item is None else Parcel(item) for item in items), deque[Parcel[T]]()
    idle, busy = list[_Worker[T, R]](), list[_Worker[T, R]]()
    any_started = False
    warden = Warden(multiprocessing.spawn.get_executable())
    try:
        while True:
            while len(busy) < num_workers and (task := again.popleft() if again else next(tasks, None)):
                if task.unsent is not None:
                    yield task.item, task.unsent
                    continue
                for worker in [worker for worker in idle if not worker.process.is_alive()]:
                    idle.remove(worker)
                    worker.end()
                taken = [worker.idx for worker in (*idle, *busy)]
                free = next(idx for idx in itertools.count() if idx not in taken)
                worker = idle.pop() if idle else _Worker[T, R](setup, limits, warden, free)
                busy.append(worker)
                worker.begin(task)
            if not busy:
                return
            _wait_for(busy)
            for worker in list(busy):
                outcome = worker.outcome()
                any_started = any_started or worker.is_ready
                if outcome is None:
                    continue
                if not any_started:
                    raise RuntimeError(
                        f"No worker process could be started: {outcome.error}; see the output above for the reason. In "
                        'a script, put all code except definitions under `if __name__ == "__main__":`.'
                    )
                busy.remove(worker)
                if share_process and not worker.is_spent:
                    idle.append(worker)
                else:
                    worker.end()
                task = worker.task
                if worker.died and task.num_attempts < limits.num_attempts:
                    again.append(task)
                else:
                    yield task.item, outcome
    finally:
        with ExitStack() as ending:  # runs all callbacks, even if Ctrl-C interrupts one
            ending.callback(warden.close)
            for worker in idle + busy:
                ending.callback(worker.end)


class _Frame(NamedTuple):
    """A message from a worker.

    Args:
        pid: The pid of the process that sends it.
        task_idx: The task that it answers, from 1; 0 before any task.
        is_last: Whether the worker should be replaced.
        message: The message for `read_answer`.
    """

    pid: int
    task_idx: int
    is_last: bool
    message: bytes


class _Worker(Generic[T, R]):
    """A process and its current task. Nothing here blocks on the process, whatever it does."""

    task: Parcel[T]

    def __init__(self, setup: bytes, limits: Limits, warden: Warden, idx: int) -> None:
        self.idx, self.limits, self.warden = idx, limits, warden
        self.mark, self.secret = new_mark(), secrets.token_bytes(16)
        self.line, other_end = socket.socketpair()
        self.line.setblocking(False)
        args = other_end, self.secret, self.mark, idx
        self.process = _CONTEXT.Process(target=_serve, args=args, daemon=True)
        with other_end, _deaf_to_ctrl_c():  # closed here, so that the line ends when the process does
            self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid
        warden.watch(self.pid, self.mark)
        self.outgoing, self.incoming = deque[memoryview](), bytearray()
        self.is_ready = self.died = self.is_spent = False
        self.num_tasks, self.bytes_before = 0, 0
        self.born = time.monotonic()
        self.started = self.hung_up = math.inf
        self._send(setup)

    def begin(self, task: Parcel[T]) -> None:
        """Take a task, and send it when the process is ready; the task is not responsible for anything before."""
        self.task = task
        task.num_attempts += 1
        if self.is_ready:
            self._send_task()

    @property
    def events(self) -> int:
        """The events to wait for on the line."""
        if self.hung_up < math.inf:
            return 0
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self.outgoing else 0)

    @property
    def patience(self) -> float:
        """Seconds until the process must be checked again, unless it sends something."""
        patience = _LIFE_POLL_S if self.hung_up == math.inf else _HUNG_UP_POLL_S
        if self.is_ready and self.limits.memory_bytes is not None:
            patience = min(patience, _MEMORY_POLL_S)
        if self.is_ready and self.limits.timeout_s is not None:
            patience = min(patience, max(0.0, self.limits.timeout_s - self._seconds))
        return patience

    def outcome(self) -> Outcome[R] | None:
        """Return the outcome of the task; None while there is none.

        Raises:
            RuntimeError: If the process cannot load the function, or takes longer than `LOADING_S`.
            CacheError: If the cache failed.
        """
        is_alive = self.process.is_alive()  # checked first, so that everything it sent can be read
        self._send_on()
        while (frame := self._next_frame()) is not None:
            if (frame.pid, frame.task_idx) != (self.pid, self.num_tasks):
                continue  # sent by a process that a candidate forked
            outcome = read_answer(frame.message)
            if outcome is not None:
                self.is_spent = frame.is_last
                return outcome
            self.is_ready = True
            self._send_task()
        if not is_alive:
            tries = f", in {self.task.num_attempts} attempts" if self.task.num_attempts > 1 else ""
            return self._fail(f"the process died ({ending(self.process.exitcode)}){tries}", may_be_others=True)
        if self._hears_others:
            return self._fail(
                "its process sent something other than an answer. Do not write to file descriptors that you did not "
                "open",
                may_be_others=self.num_tasks > 1,
            )
        if time.monotonic() - self.hung_up > _HUNG_UP_S:
            return self._fail(
                "its process can no longer answer. Do not close file descriptors that you did not open",
                may_be_others=self.num_tasks > 1,
            )
        if self.is_ready:
            return self._over_limit()
        if time.monotonic() - self.born > LOADING_S:
            raise loading_error(f"it took more than {LOADING_S:g} s")
        return None

    def end(self) -> None:
        """End the process and those it started; a process that the system keeps from ending is left to the warden."""
        end_family(self.pid, self.mark)
        self.process.kill()  # a process that has not begun to serve has no family
        until = time.monotonic() + ENDING_S
        while (is_alive := self.process.is_alive()) and time.monotonic() < until:
            time.sleep(_HUNG_UP_POLL_S)
        self.line.close()
        if not is_alive:
            self.warden.forget(self.pid)

    @property
    def _seconds(self) -> float:
        return max(0.0, time.monotonic() - self.started)

    def _send_task(self) -> None:
        self.num_tasks += 1
        self.started = time.monotonic()
        if self.limits.memory_bytes is not None:
            self.bytes_before = resident_bytes(self.pid)
        self._send(self.task.message)

    def _send(self, message: bytes) -> None:
        self.outgoing += [memoryview(_TO_WORKER.pack(len(message))), memoryview(message)]
        self._send_on()

    def _send_on(self) -> None:
        """Send as much as the process accepts at the moment."""
        try:
            while self.outgoing:
                part = self.outgoing.popleft()
                num_sent = self.line.send(part)
                if num_sent < len(part):
                    self.outgoing.appendleft(part[num_sent:])
        except BlockingIOError:
            self.outgoing.appendleft(part)
        except ConnectionError:  # `outcome` finds the reason
            self.outgoing.clear()

    def _next_frame(self) -> _Frame | None:
        """Return the next message; None if there is no complete one at the moment."""
        while not self._hears_others:
            size = _FROM_WORKER.size
            if len(self.incoming) >= size:
                _, pid, task_idx, is_last, length = _FROM_WORKER.unpack_from(self.incoming)
                if len(self.incoming) >= size + length:
                    message = bytes(self.incoming[size : size + length])
                    del self.incoming[: size + length]
                    return _Frame(pid, task_idx, is_last, message)
            if self.hung_up < math.inf:
                return None
            try:
                part = self.line.recv(_PART)
            except BlockingIOError:
                return None
            except ConnectionError:
                part = b""
            if not part:
                self.hung_up = time.monotonic()
            self.incoming += part
        return None

    @property
    def _hears_others(self) -> bool:
        """Whether the next bytes are not a message from the worker."""
        return not self.secret.startswith(bytes(self.incoming[: len(self.secret)]))

    def _over_limit(self) -> Outcome[R] | None:
        if self.limits.timeout_s is not None and self._seconds > self.limits.timeout_s:
            return self._fail(f"took more than {self.limits.timeout_s:g} s")
        if self.limits.memory_bytes is not None:
            taken = resident_bytes(self.pid) - self.bytes_before
            if taken > self.limits.memory_bytes:
                limit = f"{self.limits.memory_bytes / 1e6:,.0f} MB"
                return self._fail(f"took {taken / 1e6:,.0f} MB of memory, above the limit of {limit}")
        return None

    def _fail(self, reason: str, *, may_be_others: bool = False) -> Outcome[R]:
        """Abandon the process.

        Args:
            reason: The reason in the candidate's row.
            may_be_others: Whether something other than the task may be the cause; the task is then tried again.
        """
        self.is_spent, self.died = True, may_be_others
        return Outcome(None, reason, seconds=self._seconds)


def _wait_for(workers: Sequence[_Worker[Any, Any]]) -> None:
    """Wait until a worker sends something or needs to be checked."""
    patience = min(worker.patience for worker in workers)
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            if worker.events:
                selector.register(worker.line, worker.events)
        if selector.get_map():
            selector.select(patience)
        else:  # nothing to wait for, which is an error on Windows
            time.sleep(patience)


def retire_worker() -> None:
    """Ask for a new process after the current task, because this one's state could not be restored.

    Call it in a worker. Elsewhere it has no effect.
    """
    global _is_tainted
    _is_tainted = True


def worker_idx() -> int:
    """Return the index of this worker among those running at the same time; 0 if this process is not a worker."""
    return _worker_idx


def ending(exitcode: int | None) -> str:
    """Describe how a process ended; a negative exit code is that of a signal."""
    name = f", {signal.Signals(-exitcode).name}" if exitcode is not None and exitcode < 0 else ""
    return f"exit code {exitcode}{name}"


def resident_bytes(pid: int | None) -> int:
    """Return the resident memory of a process, in bytes; 0 if it has ended.

    Args:
        pid: The pid of the process; None for this one.
    """
    try:
        fields = Path(f"/proc/{pid or 'self'}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Let processes started in the body ignore Ctrl-C from the beginning; importing, they would print a traceback.

    This works only in the main thread.
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


def _serve(line: socket.socket, secret: bytes, mark: str, idx: int) -> None:
    """Load the function, then answer every item that comes on the line, until the other end is closed."""
    global _worker_idx
    _worker_idx = idx
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    lead_family(mark)
    line.setblocking(True)  # whatever `socket.setdefaulttimeout` was
    pid = os.getpid()

    def say(task_idx: int, message: bytes, *, is_last: bool = False) -> None:
        line.sendall(_FROM_WORKER.pack(secret, pid, task_idx, is_last, len(message)) + message)

    with suppress(EOFError, ConnectionError), one_ranking():  # the former when the parent is killed
        setup = _receive(line)
        try:
            function = pickle.loads(setup)
        except BaseException as raised:
            say(0, report_loading_error(raised))
            return
        del setup
        # Imported objects stay. A full collection, about once in twenty scores, would go through them, which takes
        # longer than scoring a small network.
        gc.freeze()
        before = children()
        say(0, pickle.dumps(None))
        for task_idx in itertools.count(1):
            message = answer(function, _receive(line))
            if os.getpid() != pid:
                os._exit(0)  # forked by the candidate; the parent sends the answer
            say(task_idx, message, is_last=_is_tainted or has_survivors(before))


def _receive(line: socket.socket) -> bytearray:
    (length,) = _TO_WORKER.unpack(_read(line, _TO_WORKER.size))
    return _read(line, length)


def _read(line: socket.socket, length: int) -> bytearray:
    message = bytearray(length)
    left = memoryview(message)
    while left:
        num_read = line.recv_into(left)
        if not num_read:
            raise EOFError
        left = left[num_read:]
    return message
