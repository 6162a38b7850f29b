"""nleep: `leep` with the clusters of the features in place of the classes of a pretrained head.

Index conventions:
    N: samples
    D: entries of a feature vector
    C: principal components
    Z: clusters
"""

import math

import torch
from torch import Tensor

from lightning_zico.engine.probe import Probe
from lightning_zico.engine.spectra import thin_svd
from lightning_zico.proxies.base import Measurement, register_proxy
from lightning_zico.proxies.leep import leep_score
from lightning_zico.proxies.transfer import ClassTransferProxy

CLUSTERS_PER_CLASS = 5  # of the paper
EXPLAINED = 0.8  # of the features' variance by the components that are kept; of the paper
_LEAST_VARIANCE = 1e-6  # of a cluster along a component, as a share of the mean variance; as in scikit-learn
_MOST_ITERATIONS = 100
_TOLERANCE = 1e-3  # gain in mean log-likelihood below which the mixture counts as fitted; as in scikit-learn


def nleep_score(features: Tensor, labels: Tensor) -> float:
    """Score features by the likelihood of the labels, given the clusters of a Gaussian mixture.

    Args:
        features: One row per sample, ``[N, D]``.
        labels: Class of each sample, ``[N]``.

    Returns:
        At most 0, higher is better; see `leep.leep_score`. Orthogonal maps, shifts and the scale of the features do not
        change it.

    Source:
        Li et al., *Ranking Neural Checkpoints*, CVPR 2021, arXiv:2011.11200: five clusters per class, in the principal
        components that explain 80 % of the variance. Here, covariances are diagonal in these components, since full
        ones have more entries than there are samples, and the start is not drawn (`farthest_first`).
    """
    rows = features.double()
    left, singular = thin_svd(rows - rows.mean(0))
    explained = singular.square().cumsum(0) / singular.square().sum()
    num_components = int((explained < EXPLAINED - 1e-12).sum()) + 1
    components = (left * singular)[:, :num_components]
    num_clusters = min(CLUSTERS_PER_CLASS * len(labels.unique()), len(rows) // 2)
    return leep_score(cluster_probabilities(components, max(num_clusters, 1)), labels)


def cluster_probabilities(rows: Tensor, num_clusters: int) -> Tensor:
    """Fit a mixture of Gaussians with diagonal covariances, by expectation maximisation from k-means.

    Args:
        rows: Samples, ``[N, C]``.
        num_clusters: Number of Gaussians.

    Returns:
        The probability of each cluster for each sample, ``[N, Z]``.
    """
    least = _LEAST_VARIANCE * rows.var(0, correction=0).mean() + torch.finfo(torch.float64).tiny
    nearest = _k_means(rows, rows[farthest_first(rows, num_clusters)])
    shares = torch.nn.functional.one_hot(nearest, num_clusters).double()
    before = -math.inf
    for _ in range(_MOST_ITERATIONS):
        sizes = shares.sum(0).clamp(min=1e-10)
        means = shares.T @ rows / sizes.unsqueeze(1)  # [Z, N] @ [N, C] -> [Z, C]
        variances = (shares.T @ rows.square() / sizes.unsqueeze(1) - means.square()).clamp(min=0) + least
        densities = _log_densities(rows, means, variances) + (sizes / len(rows)).log()
        likelihoods = densities.logsumexp(1, keepdim=True)
        shares = (densities - likelihoods).exp()
        now = float(likelihoods.mean())
        if now - before < _TOLERANCE:
            break
        before = now
    return shares


def farthest_first(rows: Tensor, count: int) -> list[int]:
    """Choose rows that lie far apart: the one farthest from the mean, then always the one farthest from those chosen.

    Unlike rows that are drawn, they do not depend on the order of the rows.

    Example:
        >>> farthest_first(torch.tensor([[0.0], [1.0], [9.0], [10.0]]), 2)
        [0, 3]
    """
    distances = (rows - rows.mean(0)).square().sum(1)
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(distances.argmax()))
        from_chosen = (rows - rows[chosen[-1]]).square().sum(1)
        distances = from_chosen if len(chosen) == 1 else torch.minimum(distances, from_chosen)
    return chosen


def _k_means(rows: Tensor, centers: Tensor) -> Tensor:
    """Return the cluster of each sample, ``[N]``, after Lloyd's algorithm."""
    nearest = torch.cdist(rows, centers).argmin(1)
    for _ in range(_MOST_ITERATIONS):
        members = torch.nn.functional.one_hot(nearest, len(centers)).double()
        sizes = members.sum(0).unsqueeze(1)
        centers = torch.where(sizes > 0, members.T @ rows / sizes.clamp(min=1), centers)
        moved = torch.cdist(rows, centers).argmin(1)
        if torch.equal(moved, nearest):
            break
        nearest = moved
    return nearest


def _log_densities(rows: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """Log-densities of all samples under all Gaussians, ``[N, Z]``."""
    precisions = 1 / variances  # [Z, C]
    squares = rows.square() @ precisions.T - 2 * rows @ (means * precisions).T + (means.square() * precisions).sum(1)
    return -(squares + variances.log().sum(1) + rows.shape[1] * math.log(2 * math.pi)) / 2


@register_proxy("nleep")
class NLEEP(ClassTransferProxy):
    """Likelihood of the labels given the clusters of pretrained features (Li et al., CVPR 2021)."""

    def measure(self, probe: Probe) -> Measurement:
        """Cluster the features, and compare the clusters with the labels."""
        features = self.features(probe)
        return Measurement(nleep_score(features.rows, features.targets), details=features.details)
