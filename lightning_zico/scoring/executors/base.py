"""Units of work in a ranking: a `Work` per repeat, and a `Job` per candidate and repeat."""

import copy
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from lightning_zico._typing import Axis, Batch, LossFn, NumSamples, Step
from lightning_zico.bridge.modules import uncompiled
from lightning_zico.bridge.trainers import DEFAULT_SETTINGS, TrainerSettings, TrainingLoader
from lightning_zico.budget import Budget
from lightning_zico.candidates import Built, Candidate
from lightning_zico.engine.contents import weights_digest
from lightning_zico.engine.gradients import ChunkSize
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import traceback_of
from lightning_zico.proxies import Proxy
from lightning_zico.results import ScoreCard
from lightning_zico.scoring.placement import AS_BUILT, Placement
from lightning_zico.scoring.process_state import ProcessState, kept_process_state
from lightning_zico.scoring.scorer import described, score_checked


@dataclass(frozen=True)
class Work:
    """Everything that scoring needs except the candidate; the same for all candidates of a repeat.

    Args:
        batches: Batches that `scorer.check_batches` has checked.
        proxies: Proxies, in the order in which they are computed.
        loss_fn: See `scorer.score`.
        axis: See `scorer.score`.
        chunk_size: See `scorer.score`.
        seed: The seed of the weights that factories draw, and of dropout.
        datamodule: The data module of the batches, set up; its transfer hooks run if it overrides them.
        budget: Limits on cost; a candidate above it is not scored.
        placement: The device and precision in which candidates are scored.
        step: See `scorer.score`.
        num_samples: See `scorer.score`; a candidate's own value takes precedence.
        settings: Settings of the trainer that candidates see.
        loader: The loader of the batches; None for a loader of exactly these.
    """

    batches: Sequence[Batch]
    proxies: Sequence[Proxy]
    loss_fn: LossFn | None = None
    axis: Axis = "batch"
    chunk_size: ChunkSize = None
    seed: int = 0
    datamodule: Any = None
    budget: Budget | None = None
    placement: Placement = AS_BUILT
    step: Step | None = None
    num_samples: NumSamples | None = None
    settings: TrainerSettings = DEFAULT_SETTINGS
    loader: TrainingLoader | None = None

    @property
    def names(self) -> list[str]:
        """Names of the proxies."""
        return [proxy.name for proxy in self.proxies]

    def build(self, candidate: Candidate) -> nn.Module:
        """Build a candidate under the seed.

        Raises:
            TypeError: If its factory returns something other than a module.
        """
        with preserved_rng(self.seed):
            model: Any = candidate.build()
        if not isinstance(model, nn.Module):
            raise TypeError(f"'{candidate.name}' built a {type(model).__name__}: expected a module.")
        return model

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without the trainer that the data module is attached to."""
        state = dict(vars(self))
        if getattr(self.datamodule, "trainer", None) is not None:
            state["datamodule"] = copy.copy(self.datamodule)
            state["datamodule"].trainer = None
        return state

    def score(self, candidate: Candidate) -> ScoreCard:
        """Build a candidate, score it and release it; failures are recorded in the card.

        Changes that it makes to the process, such as torch's default dtype, are undone and named in the card.

        Returns:
            The card; its seconds include building.
        """
        with kept_process_state() as state:
            card = self._scored(candidate, state)
            changed = tuple(state.changed())
        return replace(card, process_changes=changed)

    def _scored(self, candidate: Candidate, state: ProcessState) -> ScoreCard:
        """Build and score a candidate.

        A factory's module is moved and converted itself; a module that was offered built is copied first.
        """
        start = time.perf_counter()
        stage, weights = "does not build", None
        try:
            model = self.build(candidate)
            weights = weights_digest(model)
            stage = "cannot be copied, which other devices and precisions need; offer a factory"
            if isinstance(candidate.build, Built):
                model = self.placement.own(uncompiled(model))
        except BaseException as raised:
            error = f"{stage}: {described(raised)}"
            card = ScoreCard.failed(candidate.name, self.names, error, traceback=traceback_of(raised))
        else:
            card = score_checked(
                candidate.name,
                model,
                self.batches,
                self.proxies,
                loss_fn=self.loss_fn,
                step=self.step,
                axis=self.axis,
                chunk_size=self.chunk_size,
                seed=self.seed,
                datamodule=self.datamodule,
                settings=self.settings,
                loader=self.loader,
                blocks=candidate.blocks,
                budget=self.budget,
                placement=self.placement,
                num_samples=self.num_samples if candidate.num_samples is None else candidate.num_samples,
            )
        if card.traceback is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # memory is fragmented after an out-of-memory error
        return replace(card, seconds=time.perf_counter() - start, weights=weights)


class Job(NamedTuple):
    """One candidate to score in one repeat.

    Args:
        candidate: The candidate to score.
        repeat_idx: Index of the work to score it with.
    """

    candidate: Candidate
    repeat_idx: int = 0


class Executor(Protocol):
    """Runs jobs somewhere; the scores are the same everywhere."""

    def run(self, works: Sequence[Work], jobs: Iterable[Job]) -> Generator[tuple[Job, ScoreCard], None, None]:
        """Score each job's candidate with its work.

        Args:
            works: Works, indexed by ``repeat_idx``.
            jobs: Jobs, taken one at a time, and never many more than are running, so that a generator's candidates are
                not all alive at once.

        Yields:
            Each job with its card when it is finished, in any order. Closing the generator stops the running jobs.
        """
        ...
