"""What proposes archs: the evolution, chance, or a sampler of Optuna; and archs as candidates."""

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import nn

from lightning_zico.candidates import Candidate
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.search.evolution import Evolution, Population
from lightning_zico.search.trials import Trials, import_optuna
from lightning_zico.spaces import SearchSpace

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    SamplerLike: TypeAlias = Evolution | Literal["evolution", "random"] | BaseSampler

# Each time this many proposals are known, archs are sought one mutation farther away, up to the second number.
_PATIENCE, _FARTHEST = 20, 8


class Proposer:
    """Proposes archs of a space.

    Args:
        space: The space.
        sampler: ``"evolution"`` or an `Evolution`, ``"random"``, or a sampler of Optuna.
        seed: Seed of what is drawn here.

    Attributes:
        evolution: The settings of the evolution; None if archs are proposed by other means.
        optunas: The sampler of Optuna; None if archs are not proposed by Optuna.

    Raises:
        ValueError: If the sampler is something else, or its start is not an arch of the space.
    """

    def __init__(self, space: SearchSpace[Any], sampler: "SamplerLike", seed: int) -> None:
        self._space, self._seed = space, seed
        self.evolution: Evolution | None = (
            Evolution() if sampler == "evolution" else sampler if isinstance(sampler, Evolution) else None
        )
        self.optunas = sampler if isinstance(sampler, import_optuna().samplers.BaseSampler) else None
        if sampler != "random" and self.evolution is None and self.optunas is None:
            raise ValueError(
                f'Invalid sampler={sampler!r}: expected "evolution", "random", an `Evolution` or a sampler of Optuna.'
            )
        if self.evolution is not None and self.evolution.start is not None:
            space.parse(self.evolution.start)

    @property
    def facts(self) -> dict[str, Any] | str:
        """The settings of the evolution, or the name of the sampler, for the record."""
        if self.evolution is not None:
            return asdict(self.evolution)
        return "random" if self.optunas is None else type(self.optunas).__name__

    def proposals(self, trials: Trials, population: Population) -> Iterator[tuple[int | None, Any]]:
        """Propose archs until one is taken; Optuna proposes a single arch per trial, and begins the trial before.

        Args:
            trials: The trials so far.
            population: The best archs so far.

        Yields:
            The number of the trial if Optuna has begun it, and an arch.
        """
        if self.optunas is not None:
            asked = trials.ask(self._space.suggest)
            if asked is not None:
                yield asked
            return
        # Trials without a result do not count, so that a kill does not shift the random draws.
        rng = random.Random(f"{self._seed}/{trials.num_counted}")
        num_known = 0
        while True:
            if self.evolution is None:
                arch = self._space.sample(rng)
            else:
                arch = self.evolution.propose(self._space, population, rng, min(num_known // _PATIENCE, _FARTHEST))
            num_known += trials.knows(str(arch))
            yield None, arch


class Offer:
    """Makes candidates of archs, named by the archs' strings.

    Args:
        space: The space of the archs.
        num_classes: Number of logits.
        in_channels: Number of channels of an image.
        wrap: Turns a network into the module that is scored; None to score the network itself.
        seed: Seed of the network that shows how ``wrap`` names the blocks.
    """

    def __init__(
        self,
        space: SearchSpace[Any],
        num_classes: int,
        in_channels: int,
        wrap: Callable[[nn.Module], nn.Module] | None,
        seed: int,
    ) -> None:
        self._space, self._num_classes, self._in_channels, self._wrap = space, num_classes, in_channels, wrap
        self._prefix: str | None = ""
        if wrap is not None:
            with preserved_rng(seed):
                network = space.build(space.sample(random.Random(0)), num_classes, in_channels)
                modules = wrap(network).named_modules()
            self._prefix = next((name for name, module in modules if module is network), None)

    def __call__(self, arch: Any) -> Candidate:
        """Return an arch as a candidate, with fresh weights when built."""
        build = _Building(self._space, arch, self._num_classes, self._in_channels, self._wrap)
        if self._prefix is None:
            return Candidate(str(arch), build)
        names = (f"{self._prefix}.{name}".removeprefix(".") for name in self._space.blocks(arch))
        return Candidate(str(arch), build, tuple(names))


@dataclass(frozen=True)
class _Building:
    """The ``build`` of an arch's candidate."""

    space: SearchSpace[Any]
    arch: Any
    num_classes: int
    in_channels: int
    wrap: Callable[[nn.Module], nn.Module] | None

    def __call__(self) -> nn.Module:
        network = self.space.build(self.arch, self.num_classes, self.in_channels)
        return network if self.wrap is None else self.wrap(network)
