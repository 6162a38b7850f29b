"""Untrained copies of submodules that a step uses, such as teachers and moving averages."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from lightning_zico.engine.tree import parameters, submodules

# The weights of a copy, such as a moving average, point in the original's direction; independent weights do not.
_SAME_DIRECTION = 0.5


def copies_in(
    module: nn.Module, runs_without_gradients: Callable[[], bool]
) -> tuple[frozenset[str], list[tuple[str, str]]]:
    """Find submodules that are built alike and are siblings, as student and teacher are.

    Args:
        module: Any module.
        runs_without_gradients: Whether a part of it may run without gradients; called only if that matters.

    Returns:
        Frozen submodules whose twin is trained, and pairs of trainable submodules of which only a run shows whether
        both are trained. Such a pair either has the weights of a copy, or has several layers, as an encoder and its
        momentum encoder do; the latter only for direct children of the module, or if a part of it may run without
        gradients.
    """
    frozen: set[str] = set()
    doubtful: list[tuple[str, str]] = []
    for prefix, parent in submodules(module).items():
        if len(parent._modules) < 2 or isinstance(parent, (nn.Sequential, nn.ModuleList, ParametrizationList)):
            continue
        alike: dict[tuple[type, int, int], list[tuple[str, nn.Module]]] = {}
        for own_name, child in parent.named_children():
            name, inner = f"{prefix}.{own_name}" if prefix else own_name, _unwrapped(child)
            sizes = [parameter.numel() for parameter in parameters(inner).values() if not is_lazy(parameter)]
            if sum(sizes):
                alike.setdefault((type(inner), len(sizes), sum(sizes)), []).append((name, inner))
        for group in alike.values():
            for position, (name, first) in enumerate(group):
                for other, second in group[position + 1 :]:
                    trained = [any(p.requires_grad for p in part.parameters()) for part in (first, second)]
                    if not any(trained) or not _are_alike(first, second):
                        continue
                    if not all(trained):
                        frozen.add(other if trained[0] else name)
                    elif _point_alike(first, second) or (
                        _has_layers(parent, first) and (parent is module or runs_without_gradients())
                    ):
                        doubtful.append((name, other))
    return frozenset(frozen), doubtful


def _unwrapped(module: nn.Module) -> nn.Module:
    """Unwrap a module that only wraps another one, such as ``AveragedModel``."""
    while len(module._modules) == 1 and not module._parameters and not isinstance(module, nn.Sequential):
        (child,) = module._modules.values()
        if child is None:
            break
        module = child
    return module


def _are_alike(first: nn.Module, second: nn.Module) -> bool:
    shapes = [[(name, p.shape) for name, p in part.named_parameters() if not is_lazy(p)] for part in (first, second)]
    shared = {id(parameter) for parameter in first.parameters()} & {id(parameter) for parameter in second.parameters()}
    return shapes[0] == shapes[1] and not shared


def _point_alike(first: nn.Module, second: nn.Module) -> bool:
    """Check whether the largest weights of two modules point in one direction."""
    pairs = [(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True) if a.ndim > 1 or b.ndim > 1]
    if not pairs or any(is_lazy(a) or a.is_meta or is_lazy(b) or b.is_meta for a, b in pairs):
        return False
    a, b = (part.detach().flatten() for part in max(pairs, key=lambda pair: pair[0].numel()))
    a, b = (torch.view_as_real(part).flatten() if part.is_complex() else part for part in (a, b))
    return bool(torch.nn.functional.cosine_similarity(a.to(b).float(), b.float(), dim=0) > _SAME_DIRECTION)


def _has_layers(parent: nn.Module, part: nn.Module) -> bool:
    """Check whether a part of a user's module has several layers, unlike the attentions of a transformer's block."""
    own = (parent, part) if type(part) is not nn.Sequential else (parent,)
    if any(f"{type(module).__module__}.".startswith("torch.nn.") for module in own):
        return False
    parameters = list(part.parameters())
    return not any(is_lazy(p) for p in parameters) and sum(p.ndim > 1 for p in parameters) > 1
