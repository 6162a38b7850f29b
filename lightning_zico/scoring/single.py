"""Score one model in one call: its failures become part of the card; a wrong call raises."""

import difflib
import inspect
import warnings
from dataclasses import fields, replace
from typing import Any

from torch import nn

from lightning_zico._typing import LossFn
from lightning_zico.bridge import TrainerSettings, TrainingData, check_data
from lightning_zico.candidates import Candidate
from lightning_zico.proxies import Proxies
from lightning_zico.results import ScoreCard
from lightning_zico.scoring.arguments import check_is_trainer, whole_number
from lightning_zico.scoring.checks import compares_batches
from lightning_zico.scoring.choice import Choice
from lightning_zico.scoring.process_state import preserved_process_state
from lightning_zico.scoring.provenance import notes_on_reading
from lightning_zico.scoring.settings import ScoringSettings, describe_settings

# Settings of a ranking that mean nothing for a single model, and those that `score` declares itself.
_NOT_SETTINGS = frozenset(
    {"rank_by", "num_batches", "loss_fn", "cache", "executor", "timeout_s", "callbacks", "enable_progress_bar"}
)
_SETTINGS = {field.name for field in fields(ScoringSettings)} - _NOT_SETTINGS
_HINTS = {
    "batches": "Pass them as `data`.",
    "train_dataloaders": "Pass the loader as `data`.",
    "blocks": "Pass `Candidate(name, build, blocks=...)` as the model.",
}


def score(
    model: nn.Module | Candidate,
    data: Any = None,
    proxies: Proxies = ("zico",),
    loss_fn: LossFn | None = None,
    *,
    num_batches: int | None = None,
    datamodule: Any = None,
    trainer: Any = None,
    **settings: Any,
) -> ScoreCard:
    """Score one model on some batches, and leave it bit-identical.

    Args:
        model: A LightningModule, whose ``training_step`` returns the loss, or any module with ``loss_fn`` or ``step``.
            It is scored on the device it is on. A `Candidate` is built under the seed; it may name its blocks.
        data: A list or another iterable of batches as a loader yields them, with tensors nested in any way; or a
            DataLoader or LightningDataModule. At least two batches for proxies that compare gradients.
        proxies: Names (see `list_proxies`), `Proxy` objects, ``"default"`` or another recipe to compute its members,
            or ``"all"``.
        loss_fn: ``(outputs, targets) -> mean loss`` for batches ``(inputs, targets)``, instead of ``training_step``.
        num_batches: How many batches to score on. None for two of a loader or data module, and for all that are given.
        datamodule: Without ``data``, the data module to read batches from, as for `ZeroShotSelector.rank`. With
            ``data``, the data module of batches that were read already: its transfer hooks run if it overrides them,
            and it is not set up here.
        trainer: The trainer that will train the model: ``training_step`` then sees its settings, such as
            ``max_epochs`` (see `TrainerSettings`). It is only read. None for Lightning's defaults.
        settings: ``step``, ``num_samples``, ``batch_size``, ``num_samples_transfer``, ``axis``, ``chunk_size``,
            ``seed``, ``accelerator``, ``devices``, ``precision`` and ``channels_last``, as for `ScoringSettings`.
            Batches that are given themselves are only cut if ``batch_size`` is passed; the selector cuts them, too, so
            that all data ranks in the same way. The features of a list without ``num_batches`` are those of all its
            batches.

    Returns:
        A card with one `Score` per proxy. If the model fails, the reason is in ``card["zico"].error``. There is a
        warning if the data has fewer batches than requested or than a proxy compares, or if batches could not be made
        smaller.

    Raises:
        UnknownNameError: If a name is neither a proxy nor a recipe.
        TooFewBatchesError: If there are fewer batches than ``num_batches``, or than a proxy needs.
        IdenticalBatchesError: If all batches are the same, so gradients cannot vary.
        TypeError: If ``model`` is not a module, ``data`` is a single batch, another argument has the wrong type, or
            there is no setting with a given name.
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
    if not isinstance(model, nn.Module | Candidate):
        raise TypeError(f"Invalid model={model!r}: expected an instance of a module.")
    for name in settings.keys() - _SETTINGS:
        raise TypeError(f"`score` has no argument `{name}`. {_HINTS.get(name) or _did_you_mean(name)}")
    if data is None:
        data, datamodule = datamodule, None
    check_data(data, pairs=loss_fn is not None)
    shared = ScoringSettings(loss_fn=loss_fn, **settings)
    check_is_trainer(trainer)
    computed = Choice.of(proxies, pretrained=isinstance(model, Candidate) and model.pretrained).proxies
    if num_batches is not None:
        num_batches = whole_number("num_batches", num_batches, 1)
        replace(shared, num_batches=num_batches).check_enough_batches(computed)
    with TrainingData(data, TrainerSettings.of(trainer)) as source:
        reading = source.read_given(
            num_batches,
            seed=shared.seed,
            batch_size=shared.batch_size,
            num_samples=shared.num_samples,
            cuts_given="batch_size" in settings,
            num_samples_transfer=shared.num_samples_for(computed),
        )
        are_compared = any(compares_batches(proxy, shared.axis) for proxy in computed)
        is_number_needed = num_batches is not None or are_compared
        for note in notes_on_reading(reading, shared.batch_size, is_number_needed=is_number_needed):
            warnings.warn(note, stacklevel=2)
        (scorer,) = shared.scorers([reading], computed, data=source, loss_fn=loss_fn, budget=None)
        if datamodule is not None:
            scorer = replace(scorer, datamodule=datamodule)
        if isinstance(model, Candidate):
            return scorer.score(model)
        with preserved_process_state() as state:
            card = scorer.score_module(type(model).__name__, scorer.placement.own(model))
            changed = tuple(state.list_changes())
    return replace(card, process_changes=changed)


score.__doc__ = describe_settings(score.__doc__, _NOT_SETTINGS)


def _did_you_mean(name: str) -> str:
    """Return the names that are nearest to a wrong one, or all if none is near."""
    known = sorted([*inspect.signature(score).parameters][:-1]) + sorted(_SETTINGS)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean `{nearest[0]}`?" if nearest else f"Its settings: {', '.join(sorted(_SETTINGS))}."
