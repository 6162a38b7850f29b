"""nce: how uncertain the classes of the new data remain once the class that a pretrained head predicts is known.

Index conventions:
    N: samples
    Z: classes of the source
    K: classes of the target
"""

import torch
from torch import Tensor

from lightning_zico.engine.probe import Probe
from lightning_zico.proxies.base import Measurement, register_proxy, saturation
from lightning_zico.proxies.transfer import MORE_SAMPLES, SourceHeadProxy, one_hot


def nce_score(source: Tensor, labels: Tensor) -> float:
    r"""Compute the negative conditional entropy of the labels, given the labels of the source.

    .. math::
        -H(Y \mid Z) = \sum_{y, z} P(y, z) \log P(y \mid z)

    Args:
        source: Class of each sample in the source, ``[N]``.
        labels: Class of each sample in the target, ``[N]``.

    Returns:
        From -log K to 0, higher is better.

    Example:
        >>> nce_score(torch.tensor([7, 7, 3, 3]), torch.tensor([0, 0, 1, 1]))
        0.0

    Source:
        Tran et al., *Transferability and Hardness of Supervised Classification Tasks*, ICCV 2019, arXiv:1908.08142.
    """
    joint = one_hot(labels).T @ one_hot(source) / len(labels)  # [K, N] @ [N, Z] -> [K, Z]
    # 0 log 0 = 0; the sum with zero makes -0.0 a plain zero
    return float(torch.xlogy(joint, joint / joint.sum(0)).sum()) + 0.0


@register_proxy("nce")
class NCE(SourceHeadProxy):
    """Negative entropy of the labels given the class that a pretrained head predicts (Tran et al., ICCV 2019)."""

    def measure(self, probe: Probe) -> Measurement:
        """Compare the likeliest class of the head with the labels."""
        head = self.source_head(probe)
        value = nce_score(head.outputs.argmax(1), head.targets)
        return Measurement(value, details=head.details | saturation(value == 0, len(head.targets), MORE_SAMPLES))
