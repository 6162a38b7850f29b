"""Proxies that need forward passes alone: sets of tuples of bits, loops over channels, NumPy in float64."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference.watch import (
    ACTIVATIONS,
    BATCH_NORMS,
    Call,
    activation_calls,
    by_position,
    calls,
    codes,
    correlations,
    layer_calls,
    num_patterns,
    num_positions,
)


def naswot(model: nn.Module, x: Tensor) -> float:
    """Count for each pair of samples the bits on which they agree."""
    kernel = np.zeros((len(x), len(x)))
    for code in codes(model, x):
        for i in range(len(x)):
            for j in range(len(x)):
                kernel[i, j] += np.sum(code[i] == code[j])
    return float(np.linalg.slogdet(kernel)[1])


def zen(model: nn.Module, x0: Tensor, noise: Tensor) -> float:
    """Score a network whose weights are Gaussian already."""
    difference = np.abs(last_feature_map(model, x0) - last_feature_map(model, x0 + 0.01 * noise))
    score = np.log(np.mean([difference[sample].sum() for sample in range(len(x0))]))
    for call in calls(model, x0, lambda _name, module: isinstance(module, BATCH_NORMS)):
        channels = [call.input[:, c] for c in range(call.input.shape[1])]
        variance = np.mean([np.var(channel) for channel in channels])
        score += np.log(np.sqrt(variance)) if variance else 0.0
    return float(score)


def last_feature_map(model: nn.Module, x: Tensor) -> np.ndarray:
    """Output of the last call with more than one position, or without one the input of the last layer."""
    maps = [call.output for call in calls(model, x, lambda _name, _module: True) if _is_map(call)]
    return maps[-1] if maps else layer_calls(model, x)[-1].input


def linear_regions(model: nn.Module, samples: Tensor) -> float:
    regions = set()
    seen = codes(model, samples)
    for i in range(len(samples)):
        regions.add(tuple(bool(bit) for code in seen for bit in code[i]))
    return float(len(regions))


def meco(model: nn.Module, x: Tensor) -> float:
    return float(sum(_smallest_eigenvalue(channels) for channels in _first_maps(model, x)))


def meco_opt(model: nn.Module, x: Tensor, num_channels: int = 8) -> float:
    total = 0.0
    for channels in _first_maps(model, x):
        n = min(num_channels, len(channels))
        drawn = torch.randperm(len(channels), generator=torch.Generator().manual_seed(0))[:n]
        total += _smallest_eigenvalue(channels[drawn.numpy()]) * len(channels) / n
    return float(total)


def swap(model: nn.Module, x: Tensor) -> float:
    return float(num_patterns(model, x))


def near(model: nn.Module, x: Tensor) -> float:
    total = 0.0
    for call in activation_calls(model, x):
        for feature_map in (call.input, call.output):
            matrix = by_position(feature_map)
            rows, columns = matrix.shape
            if rows > columns:
                kept = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:columns]
                matrix = np.array([matrix[row] for row in kept.tolist()])
            total += effective_rank(matrix)
    return total


def effective_rank(matrix: np.ndarray) -> float:
    """Exponential of the entropy of the singular values, as shares of their sum."""
    singular_values = np.linalg.svd(matrix, compute_uv=False)
    if singular_values.sum() == 0:
        return 0.0
    shares = singular_values / singular_values.sum()
    return float(np.exp(-sum(p * np.log(p) for p in shares if p > 0)))


def v_pca(model: nn.Module, x: Tensor) -> float:
    """Count the components of the output of each linear layer on tokens that an activation function comes after."""
    wanted = (nn.Linear, *ACTIVATIONS)
    seen = calls(model, x, lambda _name, module: isinstance(module, wanted))
    total = 0
    for call, following in pairwise(seen):
        if isinstance(call.module, nn.Linear) and isinstance(following.module, ACTIVATIONS) and call.output.ndim > 2:
            states = call.output.reshape(-1, call.output.shape[-1])
            variances = np.sort(np.linalg.eigvalsh(np.cov(states.T)))[::-1]
            kept = 0
            while sum(variances[:kept]) < 0.99 * sum(variances):
                kept += 1
            total += kept
    return float(total)


def w_pca(model: nn.Module, x: Tensor) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) * v_pca(model, x)


def inverse_conditions(model: nn.Module, x: Tensor) -> float:
    """Sum over the first sample's maps the smallest singular value over the largest."""
    singular = [np.linalg.svd(channels, compute_uv=False) for channels in _first_maps(model, x, nn.Identity)]
    return float(sum(s.min() / s.max() for s in singular if s.max() and s.min() > 1e-7 * s.max()))


def head_confidence(projections: Sequence[np.ndarray], num_heads: int) -> float:
    """Attend head by head and sample by sample, from queries, keys and values, `[B, T, C]` each."""
    total = 0.0
    for queries, keys, values in zip(*[iter(projections)] * 3, strict=True):
        for head in range(num_heads):
            maxima = []
            for sample in range(len(queries)):
                q, k, v = (np.split(each[sample], num_heads, axis=-1)[head] for each in (queries, keys, values))
                weights = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
                outputs = weights / weights.sum(axis=1, keepdims=True) @ v
                maxima.append(outputs.max(axis=0).mean())
            total += np.mean(maxima)
    return float(total)


def log_neurons(model: nn.Module, x: Tensor) -> float:
    return float(np.log(sum(code.shape[1] for code in codes(model, x))))


def az_entropies(model: nn.Module, block_names: Sequence[str], x0: Tensor) -> list[float]:
    """Entropy of the principal components of each block's features, in order of execution."""
    entropies = []
    for call in calls(model, x0, lambda name, _module: name in block_names):
        features = by_position(call.output)
        centred = features - features.mean(axis=0)
        covariance = sum(np.outer(row, row) for row in centred) / len(centred)  # [C, C]
        eigenvalues = [max(float(v), 0.0) for v in np.linalg.eigvalsh(covariance)]
        shares = [v / sum(eigenvalues) for v in eigenvalues]
        entropies.append(float(-sum(p * np.log(p + 1e-8) for p in shares)))
    return entropies


def az_expressivity(model: nn.Module, block_names: Sequence[str], x0: Tensor) -> float:
    return sum(az_entropies(model, block_names, x0))


def az_expressivity_mean(model: nn.Module, block_names: Sequence[str], x0: Tensor) -> float:
    return float(np.mean(az_entropies(model, block_names, x0)))


def az_progressivity(model: nn.Module, block_names: Sequence[str], x0: Tensor) -> float:
    entropies = az_entropies(model, block_names, x0)
    return min(entropies[i] - entropies[i - 1] for i in range(1, len(entropies)))


def _is_map(call: Call) -> bool:
    return call.output is not None and num_positions(call.output) > 1


def _first_maps(model: nn.Module, x: Tensor, besides: type[nn.Module] | None = None) -> list[np.ndarray]:
    """Map of the first sample, `[C, positions]`, of each call of a module without children, but for one class."""
    of_leaves = calls(
        model, x, lambda _name, module: not list(module.children()) and not (besides and isinstance(module, besides))
    )
    maps = [by_position(call.output[:1]).T for call in of_leaves if _is_map(call)]
    return [channels for channels in maps if len(channels) >= 2]


def _smallest_eigenvalue(channels: np.ndarray) -> float:
    return float(np.linalg.eigvalsh(correlations(channels, of_constant=0.0)).min())
