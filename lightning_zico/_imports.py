"""Optional packages: imported where they are used, with a hint where they are missing."""

from importlib import import_module
from typing import Any


def imported(module: str, need: str, extra: str, *, otherwise: str = "") -> Any:
    """Import a module of an optional package.

    Args:
        module: Its name, with those of the packages around it.
        need: Who needs which package, in words; begins the error's message.
        extra: Of this package, which installs it.
        otherwise: What works without, as a sentence.

    Raises:
        ModuleNotFoundError: If it is not installed; the message says how to install it.

    Example:
        >>> imported("no_such_package", "Drawing needs paint", "paint")
        Traceback (most recent call last):
        ModuleNotFoundError: Drawing needs paint: `pip install 'lightning-zico[paint]'`.
    """
    try:
        import_module(module.partition(".")[0])  # else a part that is loaded would do without the package
        return import_module(module)
    except ModuleNotFoundError as error:
        hint = f"{need}: `pip install 'lightning-zico[{extra}]'`."
        raise ModuleNotFoundError(f"{hint} {otherwise}".rstrip()) from error
