"""Score candidates on the batches of one repeat: their failures become part of their cards."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lightning_zico._typing import Axis, Batch, LossFn, NumSamples, Step
from lightning_zico.bridge.data import Reading
from lightning_zico.bridge.modules import Bridge, bridged, unwrap_compiled
from lightning_zico.bridge.trainers import DEFAULT_SETTINGS, TrainerSettings
from lightning_zico.budget import Budget
from lightning_zico.candidates import Built, Candidate, hyperparameters_of
from lightning_zico.engine.contents import weights_digest
from lightning_zico.engine.gradients import ChunkSize
from lightning_zico.engine.lazy import initialise_on_first, is_uninitialised, own_if_lazy
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import (
    IdenticalBatchesError,
    NoGradientError,
    NonFiniteError,
    NotApplicableError,
    TooFewBatchesError,
    traceback_of,
)
from lightning_zico.proxies import Measurement, Proxy
from lightning_zico.results import Score, ScoreCard
from lightning_zico.scoring.checks import check_variation
from lightning_zico.scoring.placement import AS_BUILT, Placement
from lightning_zico.scoring.process_state import ProcessState, preserved_process_state
from lightning_zico.scoring.reasons import describe, why_unranked

if TYPE_CHECKING:
    from typing_extensions import Self  # in the standard library from Python 3.11 on


@dataclass(frozen=True)
class Scorer:
    """Scores candidates on the batches of one repeat, and holds everything that this needs except the candidates.

    Args:
        reading: Batches that `check_batches` has checked, with their loader, and batches of the samples whose features
            proxies look at; if there are none, they look at the same batches.
        proxies: Proxies, in the order in which they are computed.
        loss_fn: See `score`.
        axis: See `score`.
        chunk_size: See `score`.
        seed: The seed of the weights that factories draw, and of dropout.
        datamodule: The data module of the batches, set up; its transfer hooks run if it overrides them.
        budget: Limits on cost; a candidate above it is not scored.
        placement: The device and precision in which candidates are scored.
        step: See `score`.
        num_samples: See `score`; a candidate's own value takes precedence.
        settings: Settings of the trainer that candidates see.
    """

    reading: Reading
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

    @property
    def batches(self) -> Sequence[Batch]:
        """The batches that candidates are scored on."""
        return self.reading.batches

    @property
    def names(self) -> list[str]:
        """Names of the proxies."""
        return [proxy.name for proxy in self.proxies]

    def build(self, candidate: Candidate) -> nn.Module:
        """Build a candidate under the seed.

        Raises:
            TypeError: If its factory returns something other than a module.
        """
        return build_candidate(candidate, self.seed)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without the trainer that the data module is attached to."""
        state = dict(vars(self))
        if getattr(self.datamodule, "trainer", None) is not None:
            state["datamodule"] = copy.copy(self.datamodule)
            state["datamodule"].trainer = None
        return state

    def in_memory(self) -> "Self":
        """Return a scorer with its samples in memory, for machines that cannot read this one's files.

        Otherwise, large samples are in a temporary folder (`bridge.stored.StoredBatches`).
        """
        transfer_batches = list(self.reading.transfer_batches)
        return replace(self, reading=self.reading._replace(transfer_batches=transfer_batches))

    def score(self, candidate: Candidate) -> ScoreCard:
        """Build a candidate, score it and release it; failures are recorded in the card.

        Changes that it makes to the process, such as torch's default dtype, are undone and named in the card.

        Returns:
            The card; its seconds include building.
        """
        with preserved_process_state() as state:
            card = self._build_and_score(candidate, state)
            changed = tuple(state.list_changes())
        if card.traceback is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # memory is fragmented after an out-of-memory error
        return replace(card, process_changes=changed)

    def _build_and_score(self, candidate: Candidate, state: ProcessState) -> ScoreCard:
        """Build and score a candidate.

        A factory's module is moved and converted itself; a module that was offered built is copied first.
        """
        start = time.perf_counter()
        identity: dict[str, Any] = {}
        try:
            model = self.build(candidate)
            identity = identity_of(model)
        except BaseException as raised:
            card = self._card_of_failure(candidate, raised)
        else:
            card = self._score_built(candidate, model)
        return replace(card, seconds=time.perf_counter() - start, **identity)

    def _card_of_failure(self, candidate: Candidate, raised: BaseException) -> ScoreCard:
        error = f"does not build: {describe(raised)}"
        return ScoreCard.failed(candidate.name, self.names, error, traceback=traceback_of(raised))

    def _score_built(self, candidate: Candidate, model: nn.Module) -> ScoreCard:
        """Score what a candidate has built."""
        try:
            if isinstance(candidate.build, Built):
                model = self.placement.own(unwrap_compiled(model))
        except BaseException as raised:
            error = f"cannot be copied, which other devices and precisions need; offer a factory: {describe(raised)}"
            return ScoreCard.failed(candidate.name, self.names, error, traceback=traceback_of(raised))
        return self.score_module(candidate.name, model, blocks=candidate.blocks, num_samples=candidate.num_samples)

    def score_module(
        self,
        name: str,
        model: nn.Module,
        *,
        blocks: Sequence[str] | None = None,
        num_samples: NumSamples | None = None,
    ) -> ScoreCard:
        """Score a module; its failures are recorded in the card, not raised.

        Args:
            name: Name of the candidate.
            model: The module. It is moved to the placement, in place, and otherwise left bit-identical.
            blocks: See `score`.
            num_samples: The candidate's own number of samples, instead of the scorer's.
        """
        start = time.perf_counter()
        scores: dict[str, Score] = {}
        error = untrainable = traceback = None
        num_samples = self.num_samples if num_samples is None else num_samples
        cut = self.reading.cut
        try:
            model = own_if_lazy(unwrap_compiled(model))
            with (
                torch.inference_mode(False),  # a proxy's own tensors, made outside of any pass, are leaves of graphs
                preserved_rng(self.seed),
                self.placement.enter(),
                bridged(
                    model,
                    loss_fn=self.loss_fn,
                    step=self.step,
                    datamodule=self.datamodule,
                    settings=self.settings,
                    loader=self.reading.loader,
                    precision=self.placement.plugin(model),
                    device=self.placement.devices[0] if self.placement.devices else None,
                    place=self.placement.place,
                ) as bridge,
            ):
                probe = probe_of(
                    model,
                    bridge,
                    self.batches,
                    prepare=self.placement.wrap_prepare(bridge.prepare),
                    axis=self.axis,
                    chunk_size=self.chunk_size,
                    seed=self.seed,
                    blocks=blocks,
                    name=name,
                    num_samples=num_samples if cut is None else cut.scale(num_samples),
                    transfer_batches=self.reading.transfer_batches,
                )
                error = self.budget.excess(probe) if self.budget else None
                if error is None:
                    scores = self._scores_of(probe)
                untrainable = self._untrainable(probe, bridge)
        except BaseException as raised:  # `preserved_process_state` raises the user's own Ctrl-C again
            error, traceback = describe(raised), traceback_of(raised)
        seconds = time.perf_counter() - start
        if error is not None:
            return ScoreCard.failed(name, self.names, error, seconds, traceback)
        return ScoreCard(name, scores, None, seconds, untrainable)

    def _scores_of(self, probe: Probe) -> dict[str, Score]:
        probe.observe(need for proxy in self.proxies for need in proxy.needs)
        scores = {}
        for proxy in self.proxies:
            try:
                check_variation(probe, proxy)
            except IdenticalBatchesError as same:
                scores[proxy.name] = Score(proxy.name, None, describe(same))
            else:
                scores[proxy.name] = measure(proxy, probe, self.placement.precision)
        return scores

    def _untrainable(self, probe: Probe, bridge: Bridge) -> str | None:
        if probe.untrainable is not None:
            return probe.untrainable
        if probe.step_error is not None:
            reason = why_unranked(probe.step_error, is_own_step=self.loss_fn is None and self.step is None)
            cut = self.reading.cut
            return reason if cut is None else f"{reason.removesuffix('.')}. {cut.way_back}"
        return None if bridge.refused is None else f"untrainable: {' '.join(bridge.refused.split())}"


