"""What a training step holds, against counting by hand."""

import torch
from torch import nn

from lightning_zico.engine.memory import step_bytes
from lightning_zico.engine.probe import Probe
from tests.modules import assert_untouched, make_batches, make_network


def probe_of(module: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Probe:
    return Probe(module, lambda m, batch, _: nn.functional.mse_loss(m(batch[0]), batch[1]), batches)


def test_of_two_layers_it_is_weights_gradients_batch_and_what_backward_needs() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    inputs, targets = torch.randn(7, 3), torch.randn(7, 2)
    weights = (3 * 5 + 5) + (5 * 2 + 2)
    # Saved: the inputs, the output of ReLU, which the next layer takes in, and the outputs, which the loss looks at.
    numbers = 2 * weights + inputs.numel() + targets.numel() + 7 * 5 + 7 * 2
    assert step_bytes(probe_of(module, [(inputs, targets)])) == 4 * numbers


def test_frozen_weights_have_no_gradient() -> None:
    module = nn.Linear(3, 5)
    batches = [(torch.randn(7, 3), torch.randn(7, 5))]
    whole = step_bytes(probe_of(module, batches))
    module.weight.requires_grad_(False)
    assert whole - step_bytes(probe_of(module, batches)) == 4 * 15


def test_it_grows_with_the_batch_and_touches_nothing() -> None:
    module = make_network(dropout=0.5)
    step = lambda m, batch, _: nn.functional.cross_entropy(m(batch[0]), batch[1])  # noqa: E731
    with assert_untouched(module):
        few, many = (step_bytes(Probe(module, step, make_batches(1, n))) for n in (4, 8))
    assert few < many < 2 * few + 1
