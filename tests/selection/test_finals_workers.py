"""Finals in other processes end as those in this one do."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from lightning_zico import Candidate, ProcessExecutor, RayExecutor, ZeroShotSelector
from lightning_zico.errors import NotLoggedError
from lightning_zico.ranking.learned import choose_next
from lightning_zico.scoring.executors.messages import Outcome, answer, read_answer
from lightning_zico.selection import final_workers
from lightning_zico.selection.final_workers import TrainInWorker
from lightning_zico.selection.finalist import Conditions, Finalist
from lightning_zico.selection.finals import finals_workers
from lightning_zico.selection.rounds import FinalsRules, hold_finals
from tests.modules import assert_same
from tests.processes import ROOT, assert_gone
from tests.selection.counted import NUM_EPOCHS, builds_of, fit, results
from tests.selection.test_finals import Data, Net, Raising, Saying, selector_of, trainer_of
from tests.selection.test_finals_time import Timed, cost_of

pytestmark = pytest.mark.usefixtures("_forked_workers")


class Elsewhere:
    """Calls in this process what would be sent to others; of those that run at once, the last one finishes first."""

    def __init__(self, num_at_once: int = 2) -> None:
        self.num_at_once = num_at_once
        self.most = 0

    def call(
        self, function: Callable[[Any], Any], items: Callable[[int], Iterable[Any]]
    ) -> Generator[tuple[Any, Outcome[Any]], None, None]:
        sent, coming = cloudpickle.dumps(function), iter(items(self.num_at_once))
        running: list[tuple[Any, bytes]] = []
        while True:
            while len(running) < self.num_at_once and (item := next(coming, None)) is not None:
                running.append((item, cloudpickle.dumps(item)))
            if not running:
                return
            self.most = max(self.most, len(running))
            item, message = running.pop()
            yield item, read_answer(answer(pickle.loads(sent), message))  # type: ignore[misc]


def rows_of(selector: ZeroShotSelector) -> list[dict[str, Any]]:
    return [{name: cell for name, cell in row.items() if name != "seconds"} for row in selector.leaderboard_]


def assert_as_here(there: Any, num_finalists: int = 3, builds: Any = None, **kwargs: Any) -> None:
    """Check that finals with an executor have the rows, the winner and its weights of those without one."""
    builds = builds or {str(idx): partial(Net, -idx, 10 ** -(1 + idx % 3), 0.5) for idx in range(6)}
    trainers, found = [], []
    for executor in (None, there):
        trainer, data = trainer_of(NUM_EPOCHS), Data(True)
        selector = selector_of(trainer, num_finalists, finals_executor=executor, **kwargs).fit(builds, data)
        trainers.append(trainer)
        found.append(selector)
    here, there = found
    assert rows_of(there) == rows_of(here)
    assert there.leaderboard_.provenance["finals"] == here.leaderboard_.provenance["finals"]
    assert_same(there.best_model_.state_dict(), here.best_model_.state_dict())
    assert_same(*(s.best_model_.optimizers(use_pl_optimizer=False).state_dict() for s in (there, here)))
    assert there.best_model_.seen == here.best_model_.seen
    states = [(t.current_epoch, t.global_step, t.callbacks, t.loggers, t.ckpt_path) for t in trainers]
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("num_finalists", "kwargs"),
    [
        (2, {"final_epochs": 2}),
        (5, {}),
        (3, {"final_seeds": 2}),
        (4, {"reduction_factor": 2, "patience": 1}),
        pytest.param(10, {"learn": "rank"}, marks=pytest.mark.slow),
    ],
)
def test_finals_end_as_they_do_here(num_finalists: int, kwargs: dict[str, Any]) -> None:
    builds = {str(idx): partial(Net, -idx, 10 ** -(1 + idx % 3), 0.5) for idx in range(max(num_finalists, 6))}
    executor = Elsewhere(3)
    assert_as_here(executor, num_finalists, builds, **kwargs)
    assert executor.most == min(num_finalists, 3)


def test_finals_in_processes_end_as_they_do_here() -> None:
    assert_as_here(ProcessExecutor(2), 5)


@pytest.mark.slow
def test_finals_on_ray_end_as_they_do_here(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert_as_here(RayExecutor(), 5)
    finally:
        ray.shutdown()


def test_a_cache_stores_what_workers_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "counted"
    monkeypatch.setenv("COUNTED", str(path))
    expected = results(fit(None, final_epochs=2))
    path.unlink()
    for num_trained in (3 * 2 + NUM_EPOCHS - 2, NUM_EPOCHS - 2):
        assert results(fit(tmp_path / "scores.db", final_epochs=2, finals_executor=Elsewhere())) == expected
        assert len(path.read_text().splitlines()) == num_trained
        path.unlink()
    assert len(list(Path(f"{tmp_path}/scores.db-finals").iterdir())) == 3


class Noting(Net):
    """Writes to a file which epochs it is trained for."""

    def __init__(self, score: float, path: Path) -> None:
        super().__init__(score, 0.1 + score / 20, 0.3)
        self.path = path

    def on_train_epoch_end(self) -> None:
        with self.path.open("a") as file:
            file.write(f"{-self.numbers['own']:g} {self.current_epoch}\n")


class Once(Noting):
    """Is killed by the system in its second epoch, unless that has happened before."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        flag = self.path.with_suffix(".killed")
        if self.current_epoch == 1 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("has_cache", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_finalist_whose_worker_is_killed_goes_on_in_another(has_cache: bool, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    expected = results(fit(None, 2, {str(idx): partial(Noting, -idx, here) for idx in range(2)}, final_epochs=3))
    builds = {"0": partial(Once, 0, there), "1": partial(Noting, -1, there)}
    cache = tmp_path / "scores.db" if has_cache else None
    assert results(fit(cache, 2, builds, final_epochs=3, finals_executor=ProcessExecutor(1))) == expected
    # Without a cache, it begins the round again.
    again = [] if has_cache else ["0 0"]
    assert sorted(there.read_text().splitlines()) == sorted([*here.read_text().splitlines(), *again])


class Dying(Net):
    def on_train_epoch_end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Diverging(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", float("nan"))


@pytest.mark.slow
def test_failures_are_rows_and_cost_nothing_else() -> None:
    builds = {
        "raising": partial(Raising, 9),
        "dying": partial(Dying, 8),
        "diverging": partial(Diverging, 7),
        "unsendable": Unsendable.locked(),
        **{str(idx): partial(Net, -idx, 10 ** -(1 + idx % 3)) for idx in range(2)},
    }
    one_round = {"reduction_factor": 6, "finals_executor": ProcessExecutor(2)}
    offered = (Candidate(name, build) for name, build in builds.items())  # whose builds are not looked at before
    there = selector_of(trainer_of(NUM_EPOCHS), 6, **one_round).fit(offered, Data())
    errors = there.leaderboard_.errors
    assert errors == {
        "raising": "finals: RuntimeError: cannot be trained",
        "dying": "finals: the process died (exit code -9, SIGKILL), in 2 attempts",
        "diverging": "finals: ValueError: `val_loss` is nan after training.",
        "unsendable": "finals: cannot be sent to a worker process: TypeError: cannot pickle '_thread.lock' object",
    }
    here = selector_of(trainer_of(NUM_EPOCHS), 2).fit({name: builds[name] for name in "01"}, Data())
    values = {row["name"]: row["final"] for row in here.leaderboard_}
    assert {row["name"]: row["final"] for row in there.leaderboard_ if row["final"] is not None} == values
    assert there.leaderboard_.best == here.leaderboard_.best


class WithLoaderWorkers(Data):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_data, 6, num_workers=1, multiprocessing_context="spawn", persistent_workers=True)


@pytest.mark.slow
def test_loaders_may_have_workers_of_their_own() -> None:
    builds = builds_of(2, Net)
    selector = selector_of(trainer_of(2), 2, finals_executor=ProcessExecutor(2)).fit(builds, WithLoaderWorkers())
    assert selector.leaderboard_.errors == {}


def test_learned_finalists_are_chosen_together() -> None:
    values = np.random.default_rng(53).permutation(20) / 20  # one by one, others are chosen
    builds = {f"{idx:02}": partial(Saying, -idx, values[idx]) for idx in range(20)}
    executor = Elsewhere(3)
    rows = selector_of(trainer_of(6), 13, finals_executor=executor).fit(builds, Data()).leaderboard_.rows
    labels: dict[int, float | None] = {idx: -values[idx] for idx in range(8)}
    while len(labels) < 13:
        pending: list[int] = []
        for _ in range(min(3, 13 - len(labels))):
            chosen = choose_next([-float(idx) for idx in range(20)], {}, labels, pending)
            assert chosen is not None
            pending.append(chosen)
        labels |= {idx: -values[idx] for idx in pending}
    assert {int(row["name"]) for row in rows if row["final"] is not None} == set(labels)
    assert set(labels) != set(range(13))


class TimedElsewhere(Timed):
    def catch_up(self, conditions: Conditions) -> None:
        pass


def hold(costs: list[float], time_budget_s: float, num_at_once: int) -> list[Finalist]:
    """Hold finals without training; those that run at once finish in the opposite order."""
    finalists: list[Finalist] = []
    rules = FinalsRules(finalists=max(len(costs), 2), time_budget_s=time_budget_s, learn=False)

    def play(conditions: Conditions, schedule: Any) -> Generator[Finalist, None, None]:
        coming = schedule(num_at_once)
        while batch := [own for _ in range(num_at_once) if (own := next(coming, None)) is not None]:
            for finalist in reversed(batch):
                finalist.play(conditions)
                yield finalist

    coming = (TimedElsewhere(idx, cost) for idx, cost in enumerate(costs))
    hold_finals(coming, trainer_of(), {}, finalists=finalists, rules=rules, play=play)
    return finalists


@pytest.mark.parametrize("num_at_once", [1, 2, 5])
@pytest.mark.parametrize("time_budget_s", [0.5, 3, 4.5, 6, 9.9, 14, 1000])
def test_as_many_take_part_as_fit_when_several_are_trained_at_once(time_budget_s: float, num_at_once: int) -> None:
    def turns(num: int) -> int:
        sizes = [num]
        while num > 4 and sizes[-1] > 2:
            sizes.append(-(-sizes[-1] // 2))
        return sum(-(-size // num_at_once) for size in sizes)

    finalists = hold([1.0] * 14, time_budget_s, num_at_once)
    fitting = [num for num in range(1, 15) if turns(num) <= time_budget_s]
    # The first to be trained take part in any case.
    assert len(finalists) == max(fitting, default=num_at_once)
    if num_at_once == 1 and fitting:
        assert turns(len(finalists)) == cost_of(len(finalists))


def test_the_slowest_of_a_round_must_fit() -> None:
    # The first round takes 50 s, however many workers are idle.
    for time_budget_s, num_rounds in [(30.0, [1] * 8), (51.5, [2] * 4 + [1] * 4), (52.5, [3, 3, 2, 2, 1, 1, 1, 1])]:
        finalists = hold([1.0] * 7 + [50.0], time_budget_s, num_at_once=8)
        assert [finalist.num_rounds for finalist in finalists] == num_rounds
    finalists = hold([30.0] + [1.0] * 7, 30.0, num_at_once=8)
    assert [finalist.num_rounds for finalist in finalists] == [1] * 8


@pytest.mark.parametrize(("time_budget_s", "num_rounds"), [(1.5, [1] * 8), (2.5, [2] * 4 + [1] * 4)])
def test_workers_without_a_finalist_save_no_time(time_budget_s: float, num_rounds: list[int]) -> None:
    finalists = hold([1.0] * 8, time_budget_s, num_at_once=64)
    assert [finalist.num_rounds for finalist in finalists] == num_rounds


def test_a_metric_that_is_not_logged_ends_finals_as_it_does_here() -> None:
    builds = {str(idx): partial(Saying, -idx, 0.5, metric="accuracy" if idx < 2 else "val_loss") for idx in range(4)}
    messages = []
    for executor in (None, Elsewhere(3)):
        with pytest.raises(NotLoggedError) as raised:
            selector_of(trainer_of(), 4, finals_executor=executor).fit(builds, Data())
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith("Invalid monitor='val_loss'. In '0', `val_loss` was not logged")
    # Where one before it logged the metric, it is a row, whoever finishes first.
    builds = {"first": partial(Saying, 1, 0.5), **builds}
    assert_rows_as_here(builds)


def assert_rows_as_here(builds: dict[str, Any]) -> None:
    here, there = (selector_of(trainer_of(), 4, finals_executor=e).fit(builds, Data()) for e in (None, Elsewhere(3)))
    assert rows_of(there) == rows_of(here)


class Unpicklable(Callback):
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.epochs: list[int] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append(trainer.current_epoch)


def test_callbacks_of_the_trainer_stay_here_and_see_the_winner_only() -> None:
    callback = Unpicklable()
    trainer = trainer_of(4, callbacks=[callback])
    selector_of(trainer, 2, finals_executor=Elsewhere()).fit(builds_of(2, Net), Data())
    assert trainer.callbacks == [callback]
    assert callback.epochs == [1, 2, 3]


class Unsendable(Data):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    @staticmethod
    def locked() -> Callable[[], Net]:
        lock = threading.Lock()
        return lambda: Net(6 + lock.locked())


class Opening(Data):
    """Holds something that cannot be pickled from `setup` on, and maybe until `teardown`."""

    def __init__(self, closes: bool) -> None:
        super().__init__()
        self.closes = closes

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.lock: Any = threading.Lock()

    def teardown(self, stage: str) -> None:
        if self.closes:
            self.lock = None


def ended(*_: Any, **__: Any) -> None:
    raise AssertionError("ranking began")


def test_data_that_cannot_be_pickled_after_setup_costs_the_finals_and_not_the_ranking() -> None:
    executor = Elsewhere()
    selector = selector_of(trainer_of(), 2, finals_executor=executor)
    with pytest.raises(TypeError, match=r"^After `setup`, the data cannot be pickled, .*; `leaderboard_` has the rank"):
        selector.fit(builds_of(3, Net), Opening(closes=False))
    assert executor.most == 0
    assert [row["rank"] for row in selector.leaderboard_] == [1, 2, 3]
    assert "final" not in selector.leaderboard_.columns
    selector.fit(builds_of(3, Net), Opening(closes=True))
    assert executor.most == 2
    assert selector.leaderboard_.errors == {}


def test_what_workers_cannot_get_is_an_error_before_the_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ZeroShotSelector, "_rank", ended)
    with pytest.raises(TypeError, match=r"^The data cannot be pickled, so `finals_executor` cannot send it"):
        selector_of(trainer_of(), 2, finals_executor="processes").fit(builds_of(2, Net), Unsendable())
    trainer = trainer_of()
    trainer.held = threading.Lock()
    with pytest.raises(TypeError, match=r"^`trainer` cannot be pickled"):
        selector_of(trainer, 2, finals_executor="processes").fit(builds_of(2, Net), Data())
    for offered in ({"a": Net, "b": Unsendable.locked()}, [Candidate("a", Net), Candidate("b", Unsendable.locked())]):
        with pytest.raises(TypeError, match=r"^Candidate 'b' cannot be pickled, so `finals_executor` cannot send it"):
            selector_of(trainer_of(), 2, finals_executor="processes").fit(offered, Data())
    with pytest.raises(ValueError, match=r"^`trainer` ends after `max_steps=9`"):  # takes no time to find
        selector_of(trainer_of(max_steps=9), 2, finals_executor="processes").fit([Unsendable.locked()], Data())
    trainer = trainer_of(strategy="ddp_spawn", devices=1)
    with pytest.raises(ValueError, match=r"^`trainer` trains in processes of its own \(DDPStrategy\)"):
        selector_of(trainer, 2, finals_executor="processes").fit(builds_of(2, Net), Data())


def test_what_is_pickled_to_check_candidates_is_not_all_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[Any] = []

    class Noted(final_workers._Nowhere):
        def __init__(self) -> None:
            files.append(self)

    monkeypatch.setattr(final_workers, "_Nowhere", Noted)
    monkeypatch.setattr(final_workers, "_MOST_BYTES", 100_000)
    builds = {str(idx): partial(torch.sum, torch.zeros(10_000)) for idx in range(12)}  # 40 kB each
    final_workers.check_can_be_sent(trainer_of(), {}, builds)
    of_candidates = [file.num_bytes for file in files[2:]]  # after those of the trainer and the data
    assert len(of_candidates) == 4
    assert all(120_000 < size < 140_000 for size in of_candidates)


@pytest.mark.parametrize("executor", ["ray", ProcessExecutor, SimpleNamespace(run=print)])
def test_executors_that_cannot_train_are_refused(executor: Any) -> None:
    with pytest.raises(ValueError, match=r'Invalid finals_executor=.*: expected None, "processes", .*that has `call`'):
        ZeroShotSelector(finals_executor=executor)


@pytest.mark.parametrize("executor", ["processes", ProcessExecutor(), ProcessExecutor(6)])
@pytest.mark.parametrize(("num_finalists", "num_cores"), [(2, 4), (5, 4)])
def test_there_are_no_more_workers_than_finalists_or_cores(
    executor: Any, num_finalists: int, num_cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_zico.scoring.executors.processes.num_cores", lambda: num_cores)
    workers = finals_workers(executor, FinalsRules(finalists=num_finalists))
    assert workers is not None
    assert isinstance(workers.executor, ProcessExecutor)
    most = num_cores if executor == "processes" else executor.num_workers or num_cores
    assert workers.executor.num_workers == min(num_finalists, most)


def test_an_executor_without_finals_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^Invalid finalists=1 with `finals_executor='processes'`: expected at least"):
        ZeroShotSelector(finals_executor="processes")


def test_a_checkpoint_that_a_machine_cannot_reach_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    call = TrainInWorker.__call__

    def call_elsewhere(self: TrainInWorker, finalist: Finalist) -> Finalist:
        if finalist.name == "0":
            for training in finalist.trainings:
                training.checkpoint = Path("/on/another/machine/0-0.ckpt")
        return call(self, finalist)

    monkeypatch.setattr(TrainInWorker, "__call__", call_elsewhere)
    selector = selector_of(trainer_of(), 2, finals_executor=Elsewhere())
    selector.fit(builds_of(2, Net), Data())
    assert "cannot reach '/on/another/machine'" in selector.leaderboard_.errors["0"]


class Prepared(Data):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def prepare_data(self) -> None:
        with self.path.open("a") as file:
            file.write("prepared\n")


@pytest.mark.parametrize(("is_here", "num_calls"), [(True, 2), (False, 4)])
def test_workers_of_this_machine_do_not_prepare_the_data_again(
    is_here: bool, num_calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = TrainInWorker.__call__
    if not is_here:
        monkeypatch.setattr(TrainInWorker, "__call__", lambda own, item: call(replace(own, machine="another"), item))
    data = Prepared(tmp_path / "calls")
    selector = selector_of(trainer_of(2), 2, finals_executor=Elsewhere()).fit(builds_of(2, Net), data)
    assert selector.leaderboard_.errors == {}
    # The ranking, the winner's training in this process, and on another machine each finalist.
    assert len(data.path.read_text().splitlines()) == num_calls


def test_each_finalist_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    builds = {"good": partial(Saying, 2, 0.5), "bad": partial(Raising, 1)}
    for executor in (None, Elsewhere()):
        caplog.clear()
        with caplog.at_level(logging.INFO, "lightning_zico.selection"):
            selector_of(trainer_of(), 2, finals_executor=executor).fit(builds, Data())
        lines = sorted(record.getMessage() for record in caplog.records if "Finals" in record.getMessage())
        assert len(lines) == 2
        assert lines[0].startswith("Finals: 'bad' failed after ")
        assert lines[0].endswith(" s: RuntimeError: cannot be trained")
        assert lines[1].startswith("Finals: 'good' has val_loss=0.5 after 1 epoch in ")


class Stopping(Noting):
    """Stands still in its third epoch, until the run is over."""

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        folder = self.path.parent
        if self.current_epoch == 2 and not (folder / "over").exists():
            (folder / "pids" / str(os.getpid())).touch()
            time.sleep(600)


def fit_stopping(folder: str, executor: Any) -> ZeroShotSelector:
    builds = {str(idx): partial(Stopping, -idx, Path(folder, "trained")) for idx in range(2)}
    return fit(Path(folder, "scores.db"), 2, builds, final_epochs=3, finals_executor=executor)


PROGRAM = """
import signal
import sys
import torch
from lightning_zico import ProcessExecutor
from tests.selection.test_finals_workers import fit_stopping
if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under `nohup` it is ignored
    fit_stopping(sys.argv[1], ProcessExecutor(2))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_finals_that_are_ended_leave_no_worker_and_lose_at_most_one_epoch(how: signal.Signals, tmp_path: Path) -> None:
    for name in ("pids", "temporary"):
        (tmp_path / name).mkdir()
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "program.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen(command, env=environment) as process:
        until = time.monotonic() + 200
        while len(pids := [int(path.name) for path in (tmp_path / "pids").iterdir()]) < 2:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(how)
        code = process.wait(120)
    ends_itself = how in (signal.SIGTERM, signal.SIGHUP)
    assert code == (128 + how if ends_itself else -how)
    assert_gone(pids)
    assert bool(list((tmp_path / "temporary").glob("lightning_zico_*"))) == (how == signal.SIGKILL)
    (tmp_path / "over").touch()
    assert sorted((tmp_path / "trained").read_text().splitlines()) == ["0 0", "0 1", "1 0", "1 1"]
    found = results(fit_stopping(str(tmp_path), None))
    lines = sorted((tmp_path / "trained").read_text().splitlines())
    assert len(lines) == len(set(lines)) == 2 * 3 + NUM_EPOCHS - 3
    builds = {str(idx): partial(Noting, -idx, tmp_path / "here") for idx in range(2)}
    assert found == results(fit(None, 2, builds, final_epochs=3))
