"""A cache stores finals: what it answers is what training gives, and a kill loses at most one epoch."""

import json
import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from lightning_zico.engine.scope import preserved_rng
from lightning_zico.owners import begin_run, end_run
from lightning_zico.scoring.cache import LEASE_S, MemoryCache, SQLiteCache
from lightning_zico.selection import finalist as finalist_module
from lightning_zico.selection.final_cache import Epochs, StoredTraining, generators_as_text, set_generators
from tests.processes import run_in_a_new_interpreter, started
from tests.selection.counted import NUM_EPOCHS, Counted, builds_of, fit, main, results
from tests.selection.test_finals import Data, Net, Raising, trainer_of


@pytest.fixture
def count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return and forget the epochs that were trained since the last call."""
    path = tmp_path / "counted"
    monkeypatch.setenv("COUNTED", str(path))

    def counted() -> list[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    return counted


@pytest.mark.parametrize(
    ("num_finalists", "kwargs"),
    [(3, {"final_epochs": 2}), (2, {"final_seeds": 2}), pytest.param(5, {}, marks=pytest.mark.slow)],
)
def test_finals_from_a_cache_are_those_of_training(num_finalists: int, kwargs: Any, tmp_path: Path, count: Any) -> None:
    expected = results(fit(None, num_finalists, **kwargs))
    trained = count()
    assert results(fit(tmp_path / "scores.db", num_finalists, **kwargs)) == expected
    assert sorted(count()) == sorted(trained)
    assert results(fit(tmp_path / "scores.db", num_finalists, **kwargs)) == expected
    rest = trained[-len(expected[2]) :]
    assert count() == rest
    assert {line.split()[0] for line in rest} == {expected[0][0][1]}  # only the winner, to the end


def test_finals_that_were_interrupted_go_on_and_lose_at_most_one_epoch(
    tmp_path: Path, count: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = results(fit(None, final_epochs=3))
    trained = count()
    monkeypatch.setenv("SIGNAL", str(int(signal.SIGINT)))
    for where in ("0 1 2", "1 0 2", "1 2 1"):
        monkeypatch.setenv("WHERE", where)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "scores.db", final_epochs=3)
    monkeypatch.delenv("WHERE")
    assert results(fit(tmp_path / "scores.db", final_epochs=3)) == expected
    # An epoch that was interrupted did not end, so each ends once.
    assert sorted(count()) == sorted(trained)


def test_a_sigterm_ends_finals_and_is_no_failure_of_a_finalist(
    tmp_path: Path, count: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = results(fit(None, 2, final_epochs=2))
    trained = count()
    monkeypatch.setenv("SIGNAL", str(int(signal.SIGTERM)))
    monkeypatch.setenv("WHERE", "1 1 0")
    with pytest.raises(SystemExit):
        fit(tmp_path / "scores.db", 2, final_epochs=2)
    monkeypatch.delenv("WHERE")
    assert results(fit(tmp_path / "scores.db", 2, final_epochs=2)) == expected
    assert sorted(count()) == sorted(trained)


@pytest.mark.slow
def test_finals_that_were_killed_go_on_in_another_process(tmp_path: Path, count: Any) -> None:
    paths = [str(tmp_path / name) for name in ("scores.db", "results.json")]
    expected = json.loads(json.dumps(results(fit(None, final_epochs=3))))
    trained = count()
    # Processes that start at once have the environment of the first test that started one.
    environment = {"COUNTED": os.environ["COUNTED"], "WHERE": "1 1 2", "SIGNAL": str(int(signal.SIGKILL))}
    process = started(main, *paths, **environment)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    before = count()
    assert before == ["0 0", "0 1", "0 2", "1 0"]
    run_in_a_new_interpreter(main, *paths)
    assert json.loads(Path(paths[1]).read_text()) == expected
    assert sorted(before + count()) == sorted(trained)


@pytest.mark.slow
def test_more_epochs_go_on_from_those_that_are_known_and_fewer_train_only_the_winner_again(
    tmp_path: Path, count: Any
) -> None:
    cache = tmp_path / "scores.db"
    short, long = (results(fit(None, final_epochs=num)) for num in (1, 3))
    fit(cache, final_epochs=1)
    count()
    assert results(fit(cache, final_epochs=3)) == long
    assert sorted(count()[:6]) == sorted(f"{idx} {epoch}" for idx in range(3) for epoch in (1, 2))
    assert results(fit(cache, final_epochs=1)) == short
    winner = short[0][0][1]
    assert count() == [f"{winner} {epoch}" for epoch in range(NUM_EPOCHS)]


@pytest.mark.parametrize(
    "harm", ["changed", *(pytest.param(harm, marks=pytest.mark.slow) for harm in ("deleted", "cut"))]
)
def test_a_checkpoint_that_is_gone_or_damaged_is_made_again(harm: str, tmp_path: Path, count: Any) -> None:
    cache = tmp_path / "scores.db"
    expected = results(fit(None, 2, final_epochs=2))
    fit(cache, 2, final_epochs=1)
    checkpoints = list(Path(f"{cache}-finals").iterdir())
    assert len(checkpoints) == 2
    for checkpoint in checkpoints:
        content = checkpoint.read_bytes()
        if harm == "deleted":
            checkpoint.unlink()
        else:
            half = len(content) // 2
            checkpoint.write_bytes(content[:half] + (b"" if harm == "cut" else b"?" + content[half + 1 :]))
    assert results(fit(cache, 2, final_epochs=2)) == expected
    fit(cache, 2, final_epochs=2)
    assert len(list(Path(f"{cache}-finals").iterdir())) == 2


class OtherData(Data):
    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.val_data, 3)


class Logging(Counted):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_epoch=True, on_step=False)
        return loss


@pytest.mark.parametrize(
    ("num_trained", "kwargs"),
    [
        (2, lambda: {"data": OtherData(True)}),
        (2, lambda: {"trainer": trainer_of(NUM_EPOCHS, gradient_clip_val=0.1)}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (0, lambda: {"mode": "max"}),  # the same numbers, read the other way round
                (0, lambda: {"trainer": trainer_of(NUM_EPOCHS, callbacks=[EarlyStopping("val_loss", patience=99)])}),
                (2, lambda: {"data": Data(False)}),
                (2, lambda: {"builds": {str(idx): partial(Counted, -idx, 0.3) for idx in range(2)}}),
                (
                    2,
                    lambda: {"builds": {str(idx): partial(Logging, -idx) for idx in range(2)}, "monitor": "train_loss"},
                ),
            ]
        ),
    ],
)
def test_other_weights_data_trainers_and_metrics_are_trained_anew(
    num_trained: int, kwargs: Any, tmp_path: Path, count: Any
) -> None:
    fit(tmp_path / "scores.db", 2)
    count()
    fit(tmp_path / "scores.db", 2, **kwargs())
    assert len(count()) == num_trained + NUM_EPOCHS - 1


def test_failures_and_divergence_are_the_same_with_a_cache(tmp_path: Path, count: Any) -> None:
    class Diverging(Counted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (float("nan") if self.current_epoch else 1.0)

    builds = {**builds_of(2), "d": partial(Diverging, 7), "r": partial(Raising, 8)}
    expected = results(fit(None, 4, builds, final_epochs=2))
    assert [row[5] for row in expected[0]] == [
        *(None, None),
        "finals: RuntimeError: cannot be trained",
        "finals: ValueError: `val_loss` is nan after training.",
    ]
    for _ in range(2):
        assert results(fit(tmp_path / "scores.db", 4, builds, final_epochs=2)) == expected


class ByCallback(Counted):
    def configure_callbacks(self) -> Any:
        return EarlyStopping("val_loss", patience=1, min_delta=99.0)  # after the second epoch


class ByItself(Counted):
    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.trainer.should_stop = self.current_epoch == 1


@pytest.mark.parametrize("kind", [ByCallback, ByItself])
def test_a_module_that_ends_its_training_ends_the_round(kind: type[Net], tmp_path: Path, count: Any) -> None:
    builds = builds_of(2, kind)
    expected = results(fit(None, 2, builds, final_epochs=4))
    assert [row[4] for row in expected[0]] == [2, 2]
    for _ in range(2):
        assert results(fit(tmp_path / "scores.db", 2, builds, final_epochs=4)) == expected


def test_validation_may_be_rare(tmp_path: Path, count: Any) -> None:
    rare = partial(trainer_of, NUM_EPOCHS, check_val_every_n_epoch=2)
    expected = results(fit(None, 2, trainer=rare(), final_epochs=4))
    for _ in range(2):
        assert results(fit(tmp_path / "scores.db", 2, trainer=rare(), final_epochs=4)) == expected


class Early(Logging):
    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.trainer.should_stop = self.current_epoch == 2


@pytest.mark.parametrize("monitor", ["val_loss", pytest.param("train_loss", marks=pytest.mark.slow)])
def test_an_end_without_validation_leaves_the_last_value(monitor: str, tmp_path: Path, count: Any) -> None:
    def rows(**kwargs: Any) -> Any:
        rare = trainer_of(NUM_EPOCHS, check_val_every_n_epoch=2)
        return results(fit(builds=builds_of(2, Early), trainer=rare, final_epochs=4, monitor=monitor, **kwargs))

    cache = tmp_path / "scores.db"
    expected = rows(cache=None, num_finalists=2)
    assert [row[4:] for row in expected[0]] == [[3, None]] * 2
    for kwargs in ({"cache": cache}, {"cache": cache}, {"cache": None, "patience": 9}):
        assert rows(num_finalists=2, **kwargs) == expected


def test_what_has_no_fingerprint_is_trained_without_the_cache(tmp_path: Path, count: Any) -> None:
    class WithFile(Data):
        def __init__(self) -> None:
            super().__init__(True)
            self.file = Path(__file__).open()  # noqa: SIM115

    data = WithFile()
    with data.file, pytest.warns(UserWarning, match="Finals are not stored in the cache: .*file"):
        fit(tmp_path / "scores.db", 2, data=data)
    assert not Path(f"{tmp_path}/scores.db-finals").exists()
    assert fit(MemoryCache(), 2).leaderboard_.errors == {}  # a cache in memory keeps scores only


def test_a_folder_that_cannot_be_written_does_not_stop_finals(tmp_path: Path, count: Any) -> None:
    Path(f"{tmp_path}/scores.db-finals").write_text("in the way")
    expected = results(fit(None, 2))
    with pytest.warns(UserWarning, match="Finals are not stored in the cache: .*File exists"):
        assert results(fit(tmp_path / "scores.db", 2)) == expected


def claim_elsewhere(cache: SQLiteCache, key: str) -> None:
    """Leave the claim of a run that was killed on another machine."""
    own = begin_run()
    owner = own._replace(place=own.place._replace(host="elsewhere", machine="x", boot="y"))
    end_run(own)
    with closing(sqlite3.connect(cache.path)) as connection, connection:
        connection.execute("INSERT INTO claims VALUES (?, ?, ?)", (key, owner.to_json(), time.time()))


def test_a_training_that_another_run_has_claimed_is_stored_when_the_claim_ends(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    cache = SQLiteCache(tmp_path / "scores.db")
    own = StoredTraining(cache, tmp_path / "finals", "key")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_text("any")
    claim_elsewhere(cache, "key")
    for num in (1, 2):
        own.store(Epochs((0.0,) * num, (1.0,) * num), checkpoint)
        assert len(own.read()) == 0
    (warning,) = [str(each.message) for each in recwarn]
    assert warning.startswith("Finals are not stored in the cache: another run holds the claim for a finalist;")
    with closing(sqlite3.connect(cache.path)) as connection, connection:
        connection.execute("UPDATE claims SET since = since - ?", (LEASE_S,))
    own.store(Epochs((0.0,) * 3, (1.0,) * 3), checkpoint)
    assert len(own.read()) == 3
    assert not cache.is_claimed("key")


def test_fewer_epochs_replace_more_only_if_their_checkpoint_is_gone(tmp_path: Path) -> None:
    ahead, behind = (StoredTraining(SQLiteCache(tmp_path / "s.db"), tmp_path / "finals", "key") for _ in range(2))
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_text("any")
    ahead.store(Epochs((0.0, 1.0), (1.0, 1.0)), checkpoint)
    behind.store(Epochs((0.0,), (1.0,)), checkpoint)
    assert len(behind.read()) == 2
    (tmp_path / "finals" / "key-2.ckpt").unlink()
    behind.store(Epochs((0.0,), (1.0,)), checkpoint)
    assert len(behind.read()) == 1


def test_the_checkpoint_of_the_entry_is_there_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = StoredTraining(SQLiteCache(tmp_path / "scores.db"), tmp_path / "finals", "key")
    checkpoint, copy = tmp_path / "checkpoint", tmp_path / "copy"

    def is_whole() -> bool:
        known = own.read()
        return not known or (own.fetch(known, copy) and copy.read_text() == f"after {len(known)}")

    seen: list[bool] = []
    for name in ("replace", "unlink"):
        true = getattr(Path, name)
        monkeypatch.setattr(
            Path, name, lambda *args, true=true, **kwargs: (seen.append(is_whole()), true(*args, **kwargs))[1]
        )
    write = SQLiteCache.write
    monkeypatch.setattr(
        SQLiteCache, "write", lambda *args: (seen.append(is_whole()), write(*args), seen.append(is_whole()))[1]
    )
    for num in (1, 2, 3):
        checkpoint.write_text(f"after {num}")
        own.store(Epochs((0.0,) * num, (1.0,) * num), checkpoint)
        assert is_whole()
    assert len(seen) == 11
    assert all(seen)
    assert [path.name for path in (tmp_path / "finals").iterdir()] == ["key-3.ckpt"]


def test_generators_go_on_from_their_text() -> None:
    def drawn() -> list[float]:
        return [random.random(), random.gauss(0, 1), *np.random.normal(size=3), *torch.randn(3).tolist()]

    with preserved_rng(3):
        random.gauss(0, 1), np.random.normal()  # each keeps a second number
        text = generators_as_text(torch.device("cpu"))
        expected = drawn()
        set_generators(json.loads(json.dumps(text)), torch.device("cpu"))
        assert drawn() == expected


def test_only_the_device_in_use_has_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert set(json.loads(generators_as_text(torch.device("cpu")))) == {"python", "numpy", "torch"}
    calls: list[Any] = []
    device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.full((3,), device.index, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: calls.append((state.tolist(), device)))
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    set_generators(generators_as_text(device), torch.device("cuda", 0))
    assert calls == ["init", ([1, 1, 1], torch.device("cuda", 0))]


@pytest.mark.parametrize("damage", ["no state of this device", "no states"])
def test_states_of_generators_that_cannot_be_set_are_a_missing_checkpoint(
    damage: str, tmp_path: Path, count: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(text: str) -> str:
        return json.dumps(json.loads(text) | {"torch": "AAAA"}) if damage == "no state of this device" else "{}"

    monkeypatch.setattr(finalist_module, "generators_as_text", lambda device: change(generators_as_text(device)))
    fit(tmp_path / "scores.db", 2, final_epochs=1)
    monkeypatch.undo()
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    count()
    selector = fit(tmp_path / "scores.db", 2, final_epochs=2)
    assert selector.leaderboard_.errors == {}
    winner = selector.leaderboard_.best
    assert sorted(count()) == sorted(
        [
            *(f"{idx} {epoch}" for idx in "01" for epoch in (0, 1)),
            *(f"{winner} {epoch}" for epoch in range(2, NUM_EPOCHS)),
        ]
    )


def test_epochs_survive_json() -> None:
    own = Epochs((0.1, None, float("inf")), (1.0, 2.0, 1 / 3), (2,), "text", ("torch.nn.Linear",), "hash")
    assert Epochs.from_json(own.to_json()) == own
