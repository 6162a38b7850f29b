"""A candidate that fails, however badly, is one row with its reason, and the others never notice."""

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_zico import Candidate, Leaderboard, ProcessExecutor, ScoreCard, ZeroShotSelector
from lightning_zico.bridge import Reading
from lightning_zico.candidates import iterate_candidates
from lightning_zico.scoring.executors.base import Job
from lightning_zico.scoring.executors.pool import resident_bytes
from lightning_zico.scoring.scorer import Scorer
from tests.modules import Classifier, Fixed, Numbered, make_batches, make_network

ROOT = Path(__file__).parent.parent.parent
needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is looked up in /proc")


class Faulty(Classifier):
    """Does in its step whatever a test wants."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(super().training_step(batch, batch_idx))


def gives_up(loss: Tensor) -> Tensor:
    sys.exit("gives up")


def raises(loss: Tensor) -> Tensor:
    raise RuntimeError("in the middle")


def allocates(loss: Tensor) -> Tensor:
    return loss * torch.empty(2**50).sum()  # four petabytes


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def raises_speechless(loss: Tensor) -> Tensor:
    raise SpeechlessError


def out_of_memory(loss: Tensor) -> Tensor:
    raise MemoryError("numpy wanted 9 GiB")


def out_of_gpu_memory(loss: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 2.00 GiB free.")


# What a step does, and what the row's reason says.
FAULTS: dict[str, tuple[Any, str]] = {
    "does not build": (lambda: 1 / 0, "does not build: ZeroDivisionError: division by zero"),
    "leaves while building": (partial(sys.exit, 3), "does not build: SystemExit: 3"),
    "raises": (partial(Faulty, raises), "RuntimeError: in the middle"),
    "raises what cannot be told": (partial(Faulty, raises_speechless), "SpeechlessError"),
    "leaves": (partial(Faulty, gives_up), "SystemExit: gives up"),
    "nan": (partial(Faulty, lambda loss: loss * torch.nan), "nan"),
    "inf": (partial(Faulty, lambda loss: loss + torch.inf), "inf"),
    "no gradient": (partial(Faulty, Tensor.detach), "untrainable: its loss depends on none of its parameters"),
    "wrong shapes": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(49, 3)), "RuntimeError: mat1 and mat2 shapes"),
    "allocates": (partial(Faulty, allocates), str(2**52)),
    "out of memory": (partial(Faulty, out_of_memory), "MemoryError: numpy wanted 9 GiB"),
    "out of a GPU's memory": (partial(Faulty, out_of_gpu_memory), "Tried to allocate 20.00 GiB. GPU 0 has 2.00 GiB"),
}


def rows_of(leaderboard: Leaderboard) -> list[tuple[Any, ...]]:
    return [(row["rank"], row["name"], row["score"]) for row in leaderboard if row["rank"]]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_a_row_with_its_reason(fault: str) -> None:
    build, reason = FAULTS[fault]
    loss_fn = nn.functional.cross_entropy if fault == "wrong shapes" else None
    good = make_network if loss_fn else Classifier
    alone = ZeroShotSelector(proxies="zico", loss_fn=loss_fn).rank({"good": good}, make_batches())
    selector = ZeroShotSelector(proxies="zico", loss_fn=loss_fn)
    leaderboard = selector.rank({fault: build, "good": good}, make_batches())
    assert rows_of(leaderboard) == rows_of(alone)
    assert reason in leaderboard.errors[fault]
    assert leaderboard.rows[-1]["score"] is None


def test_the_traceback_is_there_on_demand_and_in_no_row() -> None:
    faults = {name: build for name, (build, _) in FAULTS.items() if name in ("does not build", "raises")}
    selector = ZeroShotSelector(proxies="zico")
    leaderboard = selector.rank({**faults, "good": Classifier}, make_batches())
    assert "ZeroDivisionError" in selector.cards_["does not build"].traceback
    assert "in raises\n" in selector.cards_["raises"].traceback
    assert "in raises\n" in selector.cards_["raises"]["zico"].traceback
    assert selector.cards_["good"].traceback is None
    assert "Traceback" not in leaderboard.to_json()
    for card in selector.cards_.values():
        assert ScoreCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


def noted(log: Path, then: Callable[[], Any], *, only_first: bool = False) -> nn.Module:
    """Note an attempt in a file, then do what is to be done, in the first attempt or in all of them."""
    with open(log, "a") as file:
        file.write("x")
    if not (only_first and log.stat().st_size > 1):
        then()
    return Classifier()


@needs_proc
@pytest.mark.usefixtures("_forked_workers")
def test_what_takes_its_process_down_hangs_or_fills_the_memory_is_a_row(tmp_path: Path) -> None:
    held: list[Tensor] = []
    deeds: dict[str, tuple[Callable[[], Any], int, str]] = {
        "segfault": (partial(ctypes.string_at, 0), 2, "the process died (exit code -11, SIGSEGV), in 2 attempts"),
        "killed": (partial(signal.raise_signal, signal.SIGKILL), 2, "exit code -9, SIGKILL), in 2 attempts"),
        "exits": (partial(os._exit, 7), 2, "the process died (exit code 7), in 2 attempts"),
        "hangs": (partial(time.sleep, 3600), 1, "took more than 5 s"),
        "eats": (
            lambda: [held.append(torch.ones(2**24)) or time.sleep(0.01) for _ in range(1000)],
            1,
            "limit of 400 MB",
        ),
    }
    good = {"small": Classifier, "large": lambda: Classifier(16)}
    candidates: dict[str, Any] = {"small": good["small"]}
    candidates |= {name: partial(noted, tmp_path / name, deed) for name, (deed, _, _) in deeds.items()}
    unlucky = partial(noted, tmp_path / "unlucky", partial(signal.raise_signal, signal.SIGKILL), only_first=True)
    candidates |= {"unlucky": unlucky, "large": good["large"]}
    executor = ProcessExecutor(num_workers=2, timeout_s=5, memory_bytes=400_000_000)
    leaderboard = ZeroShotSelector(proxies="zico", executor=executor).rank(candidates, make_batches())
    assert len(leaderboard) == len(candidates)
    assert list(leaderboard.errors) == list(deeds)
    for name, (_, num_attempts, reason) in deeds.items():
        assert reason in leaderboard.errors[name]
        assert (tmp_path / name).stat().st_size == num_attempts
    assert (tmp_path / "unlucky").stat().st_size == 2
    alone = ZeroShotSelector(proxies="zico").rank({**good, "unlucky": Classifier}, make_batches())
    assert {row["name"]: row["score"] for row in alone} == {
        row["name"]: row["score"] for row in leaderboard if row["rank"]
    }
    seconds = {row["name"]: row["seconds"] for row in leaderboard}
    assert seconds["hangs"] >= 5


@pytest.mark.slow
def test_a_script_that_starts_processes_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from lightning_zico import ZeroShotSelector\n"
        "from tests.modules import Classifier, make_batches\n"
        "ZeroShotSelector(executor='processes').rank([Classifier], make_batches())\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert 'under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


class SlowToLoad:
    """A loss function whose loading takes longer than any candidate may."""

    def __reduce__(self) -> Any:
        return _loaded_slowly, ()

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)


def _loaded_slowly() -> SlowToLoad:
    time.sleep(6)
    return SlowToLoad()


@needs_proc
@pytest.mark.usefixtures("_forked_workers")
@pytest.mark.slow
def test_what_all_candidates_share_is_charged_to_none() -> None:
    batches = [(torch.randn(20, 1_000_000), torch.zeros(20, dtype=torch.long)) for _ in range(2)]  # 160 MB
    executor = ProcessExecutor(num_workers=1, timeout_s=5, memory_bytes=120_000_000)
    scorer = Scorer(Reading.of(batches), [Fixed("a")], loss_fn=SlowToLoad())
    candidates = {"first": lambda: Numbered({"a": 1.0}), "second": lambda: Numbered({"a": 2.0})}
    done = executor.run([scorer], map(Job, iterate_candidates(candidates)))
    assert {job.candidate.name: (card.error, card["a"].value) for job, card in done} == {
        "first": (None, 1.0),
        "second": (None, 2.0),
    }


@needs_proc
@pytest.mark.usefixtures("_forked_workers")
def test_what_a_candidate_started_ends_with_its_process(tmp_path: Path) -> None:
    def starts() -> nn.Module:
        with subprocess.Popen(["sleep", "3600"]) as child:
            (tmp_path / "child").write_text(str(child.pid))
        return Classifier()

    executor = ProcessExecutor(num_workers=1, timeout_s=5)
    leaderboard = ZeroShotSelector(executor=executor).rank({"starts": starts, "fine": Classifier}, make_batches())
    assert leaderboard.errors == {"starts": "took more than 5 s"}
    status = Path("/proc", (tmp_path / "child").read_text(), "status")
    for _ in range(100):  # a signal takes a moment
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.1)
    pytest.fail("the child is still there")


@needs_proc
@pytest.mark.slow
def test_ctrl_c_in_a_terminal_while_workers_start_prints_nothing_of_theirs(tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(
        "from lightning_zico import ZeroShotSelector\n"
        "from tests.modules import Classifier, make_batches\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        ZeroShotSelector(executor='processes', enable_progress_bar=False).rank([Classifier], make_batches())\n"
        "    except KeyboardInterrupt:\n"
        "        print('stopped')\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        try:
            while not (workers := _workers_of(run.pid)):
                assert run.poll() is None
                time.sleep(0.01)
            # Asked of the system, because whether a worker that heard it can still print is a matter of chance.
            status = Path(f"/proc/{workers[0]}/status").read_text()
            ignored = int(next(line for line in status.splitlines() if line.startswith("SigIgn:")).split()[1], 16)
            time.sleep(0.5)  # until the start is over
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does
            out, err = run.communicate(timeout=60)
        finally:
            run.kill()
    assert (out, err) == ("stopped\n", "")
    assert ignored >> (signal.SIGINT - 1) & 1


@needs_proc
@pytest.mark.parametrize("executor", [pytest.param("serial", marks=pytest.mark.slow), "processes"])
def test_ctrl_c_keeps_what_is_done_and_stops_the_workers(executor: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name("interrupted.py")), executor]
    with subprocess.Popen(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == "two offered\n"
            time.sleep(2)  # until the second is done and the third at its sleep
            workers = _workers_of(run.pid)
            run.send_signal(signal.SIGINT)
            out, err = run.communicate(timeout=60)
        finally:
            run.kill()
    assert err.rstrip().endswith("KeyboardInterrupt")
    kept = json.loads(out)
    assert len(kept["cards"]) == 2
    assert sorted(row["rank"] for row in kept["rows"]) == [1, 2]
    assert kept["best_model_"] == "None"
    assert kept["notes"][0] == "The ranking was interrupted; it contains only the 2 candidates scored so far."
    assert len(workers) == (executor == "processes")
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def _children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _workers_of(pid: int) -> list[str]:
    """All child processes but the one that multiprocessing itself keeps, which ends a moment after its parent."""
    return [pid for pid in _children_of(pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_an_error_of_the_iterable_goes_on_and_what_is_done_is_kept() -> None:
    def candidates() -> Iterator[Any]:
        yield Classifier
        raise OSError("no such table")

    selector = ZeroShotSelector(proxies="zico")
    with pytest.raises(OSError, match="no such table"):
        selector.rank(candidates(), make_batches())
    assert selector.leaderboard_.best == "Classifier"
    assert selector.leaderboard_.provenance["broke_off"]
    selector.rank([Classifier], make_batches())
    assert not selector.leaderboard_.provenance["broke_off"]
    assert isinstance(selector.best_model_, Classifier)


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("executor", [None, ProcessExecutor(num_workers=1)], ids=["serial", "processes"])
def test_memory_stays_level_over_two_hundred_candidates(executor: Any) -> None:
    """Each holds 8 MB, two in five fail with their tensors in the traceback: 1.6 GB if they were kept."""
    levels: list[int] = []

    def candidates() -> Iterator[Candidate]:
        for idx in range(200):
            if idx % 20 == 0:
                gc.collect()
                levels.append(_level())
            build = partial(_large, [None, raises, allocates, None, None][idx % 5])
            yield Candidate(str(idx), build)

    selector = ZeroShotSelector(proxies="zico", executor=executor)
    leaderboard = selector.rank(candidates(), make_batches())
    assert len(leaderboard.errors) == 80
    # The first ones fill caches of torch, and holes in the memory of a process that ran other tests before.
    settled = levels[2:]
    assert max(settled) - min(settled) < 50e6


def _large(step: Callable[[Tensor], Tensor] | None) -> nn.Module:
    module = Classifier() if step is None else Faulty(step)
    module.ballast = nn.Linear(1000, 2000)
    return module


def _level() -> int:
    """Resident memory of this process and its children."""
    return resident_bytes(None) + sum(resident_bytes(int(child)) for child in _children_of(os.getpid()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"executor": "threads"}, 'expected None, "processes", or an executor'),
        ({"executor": 5}, "Invalid executor=5"),
        ({"executor": ProcessExecutor}, "Invalid executor=<class .*ProcessExecutor'>: expected"),
        ({"timeout_s": 5}, 'Pass `executor="processes"`'),
        ({"timeout_s": 5, "executor": ProcessExecutor(1)}, r"`ProcessExecutor\(timeout_s=...\)`"),
        ({"timeout_s": 0, "executor": "processes"}, "Invalid timeout_s=0: expected a positive number"),
    ],
)
def test_executors_and_timeouts_that_make_no_sense_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZeroShotSelector(**arguments)


@pytest.mark.parametrize("wrong", [{"num_workers": 0}, {"timeout_s": -1}, {"memory_bytes": 0}])
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ProcessExecutor(**wrong)