def build_candidate(candidate: Candidate, seed: int) -> nn.Module:
    """Build a candidate under a seed.

    Raises:
        TypeError: If its factory returns something other than a module.
    """
    with preserved_rng(seed):
        model: Any = candidate.build()
    if not isinstance(model, nn.Module):
        raise TypeError(f"'{candidate.name}' built a {type(model).__name__}: expected a module.")
    return model


def identity_of(model: nn.Module) -> dict[str, Any]:
    """Return what a card tells about a model besides its scores; before scoring, which may convert the model."""
    return {"weights": weights_digest(model), "hyperparameters": hyperparameters_of(model)}


def probe_of(
    module: nn.Module,
    bridge: Bridge,
    batches: Sequence[Batch],
    *,
    axis: Axis,
    chunk_size: ChunkSize,
    seed: int,
    num_samples: NumSamples | None,
    prepare: Callable[[Batch, int], Batch] | None = None,
    blocks: Sequence[str] | None = None,
    name: str = "",
    transfer_batches: Sequence[Batch] = (),
) -> Probe:
    """Make the probe of a module; a lazy module is initialised on its first batch before.

    Args:
        module: The module, or a copy of it if it is lazy (`own_if_lazy`).
        bridge: The bridge of the module, open.
        batches: Batches that `check_batches` has checked.
        axis: See `score`.
        chunk_size: See `score`.
        seed: See `score`.
        num_samples: See `score`.
        prepare: ``(batch, batch_idx) -> batch``; None for the bridge's.
        blocks: See `score`.
        name: Name of the candidate, for proxies that read it.
        transfer_batches: See `Probe`.
    """
    prepare = prepare or bridge.prepare
    if is_uninitialised(module):
        initialise_on_first(module, bridge.step, prepare, batches, seed)
    return Probe(
        module,
        bridge.step,
        batches,
        prepare=prepare,
        axis=axis,
        chunk_size=chunk_size,
        seed=seed,
        muted=bridge.muted,
        blocks=blocks,
        name=name,
        num_samples=num_samples,
        transfer_batches=transfer_batches,
    )


