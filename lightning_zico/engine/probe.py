"""Probe: one candidate, placed and ready to be measured."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_zico._typing import Axis, Batch, Step
from lightning_zico.engine.batches import map_tensors
from lightning_zico.engine.gradients import ChunkSize, GradientChunk, GradientFacts, stream_gradients
from lightning_zico.engine.moments import Moments
from lightning_zico.engine.size import MacCount, count_macs, count_params, weight_names
from lightning_zico.errors import NoGradientError, NonFiniteError


class GradientMoments(NamedTuple):
    """Moments of the gradients of one pass, by parameter name, and how the gradients came about."""

    by_name: dict[str, Moments]
    facts: GradientFacts


class Probe:
    """One candidate on its device, with its batches and its loss; each quantity is computed when asked for, and once.

    Args:
        module: The candidate. It is never written to.
        step: ``(module, batch, batch_idx) -> mean loss``.
        batches: What the loader gave.
        prepare: ``(batch, batch_idx) -> batch`` on the module's device; called when a batch's turn comes, so that one
            batch at a time is there.
        axis: What varies between two gradients.
        chunk_size: Per sample: how many at once; see `gradients.stream_gradients`.
        seed: Of dropout and other randomness.
        muted: Silences, on a module that will be put back, what cannot run on the meta device.
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
    ) -> None:
        self.module = module
        self.step = step
        self.batches = batches
        self.axis: Axis = axis
        self._prepare = prepare
        self._chunk_size = chunk_size
        self._seed = seed
        self._muted = muted
        self._moments: dict[tuple[tuple[str, ...], str], GradientMoments] = {}
        self._macs: MacCount | None = None

    @property
    def params(self) -> int:
        """Parameters of the module, frozen ones included."""
        return count_params(self.module)

    @property
    def layers(self) -> dict[str, nn.Parameter]:
        """Trainable weights of the linear and convolutional layers, by name."""
        named = dict(self.module.named_parameters())
        return {name: named[name] for name in weight_names(self.module)}

    @property
    def macs(self) -> MacCount:
        """Multiply-accumulate operations of a forward pass, per sample of the first batch."""
        if self._macs is None:
            self._macs = count_macs(self.module, self.step, self._prepared(0), self._muted)
        return self._macs

    def moments(
        self, patterns: Sequence[str] | None = None, of: Literal["signed", "abs"] = "signed"
    ) -> GradientMoments:
        """Take the moments of the gradients over all batches (or samples), in one pass.

        Args:
            patterns: Which parameters; see `size.weight_names`.
            of: The gradient, or its magnitude.

        Raises:
            NoGradientError: If there is no parameter to score, or no gradient reaches any of them.
            NonFiniteError: If a loss or a gradient is NaN or infinite.
        """
        names = weight_names(self.module, patterns)
        if not names:
            wanted = (
                "trainable weight of a linear or convolutional layer" if patterns is None else f"match for {patterns}"
            )
            raise NoGradientError(
                f"There is no {wanted} among {len(list(self.module.parameters()))} parameters. "
                "Unfreeze some, or choose others with `parameters=`."
            )
        key = (tuple(names), of)
        if key not in self._moments:
            self._moments[key] = self._measure_moments(names, of)
        return self._moments[key]

    def _measure_moments(self, names: list[str], of: str) -> GradientMoments:
        merged: dict[str, Moments] = {}
        losses: list[Tensor] = []

        def consume(chunk: GradientChunk) -> None:
            losses.append(chunk.losses.detach())
            # Popped, so that a gradient's memory is free as soon as it is merged.
            news: Iterable[Moments] = (Moments.of(_of(chunk.gradients.pop(name), of)) for name in names)
            if self._chunk_size == "auto":
                news = list(news)  # should memory run out here, nothing has been kept and the chunk can be taken again
            for name, new in zip(names, news, strict=True):
                if name in merged:
                    merged[name].merge(new)
                else:
                    merged[name] = new
                    if new.deviation is None:
                        # Reserved at once, so that what fits with two batches fits with any number.
                        new.deviation = torch.empty_like(new.mean)

        prepared = (self._prepared(i) for i in range(len(self.batches)))
        facts = stream_gradients(
            self.module,
            self.step,
            prepared,
            consume,
            names=names,
            axis=self.axis,
            chunk_size=self._chunk_size,
            seed=self._seed,
        )
        _check(merged, losses)
        return GradientMoments(merged, facts)

    def _prepared(self, batch_idx: int) -> Batch:
        # Cloned, since hooks that move or augment a batch may write to it.
        return self._prepare(map_tensors(torch.clone, self.batches[batch_idx]), batch_idx)


def _of(gradients: Tensor, of: str) -> Tensor:
    return gradients.abs_() if of == "abs" else gradients


def _check(merged: dict[str, Moments], losses: list[Tensor]) -> None:
    """Refuse what is no number and what is no gradient, in two transfers from the device."""
    for idx, loss in enumerate(torch.cat([loss.double() for loss in losses]).tolist()):
        if loss != loss or abs(loss) == float("inf"):
            raise NonFiniteError(
                f"The loss of gradient {idx} is {loss}; needed is a finite number. Look at the input's scale and the "
                "initial weights."
            )
    largest = torch.stack([_largest(moments.mean_abs) for moments in merged.values()]).tolist()
    for name, magnitude in zip(merged, largest, strict=True):
        if magnitude != magnitude or magnitude == float("inf"):
            raise NonFiniteError(
                f"The gradient of '{name}' has NaN or infinite entries though the loss is finite. Look at operations "
                "without a derivative at their input (sqrt(0), norm(0)) and at half precision."
            )
    if not any(largest):
        raise NoGradientError(
            f"The gradient of all {len(merged)} scored parameters is zero: the loss does not depend on them, or dead "
            "activations stop it. Look for `detach()`, `no_grad()` and activations that are always off."
        )


def _largest(magnitudes: Tensor) -> Tensor:
    # NaN if one is; unlike a sum in float64 it copies nothing
    return magnitudes.amax().double() if magnitudes.numel() else magnitudes.new_zeros((), dtype=torch.float64)
