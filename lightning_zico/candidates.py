"""Candidates: models offered for scoring, built only when they are scored."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_zico._typing import NumSamples, check_num_samples
from lightning_zico.errors import DuplicateNameError, InvalidArgumentError
from lightning_zico.texts import shortened

_LONGEST_VALUE = 40  # characters of a hyperparameter in a name or a column
_NOTHING = object()


@dataclass(frozen=True, repr=False)
class Candidate:
    """A model offered for scoring.

    Args:
        name: Name in the leaderboard; unique within one ranking.
        build: Function that builds the model, on the CPU, with fresh weights. It is called under the ranking's seed,
            once for scoring and once more if the candidate wins; in finals, twice more per round and seed.
        blocks: Names of the submodules that are the network's blocks, in the order in which they run, for proxies that
            look at blocks; None to find them.
        num_samples: Number of samples in a batch for this candidate, instead of the ranking's; see
            `score`.
        pretrained: Whether ``build`` loads weights that were trained on other data. If all candidates of a ranking say
            so, ``"default"`` is the recipe ``transfer``, which compares what the weights have learned. Weights
            themselves do not show it.

    Raises:
        InvalidArgumentError: If ``name`` is not a string, ``build`` is not a function, ``blocks`` is a string, or
            ``pretrained`` is neither True nor False.
        ValueError: If ``num_samples`` is neither a positive int nor a function.

    Example:
        >>> Candidate("linear", lambda: nn.Linear(4, 2)).build()
        Linear(in_features=4, out_features=2, bias=True)
    """

    name: str
    build: Callable[[], nn.Module]
    blocks: Sequence[str] | None = None
    num_samples: NumSamples | None = None
    pretrained: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InvalidArgumentError(f"Invalid Candidate(name={self.name!r}): expected a string.")
        if isinstance(self.build, nn.Module):
            raise InvalidArgumentError(
                f"Invalid build of Candidate('{self.name}'): a {type(self.build).__name__}; expected a function that "
                f"builds the module. Pass the function, or offer the module itself, as in {{'{self.name}': module}}."
            )
        if not callable(self.build):
            raise InvalidArgumentError(
                f"Invalid build of Candidate('{self.name}'): {self.build!r}; expected a function without arguments "
                "that builds the module."
            )
        if isinstance(self.blocks, str):
            raise InvalidArgumentError(
                f"Invalid blocks={self.blocks!r} of Candidate('{self.name}'): expected a list of names, such as "
                f"[{self.blocks!r}]."
            )
        object.__setattr__(self, "num_samples", check_num_samples(self.num_samples))
        if not isinstance(self.pretrained, bool):
            raise InvalidArgumentError(
                f"Invalid pretrained={self.pretrained!r} of Candidate('{self.name}'): expected True or False."
            )

    def __repr__(self) -> str:
        build = getattr(self.build, "__qualname__", f"a {type(self.build).__name__}")
        return f"<Candidate {shortened(self.name)}, built by {build}>"


CandidateLike: TypeAlias = nn.Module | Callable[[], nn.Module] | Candidate
Candidates: TypeAlias = Mapping[str, CandidateLike] | Iterable[CandidateLike]


@dataclass(frozen=True, repr=False)
class Built:
    """The ``build`` of a candidate that was offered as a module: it returns that module, whatever the seed."""

    module: nn.Module

    def __repr__(self) -> str:
        return f"Built({type(self.module).__name__})"  # that of a module has many lines

    def __call__(self) -> nn.Module:
        """Return the module."""
        return self.module


def iterate_candidates(candidates: Candidates) -> Iterator[Candidate]:
    """Yield every candidate with a name and a ``build``, one at a time, so that a generator is never held in memory.

    Args:
        candidates: A mapping of names to candidates, or an iterable of candidates: modules, zero-argument factories and
            `Candidate` objects. Candidates without a name are named after their class or function. In a list or tuple,
            those of one class are told apart by the hyperparameters that they saved with ``save_hyperparameters``, or
            by the keywords of a `functools.partial`: ``Net(width=32)``. If a name is still taken, ``-2``, ``-3``, ...
            is appended.

    Raises:
        DuplicateNameError: If two have the same name.
        InvalidArgumentError: If an element is not a candidate, or if ``candidates`` is a single model.

    Example:
        >>> [candidate.name for candidate in iterate_candidates([nn.Identity(), nn.Identity, nn.Linear(2, 2)])]
        ['Identity', 'Identity-2', 'Linear']
    """
    check_candidates(candidates)
    given: set[str] = set()
    counts: dict[str, int] = {}  # by wanted name, so that a thousand equal names are not tried one by one
    taken: set[str] = set()
    differing = _differing_hyperparameters(candidates) if isinstance(candidates, list | tuple) else {}
    for name, candidate in _named(candidates):
        _note(name, given)
        build = _build_of(candidate)
        wanted = name if name is not None else _name_of(candidate, differing)
        unique = wanted
        while unique in taken:
            counts[wanted] = counts.get(wanted, 1) + 1
            unique = f"{wanted}-{counts[wanted]}"
        taken.add(unique)
        yield replace(candidate, name=unique) if isinstance(candidate, Candidate) else Candidate(unique, build)


def check_candidates(candidates: Any) -> Any:
    """Check the candidates and return them. The elements are checked too if they are in a list, tuple or dict.

    Raises:
        InvalidArgumentError: If they are not candidates.
        DuplicateNameError: If two in a list, tuple or dict have the same name.
    """
    expected = "expected a mapping of names to candidates, or a list or another iterable of them"
    if isinstance(candidates, nn.Module | Candidate | type):
        kind = (
            f"the class {candidates.__name__}" if isinstance(candidates, type) else f"one {type(candidates).__name__}"
        )
        raise InvalidArgumentError(f"Invalid candidates: {kind}; {expected}. Put a single one in a list.")
    if hasattr(candidates, "train_dataloader") or isinstance(candidates, DataLoader | Dataset):
        raise InvalidArgumentError(
            f"Invalid candidates: a {type(candidates).__name__}, which is data; {expected}. Pass candidates first, "
            "then the data."
        )
    if not isinstance(candidates, Iterable) or isinstance(candidates, str | bytes):
        is_function = callable(candidates)
        shown = f"the function {getattr(candidates, '__name__', '')}".rstrip() if is_function else repr(candidates)
        hint = " Call it, or put it in a list if it builds a single module." if is_function else ""
        raise InvalidArgumentError(f"Invalid candidates: {shown}; {expected}.{hint}")
    if isinstance(candidates, list | tuple | dict):  # other iterables may build candidates as they yield them
        given: set[str] = set()
        for name, candidate in _named(candidates):
            if not is_candidate(candidate):
                raise InvalidArgumentError(_no_candidate(candidate))
            _note(name, given)
    return candidates


def _named(candidates: Any) -> Iterator[tuple[str | None, Any]]:
    """Yield each candidate with the name that the user gave it, or None."""
    if isinstance(candidates, Mapping):
        return ((str(name), candidate) for name, candidate in candidates.items())
    return ((c.name if isinstance(c, Candidate) else None, c) for c in candidates)


def _note(name: str | None, given: set[str]) -> None:
    if name in given:
        raise DuplicateNameError(f"Two candidates are named '{name}'. Give one of them another name.")
    if name is not None:
        given.add(name)


def are_pretrained(candidates: Candidates) -> bool:
    """Whether all candidates of a list, tuple or mapping say that they are pretrained.

    Other iterables may build candidates as they yield them, so they are not asked, and the answer is False.

    Example:
        >>> are_pretrained([Candidate("tuned", nn.Identity, pretrained=True)]), are_pretrained([nn.Identity])
        (True, False)
    """
    if not isinstance(candidates, list | tuple | Mapping) or not candidates:
        return False
    return all(isinstance(candidate, Candidate) and candidate.pretrained for _, candidate in _named(candidates))


def is_candidate(candidate: Any) -> bool:
    """Whether an object can be a candidate, without building anything."""
    return isinstance(candidate, Candidate | nn.Module) or callable(candidate)


def nothing_offered(candidates: Any) -> InvalidArgumentError:
    """Return the error for empty candidates."""
    hint = " A generator can be read only once: make one for each ranking." if isinstance(candidates, Iterator) else ""
    return InvalidArgumentError(f"`candidates` is empty: expected at least one candidate.{hint}")


def _no_candidate(candidate: Any) -> str:
    shown = repr(candidate) if isinstance(candidate, str | int | float) else f"a {type(candidate).__name__}"
    hint = ""
    if isinstance(candidate, tuple) and len(candidate) == 2 and isinstance(candidate[0], str):
        hint = " Pass names and candidates as a mapping: `dict(pairs)`."
    elif isinstance(candidate, Tensor | tuple | list | dict):
        parts = candidate.values() if isinstance(candidate, dict) else candidate
        if isinstance(candidate, Tensor) or any(isinstance(part, Tensor) for part in parts):
            hint = " It looks like a batch: pass candidates first, then the data."
    return (
        f"Invalid candidate: {shown}; expected a module, a class or function that builds one without arguments, or a "
        f"`Candidate`.{hint}"
    )


def _build_of(candidate: CandidateLike) -> Callable[[], nn.Module]:
    if isinstance(candidate, Candidate):
        return candidate.build
    if isinstance(candidate, nn.Module):
        return Built(candidate)
    if is_candidate(candidate):
        return candidate
    raise InvalidArgumentError(_no_candidate(candidate))


def _name_of(candidate: CandidateLike, differing: Mapping[str, Sequence[str]]) -> str:
    """Return a name for a candidate that has none.

    Args:
        candidate: The candidate.
        differing: For each class or function, the names of hyperparameters to add.
    """
    kind, saved = _kind_of(candidate), hyperparameters_of(candidate)
    shown = [f"{name}={saved[name]!r}" for name in differing.get(kind, ()) if name in saved]
    return f"{kind}({', '.join(shown)})" if shown else kind


def _kind_of(candidate: CandidateLike) -> str:
    if isinstance(candidate, Candidate):
        return candidate.name
    function = getattr(candidate, "func", candidate)  # where functools.partial keeps its function
    return str(getattr(function, "__name__", type(candidate).__name__))


def _differing_hyperparameters(candidates: Sequence[CandidateLike]) -> dict[str, list[str]]:
    """List, for each class or function, the hyperparameters in which its candidates differ."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for candidate in candidates:
        if not isinstance(candidate, Candidate):
            by_kind.setdefault(_kind_of(candidate), []).append(hyperparameters_of(candidate))
    return {
        kind: [name for name in dict.fromkeys(key for saved in all_saved for key in saved) if _differ(name, all_saved)]
        for kind, all_saved in by_kind.items()
    }


