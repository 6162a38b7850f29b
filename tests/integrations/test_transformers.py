"""`Trainer.hyperparameter_search` of transformers takes the sampler: each trial trains the best of its proposals."""

import itertools
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.samplers import RandomSampler
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from lightning_zico import Leaderboard
from lightning_zico.integrations import ScreeningSampler

pytest.importorskip("accelerate")

optuna.logging.set_verbosity(optuna.logging.WARNING)
NUM_TRIALS = 2


def model_init(trial: Any) -> BertForSequenceClassification:
    trial = trial or optuna.trial.FixedTrial({"depth": 1, "width": 8})
    depth, width = trial.suggest_int("depth", 1, 2), trial.suggest_int("width", 8, 32, step=2)
    sizes = {"hidden_size": width, "intermediate_size": width, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=20, num_hidden_layers=depth, **sizes))


def make_trainer(folder: Path) -> Trainer:
    data = [{"input_ids": torch.arange(idx, idx + 6), "labels": idx % 2} for idx in range(12)]
    quiet: dict[str, Any] = {"disable_tqdm": True, "logging_strategy": "no", "report_to": "none", "save_strategy": "no"}
    arguments = TrainingArguments(str(folder), max_steps=1, per_device_train_batch_size=4, use_cpu=True, **quiet)
    return Trainer(args=arguments, model_init=model_init, train_dataset=data, eval_dataset=data)


def make_sampler(trainer: Trainer) -> ScreeningSampler:
    batches = list(itertools.islice(trainer.get_train_dataloader(), 2))
    step = {"step": lambda model, batch, batch_idx: model(**batch).loss}
    return ScreeningSampler(RandomSampler(0), model_init, batches, 4, proxies="params", **step)


def test_a_trainer_trains_the_best_proposal_of_each_trial(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trained = []

    def hp_space(trial: Any) -> dict[str, float]:
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2)}

    def objective(metrics: dict[str, float]) -> float:
        trained.append((trainer.model.config.num_hidden_layers, trainer.model.config.hidden_size))
        return metrics["eval_loss"]

    study: dict[str, Any] = {"storage": optuna.storages.InMemoryStorage(), "study_name": "bert"}
    best = trainer.hyperparameter_search(
        hp_space, objective, n_trials=NUM_TRIALS, backend="optuna", sampler=make_sampler(trainer), **study
    )
    trials = optuna.load_study(**study).trials
    assert trained == [(trial.params["depth"], trial.params["width"]) for trial in trials]
    assert len(trained) == NUM_TRIALS
    assert best.hyperparameters == trials[int(best.run_id)].params
    for trial in trials:
        leaderboard = Leaderboard.from_dict(trial.user_attrs["screening"])
        assert leaderboard.best == f"depth={trial.params['depth']}, width={trial.params['width']}"
        parameters = sum(p.numel() for p in model_init(optuna.trial.FixedTrial(trial.params)).parameters())
        assert parameters == max(row["params"] for row in leaderboard)
        assert trial.params.keys() == {"depth", "width", "learning_rate"}


def test_without_a_space_a_trainer_chooses_its_own_arguments(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    best = trainer.hyperparameter_search(n_trials=1, backend="optuna", sampler=make_sampler(trainer))
    assert best.hyperparameters.keys() > {"depth", "width", "learning_rate", "num_train_epochs"}
