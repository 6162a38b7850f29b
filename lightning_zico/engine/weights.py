"""Random weights and inputs to replace a candidate's own, as dictionaries for a stateless call."""

import itertools
import math
from collections.abc import Callable, Container
from functools import lru_cache

import torch
from torch import Tensor, nn

from lightning_zico._typing import Batch, Params
from lightning_zico.engine.batches import map_tensors
from lightning_zico.engine.cutting import check_strided
from lightning_zico.engine.layers import Layers, known_layers, owned_weights, parts_of
from lightning_zico.engine.tree import parameters, submodules

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def gaussian_weights(module: nn.Module, generator: torch.Generator, layers: Layers | None = None) -> Params:
    """Draw the weights of layers from N(0, 1).

    Their biases are zero; norms have weight one and bias zero; all other parameters stay, including those from which a
    parametrised weight is computed, and those of untrained copies.

    Args:
        module: Any module.
        generator: Generator on the CPU, so that every device gets the same numbers.
        layers: Its layers, see `Probe.chosen`; None for those that are known by the classes of submodules.
    """
    return _drawn(module, generator, layers, lambda _: 1.0)


def kaiming_weights(module: nn.Module, generator: torch.Generator, layers: Layers | None = None) -> Params:
    """Draw the weights of layers from N(0, 2 / fan_in), the rest as in `gaussian_weights`.

    Source:
        He et al., *Delving Deep into Rectifiers*, 2015; ``fan_in`` as in `torch.nn.init`.
    """
    return _drawn(module, generator, layers, lambda fan_in: math.sqrt(2 / max(fan_in, 1)))


def gaussian_batch(batch: Batch, generator: torch.Generator, inputs: Container[int] | None = None) -> Batch:
    """Replace floating-point tensors of a batch by draws from N(0, 1); all others stay.

    Args:
        batch: Any nest of tensors.
        generator: Generator on the CPU, so that every device gets the same numbers.
        inputs: Positions of the tensors to replace, see `batches.tensors_of`; None for all.
    """
    return map_inputs(lambda tensor: drawn_like(tensor, generator), batch, inputs)


def map_inputs(function: Callable[[Tensor], Tensor], batch: Batch, inputs: Container[int] | None = None) -> Batch:
    """Apply a function to the floating-point tensors of a batch, or to those at some positions; all others stay.

    Complex tensors count as floating-point tensors.
    """
    positions = itertools.count()

    def mapped(tensor: Tensor) -> Tensor:
        is_input = inputs is None or next(positions) in inputs
        return function(tensor) if is_input and (tensor.is_floating_point() or tensor.is_complex()) else tensor

    return map_tensors(mapped, batch)


def drawn_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a tensor of the same shape, type and device from N(0, 1)."""
    check_strided(tensor)
    # stated explicitly, since the default device and dtype may differ
    dtype = torch.complex64 if tensor.is_complex() else torch.float32
    return torch.randn(tensor.shape, generator=generator, device="cpu", dtype=dtype).to(tensor)


@lru_cache(maxsize=1024)
def drawn_indices(total: int, kept: int, device: torch.device) -> Tensor:
    """Draw ``kept`` different indices below ``total``, ``[kept]``, int64; the same ones every time."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0), device="cpu")[:kept].to(device, copy=True)


def _drawn(
    module: nn.Module, generator: torch.Generator, layers: Layers | None, std_of: Callable[[int], float]
) -> Params:
    drawn: Params = {}
    names = {id(parameter): name for name, parameter in parameters(module).items()}
    parts = list(submodules(module).values())
    owned = {id(part): {id(weight) for weight in owned_weights(part)} for part in parts}
    known = {weight for weights in owned.values() for weight in weights}
    layers = known_layers(module) if layers is None else layers
    by_id = {name: identity for identity, name in names.items()}
    # layers that were found by running the module
    traced = {layer.parameter: layer for layer in layers.values() if by_id[layer.parameter] not in known}
    copied = {id(part) for name in layers.copies for part in module.get_submodule(name).modules()}
    for part in parts:
        if id(part) in copied:
            continue
        weights = owned[id(part)]
        own = {name: parameter for name, parameter in part._parameters.items() if parameter is not None}
        is_norm = isinstance(part, _NORMS)
        is_layer = any(id(parameter) in weights or names[id(parameter)] in traced for parameter in own.values())
        if not (is_norm or is_layer or weights):
            continue
        for own_name, parameter in own.items():
            name, tensor = names[id(parameter)], parameter.detach()
            if name in drawn:  # shared with another layer
                continue
            if "bias" in own_name and tensor.ndim < 2:
                drawn[name] = torch.zeros_like(tensor)
            elif is_norm:
                drawn[name] = torch.ones_like(tensor)
            elif id(parameter) in weights:
                if own_name.endswith(("_g", "_v")):  # length and direction of a normalised weight
                    continue
                drawn[name] = _drawn_rows(tensor, [rows for _, rows in parts_of(part, tensor)], generator, std_of)
            elif name in traced:
                fan_in = traced[name].fan_in or math.prod(tensor.shape[1:])
                drawn[name] = drawn_like(tensor, generator).mul_(std_of(fan_in))
    return drawn


def _drawn_rows(
    weight: Tensor, parts: list[tuple[int, int]], generator: torch.Generator, std_of: Callable[[int], float]
) -> Tensor:
    """Draw a weight part by part, so that it gets the same numbers as separate layers would."""
    std = std_of(math.prod(weight.shape[1:]))
    if not parts:
        return drawn_like(weight, generator).mul_(std)
    return torch.cat([drawn_like(weight[start:stop], generator) for start, stop in parts]).mul_(std)
