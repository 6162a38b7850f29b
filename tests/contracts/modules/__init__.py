"""Ordinary modules of ten fields, one file a field, written as people write them."""

from tests.contracts.modules import (  # noqa: F401
    detection,
    generative,
    graphs,
    physics,
    segmentation,
    selfsupervised,
    series,
    tabular,
    text,
    vision,
)
from tests.contracts.modules.registry import ENTRIES, Entry, loader_of

__all__ = ["ENTRIES", "Entry", "loader_of"]
