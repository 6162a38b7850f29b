"""parc: whether samples with different labels have differently correlated features.

Index conventions:
    N: samples
    D: entries of a feature vector
    C: principal components
"""

import torch
from scipy.stats import rankdata
from torch import Tensor

from lightning_zico.engine.probe import Probe
from lightning_zico.engine.spectra import thin_svd
from lightning_zico.errors import NotApplicableError
from lightning_zico.proxies.base import Measurement, register_proxy
from lightning_zico.proxies.transfer import ClassTransferProxy

NUM_COMPONENTS = 32  # of the published protocol


def parc_score(features: Tensor, labels: Tensor) -> float:
    r"""Correlate, over all pairs of samples, the distance of the features with the distance of the labels.

    .. math::
        \rho_S\big(1 - \mathrm{corr}(f_i, f_j), \; 1 - \mathrm{corr}(y_i, y_j)\big)_{i < j}

    with :math:`f` the first 32 principal components of the features, :math:`y` the one-hot labels, whose distance is
    one number for all pairs of different classes, and :math:`\rho_S` Spearman's rank correlation.

    Args:
        features: One row per sample, ``[N, D]``.
        labels: Class of each sample, ``[N]``.

    Returns:
        From -1 to 1, higher is better; the paper multiplies by 100. Orthogonal maps, shifts and the scale of the
        features do not change it. Time and memory grow with the square of ``N``.

    Raises:
        NotApplicableError: If the features vary along fewer than three axes: correlations then have no meaning.

    Source:
        Bolya et al., *Scalable Diverse Model Selection for Accessible Transfer Learning*, NeurIPS 2021,
        arXiv:2111.06977. Correlations depend on the signs of the components, which an SVD leaves open: the largest
        entry of each is positive here.
    """
    rows = features.double()
    left, singular = thin_svd(rows - rows.mean(0))
    if len(singular) < 3:
        raise NotApplicableError(f"the features vary along {len(singular)} axes: expected at least three.")
    components = (left * singular)[:, :NUM_COMPONENTS]
    largest = components.gather(0, components.abs().argmax(0, keepdim=True))  # [1, C]
    distances = 1 - torch.corrcoef(components * largest.sign())  # [N, N]
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    # Rounded, so that rounding errors, which depend on the order of the samples, do not rank what is equal.
    ranks = torch.from_numpy(rankdata(distances[first, second].round(decimals=10).numpy()))
    # Of two values, ranks and values correlate alike.
    differ = (labels[first] != labels[second]).double()
    return float(torch.corrcoef(torch.stack([ranks, differ]))[0, 1])


@register_proxy("parc")
class PARC(ClassTransferProxy):
    """Rank correlation of the distances of pretrained features with those of labels (Bolya et al., NeurIPS 2021)."""

    def measure(self, probe: Probe) -> Measurement:
        """Compare all pairs of samples."""
        features = self.features(probe)
        return Measurement(parc_score(features.rows, features.targets), details=features.details)
