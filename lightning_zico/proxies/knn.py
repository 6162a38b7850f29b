"""knn: how often the nearest neighbours of a sample, in the space of the features, are of its class.

Index conventions:
    N: samples
    D: entries of a feature vector
    K: classes
"""

import torch
from torch import Tensor

from lightning_zico.engine.features import FeatureLayers
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import check_count
from lightning_zico.proxies.base import Measurement, register_proxy
from lightning_zico.proxies.transfer import ClassTransferProxy, details_of_accuracy, one_hot

_ROWS_AT_ONCE = 1024  # of the matrix of distances, for the memory


def is_right_by_neighbors(features: Tensor, labels: Tensor, num_neighbors: int) -> Tensor:
    """Classify each sample by the majority of its nearest neighbours among the others (leave-one-out).

    Args:
        features: One row per sample, ``[N, D]``; distances are Euclidean.
        labels: Class of each sample, ``[N]``.
        num_neighbors: Number of neighbours, at most N - 1. All samples that are as far away as the last one count, so
            that the order of the samples does not. Among classes with equally many, the smallest wins, as in
            scikit-learn.

    Returns:
        For each sample whether it is classified right, ``[N]``. Orthogonal maps, shifts and the scale of the features
        do not change it.

    Example:
        >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1], [0.3]])
        >>> is_right_by_neighbors(x, torch.tensor([0, 0, 1, 1, 1]), 1).tolist()
        [True, True, True, True, False]
    """
    features = features.double()
    votes = one_hot(labels)  # [N, K]
    classes = votes.argmax(1)
    found = []
    for start in range(0, len(features), _ROWS_AT_ONCE):
        some = features[start : start + _ROWS_AT_ONCE]
        distances = torch.cdist(some, features, compute_mode="donot_use_mm_for_euclid_dist")
        idx = torch.arange(len(some))
        distances[idx, start + idx] = torch.inf  # not its own neighbour
        farthest = distances.topk(num_neighbors, largest=False).values[:, -1:]  # of the neighbours, [n, 1]
        counts = (distances <= farthest).to(votes) @ votes  # [n, N] @ [N, K] -> [n, K]
        found.append(counts.argmax(1) == classes[start : start + _ROWS_AT_ONCE])
    return torch.cat(found)


@register_proxy("knn")
class KNN(ClassTransferProxy):
    """Leave-one-out accuracy of the nearest neighbours in pretrained features, in percent.

    Args:
        num_neighbors: Number of neighbours.
        layers: See `TransferProxy`.
        features: See `TransferProxy`.
        name: Name of the column.

    Raises:
        InvalidArgumentError: If the number of neighbours is not positive.
    """

    def __init__(
        self,
        num_neighbors: int = 5,
        *,
        layers: FeatureLayers | None = None,
        features: str | None = None,
        name: str = "knn",
    ) -> None:
        super().__init__(layers=layers, features=features, name=name)
        self.num_neighbors: int = check_count("num_neighbors", num_neighbors)

    def measure(self, probe: Probe) -> Measurement:
        """Classify each sample by its nearest neighbours."""
        features = self.features(probe)
        num_neighbors = min(self.num_neighbors, len(features.rows) - 1)
        is_right = is_right_by_neighbors(features.rows, features.targets, num_neighbors)
        details = features.details | {"num_neighbors": num_neighbors} | details_of_accuracy(is_right)
        return Measurement(100 * float(is_right.double().mean()), details=details)
