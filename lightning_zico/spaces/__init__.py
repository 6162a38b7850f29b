"""Search spaces: which architectures there are, what each costs, and how it is built."""

# Importing a space's file registers it.
from lightning_zico.spaces.base import ArchSyntaxError, SearchSpace, get_space, list_spaces, register_space
from lightning_zico.spaces.nas_bench_201 import NASBench201, NASBench201Arch

__all__ = [
    "ArchSyntaxError",
    "NASBench201",
    "NASBench201Arch",
    "SearchSpace",
    "get_space",
    "list_spaces",
    "register_space",
]
