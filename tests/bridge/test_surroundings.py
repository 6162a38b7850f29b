"""What a training step sees while it is scored is what it sees at the first batch of `Trainer.fit`."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_zico import ZeroShotSelector, ZiCoCallback, score
from lightning_zico.bridge.modules import bridged
from lightning_zico.bridge.private_trainer import private_trainer
from lightning_zico.bridge.trainers import TrainerSettings, TrainingLoader
from lightning_zico.errors import SurroundingsError
from lightning_zico.scoring import MemoryCache
from tests.modules import Classifier, assert_same, assert_untouched, make_batches

QUIET = {
    "accelerator": "cpu",
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
SEEN: dict[str, Callable[[Any], Any]] = {
    "estimated_stepping_batches": lambda m: m.trainer.estimated_stepping_batches,
    "num_training_batches": lambda m: m.trainer.num_training_batches,
    "max_epochs": lambda m: m.trainer.max_epochs,
    "min_epochs": lambda m: m.trainer.min_epochs,
    "max_steps": lambda m: m.trainer.max_steps,
    "min_steps": lambda m: m.trainer.min_steps,
    "accumulate_grad_batches": lambda m: m.trainer.accumulate_grad_batches,
    "gradient_clip_val": lambda m: m.trainer.gradient_clip_val,
    "gradient_clip_algorithm": lambda m: str(m.trainer.gradient_clip_algorithm),
    "limit_train_batches": lambda m: m.trainer.limit_train_batches,
    "limit_val_batches": lambda m: m.trainer.limit_val_batches,
    "overfit_batches": lambda m: m.trainer.overfit_batches,
    "fast_dev_run": lambda m: m.trainer.fast_dev_run,
    "val_check_interval": lambda m: m.trainer.val_check_interval,
    "val_check_batch": lambda m: m.trainer.val_check_batch,
    "check_val_every_n_epoch": lambda m: m.trainer.check_val_every_n_epoch,
    "log_every_n_steps": lambda m: m.trainer.log_every_n_steps,
    "precision": lambda m: m.trainer.precision,
    "current_epoch": lambda m: (m.current_epoch, m.trainer.current_epoch),
    "global_step": lambda m: (m.global_step, m.trainer.global_step),
    "batch_idx": lambda m: m.trainer.fit_loop.batch_idx,
    "total_batch_idx": lambda m: m.trainer.fit_loop.epoch_loop.total_batch_idx,
    "epochs": lambda m: vars(m.trainer.fit_loop.epoch_progress.current),
    "batches": lambda m: m.trainer.fit_loop.epoch_loop.batch_progress.current.ready,
    "is_last_batch": lambda m: m.trainer.is_last_batch,
    "training": lambda m: m.trainer.training,
    "stage": lambda m: str(m.trainer.state.stage),
    "fn": lambda m: str(m.trainer.state.fn),
    "status": lambda m: str(m.trainer.state.status),
    "sanity_checking": lambda m: m.trainer.sanity_checking,
    "should_stop": lambda m: m.trainer.should_stop,
    "world_size": lambda m: m.trainer.world_size,
    "rank": lambda m: (m.global_rank, m.trainer.local_rank, m.trainer.is_global_zero),
    "num_devices": lambda m: m.trainer.num_devices,
    "root_device": lambda m: (str(m.trainer.strategy.root_device), str(m.device)),
    "train_dataloader": lambda m: (len(m.trainer.train_dataloader), len(m.trainer.train_dataloader.dataset)),
    "datamodule": lambda m: type(m.trainer.datamodule).__name__,
    "callback_metrics": lambda m: dict(m.trainer.callback_metrics),
    "lightning_module": lambda m: m.trainer.lightning_module is m,
    "model": lambda m: m.trainer.model is m,
    "optimizers": lambda m: [type(o).__name__ for o in m.trainer.optimizers],
    "optimizer": lambda m: (m.optimizers().param_groups[0]["lr"], m.optimizers().param_groups[0]["momentum"]),
    "lr_schedulers": lambda m: (m.lr_schedulers().total_steps, m.lr_schedulers().get_last_lr()),
    "has_logger": lambda m: (m.logger is not None, len(m.loggers)),
    "package": lambda m: [base.__module__ for base in type(m.trainer).__mro__ if base.__name__ == "Trainer"],
    "grad_enabled": lambda m: torch.is_grad_enabled(),
    "autocast": lambda m: torch.is_autocast_enabled("cpu"),
    "module_mode": lambda m: (m.training, m.automatic_optimization),
}


_METHODS: list[Callable[..., Any]] = []


def out_of_reach(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls a method through a global variable, so that nothing of what it keeps is put back."""
    idx = len(_METHODS)
    _METHODS.append(method)
    return lambda *args: _METHODS[idx](*args)


def recording(package: Any) -> Any:
    class Recording(package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, seen: dict[str, Any]) -> None:
            super().__init__()
            self.record = out_of_reach(seen.setdefault)
            self.network = nn.Linear(8, 3)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 0:
                for name, look in SEEN.items():
                    self.record(name, look(self))
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
            steps = self.trainer.estimated_stepping_batches
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=max(int(min(steps, 1e6)), 2))
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    return Recording


def images(num_samples: int = 32) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (num_samples,), generator=generator)
    return TensorDataset(torch.randn(num_samples, 8, generator=generator), labels)


