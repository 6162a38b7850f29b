"""leep: how well the classes that a pretrained head predicts tell the classes of the new data.

Index conventions:
    N: samples
    Z: classes of the source
    K: classes of the target
"""

import torch
from torch import Tensor

from lightning_zico.engine.probe import Probe
from lightning_zico.proxies.base import Measurement, register_proxy
from lightning_zico.proxies.transfer import SourceHeadProxy, one_hot


def leep_score(source: Tensor, labels: Tensor) -> float:
    r"""Score a pretrained head by the mean log-likelihood of the labels, given its own predictions alone.

    .. math::
        \frac{1}{N} \sum_i \log \sum_z P(y_i \mid z) \, \theta_{iz}, \qquad
        P(y, z) = \frac{1}{N} \sum_{i : y_i = y} \theta_{iz}

    Args:
        source: The probabilities :math:`\theta` of the source's classes, ``[N, Z]``; rows sum to 1.
        labels: Class of each sample in the target, ``[N]``.

    Returns:
        At most 0, higher is better; minus the entropy of the labels if the source's predictions are all the same.

    Example:
        >>> leep_score(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        0.0

    Source:
        Nguyen et al., *LEEP: A New Measure to Evaluate Transferability of Learned Representations*, ICML 2020,
        arXiv:2002.12462.
    """
    source, indicators = source.double(), one_hot(labels)
    joint = indicators.T @ source / len(source)  # [K, N] @ [N, Z] -> [K, Z]
    # A class of the source that has no probability for any sample tells nothing.
    given = joint / joint.sum(0).clamp(min=torch.finfo(torch.float64).tiny)
    likelihoods = ((indicators @ given) * source).sum(1)
    return float(likelihoods.log().mean())


@register_proxy("leep")
class LEEP(SourceHeadProxy):
    """Likelihood of the labels given the predictions of a pretrained head (Nguyen et al., ICML 2020)."""

    def measure(self, probe: Probe) -> Measurement:
        """Compare the predictions of the head with the labels."""
        head = self.source_head(probe)
        return Measurement(leep_score(head.outputs.softmax(1), head.targets), details=head.details)
