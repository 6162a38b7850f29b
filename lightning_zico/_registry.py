"""A registry for everything that is looked up by name."""

import difflib
import fnmatch
import re
import warnings
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Generic, TypeVar

from lightning_zico.errors import DuplicateNameError, UnknownNameError, message_of

T = TypeVar("T")

_MOST_TO_READ = 100


class Registry(Generic[T]):
    """A mapping from names to entries.

    Args:
        kind: Kind of the entries, for error messages, such as ``"proxy"``.
        group: Group of entry points in which other packages name what to import for further entries. They are imported
            when a name is unknown or names are listed, once in a process. None for no such group.

    Example:
        >>> registry = Registry[int]("number")
        >>> registry.register("one", 1)
        >>> registry.get("on")
        Traceback (most recent call last):
        ...
        lightning_zico.errors.UnknownNameError: There is no number named 'on'. Did you mean 'one'? Known: one.
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self._kind = kind
        self._entries: dict[str, T] = {}
        self._group = group

    def register(self, name: str, entry: T) -> None:
        """Add an entry.

        Raises:
            DuplicateNameError: If the name is taken.
        """
        if name in self._entries:
            raise DuplicateNameError(f"There is a {self._kind} named {name!r} already. Choose another name.")
        self._entries[name] = entry

    def get(self, name: str) -> T:
        """Return the entry with a given name.

        Raises:
            UnknownNameError: If there is no such entry. The message suggests similar names.
        """
        if name not in self._entries:
            self._import_plugins()
        if name in self._entries:
            return self._entries[name]
        raise unknown_name(self._kind, name, self.names())

    def names(self, pattern: str = "*") -> list[str]:
        """List the names that match a shell pattern, in natural order (2 before 10)."""
        self._import_plugins()
        return sorted(fnmatch.filter(self._entries, pattern), key=natural_key)

    def _import_plugins(self) -> None:
        """Import what other packages offer; one that cannot be used is a warning, and leaves no entries."""
        # Set before the import: a plugin may list names itself.
        group, self._group = self._group, None
        for point in entry_points(group=group) if group is not None else ():
            before = dict(self._entries)
            try:
                self._import_plugin(point, before)
            except (Exception, SystemExit) as error:
                self._entries = before
                reason = f"{type(error).__name__}: {message_of(error)}".rstrip(".: ")
                package = "a package" if point.dist is None else f"the package '{point.dist.name}'"
                warnings.warn(
                    f"The {self._kind} '{point.name}' of {package} cannot be used: {reason}. "
                    "Update or uninstall the package.",
                    stacklevel=4,
                )

    def _import_plugin(self, point: EntryPoint, before: dict[str, T]) -> None:
        found = point.load()
        if not isinstance(found, ModuleType) and found not in self._entries.values():
            raise TypeError(f"'{point.value}' is not registered. Decorate it with `@register_{self._kind}(...)`")
        for name in self._entries.keys() - before.keys():
            entry = self._entries[name]
            if callable(entry):
                entry()  # so that one that cannot be made is found here, and not in a ranking by all


def unknown_name(kind: str, name: str, known: Sequence[str]) -> UnknownNameError:
    """Return the error for an unknown name, with similar names, and with all names if they are not too many."""
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    all_names = ", ".join(known) if len(known) <= _MOST_TO_READ else f"{len(known)} names"
    return UnknownNameError(f"There is no {kind} named {name!r}.{hint} Known: {all_names}.")


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts names with numbers in natural order."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
