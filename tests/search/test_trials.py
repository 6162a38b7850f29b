"""A storage outlives the processes that write to it, and several may work on it at once."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from lightning_zico.results import Score, ScoreCard
from lightning_zico.search.trials import Trials
from tests.search.test_zero_shot import SMALL, Told, searched, without_seconds

ROOT = Path(__file__).parents[2]
NUM_TRIALS = 30


def started(folder: Path, **environment: str) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "tests.search.program", str(folder), str(NUM_TRIALS)]
    own = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def history_of(process: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    rows = json.loads(output)["history"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def scored_in(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "scored.txt").read_text().splitlines()]


def test_after_a_kill_a_search_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    killed = started(tmp_path / "killed", DIE_AT="15")
    undisturbed = started(tmp_path / "undisturbed")
    killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL
    history = history_of(started(tmp_path / "killed"))
    assert history == history_of(undisturbed)
    assert len({row["arch"] for row in history}) == NUM_TRIALS
    # The one in flight is scored again, and no other.
    assert len(scored_in(tmp_path / "killed")) == NUM_TRIALS + 1


def test_two_processes_share_a_search_and_score_nothing_twice(tmp_path: Path) -> None:
    first, second = (started(tmp_path, TOGETHER="2") for _ in range(2))
    histories = [history_of(first), history_of(second)]
    scored = scored_in(tmp_path)
    assert len(scored) == NUM_TRIALS
    assert len({pid for pid, _ in scored}) == 2
    assert len({shape for _, shape in scored}) == NUM_TRIALS  # the shapes of an arch's layers tell it
    whole = max(histories, key=len)
    assert len(whole) == NUM_TRIALS
    # Who ends first may not have seen the other's last one.
    assert min(map(len, histories)) >= NUM_TRIALS - 1


@pytest.mark.parametrize("kind", ["memory", "journal", "address"])
def test_any_storage_of_optuna_gives_the_same_history(kind: str, tmp_path: Path) -> None:
    storages = {
        "memory": lambda: optuna.storages.InMemoryStorage(),
        "journal": lambda: optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "log"))),
        "address": lambda: f"sqlite:///{tmp_path / 'trials.db'}",
    }
    rule = {"params": lambda arch: float(arch.count("1"))}
    expected = without_seconds(searched(executor=Told(**rule)))
    assert without_seconds(searched(executor=Told(**rule), storage=storages[kind]())) == expected


def test_optuna_is_told_what_does_not_change(tmp_path: Path) -> None:
    """Of a recipe the members and the costs, so that its dashboard shows numbers that can be compared."""
    rules = {"macs": lambda arch: float(arch.count("1")), "naswot": lambda arch: float(int(arch, 2))}
    kwargs = {"proxies": "without_blocks", "against": "params", "num_trials": 12}
    kwargs["executor"] = Told(**rules, params=lambda arch: 0.0)
    result = searched(storage=tmp_path / "trials.db", **kwargs)
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'trials.db'}")
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MAXIMIZE", "MINIMIZE"]
    for row, trial in zip(result, study.trials, strict=True):
        assert trial.user_attrs["claim"]["arch"] == row["arch"]
        assert trial.values == [row["macs"], row["naswot"], row["cost_params"]]


def card(arch: str) -> ScoreCard:
    return ScoreCard(arch, {"params": Score("params", 1.0)})


def test_of_two_that_claim_an_arch_at_once_not_both_get_it(tmp_path: Path) -> None:
    one, other = (Trials(tmp_path / "trials.db", "study", {}, ["maximize"]) for _ in range(2))
    mine, theirs = one.ask(), other.ask()
    assert one.claim(mine, "a", 0, most=5)
    assert not other.claim(theirs, "a", 0, most=5)
    theirs = other.ask()
    assert other.claim(theirs, "b", 0, most=5)
    one.finish(mine.number, card("a"), [1.0])
    other.finish(theirs.number, card("b"), [1.0])
    for trials in (one, other):
        trials.update()
        assert [trial.arch for trial in trials.finished] == ["a", "b"]
        assert not trials.claim(trials.ask(), "a", 0, most=5)


def test_there_are_never_more_trials_than_wanted(tmp_path: Path) -> None:
    one, other = (Trials(tmp_path / "trials.db", "study", {}, ["maximize"]) for _ in range(2))
    mine, theirs = one.ask(), other.ask()
    assert not other.claim(theirs, "a", 0, most=1)
    assert one.claim(mine, "b", 0, most=1)
    other.update()
    assert other.num_counted == 1


def test_a_claim_is_let_go_when_its_process_is_gone_and_kept_while_it_lives(tmp_path: Path) -> None:
    one = Trials(tmp_path / "trials.db", "study", {}, ["maximize"])
    assert one.claim(one.ask(), "a", 0, most=5)
    other = Trials(tmp_path / "trials.db", "study", {}, ["maximize"])
    assert other.knows("a")
    one.close()
    other.update()
    assert not other.knows("a")
    assert other.num_counted == 0


def test_a_trial_that_someone_else_ended_does_not_count(tmp_path: Path) -> None:
    trials = Trials(tmp_path / "trials.db", "study", {}, ["maximize"])
    trials.study.tell(trials.study.ask(), 3.0)
    trials.update()
    assert trials.num_counted == 0
    assert trials.finished == []


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("shopping: milk\n" * 100)
    with pytest.raises(Exception, match="not a database"):
        searched(storage=path)
    assert path.read_text() == "shopping: milk\n" * 100


def test_two_searches_in_one_storage_do_not_meet(tmp_path: Path) -> None:
    kwargs = {"storage": tmp_path / "trials.db", "sampler": SMALL, "num_trials": 6}
    first, second = (searched(seed=seed, **kwargs) for seed in (0, 1))
    assert len(first) == len(second) == 6
