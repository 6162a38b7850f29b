"""What numbers depend on, in plain values that a ranking and a search both write down."""

import platform
from collections.abc import Sequence
from typing import Any

import lightning
import torch

from lightning_zico.__about__ import __version__
from lightning_zico._typing import Batch
from lightning_zico.bridge import Reread
from lightning_zico.ranking import Recipe


def versions() -> dict[str, str]:
    """Name the versions of this package and of what it stands on."""
    return {
        "lightning_zico": __version__,
        "lightning": lightning.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def reading(batches: Sequence[Batch]) -> dict[str, Any] | None:
    """Tell how batches were read, where a loader had fewer than asked for; None where it had enough."""
    if not isinstance(batches, Reread):
        return None
    return {
        "num_batches": len(batches),
        "num_in_a_pass": batches.num_in_a_pass,
        "num_passes": batches.num_passes,
        "are_copies": batches.are_copies,
    }


def told(used: Recipe, named: Recipe) -> dict[str, Any]:
    """Tell what a recipe that was used combines, and how.

    Args:
        used: What was combined.
        named: What the user asked for; those of its members that were not combined are ``dropped``.
    """
    dropped = [name for name in named.members if name not in used.members]
    return {"used": used.name, "members": list(used.members), "aggregate": used.aggregate, "dropped": dropped}
