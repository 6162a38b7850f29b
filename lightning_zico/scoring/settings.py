"""Settings of scoring that a selector and a search share, each written down once."""

import re
from collections.abc import Sequence, Set
from dataclasses import MISSING, dataclass, fields
from inspect import cleandoc
from reprlib import Repr
from typing import Any, Literal

from lightning_zico._typing import Axis, LossFn, NumSamples, Step, check_num_samples
from lightning_zico.bridge.data import Reading, TrainingData
from lightning_zico.budget import Budget
from lightning_zico.engine.batches import tensors_of
from lightning_zico.engine.gradients import ChunkSize, check_chunk_size
from lightning_zico.folders import remove_leftovers
from lightning_zico.proxies import Proxy
from lightning_zico.scoring.arguments import check_loss, flag, name_of, whole_number
from lightning_zico.scoring.cache import CacheLike, check_cache, open_cache
from lightning_zico.scoring.cached_scorer import with_cache
from lightning_zico.scoring.checks import check_axis, check_batches
from lightning_zico.scoring.executors.base import Executor
from lightning_zico.scoring.executors.processes import executor_of
from lightning_zico.scoring.fingerprint import fingerprint_or_none
from lightning_zico.scoring.placement import (
    AcceleratorName,
    Devices,
    PrecisionLike,
    check_placement,
    placement_of,
    trainers_precision,
)
from lightning_zico.scoring.progress import CallbackLike, ProgressReport, callbacks_of
from lightning_zico.scoring.provenance import reading_facts, versions
from lightning_zico.scoring.scorer import Scorer

# Values of arguments in a `repr`, which should fit a few lines.
_SHORT = Repr()
_SHORT.maxother = _SHORT.maxstring = 40


def describe_settings(docstring: str | None, leave_out: Set[str] = frozenset()) -> str | None:
    """Add the arguments of `ScoringSettings` to a docstring, after its own.

    Args:
        docstring: A docstring with the section ``Args``; one without it stays the same, and so does None, which is what
            ``python -OO`` makes of all docstrings.
        leave_out: Arguments not to describe.
    """
    own = cleandoc(docstring or "")
    if "\nArgs:\n" not in own:
        return docstring
    entries = re.split(r"\n(?=    \w)", cleandoc(ScoringSettings.__doc__ or "").partition("Args:\n")[2])
    shared = "\n".join(entry for entry in entries if entry.split(":")[0].strip() not in leave_out)
    arguments = own.index("\nArgs:\n")
    end = own.find("\n\n", arguments)
    return f"{own}\n{shared}" if end < 0 else f"{own[:end]}\n{shared}{own[end:]}"


