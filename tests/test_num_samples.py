"""`num_samples=`: where it is taken, what it changes, and what happens without it."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_zico import Budget, Candidate, ZeroShotSelector, ZiCoCallback, score


class Pairs(LightningModule):
    """Two sets of points of different sizes: a batch that does not tell what a sample is."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.network(torch.cat(batch)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


MACS = 3 * 8 + 8 * 1


def pairs() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(4, 3), torch.randn(6, 3)) for _ in range(2)]


def count_both(batch: Any) -> int:
    return len(batch[0]) + len(batch[1])


@pytest.mark.parametrize("num_samples", [10, count_both])
def test_a_stated_number_of_samples_makes_numbers_per_sample(num_samples: Any) -> None:
    card = score(Pairs(), pairs(), ["macs", "params"], num_samples=num_samples)
    assert card["macs"].value == MACS
    assert card["macs"].details["num_samples"] == 10
    selector = ZeroShotSelector(proxies="macs", num_samples=num_samples)
    assert selector.rank({"pairs": Pairs}, pairs()).rows[0]["macs"] == MACS


def test_without_it_numbers_per_sample_are_not_applicable() -> None:
    error = score(Pairs(), pairs(), ["macs"])["macs"].error
    assert error is not None
    assert error.startswith("not applicable: nothing tells how many samples a batch has. Pass `num_samples=`")


def test_a_candidates_own_number_is_taken_instead() -> None:
    candidates = [Candidate("ten", Pairs), Candidate("five", Pairs, num_samples=5)]
    board = ZeroShotSelector(proxies="macs", num_samples=10).rank(candidates, pairs())
    assert {row["name"]: row["macs"] for row in board.rows} == {"ten": MACS, "five": 2 * MACS}


def test_a_budget_holds_for_the_batch_where_its_samples_are_unknown() -> None:
    def error_of(limit: float, **how: Any) -> str | None:
        board = ZeroShotSelector(proxies="params", budget=Budget(macs=limit), **how).rank({"pairs": Pairs}, pairs())
        return board.rows[0]["error"]

    assert error_of(10 * MACS) is None
    error = error_of(10 * MACS - 1)
    assert error is not None
    assert error.startswith("over budget: 320 macs")
    assert "for a whole batch" in error
    assert "`num_samples=`" in error
    assert error_of(MACS, num_samples=10) is None
    assert "whole batch" not in str(error_of(MACS - 1, num_samples=10))


class Products(LightningModule):
    """Does all its work in a kernel of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return torch.ops.lightning_zico_tests.multiplied(batch, self.weight).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@torch.library.custom_op("lightning_zico_tests::multiplied", mutates_args=())
def multiplied(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


@multiplied.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(len(x), weight.shape[1])


multiplied.register_autograd(
    lambda ctx, grad: (grad @ ctx.saved_tensors[1].mT, ctx.saved_tensors[0].mT @ grad),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def test_a_budget_cannot_be_kept_by_what_cannot_be_counted() -> None:
    batches = [torch.randn(4, 3) for _ in range(2)]
    board = ZeroShotSelector(proxies="params", budget=Budget(macs=1e9)).rank({"products": Products}, batches)
    assert "no formula for the operations of lightning_zico_tests.multiplied" in board.rows[0]["error"]


@pytest.mark.parametrize("wrong", [0, 1.5, "8", True])
def test_a_wrong_number_is_refused_when_it_is_given(wrong: Any) -> None:
    for call in (
        lambda: score(Pairs(), pairs(), ["macs"], num_samples=wrong),
        lambda: ZeroShotSelector(num_samples=wrong),
        lambda: ZiCoCallback(num_samples=wrong),
        lambda: Candidate("pairs", Pairs, num_samples=wrong),
    ):
        with pytest.raises(ValueError, match="Invalid num_samples="):
            call()


def test_what_a_function_returns_is_checked() -> None:
    for call in (
        lambda: score(Pairs(), pairs(), ["macs"], num_samples=lambda batch: -1),
        lambda: ZeroShotSelector(proxies="macs", num_samples=lambda batch: -1).rank({"pairs": Pairs}, pairs()),
    ):
        with pytest.raises(ValueError, match="`num_samples=` returned -1"):
            call()
    candidate = Candidate("wrong", Pairs, num_samples=lambda batch: -1)
    board = ZeroShotSelector(proxies="macs").rank([candidate], pairs())
    assert "`num_samples=` returned -1" in board.rows[0]["error"]


def test_gradients_of_single_samples_cut_what_counts_samples() -> None:
    class TimeFirst(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4)
            self.head = nn.Linear(4, 1)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.head(self.lstm(batch)[0]).square().mean()

    batches = [torch.randn(5, 2, 3) for _ in range(2)]
    error = score(TimeFirst(), batches, ["zico"], axis="sample")["zico"].error
    assert error is not None
    assert "has length 5, but it has 2 samples" in error
    assert score(TimeFirst(), batches, ["zico"], axis="batch")["zico"].error is None
