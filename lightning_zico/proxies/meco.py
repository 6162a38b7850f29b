"""MeCo: how independent the channels of the feature maps are.

Index conventions:
    C: channels of a feature map
    P: its positions
"""

import math
from collections.abc import Sequence
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
        Scalar or ``[M]``, float64: 1 if the channels are uncorrelated, 0 if one of them is a linear combination of the
        others. A constant channel correlates with nothing, not even with itself. With at least as many channels as
        positions, the value is exactly 0, so candidates are not ranked by rounding errors.

    Raises:
        NonFiniteError: If an entry is not finite, or too large to be squared in float64.

    Example:
        >>> round(float(least_eigenvalue(torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]]))), 6)
        1.0
    """
    if feature_map.shape[-2] >= feature_map.shape[-1]:  # centred channels span at most P - 1 dimensions
        return torch.zeros(feature_map.shape[:-2], dtype=torch.float64, device=feature_map.device)
    centred = feature_map.to(torch.float64, copy=True)
    centred -= centred.mean(dim=-1, keepdim=True)
    products = centred @ centred.mT  # [C, P] @ [P, C] -> [C, C]
    if not bool(products.isfinite().all()):
        raise NonFiniteError("A feature map has entries that are not finite, or whose squares overflow float64.")
    squares = products.diagonal(dim1=-2, dim2=-1)  # [..., C]
    # The centred values of a constant channel may be rounding errors.
    constant = (feature_map.amax(dim=-1) == feature_map.amin(dim=-1)) | (squares == 0)
    scales = squares.rsqrt().masked_fill(constant, 0.0)
    return eigenvalues_of(products * scales.unsqueeze(-1) * scales.unsqueeze(-2))[..., 0]


def first_map(output: Any, time_first: int | None) -> Tensor | None:
    """Arrange the feature map of the first sample as ``[C, P]``.

    Args:
        output: Output of a submodule.
        time_first: See `Observer`.

    Returns:
        A view; None if the output has fewer than two channels or positions, or is no tensor.
    """
    if not isinstance(output, Tensor) or output.ndim < 3:
        return None
    sample = samples_first(output, time_first)[0]
    if sample.is_complex():  # both parts are channels
        sample = torch.cat([sample.real, sample.imag], dim=0 if output.ndim > 3 else -1)
    feature_map = sample.flatten(1) if output.ndim > 3 else sample.T  # [C, P]; tokens are [P, C]
    return feature_map if min(feature_map.shape) > 1 else None


@dataclass(unsafe_hash=True)
class FeatureMaps(Observer):
    """Compute `least_eigenvalue` of the feature maps of the first sample, for every submodule without children.

    Args:
        num_channels: Number of channels to draw from each map; None for all.
    """

    num_channels: int | None = None

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self._maps: dict[tuple[int, ...], list[Tensor]] = {}
        self._factors: dict[tuple[int, ...], list[float]] = {}
        self._num_maps = 0
        self._leaves = {id(part) for part in module.modules() if not any(part.children())}

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the map of the first sample, or some of its channels."""
        feature_map = first_map(output, self.time_first) if id(module) in self._leaves else None
        if feature_map is None:
            return
        channels, positions = feature_map.shape
        self._num_maps += 1
        kept = channels if self.num_channels is None else min(self.num_channels, channels)
        if kept >= positions:  # the eigenvalue is zero; see `least_eigenvalue`
            return
        if kept < channels:
            feature_map = feature_map[drawn_indices(channels, kept, feature_map.device)]
        else:
            feature_map = feature_map.clone()
        # Maps of one shape are decomposed together at the end: for a small matrix, the call costs more than the work.
        self._maps.setdefault(tuple(feature_map.shape), []).append(feature_map)
        self._factors.setdefault(tuple(feature_map.shape), []).append(channels / kept)

    def ended(self) -> None:
        """Sum up the eigenvalues."""
        if not self._num_maps:
            raise NotApplicableError("no submodule outputs a feature map with at least two positions and two channels.")
        if not self._maps:
            raise NotApplicableError(
                "no feature map has more positions than channels that are compared, so every smallest eigenvalue is "
                "zero, whatever the network computes."
            )
        sums = []
        for shape, maps in self._maps.items():
            factors = torch.tensor(self._factors[shape], dtype=torch.float64, device=maps[0].device)
            sums.append((least_eigenvalue(torch.stack(maps)) * factors).sum())
        self.total: float = math.fsum(torch.stack(sums).tolist())
        self._maps = {}


@register_proxy("meco")
class MeCo(Proxy):
    r"""Sum over feature maps of the smallest eigenvalue of their channels' correlations (Jiang et al., NeurIPS 2023).

    .. math::
        \sum_l \lambda_{\min}\bigl(\operatorname{corr}(f_l)\bigr)
        \qquad\text{or, on } n \text{ channels,}\qquad \sum_l \frac{C_l}{n} \lambda_{\min}

    A map with at least as many channels as positions contributes zero, so among networks that differ in width, the
    correlation with accuracy changes its sign. If all maps are such, as in a transformer that is wider than its
    sequences are long, the proxy is not applicable. The variant with few channels (``meco_opt``) fixes that.

    Args:
        num_channels: Number of channels to draw from each map, the same for all candidates; None for all, as first
            published.
        name: Name of the column.

    Source:
        Jiang et al., *MeCo*, NeurIPS 2023. The published code uses one random image of 3 x 64 x 64, and counts the
        outputs of containers as well. Here, the first sample of the first batch is used, and only modules without
        children count. The paper sums over layers. Its code also counts modules that return their input, such as the
        skip connections of NAS-Bench-201, and so does this: the map that goes into `nn.Identity` counts twice.
    """

    needs_labels = False

    def __init__(self, num_channels: int | None = None, name: str = "meco") -> None:
        self.num_channels = num_channels
        self.name = name
        self.needs: Sequence[Observer] = (FeatureMaps(num_channels),)

    def measure(self, probe: Probe) -> float:
        """Return the sum for the first sample of the first batch."""
        return probe.observed(FeatureMaps(self.num_channels)).total


@register_proxy("meco_opt")
def meco_opt() -> MeCo:
    """Return MeCo with eight channels of each map."""
    return MeCo(num_channels=8, name="meco_opt")
