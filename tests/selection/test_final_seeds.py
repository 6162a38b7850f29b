"""Finals with several seeds: the mean decides, and what the seeds cannot distinguish is a tie."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback
from scipy import stats

from lightning_zico import Leaderboard, Score, ScoreCard, ZeroShotSelector
from lightning_zico.engine.scope import preserved_rng, seed_all
from lightning_zico.results import Final
from lightning_zico.selection.finalist import Conditions, Finalist
from lightning_zico.selection.rounds import difference_margin, find_tie
from tests.modules import assert_same
from tests.selection.test_finals import Data, Net, Raising, Saying, selector_of, trainer_of


class Stop(Callback):
    """Ends training after some epochs."""

    def __init__(self, num_epochs: int) -> None:
        self.num_epochs = num_epochs

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.num_epochs


def losses_of(build: Any, seeds: range, num_epochs: int) -> list[float]:
    """Train with each seed alone."""
    losses = []
    for seed in seeds:
        with preserved_rng(seed):
            model = build()
        seed_all(seed)
        trainer = trainer_of(4)  # the schedule covers the whole training
        trainer.callbacks.append(Stop(num_epochs))
        trainer.fit(model, datamodule=Data(True))
        losses.append(trainer.callback_metrics["val_loss"].item())
    return losses


def test_each_seed_is_a_training_of_its_own_and_the_mean_decides() -> None:
    builds = {"a": partial(Net, 1), "b": partial(Net, 0, 0.1)}
    selector = selector_of(final_epochs=2, final_seeds=3).fit(builds, Data(True))
    leaderboard = selector.leaderboard_
    expected = {name: losses_of(build, range(5, 8), 2) for name, build in builds.items()}
    for row in leaderboard:
        own = expected[row["name"]]
        assert len(set(own)) == 3
        assert row["final"] == np.mean(own)
        assert row["final_std_error"] == pytest.approx(stats.sem(own))
        assert row["final_epochs"] == 2
    assert leaderboard.best == min(expected, key=lambda name: np.mean(expected[name]))
    assert leaderboard.columns[3:7] == ["final", "final_rank", "final_epochs", "final_std_error"]
    assert Leaderboard.from_json(leaderboard.to_json()) == leaderboard
    # The winner goes on from its first seed.
    one = selector_of(final_epochs=2).fit({leaderboard.best: builds[leaderboard.best], "z": Raising}, Data(True))
    assert_same(selector.best_model_.state_dict(), one.best_model_.state_dict())


def test_one_seed_changes_nothing() -> None:
    builds = {"a": partial(Net, 1), "b": partial(Net, 0, 0.1)}
    plain, other = (selector_of(**kwargs).fit(builds, Data()).leaderboard_ for kwargs in ({}, {"final_seeds": 1}))
    assert [dict(row, seconds=0) for row in plain] == [dict(row, seconds=0) for row in other]
    assert "final_std_error" not in plain.columns
    assert plain.notes == other.notes


def test_a_failure_with_one_seed_is_a_failure() -> None:
    class Fragile(Saying):
        def on_train_start(self) -> None:
            if self.trainer is trainer and self.network[0].weight.flatten()[0] != first:
                raise RuntimeError("not with these weights")

    with preserved_rng(5):
        first = Fragile(1.0, 0.0).network[0].weight.flatten()[0].item()
    trainer = trainer_of()
    selector = selector_of(trainer, final_seeds=2)
    leaderboard = selector.fit({"a": partial(Fragile, 1.0, 0.0), "b": partial(Saying, 0.0, 1.0)}, Data()).leaderboard_
    assert leaderboard.best == "b"
    assert "not with these weights" in leaderboard.errors["a"]


def finalist(name: str, by_seed: tuple[float, ...], num_rounds: int = 1, error: str | None = None) -> Finalist:
    own = Finalist([type("T", (), {"name": name})()])  # type: ignore[list-item]
    own.rounds, own.error = [by_seed] * num_rounds, error
    return own


def test_a_tie_of_two_is_what_a_paired_t_test_cannot_distinguish() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(loc=loc, scale=0.3, size=4) for loc in (0.0, 0.1, 0.5, 2.0)]
    own = [finalist(str(idx), tuple(row.tolist())) for idx, row in enumerate(rows)]
    for row, other in zip(rows[1:], own[1:], strict=True):
        expected = ["0", other.name] if stats.ttest_rel(rows[0], row).pvalue >= 0.05 else ["0"]
        assert find_tie([own[0], other]) == expected
    assert find_tie([own[0], finalist("x", own[0].by_seed, num_rounds=0)]) == ["0"]
    assert find_tie([own[0], finalist("x", (), error="broken")]) == ["0"]
    assert find_tie([own[0], finalist("x", own[0].by_seed)]) == ["0", "x"]


def test_two_seeds_tell_several_finalists_apart_by_the_noise_of_all() -> None:
    by_seed = [(0.10, 0.12), (0.11, 0.12), (0.30, 0.33), (0.50, 0.52), (0.70, 0.72)]
    own = [finalist(str(idx), values) for idx, values in enumerate(by_seed)]
    assert find_tie(own) == ["0", "1"]
    assert find_tie([own[0], own[2]]) == ["0"]
    noisy = finalist("noisy", (0.2, 0.5))
    assert find_tie([own[0], noisy]) == ["0", "noisy"]
    assert find_tie([*own, finalist("x", (9.0, 1.0), num_rounds=0)]) == ["0", "1"]


@pytest.mark.parametrize(("num", "num_seeds"), [(3, 2), (5, 4)])
def test_the_margin_of_several_is_that_of_a_linear_model(num: int, num_seeds: int) -> None:
    table = np.random.default_rng(0).normal(size=(num, num_seeds))
    rows, columns = (axis.ravel() for axis in np.indices(table.shape))
    design = np.hstack([np.eye(num)[rows], np.eye(num_seeds)[columns][:, 1:]])
    fitted, squares, rank, _ = np.linalg.lstsq(design, table.ravel(), rcond=None)
    num_free = table.size - rank
    contrast = np.eye(design.shape[1])[0] - np.eye(design.shape[1])[1]
    error = math.sqrt(squares[0] / num_free * (contrast @ np.linalg.inv(design.T @ design) @ contrast))
    assert difference_margin(table.tolist()) == pytest.approx(stats.t.ppf(0.975, num_free) * error)
    assert contrast @ fitted == pytest.approx(table[0].mean() - table[1].mean())


@pytest.mark.parametrize(("num", "num_seeds"), [(2, 2), (2, 8), (5, 2), (4, 3)])
def test_the_interval_of_a_difference_covers_the_truth_in_95_of_100_cases(num: int, num_seeds: int) -> None:
    generator = np.random.default_rng(0)
    seeds = generator.normal(size=(2000, 1, num_seeds))  # what all candidates share
    draws = np.arange(num)[None, :, None] + seeds + generator.normal(0, 2.0, size=(2000, num, num_seeds))
    covered = [abs(table[1].mean() - table[0].mean() - 1) <= difference_margin(table) for table in draws]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)  # the deviation of such a share is 0.005


def test_tables_without_noise_to_estimate_are_refused() -> None:
    for table in ([[1.0], [2.0]], [[1.0, 2.0]], [[1.0, 2.0], [1.0]], []):
        with pytest.raises(ValueError, match="expected at least 2 finalists, each with the same number of seeds"):
            difference_margin(table)


def test_a_round_that_was_interrupted_between_two_seeds_does_not_count() -> None:
    class Interrupted(KeyboardInterrupt):
        pass

    class Played:
        name, error, value, num_epochs = "a", None, None, 0

        def __init__(self, values: list[float]) -> None:
            self.values = iter(values)

        def play(self, conditions: Conditions) -> None:
            value = next(self.values, None)
            if value is None:
                raise Interrupted
            self.value, self.num_epochs = value, self.num_epochs + conditions.num_epochs

    trainings: Any = [Played([0.5, 0.1]), Played([0.7])]
    own = Finalist(trainings)
    conditions = Conditions(None, {}, lambda: None, 2, "val_loss")
    own.play(conditions)
    with pytest.raises(Interrupted):
        own.play(conditions)
    assert own.final == Final("a", 0.6, 2, by_seed=(0.5, 0.7))


def test_a_note_names_the_tie_and_the_smallest_of_it() -> None:
    sizes = {"a": 30.0, "b": 10.0, "c": 1.0}
    cards = [ScoreCard(name, {"params": Score("params", size)}) for name, size in sizes.items()]
    leaderboard = Leaderboard.of(cards, rank_by="params", columns=["params"])
    held = {"monitor": "m", "mode": "min", "finalists": 3, "final_epochs": 1, "halving": False, "seeds": 3}
    finals = [Final(name, 0.5, 1, by_seed=(0.4, 0.5, 0.6)) for name in "abc"]
    tied = leaderboard.with_finals(finals, {**held, "tie": ["a", "b"]})
    said = "2 finalists are a tie that 3 seeds cannot distinguish: a, b. b has the fewest parameters of these."
    assert said in tied.notes
    for num in (0, 1):  # of the rows that are not shown, nothing is known
        assert not any("fewest parameters" in note for note in tied.head(num).notes)
    clear = leaderboard.with_finals(finals, {**held, "tie": ["a"]})
    assert not any("tie" in note for note in clear.notes)


def test_the_number_of_seeds_is_checked() -> None:
    with pytest.raises(ValueError, match="Invalid final_seeds=0: expected a whole number of at least 1"):
        ZeroShotSelector(final_seeds=0)
