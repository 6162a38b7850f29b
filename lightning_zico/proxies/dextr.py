"""Dextr: how well-conditioned the feature maps are, and how strongly the output curves along a circle of inputs.

Index conventions:
    C: channels of a feature map
    P: its positions
    K: outputs of a sample
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_zico.engine.batches import tensors_of
from lightning_zico.engine.graphs import check_graph
from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.products import NO_SECOND_DERIVATIVE
from lightning_zico.engine.spectra import eigenvalues_of
from lightning_zico.engine.weights import drawn_like, map_inputs
from lightning_zico.errors import NonFiniteError, NotApplicableError, message_of
from lightning_zico.proxies.attention import UnfusedAttention
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy
from lightning_zico.proxies.meco import first_map

_MOST_OUTPUTS = 10  # as published; each takes two backward passes of one sample


def inverse_condition(feature_maps: Tensor) -> Tensor:
    """Divide the smallest singular value of feature maps, ``[M, C, P]`` or ``[C, P]``, by the largest.

    Returns:
        ``[M]`` or scalar, float64, from 0 to 1; 0 if the rank is less than the smaller side.

    Example:
        >>> float(inverse_condition(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])))
        0.75
    """
    few = feature_maps.double()
    few = few if few.shape[-2] <= few.shape[-1] else few.mT
    eigenvalues = eigenvalues_of(few @ few.mT)  # [C, P] @ [P, C], or [P, C] @ [C, P]
    largest = eigenvalues[..., -1]
    return (eigenvalues[..., 0] / largest.masked_fill(largest == 0, 1.0)).sqrt()


def extrinsic_curvature(velocity: Tensor, acceleration: Tensor) -> float:
    r"""Compute how strongly a curve bends.

    .. math::
        \frac{\sqrt{\lVert v \rVert^2 \lVert a \rVert^2 - (v \cdot a)^2}}{\lVert v \rVert^3}

    Args:
        velocity: First derivative of the curve by its parameter, ``[K]``.
        acceleration: Second derivative, ``[K]``.

    Returns:
        The inverse of the radius of the circle that fits best; infinite or NaN if the velocity is zero.

    Example:
        >>> extrinsic_curvature(torch.tensor([0.0, 2.0]), torch.tensor([-2.0, 0.0]))  # a circle of radius 2
        0.5
    """
    v, a = velocity.double(), acceleration.double()
    area = ((v @ v) * (a @ a) - (v @ a) ** 2).clamp(min=0).sqrt()
    return float(area / (v @ v) ** 1.5)


@dataclass(unsafe_hash=True)
class MapConditions(Observer):
    """Compute `inverse_condition` of the feature map of the first sample, for every submodule without children.

    A submodule that returns its input, such as `nn.Identity`, does not count.
    """

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self._maps: dict[torch.Size, list[Tensor]] = {}
        self._leaves = {id(part) for part in module.modules() if not any(part.children())}

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the map of the first sample."""
        feature_map = first_map(output, self.time_first) if id(module) in self._leaves else None
        if feature_map is not None and not _is_identity(module, inputs, output):
            self._maps.setdefault(feature_map.shape, []).append(feature_map.clone())

    def ended(self) -> None:
        """Sum them up."""
        if not self._maps:
            raise NotApplicableError("no submodule outputs a feature map with at least two positions and two channels.")
        stacks = [torch.stack(maps) for maps in self._maps.values()]
        if not all(bool(stack.isfinite().all()) for stack in stacks):
            raise NonFiniteError("A feature map has NaN or infinite entries.")
        self.total: float = math.fsum(torch.stack([inverse_condition(stack).sum() for stack in stacks]).tolist())
        self._maps = {}


