"""ZiCo: inverse coefficient of variation of the gradients, summed over layers.

Index conventions:
    B: batches (or samples) whose gradients are compared
    *: shape of one parameter
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_zico.engine.layers import Patterns
from lightning_zico.engine.learned import MomentsOverBatches
from lightning_zico.engine.moments import Moments, portions
from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import IdenticalBatchesError, NonFiniteError, TooFewBatchesError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy


def zico_score(moments: Mapping[str, Moments]) -> float:
    r"""Score a network by how large and how stable the gradients of its weights are.

    .. math::
        \text{ZiCo} = \sum_l \log \sum_{\omega \in l} \frac{\mathbb{E}\,|g_\omega|}{\sqrt{\mathrm{Var}\,g_\omega}}

    with :math:`g_\omega` the gradient of the mean loss with respect to weight :math:`\omega` of layer :math:`l`, and
    both moments computed over batches. Weights whose gradient does not vary are left out.

    Args:
        moments: Moments of the gradient of each layer's weight over ``B >= 2`` batches, by name.

    Returns:
        Score without unit; higher is better. A layer in which no gradient varies adds nothing.

    Raises:
        TooFewBatchesError: If ``moments`` is empty or holds fewer than two gradients.
        IdenticalBatchesError: If the gradient of no weight varies.
        NonFiniteError: If a gradient had NaN or infinite entries.

    Example:
        >>> g = torch.tensor([[1.0, 2.0], [3.0, 2.0]])  # [B, *]; the second weight never varies and drops out
        >>> round(zico_score({"fc.weight": Moments.of(g)}), 4)  # log(2 / 1)
        0.6931

    Source:
        Li et al., *ZiCo*, ICLR 2023, arXiv:2301.11300; SLDGroup/ZiCo, ``compute_zico.py``. Same values as that code,
        with two differences at the limits of float32: that code keeps all ``B`` gradients, while only the moments are
        kept here, and it squares deviations, so those below 1e-23 vanish there but count here. A weight shared by two
        layers counts once here, and once per layer there. With two batches, a weight adds ``(|a| + |b|) / |a - b|``,
        which is 1 if the signs differ and heavy-tailed if they agree; its mean exists from three batches on.
    """
    return math.fsum(zico_layers(moments).values())


def zico_layers(moments: Mapping[str, Moments]) -> dict[str, float]:
    """Compute the contribution of each layer to `zico_score`; layers that add nothing are left out.

    Args:
        moments: As for `zico_score`, which also lists the exceptions.

    Returns:
        Contribution of each layer by name, no unit.
    """
    count = min((m.count for m in moments.values()), default=0)
    if count < 2:
        raise TooFewBatchesError(
            f"`zico` compares gradients, so it needs at least two batches (or two samples with `axis='sample'`); got "
            f"{count}. Raise `num_batches`."
        )
    layers = {}
    totals = _sums_of_ratios(list(moments.values()))
    for (name, m), total in zip(moments.items(), totals, strict=True):
        if not math.isfinite(total):
            (total,) = _sums_of_ratios([m], leave_out=True)
        if not math.isfinite(total):
            raise NonFiniteError(f"The gradient of '{name}' has NaN or infinite entries: expected finite numbers.")
        if total > 0:
            layers[name] = math.log(total)
    if not layers:
        raise IdenticalBatchesError(
            f"The {count} gradients of every scored weight are equal, so nothing varies. Check whether the batches (or "
            "samples) are identical, or the loss is linear in the weights."
        )
    return layers


def _sums_of_ratios(moments: Sequence[Moments], *, leave_out: bool = False) -> list[float]:
    """Sum each layer's ratios; weights whose gradient does not vary make a sum infinite or NaN, or are left out.

    Searching for such weights takes twice as long as the sum itself, and most layers have none.
    """
    are_pairs = all(each.count == 2 for each in moments)
    above = [each.mean if are_pairs else each.mean_abs for each in moments]
    below = [each.deviation for each in moments if each.deviation is not None]  # there are at least two gradients
    indices: list[int] = []
    sums: list[Tensor] = []
    for some, (numerators, deviations) in portions(above, below):
        ratios = torch._foreach_div(numerators, deviations)
        if are_pairs:  # the mean magnitude is that of the mean, or the standard deviation if that is larger
            torch._foreach_abs_(ratios)
            torch._foreach_clamp_min_(ratios, math.sqrt(0.5))
        if leave_out:
            for ratio, deviation in zip(ratios, deviations, strict=True):
                ratio.masked_fill_(deviation == 0, 0.0)
        indices += some
        # In float32, the sum over 11 M weights has a relative error of 4e-10; a sum in float64 would first copy all
        # weights.
        sums += [ratio.sum() for ratio in ratios]
    totals = [0.0] * len(moments)
    for idx, number in zip(indices, torch.stack(sums).tolist(), strict=True):  # one transfer from the device
        totals[idx] += number
    return [total * math.sqrt(each.count) for total, each in zip(totals, moments, strict=True)]


@register_proxy("zico")
class ZiCo(Proxy):
    """Inverse coefficient of variation of the gradients, summed over layers (Li et al., ICLR 2023).

    Args:
        std_of: ``"signed"`` uses the standard deviation of the gradient, like the published code; ``"abs"`` that of its
            magnitude, like the equation in the paper.
        parameters: Shell patterns of the parameters to score, such as ``["*.weight"]``. None for all weights by which
            layers multiply their inputs; ``"published"`` for only those of linear and convolutional layers (1d, 2d, 3d,
            transposed). The two differ if a network has other layers, such as recurrent ones.
        name: Name of the column; set it to compare several variants.
    """

    min_gradients = 2

    def __init__(
        self,
        std_of: Literal["signed", "abs"] = "signed",
        parameters: Patterns = None,
        name: str = "zico",
    ) -> None:
        if std_of not in ("signed", "abs"):
            raise ValueError(f"Invalid std_of={std_of!r}: expected 'signed' (the published code) or 'abs' (the paper).")
        if isinstance(parameters, str) and parameters != "published":
            raise TypeError(f"Invalid parameters={parameters!r}: expected a list of patterns. Pass [{parameters!r}].")
        self.std_of: Literal["signed", "abs"] = std_of
        self.parameters = parameters
        self.name = name
        self._patterns: Patterns = parameters if parameters is None or parameters == "published" else tuple(parameters)
        self.needs: Sequence[Observer] = (MomentsOverBatches(self._patterns, std_of),)

    def measure(self, probe: Probe) -> Measurement:
        """Compute the moments of the gradients and combine them."""
        moments, facts = probe.moments(self._patterns, of=self.std_of)
        layers = zico_layers(moments)
        details: dict[str, Any] = {
            "axis": facts.axis,
            "num_gradients": next(iter(moments.values())).count,
            "backend": "+".join(facts.backends),
            "std_of": self.std_of,
            "covered": probe.covered(self._patterns),
        }
        if facts.axis == "sample":
            details |= {"chunk_sizes": facts.chunk_sizes, "batch_norm": facts.batch_norm}
        return Measurement(math.fsum(layers.values()), layers, details)
