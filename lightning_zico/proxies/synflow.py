"""SynFlow: how much of what flows through the network passes through each weight."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_zico._typing import Batch
from lightning_zico.engine.batch_norm import BatchNormMode
from lightning_zico.engine.batches import map_tensors
from lightning_zico.engine.learned import WeightDifferentiator
from lightning_zico.engine.observers import check_graph
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NoGradientError, NonFiniteError, NotApplicableError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy


class _Flow(WeightDifferentiator):
    """Differentiates the sum of the network's output, and multiplies the gradients with the weights."""

    def forwarded(self, output: Tensor, inputs: Sequence[Tensor]) -> None:
        """Multiply weights and gradients."""
        check_graph(output)
        pairs = zip(self.weights.values(), self.differentiated(output.sum()), strict=True)
        sums = [(weight.detach() * gradient).abs_().sum() for weight, gradient in pairs]
        self.flows = dict(zip(self.weights, torch.stack(sums).tolist(), strict=True))


@register_proxy("synflow")
class SynFlow(Proxy):
    r"""Logarithm of the flow through all weights of layers, without data (Tanaka et al., NeurIPS 2020).

    .. math::
        \log \sum_\omega \Bigl| \theta_\omega \frac{\partial R}{\partial \theta_\omega} \Bigr|, \qquad
        R = \sum f_{|\theta|}(\mathbf{1})

    with the network :math:`f` run in float64 on one sample of ones (integers, such as tokens, stay), all parameters
    replaced by their magnitudes, and batch normalisation left out. The flow reaches 1e60, hence the logarithm. Norms
    over a sample (``LayerNorm``) and attention are not linear and are left as they are. Where attention or a product
    of features has lost its batch normalisation, and after hundreds of layers, the flow may leave float64. No factor
    can be taken out of it beforehand, since not all of a network scales alike: the proxy is not applicable then.

    Source:
        Tanaka et al., arXiv:2006.05467; as a proxy in Abdelfattah et al., ICLR 2021, arXiv:2101.08134. That code writes
        the magnitudes to the weights and patches ``forward``; here they are other parameters of a stateless call.
    """

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Run the network on ones and differentiate."""
        names = probe.chosen().parameters
        tensors = {name: _double(p.detach().abs()) for name, p in probe.module.named_parameters()}
        tensors |= {name: _double(buffer.detach().clone()) for name, buffer in probe.module.named_buffers()}
        flow = _Flow({name: tensors[name].requires_grad_() for name in names})
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # constants that the network makes on its way
        try:
            probe.forward(flow, tensors=tensors, batch=_ones(probe.first_batch), mode=BatchNormMode(_left_out))
        finally:
            torch.set_default_dtype(default)
        _check_finite(flow.flows, probe.module)
        largest = max(flow.flows.values())
        if largest == 0:
            raise NoGradientError("Nothing flows from the input to the output.")
        # The sum over layers may leave float64 although each of them stays there.
        parts = {name: value / largest for name, value in flow.flows.items()}
        total = math.fsum(parts.values())
        shares = {name: part / total for name, part in parts.items()}
        return Measurement(math.log(largest) + math.log(total), details={"shares": shares, "covered": probe.covered()})


def _check_finite(flows: Mapping[str, float], module: nn.Module) -> None:
    lost = next((name for name, value in flows.items() if not math.isfinite(value)), None)
    if lost is None:
        return
    # A broken candidate is told apart, since a proxy that does not apply makes all candidates fall back.
    for name, parameter in module.named_parameters():
        if not bool(parameter.detach().isfinite().all()):
            raise NonFiniteError(f"Parameter '{name}' has NaN or infinite entries; needed are finite weights.")
    raise NotApplicableError(
        f"the flow at '{lost}' is {flows[lost]}: without batch normalisation it leaves float64, or has no derivative."
    )


def _left_out(arguments: dict[str, Any]) -> Tensor:
    # A copy, as a norm would give one: an activation in place behind it must not reach what a shortcut still needs.
    return arguments["input"].clone()


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _ones(batch: Batch) -> Batch:
    """Take one sample of a batch, and ones for what is of floating point."""

    def one(tensor: Tensor) -> Tensor:
        sample = tensor[:1] if tensor.ndim else tensor
        return torch.ones_like(sample, dtype=torch.float64) if tensor.is_floating_point() else sample

    return map_tensors(one, batch)
