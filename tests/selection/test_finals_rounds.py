"""Rounds: how many are dropped, who is not, and what ends a training early."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_zico import ZeroShotSelector
from lightning_zico.errors import InvalidArgumentError
from lightning_zico.selection.finalist import Conditions, Finalist, end_of_patience
from lightning_zico.selection.finals import finals_rules
from lightning_zico.selection.rounds import FinalsRules, hold_finals
from tests.modules import assert_same
from tests.selection.test_finals import Data, Net, Saying, selector_of, trainer_of


def test_the_rules_have_the_defaults_of_the_selector() -> None:
    assert FinalsRules() == finals_rules(ZeroShotSelector())


class Scripted(Finalist):
    """Has given values after each round."""

    def __init__(self, name: str, values: Any) -> None:
        super().__init__([type("T", (), {"name": name, "logs_monitor": True, "not_logged": None, "seconds": 0.0})()])  # type: ignore[list-item]
        self.values = values

    def play(self, conditions: Conditions) -> None:
        self.rounds.append((float(self.values[self.num_rounds]),))


def rounds_of(table: Any, **kwargs: Any) -> list[set[int]]:
    """Hold finals, and return who took part in each round."""
    finalists: list[Finalist] = []
    scripted = [Scripted(str(idx), row) for idx, row in enumerate(table)]
    hold_finals(scripted, trainer_of(), {}, finalists=finalists, rules=FinalsRules(finalists=len(table), **kwargs))
    num_rounds = max(finalist.num_rounds for finalist in finalists)
    return [{int(own.name) for own in finalists if own.num_rounds > idx} for idx in range(num_rounds)]


@pytest.mark.parametrize("reduction_factor", [None, 2, 3, 4, 10])
def test_the_number_falls_by_the_factor_for_any_number_of_finalists(reduction_factor: int | None) -> None:
    for num in range(2, 14):
        expected, factor = [num], reduction_factor or (2 if num > 4 else 99)
        while expected[-1] > factor:
            expected.append(-(-expected[-1] // factor))
        table = [[idx] * 9 for idx in range(num)]  # the same order in each round
        found = rounds_of(table, reduction_factor=reduction_factor)
        assert found == [set(range(size)) for size in expected]
        assert [*map(len, found)] == FinalsRules(reduction_factor=reduction_factor).round_sizes(num)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("least", [0.5, 0.9, -1.0])
def test_no_finalist_is_dropped_after_a_round_that_agrees_too_little_with_the_one_before(
    factor: int, least: float
) -> None:
    rng = np.random.default_rng(factor)
    num_without_drop = 0
    for _ in range(25):
        num = int(rng.integers(6, 17))
        table = rng.normal(size=(num, 1)) * rng.choice([0, 1, 3]) + rng.normal(size=(num, 6))
        num_rounds = math.ceil(round(math.log(num, factor), 9))  # sizes fall as ceil(k / factor^r)
        left, expected = set(range(num)), []
        for idx in range(num_rounds):
            if len(left) < 2:
                break
            expected.append(left)
            order = sorted(left, key=lambda own: table[own, idx])
            tau = 1.0
            if idx and len(left) >= 4:
                tau = stats.kendalltau(table[order, idx - 1], table[order, idx]).statistic
            num_without_drop += tau < least
            left = left if tau < least else set(order[: -(-len(order) // factor)])
        assert rounds_of(table, reduction_factor=factor, least_agreement=least) == expected
    assert num_without_drop > 3 or (least, num_without_drop) == (-1, 0)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_patience_ends_as_early_stopping_does(mode: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = [None if rng.random() < 0.2 else float(rng.integers(0, 9)) for _ in range(12)]
        patience = int(rng.integers(1, 5))
        read = [(idx, value if mode == "min" else -value) for idx, value in enumerate(values, 1) if value is not None]
        expected = None
        for place in range(patience, len(read)):
            before, last = read[: place - patience + 1], read[place - patience + 1 : place + 1]
            if min(value for _, value in last) >= min(value for _, value in before):
                expected = read[place][0]
                break
        assert end_of_patience(values, patience, mode) == expected


def test_a_training_that_does_not_improve_ends_and_keeps_its_last_value(tmp_path: Path) -> None:
    values = {"falls": [0.9, 0.8, 0.7, 0.6, 0.5], "rises": [0.1, 0.2, 0.65, 0.0], "late": [0.5, 0.6, 0.4, 0.7, 0.75]}
    builds = {name: partial(Saying, -idx, *own) for idx, (name, own) in enumerate(values.items())}
    for cache in (None, tmp_path / "scores.db", tmp_path / "scores.db"):
        trainer = trainer_of(6)
        selector = selector_of(trainer, 3, final_epochs=5, patience=2, cache=cache).fit(builds, Data())
        rows = {row["name"]: (row["final_epochs"], pytest.approx(row["final"])) for row in selector.leaderboard_}
        assert rows == {"falls": (5, 0.5), "rises": (3, 0.65), "late": (5, 0.75)}
        assert selector.leaderboard_.best == "falls"
        assert trainer.current_epoch == 6
    note = (
        "Finals: the first 3 by score were trained for 5 epochs, or until val_loss had not improved in 2 validations; "
    )
    assert selector.leaderboard_.notes[0] == f"{note}the lowest val_loss won."


def test_one_that_ended_keeps_its_value_in_later_rounds() -> None:
    builds = {str(idx): partial(Saying, -idx, idx / 10, idx / 10 + 0.01) for idx in range(5)}
    selector = selector_of(trainer_of(6), 5, patience=1).fit(builds, Data())
    assert [row["final_epochs"] for row in selector.leaderboard_] == [2, 2, 2, 1, 1]
    assert selector.leaderboard_.provenance["finals"]["rounds"] == [3, 3]


def test_patience_that_does_not_run_out_changes_nothing() -> None:
    builds = {str(idx): partial(Net, -idx, 10 ** -(1 + idx), 0.5) for idx in range(2)}
    plain, patient = (
        selector_of(trainer_of(5), 2, final_epochs=3, patience=patience).fit(builds, Data(True))
        for patience in (None, 99)
    )
    assert [row["final"] for row in plain.leaderboard_] == [row["final"] for row in patient.leaderboard_]
    assert_same(plain.best_model_.state_dict(), patient.best_model_.state_dict())


def test_notes_name_the_factor_and_who_agreed() -> None:
    builds = {str(idx): partial(Saying, -idx, idx / 10) for idx in range(12)}
    leaderboard = selector_of(trainer_of(6), 12, reduction_factor=3, learn=False).fit(builds, Data()).leaderboard_
    note = "Finals: the first 12 by score were trained for 1 epoch, then the best 1 in 3 for 1 more, and so on; "
    assert leaderboard.notes[0] == f"{note}the lowest val_loss won."
    start = "Kendall's tau between the order of 4 finalists after 1 epoch and after 2 epochs is 1.00 ["
    (agreement,) = [note for note in leaderboard.notes if note.startswith(start)]
    assert agreement.endswith(", 1.00].")


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"reduction_factor": 1}, "Invalid reduction_factor=1: expected a whole number of at least 2"),
        ({"reduction_factor": 2.5}, "Invalid reduction_factor=2.5"),
        ({"least_agreement": 1.5}, "Invalid least_agreement=1.5: expected a Kendall's tau from -1 to 1"),
        ({"least_agreement": True}, "Invalid least_agreement=True"),
        ({"least_agreement": float("nan")}, "Invalid least_agreement=nan"),
        ({"patience": 0}, "Invalid patience=0: expected a whole number of at least 1"),
    ],
)
def test_other_factors_and_patience_are_refused(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        ZeroShotSelector(finalists=3, **kwargs)


def test_numbers_of_numpy_are_stored_as_ints() -> None:
    names = ("finalists", "final_epochs", "final_seeds", "reduction_factor", "patience")
    rules = FinalsRules(**{name: np.int64(2) for name in names})
    selector = ZeroShotSelector(**{name: np.int64(2) for name in names})
    assert all(type(getattr(own, name)) is int for own in (rules, selector) for name in names)


def test_more_rounds_than_the_trainer_has_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="`max_epochs=2`, but 4 finalists are trained for up to 2 epochs"):
        selector_of(trainer_of(2), 4, reduction_factor=2).fit([lambda: pytest.fail("built")], Data())


def test_a_finalist_that_diverges_is_a_row_with_the_reason() -> None:
    class Diverging(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 1e12)

    builds = {"diverges": partial(Diverging, 2), "trains": partial(Net, 1)}
    selector = selector_of(trainer_of(4), 2, final_epochs=2).fit(builds, Data())
    assert selector.leaderboard_.best == "trains"
    assert selector.leaderboard_.errors == {"diverges": "finals: ValueError: `val_loss` is nan after training."}