def _differ(name: str, all_saved: Sequence[Mapping[str, Any]]) -> bool:
    # Those of a plain factory are not known before it builds.
    return len({repr(saved.get(name, _NOTHING)) for saved in all_saved if saved}) > 1


def hyperparameters_of(candidate: Any) -> dict[str, bool | int | float | str | None]:
    """Return the plain hyperparameters of a module or factory: numbers, short strings and None.

    Args:
        candidate: A LightningModule that called ``save_hyperparameters``, or a `functools.partial` with keywords;
            anything else has none.
    """
    # `hparams` itself would add an attribute to a module that saved none.
    saved = vars(candidate).get("_hparams") if isinstance(candidate, nn.Module) else None
    if isinstance(candidate, partial):
        saved = _arguments_of(candidate)
    if not isinstance(saved, Mapping):
        return {}
    return {str(name): value for name, value in saved.items() if _is_plain(value)}


def _arguments_of(factory: "partial[Any]") -> Mapping[str, Any]:
    """Return the arguments of a call, with the defaults of those that are not given."""
    try:
        call = inspect.signature(factory.func).bind_partial(*factory.args, **factory.keywords)
    except (TypeError, ValueError):  # functions written in C have no signature, and a wrong call fails when it is made
        return factory.keywords
    call.apply_defaults()
    return call.arguments


def _is_plain(value: Any) -> bool:
    return value is None or (type(value) in (bool, int, float, str) and len(str(value)) <= _LONGEST_VALUE)
