"""What a proxy is, and how it is found."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

from lightning_zico._registry import Registry
from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import DuplicateNameError, InvalidArgumentError
from lightning_zico.results import RESERVED_NAMES


class Measurement(NamedTuple):
    """A number with its parts.

    Args:
        value: The number; it must be finite.
        layers: What each layer added to it, by parameter name.
        details: How it came about, in plain values.
    """

    value: float
    layers: Mapping[str, float] = {}
    details: Mapping[str, Any] = {}


class Proxy(ABC):
    """A rule that gives an untrained candidate a number.

    Attributes:
        name: What it is called, in lower snake case; `register_proxy` sets it.
        higher_is_better: Direction.
        needs_labels: Whether the loss, and so the labels of the batches, enter the number.
        is_repeatable: Whether the same candidate on the same batches gets the same number.
        reads_name: Whether the number hangs on what the candidate is called; a cache, which knows no names, keeps none.
        min_gradients: Least number of gradients (of batches, or of samples per sample) that the number is defined for.
        needs: What it reads with ``probe.observed``. Named here, it is taken in the same passes as what the other
            proxies need; left out, it costs a pass of its own.
    """

    name: str = ""
    higher_is_better: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    is_repeatable: ClassVar[bool] = True
    reads_name: ClassVar[bool] = False
    min_gradients: ClassVar[int] = 0
    needs: Sequence[Observer] = ()

    @abstractmethod
    def measure(self, probe: Probe) -> float | Measurement:
        """Compute the number; what is raised becomes the score's error."""


ProxyLike: TypeAlias = str | Proxy
Proxies: TypeAlias = ProxyLike | Sequence[ProxyLike]
P = TypeVar("P", bound=Callable[[], Proxy])

_PROXIES = Registry[Callable[[], Proxy]]("proxy")


def register_proxy(name: str) -> Callable[[P], P]:
    """Make a proxy available by name wherever proxies are named.

    Args:
        name: In lower snake case.

    Returns:
        A decorator for the class, or for any callable that makes a proxy without arguments.

    Raises:
        InvalidArgumentError: If the name is no text.
        DuplicateNameError: If the name is taken, by another proxy or by a column of the leaderboard.
    """
    if not isinstance(name, str):
        raise InvalidArgumentError(f"Invalid name={name!r}: expected a text, as in `@register_proxy('my_proxy')`.")
    if name in RESERVED_NAMES:
        raise DuplicateNameError(
            f"'{name}' is taken: a column of the leaderboard, or a word for several proxies. Choose another name."
        )

    def register(factory: P) -> P:
        if isinstance(factory, type):
            factory.name = name  # type: ignore[attr-defined]
        _PROXIES.register(name, factory)
        return factory

    return register


def list_proxies(pattern: str = "*") -> list[str]:
    """List the names of the proxies that match a shell pattern, in human order.

    Example:
        >>> list_proxies("zi*")
        ['zico', 'zico_bc']
    """
    return _PROXIES.names(pattern)


def resolve_proxies(proxies: Proxies) -> list[Proxy]:
    """Turn what a user names into proxies.

    Args:
        proxies: Names, `Proxy` objects or a mixture; a single one; or ``"all"``.

    Raises:
        UnknownNameError: If there is no proxy of a name.
        DuplicateNameError: If two of them bear one name: they would share a column.
        TypeError: If one is neither a name nor a `Proxy` object.
        ValueError: If there is none.
    """
    if proxies == "all":
        proxies = list_proxies()
    elif isinstance(proxies, str | Proxy):
        proxies = [proxies]
    if not isinstance(proxies, Iterable) or isinstance(proxies, type):
        raise TypeError(f"`proxies` is {proxies!r}; needed are names, `Proxy` objects, or 'all'.")
    resolved = [_resolved(proxy) for proxy in proxies]
    if not resolved:
        raise ValueError(f"`proxies` is empty; needed is at least one of {', '.join(list_proxies())}.")
    names = [proxy.name for proxy in resolved]
    for name in names:
        if not name or name in RESERVED_NAMES:
            raise DuplicateNameError(f"A proxy is named {name!r}, which no column can be. Give it another name.")
        if names.count(name) > 1:
            raise DuplicateNameError(
                f"Two proxies are named '{name}'. Give one of them another name, as `ZiCo(name=...)`."
            )
    return resolved


def _resolved(proxy: Any) -> Proxy:
    if isinstance(proxy, str):
        return _PROXIES.get(proxy)()
    if not isinstance(proxy, Proxy):
        raise TypeError(f"A proxy is {proxy!r}; needed is a name or a `Proxy` object, such as `ZiCo()`.")
    return proxy
