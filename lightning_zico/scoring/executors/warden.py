"""End worker processes and everything that they started, even if the process that started them is killed.

A `Warden` runs this file in a small separate process, without this package: it imports only the standard library.
"""

import ctypes
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_VARIABLE = "LIGHTNING_ZICO_WORKER"
_SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows, this ends a process at once
_PR_SET_CHILD_SUBREAPER = 36  # from linux/prctl.h

# How long to wait for killed processes to end: long enough to free a large memory, but limited, because a process that
# is stuck in a system call may never end.
ENDING_S = 10.0
_POLL_S = 0.01
# Interval for checking whether the warden's parent is still there. Normally its input ends when the parent ends, unless
# another process has inherited the other end.
_PARENT_POLL_S = 1.0
# Processes that a candidate started and told to stop, such as workers of a loader, take a moment to end.
_LEAVING_S = 0.5


class _Process(NamedTuple):
    pid: int
    name: str
    state: str
    parent: int
    session: int

    @property
    def is_alive(self) -> bool:
        return self.state not in "ZX"


def new_mark() -> str:
    """Return a mark that identifies a worker and the processes it started; Linux allows no longer process names."""
    return f"zico-{secrets.token_hex(5)}"


def lead_family(mark: str) -> None:
    """Make this process the leader of all processes that it will start, even if they leave its session or parent."""
    if hasattr(os, "setsid"):
        os.setsid()
    if sys.platform == "linux":
        os.environ[_VARIABLE] = mark  # executed processes have this
        Path("/proc/self/comm").write_text(mark)  # forked processes have this
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans become children of this process


def children() -> set[int]:
    """Return the living children of this process; on systems other than Linux, the set is empty."""
    found = set[int]()
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended
            found |= {int(pid) for pid in task.read_text().split()}
    return {pid for pid in found if (process := _look_up(pid)) is not None and process.is_alive}


def has_survivors(before: set[int]) -> bool:
    """Whether a child process that was not there before is still alive after a moment to end."""
    until = time.monotonic() + _LEAVING_S
    while children() - before:
        if time.monotonic() > until:
            return True
        time.sleep(_POLL_S)
    return False


def end_family(leader: int, mark: str) -> None:
    """Kill a worker and everything it started, and wait until they have ended, at most `ENDING_S`.

    On systems other than Linux, only processes in the worker's process group are found, and on Windows none.
    """
    if sys.platform != "linux":
        with suppress(OSError):  # it has ended, or is not the leader of a group
            os.killpg(leader, _SIGKILL) if hasattr(os, "killpg") else os.kill(leader, _SIGKILL)
        return
    until = time.monotonic() + ENDING_S
    while (family := _family(leader, mark)) and time.monotonic() < until:
        for pid in family:
            with suppress(OSError):  # it has ended
                os.kill(pid, _SIGKILL)
        time.sleep(_POLL_S)


def _family(leader: int, mark: str) -> set[int]:
    """Return a worker and the living processes it started: its session, those with its mark, and their children."""
    living = [process for process in _processes() if process.is_alive]
    found = {p.pid for p in living if p.session == leader or p.name == mark or _was_executed_by(mark, p.pid)}
    while more := {p.pid for p in living if p.parent in found} - found:
        found |= more
    return found


def _processes() -> Iterator[_Process]:
    for entry in os.listdir(_PROC):
        if entry.isdecimal() and (process := _look_up(int(entry))) is not None:
            yield process


def _look_up(pid: int) -> _Process | None:
    """Return a process by its pid, or None if it has ended."""
    try:
        text = (_PROC / f"{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")  # a name may hold spaces and parentheses
    state, parent, _, session = rest.split()[:4]
    return _Process(pid, name, state, int(parent), int(session))


def _was_executed_by(mark: str, pid: int) -> bool:
    try:
        return f"{_VARIABLE}={mark}".encode() in (_PROC / f"{pid}/environ").read_bytes()
    except OSError:  # it has ended, or is another user's
        return False


class Warden:
    """A process that ends the workers of this process if this one ends first.

    Args:
        executable: Path of the Python executable.

    Attributes:
        process: The process, started again if it was killed.
    """

    def __init__(self, executable: str | bytes) -> None:
        self._executable = executable
        self._families: dict[int, str] = {}
        self.process = self._start()

    def watch(self, leader: int, mark: str) -> None:
        """Watch a worker."""
        self._families[leader] = mark
        self._tell(f"{leader} {mark}")

    def forget(self, leader: int) -> None:
        """Stop watching a worker that has ended."""
        del self._families[leader]
        self._tell(f"{leader}")

    def close(self) -> None:
        """End the watched workers, then the warden."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=2 * ENDING_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{line}\n".encode())
        except BrokenPipeError:  # a candidate, or the system, has killed it
            self.close()
            self.process = self._start()
            for leader, mark in self._families.items():
                self._tell(f"{leader} {mark}")

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [self._executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # signals from a terminal do not reach it
        )


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    families: dict[int, str] = {}

    def end_all() -> None:
        for leader, mark in list(families.items()):
            end_family(leader, mark)
        os._exit(0)

    def end_all_with(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_S)
        end_all()

    threading.Thread(target=end_all_with, args=(os.getppid(),), daemon=True).start()
    for line in sys.stdin:
        leader, *mark = line.split()
        if mark:
            families[int(leader)] = mark[0]
        else:
            families.pop(int(leader), None)
    end_all()


if __name__ == "__main__":
    _main()
