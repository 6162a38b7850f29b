"""Activations: what the layers of a module put out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def recording(module: nn.Module, *types: type[nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Record the outputs of submodules while the body runs; the hooks are gone afterwards, also when it raises.

    Args:
        module: The module that the body calls.
        types: Classes of the submodules to record; all submodules without children if none is given.

    Yields:
        Detached outputs by submodule name, in the order of the calls: one for each time the submodule ran. Submodules
        that put out anything but a tensor are left out.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
        >>> with recording(model, nn.ReLU) as outputs:
        ...     _ = model(torch.ones(2, 3))
        >>> {name: [output.shape for output in calls] for name, calls in outputs.items()}
        {'1': [torch.Size([2, 5])]}
    """
    outputs: dict[str, list[Tensor]] = {}

    def record_as(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.setdefault(name, []).append(output.detach())

        return hook

    handles = []
    try:
        for name, submodule in module.named_modules():
            if isinstance(submodule, types) if types else not any(submodule.children()):
                handles.append(submodule.register_forward_hook(record_as(name)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
