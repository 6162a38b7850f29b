"""Attention computed by plain matrix products, for double backward passes and for access to the heads."""

from contextlib import AbstractContextManager
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel


class UnfusedAttention(AbstractContextManager[None]):
    """Computes attention by plain matrix products while its body runs; can be entered again."""

    def __enter__(self) -> None:
        self._kernel = sdpa_kernel(SDPBackend.MATH)
        self._kernel.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._kernel.__exit__(*error)
