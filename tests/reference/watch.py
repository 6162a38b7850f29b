"""What a float64 copy of a network does in one pass, seen by plain hooks."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid),
)
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass
class Call:
    """One call of one module; arrays are copies, so what happens in place later does not reach them."""

    name: str
    module: nn.Module
    input: np.ndarray | None
    output: np.ndarray | None


def copy_of(model: nn.Module) -> nn.Module:
    """Copy a network in float64 and train mode, without gradients."""
    twin = copy.deepcopy(model).double().train()
    twin.zero_grad(set_to_none=True)
    return twin


class Separate(nn.Module):
    """Attention of one sequence to itself with a linear layer for each projection, from ``nn.MultiheadAttention``."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = fused.num_heads
        self.batch_first = True  # asked for by ``nn.TransformerEncoderLayer``, as are the next two
        self.query, self.key, self.value = (nn.Linear(fused.embed_dim, fused.embed_dim) for _ in range(3))
        self.out = nn.Linear(fused.embed_dim, fused.embed_dim)
        with torch.no_grad():
            for layer, weight, bias in zip(
                (self.query, self.key, self.value),
                fused.in_proj_weight.chunk(3),
                fused.in_proj_bias.chunk(3),
                strict=True,
            ):
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
            self.out.load_state_dict(fused.out_proj.state_dict())

    def forward(self, query: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, None]:
        heads = [
            layer(query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        return self.out(nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)), None


def separated(model: nn.Module) -> nn.Module:
    """Copy a network, with `Separate` in the place of every ``nn.MultiheadAttention``."""
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.MultiheadAttention):
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, Separate(module).to(module.in_proj_weight))
    return twin


def as_double(tensor: Tensor) -> Tensor:
    """Make floating-point numbers float64 and leave labels."""
    return tensor.detach().clone().double() if tensor.is_floating_point() else tensor


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that are trainable linear or convolutional layers, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, LAYERS) and m.weight.requires_grad}


def layer_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of the layers by name; one that several layers share is there once."""
    of_layers = {id(layer.weight) for layer in layers_of(model).values()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in of_layers}


def weight_name(model: nn.Module, layer: str) -> str:
    """Name under which `layer_weights` lists the weight of a layer."""
    wanted = model.get_submodule(layer).weight
    return next(name for name, weight in layer_weights(model).items() if weight is wanted)


def flat(arrays: Any) -> np.ndarray:
    """Concatenate arrays or tensors of any shapes into one vector."""
    return np.concatenate([np.asarray(a.detach() if isinstance(a, Tensor) else a).reshape(-1) for a in arrays])


def calls(model: nn.Module, x: Tensor, wanted: Callable[[str, nn.Module], bool]) -> list[Call]:
    """List the calls of the wanted modules in the order in which they end."""
    twin = copy_of(model)
    seen: list[Call] = []
    inputs: list[np.ndarray | None] = []
    for name, module in twin.named_modules():
        if wanted(name, module):
            module.register_forward_pre_hook(lambda _module, args: inputs.append(_array(args[0] if args else None)))
            module.register_forward_hook(
                lambda module, _args, output, name=name: seen.append(Call(name, module, inputs.pop(), _array(output)))
            )
    with torch.no_grad():
        twin(as_double(x))
    return seen


def layer_calls(model: nn.Module, x: Tensor) -> list[Call]:
    names = set(layers_of(model))
    return calls(model, x, lambda name, _module: name in names)


def activation_calls(model: nn.Module, x: Tensor) -> list[Call]:
    return calls(model, x, lambda _name, module: isinstance(module, ACTIVATIONS))


def codes(model: nn.Module, x: Tensor) -> list[np.ndarray]:
    """Of each activation call, which entries of its input are positive, `[B, n]`."""
    return [(call.input > 0).reshape(len(x), -1) for call in activation_calls(model, x)]


def num_patterns(model: nn.Module, x: Tensor) -> int:
    """Count the distinct ways in which neurons answer to the samples."""
    patterns = set()
    for code in codes(model, x):
        for neuron in range(code.shape[1]):
            patterns.add(tuple(bool(code[sample, neuron]) for sample in range(len(x))))
    return len(patterns)


def num_positions(feature_map: np.ndarray) -> int:
    """Positions per sample of `[B, C]`, `[B, T, C]` or `[B, C, *]`."""
    if feature_map.ndim < 3:
        return 1
    return feature_map.shape[1] if feature_map.ndim == 3 else math.prod(feature_map.shape[2:])


def by_position(feature_map: np.ndarray) -> np.ndarray:
    """Lay out `[B, C]`, `[B, T, C]` or `[B, C, *]` as one row of channels per sample and position."""
    if feature_map.ndim > 3:
        feature_map = np.moveaxis(feature_map, 1, -1)
    return feature_map.reshape(-1, feature_map.shape[-1])


def layer_output_size(call: Call) -> tuple[int, int]:
    """Positions and channels of what a layer puts out."""
    shape = call.output.shape
    if isinstance(call.module, nn.Linear):
        return math.prod(shape[1:-1]), shape[-1]
    return math.prod(shape[2:]), shape[1]


def correlations(rows: np.ndarray, of_constant: float = float("nan")) -> np.ndarray:
    """Pearson correlation of each pair of rows, one pair at a time; `of_constant` where one of the two is constant."""
    matrix = np.full((len(rows), len(rows)), of_constant)
    for i in range(len(rows)):
        for j in range(len(rows)):
            if np.ptp(rows[i]) > 0 and np.ptp(rows[j]) > 0:
                a, b = rows[i] - rows[i].mean(), rows[j] - rows[j].mean()
                matrix[i, j] = np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b))
    return matrix


def _array(value: Any) -> np.ndarray | None:
    value = value[0] if isinstance(value, tuple) else value
    return value.detach().clone().numpy() if isinstance(value, Tensor) else None
