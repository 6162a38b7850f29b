"""Candidates: models offered for scoring, built only when their turn comes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from lightning_zico._typing import NumSamples, check_num_samples


@dataclass(frozen=True)
class Candidate:
    """A model offered for scoring.

    Args:
        name: What the leaderboard calls it; unique within one ranking.
        build: Makes the model, on the CPU, with fresh weights. It is called under the ranking's seed, once to score it
            and once more if it wins; in finals twice more a round.
        blocks: Names of the submodules that are the network's blocks, in the order in which they run, for proxies that
            look at blocks; None to find them.
        num_samples: Samples of a batch, for this candidate instead of the ranking's; see `scoring.scorer.score`.

    Raises:
        ValueError: If ``num_samples`` is neither a positive int nor a function.

    Example:
        >>> Candidate("linear", lambda: nn.Linear(4, 2)).build()
        Linear(in_features=4, out_features=2, bias=True)
    """

    name: str
    build: Callable[[], nn.Module]
    blocks: Sequence[str] | None = None
    num_samples: NumSamples | None = None

    def __post_init__(self) -> None:
        check_num_samples(self.num_samples)


CandidateLike: TypeAlias = nn.Module | Callable[[], nn.Module] | Candidate
Candidates: TypeAlias = Mapping[str, CandidateLike] | Iterable[CandidateLike]


@dataclass(frozen=True)
class Built:
    """The ``build`` of a candidate that was offered as a module: that module, whichever the seed."""

    module: nn.Module

    def __call__(self) -> nn.Module:
        """Give the module."""
        return self.module


def iterate_candidates(candidates: Candidates) -> Iterator[Candidate]:
    """Give every candidate a name and a ``build``, one at a time, so that a generator is never held in memory.

    Args:
        candidates: A mapping from names, or an iterable, of modules, zero-argument factories and `Candidate` objects.
            Nameless ones are called after their class or function; a name that is taken gets ``-2``, ``-3``, ...

    Raises:
        TypeError: If an element is none of these, or if ``candidates`` is a single model.

    Example:
        >>> [candidate.name for candidate in iterate_candidates([nn.Identity(), nn.Identity, nn.Linear(2, 2)])]
        ['Identity', 'Identity-2', 'Linear']
    """
    if isinstance(candidates, nn.Module | Candidate) or not isinstance(candidates, Iterable):
        raise TypeError(
            f"`candidates` is {type(candidates).__name__}; needed a mapping of names to candidates or an iterable of "
            "them. Put a single one in a list."
        )
    pairs = candidates.items() if isinstance(candidates, Mapping) else ((None, c) for c in candidates)
    counts: dict[str, int] = {}  # by wanted name, so that a thousand namesakes are not tried one by one
    taken: set[str] = set()
    for name, candidate in pairs:
        blocks, num_samples = (
            (candidate.blocks, candidate.num_samples) if isinstance(candidate, Candidate) else (None, None)
        )
        build = _build_of(candidate)
        wanted = str(name) if name is not None else _name_of(candidate)
        unique = wanted
        while unique in taken:
            counts[wanted] = counts.get(wanted, 1) + 1
            unique = f"{wanted}-{counts[wanted]}"
        taken.add(unique)
        yield Candidate(unique, build, blocks, num_samples)


def _build_of(candidate: CandidateLike) -> Callable[[], nn.Module]:
    if isinstance(candidate, Candidate):
        return candidate.build
    if isinstance(candidate, nn.Module):
        return Built(candidate)
    if callable(candidate):
        return candidate
    raise TypeError(
        f"A candidate is {type(candidate).__name__}; needed a module, a zero-argument factory of one, or a `Candidate`."
    )


def _name_of(candidate: CandidateLike) -> str:
    if isinstance(candidate, Candidate):
        return candidate.name
    function = getattr(candidate, "func", candidate)  # functools.partial keeps its function there
    return str(getattr(function, "__name__", type(candidate).__name__))
