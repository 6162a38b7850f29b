"""The base class of proxies, and their registry."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

from lightning_zico._registry import Registry
from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import DuplicateNameError, InvalidArgumentError
from lightning_zico.results import RESERVED_NAMES


class Measurement(NamedTuple):
    """The value of a proxy and its parts.

    Attributes:
        value: The value; it must be finite.
        layers: Contribution of each layer, by parameter name.
        details: How the value was computed, as plain values.
    """

    value: float
    layers: Mapping[str, float] = {}
    details: Mapping[str, Any] = {}


def saturation(is_maximum: bool, num_samples: int, more_samples: str | None) -> dict[str, Any]:
    """Return the details that say that a value is the maximum that its number of samples allows.

    Candidates at the same maximum cannot be told apart; `Leaderboard.notes` says so if there are several.

    Args:
        is_maximum: Whether the value is the maximum.
        num_samples: Number of samples that the value is computed from.
        more_samples: Name of the setting that raises the number of samples; None if more would not help.

    Returns:
        ``saturated``, which is True, ``num_samples`` and ``more_samples``; empty if the value is not the maximum.

    Example:
        >>> saturation(4.0 == 2**2, 2, "batch_size")
        {'saturated': True, 'num_samples': 2, 'more_samples': 'batch_size'}
        >>> saturation(3.0 == 2**2, 2, "batch_size")
        {}
    """
    return {"saturated": True, "num_samples": num_samples, "more_samples": more_samples} if is_maximum else {}


class Proxy(ABC):
    """A rule that assigns a number to a candidate that is not trained on the data.

    Attributes:
        name: Name in lower snake case; `register_proxy` sets it.
        higher_is_better: Whether higher values are better.
        needs_labels: Whether the value depends on the loss, and therefore on the labels of the batches.
        needs_features: Whether the proxy looks at the features of many samples, `ScoringSettings.num_samples_transfer`,
            which are read only if a chosen proxy has this.
        needs_pretrained: Whether the value is meant for pretrained weights; on untrained ones it describes chance.
        is_repeatable: Whether the same candidate on the same batches gets the same value.
        reads_name: Whether the value depends on the name of the candidate. Such values are not cached, because the
            cache does not know names.
        min_gradients: Smallest number of gradients (of batches, or of samples with ``axis="sample"``) for which the
            value is defined.
        needs: Observers that the proxy reads with ``probe.observed``. Those listed here share passes with the other
            proxies; any other costs an extra pass.
    """

    name: str = ""
    higher_is_better: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    needs_features: ClassVar[bool] = False
    needs_pretrained: ClassVar[bool] = False
    is_repeatable: ClassVar[bool] = True
    reads_name: ClassVar[bool] = False
    min_gradients: ClassVar[int] = 0
    needs: Sequence[Observer] = ()

    @abstractmethod
    def measure(self, probe: Probe) -> float | Measurement:
        """Compute the value; an exception becomes the error of the score."""


ProxyLike: TypeAlias = str | Proxy
Proxies: TypeAlias = ProxyLike | Sequence[ProxyLike]
P = TypeVar("P", bound=Callable[[], Proxy])

_PROXIES = Registry[Callable[[], Proxy]]("proxy", "lightning_zico.proxies")


def register_proxy(name: str) -> Callable[[P], P]:
    """Make a proxy available by name wherever proxies are chosen.

    Args:
        name: Name in lower snake case.

    Returns:
        A decorator for the class, or for any callable without arguments that returns a proxy.

    Raises:
        InvalidArgumentError: If the name is not a string.
        DuplicateNameError: If the name is taken, by another proxy or by a column of the leaderboard.
    """
    if not isinstance(name, str):
        raise InvalidArgumentError(f"Invalid name={name!r}: expected a string, as in `@register_proxy('my_proxy')`.")
    if name in RESERVED_NAMES:
        raise DuplicateNameError(
            f"'{name}' is reserved for a column of the leaderboard or for several proxies. Choose another name."
        )

    def register(factory: P) -> P:
        if isinstance(factory, type):
            factory.name = name  # type: ignore[attr-defined]
        _PROXIES.register(name, factory)
        return factory

    return register


def list_proxies(pattern: str = "*") -> list[str]:
    """List the names of the proxies that match a shell pattern, in natural order.

    Example:
        >>> list_proxies("zi*")
        ['zico', 'zico_bc']
    """
    return _PROXIES.names(pattern)


def resolve_proxies(proxies: Proxies) -> list[Proxy]:
    """Return the proxies that a user asked for.

    Args:
        proxies: Names, `Proxy` objects or a mixture; a single one of these; or ``"all"``.

    Raises:
        UnknownNameError: If there is no proxy with a given name.
        DuplicateNameError: If two of them have the same name: they would share a column.
        TypeError: If one is neither a name nor a `Proxy` object.
        ValueError: If ``proxies`` is empty.
    """
    if proxies == "all":
        proxies = list_proxies()
    elif isinstance(proxies, str | Proxy):
        proxies = [proxies]
    if not isinstance(proxies, Iterable) or isinstance(proxies, type):
        raise TypeError(f"Invalid proxies={proxies!r}: expected names, `Proxy` objects, or 'all'.")
    resolved = [_resolved(proxy) for proxy in proxies]
    if not resolved:
        raise ValueError(f"`proxies` is empty: expected at least one of {', '.join(list_proxies())}.")
    names = [proxy.name for proxy in resolved]
    for name in names:
        if not name or name in RESERVED_NAMES:
            raise DuplicateNameError(
                f"A proxy is named {name!r}, which cannot be the name of a column. Give it another name."
            )
        if names.count(name) > 1:
            raise DuplicateNameError(
                f"Two proxies are named '{name}'. Give one of them another name, for example `ZiCo(name=...)`."
            )
    return resolved


def _resolved(proxy: Any) -> Proxy:
    if isinstance(proxy, str):
        return _PROXIES.get(proxy)()
    if not isinstance(proxy, Proxy):
        raise TypeError(f"Invalid proxy {proxy!r}: expected a name or a `Proxy` object, such as `ZiCo()`.")
    return proxy
