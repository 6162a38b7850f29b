"""Gradients by `backward()` on a copy of the module: no functional call, no streaming, no chunks."""

import copy

import torch
from torch import nn


def gradient_of(module, step, batch, batch_idx=0):
    """Gradient of one batch, by name; zero where `backward()` leaves none."""
    twin = copy.deepcopy(module)
    twin.zero_grad(set_to_none=True)
    step(twin, batch, batch_idx).backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in twin.named_parameters()
        if parameter.requires_grad
    }


def per_batch(module, step, batches):
    return [gradient_of(module, step, batch, idx) for idx, batch in enumerate(batches)]


def per_sample(module, step, batches):
    """One sample after the other, each as a batch of one; batches are tuples of tensors."""
    return [
        gradient_of(module, step, tuple(tensor[i : i + 1] for tensor in batch), idx)
        for idx, batch in enumerate(batches)
        for i in range(len(batch[0]))
    ]


def with_constant_batch_norm(module, step, batch):
    """Copy a module and pin its batch-normalisation layers, each of which runs once, to the statistics of a batch."""
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    inputs = {}
    watched = copy.deepcopy(module)
    for name in layers:
        watched.get_submodule(name).register_forward_hook(
            lambda _layer, args, _output, name=name: inputs.update({name: args[0].detach()})
        )
    with torch.no_grad():
        step(watched, batch, 0)
    pinned = copy.deepcopy(module)
    for name in layers:
        layer = pinned.get_submodule(name)
        by_channel = inputs[name].transpose(0, 1).flatten(1)  # [N, C, *] -> [C, N * ...]
        layer.running_mean = by_channel.mean(1)
        layer.running_var = by_channel.var(1, correction=0)
        layer.track_running_stats = True
        layer.eval()
    return pinned