def loader(**kwargs: Any) -> DataLoader[Any]:
    return DataLoader(images(), 4, **kwargs)


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"max_epochs": 9, "accumulate_grad_batches": 4, "gradient_clip_val": 1.0, "limit_train_batches": 3},
        {"max_epochs": 2, "min_epochs": 1, "limit_train_batches": 0.5, "gradient_clip_algorithm": "value"},
        {"max_steps": 5, "min_steps": 2, "check_val_every_n_epoch": 2, "log_every_n_steps": 7},
        {"max_epochs": 3, "max_steps": 10, "val_check_interval": 0.5, "precision": "bf16-mixed"},
        {"max_epochs": 1, "limit_train_batches": 1},
        {"fast_dev_run": True},
        {"max_epochs": 3, "overfit_batches": 2},
        {"max_time": "00:00:01:00"},
    ],
    ids=lambda kwargs: ",".join(kwargs) or "defaults",
)
@pytest.mark.filterwarnings("ignore")
def test_a_step_sees_while_it_is_scored_what_it_sees_in_fit(
    package: Any, kwargs: dict[str, Any], tmp_path: Any
) -> None:
    logger = False if "max_epochs" in kwargs else package.loggers.CSVLogger(tmp_path)
    trained: dict[str, Any] = {}
    ranked: dict[str, Any] = {}
    module_class = recording(package)

    class Stop(package.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            raise KeyboardInterrupt

    trainer = package.Trainer(**QUIET, logger=logger, **kwargs)
    given = None if not kwargs else package.Trainer(**QUIET, logger=logger, **kwargs)
    trainer.callbacks.append(Stop())
    with pytest.raises(SystemExit):
        trainer.fit(module_class(trained), loader())
    leaderboard = ZeroShotSelector(given, "zico").rank({"one": lambda: module_class(ranked)}, loader())
    assert leaderboard.errors == {}
    assert set(trained) == set(SEEN)
    assert ranked == trained


class Iterables(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(images())


@pytest.mark.parametrize(
    ("data", "num_batches"),
    [
        (loader(), 8),
        (make_batches(5), 5),
        (DataLoader(Iterables(), 4), float("inf")),
        ({"a": loader(), "b": DataLoader(images(12), 4)}, 8),
        (lightning.pytorch.utilities.CombinedLoader({"a": loader(), "b": DataLoader(images(12), 4)}, "min_size"), 3),
    ],
    ids=["loader", "list", "no length", "dictionary", "CombinedLoader"],
)
def test_batches_are_counted_as_the_trainer_counts_them(data: Any, num_batches: float) -> None:
    assert TrainingLoader(data).num_batches(1.0) == num_batches
    assert TrainingLoader(data).num_batches(2) == 2
    if num_batches != float("inf"):
        assert TrainingLoader(data).num_batches(0.5) == num_batches // 2


def counting_module(seen: list[Any]) -> Any:
    class Counting(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.note = out_of_reach(seen.append)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            trainer = self.trainer
            self.note((trainer.num_training_batches, len(trainer.train_dataloader), batch_idx, trainer.is_last_batch))
            return super().training_step(batch, batch_idx)

    return Counting


def test_a_list_of_batches_is_the_whole_epoch() -> None:
    seen: list[Any] = []
    assert score(counting_module(seen)(), make_batches(2))["zico"].error is None
    assert seen == [(2, 2, 0, False), (2, 2, 1, True)]


def test_a_trainer_given_to_score_is_read_and_not_touched() -> None:
    trainer = Trainer(**QUIET, logger=False, max_epochs=7, limit_train_batches=1)
    before = dict(vars(trainer))
    seen: list[Any] = []
    assert score(counting_module(seen)(), make_batches(2), trainer=trainer)["zico"].error is None
    assert [entry[0] for entry in seen] == [1, 1]
    assert vars(trainer) == before
    assert trainer.lightning_module is None
    assert trainer.train_dataloader is None


# Hooks


class Noting(Classifier):
    """Notes the order of all hooks before the first step."""

    def __init__(self, note: Callable[[str], Any]) -> None:
        super().__init__()
        self.note = note

    def configure_callbacks(self) -> Any:
        self.note("module configure_callbacks")
        return [NotingCallback(self.note, "brought")]

    def prepare_data(self) -> None:
        self.note("module prepare_data")

    def setup(self, stage: str) -> None:
        assert stage is self.trainer.state.fn  # Lightning's own word for it, which is equal to "fit"
        self.note("module setup")

    def configure_model(self) -> None:
        self.note("module configure_model")

    def configure_optimizers(self) -> Any:
        self.note("module configure_optimizers")
        return super().configure_optimizers()

    def on_fit_start(self) -> None:
        self.note("module on_fit_start")

    def on_train_start(self) -> None:
        self.note("module on_train_start")

    def on_train_epoch_start(self) -> None:
        self.note("module on_train_epoch_start")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.note("module on_before_batch_transfer")
        return batch

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        self.note("module transfer_batch_to_device")
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.note("module on_after_batch_transfer")
        return batch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.note("module on_train_batch_start")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.note("module training_step")
        return super().training_step(batch, batch_idx)


class NotingCallback(Callback):
    def __init__(self, note: Callable[[str], Any], name: str) -> None:
        self.note, self.name = note, name

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.note(f"{self.name} setup")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note(f"{self.name} on_fit_start")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note(f"{self.name} on_train_start")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.note(f"{self.name} on_train_epoch_start")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.note(f"{self.name} on_train_batch_start")


class UsersCallback(NotingCallback):
    """Another class, since a callback that the module brings takes the place of one of its own class."""


def data_noting(note: Callable[[str], Any]) -> LightningDataModule:
    class Data(LightningDataModule):
        def prepare_data(self) -> None:
            note("data prepare_data")

        def setup(self, stage: str) -> None:
            note("data setup")

        def train_dataloader(self) -> Any:
            note("data train_dataloader")
            return _Loader(make_batches(2))

        def teardown(self, stage: str) -> None:
            note("data teardown")

    return Data()


class _Loader:
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@pytest.mark.filterwarnings("ignore:You have overridden")
def test_hooks_run_in_lightnings_order() -> None:
    """Data is read once for all candidates, so that its hooks run before the module's."""
    trained: list[str] = []
    ranked: list[str] = []

    def trainer(note: Callable[[str], Any]) -> Trainer:
        return Trainer(**QUIET, logger=False, max_steps=1, callbacks=[UsersCallback(note, "user's")])

    trainer(trained.append).fit(Noting(trained.append), datamodule=data_noting(trained.append))
    note = out_of_reach(ranked.append)
    selector = ZeroShotSelector(trainer(note), "zico")
    assert not selector.rank({"one": lambda: Noting(note)}, data_noting(note)).errors
    of_module = [call for call in trained if not call.startswith("data ")]
    first_step = of_module.index("module training_step")
    seen = [call for call in ranked if not call.startswith("data ")]
    assert seen[: first_step + 1] == of_module[: first_step + 1]
    assert [call for call in ranked if call.startswith("data ")] == [
        call for call in trained if call.startswith("data ")
    ]
    assert ranked.index("data teardown") > ranked.index("module training_step")


HOOKS = [
    "prepare_data",
    "setup",
    "configure_model",
    "configure_callbacks",
    "configure_optimizers",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
]


def meddling(hook: str) -> type[Classifier]:
    """Make a module whose hook sets, counts, draws, and writes to parameters, buffers and lists in place."""

    def meddle(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.weight = 0.5
        self.count = getattr(self, "count", 0) + 1
        self.drawn = torch.rand(())
        self.list.append(self.count)
        self.array += 1
        if hook != "configure_optimizers":
            with torch.no_grad():
                self.network[0].weight.mul_(0.5)
                self.network[1].running_mean.add_(1.0)
        self.network[0].bias = None
        for parameter in self.network[1].parameters():
            parameter.requires_grad = False
        return [] if hook == "configure_callbacks" else Classifier.configure_optimizers(self) if "opt" in hook else None

    def init(self: Any) -> None:
        Classifier.__init__(self)
        self.list: list[int] = []
        self.array = torch.zeros(3).numpy()

    def step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        assert self.count == 1  # of this hook, since every batch starts from the same state
        assert self.list == [1]
        assert self.array.tolist() == [1, 1, 1]
        return self.weight * nn.functional.cross_entropy(self(batch[0]), batch[1])

    return type(hook, (Classifier,), {hook: meddle, "__init__": init, "training_step": step})


def loss_in_fit(module: LightningModule, batches: list[Any], **kwargs: Any) -> list[Tensor]:
    """Run `Trainer.fit` for one step, and give the loss and the gradients of the first batch."""
    seen: list[Tensor] = []

    class Keep(Callback):
        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
            seen.append(loss.detach().clone())

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            seen.extend(p.grad.clone() for p in pl_module.parameters() if p.grad is not None)

    callbacks = [*kwargs.pop("callbacks", []), Keep()]
    Trainer(**QUIET, logger=False, max_steps=1, callbacks=callbacks, **kwargs).fit(module, _Loader(batches))
    return seen


def loss_while_scored(module: LightningModule, batches: list[Any], **kwargs: Any) -> Tensor:
    with bridged(module, loader=TrainingLoader(_Loader(batches)), **kwargs) as bridge:
        return bridge.step(module, bridge.prepare(batches[0], 0), 0).detach()


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.filterwarnings("ignore")
def test_what_a_hook_does_is_seen_by_the_step_and_put_back(hook: str) -> None:
    torch.manual_seed(0)
    module, twin = meddling(hook)(), meddling(hook)()
    twin.load_state_dict(module.state_dict())
    with assert_untouched(module):
        card = score(module, make_batches(), ["zico", "naswot", "macs", "synflow"])
        assert card.untrainable is None
        assert card["zico"].error is None
    loss = loss_while_scored(module, make_batches())
    assert_same(loss, loss_in_fit(twin, make_batches())[0])


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_fails_is_told_as_what_it_is(hook: str) -> None:
    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        self.network[0].weight.data.fill_(3.0)
        raise ValueError("on purpose")

    kind = type("Failing", (Classifier,), {hook: fail})
    module = kind()
    if hook == "configure_optimizers":
        card = score(module, make_batches())
        assert card.untrainable == "untrainable: its `configure_optimizers` fails: ValueError: on purpose"
        return
    with assert_untouched(module):
        error = score(module, make_batches()).error or score(module, make_batches())["zico"].error
    assert f"Failing.{hook}` raised ValueError: on purpose" in str(error)


# Callbacks


class Normalising(Callback):
    """Changes the batch in place, as a pre-processor does."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        batch[0].sub_(0.5).div_(2.0)


class Brings(Classifier):
    def configure_callbacks(self) -> Any:
        return [Normalising(), EarlyStopping("loss"), ModelCheckpoint()]


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_callbacks_that_the_module_brings_or_the_user_has_shape_the_batch(axis: Any) -> None:
    by_hand = [(images.sub(0.5).div(2.0), labels) for images, labels in make_batches()]
    torch.manual_seed(0)
    module, plain = Brings(), Classifier()
    plain.load_state_dict(module.state_dict())
    names = ["zico", "naswot", "synflow", "grad_norm", "macs"]
    want = {name: part.value for name, part in score(plain, by_hand, names, axis=axis).scores.items()}
    with assert_untouched(module):
        brought = score(module, make_batches(), names, axis=axis)
    assert {name: part.value for name, part in brought.scores.items()} == want
    trainer = Trainer(**QUIET, logger=False, callbacks=[Normalising()])
    users = score(plain, make_batches(), names, axis=axis, trainer=trainer)
    assert {name: part.value for name, part in users.scores.items()} == want


class OnlyPrepares(Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.temperature = 2.0


class NeedsTemperature(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) / self.temperature


class AlsoActsLater(Callback):
    """Prepares the first step, and goes on while training."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.calls.append("start")
        pl_module.temperature = 2.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.temperature *= 0.9

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.calls.append("end")


@pytest.mark.parametrize("kind", [OnlyPrepares, AlsoActsLater])
def test_what_callbacks_of_the_user_prepare_is_seen_by_the_step(kind: Any) -> None:
    callback, module = kind(), NeedsTemperature()
    before = dict(vars(callback))
    with assert_untouched(module):
        card = score(
            module, make_batches(), ["zico", "snip"], trainer=Trainer(**QUIET, logger=False, callbacks=[kind()])
        )
    halved = lambda module, batch, batch_idx: Classifier.training_step(module, batch, batch_idx) / 2.0  # noqa: E731
    want = score(module, make_batches(), ["zico", "snip"], step=halved)
    assert {name: card[name].value for name in card} == {name: want[name].value for name in want}
    assert vars(callback) == before
    card = score(NeedsTemperature(), make_batches())
    assert "untrainable: its training step fails: AttributeError" in card.untrainable


class Watches(EarlyStopping):
    """Derived from one of Lightning's that watch training."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.temperature = 2.0


def test_callbacks_derived_from_lightnings_that_watch_take_no_part_and_are_named() -> None:
    trainer = Trainer(**QUIET, logger=False, callbacks=[Watches("loss")])
    card = score(NeedsTemperature(), make_batches(), trainer=trainer)
    assert card.untrainable is None  # with the callback, it trains
    assert card["zico"].error.startswith("SurroundingsError")
    assert "temperature" in card["zico"].error
    assert "Watches" in card["zico"].error
    leaderboard = ZeroShotSelector(trainer, "params").rank([Classifier()], make_batches())
    assert any("Watches" in note for note in leaderboard.notes)
    tuning = Trainer(**QUIET, logger=False, callbacks=[BatchSizeFinder()])
    assert "BatchSizeFinder" in str(ZeroShotSelector(tuning, "params").rank([Classifier()], make_batches()))
    watching = Trainer(**QUIET, logger=False, callbacks=[EarlyStopping("loss"), AlsoActsLater()])
    leaderboard = ZeroShotSelector(watching, "params").rank([Classifier()], make_batches())
    assert not any("did not run" in note for note in leaderboard.notes)


@pytest.mark.filterwarnings("ignore:Starting from v1.9.0")
def test_lightnings_callbacks_that_change_training_take_part_and_those_that_watch_do_not(tmp_path: Path) -> None:
    class WithBackbone(Classifier):
        @property
        def backbone(self) -> nn.Module:
            return self.network[:2]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert self.trainer.accumulate_grad_batches == 3
            return super().training_step(batch, batch_idx)

    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[BackboneFinetuning(), GradientAccumulationScheduler({0: 3}), ModelCheckpoint(tmp_path / "mine")],
    )
    module = WithBackbone()
    with assert_untouched(module):
        card = score(module, make_batches(), trainer=trainer)
    assert card["zico"].error is None
    assert not any(name.startswith("network.0") for name in card["zico"].layers)
    assert os.listdir(tmp_path) == []


# Folders


@pytest.mark.parametrize("given", [False, True])
def test_what_a_step_writes_into_its_log_dir_is_gone_afterwards(given: bool, tmp_path: Path) -> None:
    folders: list[str] = []

    class Writing(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.note = out_of_reach(folders.append)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            for folder in (
                self.trainer.log_dir,
                self.trainer.default_root_dir,
                self.logger.log_dir,
                self.logger.save_dir,
            ):
                self.note(folder)
                Path(folder, "image.png").write_bytes(b"...")
            self.logger.experiment.add_image("image", batch[0])
            return super().training_step(batch, batch_idx)

    before = sorted(os.listdir())
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path) if given else None
    assert score(Writing(), make_batches(), trainer=trainer)["zico"].error is None
    assert len(set(folders)) == 1
    assert not Path(folders[0]).exists()
    assert os.listdir(tmp_path) == []
    assert sorted(os.listdir()) == before


# Data modules


class Data(LightningDataModule):
    """Scales batches on their way to the device, by what `setup` found, and only while training."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.scale: float | None = None

    def setup(self, stage: Any) -> None:
        assert self.trainer.training
        assert stage is self.trainer.state.fn
        self.calls.append(f"setup {stage.value}")
        self.scale = 3.0

    def train_dataloader(self) -> Any:
        return DataLoader(images(), 4)

    def val_dataloader(self) -> Any:
        return DataLoader(images(12), 4)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer.training and self.trainer.lightning_module is not None:
            assert self.trainer.datamodule is self
            batch = [batch[0] * self.scale, batch[1]]
        return batch

    def teardown(self, stage: Any) -> None:
        assert stage is self.trainer.state.fn
        self.calls.append(f"teardown {stage.value}")
        self.scale = None


class Linear(LightningModule):
    def __init__(self, width: int = 8, fail: bool = False) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.network = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))
        self.fail = fail

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.fail:
            signal.raise_signal(signal.SIGINT)
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Wide(Linear):
    def __init__(self) -> None:
        super().__init__(16)


class Interrupted(Linear):
    def __init__(self) -> None:
        super().__init__(fail=True)


def scaled(by: float) -> list[Any]:
    return [[x * by, y] for x, y in list(DataLoader(images(), 4))[:2]]


@pytest.mark.parametrize("executor", [None, "processes"])
def test_a_data_modules_hooks_find_their_trainer_and_what_setup_made(executor: Any) -> None:
    data = Data()
    candidates = {"narrow": Linear, "wide": Wide}
    selector = ZeroShotSelector(proxies="zico", executor=executor)
    selector.rank(candidates, data)
    want = {name: score(build(), scaled(3.0))["zico"].value for name, build in candidates.items()}
    assert {name: card["zico"].value for name, card in selector.cards_.items()} == pytest.approx(want, rel=1e-5)
    assert data.calls == ["setup fit", "teardown fit"]
    assert data.trainer is None
    assert data.scale is None


def test_a_data_module_is_set_up_for_every_repeat_and_kept_until_the_last_is_scored() -> None:
    class Shuffled(Data):
        def train_dataloader(self) -> Any:
            return DataLoader(images(), 4, shuffle=True)

    data = Shuffled()
    selector = ZeroShotSelector(proxies="zico", repeats=2)
    assert not selector.rank({"narrow": Linear}, data).errors
    assert data.calls == ["setup fit", "teardown fit"] * 2


def test_a_data_module_given_to_score_sees_a_trainer_as_well() -> None:
    data = Data()
    data.scale = 3.0
    assert score(Linear(), scaled(1.0), datamodule=data)["zico"].value == score(Linear(), scaled(3.0))["zico"].value
    assert data.trainer is None


def test_a_data_module_is_torn_down_when_ranking_breaks_off() -> None:
    data = Data()
    with pytest.raises(KeyboardInterrupt):
        ZeroShotSelector(proxies="zico").rank({"one": Linear, "two": Interrupted}, data)
    assert data.calls == ["setup fit", "teardown fit"]
    assert data.trainer is None


def test_a_data_module_that_cannot_be_torn_down_does_not_lose_the_ranking() -> None:
    class Broken(Data):
        def teardown(self, stage: str) -> None:
            raise OSError("busy")

    selector = ZeroShotSelector(proxies="zico")
    with pytest.raises(OSError, match="busy"):
        selector.rank({"one": Linear, "two": Wide}, Broken())
    assert len(selector.leaderboard_) == len(selector.cards_) == 2
    assert selector.best_model_ is not None


def test_validation_data_is_at_hand() -> None:
    class AsksForValidation(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert len(self.trainer.val_dataloaders) == 3
            return super().training_step(batch, batch_idx)

    assert not ZeroShotSelector(proxies="zico").rank({"one": AsksForValidation}, Data()).errors


class Weighted(Linear):
    """Weighs the loss by what its hook sets for each batch; without the hook by its own rule."""

    def __init__(self, hook: bool) -> None:
        super().__init__()
        self.hook = hook

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.hook:
            self.weight = 1.0 + batch_idx

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (self.weight if self.hook else 1.0 + batch_idx)


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_what_a_hook_sets_for_a_batch_is_there_in_every_step(axis: Any) -> None:
    batches = list(DataLoader(images(), 4))[:3]
    module = Weighted(hook=True)
    with assert_untouched(module):
        card = score(module, batches, ["zico", "snip", "naswot"], axis=axis)
    want = score(Weighted(hook=False), batches, ["zico", "snip", "naswot"], axis=axis)
    assert {name: card[name].error for name in card} == dict.fromkeys(card)
    assert [card[name].value for name in card] == [want[name].value for name in card]


# Steps without a loss


class Skipping(Linear):
    def __init__(self, skipped: tuple[int, ...] = (), hook: bool = False) -> None:
        super().__init__()
        self.skipped = skipped
        self.hook = hook

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.hook and batch_idx in self.skipped else None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx in self.skipped else loss


NAMES = ["zico", "naswot", "synflow", "grad_norm", "snip", "grasp", "ntk_cond", "zen", "macs", "latency"]


@pytest.mark.parametrize("axis", ["batch", "sample"])
@pytest.mark.parametrize("skipped", [(0,), (1,), (2,), (0, 1)])
def test_a_batch_without_a_loss_is_skipped_and_named(skipped: tuple[int, ...], axis: Any) -> None:
    batches = list(DataLoader(images(), 4))[:4]
    left = [batch for idx, batch in enumerate(batches) if idx not in skipped]
    module = Skipping(skipped)
    with assert_untouched(module):
        card = score(module, batches, NAMES, axis=axis)
    want = score(Linear(), left, NAMES, axis=axis)
    for name in set(NAMES) - {"latency"}:
        assert card[name].error is None, name
        assert card[name].value == want[name].value, name
    assert card["zico"].details["skipped_batches"] == list(skipped)
    assert card.untrainable is None


@pytest.mark.parametrize("hook", [False, True])
def test_too_few_batches_are_left(hook: bool) -> None:
    batches = list(DataLoader(images(), 4))[:2]
    error = score(Skipping((1,), hook), batches)["zico"].error
    assert error.startswith("TooFewBatchesError")
    assert "Training skips batches [1] of" in error
    card = score(Skipping((0, 1), hook), batches, NAMES)
    for name in NAMES:
        assert card[name].error.startswith("UnsupportedModuleError: The training step skips all 2 batches"), name
        assert ("returned -1" if hook else "returned None") in card[name].error
    assert card.untrainable.startswith("untrainable: The training step skips all 2 batches")


def test_minus_one_skips_the_rest_of_the_epoch() -> None:
    batches = list(DataLoader(images(), 4))[:4]
    card = score(Skipping((2,), hook=True), batches)
    assert card["zico"].value == score(Linear(), batches[:2])["zico"].value
    assert card["zico"].details["skipped_batches"] == [2, 3]


# What Lightning refuses


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"configure_optimizers": LightningModule.configure_optimizers}, "No `configure_optimizers()` method defined"),
        ({"training_epoch_end": lambda self, outputs: None}, "`training_epoch_end` has been removed"),
        ({"validation_epoch_end": lambda self, outputs: None}, "`validation_epoch_end` has been removed"),
        ({"configure_optimizers": lambda self: {"optimiser": 1}}, "`configure_optimizers` fails"),
        (
            {"on_train_batch_start": lambda self, batch, batch_idx, dataloader_idx: None},
            "missing 1 required positional",
        ),
        ({"setup": lambda self, s: None}, "unexpected keyword argument 'stage'"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_the_trainer_refuses_is_not_ranked(attributes: Any, reason: str) -> None:
    kind = type("Refused", (Linear,), attributes)
    with pytest.raises(Exception):  # noqa: B017, PT011
        Trainer(**QUIET, logger=False, max_steps=1).fit(kind(), DataLoader(images(), 4))
    leaderboard = ZeroShotSelector(proxies=["params", "zico"]).rank({"one": kind, "other": Linear}, loader())
    assert reason in leaderboard.errors["one"]
    assert leaderboard.best == "other"


def test_a_loss_function_needs_no_optimisers() -> None:
    kind = type("Bare", (Linear,), {"configure_optimizers": LightningModule.configure_optimizers})
    kind.forward = lambda self, x: self.network(x)
    assert score(kind(), scaled(1.0), loss_fn=nn.functional.cross_entropy).untrainable is None


@pytest.mark.parametrize(
    "ask",
    [
        lambda self: self.trainer.checkpoint_callback.save_top_k,
        lambda self: self.trainer.attribute_of_a_subclass,
        lambda self: self.trainer.save_checkpoint(None),
    ],
    ids=["None", "missing", "Lightning's own code"],
)
def test_what_only_a_running_trainer_has_does_not_make_a_candidate_untrainable(ask: Any) -> None:
    class Asks(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            ask(self)
            return super().training_step(batch, batch_idx)

    card = score(Asks(), scaled(1.0))
    assert card.untrainable is None
    assert "exists only during training" in card["zico"].error
    assert "loss_fn=" in card["zico"].error


def test_settings_travel_and_name_no_module() -> None:
    import pickle

    trainer = Trainer(**QUIET, logger=False, max_steps=1, callbacks=[Normalising()])
    trainer.fit(Classifier(), _Loader(make_batches()))
    settings = TrainerSettings.of(trainer)
    assert not {"log", "log_dict"} & vars(settings.callbacks[0]).keys()
    assert pickle.loads(pickle.dumps(settings)).max_steps == 1
    with private_trainer(settings) as private:
        assert private.max_steps == 1


# What a module writes to what it reaches through its trainer


def _count(obj: Any) -> int:
    obj.written = getattr(obj, "written", 0) + 1
    return int(obj.written)


REACHED: dict[str, Callable[[Any], Any]] = {
    "datamodule": lambda trainer: trainer.datamodule,
    "dataset": lambda trainer: trainer.train_dataloader.dataset,
    "sampler": lambda trainer: trainer.train_dataloader.sampler,
    "fit_loop": lambda trainer: trainer.fit_loop._combined_loader.flattened[0].dataset,
    "val_dataset": lambda trainer: trainer.val_dataloaders.dataset,
    "callback": lambda trainer: trainer.callbacks[-1],
}


class Plain(LightningDataModule):
    """Has no transfer hooks."""

    def setup(self, stage: str) -> None:
        self.train, self.val = images(), images()

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, 4)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, 4)


class Writes(Linear):
    """Weighs its loss by how often it, or another candidate, has written."""

    def __init__(self, where: str, hook: str) -> None:
        super().__init__()
        self.reach, self.hook, self.times = REACHED[where], hook, 1

    def on_train_start(self) -> None:
        if self.hook == "on_train_start":
            self.times = _count(self.reach(self.trainer))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        times = _count(self.reach(self.trainer)) if self.hook == "training_step" else self.times
        return super().training_step(batch, batch_idx) * times

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


@pytest.mark.parametrize("hook", ["on_train_start", "training_step"])
@pytest.mark.parametrize("where", REACHED)
def test_what_a_module_writes_to_what_its_trainer_shows_reaches_no_other_candidate(where: str, hook: str) -> None:
    def build() -> Writes:
        torch.manual_seed(0)
        return Writes(where, hook)

    data, trainer = Plain(), Trainer(**QUIET, logger=False, callbacks=[OnlyPrepares()])
    leaderboard = ZeroShotSelector(trainer, proxies=["snip", "zico"]).rank({"a": build, "b": build}, data)
    assert not leaderboard.errors
    first, second = leaderboard.rows
    assert first["snip"] == second["snip"]
    assert not any(hasattr(obj, "written") for obj in (data, data.train, data.val, *trainer.callbacks))


@pytest.mark.parametrize("hook", ["on_train_start", "training_step"])
@pytest.mark.parametrize("where", REACHED)
@pytest.mark.filterwarnings("ignore")
def test_what_a_module_writes_to_what_its_trainer_shows_is_that_of_training_alone(where: str, hook: str) -> None:
    def trained(*callbacks: Any) -> list[Any]:
        torch.manual_seed(0)
        module, data, shown = Writes(where, hook), Plain(), Callback()
        trainer = Trainer(**QUIET, logger=False, callbacks=[*callbacks, shown], max_epochs=2, limit_train_batches=2)
        trainer.fit(module, data)
        written = [getattr(obj, "written", 0) for obj in (data, data.train, data.val, shown)]
        return [*written, *(p.detach().clone() for p in module.parameters())]

    alone, scored = trained(), trained(ZiCoCallback(every_n_epochs=1))
    assert all(torch.equal(torch.as_tensor(one), torch.as_tensor(two)) for one, two in zip(alone, scored, strict=True))


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"limit_val_batches": 3}, {"limit_val_batches": 0.5}, {"limit_val_batches": 0}, {"num_sanity_val_steps": 1}],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_validation_batches_are_counted_as_in_fit(kwargs: dict[str, Any]) -> None:
    seen: list[Any] = []

    class Looks(Linear):
        def on_train_start(self) -> None:
            trainer = self.trainer
            seen.append((trainer.num_val_batches, trainer.num_sanity_val_batches))
            seen.append(len(trainer.fit_loop._combined_loader.flattened[0]))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

    trainer = Trainer(**QUIET, logger=False, max_steps=1, **kwargs)
    assert not ZeroShotSelector(trainer, proxies="zico").rank({"one": Looks}, Plain()).errors
    trainer.fit(Looks(), Plain())
    assert seen[:2] == seen[2:]


