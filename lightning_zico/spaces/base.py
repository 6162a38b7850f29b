"""The base class of search spaces, and their registry."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial, wraps
from typing import Any, Generic, Protocol, TypeVar

from torch import nn

from lightning_zico._registry import Registry
from lightning_zico.candidates import Candidate
from lightning_zico.errors import InvalidArgumentError, ZiCoError, number_of

Arch = TypeVar("Arch", bound=Hashable)

# How many characters an error shows before and after the position: archs are shorter, but a file passed by mistake is
# not.
_SHOWN_BEFORE, _SHOWN_AFTER = 120, 40


class ArchSyntaxError(ZiCoError, ValueError):
    """Raised if a string is not an arch of the space.

    Args:
        text: The whole string.
        position: Index of the first character that no arch of the space can have there.
        needed: What was expected there.
    """

    def __init__(self, text: str, position: int, needed: str) -> None:
        super().__init__(text, position, needed)
        self.text = text
        self.position = position
        self.needed = needed

    def __str__(self) -> str:
        start = max(0, self.position - _SHOWN_BEFORE)
        # one character each, so that the caret is below the right one
        shown = "".join(c if c.isprintable() else "?" for c in self.text[start : self.position + _SHOWN_AFTER])
        found = repr(self.text[self.position]) if self.position < len(self.text) else "the end"
        return (
            f"The arch cannot be read at position {self.position} (from 0): expected {self.needed}, "
            f"found {found}.\n"
            f"    {shown}\n"
            f"    {' ' * (self.position - start)}^"
        )


# Methods whose first argument is an arch.
_TAKE_AN_ARCH = {"neighbours", "params", "macs", "depth", "build", "blocks"}


def _taking_no_text(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method of a space reject the string of an arch, unless archs are strings."""

    @wraps(method)
    def checked(self: Any, arch: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(arch, str) and not isinstance(self.parse(arch), str):
            raise InvalidArgumentError(
                f"Invalid arch={arch!r}: expected an arch, not its string. Pass `space.parse(...)` of it."
            )
        return method(self, arch, *args, **kwargs)

    return checked


class Trial(Protocol):
    """The methods of an Optuna trial that a space uses, so that spaces do not require Optuna."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of several values."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """Return a whole number."""


class SearchSpace(ABC, Generic[Arch]):
    """A set of architectures.

    An arch is a frozen, hashable value, and ``parse(str(arch)) == arch``. Its costs are computed from the arch; no
    weights are created for them.

    Attributes:
        name: Name in lower snake case; `register_space` sets it.
        vocab_size: Number of different token ids if the networks are for texts; None if they are for images.
    """

    name: str = ""
    vocab_size: int | None = None

    def __init_subclass__(cls) -> None:
        for name in _TAKE_AN_ARCH & vars(cls).keys():
            setattr(cls, name, _taking_no_text(getattr(cls, name)))

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of archs."""

    @abstractmethod
    def parse(self, text: str) -> Arch:
        """Parse an arch from its string.

        Raises:
            ArchSyntaxError: If the text is not an arch of this space. The message shows the position and what was
                expected there.
        """

    @abstractmethod
    def sample(self, rng: random.Random) -> Arch:
        """Draw an arch uniformly at random."""

    @abstractmethod
    def neighbours(self, arch: Arch) -> Iterator[Arch]:
        """Yield the archs that differ from this one in one choice, each once."""

    @abstractmethod
    def suggest(self, trial: Trial) -> Arch:
        """Let an Optuna trial choose an arch, choice by choice, under descriptive names."""

    def mutate(self, arch: Arch, rng: random.Random) -> Arch:
        """Draw one of the neighbours uniformly at random; never the arch itself."""
        return rng.choice(list(self.neighbours(arch)))

    @abstractmethod
    def params(self, arch: Arch, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the parameters of the built network, exactly."""

    @abstractmethod
    def macs(self, arch: Arch, resolution: int = 32, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the multiply-accumulate operations of the built network, exactly.

        Args:
            arch: Arch of this space.
            resolution: Height and width of an image, in pixels.
            num_classes: As for `build`.
            in_channels: As for `build`.

        Returns:
            Operations of convolutions and linear layers, per sample (1 MAC = 2 FLOPs).

        Raises:
            ValueError: If the network does not accept images of this resolution.
        """

    @abstractmethod
    def depth(self, arch: Arch) -> int:
        """Count the linear and convolutional layers, which the ``depth`` of a budget limits.

        If the papers of a space count differently, the space follows them, and documents it.
        """

    @abstractmethod
    def build(self, arch: Arch, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
        """Build the network of an arch, on the CPU, with fresh weights.

        Args:
            arch: Arch of this space.
            num_classes: Number of logits.
            in_channels: Number of channels of the images.

        Returns:
            A network that maps images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``.
        """

    @abstractmethod
    def blocks(self, arch: Arch) -> tuple[str, ...]:
        """List the names of the submodules that are the blocks of the built network, in order of execution."""

    def candidates(self, n: int, seed: int = 0, *, num_classes: int = 10, in_channels: int = 3) -> Iterator[Candidate]:
        """Draw distinct archs as candidates for scoring, each with its string as name, and with its blocks.

        Args:
            n: Number of candidates.
            seed: The same seed gives the same candidates in the same order; a larger ``n`` only appends to them.
            num_classes: As for `build`.
            in_channels: As for `build`.

        Raises:
            ValueError: If ``n`` is not a whole number, is negative, or is larger than the space.
        """
        number = number_of(n)
        if not isinstance(number, int) or not 0 <= number <= self.size:
            raise ValueError(
                f"Invalid n={n!r}: expected a whole number from 0 to the {self.size:,} archs of the space."
            )
        archs = self._distinct(number, random.Random(seed))
        build = partial(self.build, num_classes=num_classes, in_channels=in_channels)
        return (Candidate(str(arch), partial(build, arch), self.blocks(arch)) for arch in archs)

    def _distinct(self, n: int, rng: random.Random) -> Iterator[Arch]:
        drawn: set[Arch] = set()
        while len(drawn) < n:
            arch = self.sample(rng)
            if arch not in drawn:
                drawn.add(arch)
                yield arch


class Reader:
    """Parses the string of an arch from left to right.

    Args:
        text: The whole string.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.position: int = 0

    def token(self, tokens: Sequence[str]) -> str:
        """Return the next token; see `read_token`."""
        token = read_token(self.text, self.position, tokens)
        self.position += len(token)
        return token

    def end(self) -> None:
        """Check that nothing is left.

        Raises:
            ArchSyntaxError: If text is left.
        """
        if self.position < len(self.text):
            raise ArchSyntaxError(self.text, self.position, "the end")


def read_token(text: str, position: int, tokens: Sequence[str]) -> str:
    """Return the token at a position of a text.

    Args:
        text: Text to parse.
        position: Where the token starts.
        tokens: Possible tokens, none of which is a prefix of another.

    Raises:
        ArchSyntaxError: If none of them is there; its position is that of the first character that fits no token.

    Example:
        >>> read_token("skip~0", 0, ["skip", "none"])
        'skip'
    """
    for token in tokens:
        if text.startswith(token, position):
            return token
    fitting = {token: _num_fitting(text, position, token) for token in tokens}
    longest = max(fitting.values())
    needed = [token for token in tokens if fitting[token] == longest]
    raise ArchSyntaxError(text, position + longest, " or ".join(map(repr, needed)))


def _num_fitting(text: str, position: int, token: str) -> int:
    return next(n for n in range(len(token), -1, -1) if text.startswith(token[:n], position))


S = TypeVar("S", bound=Callable[[], SearchSpace[Any]])

_SPACES = Registry[Callable[[], SearchSpace[Any]]]("space", "lightning_zico.spaces")


def register_space(name: str) -> Callable[[S], S]:
    """Make a space available by name.

    Args:
        name: Name in lower snake case.

    Returns:
        A decorator for the class, or for any callable without arguments that returns a space.

    Raises:
        DuplicateNameError: If the name is taken.
    """

    def register(factory: S) -> S:
        _SPACES.register(name, factory)
        if isinstance(factory, type):
            factory.name = name  # type: ignore[attr-defined]
        return factory

    return register


def get_space(name: str) -> SearchSpace[Any]:
    """Return the space with a given name.

    Raises:
        InvalidArgumentError: If the name is not a string.
        UnknownNameError: If there is no such space. The message suggests similar names.

    Example:
        >>> get_space("nas_bench_201").size
        15625
    """
    if not isinstance(name, str):
        raise InvalidArgumentError(f"Invalid name={name!r}: expected the name of a space, such as 'nas_bench_201'.")
    return _SPACES.get(name)()


def list_spaces(pattern: str = "*") -> list[str]:
    """List the names of the spaces that match a shell pattern, in natural order.

    Example:
        >>> list_spaces("nas_bench_2*")
        ['nas_bench_201']
    """
    return _SPACES.names(pattern)
