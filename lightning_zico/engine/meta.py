"""What runs on the meta device share: shapes without data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_zico.engine.watch import ACTIVATIONS

META = torch.device("meta")


def placing(device: torch.device | None) -> Callable[[Tensor], Tensor]:
    """Return a function that copies a tensor to a device, without its graph; None for the device that it is on."""

    def place(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device) if device else tensor.detach().clone()

    return place


def slow_input(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the input of a norm or an activation if it is on the meta device, where these take most of the time.

    Returns:
        None for other functions and devices, and if autograd is on: then, what the call does to the graph matters.
    """
    if torch.is_grad_enabled() or (func is not F.batch_norm and func not in ACTIVATIONS):
        return None
    given: Tensor = args[0] if args else kwargs["input"]
    return given if given.is_meta else None
