"""Subject: one candidate with its batches, and its training step as a trainer runs it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from lightning_zico._typing import Axis, Batch, NumSamples, Step
from lightning_zico.engine.batches import copied_batch, tensors_of
from lightning_zico.engine.gradients import ChunkSize
from lightning_zico.engine.observers import Observer
from lightning_zico.engine.scope import preserved, preserved_rng, seed_all
from lightning_zico.engine.stateless import Stateless
from lightning_zico.engine.tree import parameters
from lightning_zico.errors import (
    NoGradientError,
    SkippedBatchError,
    SurroundingsError,
    UnsupportedModuleError,
    again,
    without_frames,
)

T = TypeVar("T")
S = TypeVar("S", bound="Subject")


class Subject:
    """One candidate on its device, with its batches and its loss.

    Args:
        module: The candidate. It is never written to.
        step: ``(module, batch, batch_idx) -> mean loss``.
        batches: Batches from the loader.
        prepare: ``(batch, batch_idx) -> batch`` on the module's device; called for one batch at a time, so that only
            one is on the device.
        axis: Whether gradients are those of batches or of samples.
        chunk_size: Number of samples to differentiate at once, per sample only; see `gradients.stream_gradients`.
        seed: Seed of dropout, of random weights and inputs, and of other randomness.
        muted: Silences code of a module that cannot run on the meta device; the module is put back later.
        blocks: Names of the submodules that are the network's blocks; None to find them, see `blocks.block_names`.
        name: Name of the candidate.
        num_samples: Samples of a batch, or a function that counts them in a batch of the loader; None to count them.
        transfer_batches: Batches of the samples whose features are used; empty for ``batches``.

    Attributes:
        first_idx: Index of the first batch that training does not skip, as far as the passes so far show.
    """

    def __init__(
        self,
        module: nn.Module,
        step: Step,
        batches: Sequence[Batch],
        *,
        prepare: Callable[[Batch, int], Batch] = lambda batch, _: batch,
        axis: Axis = "batch",
        chunk_size: ChunkSize = None,
        seed: int = 0,
        muted: Callable[[nn.Module], None] = lambda _: None,
        blocks: Sequence[str] | None = None,
        name: str = "",
        num_samples: NumSamples | None = None,
        transfer_batches: Sequence[Batch] = (),
    ) -> None:
        self.name = name
        self.module = module
        self._step = step
        self.batches = batches
        self.transfer_batches: Sequence[Batch] = transfer_batches or batches
        self.axis: Axis = axis
        self.seed = seed
        self._prepare = prepare
        self._chunk_size = chunk_size
        self.muted = muted
        self._blocks = blocks
        self._num_samples = num_samples
        self.first_idx: int = 0
        self._skipped: dict[int, str] = {}  # why the training step skips batches, by index
        self._first_loss: Tensor | None = None
        self._floating: list[int] | None = None  # positions in the first batch
        self._broke_off = False  # whether a pass failed
        self._is_doubted = False  # whether a proxy found nothing to learn
        self._nothing_flows = False  # as shown by proxies that use other weights or inputs
        self._differentiates = False  # whether the step itself differentiates, so that it needs autograd
        self._observed: dict[Observer, Observer | Exception] = {}
        self._computed: dict[Callable[..., object], object] = {}

    @property
    def untrainable(self) -> str | None:
        """Why the candidate cannot be trained, as far as the passes so far show; None if no reason is known.

        Proxies that use only activations would rank a candidate that no optimiser can train.
        """
        own = parameters(self.module)
        if not any(parameter.requires_grad for parameter in own.values()):
            return "untrainable: none of its parameters is trainable. Unfreeze some."
        if (meta := next((name for name, parameter in own.items() if parameter.is_meta), None)) is not None:
            return f"untrainable: parameter '{meta}' is on the meta device and has no values. Use a real device."
        if self._first_loss is not None and not bool(self._first_loss.isfinite()):
            return f"untrainable: its loss on the first batch is {self._first_loss.item()}: expected a finite number."
        if self._is_doubted and self.step_error is None:
            reason = self._computed.get(_plain_steps)
            return f"untrainable: {reason}" if isinstance(reason, str) else None
        return None

    def doubt(self, *, nothing_flows: bool = False) -> None:
        """Note that a proxy found nothing to learn, so that `untrainable` runs the step as a trainer would.

        Args:
            nothing_flows: Whether nothing flowed through the network either, regardless of its loss.
        """
        self._is_doubted = True
        self._nothing_flows |= nothing_flows

    @property
    def step_error(self) -> Exception | None:
        """Error of the step when it runs as in a trainer; None if there is none, or if no pass has failed.

        A pass may also fail for other reasons, such as an input that requires a gradient, so the step is then run
        plainly. A step that asks for something that scoring does not provide may still work in training.
        """
        try:
            if self._broke_off or self._is_doubted:
                self.once(_plain_steps)
        except SurroundingsError:
            return None
        except Exception as error:
            return error
        return None

    @property
    def skipped_batches(self) -> list[int]:
        """Indices of the batches that the training step skips, as far as the passes so far show."""
        return sorted(self._skipped)

    @property
    def step(self) -> Step:
        """The step for proxies that use the first batch, whose index is 0 for them, wherever it is in the loader."""
        if self.first_idx == 0:
            return self._step
        return lambda module, batch, batch_idx: self._step(module, batch, batch_idx + self.first_idx)

    def skip(self, error: SkippedBatchError) -> None:
        """Make the next batch the first one, because the training step skips the current one.

        Raises:
            UnsupportedModuleError: If no batch is left.
        """
        rest = range(self.first_idx, len(self.batches) if error.ends_epoch else self.first_idx + 1)
        self._skipped |= dict.fromkeys(rest, error.reason)
        self.first_idx = rest.stop
        if self.first_idx >= len(self.batches):
            self.first_idx = 0
            raise self._none_left()

    def past_skipped(self, run: Callable[[], T]) -> T:
        """Run a function on the first batch that the training step does not skip."""
        while True:
            try:
                return run()
            except SkippedBatchError as error:
                self.skip(error)

    def _none_left(self) -> UnsupportedModuleError:
        reasons = "; ".join(dict.fromkeys(self._skipped[idx] for idx in self.skipped_batches))
        return UnsupportedModuleError(
            f"The training step skips all {len(self.batches)} batches, so there is no loss: {reasons}. If the module "
            "has no loss of its own, pass `loss_fn=`."
        )

    def once(self: S, compute: Callable[[S], T]) -> T:
        """Compute something from this probe once: later calls return the same result, or raise the same error."""
        if compute not in self._computed:
            try:
                self._computed[compute] = self.past_skipped(lambda: compute(self))
            except Exception as error:
                self._computed[compute] = without_frames(error)
        result = self._computed[compute]
        if isinstance(result, Exception):
            raise again(result)
        return result  # type: ignore[return-value]

    @property
    def stateless(self) -> Stateless:
        """Stateless version of the module."""
        return self.once(_stateless)

    @property
    def first_batch(self) -> Batch:
        """A copy of the first batch, on the module's device."""
        with preserved_rng():
            batch = self._prepared(self.first_idx)
        if self._floating is None:
            tensors = enumerate(tensors_of(batch))
            self._floating = [idx for idx, tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
        return batch

    def _run_plainly(self) -> str | None:
        """Run the step on every batch as a trainer does, with a backward pass.

        Returns:
            Why the candidate learns nothing; None if it learns. A network in which only biases have a gradient learns
            at most the frequencies of the labels. If no parameter has one, the loss may only be flat at first, such as
            a hinge loss or a warm-up from zero, unless a proxy found that nothing flows.

        Raises:
            UnsupportedModuleError: If training skips all batches.
        """
        stateless, skipped, learns, is_flat = self.stateless, 0, False, False
        reason = "its loss depends on none of its parameters, so no optimiser can update them."
        trainable = [name for name, parameter in stateless.params.items() if parameter.requires_grad]
        with torch.inference_mode(False), preserved(self.module) as put_back:
            for batch_idx in range(len(self.batches)):
                try:
                    batch = self._prepared(batch_idx)
                    seed_all(self.seed + batch_idx)
                    tensors = stateless.copied_params(), stateless.copied_buffers()
                    gradients, _ = stateless.plain_gradients(self._step, *tensors, trainable, batch, batch_idx)
                    moving = {name for name, gradient in gradients.items() if float(gradient.abs().sum()) != 0}
                    weights = {name for name, gradient in gradients.items() if not _is_bias(name, gradient)}
                    learns |= not weights or not moving.isdisjoint(weights)
                    is_flat |= not moving and not self._nothing_flows
                    reason = "the gradients of all its weights are zero, so nothing flows from its inputs to its loss."
                except NoGradientError:
                    pass
                except SkippedBatchError as error:
                    self._skipped[batch_idx] = error.reason
                    skipped += 1
                put_back()
        if skipped == len(self.batches):
            raise self._none_left()
        return None if learns or is_flat else reason

    def _prepared(self, batch_idx: int, of: Sequence[Batch] | None = None) -> Batch:
        # Cloned, because hooks that move or augment a batch may write to it; seeded, so that they augment it in the
        # same way each time. The caller restores the generators.
        with torch.inference_mode(False):
            seed_all(self.seed + batch_idx)
            return self._prepare(copied_batch((self.batches if of is None else of)[batch_idx]), batch_idx)


def _is_bias(name: str, gradient: Tensor) -> bool:
    return gradient.ndim == 1 and "bias" in name.rpartition(".")[2]


def _stateless(subject: Subject) -> Stateless:
    return Stateless(subject.module)


def _plain_steps(subject: Subject) -> str | None:
    return subject._run_plainly()
