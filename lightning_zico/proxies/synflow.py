"""SynFlow: how much of the flow through the network passes through each weight."""

import itertools
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_zico._typing import Batch
from lightning_zico.engine.batches import map_tensors, tensors_of
from lightning_zico.engine.cutting import are_first, check_strided
from lightning_zico.engine.dtypes import OneDtype, as_dtype
from lightning_zico.engine.graphs import check_graph
from lightning_zico.engine.learned import WeightDifferentiator
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NonFiniteError, NotApplicableError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy


class _Flow(WeightDifferentiator):
    """Differentiate the sum of the networks' outputs, and multiply the gradients by the weights."""

    needs_beside: ClassVar[bool] = True

    def forwarded(self, output: Tensor, inputs: Sequence[Tensor]) -> None:
        """Multiply weights and gradients."""
        if not output.requires_grad:
            raise NotApplicableError("the output of the network cannot be differentiated with respect to any weight.")
        outputs = [output, *self.beside]
        for each in outputs:
            check_graph(each)
        # In float32, the products of gradients and outputs would overflow before the logarithm of the flow does.
        is_double = output.dtype == torch.float64
        largest = None if is_double else torch.stack([each.detach().abs().amax() for each in outputs]).amax().double()
        scale = None if largest is None else largest.to(output.dtype).clamp(min=1)
        total = torch.stack([(each if scale is None else each / scale).sum() for each in outputs]).sum()
        weights = self.weights
        pairs = zip(weights.values(), self.differentiated(total), strict=True)
        sums = [_magnitude_of(weight.detach() * gradient).double().sum() for weight, gradient in pairs]
        self.flows = dict(zip(weights, torch.stack(sums).tolist(), strict=True))
        self.log_factor = 0.0 if largest is None else math.log(max(float(largest), 1.0))


