"""What the callback scores, when, where it says so, and what it keeps."""

import copy
import csv
import inspect
import itertools
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_zico import ZiCo, ZiCoCallback, score
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import UnsupportedModuleError
from tests.callbacks.training import BATCH_SIZE, PlainImages, Recorder, loader, quiet_trainer
from tests.modules import Classifier, make_batches

FIELDS = {"epoch", "step", "score", "layers", "seconds", "error"}


class Remembering(Classifier):
    """Keeps a copy of itself as it was when training began."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__(dropout=dropout)
        self.twins: list[Classifier] = []
        self.dropout = dropout

    def on_train_epoch_start(self) -> None:
        twin = Classifier(dropout=self.dropout)
        twin.load_state_dict(self.state_dict())
        self.twins.append(twin)


def first_batches(data: Any, num_batches: int = 2, seed: int = 0) -> list[Any]:
    with preserved_rng(seed):
        return list(itertools.islice(data, num_batches))


def keys_and_values(path: Path) -> dict[str, float]:
    """Read the last value of every column that ZiCo logged."""
    with path.open() as lines:
        rows = list(csv.DictReader(lines))
    return {key: float(value) for row in rows for key, value in row.items() if value and key.startswith("zico")}


# --- the number -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "proxy"),
    [
        ({}, ZiCo()),
        ({"num_batches": 3}, ZiCo()),
        ({"axis": "sample"}, ZiCo()),
        ({"axis": "sample", "num_batches": 1, "chunk_size": 4}, ZiCo()),
        ({"std_of": "abs"}, ZiCo("abs")),
        ({"parameters": ["*.bias"]}, ZiCo(parameters=["*.bias"])),
        ({"seed": 5}, ZiCo()),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_score_is_that_of_the_same_weights_on_the_same_batches(arguments: dict[str, Any], proxy: ZiCo) -> None:
    module, callback = Remembering(), ZiCoCallback(every_n_epochs=1, **arguments)
    quiet_trainer(callback).fit(module, loader())
    seed = arguments.get("seed", 0)
    batches = first_batches(loader(), arguments.get("num_batches", 2), seed)
    options = {key: arguments[key] for key in ("axis", "chunk_size") if key in arguments}
    expected = [score(twin, batches, [proxy], seed=seed, **options)["zico"] for twin in module.twins]
    assert len(callback.history) == len(expected) == 2
    for record, card in zip(callback.history, expected, strict=True):
        assert record["score"] == card.value
        assert record["layers"] == card.layers
    assert expected[0].value != expected[1].value


def test_another_seed_scores_other_batches() -> None:
    torch.manual_seed(0)
    module = Classifier()
    scores = set()
    for seed in (0, 1):
        callback = ZiCoCallback(seed=seed)
        quiet_trainer(callback, max_steps=1).fit(copy.deepcopy(module), loader())
        scores.add(callback.history[0]["score"])
    assert len(scores) == 2


def test_loss_fn_gives_the_score_where_the_module_optimises_manually() -> None:
    class Manual(Remembering):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    module, callback = Manual(), ZiCoCallback(loss_fn=nn.CrossEntropyLoss())
    quiet_trainer(callback).fit(module, loader())
    assert callback.history[0]["score"] == score(module.twins[0], first_batches(loader()))["zico"].value


def test_score_of_bf16_mixed_is_that_under_autocast() -> None:
    class Autocast(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().training_step(batch, batch_idx)

    module, callback = Remembering(dropout=0.0), ZiCoCallback()
    quiet_trainer(callback, precision="bf16-mixed").fit(module, loader())
    twin = Autocast()
    twin.load_state_dict(module.twins[0].state_dict())
    batches = first_batches(loader())
    assert callback.history[0]["score"] == score(twin, batches)["zico"].value
    assert callback.history[0]["score"] != score(module.twins[0], batches)["zico"].value


@pytest.mark.parametrize(
    "settings", [{"fast_dev_run": True}, {"limit_train_batches": 1}, {"accumulate_grad_batches": 3}], ids=str
)
def test_score_does_not_depend_on_how_training_goes_on(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = Remembering()
    callback = ZiCoCallback()
    trainer = quiet_trainer(callback, **settings)
    trainer.fit(module, loader())
    assert [record["step"] for record in callback.history] == [0]
    assert callback.history[0]["score"] == score(module.twins[0], first_batches(loader()))["zico"].value
    assert "zico/score" in trainer.callback_metrics


def test_user_may_ask_for_a_score_at_any_moment() -> None:
    class Curious(Recorder):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                self.record = callback.score(trainer, pl_module)

    callback, curious = ZiCoCallback(), Curious()
    quiet_trainer(callback, curious).fit(Classifier(), loader())
    assert [record["step"] for record in callback.history] == [0, 2]
    assert callback.history[1] is curious.record


# --- when and where -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every_n_epochs", "epochs"), [(None, [0]), (1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3]), (9, [0])]
)
def test_schedule(every_n_epochs: int | None, epochs: list[int]) -> None:
    callback = ZiCoCallback(every_n_epochs=every_n_epochs)
    quiet_trainer(callback, max_epochs=5).fit(Classifier(), loader())
    assert [record["epoch"] for record in callback.history] == epochs
    assert [record["step"] for record in callback.history] == [3 * epoch for epoch in epochs]


def test_records_are_plain() -> None:
    callback = ZiCoCallback()
    quiet_trainer(callback).fit(Classifier(), loader())
    (record,) = callback.history
    assert set(record) == FIELDS
    assert {key: type(value) for key, value in record.items()} == {
        "epoch": int,
        "step": int,
        "score": float,
        "layers": dict,
        "seconds": float,
        "error": type(None),
    }
    assert set(record["layers"]) == {"network.0.weight", "network.6.weight"}
    assert record["score"] == math.fsum(record["layers"].values())
    assert record["seconds"] > 0


@pytest.mark.parametrize("log_layers", [False, True])
@pytest.mark.parametrize(("axis", "prefix"), [("batch", "zico"), ("sample", "zico_per_sample")])
def test_every_logger_and_callback_metrics_get_the_score(
    tmp_path: Path, axis: str, prefix: str, log_layers: bool
) -> None:
    class Heard(DummyLogger):
        def __init__(self) -> None:
            super().__init__()
            self.heard: list[tuple[int | None, dict[str, float]]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
            if any(key.startswith("zico") for key in metrics):
                self.heard.append((step, dict(metrics)))

    heard = Heard()
    loggers = [CSVLogger(tmp_path, "csv", version=0), heard]
    callback = ZiCoCallback(axis=axis, log_layers=log_layers)
    trainer = quiet_trainer(callback, logger=loggers, log_every_n_steps=1)
    trainer.fit(Classifier(), loader())
    record = callback.history[0]
    expected = {f"{prefix}/score": record["score"]}
    if log_layers:
        expected |= {f"{prefix}/layers/{name}": value for name, value in record["layers"].items()}
        assert len(expected) == 3
    assert heard.heard == [(0, expected)]
    assert keys_and_values(tmp_path / "csv" / "version_0" / "metrics.csv") == expected
    in_trainer = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("zico")}
    assert in_trainer == {key: torch.tensor(value) for key, value in expected.items()}


def test_score_outlives_validation_in_callback_metrics() -> None:
    class Validated(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", super().training_step(batch, batch_idx))

    callback = ZiCoCallback()
    trainer = quiet_trainer(callback, num_sanity_val_steps=1)
    trainer.fit(Validated(), loader(), loader(shuffle=False))
    assert "val_loss" in trainer.callback_metrics
    assert trainer.callback_metrics["zico/score"] == torch.tensor(callback.history[0]["score"])


def test_checkpoint_may_monitor_the_score(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="zico/score", mode="max")
    callback = ZiCoCallback(every_n_epochs=1)
    quiet_trainer(callback, best, enable_checkpointing=True, max_epochs=3).fit(Classifier(), loader())
    assert best.best_model_score == torch.tensor(max(record["score"] for record in callback.history))


def test_validation_and_test_are_not_scored() -> None:
    class Tested(Classifier):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("loss", super().training_step(batch, batch_idx))

        validation_step = test_step

    callback = ZiCoCallback()
    trainer = quiet_trainer(callback)
    trainer.validate(Tested(), loader(shuffle=False), verbose=False)
    trainer.test(Tested(), loader(shuffle=False), verbose=False)
    assert callback.history == []


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_state_dict_round_trip() -> None:
    callback = ZiCoCallback(every_n_epochs=1)
    quiet_trainer(callback).fit(Classifier(), loader())
    fresh = ZiCoCallback(every_n_epochs=1)
    state = callback.state_dict()
    fresh.load_state_dict(copy.deepcopy(state))
    assert fresh.history == callback.history
    assert len(fresh.history) == 2
    fresh.history.append({})
    callback.history.append({})
    assert len(state["history"]) == 2  # a state is what was, also while training goes on


def test_checkpoint_holds_the_history_and_is_safe_to_load(tmp_path: Path) -> None:
    callback = ZiCoCallback()
    trainer = quiet_trainer(callback)
    trainer.fit(Classifier(), loader())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert saved["callbacks"][callback.state_key] == {"history": callback.history}


@pytest.mark.parametrize(("every_n_epochs", "epochs"), [(None, [0]), (1, [0, 1, 2, 3]), (2, [0, 2])])
def test_resumed_training_keeps_the_history_and_scores_nothing_twice(
    tmp_path: Path, every_n_epochs: int | None, epochs: list[int]
) -> None:
    first = ZiCoCallback(every_n_epochs=every_n_epochs)
    trainer = quiet_trainer(first)
    trainer.fit(Classifier(), loader())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    resumed = ZiCoCallback(every_n_epochs=every_n_epochs)
    quiet_trainer(resumed, max_epochs=4).fit(Classifier(), loader(), ckpt_path=tmp_path / "end.ckpt")
    assert resumed.history[: len(first.history)] == first.history
    assert [record["epoch"] for record in resumed.history] == epochs


# lightning: the new trainer leaves out a callback that the checkpoint has a state for, as is meant here
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended:UserWarning")
def test_training_resumed_within_an_epoch_scores_at_the_next(tmp_path: Path) -> None:
    first = ZiCoCallback(every_n_epochs=1)
    checkpoint = ModelCheckpoint(tmp_path, "middle", every_n_train_steps=4)
    quiet_trainer(first, checkpoint, enable_checkpointing=True, max_steps=4, max_epochs=-1).fit(Classifier(), loader())
    resumed = ZiCoCallback(every_n_epochs=1)
    quiet_trainer(resumed, max_epochs=3).fit(Classifier(), loader(), ckpt_path=tmp_path / "middle.ckpt")
    assert [record["step"] for record in first.history] == [0, 3]
    assert [record["step"] for record in resumed.history] == [0, 3, 6]


def test_resumed_and_uninterrupted_training_score_alike(tmp_path: Path) -> None:
    # Without shuffling, augmentation and dropout, since Lightning's checkpoints hold no state of generators.
    data = partial(DataLoader, PlainImages(), BATCH_SIZE)
    torch.manual_seed(0)
    module = Classifier()
    scores = []
    for name, ckpt_path, max_epochs in (("whole", None, 3), ("half", None, 2), ("rest", tmp_path / "half.ckpt", 3)):
        callback = ZiCoCallback(every_n_epochs=1, num_batches=3)
        trainer = quiet_trainer(callback, max_epochs=max_epochs)
        with preserved_rng(1):
            trainer.fit(copy.deepcopy(module), data(), ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        scores.append([record["score"] for record in callback.history])
    whole, half, rest = scores
    assert half == whole[:2]
    assert rest == whole
    assert len(set(whole)) == 3


def test_checkpoint_without_the_callback_is_scored_when_resumed(tmp_path: Path) -> None:
    trainer = quiet_trainer()
    trainer.fit(Classifier(), loader())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    callback = ZiCoCallback()
    quiet_trainer(callback, max_epochs=3).fit(Classifier(), loader(), ckpt_path=tmp_path / "end.ckpt")
    assert [(record["epoch"], record["step"]) for record in callback.history] == [(2, 6)]


def test_callback_scores_again_in_a_new_training() -> None:
    callback = ZiCoCallback(every_n_epochs=1)
    quiet_trainer(callback).fit(Classifier(), loader())
    quiet_trainer(callback).fit(Classifier(), loader())
    assert [record["step"] for record in callback.history] == [0, 3, 0, 3]


# lightning: the new trainer leaves out a callback that the checkpoint has a state for, as is meant here
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_both_axes_live_side_by_side(tmp_path: Path) -> None:
    callbacks = [ZiCoCallback(), ZiCoCallback(axis="sample"), ZiCoCallback(std_of="abs", parameters=["*.weight"])]
    assert len({callback.state_key for callback in callbacks}) == 3
    trainer = quiet_trainer(*callbacks)
    trainer.fit(Classifier(), loader())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert trainer.callback_metrics["zico_per_sample/score"] == torch.tensor(callbacks[1].history[0]["score"])
    resumed = [ZiCoCallback(axis="sample"), ZiCoCallback()]
    quiet_trainer(*resumed, max_epochs=3).fit(Classifier(), loader(), ckpt_path=tmp_path / "end.ckpt")
    assert resumed[0].history == callbacks[1].history
    assert resumed[1].history == callbacks[0].history
    assert resumed[0].history != resumed[1].history


# --- failures -------------------------------------------------------------------------------------------------------


class Limited(Classifier):
    """Its loss is finite from the second epoch on."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss if self.current_epoch else loss * float("inf")


