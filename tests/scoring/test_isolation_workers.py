"""Whatever a task does to its worker process, it costs that task alone, and nothing that was started stays behind."""

import asyncio
import ctypes
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lightning_zico import ProcessExecutor, ZeroShotSelector
from lightning_zico.scoring.executors import pool
from lightning_zico.scoring.executors.pool import Limits, Outcome, outcomes, retire_worker
from lightning_zico.scoring.executors.warden import Warden, end_family, new_mark
from tests.modules import Classifier, make_batches
from tests.processes import FORKED, assert_gone, started

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, what a process started cannot be found"),
    pytest.mark.usefixtures("_forked_workers"),
]

Deed = Callable[[], Any]


def done(deed: Deed) -> Any:
    return deed()


def outcomes_of(deeds: Iterable[Deed], **limits: Any) -> list[Outcome[Any]]:
    """What comes of deeds, in their order, in one worker at a time."""
    return [outcome for _, outcome in outcomes(done, deeds, 1, Limits(**limits))]


def hang() -> None:
    while True:
        time.sleep(3600)


# --- what a task does to its worker --------------------------------------------------------------


def closes_all() -> None:
    os.closerange(0, 1000)


def closes_all_and_hangs() -> None:
    closes_all()
    hang()


def writes_to_all(rubbish: bytes, *, times: int = 1) -> None:
    for _, fd in itertools.product(range(times), range(3, 100)):
        if Path(f"/proc/self/fd/{fd}").exists() and "socket" in os.readlink(f"/proc/self/fd/{fd}"):
            os.write(fd, rubbish)


def ignores_signals_and_hangs() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang()


def keeps_the_lock() -> None:
    ctypes.PyDLL(None).sleep(3600)


def stops() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def leaves_in_a_child() -> None:
    if os.fork():
        os._exit(0)
    time.sleep(1)  # and then answers


def dies_beside_a_child_that_holds_all_descriptors() -> None:
    if not os.fork():
        hang()
    os._exit(3)


class Pickled:
    """Does something when it is pickled, and something else when it is loaded."""

    def __init__(self, pickled: Deed = int, loaded: Deed = int) -> None:
        self.pickled, self.loaded = pickled, loaded

    def __reduce__(self) -> Any:
        self.pickled()
        return self.loaded, ()


def raise_here() -> None:
    if multiprocessing.parent_process() is None:
        raise ValueError("not here")


def no_pickle() -> None:
    raise RuntimeError("no pickle")


DEEDS: dict[str, tuple[Deed, str]] = {
    "closes all descriptors": (closes_all, "the process died (exit code 1), in 2 attempts"),
    "closes all descriptors and hangs": (closes_all_and_hangs, ""),
    "writes rubbish": (partial(writes_to_all, b"rubbish"), "something other than an answer"),
    "writes one byte": (partial(writes_to_all, b"r"), "something other than an answer"),
    "writes a great length": (partial(writes_to_all, b"\x7f" + b"\xff" * 100), "something other than an answer"),
    "fills the line": (partial(writes_to_all, b"rubbish" * 10_000, times=10_000), "something other than an answer"),
    "ignores signals": (ignores_signals_and_hangs, "took more than 2 s"),
    "keeps Python's lock": (keeps_the_lock, "took more than 2 s"),
    "stops": (stops, "took more than 2 s"),
    "leaves with 0": (partial(os._exit, 0), "the process died (exit code 0), in 2 attempts"),
    "leaves in a child": (leaves_in_a_child, "the process died (exit code 0), in 2 attempts"),
    "leaves a child": (dies_beside_a_child_that_holds_all_descriptors, "the process died (exit code 3), in 2 attempts"),
    "dies while answering": (
        partial(Pickled, partial(signal.raise_signal, signal.SIGKILL)),
        "the process died (exit code -9, SIGKILL), in 2 attempts",
    ),
    "hangs while answering": (partial(Pickled, hang), "took more than 2 s"),
    "answers what cannot be sent": (partial(Pickled, no_pickle), "RuntimeError: no pickle"),
    "answers what cannot be loaded": (partial(Pickled, int, raise_here), "cannot be loaded here: ValueError: not here"),
    "answers too much": (partial(bytes, 2 * 10**8), "its result takes 200 MB, above the limit of 100 MB"),
}


