"""Let a Trainer of transformers search: each trial trains the best of eight proposals, scored untrained.

Usage:
    python examples/11_transformers.py
"""

import itertools
import tempfile

import optuna
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from lightning_zico import Leaderboard
from lightning_zico.integrations import ScreeningSampler

optuna.logging.set_verbosity(optuna.logging.WARNING)
QUIET = {"disable_tqdm": True, "logging_strategy": "no", "report_to": "none", "save_strategy": "no"}


def model_init(trial: optuna.trial.BaseTrial | None) -> BertForSequenceClassification:
    """Build a small BERT; a Trainer calls this once without a trial."""
    trial = trial or optuna.trial.FixedTrial({"depth": 1, "width": 16})
    depth, width = trial.suggest_int("depth", 1, 3), trial.suggest_int("width", 16, 64, step=16)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=32, num_hidden_layers=depth, **sizes))


def hp_space(trial: optuna.Trial) -> dict[str, float]:
    """Choose what does not change the untrained network."""
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2, log=True)}


def loss(model: BertForSequenceClassification, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
    """Return the loss on a batch, as a Trainer computes it."""
    return model(**batch).loss


def main() -> None:
    """Learn whether the first word of a text is in the first half of the vocabulary, with three trials."""
    texts = torch.randint(32, (1024, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": text, "labels": (text[0] < 16).long()} for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, max_steps=24, per_device_train_batch_size=32, use_cpu=True, **QUIET)
        trainer = Trainer(args=arguments, model_init=model_init, train_dataset=data[:768], eval_dataset=data[768:])
        batches = list(itertools.islice(trainer.get_train_dataloader(), 2))
        sampler = ScreeningSampler(optuna.samplers.TPESampler(seed=0), model_init, batches, step=loss)
        study = {"sampler": sampler, "storage": optuna.storages.InMemoryStorage(), "study_name": "bert"}
        best = trainer.hyperparameter_search(hp_space, n_trials=3, backend="optuna", **study)
    print(f"The best trial, {best.run_id}, reached a loss of {best.objective:.3f}. Its proposals:")
    trial = optuna.load_study(study_name="bert", storage=study["storage"]).best_trial
    print(Leaderboard.from_dict(trial.user_attrs["screening"]))


if __name__ == "__main__":
    main()
