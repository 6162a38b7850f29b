"""What a search space is, and how it is found."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial, wraps
from typing import Any, Generic, Protocol, TypeVar

from torch import nn

from lightning_zico._registry import Registry
from lightning_zico.candidates import Candidate
from lightning_zico.errors import InvalidArgumentError, ZiCoError

Arch = TypeVar("Arch", bound=Hashable)

# How much of a text an error shows before and after the spot: archs are shorter, a file passed by mistake is not.
_SHOWN_BEFORE, _SHOWN_AFTER = 120, 40


class ArchSyntaxError(ZiCoError, ValueError):
    """A text that is no arch of the space.

    Args:
        text: All of it.
        position: Index of the first character with which no arch of the space goes on.
        needed: What could stand there.
    """

    def __init__(self, text: str, position: int, needed: str) -> None:
        super().__init__(text, position, needed)
        self.text = text
        self.position = position
        self.needed = needed

    def __str__(self) -> str:
        start = max(0, self.position - _SHOWN_BEFORE)
        # one character each, so that the caret stands below the right one
        shown = "".join(c if c.isprintable() else "?" for c in self.text[start : self.position + _SHOWN_AFTER])
        found = repr(self.text[self.position]) if self.position < len(self.text) else "the end"
        return (
            f"The arch cannot be read at position {self.position} (from 0): needed is {self.needed}, "
            f"found is {found}.\n"
            f"    {shown}\n"
            f"    {' ' * (self.position - start)}^"
        )


# Methods whose first argument is an arch.
_TAKE_AN_ARCH = {"neighbours", "params", "macs", "depth", "build", "blocks"}


def _taking_no_text(method: Callable[..., Any]) -> Callable[..., Any]:
    """Have a method of a space refuse the string of an arch where that is not the arch."""

    @wraps(method)
    def checked(self: Any, arch: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(arch, str) and not isinstance(self.parse(arch), str):
            raise InvalidArgumentError(f"Invalid arch={arch!r}: it is a text. Pass `space.parse(...)` of it.")
        return method(self, arch, *args, **kwargs)

    return checked


class Trial(Protocol):
    """What a space asks of an Optuna trial, so that Optuna need not be installed to have a space."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Choose one of several values."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """Choose a whole number."""


class SearchSpace(ABC, Generic[Arch]):
    """A set of architectures.

    An arch is a frozen value that can be hashed, and ``parse(str(arch)) == arch``. Its costs come from the arch alone;
    no weights are made for them.

    Attributes:
        name: What the space is called, in lower snake case; `register_space` sets it.
    """

    name: str = ""

    def __init_subclass__(cls) -> None:
        for name in _TAKE_AN_ARCH & vars(cls).keys():
            setattr(cls, name, _taking_no_text(getattr(cls, name)))

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of archs."""

    @abstractmethod
    def parse(self, text: str) -> Arch:
        """Read an arch from its string.

        Raises:
            ArchSyntaxError: If the text is no arch of this space; it shows where and what is needed there.
        """

    @abstractmethod
    def sample(self, rng: random.Random) -> Arch:
        """Draw an arch, each with the same probability."""

    @abstractmethod
    def neighbours(self, arch: Arch) -> Iterator[Arch]:
        """Go through the archs that differ from this one in one choice, each once."""

    @abstractmethod
    def suggest(self, trial: Trial) -> Arch:
        """Let an Optuna trial choose an arch, choice by choice, under names that tell what is chosen."""

    def mutate(self, arch: Arch, rng: random.Random) -> Arch:
        """Draw one of the neighbours, each with the same probability; never the arch itself."""
        return rng.choice(list(self.neighbours(arch)))

    @abstractmethod
    def params(self, arch: Arch, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the parameters of the built network, exactly."""

    @abstractmethod
    def macs(self, arch: Arch, resolution: int = 32, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the multiply-accumulate operations of the built network, exactly.

        Args:
            arch: Of this space.
            resolution: Height and width of an image, in pixels.
            num_classes: As for `build`.
            in_channels: As for `build`.

        Returns:
            Those of convolutions and linear layers, per sample (1 MAC = 2 FLOPs).

        Raises:
            ValueError: If the network cannot take images of this resolution.
        """

    @abstractmethod
    def depth(self, arch: Arch) -> int:
        """Count the layers, as a budget's ``depth`` limits them: the linear and convolutional ones.

        Where the papers of a space count others, the space does as they do, and says so.
        """

    @abstractmethod
    def build(self, arch: Arch, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
        """Build the network of an arch, on the CPU, with fresh weights.

        Args:
            arch: Of this space.
            num_classes: Logits.
            in_channels: Of an image.

        Returns:
            A network that maps images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``.
        """

    @abstractmethod
    def blocks(self, arch: Arch) -> tuple[str, ...]:
        """Name the submodules of the built network that are its blocks, in order of execution."""

    def candidates(self, n: int, seed: int = 0, *, num_classes: int = 10, in_channels: int = 3) -> Iterator[Candidate]:
        """Draw distinct archs and offer them for scoring, each under its string and with its blocks.

        Args:
            n: Number of candidates.
            seed: The same seed gives the same candidates in the same order; more of them begin with the fewer.
            num_classes: As for `build`.
            in_channels: As for `build`.

        Raises:
            ValueError: If ``n`` is no whole number, negative or larger than the space.
        """
        if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= self.size:
            raise ValueError(f"`n` is {n!r}; the space has {self.size:,} archs. Take between 0 and that many.")
        archs = self._distinct(n, random.Random(seed))
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
    """Reads the string of an arch from left to right.

    Args:
        text: All of it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def token(self, tokens: Sequence[str]) -> str:
        """Read the token that comes next, see `read_token`."""
        token = read_token(self.text, self.position, tokens)
        self.position += len(token)
        return token

    def end(self) -> None:
        """Make sure that nothing is left.

        Raises:
            ArchSyntaxError: If something is.
        """
        if self.position < len(self.text):
            raise ArchSyntaxError(self.text, self.position, "the end")


def read_token(text: str, position: int, tokens: Sequence[str]) -> str:
    """Find which token a text goes on with.

    Args:
        text: To read.
        position: Where to begin.
        tokens: What may stand there; none begins with another.

    Raises:
        ArchSyntaxError: If it is none of them, at the first character that fits none.

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

_SPACES = Registry[Callable[[], SearchSpace[Any]]]("space")


def register_space(name: str) -> Callable[[S], S]:
    """Make a space available by name.

    Args:
        name: In lower snake case.

    Returns:
        A decorator for the class, or for any callable that makes a space without arguments.

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
    """Make the space of a name.

    Raises:
        InvalidArgumentError: If it is no text.
        UnknownNameError: If there is none; the message has the nearest names.

    Example:
        >>> get_space("nas_bench_201").size
        15625
    """
    if not isinstance(name, str):
        raise InvalidArgumentError(f"Invalid name={name!r}: expected the name of a space, such as 'nas_bench_201'.")
    return _SPACES.get(name)()


def list_spaces(pattern: str = "*") -> list[str]:
    """List the names of the spaces that match a shell pattern, in human order.

    Example:
        >>> list_spaces("nas_bench_2*")
        ['nas_bench_201']
    """
    return _SPACES.names(pattern)
