"""Score one candidate: its failures become part of the card; a wrong call raises."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_zico._typing import Axis, Batch, LossFn, NumSamples, Step, check_num_samples
from lightning_zico.bridge.data import Reread, is_datamodule
from lightning_zico.bridge.given_data import check_data
from lightning_zico.bridge.modules import bridged, uncompiled
from lightning_zico.bridge.trainers import DEFAULT_SETTINGS, TrainerSettings, TrainingLoader
from lightning_zico.budget import Budget
from lightning_zico.engine.batches import all_equal
from lightning_zico.engine.gradients import ChunkSize, check_chunk_size
from lightning_zico.engine.lazy import initialise_on_first, is_uninitialised, own_if_lazy
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.samples import num_samples as counted_samples
from lightning_zico.engine.samples import stated_samples
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import (
    IdenticalBatchesError,
    NoGradientError,
    NonFiniteError,
    NotApplicableError,
    TooFewBatchesError,
    UnsupportedModuleError,
    ZiCoError,
    blamed,
    meaning_of,
    traceback_of,
)
from lightning_zico.proxies import Measurement, Proxy
from lightning_zico.proxies.base import Proxies
from lightning_zico.results import NOT_APPLICABLE, Score, ScoreCard
from lightning_zico.scoring.arguments import check_is_trainer, check_loss, whole_number
from lightning_zico.scoring.choice import chosen
from lightning_zico.scoring.placement import AS_BUILT, Placement
from lightning_zico.scoring.process_state import kept_process_state

# Prefix of a card's `untrainable` if the module raised an exception; the exception follows.
STEP_FAILS = "untrainable: its training step fails: "


def score(
    model: nn.Module,
    batches: Iterable[Batch],
    proxies: Proxies = ("zico",),
    loss_fn: LossFn | None = None,
    *,
    step: Step | None = None,
    axis: Axis = "batch",
    chunk_size: ChunkSize = None,
    seed: int = 0,
    datamodule: Any = None,
    trainer: Any = None,
    blocks: Sequence[str] | None = None,
    num_samples: NumSamples | None = None,
) -> ScoreCard:
    """Score one model on some batches, and leave it bit-identical.

    Args:
        model: A LightningModule, whose ``training_step`` returns the loss, or any module with ``loss_fn`` or ``step``.
            It is scored on the device it is on.
        batches: Batches as a loader yields them, with tensors nested in any way; at least two for proxies that compare
            gradients.
        proxies: Names (see `list_proxies`), `Proxy` objects, ``"default"`` or another recipe to compute its members,
            or ``"all"``.
        loss_fn: ``(outputs, targets) -> mean loss`` for batches ``(inputs, targets)``, instead of ``training_step``.
        step: ``(module, batch, batch_idx) -> mean loss`` for any batches, instead of ``training_step``: for manual
            optimisation, several optimisers, GANs, and plain modules with several inputs. It runs where
            ``training_step`` would: ``module.trainer`` works and ``module.log`` is silent.
        axis: What varies between two gradients: ``"batch"``, the published ZiCo, or ``"sample"``. They are different
            numbers. Per sample, every tensor and list of samples is split; values shared by all samples are passed
            whole.
        chunk_size: With ``axis="sample"``: how many samples to differentiate at once; None for a whole batch,
            ``"auto"`` for as many as fit in memory.
        seed: The seed of dropout and other randomness in the model.
        datamodule: The data module of the batches. Its transfer hooks run if it overrides them; it is not set up here.
        trainer: The trainer that will train the model: ``training_step`` then sees its settings, such as
            ``max_epochs`` (see `TrainerSettings`). It is only read. None for Lightning's defaults.
        blocks: Names of the submodules that are the network's blocks, for proxies that look at blocks; None to find
            them.
        num_samples: Number of samples in a batch, or a function that counts them in a batch as given; None to read it
            from the batch (`engine.samples.num_samples`). MACs and other numbers per sample need it if the fields of a
            batch differ in length and nothing shows which one counts samples.

    Returns:
        A card with one `Score` per proxy. If the model fails, the reason is in ``card["zico"].error``.

    Raises:
        UnknownNameError: If a name is neither a proxy nor a recipe.
        TooFewBatchesError: If a proxy needs more gradients than the batches give.
        IdenticalBatchesError: If all batches are the same, so gradients cannot vary.
        TypeError: If ``model`` is not a module, ``batches`` is a loader or a single batch, or another argument has the
            wrong type.
        ValueError: If both ``loss_fn`` and ``step`` are given, or another argument is out of range.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(2)]
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> card = score(model, batches, loss_fn=nn.CrossEntropyLoss())
        >>> sorted(card["zico"].layers)
        ['0.weight', '2.weight']
    """
    if isinstance(batches, DataLoader) or (is_datamodule(batches) and not isinstance(batches, type)):
        raise TypeError(
            f"Invalid batches: a {type(batches).__name__}; expected the batches themselves, such as "
            "`list(itertools.islice(loader, 2))`. To pass a loader or a data module, use `ZeroShotSelector`."
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"Invalid model={model!r}: expected an instance of a module.")
    check_data(batches, name="batches", pairs=loss_fn is not None)
    batches = list(batches)
    resolved = chosen(proxies).proxies
    check_axis(axis)
    check_chunk_size(chunk_size)
    check_loss(loss_fn, step)
    check_is_trainer(trainer)
    seed = whole_number("seed", seed)
    check_num_samples(num_samples)
    check_batches(batches, resolved, axis, num_samples)
    with kept_process_state() as state:
        card = score_checked(
            type(model).__name__,
            model,
            batches,
            resolved,
            loss_fn=loss_fn,
            step=step,
            axis=axis,
            chunk_size=chunk_size,
            seed=seed,
            datamodule=datamodule,
            settings=TrainerSettings.of(trainer),
            loader=TrainingLoader(batches),
            blocks=blocks,
            num_samples=num_samples,
            placement=AS_BUILT,
        )
        changed = tuple(state.changed())
    return replace(card, process_changes=changed)


def check_axis(axis: Axis) -> None:
    """Validate ``axis``.

    Raises:
        ValueError: If it is neither ``"batch"`` nor ``"sample"``.
    """
    if axis not in get_args(Axis):
        raise ValueError(f"Invalid axis={axis!r}: expected one of {get_args(Axis)}.")


def check_batches(
    batches: Sequence[Batch], proxies: Sequence[Proxy], axis: Axis, num_samples: NumSamples | None = None
) -> None:
    """Check that candidates can be scored on the batches.

    Raises:
        TooFewBatchesError: If they give fewer gradients than a proxy needs.
        IdenticalBatchesError: If a proxy compares gradients between batches and all batches are the same.
        ValueError: If ``num_samples`` returns anything but a positive int for one of them.
    """
    stated = [stated_samples(batch, num_samples) for batch in batches]
    needed = max(proxies, key=lambda proxy: proxy.min_gradients)
    least = max(needed.min_gradients, 1)
    if not batches or needed.min_gradients:
        counts = [
            counted_samples(batch) if count is None else count for batch, count in zip(batches, stated, strict=True)
        ]
        # If the samples of a batch cannot be counted, a candidate's forward pass may show them.
        given = sum(count or least for count in counts) if axis == "sample" else len(batches)
        unit, way_out = ("samples", "Pass more samples") if axis == "sample" else ("batches", "Raise `num_batches`")
        if given < least:
            raise TooFewBatchesError(f"`{needed.name}` needs at least {least} {unit}; got {given}. {way_out}.")
    if isinstance(batches, Reread) and batches.are_copies:
        return  # the training step may be random; `score_checked` checks that
    if needed.min_gradients > 1 and axis == "batch" and all_equal(batches):
        raise IdenticalBatchesError(
            f"All {len(batches)} batches are the same, so no gradient can vary and `{needed.name}` is not defined. "
            "Shuffle the data, or pass batches with different samples."
        )


def check_variation(probe: Probe, proxy: Proxy) -> None:
    """Check that gradients can vary if all batches are copies of one, because the loader has only one batch.

    Raises:
        IdenticalBatchesError: If the proxy compares gradients between batches, and the training step is not random, so
            all gradients are equal up to rounding.
    """
    is_compared = proxy.min_gradients > 1 and probe.axis == "batch"
    if is_compared and isinstance(probe.batches, Reread) and probe.batches.are_copies and not probe.draws:
        raise IdenticalBatchesError(
            "the training data has only one batch, with the same samples each time it is read, and the training step "
            f"is not random, so no gradient varies between batches and `{proxy.name}` is not defined. Use smaller "
            'batches or `axis="sample"`, or rank by proxies that need only one batch, as the default recipe does.'
        )


def score_checked(
    name: str,
    model: nn.Module,
    batches: Sequence[Batch],
    proxies: Sequence[Proxy],
    *,
    loss_fn: LossFn | None,
    step: Step | None,
    axis: Axis,
    chunk_size: ChunkSize,
    seed: int,
    placement: Placement,
    datamodule: Any = None,
    settings: TrainerSettings = DEFAULT_SETTINGS,
    loader: TrainingLoader | None = None,
    blocks: Sequence[str] | None = None,
    budget: Budget | None = None,
    num_samples: NumSamples | None = None,
) -> ScoreCard:
    """Score a model on checked batches; the model's failures are recorded in the card, not raised.

    Args:
        name: Name of the candidate.
        model: See `score`.
        batches: Batches that `check_batches` has checked.
        proxies: Proxies, in the order in which they are computed.
        loss_fn: See `score`.
        step: See `score`.
        axis: See `score`.
        chunk_size: See `score`.
        seed: See `score`.
        placement: The device and precision that the model is moved and converted to, in place.
        datamodule: See `score`.
        settings: Settings of the trainer that the model sees.
        loader: The loader that the trainer shows; None for one with these batches.
        blocks: See `score`.
        budget: Limits on cost; a candidate above it is not scored.
        num_samples: See `score`.
    """
    start = time.perf_counter()
    scores: dict[str, Score] = {}
    error = untrainable = traceback = None
    try:
        model = own_if_lazy(uncompiled(model))
        with (
            torch.inference_mode(False),  # a proxy's own tensors, made outside of any pass, are leaves of graphs
            preserved_rng(seed),
            placement.entered(),
            bridged(
                model,
                loss_fn=loss_fn,
                step=step,
                datamodule=datamodule,
                settings=settings,
                loader=loader or TrainingLoader(batches),
                precision=placement.plugin(model),
                device=placement.devices[0] if placement.devices else None,
                place=placement.place,
            ) as bridge,
        ):
            prepare = placement.prepared(bridge.prepare)
            if is_uninitialised(model):
                initialise_on_first(model, bridge.step, prepare, batches, seed)
            probe = Probe(
                model,
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
            )
            error = budget.excess(probe) if budget else None
            if error is None:
                probe.observe(need for proxy in proxies for need in proxy.needs)
            for proxy in proxies if error is None else ():
                try:
                    check_variation(probe, proxy)
                except IdenticalBatchesError as same:
                    scores[proxy.name] = Score(proxy.name, None, described(same))
                else:
                    scores[proxy.name] = measured(proxy, probe, placement.precision)
            untrainable = probe.untrainable
            if untrainable is None and (failure := probe.step_error) is not None:
                untrainable = _why_unranked(failure, is_own_step=loss_fn is None and step is None)
            if untrainable is None and bridge.refused is not None:
                untrainable = f"untrainable: {' '.join(bridge.refused.split())}"
    except BaseException as raised:  # `kept_process_state` raises the user's own Ctrl-C again
        error, traceback = described(raised), traceback_of(raised)
    seconds = time.perf_counter() - start
    if error is not None:
        return ScoreCard.failed(name, [proxy.name for proxy in proxies], error, seconds, traceback)
    return ScoreCard(name, scores, None, seconds, untrainable)


def _why_unranked(failure: Exception, *, is_own_step: bool) -> str:
    """Return why a candidate whose step failed has no rank; it is untrainable if its own module raised the error."""
    if blamed(failure) is not None:
        return str(failure) if isinstance(failure, ZiCoError) else described(failure)
    if isinstance(failure, UnsupportedModuleError):
        return f"untrainable: {failure}" if is_own_step else str(failure)
    return STEP_FAILS + described(failure)


def measured(proxy: Proxy, probe: Probe, precision: str | None) -> Score:
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
        reason = described(raised)
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


def described(error: BaseException) -> str:
    """Describe an exception in one line: its type and its message, or else the line of code that raised it.

    If the user's code other than the scored module raised it, such as a callback, the line begins with its name.
    """
    kind = NOT_APPLICABLE if isinstance(error, NotApplicableError) else type(error).__name__
    said = f"{kind}: {meaning_of(error)}".rstrip(": ")
    name = None if isinstance(error, ZiCoError) else blamed(error)  # this package's own errors name it themselves
    return said if name is None else f"{name} raised {said}"
