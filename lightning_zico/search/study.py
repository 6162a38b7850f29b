"""The study of a search: everything that its scores and proposals depend on, and its trials."""

import json
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_zico._typing import Batch
from lightning_zico.bridge import DEFAULT_SETTINGS
from lightning_zico.budget import Budget
from lightning_zico.engine.batches import tensors_of
from lightning_zico.scoring.choice import Choice
from lightning_zico.scoring.fingerprint import fingerprint, fingerprint_or_none
from lightning_zico.scoring.provenance import reading_facts
from lightning_zico.scoring.scorer import Scorer
from lightning_zico.search.costs import ArchCosts
from lightning_zico.search.proposals import Proposer
from lightning_zico.search.trials import Trials, quiet_optuna
from lightning_zico.spaces import SearchSpace

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from lightning_zico.search.trials import StorageLike


@dataclass(frozen=True)
class Study:
    """What identifies a search.

    Args:
        settings: Everything that scores and proposals depend on, in plain values.
        costs: Costs of the archs.
        directions: Directions of the numbers that Optuna gets: of proxies, since these depend on no other arch, and of
            the costs to keep low.
        sampler: Optuna's sampler; None if archs are not proposed by Optuna.
    """

    settings: dict[str, Any]
    costs: ArchCosts
    directions: Sequence[str]
    sampler: "BaseSampler | None"

    @classmethod
    def of(
        cls,
        space: SearchSpace[Any],
        choice: Choice,
        scorer: Scorer,
        proposer: Proposer,
        *,
        budget: Budget | None,
        against: Sequence[str],
        resolution: int | None,
        num_classes: int,
        wrap: Callable[[nn.Module], nn.Module] | None,
        is_stored: bool,
    ) -> "Study":
        """Collect the settings of a search.

        Raises:
            ValueError: If networks of the space do not take images of this resolution.
        """
        in_channels, side = _input_shape(space, scorer.batches)
        settings: dict[str, Any] = {
            "space": space.name or type(space).__name__,
            "budget": asdict(budget) if budget else None,
            "proxies": [proxy.name for proxy in choice.proxies],
            "rank_by": choice.rank_by,
            "against": list(against),
            "sampler": proposer.facts,
            "axis": scorer.axis,
            "num_batches": len(scorer.batches),
            "batch_shapes": [list(tensor.shape) for tensor in tensors_of(scorer.batches[0])],
            **({} if (facts := reading_facts(scorer.batches)) is None else {"reading": facts}),
            "resolution": resolution or side,
            "num_classes": num_classes,
            "accelerator": scorer.placement.accelerator,
            "precision": scorer.placement.precision,
            "in_channels": in_channels,
            "seed": scorer.seed,
            **({"channels_last": True} if scorer.placement.channels_last else {}),
            "content": _content(space, choice, scorer, wrap, is_stored=is_stored),
        }
        shape = {key: settings[key] for key in ("resolution", "num_classes", "in_channels")}
        costs = ArchCosts(space, budget, against, **shape)
        costs.of(space.sample(random.Random(0)))  # refuses a resolution before there is a study
        scores = ["maximize" if choice.higher_is_better(name) else "minimize" for name in choice.chains[0]]
        return cls(settings, costs, [*scores, *("minimize" for _ in against)], proposer.optunas)

    @contextmanager
    def trials(self, storage: "StorageLike | None", name: str | None) -> Iterator[Trials]:
        """Open the trials of the study, and close them at the end.

        Args:
            storage: See `Trials`.
            name: Name of the study; None to derive it from the settings.

        Raises:
            SettingsError: If the study was begun with other settings.
            StorageError: If ``storage`` cannot be opened.
        """
        name = name or f"{self.settings['space']}-{fingerprint(json.dumps(self.settings))[:12]}"
        with quiet_optuna():
            trials = Trials(storage, name, self.settings, self.directions, self.sampler)
            try:
                yield trials
            finally:
                trials.close()


def _content(
    space: SearchSpace[Any],
    choice: Choice,
    scorer: Scorer,
    wrap: Callable[[nn.Module], nn.Module] | None,
    *,
    is_stored: bool,
) -> dict[str, str | None]:
    """Return fingerprints of the objects that scores depend on; None for one that has none, with a warning."""
    parts: dict[str, Any] = {
        "space": space,
        "wrap": wrap,
        "proxies": choice.proxies,
        "batches": scorer.batches,
        "loss_fn": scorer.loss_fn,
        "chunk_size": scorer.chunk_size,
        **({} if scorer.step is None else {"step": scorer.step}),
        **({} if scorer.num_samples is None else {"num_samples": scorer.num_samples}),
        **({} if scorer.settings == DEFAULT_SETTINGS else {"trainer": scorer.settings}),
    }
    content = {name: fingerprint_or_none(part) for name, part in parts.items()}
    unseen = [name for name, seen in content.items() if seen is None]
    if unseen and is_stored:
        warnings.warn(
            f"`{unseen[0]}` holds an object that cannot be compared, such as a lock, so searches with different ones "
            "cannot be distinguished. Give each search its own `name`.",
            stacklevel=5,
        )
    return content


def _input_shape(space: SearchSpace[Any], batches: Sequence[Batch]) -> tuple[int, int]:
    """Return the number of channels and the side of the images, which are square; 1 and the length of texts."""
    tensors = list(tensors_of(batches[0]))
    for tensor in tensors:
        if space.vocab_size is None and tensor.ndim == 4 and tensor.shape[2] == tensor.shape[3]:
            return tensor.shape[1], tensor.shape[2]
        if space.vocab_size is not None and tensor.ndim == 2 and not tensor.is_floating_point():
            return 1, tensor.shape[1]
    for_images = ("square images `[N, C, H, H]`", "images")
    needed, kind = for_images if space.vocab_size is None else ("token ids `[N, T]`", "texts")
    raise ValueError(
        f"Invalid batch with tensors of shape {[list(tensor.shape) for tensor in tensors]}: expected {needed}, because "
        f"the space contains networks for {kind}."
    )