@dataclass(kw_only=True, repr=False, eq=False)
class ScoringSettings:
    """How candidates are scored; the arguments that `ZeroShotSelector` and `ZeroShotSearch` share.

    Args:
        rank_by: Name of the proxy or recipe to rank by; the first of ``proxies`` if None.
        num_batches: Number of batches that every candidate is scored on, the same for all. Two is the published
            setting; four or more give steadier scores.
        batch_size: The largest number of samples in a batch that candidates are scored on. On NAS-Bench-201, ZiCo
            ranks as well with 16 as with 128, in an eighth of the time (`benchmarks/README.md`). Loaders are built
            again with this batch size; batches from elsewhere are cut to their first samples, and stay whole where that
            is not possible. None for batches as the loader gives them, which is the published protocol.
        num_samples_transfer: Number of samples whose features the proxies for pretrained candidates look at (`logme`,
            `ridge_probe` and others), rounded up to whole batches. They are read from the training data, once and in
            addition to the batches, and kept in memory, only if such a proxy is chosen.
        axis: What varies between two gradients: ``"batch"``, the published ZiCo, or ``"sample"``.
        chunk_size: With ``axis="sample"``: how many samples to differentiate at once; None for a whole batch,
            ``"auto"`` for as many as fit in memory.
        loss_fn: ``(outputs, targets) -> mean loss`` for batches ``(inputs, targets)``, instead of ``training_step``.
        step: ``(module, batch, batch_idx) -> mean loss`` for any batches, instead of ``training_step``: for manual
            optimisation, several optimisers, GANs, and plain modules with several inputs. It runs where
            ``training_step`` would: ``module.trainer`` works and ``module.log`` is silent. It only affects scoring, not
            how the winner is trained.
        num_samples: Number of samples in a batch, or a function that counts them in what the loader yields; None to
            read it from the batch (`engine.samples.num_samples`). MACs and other numbers per sample need it if the
            fields of a batch differ in length and nothing shows which one counts samples. A `Candidate` may have its
            own.
        seed: The seed of everything that is drawn: batches, the weights that factories draw, dropout while scoring,
            archs of a search, and training in finals.
        cache: Path of a file in which scores are saved as they come (``"scores.db"``; see `scoring.cache.SQLiteCache`),
            or a `ScoreCache`. Scores in it are not computed again, and the result is the same, ``seconds`` included.
            See `scoring.cached_scorer.with_cache` for what a score depends on. A file keeps finals as well, with their
            checkpoints in a folder beside it (`selection.final_cache.FinalsCache`).
        executor: Where candidates are scored; it does not change the scores. None for this process, ``"processes"`` for
            one worker process per core, or an executor, such as ``ProcessExecutor(num_workers=2)`` or
            ``RayExecutor()``. In a search with several workers, each scores an arch of its own, which is proposed while
            the others are scored.
        timeout_s: Time limit per candidate, in seconds, for ``"processes"``. A candidate that takes longer becomes a
            row with that reason.
        accelerator: Where candidates are scored, as for a trainer: ``"cpu"``, ``"gpu"``, ``"cuda"``, ``"mps"`` or
            ``"auto"``; None for wherever they are built. A factory's module is moved; a module that is offered built is
            copied. ``best_model_`` stays as it was built.
        devices: Which devices to use, as for a trainer. A single process uses the first; each worker of
            `ProcessExecutor` uses its own, in turn. On Ray it is 1, because a task only sees the GPUs assigned to it.
        precision: The precision of scoring: ``"32-true"``, ``"64-true"``, ``"bf16-true"``, ``"16-true"``,
            ``"bf16-mixed"`` or, on a GPU, ``"16-mixed"``; the short forms 64, 32, 16 and ``"bf16"`` mean what they mean
            to a trainer. None for the trainer's precision if candidates can be scored in it, otherwise the precision in
            which they are built. Either parameters, buffers and batches are converted, or the loss and forward passes
            run under autocast. Gradients have the precision of the parameters, and what proxies compute from them is
            not under autocast. SynFlow stays in float64. Losses are not scaled: in float16, gradients below 6e-8 are
            zero.
        channels_last: Lay out images and the weights of convolutions in ``torch.channels_last``, which is often faster
            in bfloat16. Use it together with ``executor="processes"``: torch 2.14 crashed the interpreter for models
            such as RepVGG and FastViT in this layout on a CPU.
        callbacks: A function, or an object with a method ``on_candidate_scored``, to call with the `ScoreCard` of each
            candidate as soon as it is scored; or a list of these. See `scoring.progress.ScoringCallback`. An exception
            that it raises ends the run and propagates, as Ctrl-C does: the scores so far are kept.
        enable_progress_bar: Show a progress bar, and the leaderboard at the end, if the terminal is interactive. If it
            is not, log the progress every 30 s, at the level INFO of the logger ``lightning_zico``.
    """

    rank_by: str | None = None
    num_batches: int = 2
    batch_size: int | None = 16
    num_samples_transfer: int = 1000
    axis: Axis = "batch"
    chunk_size: ChunkSize = None
    loss_fn: LossFn | None = None
    step: Step | None = None
    num_samples: NumSamples | None = None
    seed: int = 0
    cache: CacheLike | None = None
    executor: Executor | Literal["processes"] | None = None
    timeout_s: float | None = None
    accelerator: AcceleratorName | None = None
    devices: Devices = "auto"
    precision: PrecisionLike | None = None
    channels_last: bool = False
    callbacks: CallbackLike | Sequence[CallbackLike] = ()
    enable_progress_bar: bool = True

    def __init_subclass__(cls) -> None:
        """Describe the shared arguments in a subclass's docstring as well, after its own."""
        cls.__doc__ = describe_settings(vars(cls).get("__doc__"))

    def __post_init__(self) -> None:
        check_axis(self.axis)
        check_chunk_size(self.chunk_size)
        check_loss(self.loss_fn, self.step)
        self.num_samples = check_num_samples(self.num_samples)
        check_cache(self.cache)
        check_placement(self.accelerator, self.devices, self.precision, self.channels_last)
        executor_of(self.executor, self.timeout_s)
        callbacks_of(self.callbacks)
        self.num_batches = whole_number("num_batches", self.num_batches, 1)
        if self.batch_size is not None:
            self.batch_size = whole_number("batch_size", self.batch_size, 1, "None takes the loader's batches.")
        self.num_samples_transfer = whole_number("num_samples_transfer", self.num_samples_transfer, 1)
        self.seed = whole_number("seed", self.seed)
        self.enable_progress_bar = flag("enable_progress_bar", self.enable_progress_bar)

    def __repr__(self) -> str:
        """Return the call that makes an equal object; arguments with their defaults are left out."""
        given = [
            f"{field.name}={_SHORT.repr(getattr(self, field.name))}"
            for field in fields(self)
            if field.init and (field.default is MISSING or getattr(self, field.name) is not field.default)
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    def check_enough_batches(self, proxies: Sequence[Proxy]) -> None:
        """Check that there are as many batches as each proxy needs.

        Raises:
            InvalidArgumentError: If there are fewer.
        """
        needy = max(proxies, key=lambda proxy: proxy.min_gradients)
        least = max(needy.min_gradients if self.axis == "batch" else 1, 1)
        whole_number("num_batches", self.num_batches, least, f"`{needy.name}` needs at least {least}.")

    def scorers(
        self,
        readings: Sequence[Reading],
        proxies: Sequence[Proxy],
        *,
        data: TrainingData,
        loss_fn: LossFn | None,
        budget: Budget | None,
    ) -> list[Scorer]:
        """Make the scorer of each repeat.

        Args:
            readings: The batches of each repeat.
            proxies: Proxies, in the order in which they are computed.
            data: The data that they were read from, with the settings of the trainer that candidates see.
            loss_fn: The loss function; None for the candidates' own ``training_step`` or for ``step``.
            budget: Limits on cost that are checked when a candidate is built.
        """
        precision = self.precision or trainers_precision(data.settings.precision, self.accelerator)
        placement = placement_of(self.accelerator, self.devices, precision, self.channels_last)
        scorers = []
        for repeat_idx, one in enumerate(readings):
            num_samples = self.num_samples if one.cut is None else one.cut.scale(self.num_samples)
            check_batches(one.batches, proxies, self.axis, num_samples)
            scorer = Scorer(
                one,
                proxies,
                loss_fn=loss_fn,
                step=self.step,
                axis=self.axis,
                chunk_size=self.chunk_size,
                seed=self.seed + repeat_idx,
                datamodule=data.datamodule,
                budget=budget,
                placement=placement,
                num_samples=self.num_samples,
                settings=data.settings,
            )
            scorers.append(scorer)
        if self.cache is None:
            return scorers
        cache = open_cache(self.cache)
        return [with_cache(scorer, cache) for scorer in scorers]

    def readings(self, data: TrainingData, proxies: Sequence[Proxy], repeats: int = 1) -> list[Reading]:
        """Read the batches of each repeat, after folders that killed processes left behind are removed.

        Args:
            data: The data.
            proxies: Proxies that will be computed; some look at more samples than those of the batches.
            repeats: Number of repeats.
        """
        remove_leftovers()
        return data.read_repeats(
            self.num_batches,
            repeats,
            seed=self.seed,
            batch_size=self.batch_size,
            num_samples=self.num_samples,
            num_samples_transfer=self.num_samples_for(proxies),
        )

    def num_samples_for(self, proxies: Sequence[Proxy]) -> int:
        """Return the number of samples whose features are needed; 0 if no proxy looks at features."""
        return self.num_samples_transfer if any(proxy.needs_features for proxy in proxies) else 0

    @property
    def _executor(self) -> Executor:
        return executor_of(self.executor, self.timeout_s)

    def _progress(self, what: str) -> ProgressReport:
        return ProgressReport(what, callbacks_of(self.callbacks), self.enable_progress_bar)

    def provenance(self, scorer: Scorer) -> dict[str, Any]:
        """Return the facts about scoring that a leaderboard records.

        Args:
            scorer: The scorer of the first repeat.
        """
        placement = scorer.placement
        return {
            "axis": self.axis,
            "num_batches": self.num_batches,
            "batch_size": self.batch_size,
            "num_larger_batches": scorer.reading.num_whole,
            "batch_shapes": [list(tensor.shape) for tensor in tensors_of(scorer.batches[0])],
            "batches_hash": fingerprint_or_none(scorer.batches),
            "reading": reading_facts(scorer.batches),
            "seed": self.seed,
            "loss_fn": name_of(self.loss_fn),
            "step": name_of(self.step),
            "accelerator": placement.accelerator,
            "devices": [str(device) for device in placement.devices],
            "precision": placement.precision,
            "channels_last": self.channels_last,
            "left_out_callbacks": scorer.settings.left_out,
            "versions": versions(),
        }
