"""MeCo: how independent the channels of the feature maps are.

Index conventions:
    C: channels of a feature map
    P: its positions
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_zico.engine.observers import Observer, samples_first
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.spectra import eigenvalues_of
from lightning_zico.engine.weights import drawn_indices
from lightning_zico.errors import NonFiniteError, NotApplicableError
from lightning_zico.proxies.base import Proxy, register_proxy


def least_eigenvalue(feature_map: Tensor) -> Tensor:
    """Compute the smallest eigenvalue of the correlations between channels, ``[C, P]``, or of several, ``[M, C, P]``.

    Returns:
        Scalar or ``[M]``, float64: 1 if the channels are uncorrelated, 0 if one of them follows from the others. A
        constant channel correlates with nothing, itself included. With as many channels as positions, or more, it is
        0 exactly, and not the rounding error of it, by which candidates would be ranked.

    Raises:
        NonFiniteError: If a number is not finite, or too large to be squared in float64.

    Example:
        >>> round(float(least_eigenvalue(torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]]))), 6)
        1.0
    """
    if feature_map.shape[-2] >= feature_map.shape[-1]:  # centred, they lie in P - 1 dimensions
        return torch.zeros(feature_map.shape[:-2], dtype=torch.float64, device=feature_map.device)
    centred = feature_map.to(torch.float64, copy=True)
    centred -= centred.mean(dim=-1, keepdim=True)
    products = centred @ centred.mT  # [C, P] @ [P, C] -> [C, C]
    if not bool(products.isfinite().all()):
        raise NonFiniteError("A feature map holds numbers that are not finite, or whose squares leave float64.")
    squares = products.diagonal(dim1=-2, dim2=-1)  # [..., C]
    # Of a channel that is constant, what is centred may be rounding.
    constant = (feature_map.amax(dim=-1) == feature_map.amin(dim=-1)) | (squares == 0)
    scales = squares.rsqrt().masked_fill(constant, 0.0)
    return eigenvalues_of(products * scales.unsqueeze(-1) * scales.unsqueeze(-2))[..., 0]


@dataclass(unsafe_hash=True)
class FeatureMaps(Observer):
    """Takes `least_eigenvalue` of the feature maps of the first sample, at every submodule without children.

    Args:
        num_channels: How many channels of each map, drawn; None for all.
    """

    num_channels: int | None = None

    def start(self, module: nn.Module) -> None:
        """Begin with nothing."""
        self._maps: dict[tuple[int, ...], list[Tensor]] = {}
        self._factors: dict[tuple[int, ...], list[float]] = {}
        self._num_maps = 0
        self._leaves = {id(part) for part in module.modules() if not any(part.children())}

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the map of the first sample, or of some of its channels."""
        if id(module) not in self._leaves or not isinstance(output, Tensor) or output.ndim < 3:
            return
        sample = samples_first(output, self.time_first)[0]
        if sample.is_complex():  # both parts are channels
            sample = torch.cat([sample.real, sample.imag], dim=0 if output.ndim > 3 else -1)
        feature_map = sample.flatten(1) if output.ndim > 3 else sample.T  # [C, P]; tokens are [P, C]
        channels, positions = feature_map.shape
        if channels < 2 or positions < 2:
            return
        self._num_maps += 1
        kept = channels if self.num_channels is None else min(self.num_channels, channels)
        if kept >= positions:  # the eigenvalue is zero, see `least_eigenvalue`
            return
        if kept < channels:
            feature_map = feature_map[drawn_indices(channels, kept, feature_map.device)]
        else:
            feature_map = feature_map.clone()
        # maps of one shape are taken together at the end: a small matrix costs more to call for than to decompose
        self._maps.setdefault(tuple(feature_map.shape), []).append(feature_map)
        self._factors.setdefault(tuple(feature_map.shape), []).append(channels / kept)

    def ended(self) -> None:
        """Sum up the eigenvalues."""
        if not self._num_maps:
            raise NotApplicableError("no submodule puts out a feature map of two positions and two channels.")
        sums = []
        for shape, maps in self._maps.items():
            factors = torch.tensor(self._factors[shape], dtype=torch.float64, device=maps[0].device)
            sums.append((least_eigenvalue(torch.stack(maps)) * factors).sum())
        self.total = math.fsum(torch.stack(sums).tolist()) if sums else 0.0
        self._maps = {}


@register_proxy("meco")
class MeCo(Proxy):
    r"""Sum over feature maps of the least eigenvalue of their channels' correlations (Jiang et al., NeurIPS 2023).

    .. math::
        \sum_l \lambda_{\min}\bigl(\operatorname{corr}(f_l)\bigr)
        \qquad\text{or, on } n \text{ channels,}\qquad \sum_l \frac{C_l}{n} \lambda_{\min}

    A map with more channels than positions has a zero, so that on networks which differ in width the sign turns; the
    variant on few channels (``meco_opt``) mends that.

    Args:
        num_channels: How many channels of each map, drawn alike for all candidates; None for all, as first published.
        name: Of the column.

    Source:
        Jiang et al., *MeCo*, NeurIPS 2023. There on one random image of 3 x 64 x 64, and the maps of containers count
        again; here on the first sample of the first batch, and each map once.
    """

    needs_labels = False

    def __init__(self, num_channels: int | None = None, name: str = "meco") -> None:
        self.num_channels = num_channels
        self.name = name
        self.needs = (FeatureMaps(num_channels),)

    def measure(self, probe: Probe) -> float:
        """Take the maps of the first batch's first sample."""
        return probe.observed(FeatureMaps(self.num_channels)).total


@register_proxy("meco_opt")
def meco_opt() -> MeCo:
    """Make MeCo on eight channels of each map."""
    return MeCo(num_channels=8, name="meco_opt")
