"""Finals choose by training, and the winner's training is the same as without them."""

import inspect
import io
import os
import pickle
import random
import signal
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_zico import Leaderboard, Score, ScoreCard, ZeroShotSelector
from lightning_zico.engine.scope import preserved_rng, seed_all
from lightning_zico.errors import NotLoggedError
from lightning_zico.ranking import get_recipe
from lightning_zico.results import Final, leaderboard_table
from lightning_zico.selection.finalist import Training
from tests.modules import Classifier, Fixed, Numbered, assert_same, assert_untouched, make_batches, make_network


class Data(LightningDataModule):
    """Random images whose order, split and augmentation may come from the global generators."""

    def __init__(self, shuffle: bool = False) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.splits: list[list[int]] = []

    def setup(self, stage: str) -> None:
        images = torch.randn(24, 2, 5, 5, generator=torch.Generator().manual_seed(0))
        data = TensorDataset(images, torch.arange(24) % 3)
        self.train_data, self.val_data = torch.utils.data.random_split(data, [18, 6])
        self.splits.append(list(self.val_data.indices))

    def train_dataloader(self) -> DataLoader[Any]:
        collate = self.augmented if self.shuffle else None
        return DataLoader(self.train_data, 6, shuffle=self.shuffle, collate_fn=collate)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val_data, 6)

    @staticmethod
    def augmented(samples: Any) -> Any:
        images, labels = torch.utils.data.default_collate(samples)
        return images + torch.randn_like(images) + float(np.random.rand()) + random.random(), labels


