"""A storage outlives the processes that write to it, and several may scorer on it at once."""

import json
import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from lightning_zico import owners
from lightning_zico.errors import CacheError
from lightning_zico.results import Score, ScoreCard
from lightning_zico.scoring import SQLiteCache
from lightning_zico.search.trials import StorageError, Trials, quiet_optuna
from tests.processes import run_in_a_new_interpreter, started
from tests.search.program import NUM_TRIALS, main
from tests.search.searching import SMALL, ByRule, searched, without_seconds
from tests.search.spaces import Bits


def search_in(folder: Path, **environment: str) -> ForkServerProcess:
    return started(main, str(folder), **environment)


def exitcode_of(process: ForkServerProcess) -> int | None:
    process.join(timeout=300)
    return process.exitcode


def history_of(process: ForkServerProcess, folder: Path) -> list[dict[str, Any]]:
    assert exitcode_of(process) == 0
    return history_left_by(process.pid, folder)


def history_left_by(pid: int | None, folder: Path) -> list[dict[str, Any]]:
    rows = json.loads((folder / f"{pid}.json").read_text())["history"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def scored_in(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "scored.txt").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return history_left_by(run_in_a_new_interpreter(main, str(folder)), folder)


# While an arch is scored, which is then scored again, and no other; and while one is proposed.
@pytest.mark.parametrize(("when", "num_again"), [("DIE_AT", 1), ("DIE_PROPOSING", 0)])
def test_after_a_kill_a_search_goes_on_as_if_nothing_had_been(
    when: str, num_again: int, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert exitcode_of(search_in(tmp_path, **{when: "15"})) == -signal.SIGKILL
    assert 4 < len(scored_in(tmp_path)) < NUM_TRIALS
    history = history_of(search_in(tmp_path), tmp_path)
    assert history == undisturbed
    assert len({row["arch"] for row in history}) == NUM_TRIALS
    assert len(scored_in(tmp_path)) == NUM_TRIALS + num_again


@pytest.mark.slow
def test_a_kill_while_optuna_proposes_costs_no_trial(tmp_path: Path) -> None:
    assert exitcode_of(search_in(tmp_path, DIE_PROPOSING="15", OPTUNA="1")) == -signal.SIGKILL
    assert 4 < len(scored_in(tmp_path)) < NUM_TRIALS
    history = history_left_by(run_in_a_new_interpreter(main, str(tmp_path), OPTUNA="1"), tmp_path)
    assert len({row["arch"] for row in history}) == NUM_TRIALS
    assert len(scored_in(tmp_path)) == NUM_TRIALS
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'trials.db'}")
    assert all(trial.state.is_finished() for trial in study.trials)


def test_two_processes_share_a_search_and_score_nothing_twice(tmp_path: Path) -> None:
    both = [search_in(tmp_path, TOGETHER="2") for _ in range(2)]
    histories = [history_of(process, tmp_path) for process in both]
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
    expected = without_seconds(searched(executor=ByRule(**rule)))
    assert without_seconds(searched(executor=ByRule(**rule), storage=storages[kind]())) == expected


def test_optuna_gets_the_numbers_that_do_not_change(tmp_path: Path) -> None:
    """Of a recipe the members and the costs, so that its dashboard shows numbers that can be compared."""
    rules = {"macs": lambda arch: float(arch.count("1")), "naswot": lambda arch: float(int(arch, 2))}
    kwargs = {"proxies": "without_blocks", "against": "params", "num_trials": 12}
    kwargs["executor"] = ByRule(**rules, params=lambda arch: 0.0)
    result = searched(storage=tmp_path / "trials.db", **kwargs)
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'trials.db'}")
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MAXIMIZE", "MINIMIZE"]
    for row, trial in zip(result.history, study.trials, strict=True):
        assert trial.user_attrs["claim"]["arch"] == row["arch"]
        assert trial.values == [row["macs"], row["naswot"], row["cost_params"]]


def card(arch: str, error: str | None = None) -> ScoreCard:
    return ScoreCard(arch, {"params": Score("params", 1.0 if error is None else None, error)})


def trials_in(folder: Path) -> Trials:
    return Trials(folder / "trials.db", "study", {}, ["maximize"])


def claimed(trials: Trials, arch: str, number: int | None = None) -> int:
    number = trials.claim(arch, 0, most=5, number=number)
    assert number is not None
    return number


def asked(trials: Trials) -> int:
    number, _ = trials.ask(lambda trial: trial.suggest_int("bit", 0, 1)) or (None, None)
    assert number is not None
    return number


def test_two_that_claim_an_arch_do_not_both_get_it(tmp_path: Path) -> None:
    one, other = trials_in(tmp_path), trials_in(tmp_path)
    mine = claimed(one, "a")
    assert other.claim("a", 0, most=5) is None
    theirs = claimed(other, "b")
    one.finish(mine, card("a"), [1.0])
    other.finish(theirs, card("b"), [1.0])
    for trials in (one, other):
        trials.update()
        assert [trial.arch for trial in trials.finished] == ["a", "b"]
        assert trials.claim("a", 0, most=5) is None


