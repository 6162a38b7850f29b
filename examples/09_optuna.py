"""Tune a network with Optuna: each trial trains the best of eight proposals, scored untrained.

Usage:
    python examples/09_optuna.py
"""

import logging
import warnings

import optuna
from lightning.pytorch import Trainer

from lightning_zico import Leaderboard
from lightning_zico.demos import DigitsClassifier, DigitsDataModule, mlp
from lightning_zico.integrations import ScreeningSampler

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", ".*set_metric_names is experimental")


def suggest(trial: optuna.trial.BaseTrial) -> DigitsClassifier:
    """Choose the number of layers, and the width of each."""
    depth = trial.suggest_int("depth", 1, 3)
    return DigitsClassifier(mlp(*(trial.suggest_int(f"width{idx}", 32, 128, log=True) for idx in range(depth))))


def objective(trial: optuna.Trial) -> float:
    """Train a network for two epochs, and return its validation accuracy."""
    model = suggest(trial)
    model.lr = trial.suggest_float("lr", 1e-3, 1e-2, log=True)  # does not change the untrained network
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=DigitsDataModule())
    return trainer.callback_metrics["val_acc"].item()


def main() -> None:
    """Run a study of five trials, and show what the best one was chosen from."""
    sampler = ScreeningSampler(optuna.samplers.TPESampler(seed=0), suggest, DigitsDataModule())
    study = optuna.create_study(sampler=sampler, direction="maximize")
    study.set_metric_names(["val_acc"])  # for the dashboard and the plot of importances
    study.optimize(objective, n_trials=5)
    best = study.best_trial
    print(f"The best trial, {best.number}, reached {best.value:.3f} with {best.params}. Its proposals:")
    print(Leaderboard.from_dict(best.user_attrs["screening"]))


if __name__ == "__main__":
    main()
