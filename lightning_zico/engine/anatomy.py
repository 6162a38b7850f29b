"""Anatomy: the structure of a candidate, what it costs, and what its batches hold."""

from collections.abc import Collection

import torch
from torch import Tensor

from lightning_zico._registry import unknown_name
from lightning_zico._typing import Batch, Params
from lightning_zico.engine.batches import tensors_of
from lightning_zico.engine.blocks import block_names
from lightning_zico.engine.chain import Call, Chain
from lightning_zico.engine.cutting import first_samples
from lightning_zico.engine.flow import DataFlow, trace_flow
from lightning_zico.engine.layers import (
    Layers,
    Layout,
    Patterns,
    known_layers,
    matching_layers,
    published_layers,
    weight_name,
)
from lightning_zico.engine.observers import Rows
from lightning_zico.engine.samples import is_settled, num_samples, stated_samples
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.engine.size import MacCount, count_macs, count_params, may_be_time_first
from lightning_zico.engine.subject import Subject
from lightning_zico.engine.tree import parameters, submodules
from lightning_zico.errors import (
    NoGradientError,
    NotApplicableError,
    UnsupportedModuleError,
    ZiCoError,
)


class Anatomy(Subject):
    """What a candidate is made of, such as layers, blocks and operations, and the samples and inputs of its batches."""

    @property
    def params(self) -> int:
        """Number of parameters of the module, including frozen ones."""
        return count_params(self.module)

    @property
    def layers(self) -> Params:
        """Trainable weights of the layers by name; do not write to them.

        A layer multiplies its input by a weight. The classes of submodules usually show which ones do; otherwise the
        step is run once, see `flow.trace_flow`.
        """
        return self.once(_weights)

    @property
    def structure(self) -> Layers:
        """Structure of the layers."""
        return self.once(_layers)

    def chosen(self, patterns: Patterns = None) -> Layers:
        """Choose layers, or parameters.

        Args:
            patterns: Patterns of the parameters; None for all layers.

        Raises:
            NoGradientError: If nothing matches.
        """
        if patterns is None:
            layers, wanted = self.structure, "trainable weight of a layer"
        elif patterns == "published":
            layers, wanted = self.once(_published), "trainable weight of a linear or convolutional layer"
        else:
            layers, wanted = matching_layers(self.module, patterns), f"match for {list(patterns)}"
        if not layers:
            raise NoGradientError(
                f"There is no {wanted} among {len(parameters(self.module))} parameters. "
                "Unfreeze some, or choose others with `parameters=`."
            )
        return layers

    def covered(self, patterns: Patterns = None, seen: Collection[str] | None = None) -> float:
        """Compute the fraction of the entries of trainable parameters that belong to layers.

        Args:
            patterns: Which layers, see `chosen`.
            seen: Names of the layers to count; None for all.
        """
        shapes = self.once(_trainable_shapes)
        weights = None if seen is None else {weight_name(name) for name in seen}
        counted = 0
        for name, layer in self.chosen(patterns).items():
            if weights is None or weight_name(name) in weights:
                shape = shapes[layer.parameter]
                rows = shape[0] if layer.rows is None else layer.rows[1] - layer.rows[0]
                counted += shape.numel() // max(shape[0], 1) * rows
        return counted / sum(shape.numel() for shape in shapes.values())

    @property
    def coverable(self) -> float:
        """Fraction of the entries of trainable parameters that have two or more dimensions: no biases or norms."""
        shapes = self.once(_trainable_shapes).values()
        return sum(shape.numel() for shape in shapes if len(shape) > 1) / sum(shape.numel() for shape in shapes)

    @property
    def blocks(self) -> list[str]:
        """Names of the submodules that are the network's blocks, as given or as `blocks.block_names` finds them.

        Raises:
            UnknownNameError: If the module has no submodule of a given name.
        """
        if self._blocks is None:
            return list(self.once(_found_blocks))
        known = submodules(self.module)
        missing = [name for name in self._blocks if name not in known]
        if missing:
            raise unknown_name("submodule", missing[0], list(known))
        return list(self._blocks)

    def layout(self) -> Layout:
        """Positions of layers and other parts in the module."""
        return self.once(_layout)

    @property
    def macs(self) -> MacCount:
        """Multiply-accumulate operations of a forward pass of the first batch, and its samples."""
        return self.once(_macs)

    @property
    def flow(self) -> DataFlow:
        """Which parameters multiply the first batch, and which of its tensors the network reads; costs a run."""
        return self.once(_flow)

    @property
    def inputs(self) -> frozenset[int]:
        """Positions, in the order of `batches.tensors_of`, of the floating-point tensors that the network reads.

        Only these may be replaced by random numbers: a loss may need the batch's own targets, such as masks. If the
        first tensor of a batch is its only floating-point one, no run is needed to find them.
        """
        return self.once(_inputs)

    @property
    def num_samples(self) -> int | None:
        """Samples of the first batch, as the user states them or `samples.num_samples` counts them; None if unknown.

        If the batch does not show it, the pass that counts `macs` does.
        """
        return self.once(_count_samples)

    def check_rows(self, rows: Rows, of: str) -> None:
        """Check that the network sees the whole first batch at once.

        Args:
            rows: Rows that the calls saw.
            of: Name of what was called, in the plural.

        Raises:
            NotApplicableError: If no call sees all samples.
        """
        if rows.most < self.once(_longest):  # otherwise there is no need to count the samples, which may cost a pass
            rows.check(self.num_samples, of)

    def samples_of(self, batch: Batch, batch_idx: int) -> int | None:
        """Count the samples of any of the batches, as for `num_samples`.

        Args:
            batch: As a step takes it.
            batch_idx: Its position in the loader.
        """
        stated = stated_samples(self.batches[batch_idx], self._num_samples)
        if stated is not None:
            return stated
        if is_settled(batch) or not (num_samples(batch) is None or self.may_be_time_first):
            return num_samples(batch)
        try:
            return (self.macs if batch_idx == self.first_idx else _counted(self, batch)).num_samples
        except Exception:
            return None

    def transfer_batch(self, batch_idx: int) -> tuple[Batch, int | None]:
        """Return a copy of one of the ``transfer_batches``, on the module's device, and its samples if known."""
        with preserved_rng():
            batch = self._prepared(batch_idx, self.transfer_batches)
        stated = stated_samples(self.transfer_batches[batch_idx], self._num_samples)
        return batch, num_samples(batch) if stated is None else stated

    @property
    def may_be_time_first(self) -> bool:
        """Whether parts of the module count samples along a dimension other than 0."""
        return self.once(_may_be_time_first)

    def first_samples(self, most: int) -> tuple[Batch, frozenset[int], int | None]:
        """Cut the first batch to some samples.

        Returns:
            The batch, which is whole where it cannot be cut (`samples.first_samples`), which of its tensors are
            `inputs`, and its samples; None if they are unknown.
        """
        batch, count = self.first_batch, self.num_samples
        if count is None:
            return batch, self.inputs, None
        cut = first_samples(batch, most, count, may_be_time_first=self.may_be_time_first)
        if cut is batch:
            return batch, self.inputs, count
        # A list of images has fewer tensors after it is cut; the remaining ones are views of those before.
        kept = {_memory_of(tensor) for idx, tensor in enumerate(tensors_of(batch)) if idx in self.inputs}
        inputs = frozenset(idx for idx, tensor in enumerate(tensors_of(cut)) if _memory_of(tensor) in kept)
        return cut, inputs, most