def test_failure_is_a_warning_and_a_record_and_the_next_score_is_logged(tmp_path: Path) -> None:
    callback = ZiCoCallback(every_n_epochs=1)
    trainer = quiet_trainer(callback, limit_train_batches=0.34, logger=CSVLogger(tmp_path, "csv", version=0))

    class Skipping(Limited):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if not self.current_epoch:
                self.zero_grad()

    message = "`ZiCoCallback` has no score for step 0: NonFiniteError: The loss of gradient 0 is inf"
    with pytest.warns(UserWarning, match=message):
        trainer.fit(Skipping(), loader())
    failed, succeeded = callback.history
    assert set(failed) == set(succeeded) == FIELDS
    assert failed["score"] is None
    assert failed["layers"] == {}
    assert failed["error"].startswith("NonFiniteError")
    assert succeeded["error"] is None
    assert keys_and_values(tmp_path / "csv" / "version_0" / "metrics.csv") == {"zico/score": succeeded["score"]}


def test_failure_logs_nothing(tmp_path: Path) -> None:
    callback = ZiCoCallback(parameters=["no such"])
    trainer = quiet_trainer(callback, logger=CSVLogger(tmp_path, "csv", version=0))
    with pytest.warns(UserWarning, match=r"no match for \['no such'\]"):
        trainer.fit(Classifier(), loader())
    assert not any(key.startswith("zico") for key in trainer.callback_metrics)
    assert not (tmp_path / "csv" / "version_0" / "metrics.csv").exists()


