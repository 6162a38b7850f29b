"""Batch normalisation, observed and replaced where it is called: layers, subclasses and ``F.batch_norm`` alike."""

import inspect
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F  # noqa: N812  (its usual name)
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SIGNATURE = inspect.signature(F.batch_norm)


class BatchNormMode(TorchFunctionMode):
    """Hands every call of ``F.batch_norm`` to a function, which gets its arguments by name."""

    def __init__(self, handle: Callable[[dict[str, Any]], Tensor]) -> None:
        super().__init__()
        self._handle = handle

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._handle(_SIGNATURE.bind(*args, **kwargs).arguments)
        return func(*args, **kwargs)
