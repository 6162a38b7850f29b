"""L-SWAG: stability of the gradients times the number of activation patterns.

Index conventions:
    B: batches (or samples) whose gradients are compared
    *: shape of one parameter
"""

import math
from collections.abc import Mapping, Sequence

import torch

from lightning_zico.engine.learned import MomentsOverBatches
from lightning_zico.engine.moments import Moments
from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import IdenticalBatchesError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy
from lightning_zico.proxies.swap import SignPatterns, sign_patterns


def steadiness(moments: Mapping[str, Moments]) -> dict[str, float]:
    r"""Compute how stable the gradients of each layer are.

    .. math::
        \Lambda_l = \log \sum_{\omega \in l} \frac{1}{\sigma(|g_\omega|)}

    with the population standard deviation over batches. Weights whose gradient does not vary are left out.

    Args:
        moments: Moments of the magnitude of the gradient, by layer, over ``B >= 2`` batches.

    Returns:
        Value of each layer by name. It is not scale-free: halving the loss adds ``log 2`` per layer.

    Raises:
        IdenticalBatchesError: If no weight of any layer varies.
    """
    sums = []
    for m in moments.values():
        assert m.deviation is not None
        inverse = m.deviation.reciprocal().masked_fill_(m.deviation == 0, 0.0)  # [*]
        sums.append(inverse.sum(dtype=torch.float64) * math.sqrt(m.count))
    totals = zip(moments, torch.stack(sums).tolist(), strict=True)
    layers = {name: math.log(total) for name, total in totals if total > 0}
    if not layers:
        raise IdenticalBatchesError("The gradients of every scored weight are equal, so nothing varies.")
    return layers


@register_proxy("lswag")
class LSWAG(Proxy):
    r"""Stability of the gradients times the number of activation patterns (Casarin et al., CVPR 2025).

    .. math::
        \Bigl( \sum_{l \in [l_1, l_2]} \Lambda_l \Bigr) \times \Psi

    with :math:`\Lambda_l` as in `steadiness` and :math:`\Psi` the number of sample-wise activation patterns, as in
    `SWAP`, on the first batch.

    Args:
        depths: First and last layer to count, as fractions of the depth. The paper derives them for each search space
            from the gradients of a thousand networks. The default counts all layers.
        name: Name of the column.

    Raises:
        ValueError: If ``depths`` are not two increasing fractions.

    Source:
        Casarin et al., *L-SWAG*, CVPR 2025. There, only the patterns of the chosen layers count; here,
        those of all layers.
    """

    min_gradients = 2
    needs: Sequence[Observer] = (MomentsOverBatches(None, "abs"), SignPatterns())

    def __init__(self, depths: tuple[float, float] = (0.0, 1.0), name: str = "lswag") -> None:
        if not 0 <= depths[0] < depths[1] <= 1:
            raise ValueError(
                f"Invalid depths={depths}: expected two increasing fractions of the depth, such as (0, 1)."
            )
        self.depths = depths
        self.name = name

    def measure(self, probe: Probe) -> Measurement:
        """Multiply the two parts."""
        moments = probe.moments(of="abs").by_name
        names = list(moments)
        first, last = (round(share * len(names)) for share in self.depths)
        layers = steadiness({name: moments[name] for name in names[first : max(last, first + 1)]})
        patterns = sign_patterns(probe).count
        details = {"patterns": patterns, "steadiness": layers, "covered": probe.covered()}
        return Measurement(math.fsum(layers.values()) * patterns, details=details)
