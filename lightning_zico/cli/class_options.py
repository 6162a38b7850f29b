"""Options that a command takes from a class or a function instead of writing them out."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OptionsOf:
    """Marks a parameter of a command that stands for several options: ``Annotated[Mapping[str, Any], OptionsOf(...)]``.

    Names, types, defaults and help are those of the class or function; the command gets their values as a mapping.

    Args:
        source: The class or function.
        leave_out: Parameters of it that are no options of the command.

    Example:
        >>> def resize(side: int = 32, mode: str = "area") -> None: ...
        >>> OptionsOf(resize, frozenset({"mode"})).names
        ['side']
    """

    source: Callable[..., Any]
    leave_out: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """Names of the options."""
        return [name for name in inspect.signature(self.source).parameters if name not in self.leave_out]
