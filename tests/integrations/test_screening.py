"""A trial trains the best of its proposals, and for Optuna it is a trial like any other."""

import re
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    GridSampler,
    NSGAIISampler,
    PartialFixedSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from torch import nn

from lightning_zico import Candidate, Leaderboard, score
from lightning_zico.errors import InvalidArgumentError
from lightning_zico.integrations import ScreeningSampler
from tests.modules import make_batches, make_network

optuna.logging.set_verbosity(optuna.logging.WARNING)

LOSS = nn.CrossEntropyLoss()
NUM_CANDIDATES = 4
BY_PARAMS = {"proxies": "params", "loss_fn": LOSS, "num_candidates": NUM_CANDIDATES}

Suggest = Callable[[Any], nn.Module]


def suggest(trial: Any) -> nn.Module:
    """Suggest networks of two kinds, whose parameters differ."""
    if trial.suggest_categorical("kind", ["cnn", "mlp"]) == "cnn":
        return make_network(trial.suggest_int("channels", 1, 64))
    widths = [trial.suggest_int(f"width{idx}", 2, 64) for idx in range(trial.suggest_int("depth", 1, 2))]
    sizes = [50, *widths]
    hidden = [part for idx, width in enumerate(widths) for part in (nn.Linear(sizes[idx], width), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], 3))


def suggest_width(trial: Any) -> nn.Module:
    return make_network(trial.suggest_int("width", 1, 400))


def fail_if_wide(trial: Any) -> nn.Module:
    width = trial.suggest_int("width", 1, 400)
    if width > 200:
        raise ValueError("too wide")
    return make_network(width)


def by_size(trial: Any, suggest: Suggest = suggest) -> float:
    """An objective that needs no training, with a parameter of its own."""
    return trial.suggest_float("lr", 1e-4, 1e-1, log=True) + sum(p.numel() for p in suggest(trial).parameters())


def screened(base: BaseSampler, suggest: Suggest = suggest, **settings: Any) -> ScreeningSampler:
    return ScreeningSampler(base, suggest, make_batches(), **{**BY_PARAMS, **settings})


def studied(sampler: BaseSampler, num_trials: int = 4, suggest: Suggest = suggest, **kwargs: Any) -> optuna.Study:
    study = optuna.create_study(sampler=sampler, **kwargs)
    study.optimize(partial(by_size, suggest=suggest), n_trials=num_trials)
    return study


def proposed_by_hand(seed: int, num_proposals: int) -> list[dict[str, Any]]:
    """Draw parameters with a random sampler in a study without screening."""
    study = optuna.create_study(sampler=RandomSampler(seed))
    trials = [study.ask() for _ in range(num_proposals)]
    for trial in trials:
        suggest(trial)
    return [trial.params for trial in trials]


@pytest.mark.parametrize("proxy", ["zico", "params"])
def test_a_trial_gets_the_parameters_with_the_best_score_of_all_proposals(proxy: str) -> None:
    batches = make_batches()
    trial = optuna.create_study(sampler=screened(RandomSampler(3), proxies=proxy)).ask()
    suggest(trial)

    def score_of(params: dict[str, Any]) -> float:
        candidate = Candidate("by hand", partial(suggest, optuna.trial.FixedTrial(params)))
        value = score(candidate, batches, [proxy], LOSS)[proxy].value
        assert value is not None
        return value

    by_hand = {score_of(params): params for params in proposed_by_hand(3, NUM_CANDIDATES)}
    assert len(by_hand) == NUM_CANDIDATES
    assert trial.params == by_hand[max(by_hand)]
    leaderboard = Leaderboard.from_dict(trial.user_attrs["screening"])
    assert [row["score"] for row in leaderboard] == sorted(by_hand, reverse=True)
    assert leaderboard.best == ", ".join(f"{name}={value!r}" for name, value in trial.params.items())


def test_the_settings_are_those_of_a_selector() -> None:
    trial = studied(screened(RandomSampler(0), proxies=["zico", "params"], rank_by="params")).trials[0]
    rows = trial.user_attrs["screening"]["rows"]
    assert [row["params"] for row in rows] == sorted((row["params"] for row in rows), reverse=True)
    assert {"zico", "macs"} <= rows[0].keys()


