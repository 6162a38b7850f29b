"""Attention of plain products, as double backward passes and whoever looks at its heads need it."""

from contextlib import AbstractContextManager
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel


class UnfusedAttention(AbstractContextManager[None]):
    """Makes attention of plain products while a body runs; can be entered again, where a step is run again."""

    def __enter__(self) -> None:
        self._kernel = sdpa_kernel(SDPBackend.MATH)
        self._kernel.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._kernel.__exit__(*error)