def measure(proxy: Proxy, probe: Probe, precision: str | None) -> Score:
    """Measure one proxy; an exception or a number that is not finite becomes the score's error.

    Args:
        proxy: The proxy to measure.
        probe: The probe of the candidate.
        precision: The precision that the user asked for, for the record.
    """
    start = time.perf_counter()
    try:
        result = probe.past_skipped(lambda: proxy.measure(probe))
        measurement = result if isinstance(result, Measurement) else Measurement(float(result))
        if not math.isfinite(measurement.value):
            raise NonFiniteError(f"`{proxy.name}` is {measurement.value}, so it cannot be ranked.")
    except Exception as raised:
        if isinstance(raised, NoGradientError):
            probe.doubt()
        # For "not applicable", the reason is enough; tracebacks of many candidates would fill the memory.
        traceback = None if isinstance(raised, NotApplicableError) else traceback_of(raised)
        reason = describe(raised)
        if isinstance(raised, TooFewBatchesError) and probe.skipped_batches:
            reason += f" Training skips batches {probe.skipped_batches} of {len(probe.batches)}."
        return Score(proxy.name, None, reason, time.perf_counter() - start, traceback=traceback)
    parameter = next(iter(probe.module.parameters()), None)
    where: dict[str, Any] = (
        {}
        if parameter is None
        else {"device": str(parameter.device), "dtype": str(parameter.dtype).removeprefix("torch.")}
    )
    if precision is not None:
        where["precision"] = precision
    if probe.skipped_batches:
        where["skipped_batches"] = probe.skipped_batches
    if "covered" in measurement.details:
        where["coverable"] = probe.coverable
    return Score(
        proxy.name,
        float(measurement.value),
        None,
        time.perf_counter() - start,
        dict(measurement.layers),
        {**where, **measurement.details},
    )
