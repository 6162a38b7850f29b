"""Runs that own a trial, a score or a folder, identified across machines, containers and restarts."""

import json
import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

# The PID namespace of a machine itself, outside any container: PROC_PID_INIT_INO of Linux, include/linux/proc_ns.h.
_OUTSIDE_CONTAINERS = "pid:[4026531836]"

_MOST_PID_BITS = 31  # of pid_t, without the sign
_live_runs: set[str] = set()  # of this process


class Place(NamedTuple):
    """The place within which pids can be compared; a field is None if the system does not provide it.

    Args:
        host: Host name; several containers and machines may share it.
        machine: Id of the installed system.
        boot: Id of the current boot.
        pids: Namespace of the pids; each container has its own.
    """

    host: str
    machine: str | None
    boot: str | None
    pids: str | None


class Owner(NamedTuple):
    """A run of a process, as recorded with the things that it owns.

    Args:
        place: See `Place`.
        pid: The pid of the process.
        begun: Start time of the process, in clock ticks since the boot; None if the system does not provide it.
        run: Id that distinguishes runs in the same process.
    """

    place: Place
    pid: int
    begun: int | None
    run: str

    def lives(self) -> bool | None:
        """Whether the run is still going on; None for a run elsewhere, which cannot be seen from here."""
        here = _place()
        if self.place != here:
            return False if _is_before_reboot(self.place, here) else None
        if (self.pid, self.begun) == (os.getpid(), _begun()):
            return self.run in _live_runs
        return _is_running(self.pid, self.begun)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values."""
        return {**self._asdict(), "place": self.place._asdict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Owner":
        """Create an owner from the result of `to_dict`."""
        return cls(**{**data, "place": Place(**data["place"])})

    def to_json(self) -> str:
        """Return the owner as JSON, which `from_json` reads."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "Owner":
        """Return the owner in a text that anybody may have written.

        Raises:
            ValueError: If the text is not an owner.
        """
        try:
            owner = cls.from_dict(json.loads(text))
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"Not an owner: {error}") from error
        if not isinstance(owner.pid, int) or owner.pid.bit_length() > _MOST_PID_BITS:
            raise ValueError(f"Not an owner: its pid is {owner.pid!r}")
        return owner


def begin_run() -> Owner:
    """Begin a run of this process, which lives until `end_run`."""
    owner = Owner(_place(), os.getpid(), _begun(), uuid.uuid4().hex)
    _live_runs.add(owner.run)
    return owner


def end_run(owner: Owner) -> None:
    """End a run of this process."""
    _live_runs.discard(owner.run)


def _place() -> Place:
    machine, boot = _text("/etc/machine-id"), _text("/proc/sys/kernel/random/boot_id")
    return Place(socket.gethostname(), machine, boot, _link("/proc/self/ns/pid"))


def _is_before_reboot(place: Place, here: Place) -> bool:
    """Whether this machine was restarted since; False in containers, which may all have the same name and files."""
    same = place.machine is not None and place._replace(boot=None) == here._replace(boot=None)
    return same and here.pids == _OUTSIDE_CONTAINERS


def _is_running(pid: int, begun: int | None) -> bool:
    if os.name != "posix":  # on other systems, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # a process of another user
    stat = _stat(str(pid))
    return stat is None or (stat.state not in ("Z", "X") and begun in (None, stat.begun))


class _Stat(NamedTuple):
    state: str
    begun: int


def _begun() -> int | None:
    stat = _stat("self")
    return None if stat is None else stat.begun


def _stat(process: str) -> _Stat | None:
    text = _text(f"/proc/{process}/stat")
    # A container may see the machine's files, which have different pids.
    if text is None or (process != "self" and _link("/proc/self") != str(os.getpid())):
        return None
    fields = text.rpartition(")")[2].split()  # the command before it may contain blanks and brackets
    return _Stat(fields[0], int(fields[19]))  # fields 3 and 22 of proc_pid_stat(5)


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip() or None
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
