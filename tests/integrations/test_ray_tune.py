"""The searcher of Ray Tune that runs Optuna takes the sampler: each configuration is the best of its proposals."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import TPESampler
from torch import nn

from lightning_zico import Leaderboard
from lightning_zico.integrations import ScreeningSampler
from tests.modules import make_batches, make_network

optuna_search = pytest.importorskip("ray.tune.search.optuna", exc_type=ImportError)

NUM_TRIALS = 5


def suggest(trial: Any) -> nn.Module:
    return make_network(trial.suggest_int("width", 1, 400))


def space(trial: Any) -> dict[str, Any]:
    suggest(trial)
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    return {"screening": trial.user_attrs["screening"]}


def result_of(config: dict[str, Any]) -> float:
    return abs(config["width"] - 200) + config["lr"]


def screened() -> ScreeningSampler:
    base = TPESampler(seed=0, n_startup_trials=2)
    return ScreeningSampler(base, suggest, make_batches(), 4, proxies="params", loss_fn=nn.CrossEntropyLoss())


def searched(search: Any, num_trials: int, first: int = 0) -> list[dict[str, Any]]:
    """Do what Tune does with a searcher, without a cluster."""
    configs = []
    for idx in range(first, first + num_trials):
        configs.append(search.suggest(str(idx)))
        search.on_trial_complete(str(idx), {"loss": result_of(configs[-1]), "training_iteration": 1})
    return configs


def make_search() -> Any:
    return optuna_search.OptunaSearch(space, metric="loss", mode="min", sampler=screened())


def test_a_configuration_is_the_best_of_its_proposals_and_the_one_of_a_study() -> None:
    configs = searched(make_search(), NUM_TRIALS)
    for config in configs:
        leaderboard = Leaderboard.from_dict(config["screening"])
        assert leaderboard.best == f"width={config['width']}"
        assert config["width"] == max(int(row["name"].removeprefix("width=")) for row in leaderboard)

    def objective(trial: optuna.Trial) -> float:
        return result_of({**space(trial), **trial.params})

    study = optuna.create_study(sampler=screened())
    study.optimize(objective, n_trials=NUM_TRIALS)
    assert [trial.params for trial in study.trials] == [{key: c[key] for key in ("width", "lr")} for c in configs]


def test_a_search_that_is_restored_goes_on_as_without_the_interruption(tmp_path: Path) -> None:
    search = make_search()
    begun = searched(search, 2)
    search.save(str(tmp_path / "search.pkl"))
    restored = make_search()
    restored.restore(str(tmp_path / "search.pkl"))
    resumed = begun + searched(restored, NUM_TRIALS - 2, first=2)
    widths = [config["width"] for config in searched(make_search(), NUM_TRIALS)]
    assert [config["width"] for config in resumed] == widths
