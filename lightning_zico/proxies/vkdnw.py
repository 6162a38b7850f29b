"""VKDNW: how evenly a network's outputs depend on its weights, by the spectrum of the Fisher information.

Index conventions:
    N: samples in a batch
    K: classes
    D: chosen weights
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_zico._typing import Batch
from lightning_zico.engine.gradients import GradientChunk
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.spectra import eigenvalues_of
from lightning_zico.engine.watch import Watch
from lightning_zico.errors import NonFiniteError, NotApplicableError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy

_WEIGHTS_PER_LAYER = 8  # the paper uses a few, but does not state how many
_MOST_CLASSES = 16  # each takes one pass over the samples


def decile_entropy(fisher: Tensor) -> float:
    r"""Compute how evenly the eigenvalues of a Fisher information are spread.

    .. math::
        -\sum_{k=1}^{9} p_k \log p_k, \qquad p_k = d_k \Big/ \sum_j d_j

    with :math:`d_k` the deciles of the eigenvalues.

    Args:
        fisher: Fisher information, ``[D, D]``.

    Returns:
        Entropy without unit, at most ``log 9``; higher is better.

    Raises:
        NonFiniteError: If the matrix has NaN or infinite entries.
        NotApplicableError: If nine tenths of the eigenvalues vanish.

    Example:
        >>> round(decile_entropy(torch.eye(20)), 4)  # log 9
        2.1972
    """
    if not bool(fisher.isfinite().all()):
        raise NonFiniteError(
            "The Fisher information has NaN or infinite entries: the gradients of the outputs overflow."
        )
    eigenvalues = eigenvalues_of(fisher)
    deciles = eigenvalues.quantile(torch.linspace(0.1, 0.9, 9, dtype=torch.float64, device=eigenvalues.device))
    if not float(deciles.sum()) > 0:
        raise NotApplicableError(
            f"{int((eigenvalues == 0).sum())} of the {len(fisher)} eigenvalues of the Fisher information are zero, so "
            "all deciles are zero. Raise the batch size."
        )
    return float(torch.special.entr(deciles / deciles.sum()).sum())


@register_proxy("vkdnw")
class VKDNW(Proxy):
    r"""Number of layers plus the entropy of the Fisher information's spectrum (Tybl & Neumann, 2025).

    .. math::
        L + H, \qquad F = \frac{1}{N} \sum_i \sum_k p_{ik} s_{ik} s_{ik}^\top, \qquad
        s_{ik} = \nabla_\theta \log p_{ik}

    with :math:`p_{ik}` the softmax of the outputs, :math:`\theta` the first eight weights of each layer, and :math:`H`
    as in `decile_entropy`. The integer number of layers dominates. It takes one pass per sample for each class; if
    there are more than sixteen classes, sixteen are drawn.

    Source:
        Tybl & Neumann, *VKDNW*, 2025, arXiv:2502.04975, implemented from its description. There, inputs are random;
        here, they are those of the first batch. Batch normalisation treats its statistics as constants.
    """

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Build the Fisher information of the first batch."""
        watch = Watch(probe.module, (), probe.layout)
        try:
            return _measured(probe, watch)
        except Exception:
            if not watch.broke_off or (whole := probe.whole_run(is_cut=True)) is None:
                raise
        # Perhaps only the loss fails on one sample, which does not matter.
        return _measured(probe, Watch(probe.module, (), probe.layout, None, whole))


def _measured(probe: Probe, watch: Watch) -> Measurement:
    layers = probe.chosen()
    num_classes = 0
    label = 0

    def negative_log_probability(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        nonlocal num_classes
        # Outputs that the network computes under its own `no_grad` are ignored.
        watch.needs_graph = torch.is_grad_enabled()
        try:
            with watch.watching():
                probe.step(module, batch, batch_idx)
        except Exception:
            if not watch.has_run_through:
                raise
        logits = watch.output()
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise NotApplicableError(
                f"the output of a sample has shape {tuple(logits.shape[1:])}: expected one score per class."
            )
        num_classes = logits.shape[1]
        return -F.log_softmax(logits, dim=1)[:, label].mean()

    fisher: Tensor | None = None

    def consume(chunk: GradientChunk) -> None:
        nonlocal fisher
        scores = torch.cat([chunk.gradients[name].flatten(1)[:, :_WEIGHTS_PER_LAYER] for name in layers], dim=1)
        scores = scores.double()  # [n, D]
        weighted = scores * (-chunk.losses.detach().double()).exp().unsqueeze(1)  # p = exp(-loss)
        product = scores.T @ weighted  # [D, n] @ [n, D] -> [D, D]
        fisher = product if fisher is None else fisher + product

    classes = [0]
    while classes:
        label = classes.pop(0)
        probe.stream(layers, consume, axis="sample", num_batches=1, step=negative_log_probability)
        if label == 0:
            generator = torch.Generator().manual_seed(probe.seed)
            classes = (torch.randperm(num_classes - 1, generator=generator)[: _MOST_CLASSES - 1] + 1).tolist()
    assert fisher is not None
    entropy = decile_entropy(fisher)
    num_layers = len(probe.structure.weights)
    details = {"entropy": entropy, "num_layers": num_layers, "covered": probe.covered()}
    return Measurement(num_layers + entropy, details=details)
