"""Probe: one candidate, placed and ready to be measured."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from lightning_zico._registry import unknown_name
from lightning_zico._typing import Axis, Batch, NumSamples, Params, Step
from lightning_zico.engine.batches import copied_batch, tensors_of
from lightning_zico.engine.blocks import block_names
from lightning_zico.engine.contents import contents
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
from lightning_zico.engine.observers import GradientFacts, Observer, Rows, Watch, listens
from lightning_zico.engine.samples import check_cut, first_samples, is_settled, num_samples, stated_samples
from lightning_zico.engine.scope import generator_states, preserved, preserved_rng, seed_all
from lightning_zico.engine.size import MacCount, count_macs, count_params, may_be_time_first
from lightning_zico.engine.stateless import Stateless
from lightning_zico.errors import (
    NoGradientError,
    NotApplicableError,
    SkippedBatchError,
    SurroundingsError,
    UnsupportedModuleError,
    ZiCoError,
    again,
    in_words,
    kept,
)

T = TypeVar("T")
O = TypeVar("O", bound=Observer)  # noqa: E741


class Probe:
    """One candidate on its device, with its batches and its loss; each quantity is computed once, on demand.

    Args:
        module: The candidate. It is never written to.
        step: ``(module, batch, batch_idx) -> mean loss``.
        batches: Batches from the loader.
        prepare: ``(batch, batch_idx) -> batch`` on the module's device; called when a batch's turn comes, so that one
            batch at a time is there.
        axis: What differs between two gradients.
        chunk_size: Per sample: how many at once; see `gradients.stream_gradients`.
        seed: Seed of dropout, of weights and inputs that are drawn, and of other randomness.
        muted: Silences, on a module that will be put back, what cannot run on the meta device.
        blocks: Names of the submodules that are the network's blocks; None to find them, see `blocks.block_names`.
        name: Name of the candidate.
        num_samples: Samples of a batch, or a function that counts them in what the loader gave; None to find out.
        transfer_batches: Batches of the samples whose features are looked at; empty for ``batches``.

    Attributes:
        first_idx: Index of the first batch that training does not pass over, as far as the passes made so far tell.
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
        self.transfer_batches = transfer_batches or batches
        self.axis: Axis = axis
        self.seed = seed
        self._prepare = prepare
        self._chunk_size = chunk_size
        self.muted = muted
        self._blocks = blocks
        self._num_samples = num_samples
        self.first_idx = 0
        self._skipped: dict[int, str] = {}  # why the training step skips batches, by index
        self._first_loss: Tensor | None = None
        self._floating: list[int] | None = None  # positions in the first batch
        self._broke_off = False  # whether a pass did
        self._is_doubted = False  # whether it learns anything
        self._differentiates = False  # whether the step itself does, so that it needs autograd
        self._observed: dict[Observer, Observer | Exception] = {}
        self._computed: dict[Callable[[Probe], object], object] = {}

    @property
    def params(self) -> int:
        """Number of parameters of the module, including frozen ones."""
        return count_params(self.module)

    @property
    def layers(self) -> Params:
        """Trainable weights of the layers by name; do not write to them.

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
            patterns: Patterns of the parameters; None for all layers.

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
        """Compute the fraction of the entries of trainable parameters that belong to layers.

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
    def coverable(self) -> float:
        """Fraction of the entries of trainable parameters that have two or more dimensions: no biases or norms."""
        shapes = self.once(_trainable_shapes).values()
        return sum(shape.numel() for shape in shapes if len(shape) > 1) / sum(shape.numel() for shape in shapes)

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
        """Why the candidate cannot be trained, as far as the passes so far show; None if no reason is known.

        Proxies that look at activations alone would rank a candidate that no optimiser can move.
        """
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            return "untrainable: none of its parameters is trainable. Unfreeze some."
        if (meta := next((n for n, p in self.module.named_parameters() if p.is_meta), None)) is not None:
            return f"untrainable: parameter '{meta}' is on the meta device and has no values. Use a real device."
        if self._first_loss is not None and not bool(self._first_loss.isfinite()):
            return f"untrainable: its loss on the first batch is {self._first_loss.item()}: expected a finite number."
        if self._is_doubted and self.step_error is None and self._computed.get(_plain_steps) is False:
            return "untrainable: its loss depends on none of its parameters, so no optimiser can update them."
        return None

    def doubt(self) -> None:
        """Note that a proxy found nothing to learn, so that `untrainable` runs the step as a trainer would."""
        self._is_doubted = True

    @property
    def step_error(self) -> Exception | None:
        """What the step raises as a trainer would run it; None if it raises nothing, or no pass has broken off.

        A pass also breaks off for reasons of its own, such as an input that requires a gradient. So the step is then
        run plainly. That it asks for what scoring does not have does not say that the module's own training fails.
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
        """The step for proxies that look at the first batch, which they number 0, whichever it is in the loader."""
        if self.first_idx == 0:
            return self._step
        return lambda module, batch, batch_idx: self._step(module, batch, batch_idx + self.first_idx)

    def skip(self, error: SkippedBatchError) -> None:
        """Make the next batch the first one, because the training step skips the current one.

        Raises:
            UnsupportedModuleError: If none is left.
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

    @property
    def macs(self) -> MacCount:
        """Multiply-accumulate operations of a forward pass of the first batch, and its samples."""
        return self.once(_macs)

    @property
    def draws(self) -> bool:
        """Whether the training step, or a hook that prepares a batch, draws from the global generators.

        These are torch's, NumPy's and Python's. Found by running the first batch once. What fails is said to draw: the
        proxy that asked then fails as well, and says how.
        """
        return self.once(_draws)

    @property
    def flow(self) -> DataFlow:
        """Which parameters multiply the first batch, and which of its tensors the network reads; costs a run."""
        return self.once(_flow)

    @property
    def inputs(self) -> frozenset[int]:
        """Positions, in the order of `batches.tensors_of`, of the floating-point tensors that the network reads.

        These alone may be replaced by random numbers: a loss may take no other targets than its own, such as masks.
        Of a batch whose first tensor is the only one of floating point, no run is needed to know.
        """
        return self.once(_inputs)

    @property
    def num_samples(self) -> int | None:
        """Samples of the first batch, as the user states them or `samples.num_samples` counts them; None if unknown.

        Where the batch does not tell, the pass that counts `macs` does.
        """
        return self.once(_count_samples)

    def check_rows(self, rows: Rows, of: str) -> None:
        """Check that the network sees the whole first batch at once.

        Args:
            rows: Rows that the calls saw.
            of: What was called, in the plural.

        Raises:
            NotApplicableError: If no call sees all samples.
        """
        if rows.most < self.once(_longest):  # otherwise there is no need to count the samples, which may cost a pass
            rows.check(self.num_samples, of)

    def samples_of(self, batch: Batch, batch_idx: int) -> int | None:
        """Count the samples of any of the batches, as for `num_samples`.

        Args:
            batch: As a step takes it.
            batch_idx: Its place in the loader.
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

    @property
    def may_be_time_first(self) -> bool:
        """Whether parts of the module count samples along a dimension other than 0."""
        return may_be_time_first(self.module)

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

    def once(self, compute: "Callable[[Probe], T]") -> T:
        """Compute something from this probe once: later calls return the same result, or raise the same error."""
        if compute not in self._computed:
            try:
                self._computed[compute] = self.past_skipped(lambda: compute(self))
            except Exception as error:
                self._computed[compute] = kept(error)
        result = self._computed[compute]
        if isinstance(result, Exception):
            raise again(result)
        return result  # type: ignore[return-value]

    def moments(self, patterns: Patterns = None, of: Literal["signed", "abs"] = "signed") -> GradientMoments:
        """Compute the moments of the gradients over all batches (or samples), in one pass.

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
        """The gradient of the first batch's mean loss for each weight in `layers`; do not write to it.

        Raises:
            NoGradientError: As for `moments`, as are the others.
        """
        return self.observed(FirstGradients()).by_name

    def observed(self, need: O) -> O:
        """Return the observer that equals this one, after it has observed its passes.

        Raises:
            Exception: What went wrong on the way, also if it is asked for again.
        """
        self.observe([need])
        result = self._observed[need]
        if isinstance(result, Exception):
            raise again(result)
        return result  # type: ignore[return-value]

    def observe(self, needs: Iterable[Observer]) -> None:
        """Let observers watch the module, all of them in the same passes; `observed` raises their errors.

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
        fed: str | None = "other weights or inputs than its own",
        is_cut: bool = False,
    ) -> None:
        """Run the step on the first batch or another one, optionally with other weights, while observers watch.

        A step that fails in the loss, after the network has returned its output, does not count as failed.

        Args:
            observers: What goes wrong for one of them is raised.
            tensors: Parameters and buffers, by name; those left out are copies of the module's own.
            batch: On the module's device; None for the first.
            mode: Entered around the step, perhaps several times.
            fed: What the step is run on, in words, for the reason if it fails. None for a trial: it runs once, and what
                the step raises is raised.
            is_cut: Whether the batch has fewer samples than the first, so that a module may be called less often.

        Raises:
            NotApplicableError: If the step fails on this, though not as a trainer runs it.
        """
        given = (tensors or {}, self.first_batch if batch is None else batch, mode)
        if fed is None:
            watch = self.watch(observers)
            if (failure := self._run(watch, *given, as_trained=self._differentiates)) is not None:
                raise again(failure)
        else:
            watch, failure = self._watched_forward(observers, *given, is_cut)
            if failure is not None and not watch.finished:
                raise self._blamed(failure, fed)
        for error in watch.errors.values():
            raise again(error)

    @property
    def stateless(self) -> Stateless:
        """The module as a function of its tensors."""
        return self.once(_stateless)

    def watch(self, observers: Sequence[Observer], whole: Callable[[Sequence[str]], bool] | None = None) -> Watch:
        """Let observers watch a pass on the first batch."""
        time_first = self.num_samples if observers and self.may_be_time_first else None
        return Watch(self.module, observers, self.layout, self._read, whole, time_first)

    def _read(self) -> frozenset[int]:
        return self.flow.inputs

    def layout(self) -> Layout:
        """Positions of layers and other parts in the module."""
        return self.once(_layout)

    @property
    def first_batch(self) -> Batch:
        """A copy of the first batch, on the module's device."""
        with preserved_rng():
            batch = self._prepared(self.first_idx)
        if self._floating is None:
            tensors = enumerate(tensors_of(batch))
            self._floating = [idx for idx, tensor in tensors if tensor.is_floating_point() or tensor.is_complex()]
        return batch

    def transfer_batch(self, batch_idx: int) -> tuple[Batch, int | None]:
        """Return a copy of one of the ``transfer_batches``, on the module's device, and its samples if known."""
        raw = self.transfer_batches[batch_idx]
        with preserved_rng():
            batch = self._prepared(batch_idx, raw)
        return batch, stated_samples(raw, self._num_samples) or num_samples(batch)

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
        """Differentiate the loss of every batch, or of every sample; see `gradients.stream_gradients`.

        Args:
            layers: With respect to what.
            consume: Called with each chunk of gradients, by layer.
            axis: What a gradient is of.
            num_batches: Number of batches; None for all.
            step: Another loss than the candidate's.
            watch: Sees the first batch.
        """
        chosen, own = range(len(self.batches)), self._step
        if num_batches is not None:
            chosen, own = range(self.first_idx, self.first_idx + num_batches), self.step

        def consume_layers(chunk: GradientChunk) -> None:
            consume(GradientChunk(layers.split(chunk.gradients, dim=1), chunk.losses))

        def checked_samples(batch: Batch, batch_idx: int) -> int:
            count = self.samples_of(batch, chosen[batch_idx])
            return check_cut(batch, count, may_be_time_first=self.may_be_time_first)

        try:
            facts = stream_gradients(
                self.module,
                step or own,
                map(self._prepared, chosen),
                consume_layers,
                names=layers.parameters,
                axis=axis,
                chunk_size=self._chunk_size,
                seed=self.seed,
                watch=watch,
                samples_of=checked_samples,
                may_be_time_first=axis == "sample" and self.may_be_time_first,
            )
        except Exception as error:
            if axis == "batch":
                raise
            raise self._blamed(kept(error), "one sample at a time") from None
        if facts.skipped:
            reason = list(facts.skipped.values())[-1]
            if num_batches is not None:
                raise SkippedBatchError(reason, ends_epoch=facts.ended)
            rest = range(max(facts.skipped), len(self.batches)) if facts.ended else ()
            self._skipped |= facts.skipped | dict.fromkeys(rest, reason)
            if len(self._skipped) == len(self.batches):
                raise self._none_left()
        return facts

    def _pass(self, observers: Sequence[Observer], axis: Axis) -> None:
        watch = self.watch(observers)
        learners: dict[Observer, Layers] = {}

        def enrol(observer: Observer) -> None:
            learners[observer] = self.chosen(observer.wanted())

        for observer in list(watch.observers):
            observer.may_repeat = self._chunk_size == "auto"
            if observer.needs_gradients:
                watch.tell(observer, enrol, observer)
        failure: Exception | None = None

        def run() -> None:
            nonlocal watch
            try:
                if learners:
                    self._stream(watch, learners, axis)
                elif watch.observers:
                    errors = watch.errors
                    watch, failed = self._watched_forward(watch.observers, {}, self.first_batch)
                    watch.errors |= errors
                    if failed is not None:
                        raise failed
            except SkippedBatchError:
                watch.restart()
                raise

        try:
            self.past_skipped(run)
        except Exception as error:
            failure = kept(error)
        if failure is not None:
            self._broke_off = True
            observers = self._passed_again(observers, watch, failure, bool(learners), axis)
        if watch.loss is not None:
            self._first_loss = watch.loss
        for observer in observers:
            self._observed[observer] = watch.errors.get(observer, observer)

    def _passed_again(
        self, observers: Sequence[Observer], watch: Watch, failure: Exception, took_gradients: bool, axis: Axis
    ) -> Sequence[Observer]:
        """Let observers watch what is still possible after a pass failed.

        Returns:
            Those that see nothing more.
        """
        demanding = [observer for observer in observers if observer.needs_graph]
        # Some steps fail on inputs that require a gradient, for example because of `.numpy()`.
        apart = (
            [o for o in observers if o not in demanding] if demanding else [o for o in observers if o.needs_gradients]
        )
        others = demanding or [observer for observer in observers if observer not in apart]
        if not watch.finished and apart and others:
            for group in (apart, others):
                self._pass(group, axis)
            return ()
        fed = "inputs that require a gradient" if demanding and not took_gradients else ""
        for observer in observers:
            if observer.needs_gradients or not watch.finished:
                watch.errors.setdefault(observer, self._blamed(failure, fed) if fed else failure)
        return observers

    def _watched_forward(
        self,
        observers: Sequence[Observer],
        tensors: Params,
        batch: Batch,
        mode: AbstractContextManager[object] | None = None,
        is_cut: bool = False,
    ) -> tuple[Watch, Exception | None]:
        """Run the step; where it fails, with autograd as in a trainer, and then up to the network's output alone.

        Returns:
            What watched the last run, and how that failed. What it saw counts if it has finished nevertheless.
        """
        watch = self.watch(observers)
        failure = self._run(watch, tensors, batch, mode, self._differentiates)
        if failure is None or watch.finished or is_out_of_memory(failure) or isinstance(failure, SkippedBatchError):
            return watch, failure
        if not self._differentiates:
            # A step that itself differentiates needs a graph of the parameters, and cannot run under `no_grad`.
            watch = self.watch(observers)
            failure = self._run(watch, tensors, batch, mode, True)
            self._differentiates = failure is None
            if failure is None:
                return watch, None
        whole = self.whole_run(is_cut)
        if whole is not None:
            watch = self.watch(observers, whole)
            failure = self._run(watch, tensors, batch, mode, True)
        return watch, failure

    def _run(
        self,
        watch: Watch,
        tensors: Params,
        batch: Batch,
        mode: AbstractContextManager[object] | None,
        as_trained: bool,
    ) -> Exception | None:
        """Run the step once, and return its error, if any.

        Args:
            watch: Sees it.
            tensors: See `forward`.
            batch: See `forward`.
            mode: See `forward`.
            as_trained: With autograd, and parameters that require a gradient.
        """
        try:
            with torch.inference_mode(False), preserved(self.module):
                stateless = self.stateless
                tensors = stateless.copied_params() | stateless.copied_buffers() | tensors
                trainable = {
                    name
                    for name, parameter in stateless.params.items()
                    if tensors[name].requires_grad or (as_trained and parameter.requires_grad)
                }

                def run() -> None:
                    with torch.set_grad_enabled(watch.needs_graph or as_trained), mode or nullcontext():
                        stateless.watched_loss(self.step, batch, 0, watch)

                seed_all(self.seed)
                stateless.run(tensors, run, trainable)
        except Exception as error:
            return kept(error)
        return None

    def whole_run(self, is_cut: bool) -> Callable[[Sequence[str]], bool] | None:
        """Return a test of whether the network ran to its end, from a run with its own weights on the first batch."""
        try:
            whole = self.once(_plain_calls)
        except Exception:
            return None
        if not is_cut:
            return lambda calls: list(calls) == whole
        return lambda calls: set(calls) == set(whole) and list(calls[-1:]) == whole[-1:]

    def _blamed(self, failure: Exception, fed: str) -> Exception:
        """Return the error to raise if the step fails on a proxy's inputs; errors of normal training stay unchanged."""
        self._broke_off = True
        if isinstance(failure, ZiCoError) or is_out_of_memory(failure) or self.step_error is not None:
            return again(failure)
        return NotApplicableError(f"the step fails on {fed}: {in_words(failure)}")

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

    def _run_plainly(self) -> bool:
        """Run the step on every batch as a trainer does, with a backward pass, and return whether it learns anything.

        Raises:
            UnsupportedModuleError: If training passes over all batches.
        """
        stateless, learns, skipped = self.stateless, False, 0
        trainable = [name for name, parameter in stateless.params.items() if parameter.requires_grad]
        with torch.inference_mode(False), preserved(self.module) as put_back:
            for batch_idx in range(len(self.batches)):
                try:
                    batch = self._prepared(batch_idx)
                    seed_all(self.seed + batch_idx)
                    tensors = stateless.copied_params(), stateless.copied_buffers()
                    stateless.plain_gradients(self._step, *tensors, trainable, batch, batch_idx)
                    learns = True
                except NoGradientError:
                    pass
                except SkippedBatchError as error:
                    self._skipped[batch_idx] = error.reason
                    skipped += 1
                put_back()
        if skipped == len(self.batches):
            raise self._none_left()
        return learns

    def _prepared(self, batch_idx: int, raw: Batch = None) -> Batch:
        # Cloned, because hooks that move or augment a batch may write to it; seeded, so that they augment it in the
        # same way each time. The caller restores the generators.
        with torch.inference_mode(False):
            seed_all(self.seed + batch_idx)
            return self._prepare(copied_batch(self.batches[batch_idx] if raw is None else raw), batch_idx)


