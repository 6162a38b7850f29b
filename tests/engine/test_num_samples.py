"""`num_samples=`: where it is taken, what it changes, and what happens without it."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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
    card = score(Pairs(), pairs(), ["macs", "macs_live"])
    for name in card:
        reason = "not applicable: the number of samples in a batch is unknown. Pass `num_samples=`"
        assert str(card[name].error).startswith(reason)


def test_rows_of_layers_are_not_taken_for_samples() -> None:
    class Tokens(Pairs):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.network(batch.flatten(0, 1)).square().mean()

    card = score(Tokens(), [torch.randn(4, 7, 3) for _ in range(2)], ["macs", "macs_live"])
    assert [card[name].value for name in card] == [7 * MACS, 7 * MACS]
    card = score(Pairs(), pairs(), ["macs", "macs_live"], num_samples=count_both)
    assert [card[name].value for name in card] == [MACS, MACS]


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


class Sequences(LightningModule):
    """Steps come before samples."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4)
        self.head = nn.Linear(4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        steps, labels = batch
        return F.cross_entropy(self.head(self.lstm(steps)[1][0][-1]), labels)


class Listed(LightningModule):
    """Takes images of different sizes and their boxes, however they are listed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if isinstance(batch, dict):
            images, boxes = batch["images"], batch["boxes"]
        elif isinstance(batch[0], dict):
            images, boxes = ([sample[key] for sample in batch] for key in ("image", "boxes"))
        elif isinstance(batch, list):
            images, boxes = zip(*batch, strict=True)
        else:
            images, boxes = batch
        size = [max(image.shape[dim] for image in images) for dim in (1, 2)]
        padded = [F.pad(image, (0, size[1] - image.shape[2], 0, size[0] - image.shape[1])) for image in images]
        outputs = self.head(self.conv(torch.stack(padded)).relu().amax((2, 3)))
        losses = [F.mse_loss(own.mean(0), output) for own, output in zip(boxes, outputs, strict=True)]
        return torch.stack(losses).mean()


class Weighted(LightningModule):
    """Takes its labels as numbers, and a weight that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        labels = torch.as_tensor(batch["labels"])
        return batch["weight"] * F.cross_entropy(self.network(batch["x"] + batch.get("shift", 0)), labels)


def images_and_boxes() -> tuple[list[Tensor], list[Tensor]]:
    # As high as there are images, so that their second dimension seems to count them.
    return [torch.randn(3, 4, n) for n in (5, 6, 4, 7)], [torch.randn(n, 4) for n in (2, 1, 3, 1)]


def listed(kind: str) -> tuple[Any, list[Any]]:
    """Make a batch and its single samples, cut out by hand."""
    images, boxes = images_and_boxes()
    pairs = [*zip(images, boxes, strict=True)]
    if kind == "lists":
        return (images, boxes), [([image], [own]) for image, own in pairs]
    if kind == "dictionary of lists":
        return {"images": images, "boxes": boxes}, [{"images": [image], "boxes": [own]} for image, own in pairs]
    if kind == "pairs":
        return pairs, [[pair] for pair in pairs]
    dictionaries = [{"image": image, "boxes": own} for image, own in pairs]
    return dictionaries, [[each] for each in dictionaries]


def weighted(**others: Any) -> tuple[Any, list[Any]]:
    x, weight, labels = torch.randn(4, 3), torch.tensor(0.3), others.pop("labels", [2, 0, 1, 1])
    single = [{"x": x[n : n + 1], "weight": weight, "labels": labels[n : n + 1], **others} for n in range(4)]
    return {"x": x, "weight": weight, "labels": labels, **others}, single


def time_first() -> tuple[Any, list[Any]]:
    steps, labels = torch.randn(5, 4, 3), torch.tensor([2, 0, 1, 1])
    return (steps, labels), [(steps[:, n : n + 1], labels[n : n + 1]) for n in range(4)]


@pytest.mark.parametrize(
    ("kind", "batch_of"),
    [
        (Sequences, time_first),
        *((Listed, partial(listed, kind)) for kind in ("lists", "dictionary of lists", "pairs", "dictionaries")),
        (Weighted, weighted),
        (Weighted, partial(weighted, labels=torch.tensor([2, 0, 1, 1]))),
        (Weighted, partial(weighted, labels=np.array([2, 0, 1, 1]), name="all", shift=torch.randn(1, 3))),
    ],
)
def test_gradients_of_samples_are_those_of_batches_of_one(kind: Any, batch_of: Any) -> None:
    torch.manual_seed(0)
    model = kind()
    wholes, singles = zip(*(batch_of() for _ in range(2)), strict=True)
    card = score(model, wholes, ["zico", "gradsign", "knas", "synflow"], axis="sample")
    assert {name: each.error for name, each in card.scores.items()} == dict.fromkeys(card)
    one_by_one = score(model, [one for single in singles for one in single], ["zico"])
    assert card["zico"].value == pytest.approx(one_by_one["zico"].value, rel=1e-5)
    gradients = []
    for idx, one in enumerate(singles[0]):
        model.zero_grad()
        model.training_step(one, idx).backward()
        gradients.append(torch.cat([w.grad.flatten() for w in model.parameters() if w.ndim > 1]))
    mean = torch.stack(gradients).mean(0)
    assert card["knas"].value == pytest.approx(float(mean.square().sum()), rel=1e-4)
    shuffled = score(model, wholes[::-1], ["zico"], axis="sample")
    assert shuffled["zico"].value == pytest.approx(card["zico"].value, rel=1e-5)


def test_what_no_sample_can_be_cut_out_of_is_not_applicable() -> None:
    card = score(Pairs(), pairs(), ["zico", "gradsign", "knas", "vkdnw"], axis="sample", num_samples=10)
    for name in card:
        assert str(card[name].error).startswith("not applicable: no single sample can be cut out of a batch of 10 with")
    unknown = score(Pairs(), pairs(), ["gradsign"])["gradsign"].error
    assert str(unknown).startswith("not applicable: the number of samples in a batch is unknown")


def test_samples_that_two_dimensions_may_count_are_not_cut_out() -> None:
    square = [(torch.randn(4, 4, 3), torch.tensor([2, 0, 1, 1])) for _ in range(2)]
    error = score(Sequences(), square, ["zico"], axis="sample")["zico"].error
    assert str(error).startswith("not applicable: the first two dimensions of a tensor both have length 4")