def _memory_of(tensor: Tensor) -> int:
    return id(tensor) if tensor.is_nested or tensor.layout != torch.strided else tensor.untyped_storage()._cdata


def _may_be_time_first(anatomy: Anatomy) -> bool:
    return may_be_time_first(anatomy.module)


def _found_blocks(anatomy: Anatomy) -> list[str]:
    try:
        calls = anatomy.once(_first_run)[1]
    except UnsupportedModuleError:  # such a step has no loss, or skips all batches
        raise
    except Exception:  # fall back to the classes of submodules
        calls = []
    return block_names(anatomy.module, anatomy.structure, calls)


def _inputs(anatomy: Anatomy) -> frozenset[int]:
    if anatomy._floating is None:
        _ = anatomy.first_batch
    floating = anatomy._floating or []
    return frozenset(floating) if floating in ([], [0]) else anatomy.flow.inputs & frozenset(floating)


def _stated(anatomy: Anatomy) -> int | None:
    return stated_samples(anatomy.batches[anatomy.first_idx], anatomy._num_samples)


def _longest(anatomy: Anatomy) -> int:
    stated = _stated(anatomy)
    if stated is not None:
        return stated
    return max((len(tensor) for tensor in tensors_of(anatomy.first_batch) if tensor.ndim), default=0)


def _trainable_shapes(anatomy: Anatomy) -> dict[str, torch.Size]:
    return {
        name: p.shape if p.ndim else torch.Size([1])
        for name, p in parameters(anatomy.module).items()
        if p.requires_grad
    }


def _layers(anatomy: Anatomy) -> Layers:
    layers = known_layers(anatomy.module, anatomy.step)
    if not layers.needs_run:
        return layers
    flow = anatomy.flow
    return layers.with_run(anatomy.module, flow.products, flow.fan_ins, flow.reached, flow.is_fixed)


def _published(anatomy: Anatomy) -> Layers:
    return published_layers(anatomy.module)


@torch.no_grad()
def _weights(anatomy: Anatomy) -> Params:
    return anatomy.structure.split(dict(parameters(anatomy.module)))


def _layout(anatomy: Anatomy) -> Layout:
    return Layout.of(anatomy.module, anatomy.structure)


def _flow(anatomy: Anatomy) -> DataFlow:
    return trace_flow(anatomy.module, anatomy.step, anatomy.first_batch, anatomy.muted)


def _first_run(anatomy: Anatomy) -> tuple[MacCount, list[Call]]:
    """Run the first batch through the module once, for the count of its operations and for its blocks."""
    chain = Chain(anatomy.module)
    return _counted(anatomy, anatomy.first_batch, _stated(anatomy), chain), chain.calls


def _macs(anatomy: Anatomy) -> MacCount:
    _stated(anatomy)  # raises if the count is invalid
    try:
        return anatomy.once(_first_run)[0]
    except ZiCoError:
        raise
    except Exception:
        anatomy._run_plainly()  # raises what the step itself raises
        raise NotApplicableError(
            "the operators of the training step cannot be counted while it runs, for example under `torch.compile`."
        ) from None


def _counted(anatomy: Anatomy, batch: Batch, stated: int | None = None, chain: Chain | None = None) -> MacCount:
    return count_macs(
        anatomy.module, anatomy.step, batch, anatomy.muted, stated=stated, layout=anatomy.layout, chain=chain
    )


def _count_samples(anatomy: Anatomy) -> int | None:
    return anatomy.samples_of(anatomy.first_batch, anatomy.first_idx)