@pytest.mark.parametrize("name", DEEDS)
def test_a_deed_costs_its_task_alone(name: str) -> None:
    deed, reason = DEEDS[name]
    start = time.monotonic()
    # `pow` after it shares its process, if that is still there.
    before, found, after = outcomes_of([partial(pow, 2, 3), deed, partial(pow, 2, 4)], timeout_s=2, num_attempts=2)
    assert (before.result, found.result, after.result) == (8, None, 16)
    assert reason in str(found.error)
    assert time.monotonic() - start < 60


def test_a_function_that_takes_for_ever_to_load_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LOADING_S", 1)
    coming = outcomes(partial(pow, Pickled(loaded=hang)), [2], 1, Limits())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"cannot load what it needs .*: it took more than 1 s"):
        next(coming)


def test_what_a_task_leaves_behind_is_not_charged_to_the_next() -> None:
    def closes_later() -> None:
        signal.signal(signal.SIGALRM, lambda *_: os.closerange(3, 1000))
        signal.setitimer(signal.ITIMER_REAL, 0.3)

    slow = partial(time.sleep, 1)
    found = outcomes_of([closes_later, slow], num_attempts=2)
    assert [outcome.error for outcome in found] == [None, None]


# --- exceptions ----------------------------------------------------------------------------------


class OwnError(BaseException):
    pass


class SpeechlessError(BaseException):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class UnpicklableError(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")


def raises(error: type[BaseException]) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt,
        GeneratorExit,
        SystemExit,
        StopIteration,
        asyncio.CancelledError,
        OwnError,
        SpeechlessError,
        UnpicklableError,
        RecursionError,
        EOFError,
        ConnectionResetError,
    ],
)
def test_any_exception_is_a_reason_and_costs_no_worker(error: type[BaseException]) -> None:
    before, found, after = outcomes_of([os.getpid, partial(raises, error), os.getpid])
    assert str(found.error).startswith(error.__name__)
    assert error.__name__ in str(found.traceback)
    assert before.result == after.result is not None


# --- whose answer --------------------------------------------------------------------------------


@pytest.mark.parametrize("child_raises", [False, True])
def test_a_task_that_forks_has_one_answer_and_its_child_serves_no_other(child_raises: bool) -> None:
    def forks() -> str:
        if os.fork():
            return "parent"
        if child_raises:
            raise RuntimeError("in the child")
        return "child"

    found = outcomes_of([forks, *(partial(pow, 2, idx) for idx in range(4)), forks])
    assert [outcome.result for outcome in found] == ["parent", 1, 2, 4, 8, "parent"]


def test_candidates_that_fork_or_raise_what_is_no_error_are_rows_and_the_others_keep_their_scores() -> None:
    def forks() -> Classifier:
        os.fork()
        return Classifier()

    good = {"small": Classifier, "large": lambda: Classifier(16)}
    bad = {"interrupts": partial(raises, KeyboardInterrupt), "own": partial(raises, OwnError)}
    alone = ZeroShotSelector(proxies="zico").rank(good, make_batches())
    selector = ZeroShotSelector(proxies="zico", executor=ProcessExecutor(num_workers=1, timeout_s=60))
    leaderboard = selector.rank({"forks": forks, **bad, **good}, make_batches())
    scores = {row["name"]: row["score"] for row in alone}
    found = {row["name"]: row["score"] for row in leaderboard if row["rank"]}
    assert found == {"forks": scores["small"], **scores}
    kinds = {name: reason.split(":")[1].strip() for name, reason in leaderboard.errors.items()}
    assert kinds == {"interrupts": "KeyboardInterrupt", "own": "OwnError"}


def test_a_worker_is_replaced_when_it_asks_to_be() -> None:
    deeds = [os.getpid, os.getpid, retire_worker, os.getpid, os.getpid]
    first, second, _, third, fourth = (outcome.result for outcome in outcomes_of(deeds))
    assert first == second != third == fourth


# --- what a task starts --------------------------------------------------------------------------


def executes(folder: Path, **options: Any) -> None:
    child = subprocess.Popen(["sleep", "3600"], stdin=subprocess.DEVNULL, **options)
    (folder / f"{child.pid}").touch()


def forks(folder: Path, *, twice: bool) -> None:
    if os.fork():
        return
    os.setsid()
    if twice and os.fork():
        os._exit(0)
    (folder / f"{os.getpid()}").touch()
    hang()


STARTS: dict[str, Callable[[Path], None]] = {
    "a child": executes,
    "in a session": partial(executes, start_new_session=True),
    "in a session with its own environment": partial(
        executes, start_new_session=True, env={"PATH": os.environ["PATH"]}
    ),
    "forked in a session": partial(forks, twice=False),
    "forked twice": partial(forks, twice=True),
}
ENDS: dict[str, Deed] = {"answers": int, "hangs": hang, "leaves": partial(os._exit, 5)}


