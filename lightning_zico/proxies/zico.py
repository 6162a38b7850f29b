"""ZiCo: inverse coefficient of variation of the gradients, summed over layers.

Index conventions:
    B: batches (or samples) whose gradients are compared
    *: shape of one parameter
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_zico.engine.layers import Patterns
from lightning_zico.engine.learned import MomentsOverBatches
from lightning_zico.engine.moments import Moments, pieces
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import IdenticalBatchesError, NonFiniteError, TooFewBatchesError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy


def zico_score(moments: Mapping[str, Moments]) -> float:
    r"""Score a network by how large and how steady the gradients of its weights are.

    .. math::
        \text{ZiCo} = \sum_l \log \sum_{\omega \in l} \frac{\mathbb{E}\,|g_\omega|}{\sqrt{\mathrm{Var}\,g_\omega}}

    with :math:`g_\omega` the gradient of the mean loss with respect to weight :math:`\omega` of layer :math:`l`, and
    both moments taken over batches. Weights whose gradient does not vary are left out.

    Args:
        moments: For each layer's weight, by name, the moments of its gradient over ``B >= 2`` batches.

    Returns:
        No unit, higher is better. A layer none of whose weights vary adds nothing.

    Raises:
        TooFewBatchesError: If ``moments`` is empty or holds fewer than two gradients.
        IdenticalBatchesError: If no weight of any layer varies.
        NonFiniteError: If a gradient had NaN or infinite entries.

    Example:
        >>> g = torch.tensor([[1.0, 2.0], [3.0, 2.0]])  # [B, *]; the second weight never varies and drops out
        >>> round(zico_score({"fc.weight": Moments.of(g)}), 4)  # log(2 / 1)
        0.6931

    Source:
        Li et al., *ZiCo*, ICLR 2023, arXiv:2301.11300; SLDGroup/ZiCo, ``compute_zico.py``. Same numbers as that code,
        with two differences where that code meets the end of float32: it keeps all ``B`` gradients where here only the
        moments are kept, and it squares deviations, so that those below 1e-23 vanish there and count here. A weight
        that two layers share counts once here, for each layer there. With two batches a weight adds ``(|a| + |b|) / |a
        - b|``: 1 if the signs differ, and a heavy-tailed number if they agree; its mean exists from three batches on.
    """
    return math.fsum(zico_layers(moments).values())


def zico_layers(moments: Mapping[str, Moments]) -> dict[str, float]:
    """Compute what each layer adds to `zico_score`; layers that add nothing are left out.

    Args:
        moments: As for `zico_score`, which also says what is raised.

    Returns:
        By name, no unit.
    """
    count = min((m.count for m in moments.values()), default=0)
    if count < 2:
        raise TooFewBatchesError(
            f"`zico` compares gradients, so it needs at least two batches (per sample: two samples); got {count}. "
            "Raise `num_batches`."
        )
    layers = {}
    totals = torch.stack([_sum_of_ratios(m) for m in moments.values()]).tolist()  # one transfer from the device
    for (name, m), total in zip(moments.items(), totals, strict=True):
        if not math.isfinite(total):
            total = _sum_of_ratios(m, leave_out=True).item()
        if not math.isfinite(total):
            raise NonFiniteError(f"The gradient of '{name}' has NaN or infinite entries; needed are finite numbers.")
        if total > 0:
            layers[name] = math.log(total)
    if not layers:
        raise IdenticalBatchesError(
            f"The {count} gradients of every scored weight are equal, so nothing varies. Are the batches (per sample: "
            "the samples) the same, or is the loss linear in the weights?"
        )
    return layers


def _sum_of_ratios(moments: Moments, *, leave_out: bool = False) -> Tensor:
    """Sum a layer's ratios; weights that do not vary make the sum infinite or NaN, or are left out.

    Looking for them takes twice as long as the sum itself, and most layers have none.
    """
    assert moments.deviation is not None  # there are two gradients
    sums = []
    for mean_abs, deviation in pieces(moments.mean_abs, moments.deviation):
        ratios = mean_abs / deviation
        sums.append((ratios.masked_fill_(deviation == 0, 0.0) if leave_out else ratios).sum())
    # In float32 the sum over 11 M weights is 4e-10 off, relative; one in float64 would copy all of them first.
    return torch.stack(sums).sum(dtype=torch.float64) * math.sqrt(moments.count)


@register_proxy("zico")
class ZiCo(Proxy):
    """Inverse coefficient of variation of the gradients, summed over layers (Li et al., ICLR 2023).

    Args:
        std_of: ``"signed"`` takes the standard deviation of the gradient, as the published code does; ``"abs"`` that of
            its magnitude, as the paper's equation writes it.
        parameters: Shell patterns of the parameters to score, such as ``["*.weight"]``. None for all
            weights that a layer multiplies its input with; ``"published"`` for those of linear and convolutional layers
            (1d, 2d, 3d, transposed) only. The two differ where a network has other layers, such as recurrent ones.
        name: Of the column, for several variants side by side.
    """

    min_gradients = 2

    def __init__(
        self,
        std_of: Literal["signed", "abs"] = "signed",
        parameters: Patterns = None,
        name: str = "zico",
    ) -> None:
        if std_of not in ("signed", "abs"):
            raise ValueError(f"`std_of` is {std_of!r}; needed is 'signed' (the published code) or 'abs' (the paper).")
        if isinstance(parameters, str) and parameters != "published":
            raise TypeError(
                f"`parameters` is the string {parameters!r}; needed is a list of patterns: [{parameters!r}]."
            )
        self.std_of: Literal["signed", "abs"] = std_of
        self.parameters = parameters
        self.name = name
        self._patterns: Patterns = parameters if parameters is None or parameters == "published" else tuple(parameters)
        self.needs = (MomentsOverBatches(self._patterns, std_of),)

    def measure(self, probe: Probe) -> Measurement:
        """Take the moments of the gradients and combine them."""
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
