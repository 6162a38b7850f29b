"""hscore: how much of the features' variation lies between the classes, with a shrunk covariance.

Index conventions:
    N: samples
    D: entries of a feature vector
    K: classes
"""

import torch
from torch import Tensor

from lightning_zico.engine.probe import Probe
from lightning_zico.engine.spectra import thin_svd
from lightning_zico.proxies.base import Measurement, register_proxy
from lightning_zico.proxies.transfer import ClassTransferProxy, one_hot


def h_score(features: Tensor, labels: Tensor) -> float:
    r"""Score features by the variation between classes, in units of their shrunk covariance.

    .. math::
        (1 - \alpha) \, \mathrm{tr}(\Sigma_\alpha^{-1} \Sigma_B), \qquad
        \Sigma_\alpha = (1 - \alpha) \Sigma + \alpha \frac{\mathrm{tr} \Sigma}{D} I

    with :math:`\Sigma` the covariance of the features, :math:`\Sigma_B` that of the class means (each sample replaced
    by the mean of its class) and :math:`\alpha` the shrinkage of Ledoit and Wolf. Without shrinkage, the score is K - 1
    for any features as soon as D > N.

    Args:
        features: One row per sample, ``[N, D]``.
        labels: Class of each sample, ``[N]``.

    Returns:
        From 0 to K - 1, higher is better. Orthogonal maps, shifts and the scale of the features do not change it.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.0, -1.0], [4.0, 1.0], [4.0, -1.0]])
        >>> round(h_score(x, torch.tensor([0, 0, 1, 1])), 3)  # 1 without shrinkage
        0.667

    Source:
        Bao et al., *An Information-Theoretic Approach to Transferability*, ICIP 2019; shrinkage: Ibrahim et al.,
        *Newer is not always better*, ECML 2022, arXiv:2110.06893. The published code divides the covariance of the
        means by N - 1 and that of the features by N; here it is N in both.
    """
    features = features.double()
    rows = features - features.mean(0)
    left, singular = thin_svd(rows)
    shrinkage = ledoit_wolf_shrinkage(rows, singular)
    variances = singular.square() / len(rows)
    shrunk = (1 - shrinkage) * variances + shrinkage * variances.sum() / rows.shape[1]
    indicators = one_hot(labels)  # [N, K]
    counts = indicators.sum(0).unsqueeze(1)
    means = indicators.T @ (left * singular) / counts  # [K, N] @ [N, R] -> [K, R], in the features' principal axes
    between = (means.square() * counts).sum(0) / len(rows)
    return float((1 - shrinkage) * (between / shrunk).sum())


def ledoit_wolf_shrinkage(rows: Tensor, singular: Tensor) -> float:
    """Compute how far Ledoit and Wolf (2004) shrink a covariance towards a multiple of the identity.

    Args:
        rows: Centred features, ``[N, D]``.
        singular: Their singular values.

    Returns:
        From 0 (not at all) to 1.
    """
    num_rows, width = rows.shape
    variances = singular.square() / num_rows
    squares = variances.square().sum()
    distance = squares / width - (variances.sum() / width).square()
    noise = (rows.square().sum(1).square().mean() - squares) / (width * num_rows)
    if width == 1 or noise <= 0:
        return 0.0
    return float(torch.minimum(noise, distance) / distance) if distance > 0 else 1.0


@register_proxy("hscore")
class HScore(ClassTransferProxy):
    """Variation of pretrained features between classes, in units of their shrunk covariance (Ibrahim et al., 2022)."""

    def measure(self, probe: Probe) -> Measurement:
        """Compare the covariance of the class means with that of all features."""
        features = self.features(probe)
        return Measurement(h_score(features.rows, features.targets), details=features.details)
