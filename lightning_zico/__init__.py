"""Rank untrained PyTorch Lightning models on a few batches with ZiCo and its rivals, then train the winner.

The public names are those of `lightning_zico._public`. They are imported, and torch and Lightning with them, when the
first of them or a subpackage is used, so that ``lightning-zico --help`` answers at once.
"""

from typing import TYPE_CHECKING

from lightning_zico.__about__ import __version__ as __version__

if TYPE_CHECKING:
    from lightning_zico._public import *  # noqa: F403
    from lightning_zico._public import __all__ as __all__
else:
    from importlib import import_module as _import_module
    from importlib.util import find_spec as _find_spec

    def __getattr__(name):
        """Return a public name or a submodule, imported when it is first used (PEP 562)."""
        if name == "__all__" or not name.startswith("_"):
            if _find_spec(f"{__name__}.{name}") is not None:
                return _import_module(f"{__name__}.{name}")
            public = _import_module(f"{__name__}._public")
            if name == "__all__" or name in public.__all__:
                globals()[name] = getattr(public, name)
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        """List the public names too, whether they are imported yet or not."""
        return sorted({*globals(), *__getattr__("__all__")})
