"""What transfer proxies share: they look at the features and labels of many samples."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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
        self.source: FeatureSource = FeatureSource(layers, features)

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

    That is the candidate's own head if it has other classes than the data. A candidate whose head is fresh may have a
    method ``source_head``, which returns the name of that head among its submodules, and the layer that its checkpoint
    has in that place; models of a zoo do.

    Args:
        name: Name of the column; None for the registered one.
    """

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__(name=name)

    def source_head(self, probe: Probe) -> "SourceHead":
        """Take what the head puts out.

        Raises:
            NotApplicableError: If there is no pretrained head, or another one in its place would not put out what the
                network would.
        """
        found = self.features(probe)
        is_fresh = getattr(probe.module, "source_head", None) is not None
        outputs = _source_outputs(*probe.once(_load_head), found) if is_fresh else _own_outputs(found)
        details = {"num_samples": len(found.rows), "num_source_classes": outputs.shape[1]}
        return SourceHead(outputs, found.targets, details)


def _own_outputs(found: Features) -> Tensor:
    """Return what the network's head puts out, if it has other classes than the data, ``[N, Z]``."""
    num_classes = int(found.targets.max()) + 1
    if found.head is None or found.head.outputs.shape[1] in (1, num_classes):
        raise NotApplicableError(
            f"the candidate has no pretrained head with classes of its own: its head is made for the {num_classes} "
            "classes of the data. Offer the checkpoint with the head that it came with."
        )
    return found.head.outputs


def _load_head(probe: Probe) -> tuple[str, nn.Module]:
    load: Callable[[], tuple[str, nn.Module]] = probe.module.source_head  # type: ignore[assignment]
    return load()


def _source_outputs(name: str, layer: nn.Module, found: Features) -> Tensor:
    """Compute what the head of a checkpoint puts out for the inputs of the fresh one, ``[N, Z]``."""
    if found.head is None or found.head.name != name or not found.head.is_last:
        raise NotApplicableError(
            f"what the network puts out is not the output of '{name}' alone, so the checkpoint's own head cannot be "
            "put in its place."
        )
    inputs = found.head.inputs
    if isinstance(layer, nn.Conv2d):
        inputs = inputs[:, :, None, None]
    with torch.no_grad():
        return layer.double()(inputs).flatten(1)


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
