"""ZiCo twice: the formula in float64, and the published program with every gradient kept."""

import copy

import numpy as np
from torch import nn


def zico_from_stacks(stacks, std_of="signed"):
    """Score stacks of gradients, `[B, *]` by name, in float64."""
    total = 0.0
    for stack in stacks.values():
        g = np.asarray(stack, dtype=np.float64)
        varied = np.abs(g) if std_of == "abs" else g
        # ptp, not std: in floating point the standard deviation of three equal numbers need not be zero
        varies = np.ptp(varied, axis=0) > 0
        if varies.any():
            total += np.log(np.sum(np.mean(np.abs(g), axis=0)[varies] / np.std(varied, axis=0)[varies]))
    return float(total)


def published_zico(network, batches, lossfunc):
    """Score as SLDGroup/ZiCo does: float32 gradients in lists, `np.std` over them, layers `Conv2d` and `Linear`."""
    network = copy.deepcopy(network)
    network.train()
    kept = {}
    for inputs, labels in batches:
        network.zero_grad()
        lossfunc(network(inputs), labels).backward()
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                kept.setdefault(name, []).append(layer.weight.grad.reshape(-1).numpy().copy())
    score = 0.0
    for gradients in kept.values():
        gradients = np.array(gradients)  # [B, *]
        std = np.std(gradients, axis=0)
        nonzero = np.nonzero(std)[0]
        mean_abs = np.mean(np.abs(gradients), axis=0)
        total = np.sum(mean_abs[nonzero] / std[nonzero])
        if total != 0:
            score += np.log(total)
    return float(score)