@pytest.mark.parametrize(
    "make_sampler",
    [
        RandomSampler,
        TPESampler,
        partial(TPESampler, n_startup_trials=2, multivariate=True, group=True),
        NSGAIISampler,
        partial(BruteForceSampler),
        pytest.param(partial(QMCSampler, scramble=True), marks=pytest.mark.filterwarnings("ignore")),
    ],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_same_seed_makes_the_same_choices_and_another_others(make_sampler: Any) -> None:
    def choices(seed: int) -> list[dict[str, Any]]:
        study = optuna.create_study(sampler=screened(make_sampler(seed=seed)))
        study.optimize(lambda trial: float(sum(p.numel() for p in suggest(trial).parameters())), n_trials=5)
        return [trial.params for trial in study.trials]

    assert choices(0) == choices(0)
    assert choices(0) != choices(1)


def test_a_proposal_that_cannot_be_built_is_not_chosen() -> None:
    study = studied(screened(RandomSampler(0), fail_if_wide, num_candidates=8), suggest=fail_if_wide)
    rows = [row for trial in study.trials for row in trial.user_attrs["screening"]["rows"]]
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)
    assert max(trial.params["width"] for trial in study.trials) <= 200
    assert {row["error"] for row in rows} == {None, "does not build: ValueError: too wide"}


def test_a_proposal_that_prunes_itself_is_not_chosen() -> None:
    def prune_if_odd(trial: Any) -> nn.Module:
        width = trial.suggest_int("width", 1, 50)
        if width % 2:
            raise optuna.TrialPruned
        return make_network(width)

    study = studied(screened(RandomSampler(0), prune_if_odd, num_candidates=8), suggest=prune_if_odd)
    assert all(trial.params["width"] % 2 == 0 for trial in study.trials)


