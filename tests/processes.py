"""Processes that start at once: forked off one that has imported what they need, which takes each of them five seconds.

That one is an interpreter of its own. It computes nothing, so that torch has no thread and no lock in it, and it has
none of the settings of the process under test. All that are forked off it order sets alike, as new interpreters do not:
where that could tell, a test starts an interpreter.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["lightning_zico", "tests.restart", "tests.search.program"])


def started(function: Callable[..., None], *args: str, **environment: str) -> ForkServerProcess:
    """Start a process that calls a function."""
    process = FORKED.Process(target=_call, args=(function, args, environment))
    process.start()
    return process


def _call(function: Callable[..., None], args: tuple[str, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    function(*args)


def run_in_a_new_interpreter(function: Callable[..., None], *args: str, **environment: str) -> int:
    """Call a function of a module in an interpreter that is started for it, wait for its end, and give its pid."""
    code = f"from {function.__module__} import {function.__name__}; {function.__name__}(*{args!r})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | environment) as process:
        assert process.wait(timeout=300) == 0
    return process.pid


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def assert_gone(pids: Iterable[int]) -> None:
    """Check that processes have ended, which takes a moment."""
    pids, until = set(pids), time.monotonic() + 120
    while left := {pid for pid in pids if is_there(pid)}:
        if time.monotonic() > until:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            pytest.fail(f"{len(left)} of {len(pids)} processes are still there")
        time.sleep(0.05)
