"""What there is to do in a ranking: works, one a repeat, and jobs, one a candidate and repeat."""

import copy
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from lightning_zico._typing import Axis, Batch, LossFn, NumSamples, Step
from lightning_zico.bridge import uncompiled
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
from lightning_zico.trainers import DEFAULT_SETTINGS, TrainerSettings, TrainingLoader


@dataclass(frozen=True)
class Work:
    """What scoring a candidate needs besides the candidate itself; the same for all candidates of a repeat.

    Args:
        batches: Checked by `scorer.check_batches`.
        proxies: In the order in which they are computed.
        loss_fn: See `scorer.score`.
        axis: See `scorer.score`.
        chunk_size: See `scorer.score`.
        seed: Of the weights that factories draw, and of dropout.
        datamodule: The data module of the batches, set up; its transfer hooks run, if it overrides them.
        budget: A candidate above it is not scored.
        placement: Where and in which precision candidates are scored.
        step: See `scorer.score`.
        num_samples: See `scorer.score`; a candidate's own is taken instead.
        settings: Of the trainer that candidates see.
        loader: Of the batches; None for a loader of exactly these.
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
        """Of the proxies."""
        return [proxy.name for proxy in self.proxies]

    def build(self, candidate: Candidate) -> nn.Module:
        """Build a candidate under the seed.

        Raises:
            TypeError: If its factory makes something else than a module.
        """
        with preserved_rng(self.seed):
            model: Any = candidate.build()
        if not isinstance(model, nn.Module):
            raise TypeError(f"'{candidate.name}' built a {type(model).__name__}; needed is a module.")
        return model

    def __getstate__(self) -> dict[str, Any]:
        """Leave the trainer that a data module is attached to out of what is sent to other processes."""
        state = dict(vars(self))
        if getattr(self.datamodule, "trainer", None) is not None:
            state["datamodule"] = copy.copy(self.datamodule)
            state["datamodule"].trainer = None
        return state

    def score(self, candidate: Candidate) -> ScoreCard:
        """Build a candidate, score it and let it go; whatever it does wrong stands in the card.

        What it changes of the process, such as torch's default dtype, is put back, and named in the card.

        Returns:
            The card; its seconds include building.
        """
        with kept_process_state() as state:
            card = self._scored(candidate, state)
            changed = tuple(state.changed())
        return replace(card, process_changes=changed)

    def _scored(self, candidate: Candidate, state: ProcessState) -> ScoreCard:
        """Build and score a candidate.

        What a factory makes is moved and converted itself, and of a module that was offered built a copy.
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
            torch.cuda.empty_cache()  # what an out-of-memory leaves in pieces, the next candidate gets whole
        return replace(card, seconds=time.perf_counter() - start, weights=weights)


class Job(NamedTuple):
    """One candidate to be scored in one repeat.

    Args:
        candidate: What to score.
        repeat_idx: Which of the works to score it by.
    """

    candidate: Candidate
    repeat_idx: int = 0


class Executor(Protocol):
    """Runs jobs, wherever that is; the scores are the same numbers."""

    def run(self, works: Sequence[Work], jobs: Iterable[Job]) -> Generator[tuple[Job, ScoreCard], None, None]:
        """Score each job's candidate by its work.

        Args:
            works: By ``repeat_idx``.
            jobs: Taken one at a time, and never many more than are being run, so that a generator's candidates are not
                all alive.

        Yields:
            Each job with its card as it is finished, in any order. When the generator is closed, what still runs is
            stopped.
        """
        ...
