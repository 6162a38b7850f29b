"""EPE-NAS: how similarly the network responds to inputs of the same class and of different classes.

Index conventions:
    N: samples in a batch
    D: entries of an input
    K: classes
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_zico.engine.batches import tensors_of
from lightning_zico.engine.features import label_position
from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NotApplicableError
from lightning_zico.proxies.base import Proxy, register_proxy
from lightning_zico.proxies.jacob_cov import InputJacobian, correlations, input_jacobian

_STABILISER = 1e-5  # from the published code
_MANY_CLASSES = 100  # with more classes, the published code compares them with each other


def epe_nas_score(jacobian: Tensor, labels: Tensor, num_classes: int) -> float:
    r"""Score a network by the correlations of its input Jacobians within the classes.

    .. math::
        S_c = \sum_{i, j \in c} \log(|\rho_{ij}| + k), \qquad \sum_c |S_c|, \qquad k = 10^{-5}

    with :math:`\rho_{ij}` the correlation of the Jacobians of samples :math:`i` and :math:`j`. For more than a hundred
    classes :math:`S_c` is divided by the samples of its class, and the score is
    :math:`\sum_{c, d} |S_c - S_d|` divided by the number of classes in the batch.

    Args:
        jacobian: Gradient of the sum of the outputs with respect to each input, ``[N, D]``.
        labels: Class of each sample, ``[N]``.
        num_classes: Number of classes.

    Returns:
        No unit, higher is better.

    Raises:
        NotApplicableError: If no class has at least two samples, all with gradients that are not constant.

    Source:
        Lopes et al., *EPE-NAS*, 2021, arXiv:2102.08099, and the code of NASLib. A class with a single sample carries
        no information and is left out (there it adds 1e-5).
    """
    sums = []
    for label in labels.unique():
        rows = jacobian[labels == label]
        matrix = correlations(rows)
        if len(rows) > 1 and bool(matrix.isfinite().all()):
            total = float((matrix.abs() + _STABILISER).log().sum())
            sums.append(total / len(rows) if num_classes > _MANY_CLASSES else total)
    if not sums:
        raise NotApplicableError(
            "no class has at least two samples in the first batch, all with a gradient that varies. Use larger batches."
        )
    if num_classes <= _MANY_CLASSES:
        return math.fsum(map(abs, sums))
    return math.fsum(abs(a - b) for a, b in itertools.product(sums, sums)) / len(sums)


@dataclass(unsafe_hash=True)
class _OutputSize(Observer):
    """Record how many numbers the network outputs per sample."""

    def forwarded(self, output: Tensor, inputs: Sequence[Tensor]) -> None:
        """Record the size."""
        self.size = output[0].numel()


def class_labels(probe: Probe, num_samples: int) -> Tensor:
    """Find the class of each sample of the first batch: a tensor of integers with one number per sample.

    Raises:
        NotApplicableError: If there is no such tensor, or several.
    """
    batch = probe.first_batch
    position = label_position(probe, batch, num_samples, only_integers=True)
    if position is None:
        raise NotApplicableError("the batch has no class labels: expected a tensor with one integer per sample.")
    return tensors_of(batch)[position].flatten()


@register_proxy("epe_nas")
class EPENAS(Proxy):
    """Correlations of input Jacobians within each class of a batch (Lopes et al., 2021).

    The labels are the tensor of the batch with one integer per sample, which the network does not read. The loss is
    not used.
    """

    needs_labels = True
    needs: Sequence[Observer] = (InputJacobian(), _OutputSize())

    def measure(self, probe: Probe) -> float:
        """Correlate the input Jacobians of the first batch, class by class."""
        rows = input_jacobian(probe)
        labels = class_labels(probe, len(rows)).to(rows.device)
        return epe_nas_score(rows, labels, probe.observed(_OutputSize()).size)
