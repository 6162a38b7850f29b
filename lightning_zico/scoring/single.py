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


def score(
    model: nn.Module | Candidate,
    data: Any,
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
        data: A list or iterator of batches as a loader yields them, with tensors nested in any way; or a DataLoader, a
            LightningDataModule or another iterable of batches. At least two batches for proxies that compare gradients.
        proxies: Names (see `list_proxies`), `Proxy` objects, ``"default"`` or another recipe to compute its members,
            or ``"all"``.
        loss_fn: ``(outputs, targets) -> mean loss`` for batches ``(inputs, targets)``, instead of ``training_step``.
        num_batches: How many batches to score on. None for all batches of a list or an iterator, and otherwise for two.
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
        settings: ``axis``, ``chunk_size``, ``seed``, ``accelerator``, ``devices``, ``precision`` and ``channels_last``
            as for `ScoringSettings`, and ``batch_size`` and ``num_samples_transfer`` for loaders and data modules;
            batches that are given themselves are not cut.

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
    check_data(data, pairs=loss_fn is not None)
    unknown = settings.keys() - ScoreSettings.__annotations__.keys()
    if unknown:
        raise TypeError(f"`score` has no argument {', '.join(f'`{name}`' for name in sorted(unknown))}.")
    shared = ScoringSettings(loss_fn=loss_fn, step=step, num_samples=num_samples, **settings)
    check_is_trainer(trainer)
    if num_batches is not None:
        num_batches = whole_number("num_batches", num_batches, 1)
    with TrainingData(data, TrainerSettings.of(trainer)) as source:
        proxies_ = Choice.of(proxies).proxies
        reading = source.read_given(
            num_batches,
            seed=shared.seed,
            batch_size=shared.batch_size,
            num_samples_transfer=shared.num_samples_for(proxies_),
        )
        (scorer,) = shared.scorers([reading], proxies_, data=source, loss_fn=loss_fn, budget=None)
        if datamodule is not None:
            scorer = replace(scorer, datamodule=datamodule)
        if isinstance(model, Candidate):
            return scorer.score(model)
        with kept_process_state() as state:
            card = scorer.score_module(type(model).__name__, scorer.placement.own(model))
            changed = tuple(state.changed())
    return replace(card, process_changes=changed)
