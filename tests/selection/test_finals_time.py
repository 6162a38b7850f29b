"""With a time budget, as many finalists are trained as fit, and there is always a winner."""

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_zico import Leaderboard, ZeroShotSelector
from lightning_zico.errors import InvalidArgumentError
from lightning_zico.selection import finalist as finalist_module
from lightning_zico.selection.final_cache import FinalsCache
from lightning_zico.selection.finalist import Conditions, Finalist
from lightning_zico.selection.rounds import FinalsRules, borrowed, hold_finals
from tests.selection.test_finals import Data, Raising, Saying, selector_of, trainer_of


class Timed(Finalist):
    """Takes a given time per epoch; the earlier ones are better."""

    def __init__(self, idx: int, cost: float, error: str | None = None) -> None:
        super().__init__([type("T", (), {"name": str(idx), "logs_monitor": True, "not_logged": None})()])  # type: ignore[list-item]
        self.idx, self.cost, self.spent, self.broken = idx, cost, 0.0, error

    @property
    def seconds(self) -> float:
        return self.spent

    def play(self, conditions: Conditions) -> None:
        self.spent += self.cost * conditions.num_epochs
        self.error = self.broken
        if self.error is None:
            self.rounds.append((float(self.idx),))


def hold(costs: list[float], time_budget_s: float | None, num_failing: int = 0, **kwargs: Any) -> list[Finalist]:
    finalists: list[Finalist] = []
    rules = FinalsRules(finalists=max(len(costs), 2), time_budget_s=time_budget_s, **kwargs)
    coming = (Timed(idx, cost, "broken" if idx < num_failing else None) for idx, cost in enumerate(costs))
    hold_finals(coming, trainer_of(), {}, finalists=finalists, rules=rules)
    return finalists


def cost_of(num: int) -> int:
    """Count the trainings of all rounds in a loop of its own."""
    total, left = num, num
    while num > 4 and left > 2:
        left = left // 2 + left % 2
        total += left
    return total


@pytest.mark.parametrize("final_epochs", [1, 3])
@pytest.mark.parametrize("time_budget_s", [0.5, 3, 4.5, 9.9, 10, 14, 20.5, 1000])
def test_as_many_take_part_as_fit_with_all_their_rounds(time_budget_s: float, final_epochs: int) -> None:
    finalists = hold([1.0] * 12, time_budget_s * final_epochs, final_epochs=final_epochs)
    fitting = [num for num in range(1, 13) if cost_of(num) <= time_budget_s]
    assert len(finalists) == max(fitting, default=1)
    if fitting:
        spent = sum(finalist.seconds for finalist in finalists)
        assert spent == cost_of(len(finalists)) * final_epochs <= time_budget_s * final_epochs
    assert finalists[0].name == "0"


def test_without_a_budget_time_does_not_matter() -> None:
    assert len(hold([math.inf] * 12, None)) == 12


def test_one_must_succeed_however_long_it_takes() -> None:
    finalists = hold([5.0] * 6, 1.0, num_failing=3)
    assert [finalist.name for finalist in finalists] == ["3", "0", "1", "2"]
    assert [finalist.error for finalist in finalists] == [None, "broken", "broken", "broken"]


def test_a_round_that_no_longer_fits_is_not_hold() -> None:
    # All are expected to take as long as those before them, but the last and worst one takes far longer.
    finalists = hold([1.0] * 7 + [50.0], 14.0)
    assert [finalist.num_rounds for finalist in finalists] == [1] * 8
    # With time for one more round of four, and not for that of two.
    finalists = hold([1.0] * 7 + [2.5], 14.0)
    assert [finalist.num_rounds for finalist in finalists] == [2] * 4 + [1] * 4


def test_a_budget_that_is_too_small_for_one_finalist_ends_with_a_trained_winner() -> None:
    trainer = trainer_of()
    builds = {"broken": partial(Raising, 9), **{str(idx): partial(Saying, -idx, 0.5 - idx / 10) for idx in range(4)}}
    selector = selector_of(trainer, 4, time_budget_s=1e-9).fit(builds, Data())
    leaderboard = selector.leaderboard_
    assert [row["name"] for row in leaderboard] == ["0", "1", "2", "3", "broken"]
    assert [row["final_epochs"] for row in leaderboard] == [1, None, None, None, 0]
    assert selector.best_model_.numbers["own"] == 0
    assert trainer.current_epoch == 4
    assert leaderboard.notes[:2] == [
        "Finals: the first 2 by score were trained for 1 epoch; the lowest val_loss won.",
        "The time of 1e-09 s was enough for 2 of 4 finalists.",
    ]


@pytest.mark.slow
def test_the_ranker_chooses_the_same_ones_as_without_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    trained: list[float] = []

    class Slow(Saying):
        def on_train_epoch_end(self) -> None:
            nonlocal now
            now += 1.0
            trained.append(self.numbers["own"])

    monkeypatch.setattr(finalist_module, "time", SimpleNamespace(perf_counter=lambda: now))
    builds = {str(idx): partial(Slow, -idx, 1 - idx / 20) for idx in range(12)}
    firsts = []
    for time_budget_s, num in [(None, 10), (19.0, 9)]:
        assert time_budget_s in (None, cost_of(num))
        trained.clear()
        selector = selector_of(trainer_of(5), 10, time_budget_s=time_budget_s).fit(builds, Data())
        rows = selector.leaderboard_.rows
        assert sum(row["final"] is not None for row in rows) == num
        assert selector.trainer.current_epoch == 5
        firsts.append(trained[:num])
    assert firsts[1] == firsts[0][:9]


