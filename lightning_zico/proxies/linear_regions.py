"""linear_regions: into how many regions the activations of a network divide its input space.

Index conventions:
    N: random inputs
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_zico._typing import Batch
from lightning_zico.engine.batches import map_tensors, tensors_of
from lightning_zico.engine.cutting import cut_length
from lightning_zico.engine.observers import per_sample
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.weights import gaussian_batch
from lightning_zico.errors import NotApplicableError
from lightning_zico.proxies.activations import ACTIVATION_FUNCTIONS, Activations
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy, saturation

# As published.
NUM_INPUTS = 1000
RESOLUTION = 3


@dataclass(unsafe_hash=True)
class _Codes(Activations):
    """Encode each sample by the signs of the inputs of all activation functions."""

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        super().start(module)
        self._codes: list[np.ndarray[Any, Any]] = []  # [N, bytes] each

    def look(self, before: Tensor) -> None:
        """Add the samples' codes."""
        self._codes.append(np.packbits(per_sample(before > 0).cpu().numpy(), axis=1))

    @property
    def count(self) -> int:
        """Number of distinct codes."""
        return len({code.tobytes() for code in np.concatenate(self._codes, axis=1)})


@register_proxy("linear_regions")
class LinearRegions(Proxy):
    """Number of activation patterns that random inputs fall into (Xiong et al., ICML 2020; TE-NAS, ICLR 2021).

    It uses a thousand Gaussian images of 3 x 3 pixels, as published, if the network accepts them. Otherwise it uses as
    many Gaussian inputs of the original size as the batch has samples. Those usually all differ, so the number is then
    hardly informative. The details contain which inputs were used, and whether all of them differ (`saturation`).

    Source:
        Chen et al., *TE-NAS*, ICLR 2021, arXiv:2102.11535. There, the network is built for one input channel with
        Kaiming weights; here, it keeps its channels and its own weights.
    """

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Count the patterns."""
        batch = probe.first_batch
        if not probe.inputs:
            raise NotApplicableError(
                "the network reads no floating-point tensor of the batch that random inputs could replace."
            )
        codes, inputs = _Codes(), "3 x 3"
        try:
            generator = torch.Generator().manual_seed(probe.seed)
            small = gaussian_batch(_shrunk(batch, probe.num_samples), generator, probe.inputs)
            probe.forward(codes, batch=small, fed=None)
            codes.rows.check(NUM_INPUTS, ACTIVATION_FUNCTIONS)
        except Exception:  # the network does not accept such small images, or any images
            codes, inputs = _Codes(), "own size"
            generator = torch.Generator().manual_seed(probe.seed)
            probe.forward(codes, batch=gaussian_batch(batch, generator, probe.inputs), fed="Gaussian inputs")
            probe.check_rows(codes.rows, ACTIVATION_FUNCTIONS)
        count, num_inputs = codes.count, codes.num_rows
        details = {"inputs": inputs, "num_inputs": num_inputs} | saturation(count == num_inputs, num_inputs, None)
        return Measurement(float(count), details=details)


def _shrunk(batch: Batch, count: int | None) -> Batch:
    """Repeat samples until there are a thousand, and crop images; their contents are drawn later."""
    if cut_length(batch) != count:
        raise NotApplicableError("dimension 0 of the batch does not count samples.")
    rows = torch.arange(NUM_INPUTS) % count
    if not any(tensor.is_floating_point() and tensor.ndim == 4 for tensor in tensors_of(batch)):
        raise NotApplicableError("the batch has no images.")

    def shrink(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.ndim == 4:
            tensor = tensor[:, :, :RESOLUTION, :RESOLUTION]
        return tensor[rows.to(tensor.device)]

    return map_tensors(shrink, batch)
