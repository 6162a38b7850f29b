"""GradSign and KNAS: how much the gradients of different samples agree.

Index conventions:
    N: samples in a batch
    *: shape of one parameter
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_zico._typing import Params
from lightning_zico.engine.gradients import GradientChunk
from lightning_zico.engine.observers import GradientFacts
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NoGradientError, NonFiniteError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy


class SampleGradients(NamedTuple):
    """Sums over the samples of one batch, by layer, ``[*]`` each.

    Args:
        signs: Sums of the signs of the gradients.
        gradients: Sums of the gradients.
        num_samples: Number of samples.
        facts: How the gradients were computed.
    """

    signs: Params
    gradients: Params
    num_samples: int
    facts: GradientFacts


def sample_gradients(probe: Probe) -> SampleGradients:
    """Differentiate the loss of every sample of the first batch."""
    signs: Params = {}
    sums: Params = {}
    losses: list[Tensor] = []

    def consume(chunk: GradientChunk) -> None:
        news = {name: (g.sign().sum(dim=0), g.sum(dim=0)) for name, g in chunk.gradients.items()}
        losses.append(chunk.losses.detach())
        for name, (sign, total) in news.items():
            signs[name] = signs[name].add_(sign) if name in signs else sign
            sums[name] = sums[name].add_(total) if name in sums else total

    facts = probe.stream(probe.chosen(), consume, axis="sample", num_batches=1)
    if not bool(torch.stack([total.isfinite().all() for total in sums.values()]).all()):
        raise NonFiniteError("The gradient of a sample has NaN or infinite entries.")
    # This also reports gradients that cancel in every weight, including their signs.
    if not bool(torch.stack([total.any() for total in (*signs.values(), *sums.values())]).any()):
        raise NoGradientError(
            f"The gradients of all {sum(map(len, losses))} samples are zero for every weight, so there is nothing to "
            "compare. Look for `detach()`, zero-initialised layers and activations that are always off."
        )
    return SampleGradients(signs, sums, sum(map(len, losses)), facts)


def _details(found: SampleGradients, probe: Probe) -> dict[str, object]:
    facts = found.facts
    return {
        "num_samples": found.num_samples,
        "backend": "+".join(facts.backends),
        "batch_norm": facts.batch_norm,
        "covered": probe.covered(),
    }


@register_proxy("gradsign")
class GradSign(Proxy):
    r"""Mean over the weights of how much the signs of the samples' gradients agree (Zhang & Jia, ICLR 2022).

    .. math::
        \frac{1}{P} \sum_\omega \Bigl| \sum_i \operatorname{sign} g_{i\omega} \Bigr|

    with :math:`g_i` the gradient for sample :math:`i` (batch normalisation uses the statistics of the whole batch as
    constants) and :math:`P` weights. It is between 0 and the number of samples, regardless of the size of the network.

    Args:
        total: Sum over the weights, as in the paper; the sum grows with the network.
        name: Name of the column.

    Source:
        Zhang & Jia, *GradSign*, ICLR 2022, arXiv:2110.08616. There, every sample is a separate batch, normalised by its
        own statistics.
    """

    def __init__(self, total: bool = False, name: str = "gradsign") -> None:
        self.total = total
        self.name = name

    def measure(self, probe: Probe) -> Measurement:
        """Add up the signs over the samples of the first batch."""
        found = probe.once(sample_gradients)
        sums = torch.stack([signs.abs().sum(dtype=torch.float64) for signs in found.signs.values()]).tolist()
        size = 1 if self.total else sum(signs.numel() for signs in found.signs.values())
        layers = {name: part / size for name, part in zip(found.signs, sums, strict=True)}
        return Measurement(math.fsum(layers.values()), layers, _details(found, probe))


@register_proxy("knas")
class KNAS(Proxy):
    r"""Mean of the scalar products of all samples' gradients (Xu et al., ICML 2021).

    .. math::
        \frac{1}{N^2} \sum_{ij} \langle g_i, g_j \rangle = \Bigl\lVert \frac{1}{N} \sum_i g_i \Bigr\rVert^2

    with :math:`g_i` as for `GradSign`.

    Source:
        Xu et al., *KNAS*, ICML 2021, arXiv:2111.13293.
    """

    def measure(self, probe: Probe) -> Measurement:
        """Compute the squared norm of the mean gradient over the samples of the first batch."""
        found = probe.once(sample_gradients)
        squares = [g.double().div_(found.num_samples).square_().sum() for g in found.gradients.values()]
        layers = dict(zip(found.gradients, torch.stack(squares).tolist(), strict=True))
        return Measurement(math.fsum(layers.values()), layers, _details(found, probe))
