"""Tune a network with Ray Tune: each trial trains the best of eight proposals, scored untrained.

Usage:
    python examples/10_ray_tune.py
"""

import tempfile

import optuna
import ray
from lightning.pytorch import Trainer
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from lightning_zico import Leaderboard
from lightning_zico.demos import DigitsClassifier, DigitsDataModule, mlp
from lightning_zico.integrations import ScreeningSampler

optuna.logging.set_verbosity(optuna.logging.WARNING)
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def suggest(trial: optuna.trial.BaseTrial) -> DigitsClassifier:
    """Choose the number of layers, and the width of each."""
    depth = trial.suggest_int("depth", 1, 3)
    return DigitsClassifier(mlp(*(trial.suggest_int(f"width{idx}", 32, 128, log=True) for idx in range(depth))))


def space(trial: optuna.Trial) -> dict[str, object]:
    """Choose the configuration of a trial; what is returned is added to it."""
    suggest(trial)
    trial.suggest_float("lr", 1e-3, 1e-2, log=True)  # does not change the untrained network
    return {"screening": trial.user_attrs.get("screening")}


def train(config: dict[str, object]) -> dict[str, float]:
    """Train a network for two epochs on a worker, and return its validation accuracy."""
    model = suggest(optuna.trial.FixedTrial(config))
    model.lr = config["lr"]
    trainer = Trainer(max_epochs=2, accelerator="cpu", **QUIET)
    trainer.fit(model, datamodule=DigitsDataModule())
    return {"val_acc": trainer.callback_metrics["val_acc"].item()}


def main() -> None:
    """Run three trials on this machine, and show what the best one was chosen from."""
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    sampler = ScreeningSampler(optuna.samplers.TPESampler(seed=0), suggest, DigitsDataModule())
    search = OptunaSearch(space, metric="val_acc", mode="max", sampler=sampler)
    with tempfile.TemporaryDirectory() as folder:
        runs = tune.run(train, search_alg=search, num_samples=3, reuse_actors=True, storage_path=folder, verbose=0)
    best = runs.get_best_trial("val_acc", "max")
    print(f"The best of {len(runs.trials)} trials reached {best.last_result['val_acc']:.3f}. Its proposals:")
    print(Leaderboard.from_dict(best.config["screening"]))


if __name__ == "__main__":
    main()