@pytest.mark.parametrize("first", [0, 1])
def test_two_that_asked_and_claim_an_arch_do_not_both_get_it(first: int, tmp_path: Path) -> None:
    both = [trials_in(tmp_path), trials_in(tmp_path)]
    numbers = [asked(trials) for trials in both]
    claimed(both[first], "a", numbers[first])
    assert both[1 - first].claim("a", 0, most=5, number=numbers[1 - first]) is None


def test_there_are_never_more_trials_than_wanted(tmp_path: Path) -> None:
    one, other = trials_in(tmp_path), trials_in(tmp_path)
    numbers = [asked(one), asked(other)]
    assert other.num_counted == 0
    assert other.claim("a", 0, most=1, number=numbers[1]) == numbers[1]
    assert one.claim("b", 0, most=1, number=numbers[0]) is None
    assert one.claim("b", 0, most=1) is None
    one.update()
    assert one.num_counted == 1


def test_a_claim_is_released_when_its_run_ends(tmp_path: Path) -> None:
    one = trials_in(tmp_path)
    claimed(one, "a")
    other = trials_in(tmp_path)
    assert other.knows("a")
    assert other.num_elsewhere == 1
    one.close()
    other.update()
    assert not other.knows("a")
    assert other.num_counted == 0


def end_by_hand(folder: Path, number: int = -1) -> None:
    """End a trial, the last one if not said, as a dashboard does."""
    with quiet_optuna():
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'trials.db'}")
        study.tell(study.trials[number].number, state=optuna.trial.TrialState.FAIL)


def test_a_trial_that_someone_else_ended_does_not_count(tmp_path: Path) -> None:
    trials = trials_in(tmp_path)
    trials.study.tell(trials.study.ask(), 3.0)
    trials.study.ask()
    trials.study.enqueue_trial({})
    numbers = [asked(trials), asked(trials), claimed(trials, "b"), claimed(trials, "c")]
    for number in numbers[:3]:
        end_by_hand(tmp_path, number)
    assert trials.claim("a", 0, most=5, number=numbers[0]) is None
    trials.discard(numbers[1], "known")
    trials.update()
    assert trials.knows("b")  # as long as it is being scored
    trials.finish(numbers[2], card("b"), [1.0])
    trials.update()
    assert not trials.knows("b")
    assert trials.finished == []
    assert (trials.num_counted, trials.num_elsewhere) == (1, 0)


class Disturbed(ByRule):
    """Lets someone end the trial that it is at, for some of the archs that it is given."""

    def __init__(self, folder: Path, at: set[int]) -> None:
        super().__init__(params=lambda arch: float(arch.count("1")))
        self.folder, self.at = folder, at

    def run(self, scorers: Any, jobs: Any) -> Any:
        for result in super().run(scorers, jobs):
            if len(self.asked) in self.at:
                end_by_hand(self.folder)
            yield result


@pytest.mark.parametrize("sampler", [SMALL, optuna.samplers.RandomSampler(seed=0)])
def test_a_search_makes_up_for_trials_that_someone_ended(sampler: Any, tmp_path: Path) -> None:
    executor = Disturbed(tmp_path, at={3, 20, 22})
    result = searched(storage=tmp_path / "trials.db", executor=executor, sampler=sampler)
    assert len({row["arch"] for row in result}) == len(result) == 20
    assert len(executor.asked) == 23


