"""What transfer proxies share: they look at the features and labels of many samples."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_zico.engine.features import FeatureLayers, Features, FeatureSource
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import InvalidArgumentError, NotApplicableError
from lightning_zico.proxies.base import Proxy, saturation

_LEAST_SAMPLES = 4  # fewer leave nothing to compare
MORE_SAMPLES = "num_samples_transfer"  # the setting, for `saturation`


class TransferProxy(Proxy):
    """A proxy that looks at the features that a pretrained candidate makes of labelled samples.

    Args:
        layers: ``"last"`` for the input of the head, ``"mean"`` for the mean over the blocks; None for ``"mean"`` if
            the network reads tokens and has such blocks, otherwise ``"last"``.
        features: Name of a submodule whose output to take instead, such as ``"backbone"``.
        name: Name of the column; None for the registered one.

    Raises:
        InvalidArgumentError: If an argument has another value than these, or both are given.
    """

    needs_labels = True
    needs_features = True
    needs_pretrained = True

    def __init__(
        self, *, layers: FeatureLayers | None = None, features: str | None = None, name: str | None = None
    ) -> None:
        if layers not in ("last", "mean", None):
            raise InvalidArgumentError(f"Invalid layers={layers!r}: expected 'last', 'mean' or None.")
        if features is not None and not isinstance(features, str):
            raise InvalidArgumentError(f"Invalid features={features!r}: expected the name of a submodule.")
        if features is not None and layers is not None:
            raise InvalidArgumentError("Pass either `layers=` or `features=`, not both.")
        if name is not None:
            self.name = name
        self.source = FeatureSource(layers, features)

    def features(self, probe: Probe) -> Features:
        """Take the features, once for all transfer proxies with the same arguments.

        Raises:
            NotApplicableError: If there are none (see `FeatureSource`), or too few samples or classes.
        """
        found = probe.once(self.source)
        if len(found.rows) < _LEAST_SAMPLES:
            raise NotApplicableError(f"there are {len(found.rows)} labelled samples: expected at least four.")
        if bool((found.targets == found.targets[0]).all()):
            raise NotApplicableError(
                f"all {len(found.rows)} samples have the same label. Shuffle the data, or raise `num_samples_transfer`."
            )
        return found


class ClassTransferProxy(TransferProxy):
    """A transfer proxy whose formula is for classes alone."""

    def features(self, probe: Probe) -> Features:
        """Take the features.

        Raises:
            NotApplicableError: Also if the labels are numbers to predict.
        """
        found = super().features(probe)
        if not found.has_classes:
            raise NotApplicableError("the labels are numbers, and the formula compares classes.")
        return found


class SourceHeadProxy(ClassTransferProxy):
    """A transfer proxy that looks at what a pretrained head predicts, in terms of its own classes.

    Args:
        name: Name of the column; None for the registered one.
    """

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__(name=name)

    def source_head(self, probe: Probe) -> "SourceHead":
        """Take what the head puts out.

        Raises:
            NotApplicableError: If the head has the classes of the data, so that it is not the pretrained one.
        """
        found = self.features(probe)
        num_classes = int(found.targets.max()) + 1
        if found.outputs is None or found.outputs.shape[1] in (1, num_classes):
            raise NotApplicableError(
                f"the candidate has no pretrained head with classes of its own: its head is made for the {num_classes} "
                "classes of the data. Offer the checkpoint with the head that it came with."
            )
        details = {"num_samples": len(found.rows), "num_source_classes": found.outputs.shape[1]}
        return SourceHead(found.outputs, found.targets, details)


class SourceHead(NamedTuple):
    """What a pretrained head puts out, ``[N, Z]``, with the class of each sample, ``[N]``."""

    outputs: Tensor
    targets: Tensor
    details: dict[str, Any]


def one_hot(labels: Tensor) -> Tensor:
    """Return one column for each class that occurs, in ascending order, ``[N]`` -> ``[N, K]``, float64.

    Example:
        >>> one_hot(torch.tensor([7, 3, 7])).tolist()
        [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    """
    classes, idx = labels.unique(return_inverse=True)
    return torch.nn.functional.one_hot(idx, len(classes)).double()


def details_of_accuracy(is_right: Tensor) -> dict[str, Any]:
    """Return the standard error of an accuracy in percent, and its saturation; ``[N]``, which samples are right."""
    accuracy = float(is_right.double().mean())
    standard_error = 100 * math.sqrt(accuracy * (1 - accuracy) / len(is_right))
    return {"standard_error": standard_error} | saturation(bool(is_right.all()), len(is_right), MORE_SAMPLES)
