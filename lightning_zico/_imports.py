"""Optional packages: imported where they are used, with a hint if they are missing."""

from importlib import import_module
from typing import Any


def import_optional(module: str, need: str, extra: str, *, otherwise: str = "") -> Any:
    """Import a module of an optional package.

    Args:
        module: Full name of the module.
        need: What needs which package, in words; the error message starts with it.
        extra: Extra of this package that installs it.
        otherwise: What works without the package, as a sentence.

    Raises:
        ModuleNotFoundError: If the package is not installed. The message says how to install it.

    Example:
        >>> import_optional("no_such_package", "Drawing needs paint", "paint")
        Traceback (most recent call last):
        ModuleNotFoundError: Drawing needs paint: `pip install 'lightning-zico[paint]'`.
    """
    try:
        import_module(module.partition(".")[0])  # otherwise a loaded submodule would be found without its package
        return import_module(module)
    except ModuleNotFoundError as error:
        hint = f"{need}: `pip install 'lightning-zico[{extra}]'`."
        raise ModuleNotFoundError(f"{hint} {otherwise}".rstrip()) from error
