"""ZiCo of the current weights, during training."""

import functools
import math
import sys
import time
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_zico._typing import Axis, LossFn, NumSamples, Step, check_num_samples
from lightning_zico.bridge.data import read_training_batches
from lightning_zico.bridge.modules import Running, bridged
from lightning_zico.bridge.steps import check_training_step
from lightning_zico.engine.gradients import ChunkSize, check_chunk_size
from lightning_zico.engine.layers import Patterns
from lightning_zico.engine.lazy import own_if_lazy
from lightning_zico.engine.moments import Moments
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import UnsupportedModuleError, ZiCoError
from lightning_zico.metrics import ZiCoMetric
from lightning_zico.proxies import ZiCo
from lightning_zico.proxies.zico import zico_layers
from lightning_zico.scoring.arguments import check_loss, whole_number
from lightning_zico.scoring.checks import check_axis, check_batches, check_variation
from lightning_zico.scoring.process_state import preserved_process_state
from lightning_zico.scoring.provenance import notes_on_reading
from lightning_zico.scoring.reasons import describe
from lightning_zico.scoring.scorer import probe_of

_WITH_WHOLE_PARAMETERS = {"SingleDeviceStrategy", "DDPStrategy"}


@functools.cache
def _of_both_packages(cls: type, callback: type) -> type:
    """Create a class that is also a callback of ``pytorch_lightning``, for `isinstance`."""
    return type(cls.__name__, (cls, callback), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})