def test_manual_optimisation_without_a_loss_is_refused_before_training() -> None:
    module = Remembering()
    module.automatic_optimization = False
    callback = ZiCoCallback()
    with pytest.raises(UnsupportedModuleError, match=r"optimises manually.*`loss_fn=`"):
        quiet_trainer(callback).fit(module, loader())
    assert callback.history == []
    assert module.twins == []


def test_split_parameters_are_refused_before_training() -> None:
    trainer = quiet_trainer()
    trainer.strategy.__class__ = type("FSDPStrategy", (FSDPStrategy,), {})
    with pytest.raises(UnsupportedModuleError, match=r"FSDPStrategy splits them.*`lightning_zico.score`"):
        ZiCoCallback().setup(trainer, Classifier(), "fit")
    ZiCoCallback().setup(trainer, Classifier(), "test")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            {"num_batches": 1},
            ValueError,
            "Invalid num_batches=1: expected .*at least 2",
        ),
        (
            {"num_batches": 0, "axis": "sample"},
            ValueError,
            "Invalid num_batches=0: expected .*at least 1",
        ),
        ({"every_n_epochs": 0}, ValueError, "Invalid every_n_epochs=0"),
        ({"axis": "layer"}, ValueError, "Invalid axis='layer'"),
        ({"chunk_size": 0}, ValueError, "chunk_size=0"),
        ({"std_of": "squared"}, ValueError, "std_of='squared'"),
        ({"parameters": "*.weight"}, TypeError, r"Invalid parameters='\*\.weight'"),
    ],
)
def test_wrong_arguments_are_refused_at_construction(
    arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        ZiCoCallback(**arguments)


# --- from a file ----------------------------------------------------------------------------------------------------


class WithData(Classifier):
    def train_dataloader(self) -> DataLoader[Any]:
        return loader()


CONFIG = """
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 3
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_zico.ZiCoCallback
      init_args:
        num_batches: 3
        every_n_epochs: 2
        axis: sample
        chunk_size: auto
        std_of: abs
        parameters: ["*.weight"]
        log_layers: true
        seed: 4
        loss_fn: torch.nn.functional.cross_entropy
"""


def built_by_cli(monkeypatch: pytest.MonkeyPatch, path: Path, *command: str, **kwargs: Any) -> tuple[Trainer, Any]:
    monkeypatch.setattr(sys, "argv", ["main.py", *command, "--config", str(path)])
    cli = LightningCLI(WithData, save_config_callback=None, seed_everything_default=0, **kwargs)
    (callback,) = [one for one in cli.trainer.callbacks if isinstance(one, ZiCoCallback)]
    return cli.trainer, callback


# lightning: its command line calls jsonargparse by names that the latter is about to drop
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_lightning_cli_finds_the_callback_by_its_class_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    trainer, callback = built_by_cli(monkeypatch, tmp_path / "config.yaml", "fit")
    assert callback.num_batches == 3
    assert callback.axis == "sample"
    assert callback.chunk_size == "auto"
    assert callback.std_of == "abs"
    assert callback.parameters == ["*.weight"]
    assert callback.seed == 4
    assert callback.loss_fn is nn.functional.cross_entropy
    assert [(record["epoch"], record["error"]) for record in callback.history] == [(0, None), (2, None)]
    assert "network.1.weight" in callback.history[0]["layers"]
    assert "zico_per_sample/layers/network.1.weight" in trainer.callback_metrics


# lightning: its command line calls jsonargparse by names that the latter is about to drop
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_arguments_left_out_of_the_file_are_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "trainer:\n  accelerator: cpu\n  logger: false\n  callbacks:\n    - class_path: lightning_zico.ZiCoCallback\n"
    )
    _, callback = built_by_cli(monkeypatch, tmp_path / "config.yaml", run=False)
    default = ZiCoCallback()
    arguments = list(inspect.signature(ZiCoCallback).parameters)
    assert "log_layers" in arguments
    assert {key: getattr(callback, key) for key in arguments} == {key: getattr(default, key) for key in arguments}


