"""logme: the evidence of a Bayesian linear model from the features to the targets.

Index conventions:
    N: samples
    D: entries of a feature vector
    R: rank of the features
    T: targets of a sample, or classes
"""

import math

import torch
from torch import Tensor

from lightning_zico.engine.probe import Probe
from lightning_zico.engine.spectra import thin_svd
from lightning_zico.proxies.base import Measurement, register_proxy
from lightning_zico.proxies.transfer import TransferProxy, one_hot

_MOST_ITERATIONS = 200
_TOLERANCE = 1e-6  # relative change of the ratio of the two precisions; the evidence is flat at its maximum
_FURTHEST = 1e12  # furthest that the ratio may move from the features' mean square


def logme_score(features: Tensor, targets: Tensor) -> float:
    r"""Score features by the logarithm of the maximum evidence, per sample.

    .. math::
        \frac{1}{N} \max_{a, b} \log \int \mathcal{N}(y \mid F w, b^{-1} I) \, \mathcal{N}(w \mid 0, a^{-1} I) \, dw

    with :math:`y` one column of the targets; the mean over the columns is returned. With :math:`F = U s V^\top` and
    :math:`t = a / b`, one step of the fixed point costs ``R`` operations:

    .. math::
        \gamma = \sum \frac{s^2}{s^2 + t}, \quad a = \frac{\gamma}{\|m\|^2}, \quad
        b = \frac{N - \gamma}{\|F m - y\|^2}

    with :math:`m` the posterior mean of :math:`w`.

    Args:
        features: One row per sample, ``[N, D]``.
        targets: Numbers to predict, ``[N, T]``; one-hot for classes.

    Returns:
        No unit, higher is better. Orthogonal maps and the scale of the features do not change it. A shift does, because
        the linear model has no intercept.

    Source:
        You et al., *LogME: Practical Assessment of Pre-trained Models for Transfer Learning*, ICML 2021,
        arXiv:2102.11005, Algorithm 2 as its authors corrected it (*Ranking and Tuning Pre-trained Models*, 2022). The
        published code starts at a = b = 1 and stops after 11 iterations, so that it depends on the features' scale;
        here the iteration starts at the features' mean square and goes on until it has converged.
    """
    targets = targets.double()
    left, singular = thin_svd(features.double())
    squares = singular.square().unsqueeze(1)  # [R, 1]
    along = left.T @ targets  # [R, N] @ [N, T] -> [R, T]
    totals = targets.square().sum(0)
    outside = (totals - along.square().sum(0)).clamp(min=0)  # of the targets' squares, what no weights reach

    def errors(ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared length of the posterior mean and of the residual, ``[T]`` each."""
        shrunk = along / (squares + ratio)
        return (squares * shrunk.square()).sum(0), (ratio * shrunk).square().sum(0) + outside

    middle = squares.mean()
    ratio = middle.expand(targets.shape[1])  # [T]
    for _ in range(_MOST_ITERATIONS):
        effective = (squares / (squares + ratio)).sum(0)
        length, residual = errors(ratio)
        smallest = totals * torch.finfo(torch.float64).eps
        steps = effective * residual.clamp(min=smallest) / (length * (len(targets) - effective)).clamp(min=1e-300)
        moved = steps.clamp(middle / _FURTHEST, middle * _FURTHEST)
        has_converged = bool(((moved - ratio).abs() <= _TOLERANCE * ratio).all())
        ratio = moved
        if has_converged:
            break
    length, residual = errors(ratio)
    # The noise's precision that is best for this ratio, in closed form.
    noise = len(targets) / (residual + ratio * length).clamp(min=totals * torch.finfo(torch.float64).eps)
    fit = (ratio / (squares + ratio)).log().sum(0) / 2
    return float((fit / len(targets) + (noise.log() - 1 - math.log(2 * math.pi)) / 2).mean())


@register_proxy("logme")
class LogME(TransferProxy):
    """Evidence of a Bayesian linear model on pretrained features, for classes and for numbers (You et al., 2021)."""

    def measure(self, probe: Probe) -> Measurement:
        """Maximise the evidence for each class against the others, or for the numbers themselves."""
        features = self.features(probe)
        targets = one_hot(features.targets) if features.has_classes else features.targets.unsqueeze(1)
        return Measurement(logme_score(features.rows, targets), details=features.details)
