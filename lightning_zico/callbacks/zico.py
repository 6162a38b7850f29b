"""ZiCo of the weights at hand, during training."""

import math
import time
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_zico._typing import Axis, LossFn
from lightning_zico.bridge import bridged, check_training_step, read_training_batches
from lightning_zico.engine.gradients import ChunkSize, check_chunk_size
from lightning_zico.engine.layers import Patterns
from lightning_zico.engine.moments import Moments
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import UnsupportedModuleError, ZiCoError
from lightning_zico.metrics import ZiCoMetric
from lightning_zico.proxies import ZiCo
from lightning_zico.proxies.zico import zico_layers
from lightning_zico.scoring.scorer import check_axis, check_batches, described


class ZiCoCallback(Callback):
    """Score the current weights at the start of training, and every few epochs if asked, without training noticing.

    The score is logged as ``zico/score`` to every logger and to ``trainer.callback_metrics`` (per sample as
    ``zico_per_sample/score``, since that is another number). Training goes on bit-identical to training without the
    callback: weights, optimiser, normalisation statistics, order of batches, augmentation, dropout. Under DDP the
    gradients of all ranks are merged, and every rank sees the same score.

    A score that cannot be computed is a warning and a record with a reason; training goes on.

    Args:
        num_batches: Batches of the train dataloader to score on, on each rank; at least two.
        every_n_epochs: Score again at the start of every n-th epoch; None for the start of training alone.
        axis: What varies between two gradients: ``"batch"``, the published ZiCo, or ``"sample"``.
        chunk_size: Per sample: how many samples to differentiate at once; None for all of a batch, ``"auto"`` for as
            many as fit the memory.
        std_of: ``"signed"`` as the published code, ``"abs"`` as the paper's equation.
        parameters: Shell patterns of the parameters to score; None for the weights of all layers, ``"published"`` for
            those of linear and convolutional layers only.
        log_layers: Log what each layer adds, too, as ``zico/layers/<parameter>``.
        loss_fn: ``(outputs, targets) -> mean loss`` for batches ``(inputs, targets)``, instead of ``training_step``.
        seed: Of shuffling, augmentation and dropout while scoring.

    Attributes:
        history: One record a scoring: ``epoch``, ``step``, ``score`` (None if it failed), ``layers``, ``seconds``,
            ``error``. It is saved in checkpoints.

    Raises:
        ValueError: If an argument is out of range.

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
        seed: int = 0,
    ) -> None:
        check_axis(axis)
        check_chunk_size(chunk_size)
        least = ZiCo.min_gradients if axis == "batch" else 1
        if num_batches < least:
            raise ValueError(f"`num_batches` is {num_batches}; `zico` needs at least {least}. Raise `num_batches`.")
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"`every_n_epochs` is {every_n_epochs}; needed is a positive number, or None for once.")
        self.num_batches = num_batches
        self.every_n_epochs = every_n_epochs
        self.axis: Axis = axis
        self.chunk_size: ChunkSize = chunk_size
        self.std_of: Literal["signed", "abs"] = std_of
        self.parameters = parameters
        self.log_layers = log_layers
        self.loss_fn = loss_fn
        self.seed = seed
        self.history: list[dict[str, Any]] = []
        self._proxy = ZiCo(std_of, parameters)

    @property
    def state_key(self) -> str:
        """Tells two of these callbacks apart in a checkpoint."""
        return self._generate_state_key(axis=self.axis, std_of=self.std_of, parameters=self.parameters)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what can never be scored, before anything runs.

        Raises:
            UnsupportedModuleError: If the module has no loss to differentiate, or its parameters are spread over
                devices.
        """
        if stage != "fit":
            return
        if not isinstance(trainer, Trainer):
            raise TypeError(
                f"`ZiCoCallback` was given to a {type(trainer).__module__.partition('.')[0]} trainer; needed is "
                "`lightning.pytorch.Trainer`. Or score the model beforehand with `lightning_zico.score`."
            )
        if self.loss_fn is None:
            check_training_step(pl_module)
        strategy = trainer.strategy
        if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy) or isinstance(strategy, DeepSpeedStrategy):
            raise UnsupportedModuleError(
                f"`ZiCoCallback` needs whole parameters on every device; {type(strategy).__name__} splits them. Use "
                "one device or DDP, or score the model beforehand with `lightning_zico.score`."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score, unless a resumed run has its score already."""
        if trainer.global_step == 0 or not self.history:
            self.score(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score, if it is this epoch's turn and was not done at the start of training."""
        due = self.every_n_epochs is not None and trainer.current_epoch % self.every_n_epochs == 0
        if due and (not self.history or self.history[-1]["step"] != trainer.global_step):
            self.score(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Save the history."""
        return {"history": list(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history up again."""
        self.history = list(state_dict["history"])

    def score(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Score the current weights, log the score and keep a record of it.

        Args:
            trainer: In ``fit``, with its train dataloader set up.
            pl_module: The module it trains.

        Returns:
            The record, as in ``history``.
        """
        start = time.perf_counter()
        layers, error = self._layers(trainer, pl_module)
        record: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "score": None if error is not None else math.fsum(layers.values()),
            "layers": layers,
            "seconds": time.perf_counter() - start,
            "error": error,
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

    def _layers(self, trainer: Trainer, pl_module: LightningModule) -> tuple[dict[str, float], str | None]:
        """Compute what each layer adds, over all ranks; or say why not."""
        moments: dict[str, Moments] = {}
        error = None
        try:
            moments = self._moments(trainer, pl_module)
        except Exception as raised:
            error = described(raised)
        if trainer.world_size > 1:
            # Every rank must come to the exchange of the moments or none.
            error = _first_error(trainer.world_size, error)
        if error is not None:
            return {}, error
        try:
            if trainer.world_size == 1:
                return zico_layers(moments), None
            metric = ZiCoMetric.of({name: m.mean for name, m in moments.items()}).to(pl_module.device)
            metric.update(moments)
            return metric.layers(), None
        except ZiCoError as raised:  # on all ranks alike, since all hold the same moments
            return {}, described(raised)

    def _moments(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Moments]:
        batches = read_training_batches(trainer, self.num_batches, seed=self.seed)
        check_batches(batches, [self._proxy], self.axis)
        datamodule = getattr(trainer, "datamodule", None)
        with (
            preserved_rng(self.seed),
            bridged(pl_module, loss_fn=self.loss_fn, datamodule=datamodule, trainer=trainer) as bridge,
        ):
            probe = Probe(
                pl_module,
                bridge.step,
                batches,
                prepare=bridge.prepare,
                axis=self.axis,
                chunk_size=self.chunk_size,
                seed=self.seed,
                muted=bridge.muted,
            )
            return probe.moments(self.parameters, of=self.std_of).by_name


def _first_error(world_size: int, error: str | None) -> str | None:
    """Ask all ranks what went wrong; every rank gets the same answer."""
    errors: list[str | None] = [None] * world_size
    dist.all_gather_object(errors, error)
    return next((f"rank {rank}: {given}" for rank, given in enumerate(errors) if given is not None), None)
