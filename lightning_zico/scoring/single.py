"""Score one model in one call: its failures become part of the card; a wrong call raises."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

from torch import nn

from lightning_zico._typing import Axis, LossFn, NumSamples, Step
from lightning_zico.bridge import TrainerSettings, TrainingData, check_data
from lightning_zico.candidates import Candidate
from lightning_zico.engine.gradients import ChunkSize
from lightning_zico.proxies import Proxies
from lightning_zico.results import ScoreCard
from lightning_zico.scoring.arguments import check_is_trainer, whole_number
from lightning_zico.scoring.choice import Choice
from lightning_zico.scoring.placement import AcceleratorName, Devices, PrecisionLike
from lightning_zico.scoring.process_state import kept_process_state
from lightning_zico.scoring.settings import ScoringSettings

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in the standard library from Python 3.11 on


class ScoreSettings(TypedDict, total=False):
    """The arguments of `ScoringSettings` that `score` takes as well."""

    batch_size: int | None
    num_samples_transfer: int
    axis: Axis
    chunk_size: ChunkSize
    seed: int
    accelerator: AcceleratorName | None
    devices: Devices
    precision: PrecisionLike | None
    channels_last: bool


_HINTS = {
    "batches": "Pass them as `data`.",
    "blocks": "Pass `Candidate(name, build, blocks=...)` as the model.",
}


def score(
    model: nn.Module | Candidate,
    data: Any = None,
    proxies: Proxies = ("zico",),
    loss_fn: LossFn | None = None,
    *,
    num_batches: int | None = None,
    step: Step | None = None,
    datamodule: Any = None,
    trainer: Any = None,
    num_samples: NumSamples | None = None,
    **settings: "Unpack[ScoreSettings]",
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
        step: ``(module, batch, batch_idx) -> mean loss`` for any batches, instead of ``training_step``: for manual
            optimisation, several optimisers, GANs, and plain modules with several inputs. It runs where
            ``training_step`` would: ``module.trainer`` works and ``module.log`` is silent.
        datamodule: The data module of batches that were read already. Its transfer hooks run if it overrides them; it
            is not set up here.
        trainer: The trainer that will train the model: ``training_step`` then sees its settings, such as
            ``max_epochs`` (see `TrainerSettings`). It is only read. None for Lightning's defaults.
        num_samples: Number of samples in a batch, or a function that counts them in a batch as given; None to read it
            from the batch (`engine.samples.num_samples`). MACs and other numbers per sample need it if the fields of a
            batch differ in length and nothing shows which one counts samples.
        settings: ``axis``, ``chunk_size``, ``seed``, ``accelerator``, ``devices``, ``precision``, ``channels_last``,
            ``num_samples_transfer`` and ``batch_size`` as for `ScoringSettings`. Batches that are given themselves are
            only cut if ``batch_size`` is passed; the selector cuts them, too, so that all data ranks in the same way.
            The features of a list without ``num_batches`` are those of all its batches.

    Returns:
        A card with one `Score` per proxy. If the model fails, the reason is in ``card["zico"].error``.

    Raises:
        UnknownNameError: If a name is neither a proxy nor a recipe.
        TooFewBatchesError: If there are fewer batches than ``num_batches``, or than a proxy needs.
        IdenticalBatchesError: If all batches are the same, so gradients cannot vary.
        TypeError: If ``model`` is not a module, ``data`` is a single batch, or another argument has the wrong type.
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
    for name in settings.keys() - ScoreSettings.__annotations__.keys():
        raise TypeError(f"`score` has no argument `{name}`. {_HINTS.get(name, '')}".rstrip())
    check_data(data, pairs=loss_fn is not None)
    shared = ScoringSettings(loss_fn=loss_fn, step=step, num_samples=num_samples, **settings)
    check_is_trainer(trainer)
    chosen = Choice.of(proxies).proxies
    if num_batches is not None:
        num_batches = whole_number("num_batches", num_batches, 1)
        replace(shared, num_batches=num_batches).check_enough_batches(chosen)
    with TrainingData(data, TrainerSettings.of(trainer)) as source:
        reading = source.read_given(
            num_batches,
            seed=shared.seed,
            batch_size=shared.batch_size,
            num_samples=num_samples,
            cuts_given="batch_size" in settings,
            num_samples_transfer=shared.num_samples_for(chosen),
        )
        (scorer,) = shared.scorers([reading], chosen, data=source, loss_fn=loss_fn, budget=None)
        if datamodule is not None:
            scorer = replace(scorer, datamodule=datamodule)
        if isinstance(model, Candidate):
            return scorer.score(model)
        with kept_process_state() as state:
            card = scorer.score_module(type(model).__name__, scorer.placement.own(model))
            changed = tuple(state.changed())
    return replace(card, process_changes=changed)
