"""Ranking is fair, honest and without side effects; the winner is trained as if nobody had ranked."""

import gc
import io
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import rich
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_zico import Budget, Candidate, Proxy, ZeroShotSelector, score
from lightning_zico.bridge import read_batches
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import IdenticalBatchesError, TooFewBatchesError, UnknownNameError, UnsupportedBatchError
from lightning_zico.report import leaderboard_table
from tests.modules import Classifier, assert_same, assert_untouched, make_network


class Data(LightningDataModule):
    """Shuffled random images, augmented with NumPy and torch."""

    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        images, labels = torch.randn(24, 2, 5, 5, generator=generator), torch.arange(24) % 3
        return DataLoader(TensorDataset(images, labels), 6, shuffle=True, collate_fn=self.augmented)

    @staticmethod
    def augmented(samples: Any) -> Any:
        images, labels = torch.utils.data.default_collate(samples)
        return images + 0.1 * torch.randn_like(images) + float(np.random.rand()), labels


class Quadruple(Classifier):
    def __init__(self) -> None:
        super().__init__(width=16)


def quiet_trainer(**kwargs: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", enable_checkpointing=False, max_epochs=2, **quiet, **kwargs)


def broken() -> LightningModule:
    raise RuntimeError("cannot be built")


class Nan(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * torch.nan


class Raising(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise KeyError("no such\nkey")


def test_rows_are_ranked_by_the_score_and_carry_the_baselines() -> None:
    selector = ZeroShotSelector(num_batches=3)
    leaderboard = selector.rank({"small": Classifier, "large": Quadruple}, Data())
    assert leaderboard is selector.leaderboard_
    assert [row["rank"] for row in leaderboard] == [1, 2]
    assert [row["name"] for row in leaderboard] == ["large", "small"]
    for row in leaderboard:
        assert list(row) == [
            "rank", "name", "score", "zico", "params", "macs", "num_layers", "sum_log_numel", "error", "seconds",
        ]  # fmt: skip
        assert row["score"] == row["zico"]
    assert isinstance(selector.best_model_, Quadruple)
    assert leaderboard.provenance["rank_by"] == "zico"
    assert leaderboard.provenance["batch_shapes"] == [[6, 2, 5, 5], [6]]


def test_a_row_is_what_score_says_of_the_same_weights_and_batches() -> None:
    selector = ZeroShotSelector(num_batches=3, seed=5)
    leaderboard = selector.rank([Classifier], Data())
    with preserved_rng(5):
        module = Classifier()
    expected = score(module, read_batches(Data(), 3, seed=5), seed=5)["zico"].value
    assert leaderboard.rows[0]["zico"] == expected


def test_ranking_does_not_depend_on_order_or_on_the_generators() -> None:
    candidates = {"a": Classifier, "b": Quadruple, "c": lambda: Classifier(8, dropout=0.5)}
    torch.manual_seed(1)
    first = {row["name"]: row["score"] for row in ZeroShotSelector().rank(candidates, Data())}
    torch.manual_seed(2)
    turned = dict(reversed(candidates.items()))
    assert {row["name"]: row["score"] for row in ZeroShotSelector().rank(turned, Data())} == first


def test_ranking_leaves_generators_and_instances_bit_identical() -> None:
    module = Classifier()
    with assert_untouched(module):
        ZeroShotSelector().rank([module, Quadruple, broken], Data())


def test_failures_are_rows_with_reasons_ranked_last() -> None:
    selector = ZeroShotSelector(budget=Budget(params=200))
    frozen = Classifier().requires_grad_(False)
    candidates = {"broken": broken, "nan": Nan, "good": Classifier, "raises": Raising, "frozen": frozen}
    candidates |= {"large": Quadruple, "no module": lambda: 3}
    leaderboard = selector.rank(candidates, Data())
    assert leaderboard.best == "good"
    assert isinstance(selector.best_model_, Classifier)
    assert [row["rank"] for row in leaderboard] == [1] + [None] * 6
    assert all(row["score"] is None for row in leaderboard.rows[1:])
    errors = leaderboard.errors
    assert errors["broken"] == "does not build: RuntimeError: cannot be built"
    assert "nan" in errors["nan"]
    assert errors["raises"] == "KeyError: 'no such\\nkey'"
    assert "trainable weight" in errors["frozen"]
    assert errors["large"].startswith("over budget: ")
    assert "3.00" not in errors["large"]
    assert "built a int" in errors["no module"]
    assert leaderboard.rows[1]["error"] is not None


def test_a_candidate_over_budget_is_never_differentiated() -> None:
    class Forbidden(Quadruple):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert batch[0].is_meta, "scored although over budget"
            return super().training_step(batch, batch_idx)

    limits = {"macs": 1e3, "params": 100, "depth": 1}
    for name, limit in limits.items():
        error = ZeroShotSelector(budget=Budget(**{name: limit})).rank([Forbidden], Data()).errors["Forbidden"]
        assert f" {name}, " in error
    with pytest.raises(ValueError, match="macs=-1"):
        Budget(macs=-1)


def test_fit_trains_the_winner_as_if_nobody_had_ranked() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    selector = ZeroShotSelector(trainer=quiet_trainer(), seed=5)
    assert selector.fit([Classifier, Quadruple, broken], datamodule=Data()) is selector

    torch.manual_seed(3)
    np.random.seed(3)
    with preserved_rng(5):
        by_hand = Quadruple()
    quiet_trainer().fit(by_hand, datamodule=Data())
    assert_same(by_hand.state_dict(), selector.best_model_.state_dict())
    with preserved_rng(5):
        untrained = Quadruple()
    assert not torch.equal(untrained.network[0].weight, by_hand.network[0].weight)


def test_an_instance_that_wins_is_trained_itself() -> None:
    small, large = Classifier(), Quadruple()
    before = large.network[0].weight.clone()
    loader = DataLoader(TensorDataset(torch.randn(12, 2, 5, 5), torch.arange(12) % 3), 4)
    selector = ZeroShotSelector(trainer=quiet_trainer()).fit([small, large], loader)
    assert selector.best_model_ is large
    assert not torch.equal(large.network[0].weight, before)
    assert selector.trainer.current_epoch == 2


def test_rank_by_any_column_in_its_direction() -> None:
    class Smallness(Proxy):
        name = "smallness"
        higher_is_better = False

        def measure(self, probe: Any) -> float:
            return probe.params

    candidates = {"small": Classifier, "large": Quadruple}
    assert ZeroShotSelector(rank_by="params").rank(candidates, Data()).best == "large"
    selector = ZeroShotSelector(proxies=["zico", Smallness()], rank_by="smallness")
    assert selector.rank(candidates, Data()).best == "small"
    assert isinstance(selector.best_model_, Classifier)
    assert not isinstance(selector.best_model_, Quadruple)


def test_equal_scores_share_a_rank_and_the_first_offered_wins() -> None:
    selector = ZeroShotSelector(proxies="params")
    leaderboard = selector.rank({"b": Classifier, "a": Classifier, "c": lambda: Classifier(2)}, Data())
    assert [(row["rank"], row["name"]) for row in leaderboard] == [(1, "b"), (1, "a"), (3, "c")]


def test_a_generator_is_never_all_in_memory() -> None:
    alive: list[weakref.ref[nn.Module]] = []

    def candidates() -> Iterator[LightningModule]:
        for _ in range(8):
            assert sum(ref() is not None for ref in alive) <= 3  # the best, the last, and this one
            module = Classifier()
            alive.append(weakref.ref(module))
            yield module
            del module

    gc.disable()  # what is let go must go at once, not when the collector comes by
    try:
        ZeroShotSelector().rank(candidates(), Data())
        assert sum(ref() is not None for ref in alive) <= 2
    finally:
        gc.enable()


def test_memory_of_built_candidates_is_let_go() -> None:
    alive: list[weakref.ref[nn.Module]] = []

    def build() -> LightningModule:
        assert sum(ref() is not None for ref in alive) == 0
        module = Classifier()
        alive.append(weakref.ref(module))
        return module

    gc.disable()
    try:
        ZeroShotSelector().rank((Candidate(str(idx), build) for idx in range(5)), Data())
    finally:
        gc.enable()
    assert len(alive) == 6  # five to score, the winner once more


def test_wrong_calls_are_refused_at_once() -> None:
    with pytest.raises(UnknownNameError, match="zico"):
        ZeroShotSelector(proxies=["zicco"])
    with pytest.raises(UnknownNameError, match="rank_by"):
        ZeroShotSelector(rank_by="accuracy")
    with pytest.raises(ValueError, match="`zico` needs at least 2"):
        ZeroShotSelector(num_batches=1)
    with pytest.raises(ValueError, match="axis"):
        ZeroShotSelector(axis="both")
    with pytest.raises(ValueError, match="trainer="):
        ZeroShotSelector().fit([Classifier], Data())
    with pytest.raises(ValueError, match="empty"):
        ZeroShotSelector().rank([], Data())
    with pytest.raises(TypeError, match="list"):
        ZeroShotSelector().rank(Classifier(), Data())
    with pytest.raises(TypeError, match="use up"):
        ZeroShotSelector(trainer=quiet_trainer()).fit([Classifier], iter([]))
    with pytest.raises(TooFewBatchesError, match="4 batches; 5"):
        ZeroShotSelector(num_batches=5).rank([Classifier], Data())
    with pytest.raises(IdenticalBatchesError):
        ZeroShotSelector().rank([Classifier], [(torch.ones(2, 2, 5, 5), torch.tensor([0, 1]))] * 2)


def test_nothing_to_train_says_why_and_keeps_the_leaderboard() -> None:
    selector = ZeroShotSelector(trainer=quiet_trainer())
    with pytest.raises(RuntimeError, match=r"All 2 candidates failed.*cannot be built"):
        selector.fit([broken, Nan], Data())
    assert selector.best_model_ is None
    assert len(selector.leaderboard_.errors) == 2
    selector = ZeroShotSelector(trainer=quiet_trainer(), loss_fn=nn.functional.cross_entropy)
    with pytest.raises(TypeError, match="LightningModules"):
        selector.fit([make_network], Data())
    assert selector.leaderboard_.best == "make_network"


@pytest.mark.parametrize(("interactive", "enabled"), [(True, True), (True, False), (False, True)])
def test_table_shows_in_interactive_terminals_alone(
    interactive: bool, enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(rich, "_console", Console(file=out, force_terminal=interactive, width=120))
    ZeroShotSelector(enable_progress_bar=enabled).rank({"small [b]": Classifier, "broken": broken}, Data())
    shown = "small [b]" in out.getvalue() and "cannot be built" in out.getvalue()
    assert shown == (interactive and enabled)
    assert bool(out.getvalue()) == shown


def test_candidates_data_and_trainer_may_all_be_of_pytorch_lightning() -> None:
    class Other(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = make_network()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    class OtherData(pytorch_lightning.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return Data().train_dataloader()

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pytorch_lightning.Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, **quiet)
    selector = ZeroShotSelector(trainer=trainer).fit([Other, broken], OtherData())
    assert isinstance(selector.best_model_, Other)
    assert trainer.global_step == 4


def test_fit_takes_a_list_of_batches_and_a_loader_as_training_does() -> None:
    images, labels = torch.randn(12, 2, 5, 5), torch.arange(12) % 3
    batches = [(images[i : i + 4], labels[i : i + 4]) for i in range(0, 12, 4)]
    selector = ZeroShotSelector(trainer=quiet_trainer()).fit([Classifier], batches)
    assert selector.trainer.global_step == 6

    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(images, labels), 4, shuffle=True)

    torch.manual_seed(3)
    selector = ZeroShotSelector(trainer=quiet_trainer()).fit([Classifier], loader())
    with preserved_rng(0):
        by_hand = Classifier()
    torch.manual_seed(3)
    quiet_trainer().fit(by_hand, loader())
    assert_same(by_hand.state_dict(), selector.best_model_.state_dict())


def test_keys_that_are_no_strings_become_names() -> None:
    leaderboard = ZeroShotSelector().rank({1: Classifier, 2: Quadruple}, Data())
    assert leaderboard.best == "2"
    assert leaderboard_table(leaderboard).row_count == 2


def test_a_winner_that_does_not_build_again_is_named_and_the_leaderboard_kept() -> None:
    built = []

    def once() -> LightningModule:
        if built:
            raise RuntimeError("only once")
        built.append(1)
        return Classifier()

    selector = ZeroShotSelector()
    with pytest.raises(RuntimeError, match=r"'once' won, but does not build a second time: RuntimeError: only once"):
        selector.rank([once], Data())
    assert selector.leaderboard_.best == "once"


@pytest.mark.parametrize("wrong", [[], [5], 5, ZeroShotSelector])
def test_proxies_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="prox"):
        ZeroShotSelector(proxies=wrong)
    with pytest.raises((TypeError, ValueError), match="prox"):
        score(Classifier(), read_batches(Data(), 2), proxies=wrong)


def test_arguments_of_a_wrong_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="Budget"):
        ZeroShotSelector(budget={"params": 5})
    with pytest.raises(ValueError, match=r"Budget\(params='5'\)"):
        Budget(params="5")
    with pytest.raises(ValueError, match=r"2\.5"):
        ZeroShotSelector(num_batches=2.5)
    with pytest.raises(ValueError, match="`zico` needs at least 2"):
        ZeroShotSelector(num_batches=1, rank_by="params")
    with pytest.raises(TypeError, match="built"):
        score(Classifier, read_batches(Data(), 2))
    for data in (5, None):
        with pytest.raises(UnsupportedBatchError):
            ZeroShotSelector(trainer=quiet_trainer()).fit([Classifier], data)
