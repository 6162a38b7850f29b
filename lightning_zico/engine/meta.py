"""Helpers for runs on the meta device, whose tensors have shapes but no data."""

from collections.abc import Callable

import torch
from torch import Tensor

META = torch.device("meta")


def placing(device: torch.device | None) -> Callable[[Tensor], Tensor]:
    """Return a function that copies a tensor to a device, without its graph; None for the device that it is on."""

    def place(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device) if device else tensor.detach().clone()

    return place