@pytest.mark.parametrize("cache", [None, "scores.db"])
def test_seconds_are_those_of_all_epochs_and_of_failures(
    cache: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    class Slow(Saying):
        def on_train_epoch_start(self) -> None:
            nonlocal now
            now += self.values[0]
            if self.values[0] == 7:
                raise RuntimeError("no more")

    monkeypatch.setattr(finalist_module, "time", SimpleNamespace(perf_counter=lambda: now))
    trainings = {}
    conditions = {"num_epochs": 2, "monitor": "val_loss"}
    for values in [(1.0,), (2.0, float("nan")), (7.0,)]:
        build = partial(Slow, 0, *values)
        trainings[values[0]] = finalist_module.Training("x", build, tmp_path / "checkpoint", 0)
        trainer = trainer_of(5)
        opened = FinalsCache.of(cache and tmp_path / cache, trainer, {}, monitor="val_loss", batches_hash=None)
        with borrowed(trainer) as rewind:
            own = finalist_module.Conditions(trainer, {"datamodule": Data()}, rewind, cache=opened, **conditions)
            for _ in range(2 if values[0] == 1 else 1):
                trainings[values[0]].play(own)
    assert {cost: training.seconds for cost, training in trainings.items()} == {1: 4, 2: 4, 7: 7}
    assert [training.num_epochs for training in trainings.values()] == [4, 2, 0]


@pytest.mark.parametrize("cache", [None, "scores.db"])
def test_seconds_contain_building_and_storing(
    cache: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, num_builds = 0.0, 0

    def build() -> Saying:
        nonlocal now, num_builds
        now, num_builds = now + 100.0, num_builds + 1
        return Saying(0, 1.0)

    def store(*_: Any) -> None:
        nonlocal now
        now += 7.0

    monkeypatch.setattr(finalist_module, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(finalist_module.StoredTraining, "store", store)
    training = finalist_module.Training("x", build, tmp_path / "checkpoint", 0)
    trainer = trainer_of(5)
    opened = FinalsCache.of(cache and tmp_path / cache, trainer, {}, monitor="val_loss", batches_hash=None)
    with borrowed(trainer) as rewind:
        data = {"datamodule": Data()}
        training.play(Conditions(trainer, data, rewind, 3, "val_loss", patience=9, cache=opened))
    assert training.num_epochs == 3
    # One in each epoch, one to see whether models share memory, and one for the fingerprint.
    assert num_builds == 4 + (cache is not None)
    assert training.seconds == now


def test_a_note_says_how_far_the_time_went() -> None:
    builds = {str(idx): partial(Saying, -idx, 0.5) for idx in range(8)}
    leaderboard = selector_of(trainer_of(), 8, time_budget_s=1000).fit(builds, Data()).leaderboard_
    assert "The time of 1,000 s was enough for 8 of 8 finalists." in leaderboard.notes
    assert finals_note(leaderboard, time_budget_s=12345.6) == "The time of 12,346 s was enough for 8 of 8 finalists."
    cut = {"rounds": [1, 3], "lacked_time": True}
    assert finals_note(leaderboard, **cut) == (
        "The time of 1,000 s was enough for 8 of 8 finalists, and for 1 of 3 rounds."
    )


def finals_note(leaderboard: Leaderboard, **changes: Any) -> str:
    provenance = {**leaderboard.provenance, "finals": leaderboard.provenance["finals"] | changes}
    changed = Leaderboard(leaderboard.rows, provenance)
    assert Leaderboard.from_json(changed.to_json()) == changed
    return changed.notes[1]


def test_rounds_that_failures_ended_did_not_lack_time() -> None:
    builds = {"0": partial(Saying, -1, 0.5), **{str(idx): partial(Raising, -1 - idx) for idx in range(1, 6)}}
    leaderboard = selector_of(trainer_of(), 6, time_budget_s=1000).fit(builds, Data()).leaderboard_
    assert leaderboard.provenance["finals"]["rounds"] == [1, 3]
    assert leaderboard.notes[1] == "The time of 1,000 s was enough for 6 of 6 finalists."


@pytest.mark.parametrize(
    ("costs", "lacks_time"), [([1.0] * 8, False), ([1.0] * 7 + [2.5], True), ([1.0] * 7 + [50.0], True)]
)
def test_finals_tell_whether_there_was_no_time_for_a_round(costs: list[float], lacks_time: bool) -> None:
    entrants = (Timed(idx, cost) for idx, cost in enumerate(costs))
    rules = FinalsRules(finalists=8, time_budget_s=14.0)
    assert hold_finals(entrants, trainer_of(), {}, finalists=[], rules=rules) is lacks_time


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"time_budget_s": 0, "finalists": 3}, "Invalid time_budget_s=0: expected a positive number or None"),
        ({"time_budget_s": "1 h", "finalists": 3}, "Invalid time_budget_s='1 h'"),
        ({"time_budget_s": math.inf, "finalists": 3}, "Invalid time_budget_s=inf: expected a finite number, or None"),
        ({"time_budget_s": 60}, "Invalid finalists=1 with `time_budget_s=60`: expected at least 2"),
        ({"time_budget_s": 60, "finalists": 9, "learn": "rank"}, "with `learn='rank'`: expected None"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        ZeroShotSelector(**kwargs)
