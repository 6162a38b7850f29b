"""What numbers depend on, in plain values that a ranking and a search both write down."""

import platform
from typing import Any

import lightning
import torch

from lightning_zico.__about__ import __version__
from lightning_zico.ranking import Recipe


def versions() -> dict[str, str]:
    """Name the versions of this package and of what it stands on."""
    return {
        "lightning_zico": __version__,
        "lightning": lightning.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def told(recipe: Recipe) -> dict[str, Any]:
    """Tell what a recipe that was used combines, and how."""
    return {"used": recipe.name, "members": list(recipe.members), "aggregate": recipe.aggregate}
