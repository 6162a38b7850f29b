"""Probe: one candidate, placed and ready to be measured."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Literal, TypeVar

import torch

from lightning_zico._typing import Axis, Batch, Params, Step
from lightning_zico.engine.anatomy import Anatomy
from lightning_zico.engine.contents import contents
from lightning_zico.engine.cutting import Cutting, check_cut
from lightning_zico.engine.gradients import GradientChunk, is_out_of_memory, stream_gradients
from lightning_zico.engine.layers import Layers, Patterns
from lightning_zico.engine.learned import FirstGradients, GradientMoments, MomentsOverBatches
from lightning_zico.engine.observers import GradientFacts, Observer, listens
from lightning_zico.engine.scope import generator_states, preserved, preserved_rng, seed_all
from lightning_zico.engine.watch import Watch
from lightning_zico.errors import (
    NotApplicableError,
    SkippedBatchError,
    ZiCoError,
    again,
    in_words,
    without_frames,
)

O = TypeVar("O", bound=Observer)  # noqa: E741


class Probe(Anatomy):
    """One candidate, ready to be measured; each quantity is computed once, on demand.

    Several observers share one pass over the batches. For the arguments, see `subject.Subject`.
    """

    @property
    def draws(self) -> bool:
        """Whether the training step, or a hook that prepares a batch, draws from the global generators.

        These are torch's, NumPy's and Python's. The first batch is run once to find out. A step that fails counts as
        drawing: the proxy that asked then fails as well, with the reason.
        """
        return self.once(_draws)

    def moments(self, patterns: Patterns = None, of: Literal["signed", "abs"] = "signed") -> GradientMoments:
        """Compute the moments of the gradients over all batches (or samples), in one pass.

        Args:
            patterns: Which parameters.
            of: Whether to use the gradient or its magnitude.

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
            NoGradientError: As for `moments`.
            NonFiniteError: As for `moments`.
        """
        return self.observed(FirstGradients()).by_name

    def observed(self, need: O) -> O:
        """Return the observer that equals this one, after it has observed its passes.

        Raises:
            Exception: The error of the pass or of the observer, again at every call.
        """
        self.observe([need])
        result = self._observed[need]
        if isinstance(result, Exception):
            raise again(result)
        return result  # type: ignore[return-value]

    def observe(self, needs: Iterable[Observer]) -> None:
        """Let observers watch the module, all of them in the same passes; `observed` raises their errors.

        Args:
            needs: The observers. Those that have already watched it, and equal ones, do not watch it again.
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
            observers: The observers. If one of them fails, its error is raised.
            tensors: Parameters and buffers, by name; copies of the module's own are used for those left out.
            batch: Batch on the module's device; None for the first.
            mode: Context entered around the step, perhaps several times.
            fed: Description of the step's input, for the reason if it fails. None for a trial: the step runs once and
                its error is raised.
            is_cut: Whether the batch has fewer samples than the first, so that a module may be called less often.

        Raises:
            NotApplicableError: If the step fails here but not when a trainer runs it.
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

    def watch(self, observers: Sequence[Observer], whole: Callable[[Sequence[str]], bool] | None = None) -> Watch:
        """Let observers watch a pass on the first batch."""
        time_first = self.num_samples if observers and self.may_be_time_first else None
        return Watch(self.module, observers, self.layout, self._read, whole, time_first)

    def _read(self) -> frozenset[int]:
        return self.flow.inputs

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
            layers: Layers to differentiate with respect to.
            consume: Called with each chunk of gradients, by layer.
            axis: Whether to differentiate per batch or per sample.
            num_batches: Number of batches; None for all.
            step: Step to use instead of the candidate's; None for the candidate's.
            watch: Watches the first batch.
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
                cutting=Cutting(checked_samples, axis == "sample" and self.may_be_time_first),
            )
        except Exception as error:
            if axis == "batch":
                raise
            raise self._blamed(without_frames(error), "one sample at a time") from None
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
            failure = without_frames(error)
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
        """Let observers watch the passes that are still possible after one failed.

        Returns:
            The observers that watch no further pass.
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
        """Run the step; if it fails, run it with autograd as in a trainer, and then only up to the network's output.

        Returns:
            The watch of the last run, and the error of that run. The observations count if the watch has finished.
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
            watch: Watches the run.
            tensors: See `forward`.
            batch: See `forward`.
            mode: See `forward`.
            as_trained: Whether to run with autograd and parameters that require a gradient.
        """
        try:
            with torch.inference_mode(False), preserved(self.module):
                stateless = self.stateless
                tensors = stateless.copied_params(tensors) | stateless.copied_buffers(tensors) | tensors
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
            return without_frames(error)
        return None

    def whole_run(self, is_cut: bool) -> Callable[[Sequence[str]], bool] | None:
        """Return a check that the network ran to its end, based on a run with its own weights on the first batch."""
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
                    watch.errors[observer] = without_frames(error)
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


def _plain_calls(probe: Probe) -> list[str]:
    watch, failure = Watch(probe.module, (), probe.layout), None
    for as_trained in (False, True):
        watch = Watch(probe.module, (), probe.layout)
        failure = probe._run(watch, {}, probe.first_batch, None, as_trained)
        if failure is None:
            return watch.calls
    assert failure is not None
    raise failure