class Interrupted(Bits):
    """Someone ends the trial for which an arch is suggested, once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.num_asked = folder, 0

    def suggest(self, trial: Any) -> str:
        self.num_asked += 1
        if self.num_asked == 3:
            end_by_hand(self.folder)
        return super().suggest(trial)


def test_a_trial_that_someone_ended_while_optuna_proposes_is_made_up_for(tmp_path: Path) -> None:
    sampler = optuna.samplers.RandomSampler(seed=0)
    assert len(searched(Interrupted(tmp_path), storage=tmp_path / "trials.db", sampler=sampler)) == 20


@pytest.mark.parametrize(("error", "num_again"), [("took more than 1 s", 1), ("NonFiniteError: it is nan", 0)])
def test_a_new_run_of_a_search_tries_again_what_failed_for_a_reason_that_may_pass(
    error: str, num_again: int, tmp_path: Path
) -> None:
    class Failing(ByRule):
        """Fails once."""

        def run(self, scorers: Any, jobs: Any) -> Any:
            for job, done in super().run(scorers, jobs):
                fails = len(self.asked) == 5
                yield job, ScoreCard.failed(done.name, ["params"], error, 1.0) if fails else done

    rule = {"params": lambda arch: float(arch.count("1"))}
    arguments = {"storage": tmp_path / "trials.db", "num_trials": 64}  # all of the space
    first, again = Failing(**rule), ByRule(**rule)
    assert set(searched(executor=first, **arguments).errors) == {first.asked[4]}
    assert len(first.asked) == 64
    result = searched(executor=again, **arguments)
    assert again.asked == [first.asked[4]] * num_again
    assert (len(result), len(result.errors)) == (64, 1 - num_again)


def test_a_failure_counts_as_long_as_the_run_that_met_it_goes_on(tmp_path: Path) -> None:
    one = trials_in(tmp_path)
    one.finish(claimed(one, "a"), card("a", "took more than 1 s"), [None])
    assert trials_in(tmp_path).knows("a")
    one.close()
    one.update()
    assert one.knows("a")
    assert not trials_in(tmp_path).knows("a")


def test_if_two_runs_score_an_arch_the_last_result_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trials_in(tmp_path)
    one.finish(claimed(one, "a"), card("a", "took more than 1 s"), [None])
    one.update()
    with monkeypatch.context() as patch:
        patch.setattr(owners, "_place", lambda: owners.Place("another machine", None, None, None))
        other = trials_in(tmp_path)
        other.finish(claimed(other, "a"), card("a"), [1.0])
    one.update()
    assert [trial.card.error or trial.card["params"].error for trial in one.finished] == [None]
    assert one.num_counted == 1


def run_in(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x FROM r"
FOREIGN: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("shopping: milk\n" * 100),
    "empty file": lambda path: path.touch(),
    "another program's database": lambda path: run_in(path, "CREATE TABLE users (id)"),
    "another program's database with a log": lambda path: run_in(
        path, "PRAGMA journal_mode = WAL", "CREATE TABLE users (id)"
    ),
    "cache": SQLiteCache,
    "database without tables": lambda path: run_in(path, "CREATE TABLE t (a)", "DROP TABLE t"),
    "endless views": lambda path: run_in(
        path, *(f"CREATE VIEW {table} AS {ENDLESS}" for table in ("studies", "trials", "version_info"))
    ),
    "trigger": lambda path: run_in(
        path,
        *(f"CREATE TABLE {table} (id)" for table in ("studies", "trials", "version_info")),
        f"CREATE TRIGGER t BEFORE INSERT ON studies BEGIN INSERT INTO trials {ENDLESS}; END",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_a_search_has_not_made_is_refused_and_left_as_it_is(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "trials.db"
    FOREIGN[kind](path)
    before = path.read_bytes()
    for storage in (path, f"sqlite:///{path}", f"sqlite:///file:{path}?uri=true"):
        with pytest.raises(StorageError, match="Existing data was not changed"):
            Trials(storage, "study", {}, ["maximize"])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["trials.db"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes with names")
def test_a_pipe_is_not_a_file_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="it is not a file"):
        trials_in_file(tmp_path / "pipe")
    with pytest.raises(CacheError, match="it is not a file"):
        SQLiteCache(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["what?", "a#b", "100%41", "ünï ☃", "{x}", "semi;colon&x=1", "t.db?mode=memory"])
def test_a_path_is_the_path_of_the_file(name: str, tmp_path: Path) -> None:
    for path in (tmp_path / name, str(tmp_path / name)):
        trials = trials_in_file(path)
        trials.finish(claimed(trials, f"{type(path)}"), card("a"), [1.0])
        trials.close()
    assert len(trials_in_file(tmp_path / name).finished) == 2
    SQLiteCache(tmp_path / f"{name}.cache").write("candidate", {"proxy": "1"})
    assert {file.name.removesuffix("-wal").removesuffix("-shm") for file in tmp_path.iterdir()} == {
        name,
        f"{name}.cache",
    }


def trials_in_file(path: Path | str) -> Trials:
    return Trials(path, "study", {}, ["maximize"])


def test_a_foreign_study_in_the_same_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with quiet_optuna():
        study = optuna.create_study(storage=f"sqlite:///{path}", study_name="theirs")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with pytest.raises(StorageError, match="'theirs' in `storage` was not begun by a search of this package"):
        searched(storage=path, name="theirs", num_trials=2)
    again = optuna.load_study(storage=f"sqlite:///{path}", study_name="theirs")
    assert again.user_attrs == {}
    assert [trial.user_attrs for trial in again.trials] == [{}, {}]


def test_two_searches_in_one_storage_do_not_meet(tmp_path: Path) -> None:
    kwargs = {"storage": tmp_path / "trials.db", "sampler": SMALL, "num_trials": 6}
    first, second = (searched(seed=seed, **kwargs) for seed in (0, 1))
    assert len(first) == len(second) == 6


def test_what_cannot_hold_trials_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database\n" * 100, encoding="utf-8")
    for storage in (tmp_path / "none" / "t.db", tmp_path, tmp_path / "notes.txt", "postgres://nobody@127.0.0.1:9/x"):
        with pytest.raises(StorageError, match=r"cannot be opened: .* Pass the path of a file in an existing folder"):
            Trials(storage, "study", {}, ["maximize"])
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8").startswith("no database")
    with pytest.raises(TypeError, match=r"Invalid storage=5: expected None, a path"):
        Trials(5, "study", {}, ["maximize"])  # type: ignore[arg-type]