# Callbacks and loggers of the user's trainer


class Looks(Linear):
    """Weighs its loss by what it finds at its trainer."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        trainer: Any = self.trainer
        callbacks = [
            each for each in trainer.callbacks if not isinstance(each, lightning.pytorch.callbacks.ProgressBar)
        ]
        kinds = [type(each).__name__ for each in callbacks if type(each).__name__ not in ("ZiCoCallback", "Keep")]
        patience = trainer.early_stopping_callback.patience
        monitor = next(each for each in trainer.callbacks if isinstance(each, ModelCheckpoint)).monitor
        assert kinds[-1] == type(trainer.checkpoint_callback).__name__
        loggers = [logger for logger in self.loggers if isinstance(logger, Own)]
        assert isinstance(self.logger, CSVLogger)
        weight = len(kinds) + patience * len(monitor) * len(loggers)
        return super().training_step(batch, batch_idx) * weight


class Own(CSVLogger):
    pass


def looked_at(folder: Path, *callbacks: Callback) -> Trainer:
    return Trainer(
        accelerator="cpu",
        enable_model_summary=False,
        enable_progress_bar=False,
        max_steps=1,
        logger=[CSVLogger(folder), Own(folder)],
        callbacks=[
            ModelCheckpoint(folder, monitor="val_loss"),
            EarlyStopping("loss", patience=7, strict=False),
            *callbacks,
        ],
    )


@pytest.mark.filterwarnings("ignore")
def test_callbacks_that_do_not_act_and_the_kinds_of_loggers_are_seen(tmp_path: Path) -> None:
    trainer, module = looked_at(tmp_path), Looks()
    states = [dict(vars(callback)) for callback in trainer.callbacks]
    loss = loss_while_scored(module, scaled(1.0), settings=TrainerSettings.of(trainer))
    assert not score(module, scaled(1.0), trainer=trainer)["zico"].error
    assert [vars(callback) for callback in trainer.callbacks] == states
    assert os.listdir(tmp_path) == []
    selector = ZeroShotSelector(trainer, "zico", executor="processes")
    assert not selector.rank({"one": Looks}, scaled(1.0)).errors
    assert selector.cards_["one"]["zico"].value == score(Looks(), scaled(1.0), trainer=trainer)["zico"].value
    callback = ZiCoCallback()
    seen: list[Tensor] = []

    class Keep(Callback):
        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
            seen.append(loss.detach().clone())

    looked_at(tmp_path, callback, Keep()).fit(Looks(), _Loader(scaled(1.0)))
    assert callback.history[0]["error"] is None
    assert torch.equal(seen[0], loss)


class Unpicklable(EarlyStopping):
    def __reduce__(self) -> Any:
        raise TypeError("an open file")


class UnpicklableAndActs(OnlyPrepares):
    __reduce__ = Unpicklable.__reduce__


def test_a_callback_that_is_only_shown_need_not_be_picklable() -> None:
    def ranked(callback: Callback) -> Any:
        trainer = Trainer(**QUIET, logger=False, callbacks=[callback])
        return ZeroShotSelector(trainer, "zico", executor="processes").rank({"one": Linear}, scaled(1.0))

    assert not ranked(Unpicklable("loss")).errors
    with pytest.raises(TypeError, match=r"callbacks\) cannot be pickled: .*an open file"):
        ranked(UnpicklableAndActs())


def test_callbacks_that_are_only_shown_enter_the_key_of_a_score_without_their_counters() -> None:
    cache, stopping = MemoryCache(), EarlyStopping("loss", patience=7)

    def seconds(callback: Callback) -> float:
        trainer = Trainer(**QUIET, logger=False, callbacks=[callback])
        return ZeroShotSelector(trainer, "zico", cache=cache).rank({"one": Linear}, scaled(1.0)).rows[0]["seconds"]

    first = seconds(stopping)
    stopping.wait_count = 3
    assert seconds(stopping) == first  # it was in the cache
    assert seconds(EarlyStopping("another")) != first


# Who raises


def fails(*_: Any, **__: Any) -> Any:
    raise ValueError("on purpose")


class FailingData(Plain):
    on_after_batch_transfer = fails


class FailingCallback(Callback):
    on_train_batch_start = fails


class WithForward(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


@pytest.mark.parametrize(
    ("kwargs", "data", "reason"),
    [
        ({"step": fails}, None, "`step=` raised ValueError: on purpose"),
        ({"loss_fn": fails}, None, "`loss_fn=` raised ValueError: on purpose"),
        ({}, FailingData, "`FailingData.on_after_batch_transfer` raised ValueError: on purpose"),
        ({"trainer": FailingCallback}, None, "`FailingCallback.on_train_batch_start` raised ValueError: on purpose"),
        ({"step": lambda *_: {}}, None, "`step=` returned a dictionary without a loss"),
    ],
    ids=["step", "loss_fn", "data module", "callback", "no loss"],
)
def test_what_fails_for_all_candidates_is_named_and_makes_none_untrainable(
    kwargs: dict[str, Any], data: Any, reason: str
) -> None:
    if "trainer" in kwargs:
        kwargs = {"trainer": Trainer(**QUIET, logger=False, callbacks=[kwargs["trainer"]()])}
    selector = ZeroShotSelector(proxies=["zico", "params"], **kwargs)
    errors = selector.rank({"one": WithForward, "two": WithForward}, data() if data else scaled(1.0)).errors
    assert list(errors) == ["one", "two"]
    assert all(error.startswith(reason) for error in errors.values()), errors


def test_a_callback_that_the_module_brings_is_the_modules_own() -> None:
    kind = type("Brings", (Linear,), {"configure_callbacks": lambda self: FailingCallback()})
    untrainable = score(kind(), scaled(1.0)).untrainable or ""
    assert untrainable.startswith("untrainable: ")
    assert "`FailingCallback.on_train_batch_start` raised ValueError: on purpose" in untrainable


def test_a_forward_pass_that_fails_is_the_modules_fault_also_with_a_loss_function() -> None:
    kind = type("Failing", (Linear,), {"forward": fails})
    card = score(kind(), scaled(1.0), loss_fn=nn.functional.cross_entropy)
    assert card.untrainable == "untrainable: its training step fails: ValueError: on purpose"


@pytest.mark.parametrize(("options", "shape"), [({}, "untrainable: "), ({"step": True}, ""), ({"loss_fn": True}, "")])
def test_a_loss_that_is_no_number_is_the_modules_fault_where_it_is_its_own(options: dict[str, Any], shape: str) -> None:
    losses = nn.CrossEntropyLoss(reduction="none")
    step = lambda self, batch, batch_idx=0: losses(self(batch[0]), batch[1])  # noqa: E731
    given = {"step": step, "loss_fn": losses}
    kind = type("Vector", (WithForward,), {"training_step": step})
    card = score(kind(), scaled(1.0), **{name: given[name] for name in options})
    assert (card.untrainable or "").startswith(f"{shape}The loss is a tensor of shape (4,)")


@pytest.mark.parametrize("kwargs", [{"step": fails}, {"loss_fn": fails}], ids=["step", "loss_fn"])
def test_the_callback_names_what_fails(kwargs: dict[str, Any]) -> None:
    callback = ZiCoCallback(**kwargs)
    with pytest.warns(UserWarning, match="has no score"):
        Trainer(**QUIET, logger=False, max_steps=1, callbacks=[callback]).fit(WithForward(), _Loader(scaled(1.0)))
    assert callback.history[0]["error"] == f"`{next(iter(kwargs))}=` raised ValueError: on purpose"


@pytest.mark.parametrize("ask", [lambda trainer: trainer.lightning_module.width, lambda trainer: trainer.model.width])
@pytest.mark.parametrize("hook", ["prepare_data", "setup", "train_dataloader", "teardown"])
def test_a_data_module_that_asks_for_a_candidate_is_told_that_it_serves_all(hook: str, ask: Any) -> None:
    def asks(self: Any, *args: Any, **kwargs: Any) -> Any:
        ask(self.trainer)

    kind = type("Asks", (Plain,), {hook: asks})
    with pytest.raises(SurroundingsError, match="serves all candidates"):
        ZeroShotSelector(proxies="params").rank({"one": Linear}, kind())


@pytest.mark.parametrize("hook", ["prepare_data", "setup", "teardown"])
def test_a_data_module_that_can_do_without_the_module_is_read_with_a_warning(hook: str) -> None:
    def asks(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.found = getattr(self.trainer.model, "width", None)
        getattr(Plain, hook)(self, *args, **kwargs)

    kind = type("Asks", (Plain,), {hook: asks})
    with pytest.warns(UserWarning, match=rf"Asks\.{hook}` asked its trainer for the module and found None"):
        leaderboard = ZeroShotSelector(proxies="params").rank({"one": Linear}, kind())
    assert not leaderboard.errors


# When loaders are there


WHEN = ["setup", "configure_model", "configure_optimizers", "on_fit_start", "on_train_start", "training_step"]


@pytest.mark.parametrize("asks_for_steps", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_loaders_are_there_when_they_are_in_fit(asks_for_steps: bool) -> None:
    def watching(seen: dict[str, Any]) -> LightningModule:
        def look(self: Any, hook: str) -> None:
            if hook == "configure_optimizers" and asks_for_steps:
                seen["steps"] = self.trainer.estimated_stepping_batches
            trainer, loop = self.trainer, self.trainer.fit_loop
            loaders = (trainer.train_dataloader is None, trainer.val_dataloaders is None, loop._combined_loader is None)
            every = getattr(trainer, "val_check_batch", None)  # Lightning 2.5 sets it later
            counts = (trainer.num_training_batches, list(trainer.num_val_batches), every)
            seen.setdefault(hook, (*loaders, *counts))

        def hooked(hook: str) -> Any:
            def run(self: Any, *args: Any, **kwargs: Any) -> Any:
                look(self, hook)
                return getattr(super(kind, self), hook)(*args, **kwargs)

            return run

        validates = {"validation_step": lambda self, batch, batch_idx: None}
        kind = type("Watching", (Linear,), {hook: hooked(hook) for hook in WHEN} | validates)
        return kind()  # type: ignore[no-any-return]

    trained: dict[str, Any] = {}
    ranked: dict[str, Any] = {}
    Trainer(**QUIET, logger=False, max_epochs=1, limit_train_batches=3).fit(watching(trained), Plain())
    trainer = Trainer(**QUIET, logger=False, max_epochs=1, limit_train_batches=3)
    assert not ZeroShotSelector(trainer, "zico").rank({"one": lambda: watching(ranked)}, Plain()).errors
    assert set(WHEN) <= set(trained)
    assert ranked == trained


@pytest.mark.parametrize("hook", ["prepare_data", "setup", "train_dataloader", "teardown"])
def test_a_data_module_that_asks_for_what_only_training_has_says_so_and_other_errors_stay(hook: str) -> None:
    def asks(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.trainer.strategy.lightning_module.width  # noqa: B018

    with pytest.raises(SurroundingsError, match=rf"Asks.{hook}` raised AttributeError: .* only during training"):
        ZeroShotSelector(proxies="params").rank({"one": Linear}, type("Asks", (Plain,), {hook: asks})())
    with pytest.raises(ValueError, match="on purpose"):
        ZeroShotSelector(proxies="params").rank({"one": Linear}, type("Fails", (Plain,), {hook: fails})())