def _memory_of(tensor: Tensor) -> int:
    return id(tensor) if tensor.is_nested or tensor.layout != torch.strided else tensor.untyped_storage()._cdata


def _found_blocks(probe: Probe) -> list[str]:
    return block_names(probe.module, probe.structure)


def _inputs(probe: Probe) -> frozenset[int]:
    if probe._floating is None:
        _ = probe.first_batch
    floating = probe._floating or []
    return frozenset(floating) if floating in ([], [0]) else probe.flow.inputs & frozenset(floating)


def _longest(probe: Probe) -> int:
    stated = stated_samples(probe.batches[probe.first_idx], probe._num_samples)
    if stated is not None:
        return stated
    return max((len(tensor) for tensor in tensors_of(probe.first_batch) if tensor.ndim), default=0)


def _trainable_shapes(probe: Probe) -> dict[str, torch.Size]:
    return {
        name: p.shape if p.ndim else torch.Size([1]) for name, p in probe.module.named_parameters() if p.requires_grad
    }


def _layers(probe: Probe) -> Layers:
    layers = known_layers(probe.module, probe.step)
    if not layers.needs_run:
        return layers
    flow = probe.flow
    return layers.with_run(probe.module, flow.products, flow.fan_ins, flow.reached, flow.is_fixed)


