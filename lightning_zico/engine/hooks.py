"""Hooks on the calls of modules."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from lightning_zico.engine.tree import submodules

# In torch 2.5, hooks on all modules do not get the keyword arguments of a call.
_SHOWS_KEYWORDS = "with_kwargs" in inspect.signature(register_module_forward_hook).parameters


@contextmanager
def call_hooks(
    module: nn.Module,
    ended: Callable[[nn.Module, Any, Any, Any], None],
    begins: Callable[[nn.Module, Any], None] | None = None,
) -> Iterator[None]:
    """Report calls of a module and its submodules while the body runs; calls of other modules may be among them.

    Args:
        module: Any module; the caller puts it back.
        ended: Called with the module, the arguments, the keyword arguments and the output, before the module's hooks.
        begins: Called with the module and the arguments, before the call.
    """
    handles: list[RemovableHandle] = []
    try:
        if begins is not None:
            handles.append(register_module_forward_pre_hook(begins))
        if _SHOWS_KEYWORDS:
            # One hook for all modules: hundreds of separate hooks would take longer than running a small network.
            handles.append(register_module_forward_hook(ended, with_kwargs=True))
        else:
            handles += [_register(part, ended) for part in submodules(module).values()]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _register(part: nn.Module, ended: Callable[[nn.Module, Any, Any, Any], None]) -> RemovableHandle:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # copied with the module, as it is
        ended(module, args, kwargs, output)

    # Called on the class, because script modules refuse a call of their own method.
    return nn.Module.register_forward_hook(part, hook, with_kwargs=True, prepend=True)