def _is_identity(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> bool:
    """Whether a module has returned its input, unchanged."""
    if getattr(module, "inplace", False):  # the input is then the output, whatever the module computes
        return isinstance(module, _DropoutNd) and not (module.training and module.p)
    alike = [given for given in inputs if isinstance(given, Tensor) and given.dtype == output.dtype]
    return any(given.device == output.device and torch.equal(given, output) for given in alike)


@dataclass(unsafe_hash=True)
class _Curve(Observer):
    """Differentiate the output of one sample twice along a circle of inputs.

    Args:
        velocities: First derivative of each input by the angle.
        seed: Seed of the drawn outputs.
    """

    velocities: list[Tensor] = field(compare=False)
    seed: int = 0

    needs_graph: ClassVar[bool] = True

    def forwarded(self, output: Tensor, inputs: Sequence[Tensor]) -> None:
        """Differentiate some outputs."""
        if not output.requires_grad:
            raise NotApplicableError("the output does not depend on a floating-point input.")
        check_graph(output)
        outputs = output.flatten()
        drawn = torch.randperm(len(outputs), generator=torch.Generator().manual_seed(self.seed))[:_MOST_OUTPUTS]
        try:
            pairs = [self._derivatives(outputs[idx], inputs) for idx in drawn.tolist()]
        except RuntimeError as error:
            if not NO_SECOND_DERIVATIVE.search(str(error)):
                raise
            raise NotApplicableError(f"an operation has no second derivative: {message_of(error)}") from error
        self.velocity, self.acceleration = (torch.stack(each).detach() for each in zip(*pairs, strict=True))

    def _derivatives(self, output: Tensor, points: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        slopes = torch.autograd.grad(output, points, create_graph=True, materialize_grads=True)
        velocity = _dot(slopes, self.velocities)
        acceleration = -_dot(slopes, points)  # a point on a circle is accelerated towards its centre
        if velocity.requires_grad:  # else the output is linear in the inputs
            bends = torch.autograd.grad(velocity, points, retain_graph=True, materialize_grads=True)
            acceleration = acceleration + _dot(bends, self.velocities)
        return velocity, acceleration


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()


def _curve(probe: Probe) -> _Curve:
    """Differentiate along a circle around the origin through two directions that are drawn, at its first point.

    Raises:
        NotApplicableError: If the network reads no floating-point tensor, the input of a sample is a single number, no
            single sample can be cut out of the batch, or the network does not run on one.
    """
    if not probe.inputs:
        raise NotApplicableError("the network reads no floating-point tensor of the batch to differentiate twice.")
    batch, positions, count = probe.first_samples(1)
    if count != 1:
        raise NotApplicableError("no single sample can be cut out of the batch.")
    generator = torch.Generator().manual_seed(probe.seed)
    places = [tensor for idx, tensor in enumerate(tensors_of(batch)) if idx in positions]
    drawn = [torch.cat([drawn_like(place, generator).flatten().double() for place in places]) for _ in range(2)]
    if len(drawn[0]) < 2:
        raise NotApplicableError("the input of a sample is a single number, and there is no circle in one dimension.")
    plane = torch.linalg.qr(torch.stack(drawn, dim=1)).Q.T  # [2, D], orthonormal
    point, velocity = (
        [
            part.view(place.shape).to(place)
            for part, place in zip(row.split([place.numel() for place in places]), places, strict=True)
        ]
        for row in plane
    )
    points = iter(point)
    observer = _Curve(velocity, probe.seed)
    circle = map_inputs(lambda _: next(points), batch, positions)
    fed = "a single sample, which is a point of a circle of inputs"
    probe.forward(observer, batch=circle, mode=UnfusedAttention(), fed=fed, is_cut=True)
    return observer


@register_proxy("dextr")
class Dextr(Proxy):
    r"""Condition of the feature maps and curvature of the output along a circle (Asthana et al., TMLR 2025).

    .. math::
        \frac{a b}{a + b}, \qquad a = \log\Bigl(1 + \sum_l \frac{\sigma_{\min}(F_l)}{\sigma_{\max}(F_l)}\Bigr),
        \qquad b = \log(1 + \kappa)

    with :math:`F_l` the feature map of the first sample, ``[C, P]``, for every submodule without children that does not
    return its input, and :math:`\kappa` the `extrinsic_curvature` of ten outputs at one point of a circle around the
    origin of the input space. There, the network runs on a single sample, so batch normalisation in training mode uses
    the statistics of that sample, and needs more than one position. Not applicable to token models, whose inputs have
    no circle.

    Source:
        Asthana et al., *Dextr*, TMLR 2025, and its public code. There, the maps of containers count again, and those
        with one position or channel count 1 whatever the network computes; here, each map counts once, and such maps do
        not count. There, outputs may be drawn twice. There, the value is :math:`a` if :math:`\kappa` cannot be
        computed; here, the proxy is not applicable, because that is another scale.
    """

    needs_labels = False
    needs: Sequence[Observer] = (MapConditions(),)

    def measure(self, probe: Probe) -> Measurement:
        """Combine both parts."""
        conditions = probe.observed(MapConditions()).total
        curve = _curve(probe)
        if len(curve.velocity) < 2:
            raise NotApplicableError("the network has one output, and a curve in one dimension has no curvature.")
        curvature = extrinsic_curvature(curve.velocity, curve.acceleration)
        if not math.isfinite(curvature):
            raise NotApplicableError(
                "the output does not change along a circle of inputs, or its derivatives are not finite."
            )
        first, second = math.log1p(conditions), math.log1p(curvature)
        if first + second == 0:
            raise NotApplicableError("every feature map is rank-deficient, and the output does not curve.")
        details = {"inverse_conditions": conditions, "curvature": curvature}
        return Measurement(first * second / (first + second), details=details)