@torch.no_grad()
def _weights(probe: Probe) -> Params:
    return probe.structure.split(dict(probe.module.named_parameters()))


def _layout(probe: Probe) -> Layout:
    return Layout.of(probe.module, probe.structure)


def _stateless(probe: Probe) -> Stateless:
    return Stateless(probe.module)


def _draws(probe: Probe) -> bool:
    drawn = False

    @contextmanager
    def watching() -> Iterator[None]:
        nonlocal drawn
        before = generator_states()
        with torch.enable_grad():
            yield
        drawn = generator_states() != before

    try:
        with preserved_rng():
            if contents(probe._prepared(0)) != contents(probe._prepared(1)):
                return True
        probe.forward(mode=watching())
    except Exception:
        return True
    return drawn


def _plain_steps(probe: Probe) -> bool:
    return probe._run_plainly()


def _plain_calls(probe: Probe) -> list[str]:
    watch, failure = Watch(probe.module, (), probe.layout), None
    for as_trained in (False, True):
        watch = Watch(probe.module, (), probe.layout)
        failure = probe._run(watch, {}, probe.first_batch, None, as_trained)
        if failure is None:
            return watch.calls
    assert failure is not None
    raise failure


def _flow(probe: Probe) -> DataFlow:
    return trace_flow(probe.module, probe.step, probe.first_batch, probe.muted)


def _macs(probe: Probe) -> MacCount:
    stated = stated_samples(probe.batches[probe.first_idx], probe._num_samples)
    try:
        return _counted(probe, probe.first_batch, stated)
    except ZiCoError:
        raise
    except Exception:
        probe._run_plainly()  # raises what the step itself raises
        raise NotApplicableError(
            "the operators of the training step cannot be counted while it runs, for example under `torch.compile`."
        ) from None


def _counted(probe: Probe, batch: Batch, stated: int | None = None) -> MacCount:
    return count_macs(probe.module, probe.step, batch, probe.muted, stated=stated, layout=probe.layout)


def _count_samples(probe: Probe) -> int | None:
    return probe.samples_of(probe.first_batch, probe.first_idx)
