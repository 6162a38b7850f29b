"""ridge_probe: how well a linear model on the features predicts samples that it was not fitted on.

Index conventions:
    N: samples
    D: entries of a feature vector
    R: rank of the features
    T: targets of a sample, or classes
"""

import zlib
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_zico.engine.probe import Probe
from lightning_zico.engine.spectra import thin_svd
from lightning_zico.proxies.base import Measurement, register_proxy
from lightning_zico.proxies.transfer import TransferProxy, details_of_accuracy, one_hot

# Times the features' mean square along their principal axes: from nearly none to one that leaves nearly no slope.
RELATIVE_PENALTIES = tuple(10.0**exponent for exponent in (-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2))


class HeldOut(NamedTuple):
    """Predictions of a ridge regression for samples that it was not fitted on.

    Args:
        predictions: One row per sample, by the model of all others, ``[N, T]``.
        penalty: The penalty, in the units of the squared features.
    """

    predictions: Tensor
    penalty: float


def held_out_predictions(features: Tensor, targets: Tensor) -> HeldOut:
    r"""Predict each sample by a ridge regression with intercept on all other samples (leave-one-out).

    In closed form, without fitting N models:

    .. math::
        y_i - \hat y_{-i} = \frac{y_i - \hat y_i}{1 - h_i}, \qquad
        h_i = \frac{1}{N} + \sum_r U_{ir}^2 \frac{s_r^2}{s_r^2 + \lambda}

    with :math:`U s V^\top` the centred features. The penalty :math:`\lambda` is the one of `RELATIVE_PENALTIES`, times
    the mean of :math:`s^2`, with the least squared error of these predictions.

    Args:
        features: One row per sample, ``[N, D]``.
        targets: Numbers to predict, ``[N, T]``; one-hot for classes.

    Returns:
        The predictions. Orthogonal maps, shifts and the scale of the features do not change them.

    Source:
        Allen, *The relationship between variable selection and data augmentation*, 1974 (PRESS); as
        ``sklearn.linear_model.RidgeCV`` computes it.
    """
    targets, rows = targets.double(), features.double()
    left, singular = thin_svd(rows - rows.mean(0))
    squares = singular.square()
    means = targets.mean(0)
    along = left.T @ (targets - means)  # [R, N] @ [N, T] -> [R, T]
    best = HeldOut(means.expand_as(targets), torch.inf)
    least = torch.inf
    for relative in RELATIVE_PENALTIES:
        penalty = float(relative * squares.mean())
        kept = squares / (squares + penalty)
        fitted = left @ (kept.unsqueeze(1) * along) + means
        leverages = left.square() @ kept + 1 / len(rows)
        errors = (targets - fitted) / (1 - leverages).unsqueeze(1)
        if (total := float(errors.square().sum())) < least:
            least, best = total, HeldOut(targets - errors, penalty)
    return best


def r_squared(predictions: Tensor, targets: Tensor) -> float:
    """Compute the share of the targets' variance that predictions explain, ``[N]`` each: at most 1, 0 for the mean."""
    return float(1 - (targets - predictions).square().sum() / (targets - targets.mean()).square().sum())


@register_proxy("ridge_probe")
class RidgeProbe(TransferProxy):
    """Leave-one-out accuracy of a linear model on pretrained features, in percent; for numbers, its R squared.

    The closest to fine-tuning's own unit: the difference between two candidates reads in accuracy points. Its
    details have ``is_right``, one digit for each sample, 1 if the model of all others predicts its class, and
    ``samples``, a hash of the labels, which shows whether two candidates were scored on the same samples.
    """

    def measure(self, probe: Probe) -> Measurement:
        """Predict each sample from all others."""
        features = self.features(probe)
        targets = one_hot(features.targets) if features.has_classes else features.targets.unsqueeze(1)
        held_out = held_out_predictions(features.rows, targets)
        details = features.details | {"penalty": held_out.penalty}
        if not features.has_classes:
            return Measurement(r_squared(held_out.predictions[:, 0], features.targets), details=details)
        is_right = held_out.predictions.argmax(1) == targets.argmax(1)
        details |= details_of_accuracy(is_right) | {
            "is_right": "".join(map(str, is_right.int().tolist())),
            "samples": zlib.crc32(features.targets.numpy().tobytes()),
        }
        return Measurement(100 * float(is_right.double().mean()), details=details)
