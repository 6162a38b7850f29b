"""The tree of a module's submodules, and the parameters and buffers that they register.

`nn.Module.named_modules` and similar methods pass every item through a generator for each level of the tree, which
takes half as long again.
"""

from collections.abc import Collection, Iterable
from typing import TypeVar

from torch import Tensor, nn

T = TypeVar("T", bound=Tensor)


def submodules(module: nn.Module) -> dict[str, nn.Module]:
    """List a module and its submodules, each once, as ``module.named_modules()`` does.

    Example:
        >>> list(submodules(nn.Sequential(nn.Sequential(nn.ReLU()), nn.Tanh())))
        ['', '0', '0.0', '1']
    """
    found: dict[str, nn.Module] = {}
    _walk("", module, found, set())
    return found


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """List parameters by name, each once, as ``module.named_parameters()`` does.

    Example:
        >>> list(parameters(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False))))
        ['0.weight', '0.bias', '2.weight']
    """
    registered = ((name, part._parameters) for name, part in submodules(module).items() if part._parameters)
    return _named(registered)


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """List buffers by name, each once, as ``module.named_buffers()`` does.

    Example:
        >>> list(buffers(nn.BatchNorm1d(4)))
        ['running_mean', 'running_var', 'num_batches_tracked']
    """
    return _named((name, part._buffers) for name, part in submodules(module).items() if part._buffers)


def holders(parts: Iterable[nn.Module], held: Collection[int]) -> set[int]:
    """Find, by ``id``, the modules that contain one of some modules, including these.

    Args:
        parts: All modules of a tree.
        held: Ids of some of them.
    """
    parents: dict[int, list[int]] = {}
    for part in parts:
        for child in part._modules.values():
            if child is not None:
                parents.setdefault(id(child), []).append(id(part))
    found: set[int] = set()
    remaining = list(held)
    while remaining:
        now = remaining.pop()
        if now not in found:
            found.add(now)
            remaining += parents.get(now, ())
    return found


def _walk(name: str, part: nn.Module, found: dict[str, nn.Module], seen: set[int]) -> None:
    seen.add(id(part))
    found[name] = part
    if part._modules:
        prefix = f"{name}." if name else ""
        for own, child in part._modules.items():
            if child is not None and id(child) not in seen:
                _walk(prefix + own, child, found, seen)


def _named(registered: Iterable[tuple[str, dict[str, T | None]]]) -> dict[str, T]:
    found: dict[str, T] = {}
    seen: set[int] = set()
    for prefix, tensors in registered:
        for own, tensor in tensors.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{prefix}.{own}" if prefix else own] = tensor
    return found