def test_where_all_proposals_fail_the_trial_gets_the_first_and_a_warning_says_so() -> None:
    def fail(trial: Any) -> nn.Module:
        raise ValueError(f"no networks of width {trial.suggest_int('width', 1, 400)}")

    study = optuna.create_study(sampler=screened(RandomSampler(0), fail))
    with pytest.warns(UserWarning, match=r"Trial 0 gets the first proposal \(width=\d+\).*All 4 candidates failed"):
        study.optimize(fail, n_trials=1, catch=ValueError)
    (trial,) = study.trials
    assert trial.state == optuna.trial.TrialState.FAIL
    first = optuna.create_study(sampler=RandomSampler(0)).ask().suggest_int("width", 1, 400)
    assert trial.params == {"width": first}
    assert len(Leaderboard.from_dict(trial.user_attrs["screening"]).errors) == NUM_CANDIDATES


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_storage_and_importances_see_the_parameters(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = studied(screened(TPESampler(seed=0), suggest_width), 6, suggest_width, storage=storage, study_name="a")
    loaded = optuna.load_study(study_name="a", storage=storage)
    assert [trial.params for trial in loaded.trials] == [trial.params for trial in study.trials]
    assert all(trial.params.keys() == trial.distributions.keys() == {"width", "lr"} for trial in loaded.trials)
    for trial in loaded.trials:
        leaderboard = Leaderboard.from_dict(trial.user_attrs["screening"])
        assert leaderboard.best == f"width={trial.params['width']}"
    study.set_metric_names(["size"])
    assert loaded.metric_names == ["size"]
    assert loaded.trials_dataframe()["value_size"].tolist() == [trial.value for trial in study.trials]
    importances = optuna.importance.get_param_importances(
        loaded, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
    )
    assert importances.keys() == {"width", "lr"}


@pytest.mark.parametrize(
    "pruner",
    [
        optuna.pruners.MedianPruner(n_startup_trials=1),
        optuna.pruners.HyperbandPruner(min_resource=1, max_resource=4, reduction_factor=2),
    ],
)
def test_pruners_prune_screened_trials(pruner: Any) -> None:
    def objective(trial: optuna.Trial) -> float:
        size = float(sum(p.numel() for p in suggest(trial).parameters()))
        for step in range(4):
            trial.report(size, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return size

    # With a name, since `HyperbandPruner` draws brackets by the name, which is random otherwise.
    study = optuna.create_study(study_name="pruned", sampler=screened(TPESampler(seed=0)), pruner=pruner)
    study.optimize(objective, n_trials=8)
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "PRUNED"}
    assert all("screening" in trial.user_attrs for trial in study.trials)


def test_what_only_the_objective_suggests_comes_from_the_base_sampler() -> None:
    class Fixed(RandomSampler):
        """Draws `lr` jointly with other parameters, and `momentum` by itself."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return {"lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return {"lr": 0.0123}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            if param_name == "momentum":
                assert trial.params.keys() == {"width", "lr"}
                return 0.5
            return super().sample_independent(study, trial, param_name, param_distribution)

    trial = optuna.create_study(sampler=screened(Fixed(0), suggest_width)).ask()
    by_size(trial, suggest_width)
    assert trial.params["lr"] == 0.0123
    assert trial.suggest_float("momentum", 0.0, 1.0) == 0.5


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_sampler_of_joint_draws_learns_from_screened_trials() -> None:
    def objective(trial: optuna.Trial) -> float:
        return abs(sum(p.numel() for p in suggest_width(trial).parameters()) - 2000) + trial.suggest_float("x", -9, 9)

    base = TPESampler(seed=0, n_startup_trials=2, multivariate=True)
    study = optuna.create_study(sampler=screened(base, suggest_width))
    study.optimize(objective, n_trials=8)
    assert all(trial.params.keys() == {"width", "x"} for trial in study.trials)
    assert all("screening" in trial.user_attrs for trial in study.trials)


def test_enqueued_parameters_are_kept_and_the_others_are_screened() -> None:
    study = optuna.create_study(sampler=screened(RandomSampler(0)))
    study.enqueue_trial({"kind": "mlp", "depth": 1})
    study.enqueue_trial({"kind": "cnn", "channels": 7})
    study.optimize(by_size, n_trials=2)
    part, whole = study.trials
    assert (part.params["kind"], part.params["depth"]) == ("mlp", 1)
    names = [row["name"] for row in part.user_attrs["screening"]["rows"]]
    assert 2 <= len(names) <= NUM_CANDIDATES  # two of them may be equal
    widths = [int(re.fullmatch(r"kind='mlp', depth=1, width0=(\d+)", name)[1]) for name in names]  # type: ignore[index]
    assert part.params["width0"] == max(widths)
    assert (whole.params["kind"], whole.params["channels"]) == ("cnn", 7)
    assert "screening" not in whole.user_attrs


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_samplers_that_have_one_proposal_go_on_as_without_screening() -> None:
    grid = {"width": [3, 5, 4]}
    sizes = []
    for sampler in (GridSampler(grid, seed=0), screened(GridSampler(grid, seed=0), suggest_width)):
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda trial: float(suggest_width(trial)[0].out_channels))
        sizes.append([trial.params["width"] for trial in study.trials])
    assert sizes[0] == sizes[1]
    assert sorted(sizes[0]) == [3, 4, 5]

    fixed = PartialFixedSampler({"kind": "cnn"}, screened(RandomSampler(0)))
    assert {trial.params["kind"] for trial in studied(fixed).trials} == {"cnn"}


def test_random_generators_go_on_as_without_screening() -> None:
    trial = optuna.create_study(sampler=screened(RandomSampler(0))).ask()
    torch.manual_seed(1)
    trial.suggest_categorical("kind", ["cnn", "mlp"])
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))


def test_threads_are_refused() -> None:
    study = optuna.create_study(sampler=screened(RandomSampler(0)))
    with pytest.raises(InvalidArgumentError, match="needs `n_jobs=1`"):
        study.optimize(by_size, n_trials=5, n_jobs=2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base_sampler": "tpe"}, "Invalid base_sampler='tpe': expected a sampler of Optuna"),
        ({"suggest": nn.Linear(1, 1).weight}, "Invalid suggest"),
        ({"data": iter(make_batches())}, "can be read only once"),
        ({"data": make_batches()[0][0]}, "Invalid data"),
        ({"num_candidates": 1}, "Invalid num_candidates=1: expected a whole number of at least 2"),
        ({"proxies": "zicco"}, "zico"),
        ({"num_batchs": 3}, "num_batchs"),
    ],
)
def test_wrong_arguments_are_refused_before_the_study(changed: dict[str, Any], message: str) -> None:
    arguments = {"base_sampler": RandomSampler(0), "suggest": suggest, "data": make_batches(), **BY_PARAMS}
    with pytest.raises((TypeError, ValueError, KeyError), match=message):
        ScreeningSampler(**{**arguments, **changed})


def test_without_optuna_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("lightning_zico.integrations")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match=r"`ScreeningSampler` needs Optuna: `pip install .*\[search\]'`"):
        import_module("lightning_zico.integrations")
