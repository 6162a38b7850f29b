"""Probe: one candidate, placed and ready to be measured."""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from lightning_zico._registry import unknown_name
from lightning_zico._typing import Axis, Batch, Params, Step
from lightning_zico.engine.batches import map_tensors
from lightning_zico.engine.blocks import block_names
from lightning_zico.engine.flow import DataFlow, trace_flow
from lightning_zico.engine.gradients import ChunkSize, GradientChunk, is_out_of_memory, stream_gradients
from lightning_zico.engine.layers import (
    Layers,
    Layout,
    Patterns,
    known_layers,
    matching_layers,
    published_layers,
    weight_name,
)
from lightning_zico.engine.learned import FirstGradients, GradientMoments, MomentsOverBatches
from lightning_zico.engine.observers import GradientFacts, Observer, Watch, listens
from lightning_zico.engine.scope import preserved, preserved_rng, seed_all
from lightning_zico.engine.size import MacCount, count_macs, count_params
from lightning_zico.engine.stateless import Stateless
from lightning_zico.errors import NoGradientError, NotApplicableError, UnsupportedModuleError, ZiCoError, again, kept

T = TypeVar("T")
O = TypeVar("O", bound=Observer)  # noqa: E741


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
        seed: Of dropout, of other weights and inputs that are drawn, and of other randomness.
        muted: Silences, on a module that will be put back, what cannot run on the meta device.
        blocks: Names of the submodules that are the network's blocks; None to find them, see `blocks.block_names`.
        name: Of the candidate.
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
    ) -> None:
        self.name = name
        self.module = module
        self.step = step
        self.batches = batches
        self.axis: Axis = axis
        self.seed = seed
        self._prepare = prepare
        self._chunk_size = chunk_size
        self.muted = muted
        self._blocks = blocks
        self._first_loss: Tensor | None = None
        self._broke_off = False  # whether a pass did
        self._observed: dict[Observer, Observer | Exception] = {}
        self._computed: dict[Callable[[Probe], object], object] = {}

    @property
    def params(self) -> int:
        """Parameters of the module, frozen ones included."""
        return count_params(self.module)

    @property
    def layers(self) -> Params:
        """Trainable weights of the layers, by name; not to be written to.

        A layer is what multiplies its input with a weight. The classes of the module's parts mostly tell; where they do
        not, the step is run once, see `flow.trace_flow`.
        """
        return self.once(_weights)

    @property
    def structure(self) -> Layers:
        """What the layers are made of."""
        return self.once(_layers)

    def chosen(self, patterns: Patterns = None) -> Layers:
        """Choose layers, or parameters.

        Args:
            patterns: Which; None for all layers.

        Raises:
            NoGradientError: If there is none.
        """
        if patterns is None:
            layers, wanted = self.structure, "trainable weight of a layer"
        elif patterns == "published":
            layers, wanted = published_layers(self.module), "trainable weight of a linear or convolutional layer"
        else:
            layers, wanted = matching_layers(self.module, patterns), f"match for {list(patterns)}"
        if not layers:
            raise NoGradientError(
                f"There is no {wanted} among {len(list(self.module.parameters()))} parameters. "
                "Unfreeze some, or choose others with `parameters=`."
            )
        return layers

    def covered(self, patterns: Patterns = None, seen: Collection[str] | None = None) -> float:
        """Compute the share of the trainable parameters, by their entries, that layers are made of.

        Args:
            patterns: Which layers, see `chosen`.
            seen: Names of those among them that count; None for all.
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
    def blocks(self) -> list[str]:
        """Names of the submodules that are the network's blocks, as given or as `blocks.block_names` finds them.

        Raises:
            UnknownNameError: If one that was given is not there.
        """
        if self._blocks is None:
            return list(self.once(_found_blocks))
        known = {name for name, _ in self.module.named_modules()}
        missing = [name for name in self._blocks if name not in known]
        if missing:
            raise unknown_name("submodule", missing[0], list(known))
        return list(self._blocks)

    @property
    def untrainable(self) -> str | None:
        """Why the candidate cannot be trained, as far as the passes made so far tell; None if nothing says so.

        Proxies that look at activations alone would rank a candidate that no optimiser can move.
        """
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            return "untrainable: none of its parameters is trainable. Unfreeze some."
        if self._first_loss is not None and not bool(self._first_loss.isfinite()):
            return f"untrainable: its loss on the first batch is {self._first_loss.item()}; needed is a finite number."
        return None

    @property
    def step_error(self) -> Exception | None:
        """What the step raises as a trainer would run it; None if it raises nothing, or no pass has broken off.

        A pass also breaks off for reasons of its own, such as an input that requires a gradient. So the step is then
        run plainly. That it gives no loss to differentiate does not say that the module's own training fails.
        """
        try:
            if self._broke_off:
                self.once(_plain_steps)
        except UnsupportedModuleError:
            return None
        except Exception as error:
            return error
        return None

    @property
    def macs(self) -> MacCount:
        """Multiply-accumulate operations of a forward pass, per sample of the first batch."""
        return self.once(_macs)

    @property
    def flow(self) -> DataFlow:
        """Which parameters multiply the first batch, and which of its tensors the network reads; costs a run."""
        return self.once(_flow)

    def once(self, compute: "Callable[[Probe], T]") -> T:
        """Compute something from this probe, or give what was computed, or raise what was raised, the first time."""
        if compute not in self._computed:
            try:
                self._computed[compute] = compute(self)
            except Exception as error:
                self._computed[compute] = kept(error)
        result = self._computed[compute]
        if isinstance(result, Exception):
            raise again(result)
        return result  # type: ignore[return-value]

    def moments(self, patterns: Patterns = None, of: Literal["signed", "abs"] = "signed") -> GradientMoments:
        """Take the moments of the gradients over all batches (or samples), in one pass.

        Args:
            patterns: Which parameters.
            of: The gradient, or its magnitude.

        Raises:
            NoGradientError: If there is no parameter to score, or no gradient reaches any of them.
            NonFiniteError: If a loss or a gradient is NaN or infinite.
        """
        hashable = patterns if patterns is None or isinstance(patterns, str) else tuple(patterns)
        return self.observed(MomentsOverBatches(hashable, of)).result

    @property
    def gradients(self) -> Params:
        """The gradient of the first batch's mean loss for each weight in `layers`; not to be written to.

        Raises:
            NoGradientError: As for `moments`, as are the others.
        """
        return self.observed(FirstGradients()).by_name

    def observed(self, need: O) -> O:
        """Give the observer that is equal to this one after it has seen what it wants to see.

        Raises:
            Exception: What went wrong on the way, also if it is asked for again.
        """
        self.observe([need])
        result = self._observed[need]
        if isinstance(result, Exception):
            raise again(result)
        return result  # type: ignore[return-value]

    def observe(self, needs: Iterable[Observer]) -> None:
        """Let observers see the module at work, all of them in the same passes; what goes wrong is told by `observed`.

        Args:
            needs: Those that have seen it already, and equal ones, do not see it again.
        """
        wanted = [replace(need) for need in dict.fromkeys(needs) if need not in self._observed]
        apart = [o for o in wanted if o.all_batches and self.axis == "sample"]
        for group, axis in (([o for o in wanted if o not in apart], "batch"), (apart, "sample")):
            if group:
                self._pass(group, axis)  # type: ignore[arg-type]

    def forward(
        self,
        *observers: Observer,
        tensors: Params | None = None,
        batch: Batch = None,
        mode: AbstractContextManager[object] | None = None,
    ) -> None:
        """Run the step on the first batch, or on another, perhaps with other weights, under the eyes of observers.

        Args:
            observers: What goes wrong for one of them is raised.
            tensors: Parameters and buffers, by name; those left out are copies of the module's own.
            batch: On the module's device; None for the first.
            mode: Entered around the step.
        """
        watch = Watch(self.module, observers, self.layout, self._read)
        self._watched_forward(watch, tensors or {}, self.first_batch if batch is None else batch, mode)
        for error in watch.errors.values():
            raise again(error)

    @property
    def stateless(self) -> Stateless:
        """The module as one that runs on tensors which are handed to it."""
        return self.once(_stateless)

    def _read(self) -> frozenset[int]:
        return self.flow.inputs

    def layout(self) -> Layout:
        """Where things are in the module."""
        return self.once(_layout)

    @property
    def first_batch(self) -> Batch:
        """A copy of the first batch, on the module's device."""
        with preserved_rng():
            return self._prepared(0)

    def stream(
        self,
        layers: Layers,
        consume: Callable[[GradientChunk], None],
        *,
        axis: Axis,
        num_batches: int | None = None,
        step: Step | None = None,
        watch: Watch | None = None,
    ) -> GradientFacts:
        """Differentiate the loss of batch after batch, or of sample after sample; see `gradients.stream_gradients`.

        Args:
            layers: With respect to what.
            consume: Called with each chunk of gradients, by layer.
            axis: What a gradient is of.
            num_batches: How many of the batches; None for all.
            step: Another loss than the candidate's.
            watch: Sees the first batch.
        """
        chosen = range(len(self.batches) if num_batches is None else num_batches)

        def consume_layers(chunk: GradientChunk) -> None:
            consume(GradientChunk(layers.split(chunk.gradients, dim=1), chunk.losses))

        return stream_gradients(
            self.module,
            step or self.step,
            map(self._prepared, chosen),
            consume_layers,
            names=layers.parameters,
            axis=axis,
            chunk_size=self._chunk_size,
            seed=self.seed,
            watch=watch,
        )

    def _pass(self, observers: Sequence[Observer], axis: Axis) -> None:
        watch = Watch(self.module, observers, self.layout, self._read)
        learners: dict[Observer, Layers] = {}

        def enrol(observer: Observer) -> None:
            learners[observer] = self.chosen(observer.wanted())

        for observer in list(watch.observers):
            observer.may_repeat = self._chunk_size == "auto"
            if observer.needs_gradients:
                watch.tell(observer, enrol, observer)
        try:
            if learners:
                self._stream(watch, learners, axis)
            elif watch.observers:
                self._watched_forward(watch, {}, self.first_batch)
        except Exception as error:
            kept(error)
            self._broke_off = True
            for observer in observers:
                if observer.needs_gradients or not watch.finished:
                    watch.errors.setdefault(observer, error)
            undemanding = [observer for observer in observers if not observer.needs_graph]
            if watch.needs_graph and not watch.finished:
                # There are steps that fail on inputs which require a gradient, as `.numpy()` does.
                observers = [observer for observer in observers if observer.needs_graph]
                if not isinstance(error, ZiCoError) and not is_out_of_memory(error) and self.step_error is None:
                    watch.errors = dict.fromkeys(observers, _no_gradients_of_inputs())
                if undemanding:
                    self._pass(undemanding, axis)
        if watch.loss is not None:
            self._first_loss = watch.loss
        for observer in observers:
            self._observed[observer] = watch.errors.get(observer, observer)

    def _watched_forward(
        self, watch: Watch, tensors: Params, batch: Batch, mode: AbstractContextManager[object] | None = None
    ) -> None:
        with torch.inference_mode(False), preserved(self.module):
            stateless = self.stateless
            tensors = stateless.copied_params() | stateless.copied_buffers() | tensors
            seed_all(self.seed)
            with torch.set_grad_enabled(watch.needs_graph), mode or nullcontext():
                stateless.call(tensors, lambda: stateless.watched_loss(self.step, batch, 0, watch))

    def _stream(self, watch: Watch, learners: dict[Observer, Layers], axis: Axis) -> None:
        layers = Layers({name: layer for wanted in learners.values() for name, layer in wanted.items()})
        keeping = [o for o in learners if listens(o, "gradients")]
        seen = 0

        def consume(chunk: GradientChunk) -> None:
            nonlocal seen
            taking = [o for o in keeping if o not in watch.errors and (o.all_batches or not seen)]
            left_to_do = []
            for observer in taking:
                own = {name: chunk.gradients[name] for name in learners[observer]}
                if observer is taking[-1]:
                    chunk.gradients.clear()
                else:
                    own = {name: gradient.clone() for name, gradient in own.items()}
                try:
                    left_to_do.append(observer.gradients(own, chunk.losses.detach()))
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
                    watch.errors[observer] = kept(error)
            for finish in left_to_do:
                if finish is not None:
                    finish()
            seen += 1

        everything = any(observer.all_batches for observer in learners)
        facts = self.stream(
            layers,
            consume,
            axis=axis,
            num_batches=None if everything else 1,
            watch=watch if axis == "batch" else None,
        )
        for observer in learners:
            watch.tell(observer, observer.finished, facts)

    def _run_plainly(self) -> None:
        """Run the step on every batch, with gradients that nobody takes."""
        with torch.inference_mode(False), torch.enable_grad(), preserved(self.module) as put_back:
            for batch_idx in range(len(self.batches)):
                batch = self._prepared(batch_idx)
                leaves = self.stateless.leaves(self.stateless.copied_params())
                seed_all(self.seed + batch_idx)
                self.stateless.loss(self.step, {**leaves, **self.stateless.copied_buffers()}, batch, batch_idx)
                put_back()

    def _prepared(self, batch_idx: int) -> Batch:
        # Cloned, since hooks that move or augment a batch may write to it; seeded, so that they augment it in the same
        # way each time. The generators are put back by the caller.
        with torch.inference_mode(False):
            seed_all(self.seed + batch_idx)
            return self._prepare(map_tensors(torch.clone, self.batches[batch_idx]), batch_idx)


