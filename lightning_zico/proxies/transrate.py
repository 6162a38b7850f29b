"""transrate: how many bits fewer the features take to code once the classes are known.

Index conventions:
    N: samples
    D: entries of a feature vector
"""

import torch
from torch import Tensor

from lightning_zico.engine.probe import Probe
from lightning_zico.proxies.base import Measurement, register_proxy
from lightning_zico.proxies.transfer import ClassTransferProxy

DISTORTION = 1e-4  # of the published code


def trans_rate(features: Tensor, labels: Tensor) -> float:
    r"""Score features by the coding rate that the classes explain.

    .. math::
        R(Z) - \sum_c \frac{N_c}{N} R(Z_c), \qquad
        R(Z) = \frac{1}{2} \log\det\Big(I + \frac{1}{N \epsilon} Z^\top Z\Big)

    with :math:`Z` the features, centred and scaled to :math:`\mathrm{tr} Z^\top Z = 1`, and :math:`Z_c` the rows of one
    class.

    Args:
        features: One row per sample, ``[N, D]``.
        labels: Class of each sample, ``[N]``.

    Returns:
        In nats, not negative up to rounding, higher is better. Orthogonal maps, shifts and the scale of the features do
        not change it.

    Source:
        Huang et al., *Frustratingly Easy Transferability Estimation*, ICML 2022, arXiv:2106.09362. The published code
        gives all classes the same weight, which is the paper's formula for balanced data.
    """
    rows = features.double()
    rows = rows - rows.mean(0)
    length = rows.norm()
    if length > 0:
        rows = rows / length
    classes, counts = labels.unique(return_counts=True)
    within = sum(
        int(count) / len(rows) * _coding_rate(rows[labels == label])
        for label, count in zip(classes, counts, strict=True)
    )
    return _coding_rate(rows) - within


def _coding_rate(rows: Tensor) -> float:
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    return float(torch.linalg.slogdet(torch.eye(len(gram)).double() + gram / (len(rows) * DISTORTION)).logabsdet) / 2


@register_proxy("transrate")
class TransRate(ClassTransferProxy):
    """Coding rate of pretrained features that the classes explain (Huang et al., ICML 2022)."""

    def measure(self, probe: Probe) -> Measurement:
        """Compare the coding rate of all features with that within the classes."""
        features = self.features(probe)
        return Measurement(trans_rate(features.rows, features.targets), details=features.details)
