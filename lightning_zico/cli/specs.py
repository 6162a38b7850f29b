"""Texts that name models, proxies and objects to import."""

import re
from importlib import import_module
from typing import Any


class ZooSpec(str):
    """A model of a zoo, as a text with a colon, which no class path has.

    Raises:
        ValueError: If there is no colon.

    Example:
        >>> ZooSpec("timm:resnet18")
        'timm:resnet18'
    """

    __slots__ = ()

    def __new__(cls, text: str) -> "ZooSpec":
        """Check the text and make a spec of it."""
        if not isinstance(text, str) or ":" not in text:
            raise ValueError(f"{text!r} is not a model of a zoo: expected one such as timm:resnet18.")
        return super().__new__(cls, text)


def check_model(model: str) -> None:
    """Check that a text is a model of a zoo; a class path that can be imported is no longer a text here.

    Raises:
        ValueError: If it has no colon.
    """
    if ":" not in model:
        import_option(model, "model")  # raises an error that says what is missing
        raise ValueError(
            f"Invalid --model={model}: expected the class path of a LightningModule, or a model of a zoo, such as "
            "timm:resnet18."
        )


def split_specs(zoo: str | list[str]) -> list[str]:
    """Split the value of `--zoo` into specs: a part with a colon begins a new one.

    Example:
        >>> split_specs("timm:resnet*,lcnet*, torchvision:vgg*")
        ['timm:resnet*,lcnet*', 'torchvision:vgg*']
    """
    specs: list[str] = []
    for part in (zoo if isinstance(zoo, str) else ",".join(zoo)).split(","):
        part = part.strip()
        if ":" in part or not specs:
            specs.append(part)
        else:
            specs[-1] += f",{part}"
    return specs


def split_names(names: str | list[str] | None) -> Any:
    """Split names at commas; a single name stays a text, so that "default" and "all" keep their meaning."""
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    return names[0] if names is not None and len(names) == 1 else names


def import_option(path: str, option: str = "candidates") -> Any:
    """Import an object by its path, for an option.

    Raises:
        ValueError: If there is no such object, or its module cannot be imported.
    """
    if not re.fullmatch(r"\w+(\.\w+)*[.:]\w+", path):
        raise ValueError(f"Invalid --{option}={path}: expected an import path, such as my_pkg.my_{option}.")
    try:
        return import_object(path)
    except (Exception, SystemExit) as error:
        why = error if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"Invalid --{option}={path}: it cannot be imported: {why}.") from error


def import_object(path: str) -> Any:
    """Import an object by its path."""
    module, _, name = path.replace(":", ".").rpartition(".")
    return getattr(import_module(module), name)