def _no_gradients_of_inputs() -> NotApplicableError:
    return NotApplicableError(
        "the step fails on inputs that require a gradient, and this proxy differentiates with respect to them. Detach "
        "what the step converts to numbers or arrays."
    )


def _found_blocks(probe: Probe) -> list[str]:
    return block_names(probe.module, probe.structure)


def _trainable_shapes(probe: Probe) -> dict[str, torch.Size]:
    return {
        name: p.shape if p.ndim else torch.Size([1]) for name, p in probe.module.named_parameters() if p.requires_grad
    }


def _layers(probe: Probe) -> Layers:
    layers = known_layers(probe.module)
    if not layers.needs_run:
        return layers
    flow = probe.flow
    return layers.with_run(probe.module, flow.products, flow.fan_ins, flow.reached)


@torch.no_grad()
def _weights(probe: Probe) -> Params:
    return probe.structure.split(dict(probe.module.named_parameters()))


def _layout(probe: Probe) -> Layout:
    return Layout.of(probe.module, probe.structure)


def _stateless(probe: Probe) -> Stateless:
    return Stateless(probe.module)


def _plain_steps(probe: Probe) -> None:
    probe._run_plainly()


def _flow(probe: Probe) -> DataFlow:
    return trace_flow(probe.module, probe.step, probe.first_batch, probe.muted)


def _macs(probe: Probe) -> MacCount:
    return count_macs(probe.module, probe.step, probe.first_batch, probe.muted)