class LateScale(Classifier):
    """Gets what its step needs in the hooks that Lightning runs after those of callbacks."""

    def on_train_start(self) -> None:
        self.scales = [2.0]

    def on_train_epoch_start(self) -> None:
        self.scales.append(3.0)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        batch[0].div_(2.0)
        self.scales.append(5.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert self.scales == [2.0, 3.0, 5.0] or self.trainer.global_step
        return super().training_step(batch, batch_idx)


class Halving(Callback):
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        batch[0].div_(2.0)


@pytest.mark.parametrize("position", [0, 1])
def test_the_score_at_the_start_is_that_of_the_batches_as_the_step_gets_them(position: int) -> None:
    torch.manual_seed(0)
    module, plain = LateScale(), Classifier()
    plain.load_state_dict(module.state_dict())
    batches = make_batches()
    callback = ZiCoCallback()
    callbacks: list[Callback] = [Halving()]
    callbacks.insert(position, callback)
    samples = [(image, int(label)) for batch in batches for image, label in zip(*batch, strict=True)]
    data = DataLoader(samples, len(samples) // len(batches))
    quiet_trainer(*callbacks, max_steps=1).fit(module, data)
    quarter = [(images / 4, labels) for images, labels in batches]
    assert callback.history[0]["error"] is None
    assert callback.history[0]["score"] == pytest.approx(score(plain, quarter)["zico"].value, rel=1e-6)