@register_proxy("synflow")
class SynFlow(Proxy):
    r"""Logarithm of the flow through the weights of all layers, without data (Tanaka et al., NeurIPS 2020).

    .. math::
        \log \sum_\omega \Bigl| \theta_\omega \frac{\partial R}{\partial \theta_\omega} \Bigr|, \qquad
        R = \sum f_{|\theta|}(\mathbf{1})

    with the network :math:`f` run in float64 on one sample of ones (integers, such as tokens, are kept), all parameters
    replaced by their magnitudes, and batch normalisation left out. The flow reaches 1e60, hence the logarithm. Norms
    over a sample (``LayerNorm``) and attention are not linear and are left unchanged. Where attention or a product of
    features has lost its batch normalisation, or after hundreds of layers, the flow may overflow float64. No factor can
    be taken out beforehand, because the parts of a network scale differently; the proxy is then not applicable.

    Only the network's output is differentiated. If a step calls several networks side by side, such as heads or towers,
    it is the sum of all their outputs. What the step computes from the outputs may fail on ones, and is ignored. Casts
    to another precision within the network become casts to float64. A network that fails on a single sample is given
    two, and one that fails in float64 runs in float32; the flow per sample is the same. If no sample can be cut out of
    a batch, for example of nodes and edges, or if samples are a list and may differ in size, the flow is that of the
    whole batch.

    Source:
        Tanaka et al., arXiv:2006.05467; as a proxy in Abdelfattah et al., ICLR 2021, arXiv:2101.08134. That code writes
        the magnitudes to the weights and patches ``forward``; here, they are passed as parameters of a stateless call.
    """

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Run the network on ones and differentiate."""
        flow, way = _flow_of(probe)
        _check_finite(flow.flows, probe.module, way.dtype)
        largest = max(flow.flows.values())
        if largest == 0:
            probe.doubt(nothing_flows=True)
            raise NotApplicableError(
                "nothing flows from the input to the output: a layer in between is all zeros, or an activation "
                "function is off, for example after features are subtracted."
            )
        # The sum over layers may overflow float64 even if no single layer does.
        parts = {name: value / largest for name, value in flow.flows.items()}
        total = math.fsum(parts.values())
        shares = {name: part / total for name, part in parts.items()}
        value = math.log(largest) + math.log(total) + flow.log_factor - math.log(way.num_samples or 1)
        details: dict[str, Any] = {"shares": shares, "covered": probe.covered()}
        if (way.num_samples, way.dtype) != (1, torch.float64):
            details |= {"num_samples": way.num_samples, "computed_in": str(way.dtype).removeprefix("torch.")}
        return Measurement(value, details=details)


class _Way(NamedTuple):
    """A way to run a network on ones.

    Args:
        dtype: Precision.
        num_samples: Number of samples; None for a whole batch that no sample can be cut out of.
        follows_casts: Whether to intercept casts, which takes time.
    """

    dtype: torch.dtype
    num_samples: int | None
    follows_casts: bool


def _flow_of(probe: Probe) -> tuple[_Flow, _Way]:
    """Compute the flow in the first way that works for the network."""
    whole = probe.first_batch
    batch, inputs, count = probe.first_samples(1)
    samples: tuple[int | None, ...] = (None,)
    if count != 1 or len(tensors_of(batch)) < len(tensors_of(whole)):
        batch, inputs = whole, probe.inputs
    else:
        samples = (1, 2) if are_first(whole, probe.num_samples or 1) else (1,)
    ways = [_Way(dtype, count, True) for dtype in (torch.float64, torch.float32) for count in samples]
    failures: list[NotApplicableError] = []
    for way in (ways[0]._replace(follows_casts=False), *ways):
        try:
            flow = _run(probe, _ones(batch, way, inputs), way)
        except NotApplicableError as error:
            failures.append(error)
            continue
        if way.follows_casts or all(map(math.isfinite, flow.flows.values())):
            return flow, way
    probe.doubt()
    raise failures[1]  # the error for float64 with casts intercepted


def _run(probe: Probe, ones: Batch, way: _Way) -> _Flow:
    names = probe.chosen().parameters
    tensors = {name: as_dtype(_positive(p.detach()), way.dtype) for name, p in probe.module.named_parameters()}
    tensors |= {name: as_dtype(buffer.detach().clone(), way.dtype) for name, buffer in probe.module.named_buffers()}
    for name in names:
        tensors[name].requires_grad_()
    flow = _Flow(tuple(names))
    fed = f"{'a batch' if way.num_samples is None else 'one or two samples'} of ones, in float64 and in float32"
    mode = _Linear(way.dtype, way.follows_casts)
    probe.forward(flow, tensors=tensors, batch=ones, mode=mode, fed=fed, is_cut=way.num_samples is not None)
    return flow


def _check_finite(flows: Mapping[str, float], module: nn.Module, dtype: torch.dtype) -> None:
    lost = next((name for name, value in flows.items() if not math.isfinite(value)), None)
    if lost is None:
        return
    # Distinguish a broken candidate from one to which the formula does not apply.
    for name, parameter in module.named_parameters():
        if not bool(parameter.detach().isfinite().all()):
            raise NonFiniteError(
                f"Parameter '{name}' has NaN or infinite entries: expected finite weights. Check how it is initialised."
            )
    raise NotApplicableError(
        f"the flow at '{lost}' is {flows[lost]}: without batch normalisation it exceeds the range of "
        f"{str(dtype).removeprefix('torch.')}, or it has no derivative."
    )


class _Linear(OneDtype):
    """Leave out batch normalisation, and compute in one precision."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            # A copy, as a norm would return: an in-place activation after it must not change what a shortcut needs.
            return (args[0] if args else kwargs["input"]).clone()
        return super().__torch_function__(func, types, args, kwargs)


def _positive(parameter: Tensor) -> Tensor:
    # A complex weight stays complex, so that products with complex features are defined.
    return parameter.abs().to(parameter.dtype)


def _magnitude_of(products: Tensor) -> Tensor:
    return products.abs() if products.is_complex() else products.abs_()


def _ones(batch: Batch, way: _Way, inputs: Container[int]) -> Batch:
    """Return the batch with ones for the network's inputs, and the only sample twice along dimension 0 if requested."""
    positions = itertools.count()

    def one(tensor: Tensor) -> Tensor:
        check_strided(tensor)
        sample = tensor.expand(2, *tensor.shape[1:]) if way.num_samples == 2 and tensor.ndim else tensor
        return as_dtype(torch.ones_like(sample) if next(positions) in inputs else sample.clone(), way.dtype)

    return map_tensors(one, batch)