class ZiCoCallback(Callback):
    """Score the current weights at the start of training, and every few epochs if asked, without changing training.

    The score is logged as ``zico/score`` to every logger and to ``trainer.callback_metrics``; with ``axis="sample"``,
    which is a different number, as ``zico_per_sample/score``. Training is bit-identical to training without the
    callback: weights, optimiser, normalisation statistics, order of batches, augmentation, dropout. Under DDP the
    gradients of all ranks are merged, and every rank sees the same score.

    If a score cannot be computed, there is a warning and a record with the reason, and training continues.

    Args:
        num_batches: Number of batches of the train dataloader to score on, on each rank; at least two.
        every_n_epochs: Score again at the start of every n-th epoch; None to score only at the start of training.
        axis: What varies between two gradients: ``"batch"``, the published ZiCo, or ``"sample"``.
        chunk_size: With ``axis="sample"``: how many samples to differentiate at once; None for a whole batch,
            ``"auto"`` for as many as fit in memory.
        std_of: ``"signed"`` as in the published code, or ``"abs"`` as in the paper's equation.
        parameters: Shell patterns of the parameters to score; None for the weights of all layers, ``"published"`` for
            those of linear and convolutional layers only.
        log_layers: Also log the contribution of each layer, as ``zico/layers/<parameter>``.
        loss_fn: ``(outputs, targets) -> mean loss`` for batches ``(inputs, targets)``, instead of ``training_step``.
        step: ``(module, batch, batch_idx) -> mean loss`` for any batches, instead of ``training_step``: for manual
            optimisation, several optimisers and GANs (see `score`).
        batch_size: The largest number of samples in a batch to score on; None for batches as the train dataloader gives
            them.
        num_samples: Number of samples in a batch, or a function that counts them in what the loader yields; None to
            read it from the batch. It is needed only with ``batch_size`` or ``axis="sample"``.
        seed: The seed of shuffling, augmentation and dropout while scoring.

    Attributes:
        history: One record per scoring: ``epoch``, ``step``, ``score`` (None if it failed), ``layers``, ``seconds``,
            ``error``, and ``note`` if the train dataloader had fewer batches than asked for and was read again, or if
            its batches could not be made smaller. It is saved in checkpoints.

    Raises:
        ValueError: If an argument is out of range, or both ``loss_fn`` and ``step`` are given.
        TypeError: If an argument has the wrong type, such as ``num_batches="2"``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[ZiCoCallback(num_batches=2)])
    """

    def __init__(
        self,
        num_batches: int = 2,
        every_n_epochs: int | None = None,
        *,
        axis: Axis = "batch",
        chunk_size: ChunkSize = None,
        std_of: Literal["signed", "abs"] = "signed",
        parameters: Patterns = None,
        log_layers: bool = False,
        loss_fn: LossFn | nn.Module | None = None,
        step: Step | None = None,
        batch_size: int | None = None,
        num_samples: NumSamples | None = None,
        seed: int = 0,
    ) -> None:
        check_axis(axis)
        check_chunk_size(chunk_size)
        check_loss(loss_fn, step)
        least = ZiCo.min_gradients if axis == "batch" else 1
        if every_n_epochs is not None:
            every_n_epochs = whole_number("every_n_epochs", every_n_epochs, 1, "None scores once.")
        self.num_batches: int = whole_number("num_batches", num_batches, least, f"`zico` needs at least {least}.")
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size, 1, "None takes the loader's batches.")
        self.batch_size = batch_size
        self.every_n_epochs = every_n_epochs
        self.axis: Axis = axis
        self.chunk_size: ChunkSize = chunk_size
        self.std_of: Literal["signed", "abs"] = std_of
        self.parameters = parameters
        self.log_layers = log_layers
        self.loss_fn = loss_fn
        self.step = step
        self.seed: int = whole_number("seed", seed)
        self.num_samples: NumSamples | None = check_num_samples(num_samples)
        self.history: list[dict[str, Any]] = []
        self._note: str | None = None
        self._proxy = ZiCo(std_of, parameters)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The class; if ``pytorch_lightning`` is imported, one that its trainer also accepts as a callback."""
        own: Any = type(self)
        callback = getattr(sys.modules.get("pytorch_lightning"), "Callback", None)
        return own if callback is None else _of_both_packages(own, callback)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle looks a class up by its name, and would find a different class than `__class__`.
        return object.__new__, (type(self),), vars(self)

    @property
    def state_key(self) -> str:
        """Key that distinguishes two of these callbacks in a checkpoint."""
        return self._generate_state_key(axis=self.axis, std_of=self.std_of, parameters=self.parameters)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module can be scored, before training begins.

        Raises:
            UnsupportedModuleError: If the module has no loss to differentiate, or the strategy splits its parameters
                over devices.
        """
        if stage != "fit":
            return
        if self.loss_fn is None and self.step is None:
            check_training_step(pl_module)
        kind = type(trainer.strategy)
        kinds = {base.__name__ for base in kind.__mro__}  # names, since `pytorch_lightning` has its own classes
        if kinds.isdisjoint(_WITH_WHOLE_PARAMETERS) or "DeepSpeedStrategy" in kinds:
            raise UnsupportedModuleError(
                f"`ZiCoCallback` needs whole parameters on every device, but {kind.__name__} splits them. Use one "
                "device or DDP, or score the model before training with `lightning_zico.score`."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score, unless a resumed run already has a score."""
        if trainer.global_step == 0 or not self.history:
            self._score(trainer, pl_module, Running("on_train_start", self))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score if this epoch is due and was not scored at the start of training."""
        due = self.every_n_epochs is not None and trainer.current_epoch % self.every_n_epochs == 0
        if due and (not self.history or self.history[-1]["step"] != trainer.global_step):
            self._score(trainer, pl_module, Running("on_train_epoch_start", self))

    def state_dict(self) -> dict[str, Any]:
        """Save the history."""
        return {"history": list(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the history."""
        self.history = list(state_dict["history"])

    def score(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Score the current weights, log the score and add it to ``history``.

        If you call it yourself, it assumes that all hooks before the next batch except ``on_train_batch_start`` have
        run.

        Args:
            trainer: A trainer inside ``fit``, with its train dataloader set up.
            pl_module: The module that it trains.

        Returns:
            The record, as in ``history``.
        """
        return self._score(trainer, pl_module, None)

    def _score(self, trainer: Trainer, pl_module: LightningModule, running: Running | None) -> dict[str, Any]:
        start = time.perf_counter()
        self._note = None
        layers, error = self._layers(trainer, pl_module, running)
        record: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "score": None if error is not None else math.fsum(layers.values()),
            "layers": layers,
            "seconds": time.perf_counter() - start,
            "error": error,
            **({} if self._note is None else {"note": self._note}),
        }
        self.history.append(record)
        if error is not None:
            rank_zero_warn(f"`ZiCoCallback` has no score for step {record['step']}: {error}")
            return record
        prefix = "zico" if self.axis == "batch" else "zico_per_sample"
        values = {f"{prefix}/score": record["score"]}
        if self.log_layers:
            values |= {f"{prefix}/layers/{name}": value for name, value in record["layers"].items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        return record

    def _layers(
        self, trainer: Trainer, pl_module: LightningModule, running: Running | None
    ) -> tuple[dict[str, float], str | None]:
        """Compute the contribution of each layer over all ranks, or the reason why that fails."""
        moments: dict[str, Moments] = {}
        error = None
        with preserved_process_state():
            try:
                moments = self._moments(trainer, pl_module, running)
            except BaseException as raised:  # also from a step that exits; training will meet that by itself
                error = describe(raised)
        if trainer.world_size > 1:
            # Either every rank exchanges moments, or none does.
            error = _first_error(trainer.world_size, error)
        if error is not None:
            return {}, error
        try:
            if trainer.world_size == 1:
                return zico_layers(moments), None
            metric = ZiCoMetric.of({name: m.mean for name, m in moments.items()}).to(pl_module.device)
            metric.update(moments)
            return metric.layers(), None
        except ZiCoError as raised:  # the same on all ranks, since all hold the same moments
            return {}, describe(raised)

    def _moments(self, trainer: Trainer, pl_module: LightningModule, running: Running | None) -> dict[str, Moments]:
        read = read_training_batches(
            trainer, self.num_batches, seed=self.seed, batch_size=self.batch_size, num_samples=self.num_samples
        )
        batches = read.batches
        num_samples = self.num_samples if read.cut is None else read.cut.scale(self.num_samples)
        self._note = " ".join(notes_on_reading(read, self.batch_size)) or None
        check_batches(batches, [self._proxy], self.axis, num_samples)
        datamodule = getattr(trainer, "datamodule", None)
        module = own_if_lazy(pl_module)
        if module is not pl_module:
            vars(module)["_trainer"] = trainer  # copies do not include it
        with (
            preserved_rng(self.seed),
            bridged(
                module,
                loss_fn=self.loss_fn,
                step=self.step,
                datamodule=datamodule,
                trainer=trainer,
                running=running,
            ) as bridge,
        ):
            probe = probe_of(
                module,
                bridge,
                batches,
                axis=self.axis,
                chunk_size=self.chunk_size,
                seed=self.seed,
                num_samples=num_samples,
            )
            check_variation(probe, self._proxy)
            return probe.moments(self.parameters, of=self.std_of).by_name


def _first_error(world_size: int, error: str | None) -> str | None:
    """Collect the errors of all ranks and return the first; the result is the same on every rank."""
    errors: list[str | None] = [None] * world_size
    dist.all_gather_object(errors, error)
    return next((f"rank {rank}: {given}" for rank, given in enumerate(errors) if given is not None), None)
