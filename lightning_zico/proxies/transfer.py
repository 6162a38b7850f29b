"""What transfer proxies share: they look at the features and labels of many samples."""

import copy
import math
from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_zico.engine.features import FeatureLayers, Features, FeatureSource
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.scope import preserved_rng
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
    """A transfer proxy that looks at what the head of a checkpoint predicts, in terms of its own classes.

    Neither weights nor widths show where a head comes from, so the candidate must say it: it has a method
    ``source_head`` without arguments, which returns the name of the network's head among its submodules, and the layer
    that the checkpoint has in that place. That may be the very same layer, if the network has kept it. Models of a zoo
    have this method.

    Args:
        name: Name of the column; None for the registered one.
    """

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__(name=name)

    def source_head(self, probe: Probe) -> "SourceHead":
        """Take the outputs of the head.

        Raises:
            NotApplicableError: If no head of a checkpoint is known, or the outputs of another head in its place would
                not be the network's.
        """
        found = self.features(probe)
        outputs = _source_outputs(*probe.once(_load_head), found)
        details = {"num_samples": len(found.rows), "num_source_classes": outputs.shape[1]}
        return SourceHead(outputs, found.targets, details)


def load_source_head(module: nn.Module) -> tuple[str, nn.Module] | None:
    """Load the head that a candidate's checkpoint came with.

    Returns:
        The name of the candidate's head, and the layer of the checkpoint; None if the candidate has no method
        ``source_head`` that takes no arguments. A layer or a number of that name is something else.

    Raises:
        NotApplicableError: If there is no such head.
        InvalidArgumentError: If the method returns anything else.
    """
    load: Any = getattr(module, "source_head", None)
    if isinstance(load, nn.Module) or not callable(load) or not _takes_nothing(load):
        return None
    with preserved_rng():
        found = load()
    match found:
        case (str(name), nn.Module() as layer):
            return name, layer
    raise InvalidArgumentError(
        f"`{type(module).__name__}.source_head()` returned a {type(found).__name__}: expected a pair of the name of "
        "the network's head and the layer of its checkpoint, such as `('network.fc', layer)`."
    )


def _takes_nothing(function: Callable[..., object]) -> bool:
    try:
        signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


def _load_head(probe: Probe) -> tuple[str, nn.Module]:
    found = load_source_head(probe.module)
    if found is None:
        raise NotApplicableError(
            "it is not known which head the checkpoint came with. If you have it, let a method `source_head` of the "
            "module return its name among the submodules, and the layer."
        )
    return found


def _source_outputs(name: str, layer: nn.Module, found: Features) -> Tensor:
    """Compute the outputs of a checkpoint's head for the inputs of the network's head, ``[N, Z]``."""
    if found.head is None or found.head.name != name or not found.head.is_last:
        raise NotApplicableError(
            f"the network's output is not the output of '{name}' alone, so the checkpoint's own head cannot "
            "take its place."
        )
    inputs = found.head.inputs
    if isinstance(layer, nn.Conv2d):
        inputs = inputs[:, :, None, None]
    with torch.no_grad():
        return copy.deepcopy(layer).to("cpu", torch.float64)(inputs).flatten(1)


class SourceHead(NamedTuple):
    """Outputs of a pretrained head, ``[N, Z]``, with the class of each sample, ``[N]``."""

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
