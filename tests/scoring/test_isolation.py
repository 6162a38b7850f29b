"""Scoring writes to no weight that a step reaches otherwise than through the module tree."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_zico import score
from tests.hidden import HIDING, KINDS, Taught
from tests.modules import make_batches, make_network


def bytes_of(tensor: Tensor) -> Any:
    return tensor.detach().clone().reshape(-1).view(torch.uint8)


def photo(module: Any) -> dict[str, Any]:
    tensors = [*module.parameters(), *module.buffers(), *module.hidden()]
    modes = [part.training for part in module.modules()]
    return {
        "values": [bytes_of(tensor) for tensor in tensors],
        "places": [(id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors],
        "autograd": [(tensor.requires_grad, tensor.is_leaf, id(tensor.grad)) for tensor in tensors],
        "modes": modes + [part.training for part in getattr(module, "teacher", nn.Identity()).modules()],
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "how", [{"proxies": "default"}, {"proxies": "zico", "axis": "sample"}], ids=["batch", "sample"]
)
def test_weights_that_a_step_reaches_by_another_way_are_untouched(kind: str, how: dict[str, Any]) -> None:
    module = KINDS[kind]()
    module.train()
    before = photo(module)
    card = score(module, make_batches(2, 4), **how)
    after = photo(module)
    values = zip(before.pop("values"), after.pop("values"), strict=True)
    assert all(torch.equal(*pair) for pair in values)
    assert after == before
    # That of all parameters at once differentiates inside of its step, which a forward without gradients refuses.
    assert any(one.error is None for one in card.scores.values()) or kind == "optimizer over its own weights"


@pytest.mark.parametrize("kind", KINDS)
def test_each_batch_finds_weights_as_training_finds_them_at_first(kind: str) -> None:
    torch.manual_seed(3)
    module = KINDS[kind]()
    batches = make_batches(2, 4)
    in_order, swapped = (score(module, those, proxies="zico")["zico"] for those in (batches, batches[::-1]))
    assert in_order.error is None
    assert in_order.value == pytest.approx(swapped.value, rel=1e-4)  # sums in another order


@pytest.mark.parametrize("hiding", HIDING)
@pytest.mark.parametrize("argument", ["loss_fn", "step"])
def test_what_a_loss_function_holds_is_untouched(hiding: str, argument: str) -> None:
    taught, network = Taught(hiding), make_network()
    losses = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        losses.append(1)  # the user's own diagnostics, which are kept
        with torch.no_grad():
            for mean in taught.teacher.parameters():
                mean.mul_(0.9)
        return F.mse_loss(outputs, taught.teacher(torch.ones(len(outputs), 2, 5, 5)))

    def step(module: nn.Module, batch: Any, batch_idx: int) -> Tensor:
        return loss_fn(module(batch[0]), batch[1])

    before = photo(taught)
    card = score(network, make_batches(), proxies="zico", **{argument: locals()[argument]})
    after = photo(taught)
    assert card["zico"].error is None
    assert losses
    assert all(torch.equal(*pair) for pair in zip(before.pop("values"), after.pop("values"), strict=True))
    assert after == before