def start_and_end(start: Callable[[Path], None], end: Deed, folder: Path) -> int:
    start(folder)
    while not os.listdir(folder):
        time.sleep(0.01)
    end()
    return os.getpid()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("start", STARTS)
def test_what_a_task_starts_ends_with_it(start: str, end: str, tmp_path: Path) -> None:
    if (start, end) == ("in a session with its own environment", "leaves"):
        pytest.skip("nothing tells any more who started it")
    task = partial(start_and_end, STARTS[start], ENDS[end], tmp_path)
    coming = outcomes(done, [task, os.getpid], 1, Limits(timeout_s=2))
    (_, found), (_, after) = next(coming), next(coming)
    assert_gone(int(pid) for pid in os.listdir(tmp_path))  # not just when the pool ends
    coming.close()
    assert after.result not in (None, found.result)


def test_children_that_end_before_the_task_does_cost_no_worker() -> None:
    run = partial(subprocess.run, "true", check=True)
    pids = {outcome.result for outcome in outcomes_of([os.getpid, lambda: run() and os.getpid(), os.getpid])}
    assert len(pids) == 1


# --- the end of the process that ranks -----------------------------------------------------------


def with_pid(deed: Deed, folder: Path) -> None:
    (folder / f"{os.getpid()}").touch()
    deed()


def in_a_session_and_hangs(folder: Path) -> None:
    executes(folder, start_new_session=True)
    hang()


def rank(folder: str, start_method: str) -> None:
    """Hang in workers."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under `nohup` it is ignored
    # Those that are forked from here hold the other ends of all pipes, so that none of these ends with this process.
    pool._CONTEXT = FORKED if start_method == "forkserver" else multiprocessing.get_context(start_method)
    where = Path(folder)
    starts = partial(in_a_session_and_hangs, where)
    hanging = [hang, closes_all_and_hangs, ignores_signals_and_hangs, keeps_the_lock, stops, starts]
    deeds = [partial(with_pid, deed, where) for deed in hanging]
    # Nothing but the end of the process that ranks ends those that hung up: no attempt is over in time.
    pool._HUNG_UP_S = 3600
    for _ in outcomes(done, deeds, len(deeds), Limits()):
        pass


@pytest.mark.parametrize(
    ("end", "start_method"),
    [
        *(("SIGKILL", "forkserver"), ("SIGKILL", "fork"), ("SIGTERM", "fork")),
        pytest.param("SIGHUP", "fork", marks=pytest.mark.slow),
    ],
)
def test_workers_end_with_the_process_that_ranks(end: str, start_method: str, tmp_path: Path) -> None:
    ranking = started(rank, str(tmp_path), start_method)
    until = time.monotonic() + 60
    while len(os.listdir(tmp_path)) < 7 and time.monotonic() < until:
        time.sleep(0.05)
    pids = [int(pid) for pid in os.listdir(tmp_path)]
    assert len(pids) == 7
    assert ranking.is_alive()
    os.kill(ranking.pid or 0, getattr(signal, end))
    ranking.join(60)
    assert_gone(pids)


def sleeping() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "3600"], start_new_session=True)


def test_a_warden_that_is_killed_is_replaced() -> None:
    with sleeping() as first, sleeping() as second, sleeping() as third, sleeping() as forgotten:
        warden = Warden(sys.executable)
        warden.watch(first.pid, new_mark())
        warden.watch(forgotten.pid, new_mark())
        warden.process.kill()
        warden.process.wait()
        warden.watch(second.pid, new_mark())
        warden.forget(forgotten.pid)
        warden.close()
        assert [process.wait(10) for process in (first, second)] == [-signal.SIGKILL] * 2
        assert [process.poll() for process in (third, forgotten)] == [None, None]
        for process in (third, forgotten):
            end_family(process.pid, new_mark())


def test_nothing_of_a_pool_is_left_when_it_is_closed() -> None:
    def here() -> list[str]:
        return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()

    outcomes_of([int])  # starts what starts workers, which stays
    before = here()
    coming = outcomes(done, [int, hang, os.getpid], 2, Limits())
    pids = [outcome.result for _, outcome in itertools.islice(coming, 2)]
    assert len(here()) > len(before)
    coming.close()
    assert here() == before
    assert_gone(pid for pid in pids if pid)