class Net(Classifier):
    """Logs a loss, has a schedule over all of training, and carries the score that `Fixed` gives it."""

    def __init__(self, score: float = 0.0, lr: float = 0.01, dropout: float = 0.0) -> None:
        super().__init__(dropout=dropout)
        self.numbers = {"own": score}
        self.lr = lr
        self.seen: list[tuple[int, float]] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def on_train_epoch_start(self) -> None:
        self.seen.append((self.current_epoch, self.optimizers().param_groups[0]["lr"]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        total = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 10 * self.lr, total_steps=int(total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Saying(Net):
    """Logs what it is told to, one value an epoch."""

    def __init__(self, score: float, *values: float, metric: str = "val_loss") -> None:
        super().__init__(score)
        self.values, self.metric = values, metric

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log(self.metric, self.values[min(self.current_epoch, len(self.values) - 1)])


class Raising(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.max_epochs > 1:  # that of scoring has one epoch
            raise RuntimeError("cannot be trained")
        return super().training_step(batch, batch_idx)


class Mute(Classifier):
    numbers = {"own": 0.0}  # noqa: RUF012


def trainer_of(max_epochs: int = 4, **kwargs: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"accelerator": "cpu", "enable_checkpointing": False, "num_sanity_val_steps": 1, **quiet, **kwargs}
    return Trainer(max_epochs=max_epochs, **options)


def selector_of(trainer: Trainer | None = None, num_finalists: int = 2, **kwargs: Any) -> ZeroShotSelector:
    return ZeroShotSelector(trainer or trainer_of(), Fixed("own"), finalists=num_finalists, seed=5, **kwargs)


def trained_without_pause(build: Callable[[], LightningModule], data: Any, **kwargs: Any) -> LightningModule:
    with preserved_rng(5):
        model = build()
    seed_all(5)
    trainer_of(**kwargs).fit(model, datamodule=data)
    return model


@pytest.mark.parametrize(("shuffle", "dropout"), [(False, 0.0), (True, 0.5)])
@pytest.mark.parametrize("num_finalists", [2, 5])
def test_the_winner_ends_as_if_it_had_been_trained_without_a_pause(
    shuffle: bool, dropout: float, num_finalists: int
) -> None:
    kwargs = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    builds = {f"{idx}": partial(Net, -idx, 10 ** -(1 + idx % 3), dropout) for idx in range(6)}
    trainer, data = trainer_of(5, **kwargs), Data(shuffle)
    selector = selector_of(trainer, num_finalists).fit(builds, data)
    rows = selector.leaderboard_.rows
    rounds = {2: [2], 5: [5, 3, 2]}[num_finalists]
    assert sorted((row["final_epochs"] or 0 for row in rows), reverse=True) == [
        sum(idx < size for size in rounds) for idx in range(6)
    ]

    winner = rows[0]["name"]
    by_hand = trained_without_pause(builds[winner], Data(shuffle), max_epochs=5, **kwargs)
    assert_same(by_hand.state_dict(), selector.best_model_.state_dict())
    assert_same(
        by_hand.optimizers(use_pl_optimizer=False).state_dict(),
        selector.best_model_.optimizers(use_pl_optimizer=False).state_dict(),
    )
    assert selector.best_model_.seen == by_hand.seen[len(rounds) :]  # epochs and learning rates go on
    assert (trainer.current_epoch, trainer.global_step) == (5, 10)
    assert all(split == data.splits[-1] for split in data.splits[1:])  # the first is that of the ranking


def test_a_finalists_value_is_that_of_its_first_epochs_without_a_pause() -> None:
    builds = {"a": partial(Net, 1), "b": partial(Net, 0, 0.1)}
    rows = {row["name"]: row for row in selector_of(final_epochs=2).fit(builds, Data(True)).leaderboard_}

    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    for name, build in builds.items():
        model = trained_without_pause(build, Data(True), callbacks=[Stop()])
        assert rows[name]["final"] == model.trainer.callback_metrics["val_loss"].item()
        assert rows[name]["final_epochs"] == 2


def test_finals_decide_and_the_leaderboard_shows_both_stages() -> None:
    builds = {
        "fourth": partial(Saying, 1, 0.1),
        "first": partial(Saying, 4, 0.3),
        "third": partial(Saying, 2, 0.2),
        "second": partial(Saying, 3, 0.2),
        "broken": lambda: 3,
    }
    for mode, order in {"min": ["second", "third", "first"], "max": ["first", "second", "third"]}.items():
        selector = selector_of(num_finalists=3, mode=mode).fit(builds, Data())
        leaderboard = selector.leaderboard_
        assert [row["name"] for row in leaderboard] == [*order, "fourth", "broken"]
        ranks = {"min": [1, 1, 3], "max": [1, 2, 2]}[mode]
        assert [row["rank"] for row in leaderboard] == [*ranks, 4, None]
        assert [row["final_rank"] for row in leaderboard] == [*ranks, None, None]
        assert [row["final_epochs"] for row in leaderboard] == [1, 1, 1, None, None]
        final = {"first": 0.3, "second": 0.2, "third": 0.2}
        assert [row["final"] for row in leaderboard] == pytest.approx([*(final[name] for name in order), None, None])
        assert {row["name"]: row["score"] for row in leaderboard.rows[:4]} == {
            "first": 4, "second": 3, "third": 2, "fourth": 1,
        }  # fmt: skip
        assert leaderboard.best == order[0]
        assert selector.best_model_.numbers["own"] == {"min": 3, "max": 4}[mode]
        end = {"min": "lowest", "max": "highest"}[mode]
        assert leaderboard.notes[0] == (
            f"Finals: the first 3 by score were trained for 1 epoch; the {end} val_loss won."
        )


@pytest.mark.parametrize("num_finalists", [4, 5, 8])
def test_more_than_four_are_halved_until_one_is_left(num_finalists: int) -> None:
    trained: list[str] = []

    class Counting(Saying):
        def on_train_epoch_end(self) -> None:
            trained.append(self.numbers["own"])

    # The later a candidate was offered, the better it looks after one epoch; after three, the third is the best.
    builds = {
        str(idx): partial(Counting, -idx, 1 - idx / 10, 1 - idx / 10, 0.0 if idx == num_finalists - 2 else 0.5)
        for idx in range(10)
    }
    trainer = trainer_of(4)
    leaderboard = selector_of(trainer, num_finalists).fit(builds, Data()).leaderboard_
    rounds = {4: [4], 5: [5, 3, 2], 8: [8, 4, 2]}[num_finalists]
    expected = [-idx for size in rounds for idx in sorted(range(num_finalists), reverse=True)[:size]]
    num_left = 4 - len(rounds)
    assert sorted(trained[: sum(rounds)]) == sorted(expected)
    assert len(trained) == sum(rounds) + num_left
    best = num_finalists - 1 if len(rounds) == 1 else num_finalists - 2
    assert leaderboard.best == str(best)
    epochs = [row["final_epochs"] for row in leaderboard.rows[:num_finalists]]
    assert epochs == sorted(epochs, reverse=True)
    assert sum(epochs) == sum(rounds)
    assert leaderboard.provenance["finals"]["halving"] == (len(rounds) > 1)
    assert ("the better half for 1 more" in leaderboard.notes[0]) == (len(rounds) > 1)


@pytest.mark.parametrize("num_finalists", [4, 5])
def test_a_finalist_that_is_trained_to_the_end_keeps_its_value(num_finalists: int) -> None:
    builds = {str(idx): partial(Saying, -idx, 1 - idx / 10) for idx in range(5)}
    trainer = trainer_of(fast_dev_run=True)
    selector = selector_of(trainer, num_finalists, final_epochs=3).fit(builds, Data())
    assert [row["final_epochs"] for row in selector.leaderboard_.rows[:num_finalists]] == [1] * num_finalists
    assert selector.leaderboard_.best == str(num_finalists - 1)
    assert trainer.current_epoch == 1
    by_hand = trained_without_pause(builds[str(num_finalists - 1)], Data(), fast_dev_run=True)
    assert_same(by_hand.state_dict(), selector.best_model_.state_dict())


def test_one_finalist_is_no_finals() -> None:
    torch.manual_seed(3)
    selector = selector_of(num_finalists=1).fit([Net], Data(True))
    assert "final" not in selector.leaderboard_.rows[0]
    assert "finals" not in selector.leaderboard_.provenance
    with preserved_rng(5):
        model = Net()
    torch.manual_seed(3)
    data = Data(True)
    trainer_of().fit(model, datamodule=data)
    assert selector.trainer.current_epoch == 4
    assert selector.best_model_.seen == model.seen


def test_instances_that_do_not_win_are_left_bit_identical_and_the_winner_is_trained_itself() -> None:
    loser, winner = Saying(2, 0.9), Saying(1, 0.1)
    before = winner.network[0].weight.clone()
    untrained = loser.state_dict()["network.0.weight"].clone()
    loser_state = {name: id(parameter) for name, parameter in loser.named_parameters()}
    selector = selector_of().fit({"loser": loser, "winner": winner}, Data())
    assert selector.best_model_ is winner
    assert not torch.equal(winner.network[0].weight, before)
    assert torch.equal(loser.network[0].weight, untrained)
    assert {name: id(parameter) for name, parameter in loser.named_parameters()} == loser_state
    assert (loser._trainer, loser.seen, loser.training) == (None, [], True)


def test_factories_that_share_a_backbone_are_trained_apart_and_only_the_winner_trains_it() -> None:
    class Headed(Net):
        def __init__(self, score: float, lr: float, backbone: nn.Module) -> None:
            super().__init__(score, lr)
            self.network[0] = backbone

    def fitted(shared: bool) -> tuple[ZeroShotSelector, nn.Module]:
        with preserved_rng(3):
            backbone = make_network()[0]
        offered: Any = (lambda: backbone) if shared else (lambda: deepcopy(backbone))
        builds = {str(lr): lambda lr=lr: Headed(-lr, lr, offered()) for lr in (0.001, 0.01, 0.03)}
        return selector_of(num_finalists=3).fit(builds, Data(True)), backbone

    (together, backbone), (apart, untrained) = fitted(shared=True), fitted(shared=False)
    rows = [{**row, "seconds": None} for row in together.leaderboard_]
    assert rows == [{**row, "seconds": None} for row in apart.leaderboard_]
    assert_same(together.best_model_.state_dict(), apart.best_model_.state_dict())
    assert together.best_model_.network[0] is backbone
    assert not torch.equal(backbone.weight, untrained.weight)


def test_finals_leave_the_generators_and_everyone_as_they_were_if_all_fail() -> None:
    model = Saying(1, float("inf"))
    with assert_untouched(model), pytest.raises(RuntimeError, match="finalists failed"):
        selector_of().fit([model, partial(Saying, 0, float("nan"))], Data())


def test_a_finalist_that_fails_is_out_with_its_reason() -> None:
    builds = {
        "raises": partial(Raising, 9),
        "nan": partial(Saying, 8, float("nan")),
        "silent": partial(Saying, 7, 0.0, metric="val_acc"),
        "good": partial(Saying, 6, 0.5),
        "reserve": partial(Saying, 5, 0.1),
    }
    selector = selector_of(num_finalists=4).fit(builds, Data())
    leaderboard = selector.leaderboard_
    assert [row["name"] for row in leaderboard] == ["good", "reserve", "raises", "nan", "silent"]
    assert [row["rank"] for row in leaderboard] == [1, 2, None, None, None]
    assert leaderboard.errors == {
        "raises": "finals: RuntimeError: cannot be trained",
        "nan": "finals: ValueError: `val_loss` is nan after training.",
        "silent": "finals: NotLoggedError: `val_loss` was not logged; logged: val_acc. Did you mean 'val_acc'? Log it, "
        "pass validation data, or name another `monitor`.",
    }
    assert [row["score"] for row in leaderboard] == [6, 5, 9, 8, 7]
    assert selector.best_model_.numbers["own"] == 6


def test_a_finalist_that_fails_in_a_later_round_makes_way_for_one_that_does_not() -> None:
    values = {"a": [0.1, float("nan")], "b": [0.2, float("nan")], "c": [0.3, 0.3], "d": [0.4], "e": [0.5]}
    builds = {name: partial(Saying, -idx, *own) for idx, (name, own) in enumerate(values.items())}
    leaderboard = selector_of(num_finalists=5).fit(builds, Data()).leaderboard_
    assert [row["name"] for row in leaderboard] == ["c", "d", "e", "a", "b"]
    assert [row["final_epochs"] for row in leaderboard] == [2, 1, 1, 2, 2]


@pytest.mark.parametrize("final_epochs", [1, 2, 3])
@pytest.mark.parametrize("num_finalists", [2, 5])
@pytest.mark.parametrize("trains_first", [True, False])
def test_a_wrong_monitor_is_found_before_a_second_finalist_is_trained(
    num_finalists: int, final_epochs: int, trains_first: bool
) -> None:
    epochs: list[str] = []

    class Counted(Net):
        def on_train_epoch_end(self) -> None:
            epochs.append("one")

    builds: dict[str, Any] = {str(score): partial(Counted, score) for score in range(5, 0, -1)}
    if not trains_first:
        builds["5"] = partial(Raising, 5)
    trainer = trainer_of(10, limit_train_batches=2)
    selector = selector_of(trainer, num_finalists, monitor="val_los", final_epochs=final_epochs)
    name = "5" if trains_first else "4"
    told = rf"Invalid monitor='val_los'\. In '{name}', .*logged: val_loss\. Did you mean 'val_loss'"
    with pytest.raises(NotLoggedError, match=told):
        selector.fit(builds, Data())
    assert epochs == ["one"]
    assert selector.best_model_ is None
    assert selector.leaderboard_.best == name  # by score: the one that was trained is not to blame
    assert (trainer.current_epoch, trainer.global_step) == (0, 0)


def test_a_monitor_may_be_logged_wherever_training_logs() -> None:
    class AtTheEnd(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("of_epoch", loss, on_step=False, on_epoch=True)
            return loss

        def on_train_epoch_end(self) -> None:
            self.log("at_end", 1.0 + self.current_epoch)

    builds = {"a": partial(AtTheEnd, 2), "b": partial(AtTheEnd, 1)}
    for monitor in ("of_epoch", "at_end", "val_loss"):
        selector = selector_of(monitor=monitor, final_epochs=2).fit(builds, Data())
        assert selector.leaderboard_.errors == {}
    rare = trainer_of(6, check_val_every_n_epoch=2)
    assert selector_of(rare, monitor="val_loss", final_epochs=4).fit(builds, Data()).leaderboard_.errors == {}


def test_if_all_finalists_fail_the_error_says_so_and_the_leaderboard_is_kept() -> None:
    builds = {"a": partial(Raising, 2), "b": partial(Saying, 1, float("nan")), "c": partial(Net, 0)}
    selector = selector_of()
    with pytest.raises(RuntimeError, match=r"All 2 finalists failed. 'a' failed with.*cannot be trained"):
        selector.fit(builds, Data())
    assert selector.best_model_ is None
    assert set(selector.leaderboard_.errors) == {"a", "b"}
    assert [row["name"] for row in selector.leaderboard_] == ["c", "a", "b"]
    with pytest.raises(NotLoggedError, match="`val_loss` was not logged; logged: nothing"):
        selector_of().fit([Mute, Mute], DataLoader(TensorDataset(torch.randn(8, 2, 5, 5), torch.arange(8) % 3), 4))


def test_who_was_not_trained_did_not_win() -> None:
    loader = DataLoader(TensorDataset(torch.randn(8, 2, 5, 5), torch.arange(8) % 3), 4)
    with pytest.raises(ValueError, match="`limit_train_batches=0`, so it would train nothing"):
        selector_of(trainer_of(limit_train_batches=0)).fit([lambda: pytest.fail("built")], loader)

    class Lazy(Mute):
        def on_fit_start(self) -> None:
            self.trainer.limit_train_batches = 0

    with pytest.raises(RuntimeError, match=r"All 2 finalists failed.*trained no epoch"):
        selector_of().fit([Lazy, Lazy], loader)


def test_networks_without_a_training_step_are_out() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.numbers = make_network(), {"own": 9.0}

        def forward(self, images: Tensor) -> Tensor:
            return self.network(images)

    selector = selector_of(loss_fn=nn.functional.cross_entropy).fit({"bare": Bare, "net": Net}, Data())
    assert selector.leaderboard_.best == "net"
    assert "it is a Bare, but a `Trainer` only trains LightningModules" in selector.leaderboard_.errors["bare"]


class Watching(Callback):
    """Notes which epochs of which model it sees."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(trainer.current_epoch)


def test_callbacks_and_loggers_only_see_the_winner(tmp_path: Path) -> None:
    watching, stopping = Watching(), EarlyStopping("val_loss", patience=1)
    saving = ModelCheckpoint(tmp_path / "saved", monitor="val_loss", save_top_k=-1)
    logger = CSVLogger(tmp_path, "logs")
    callbacks = [watching, stopping, saving]
    kwargs = {"logger": logger, "enable_checkpointing": True, "min_epochs": 2, "log_every_n_steps": 1}
    trainer = trainer_of(8, callbacks=callbacks, **kwargs)
    before = list(trainer.callbacks)
    builds = {"a": partial(Saying, 1, 0.1), "b": partial(Saying, 2, 0.2, 0.15)}
    selector = selector_of(trainer).fit(builds, Data())
    assert selector.leaderboard_.best == "a"
    assert watching.seen == [selector.best_model_, 1, 2]  # the second epoch is no better than the first it sees
    assert trainer.callbacks == before
    assert trainer.loggers == [logger]
    assert (trainer.max_epochs, trainer.min_epochs, trainer.min_steps) == (8, 2, None)
    assert len(list((tmp_path / "saved").iterdir())) == 2
    assert {metrics["epoch"] for metrics in logger.experiment.metrics} <= {1, 2}


def test_the_winner_is_there_if_its_training_ends_early() -> None:
    class Ends(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 2:
                raise RuntimeError("no more")

    selector = selector_of(trainer_of(callbacks=[Ends()]))
    with pytest.raises(RuntimeError, match="no more"):
        selector.fit({"a": partial(Net, 2), "b": partial(Net, 1)}, Data())
    assert isinstance(selector.best_model_, Net)
    assert selector.leaderboard_["a"]["final"] is not None


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_on_disk_and_the_trainer_is_put_back(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Net):
        def on_train_start(self) -> None:
            if self.trainer is not trainer:
                return  # it is being ranked
            assert list(tmp_path.rglob("*.ckpt"))  # the first finalist's
            if fails:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    callbacks = [Watching()]
    trainer = trainer_of(callbacks=callbacks, min_epochs=3, min_steps=2)
    selector = selector_of(trainer)
    builds = {"a": partial(Net, 2), "b": partial(Interrupted, 1, 1.0)}
    if fails:
        with pytest.raises(KeyboardInterrupt):
            selector.fit(builds, Data())
        assert (trainer.current_epoch, trainer.global_step) == (0, 0)
        assert callbacks[0].seen == []
    else:
        selector.fit(builds, Data())
        assert trainer.current_epoch == 4
    assert list(tmp_path.rglob("*")) == []
    assert trainer.callbacks == callbacks
    assert (trainer.max_epochs, trainer.min_epochs, trainer.min_steps) == (4, 3, 2)


@pytest.mark.parametrize("num_done", [0, 1, 3])
def test_ctrl_c_goes_on_and_the_finalists_that_are_done_are_kept(num_done: int) -> None:
    trainings: list[int] = []

    class Interrupted(Saying):
        def on_train_start(self) -> None:
            if self.trainer is not trainer:
                return  # it is being ranked
            trainings.append(self.trainer.current_epoch)
            if len(trainings) > num_done:
                signal.raise_signal(signal.SIGINT)

    builds = {str(idx): partial(Interrupted, -idx, 1 - idx / 10) for idx in range(4)}
    trainer = trainer_of(callbacks=[Watching()])
    selector = selector_of(trainer, num_finalists=4)
    before, handler = list(trainer.callbacks), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        selector.fit(builds, Data())
    rows = selector.leaderboard_.rows
    done = [str(idx) for idx in reversed(range(num_done))]
    assert [row["name"] for row in rows] == [*done, *(name for name in builds if name not in done)]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    finals = [*(1 - int(name) / 10 for name in done), *[None] * (4 - num_done)]
    assert [row.get("final") for row in rows] == pytest.approx(finals)
    said = "Finals of the first 4 by score were interrupted; those trained so far come first."
    assert (said in selector.leaderboard_.notes) == (num_done > 0)
    assert selector.best_model_ is None
    assert (trainer.callbacks, trainer.current_epoch) == (before, 0)
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_trainer_does_not_remember_the_checkpoint_of_the_finals() -> None:
    trainer = trainer_of()
    model = selector_of(trainer).fit([Net, Net], Data()).best_model_
    assert trainer.ckpt_path is None
    trainer.fit_loop.max_epochs = 5
    trainer.fit(model, datamodule=Data())
    assert trainer.current_epoch == 5


def test_hyperparameters_may_be_any_objects() -> None:
    class Hyper(Net):
        def __init__(self, score: float, network: nn.Module) -> None:
            super().__init__(score)
            self.save_hyperparameters(ignore=["score"], logger=False)

    builds = {str(idx): lambda idx=idx: Hyper(idx, nn.Linear(1, 1)) for idx in range(5)}
    with pytest.warns(UserWarning, match="is an instance of `nn.Module`"):
        selector = selector_of(num_finalists=5).fit(builds, Data())
    assert selector.leaderboard_.errors == {}
    assert selector.trainer.current_epoch == 4


@pytest.mark.skipif(
    "weights_only" not in inspect.signature(Trainer.fit).parameters,
    reason="Lightning before 2.6 loads all of a checkpoint",
)
def test_a_checkpoint_that_someone_has_put_in_place_of_ours_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Planted:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    train = Training.train

    def plant(training: Training, *args: Any) -> None:
        if training.num_epochs:
            checkpoint = torch.load(training.checkpoint, weights_only=False)
            torch.save({**checkpoint, "planted": Planted()}, training.checkpoint)
        train(training, *args)

    monkeypatch.setattr(Training, "train", plant)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        selector_of().fit([Net, Net], Data())
    assert not (tmp_path / "ran").exists()


def test_loaders_and_lists_of_batches_serve_as_well() -> None:
    images, labels = torch.randn(12, 2, 5, 5), torch.arange(12) % 3
    batches = [(images[i : i + 4], labels[i : i + 4]) for i in range(0, 12, 4)]
    builds = {"a": partial(Saying, 2, 0.2), "b": partial(Saying, 1, 0.1)}
    loader = DataLoader(TensorDataset(images, labels), 4)
    for data in (batches, loader):
        selector = selector_of().fit(builds, data, val_dataloaders=loader)
        assert selector.leaderboard_.best == "b"
        assert selector.trainer.global_step == 12


def test_a_trainer_of_pytorch_lightning_serves_as_well() -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pytorch_lightning.Trainer(accelerator="cpu", max_epochs=2, enable_checkpointing=False, **quiet)

    class Other(pytorch_lightning.LightningModule):
        def __init__(self, score: float) -> None:
            super().__init__()
            self.network, self.numbers = make_network(), {"own": score}

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.numbers["own"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    loader = DataLoader(TensorDataset(torch.randn(8, 2, 5, 5), torch.arange(8) % 3), 4)
    selector = selector_of(trainer).fit({"a": partial(Other, 2), "b": partial(Other, 1)}, loader, loader)
    assert selector.leaderboard_.best == "b"
    assert trainer.current_epoch == 2


def test_a_dry_run_goes_through() -> None:
    selector = selector_of(trainer_of(fast_dev_run=True), num_finalists=5)
    selector.fit({str(idx): partial(Net, idx) for idx in range(6)}, Data())
    assert selector.leaderboard_.errors == {}


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"finalists": 0}, ValueError, "Invalid finalists=0: expected a whole number of at least 1"),
        ({"finalists": True}, ValueError, "Invalid finalists=True"),
        ({"final_epochs": 0.5}, ValueError, r"Invalid final_epochs=0\.5"),
        ({"final_epochs": True}, ValueError, "Invalid final_epochs=True"),
        ({"repeats": True}, ValueError, "Invalid repeats=True: expected a whole number of at least 1"),
        ({"monitor": 3}, TypeError, "Invalid monitor=3: expected the name of a logged metric"),
        ({"mode": "best"}, ValueError, "Invalid mode='best': expected 'min' if lower"),
    ],
)
def test_arguments_out_of_range_are_refused(kwargs: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ZeroShotSelector(**kwargs)


class Accumulating(GradientAccumulationScheduler):
    """A child of a callback that changes training."""


def refused(match: str, error: type[Exception] = ValueError, num_finalists: int = 2, **kwargs: Any) -> None:
    """Check that `fit` refuses before it builds any candidate."""
    epochs = kwargs.pop("final_epochs", 1)
    selector = selector_of(trainer_of(**kwargs), num_finalists, final_epochs=epochs)
    with pytest.raises(error, match=match):
        selector.fit([lambda: pytest.fail("built")], Data())
    assert not hasattr(selector, "leaderboard_")


def test_trainers_that_cannot_hold_finals_are_refused_before_the_ranking() -> None:
    refused("max_steps=7", max_steps=7)
    for callback in (Accumulating({0: 2}), StochasticWeightAveraging(0.01), BackboneFinetuning()):
        refused(f"`trainer` has {type(callback).__name__}, which changes training", callbacks=[callback])
    refused("`max_epochs=4`, but 2 finalists are trained for up to 4 epochs", final_epochs=4)
    too_short = {"num_finalists": 5, "final_epochs": 2, "max_epochs": 6}
    refused("`max_epochs=6`, but 5 finalists are trained for up to 6 epochs", **too_short)
    refused("validates every 2 epochs", check_val_every_n_epoch=2)
    refused("validates every 2 epochs", check_val_every_n_epoch=2, final_epochs=3)
    selector = selector_of().fit([Net, Net], Data())
    with pytest.raises(ValueError, match="has already trained 4 epochs"):
        selector.fit([Net, Net], Data())


def test_trainers_that_can_hold_finals_pass() -> None:
    scheduler = GradientAccumulationScheduler({0: 2})
    for num_finalists, kwargs in {
        1: {"callbacks": [scheduler]},
        2: {"check_val_every_n_epoch": 2},
        3: {"fast_dev_run": True, "check_val_every_n_epoch": 5},
    }.items():
        selector = selector_of(trainer_of(**kwargs), num_finalists, final_epochs=2).fit([Net, partial(Net, 1)], Data())
        assert selector.leaderboard_.errors == {}


def test_validation_data_that_can_be_read_once_is_refused() -> None:
    batches = make_batches()
    for once in (iter(batches), [iter(batches)]):
        with pytest.raises(TypeError, match="Invalid val_dataloaders: a list_iterator, which can be read only once"):
            selector_of().fit([lambda: pytest.fail("built")], batches, once)


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 2), min_size=1, max_size=8), st.integers(1, 5), st.data())
def test_finalists_are_the_first_of_the_ranking_whatever_the_scores(
    numbers: list[tuple[int, int]], num_finalists: int, data: st.DataObject
) -> None:
    # What a recipe ranks first is not known before the last candidate is there.
    members = get_recipe("balanced").members
    columns = [data.draw(st.sampled_from([0, 1])) for _ in members]
    modules = [
        Numbered({member: float(pair[column]) for member, column in zip(members, columns, strict=True)})
        for pair in numbers
    ]
    selector = ZeroShotSelector(
        proxies=["balanced", *map(Fixed, members)],
        loss_fn=nn.functional.cross_entropy,
        finalists=num_finalists,
        enable_progress_bar=False,
    )
    leaderboard = selector.rank({str(idx): module for idx, module in enumerate(modules)}, make_batches())
    first = [row["name"] for row in leaderboard][:num_finalists]
    assert selector.best_model_ is modules[int(first[0])]


def board() -> Leaderboard:
    cards = [ScoreCard(name, {"zico": Score("zico", score)}) for name, score in zip("abcd", (4, 3, 3, 2), strict=True)]
    cards.append(ScoreCard("e", {"zico": Score("zico", None, "broken")}))
    leaderboard = Leaderboard.of(cards, rank_by="zico", columns=["zico"])
    leaderboard = replace(leaderboard, provenance={"rank_by": "zico", "kendall_with": {"params": 1.0}})
    held = {"monitor": "val_acc", "mode": "max", "finalists": 2, "final_epochs": 3, "halving": False}
    return leaderboard.with_finals([Final("d", 0.5, 3), Final("a", None, 1, "ValueError: no")], held)


def test_a_leaderboard_with_finals_survives_every_form() -> None:
    leaderboard = board()
    assert [(row["rank"], row["name"]) for row in leaderboard] == [
        (1, "d"),
        (2, "b"),
        (2, "c"),
        (None, "a"),
        (None, "e"),
    ]
    columns = ["rank", "name", "score", "final", "final_rank", "final_epochs", "zico", "error", "seconds"]
    assert leaderboard.columns == columns
    assert all(list(row) == columns for row in leaderboard)
    assert Leaderboard.from_dict(leaderboard.to_dict()) == leaderboard
    assert Leaderboard.from_json(leaderboard.to_json()) == leaderboard
    assert leaderboard.to_csv().splitlines()[:2] == [",".join([*columns, "missing"]), "1,d,2,0.5,1,3,2,,0.0,"]
    frame = leaderboard.to_pandas()
    assert list(frame.columns) == columns
    assert frame["final_rank"].tolist()[0] == 1
    assert frame["final_epochs"].isna().sum() == 3
    assert str(leaderboard).splitlines() == [
        "Ranked by zico",
        "rank  name  final  final_rank  final_epochs  zico  seconds",
        "   1  d       0.5           1             3     2        0",
        "   2  b         -           -             -     3        0",
        "   2  c         -           -             -     3        0",
        "   -  a         -           -             1     4        0",
        "   -  e         -           -             -     -        0",
        "a: finals: ValueError: no",
        "e: broken",
        "Finals: the first 2 by score were trained for 3 epochs; the highest val_acc won.",
        "Kendall's tau of the ranking by score with the trivial baselines: params 1.00.",
        "The ranking by score adds little to counting weights: it is almost the same as by params (1.00).",
    ]


def test_the_table_shows_both_stages() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(leaderboard_table(board()))
    text = console.export_text()
    header, _, first, *_ = [line for line in text.splitlines() if line.strip()][1:]
    assert header.split() == ["rank", "name", "final", "final_rank", "final_epochs", "zico", "seconds"]
    assert first.split() == ["1", "d", "0.5", "1", "3", "2", "0"]
    assert "a: finals: ValueError: no" in text
