"""Gradients of a loss per batch or per sample, streamed to their consumers.

Index conventions:
    N: samples in a batch
    n: gradients in one chunk
    *: shape of one parameter
"""

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812  (its usual name)
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from lightning_zico._typing import Axis, Batch, Buffers, Params, Step, is_count
from lightning_zico.engine.batch_norm import BatchNormMode
from lightning_zico.engine.batches import copied_batch, map_tensors, tensors_of, with_tensors
from lightning_zico.engine.cutting import BY_FIRST_DIMENSION, Cutting, are_first, cut
from lightning_zico.engine.graphs import has_reentrant_checkpoint
from lightning_zico.engine.observers import GradientFacts
from lightning_zico.engine.scope import preserved, seed_all
from lightning_zico.engine.stateless import Stateless, check_depends
from lightning_zico.engine.transforms import real_view
from lightning_zico.engine.watch import Watch
from lightning_zico.errors import SkippedBatchError, ZiCoError

# How the stateless call is differentiated. Per batch: "autograd" (torch.autograd.grad) rather than "grad"
# (torch.func.vjp). The numbers are the same, it works where torch.func does not, and on a network of NAS-Bench-201 it
# took 1.05 times the time of a plain backward pass, and "grad" 1.12 times. Per sample: "vmap" (vmap over
# torch.func.vjp), and if that does not work, "loop" (torch.autograd.grad on one sample after the other).
Backend: TypeAlias = Literal["autograd", "grad", "vmap", "loop"]
_BACKENDS: dict[Axis, tuple[Backend, ...]] = {"batch": ("autograd",), "sample": ("vmap", "loop")}

_END = object()

ChunkSize: TypeAlias = int | Literal["auto"] | None


def check_chunk_size(chunk_size: ChunkSize) -> None:
    """Validate `chunk_size`.

    Raises:
        ValueError: If it is neither None, nor ``"auto"``, nor a positive number.
    """
    if not (chunk_size is None or chunk_size == "auto" or is_count(chunk_size)):
        raise ValueError(f"Invalid chunk_size={chunk_size!r}: expected None, 'auto', or a positive number of samples.")


# Share of the free memory that `chunk_size="auto"` uses. The rest is for workspaces, fragmentation and other
# processes, which are not counted.
_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class GradientChunk:
    """A chunk of gradients, passed to the consumer.

    Args:
        gradients: By parameter name, ``[n, *]``; the consumer may write to them.
        losses: ``[n]``.
    """

    gradients: Params
    losses: Tensor


def stream_gradients(
    module: nn.Module,
    step: Step,
    batches: Iterable[Batch],
    consume: Callable[[GradientChunk], None],
    *,
    names: Sequence[str],
    axis: Axis = "batch",
    chunk_size: ChunkSize = None,
    memory_bytes: int | None = None,
    seed: int = 0,
    backend: Backend | None = None,
    watch: Watch | None = None,
    cutting: Cutting = BY_FIRST_DIMENSION,
) -> GradientFacts:
    """Differentiate the mean loss of every batch, or of every sample, with respect to some parameters.

    The module runs on copies of its parameters and buffers, in the modes its submodules are in, and is always put back
    afterwards. Every batch starts from the same parameters and buffers, and from ``seed`` plus its
    index, so that without dropout gradients do not depend on the order of the batches.

    Per sample, ``vmap`` is tried first. If it does not work (samples in lists or along dimension 1, hooks on
    parameters, parameters that the step reaches other than through the module tree, autograd functions without
    ``setup_context``, checkpointing, a write to a tensor that is neither parameter nor buffer, ``.item()``), plain
    autograd runs on one sample after the other. Both give the same numbers, and the result says which was used.

    Per batch, batch normalisation in training mode is differentiated through the statistics of that batch. Per sample,
    it is differentiated with the statistics of the whole batch held constant (one more forward pass records them),
    since the statistics of a single sample would make it another function. Inside a checkpoint this is not possible
    and raises an error. Dropout draws new numbers for every sample (``randomness="different"``), so per-sample
    gradients depend on ``chunk_size``, but only with dropout.

    Args:
        module: A module on a real device.
        step: ``(module, batch, batch_idx) -> mean loss``.
        batches: Any nests of tensors; each is read once, and cloned before use. Per sample they are cut by
            `samples.cut`.
        consume: Called with each chunk, in order. It may raise an out-of-memory error as long as it has kept nothing.
        names: Parameters to differentiate with respect to. If the loss does not depend on one, its gradient is zero.
        axis: ``"batch"`` for one gradient per batch, ``"sample"`` for one per sample (of the loss of a batch of one).
        chunk_size: Per sample: how many samples to differentiate at once, None for the whole batch, ``"auto"`` for as
            many as fit into ``memory_bytes``, halved whenever the device runs out of memory.
        memory_bytes: Memory that ``"auto"`` may use, in bytes; half of the free memory by default.
        seed: Seed for the first batch.
        backend: Use only this backend and raise its errors; None for plain autograd per batch, and for ``vmap`` with a
            loop as its fallback per sample.
        watch: Observes the forward pass of the first batch that is not skipped; only per batch and with plain autograd.
        cutting: How single samples are cut out of a batch.

    Returns:
        How the gradients were computed. Batches that training skips (`SkippedBatchError`) have none, and training may
        skip all batches.

    Raises:
        UnsupportedBatchError: If ``axis`` is ``"sample"``, the number of samples is not given, and the tensors of a
            batch differ in length.
        NoGradientError: If the loss depends on none of the parameters.
        ZiCoError: If ``axis`` is ``"sample"`` and the statistics of batch normalisation cannot be held constant.
    """
    facts = GradientFacts(axis)
    candidates = _BACKENDS[axis] if backend is None else (backend,)
    # Tensors made in inference mode, as in a validation loop, cannot be differentiated.
    with torch.inference_mode(False), preserved(module) as reset:
        task = _Task(module, step, names, reset, watch, cutting.may_be_time_first)
        if backend is None and any(_has_hooks(task.stateless.params[name]) for name in names):
            candidates = (_BACKENDS[axis][-1],)  # torch.func does not call hooks on parameters
        batches = iter(batches)
        for batch_idx in itertools.count():
            try:
                batch = next(batches, _END)  # a batch may turn out to be skipped when it is prepared
                if batch is _END:
                    break
                task.take(batch, batch_idx, seed + batch_idx)
                if axis == "batch":
                    candidates = _first_that_works(candidates, task.differentiate_batch, consume, facts)
                else:
                    task.num_samples = cutting.samples_of(batch, batch_idx)
                    candidates = _stream_samples(task, candidates, consume, facts, chunk_size, memory_bytes)
            except SkippedBatchError as error:
                facts.skipped[batch_idx] = error.reason
                if watch is not None and not watch.finished:
                    watch.restart()
                if error.ends_epoch:
                    facts.ended = True
                    break
    return facts


def _first_that_works(
    candidates: tuple[Backend, ...],
    differentiate: Callable[[Backend], GradientChunk],
    consume: Callable[[GradientChunk], None],
    facts: GradientFacts,
) -> tuple[Backend, ...]:
    """Pass on a chunk from the first backend that works; return that backend and those after it."""
    for position, backend in enumerate(candidates):
        try:
            chunk = differentiate(backend)
        except Exception as error:
            # Not caused by torch.func, or no backend is left: the module itself fails.
            if isinstance(error, ZiCoError) or is_out_of_memory(error) or backend == candidates[-1]:
                raise
            continue
        if backend not in facts.backends:
            facts.backends.append(backend)
        consume(chunk)
        return candidates[position:]
    raise AssertionError("unreachable: the last backend returns or raises")


def _stream_samples(
    task: "_Task",
    candidates: tuple[Backend, ...],
    consume: Callable[[GradientChunk], None],
    facts: GradientFacts,
    chunk_size: ChunkSize,
    memory_bytes: int | None,
) -> tuple[Backend, ...]:
    total = task.num_samples
    if not are_first(task.batch, total):
        candidates = candidates[-1:]  # `vmap` takes samples along dimension 0
    if task.record_batch_norm():
        facts.batch_norm = "statistics of the whole batch, held constant"
    largest = (
        task.samples_that_fit(total, memory_bytes) if chunk_size == "auto" else min(int(chunk_size or total), total)
    )
    facts.chunk_sizes.append(largest)
    start = 0
    while start < total:
        samples = slice(start, min(start + largest, total))
        try:
            candidates = _first_that_works(candidates, partial(task.differentiate_samples, samples), consume, facts)
        except Exception as error:
            if not (chunk_size == "auto" and is_out_of_memory(error) and largest > 1):
                raise
            largest = facts.chunk_sizes[-1] = largest // 2
            continue
        start = samples.stop
    return candidates


class _Task:
    """One module, and the batch on which it is currently differentiated."""

    def __init__(
        self,
        module: nn.Module,
        step: Step,
        names: Sequence[str],
        reset: Callable[[], None],
        watch: Watch | None,
        may_be_time_first: bool,
    ) -> None:
        self.module = module
        self.step = step
        self.stateless = Stateless(module)
        self.params = self.stateless.copied_params()
        self.scored = {name: self.params[name] for name in names}
        self.reset = reset
        self.watch = watch
        self.may_be_time_first = may_be_time_first
        self.batch: Batch = None
        self.batch_idx = 0
        self.num_samples = 0  # of the batch, if they are cut out of it
        self.seed = 0
        self.batch_norm = _BatchNormConstants()
        self._untouched = True  # no step has run on the module and the copies of its parameters

    def take(self, batch: Batch, batch_idx: int, seed: int) -> None:
        self.batch, self.batch_idx, self.seed = batch, batch_idx, seed

    def fresh(self, batch: Batch, start: int = 0) -> tuple[Buffers, Batch]:
        """Reset module, parameters and seed; return new buffers and a new batch, since code may write to its input."""
        self.put_back()
        # Chunks of one batch draw different numbers, according to their start; the factor is an arbitrary large prime.
        seed_all((self.seed + 1_000_000_007 * start) % 2**63)
        return self.stateless.copied_buffers(), copied_batch(batch)

    def put_back(self) -> None:
        """Undo what a step did to the module and to the copies of its parameters."""
        if self._untouched:
            self._untouched = False
            return
        self.reset()
        with torch.no_grad():
            torch._foreach_copy_(list(self.params.values()), list(self.stateless.params.values()))

    def differentiate_batch(self, backend: Backend) -> GradientChunk:
        buffers, batch = self.fresh(self.batch)
        if backend == "autograd":
            watch = self.watch if self.watch is not None and not self.watch.finished else None
            gradients, loss = self.stateless.plain_gradients(
                self.step, self.params, buffers, self.scored, batch, self.batch_idx, watch
            )
        else:
            gradients, loss = self._pulled_back(self.scored, self._others(), buffers, batch)
        return GradientChunk(_owned({name: g.unsqueeze(0) for name, g in gradients.items()}), loss.unsqueeze(0))

    def cut(self, samples: slice) -> Batch:
        return cut(self.batch, samples, self.num_samples, may_be_time_first=self.may_be_time_first)

    def differentiate_samples(self, samples: slice, backend: Backend) -> GradientChunk:
        if backend == "loop":
            return self._loop_over(samples)
        buffers, batch = self.fresh(self.cut(samples), samples.start)
        # Tensors that are not the same for all samples become batches of one: [n, ...] -> [n, 1, ...].
        are_cut = [tensor.ndim > 0 and len(tensor) == self.num_samples for tensor in tensors_of(self.batch)]
        tensors = [t.unsqueeze(1) if is_cut else t for t, is_cut in zip(tensors_of(batch), are_cut, strict=True)]
        dims = [0 if is_cut else None for is_cut in are_cut]

        def of_one(scored: Params, others: Params, buffers: Buffers, tensors: list[Tensor]) -> tuple[Params, Tensor]:
            with self.batch_norm.replayed():
                return self._pulled_back(scored, others, buffers, with_tensors(batch, tensors))

        over_samples = vmap(of_one, in_dims=(None, None, None, dims), randomness="different")
        # The fused kernels of attention have no batching rule: vmap would run them sample by sample.
        with sdpa_kernel(SDPBackend.MATH):
            gradients, losses = over_samples(self.scored, self._others(), buffers, tensors)
        if losses.requires_grad:
            # The copies require no gradient, so the loss depends on something else that does.
            raise RuntimeError("The loss depends on parameters that do not belong to the module tree.")
        return GradientChunk(_owned(gradients), losses)

    def _loop_over(self, samples: slice) -> GradientChunk:
        stacks: dict[str, list[Tensor]] = {name: [] for name in self.scored}
        losses = []
        buffers, _ = self.fresh(None, samples.start)
        for idx in range(samples.start, samples.stop):
            own_buffers = {name: buffer.clone() for name, buffer in buffers.items()}
            one = map_tensors(torch.clone, self.cut(slice(idx, idx + 1)))
            with self.batch_norm.replayed():
                gradients, loss = self.stateless.plain_gradients(
                    self._replayable_step, self.params, own_buffers, self.scored, one, self.batch_idx
                )
            self.put_back()
            losses.append(loss)
            for name, gradient in gradients.items():
                stacks[name].append(gradient)
        gradients = {name: real_view(torch.stack(stack)) for name, stack in stacks.items()}
        return GradientChunk(gradients, torch.stack(losses))

    def _replayable_step(self, module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.step(module, batch, batch_idx)
        # Modes do not see what such a checkpoint runs again in the backward pass: it would use the sample's statistics.
        if self.batch_norm.statistics and isinstance(loss, Tensor) and has_reentrant_checkpoint(loss):
            raise ZiCoError(
                "Per-sample gradients use the batch normalisation statistics of the whole batch, which a checkpoint "
                'with `use_reentrant=True` loses. Use `axis="batch"`, or switch checkpointing off for scoring.'
            )
        return loss

    def _pulled_back(self, scored: Params, others: Params, buffers: Buffers, batch: Batch) -> tuple[Params, Tensor]:
        """Like `torch.func.grad_and_value`, which always keeps the graph for second derivatives, but without it."""

        def loss_of(scored: Params) -> Tensor:
            # Cloned here, since torch.func forbids a function to write to tensors that it captures.
            own_others = {name: tensor.clone() for name, tensor in others.items()}
            own_buffers = {name: tensor.clone() for name, tensor in buffers.items()}
            trainable = [tensor for name, tensor in own_others.items() if self.stateless.params[name].requires_grad]
            for tensor in (*own_others.values(), *scored.values()):
                tensor._is_param = True  # checked by `isinstance(_, nn.Parameter)`
            with _Trainable(trainable):
                return self._loss(scored, own_others, own_buffers, copied_batch(batch))

        loss, pull_back = vjp(loss_of, scored)  # type: ignore[misc]  # its type has a third part that is not returned
        (gradients,) = pull_back(torch.ones_like(loss), retain_graph=False, create_graph=False)
        return gradients, loss

    def _loss(self, scored: Params, others: Params, buffers: Buffers, batch: Batch) -> Tensor:
        loss = self.stateless.loss(self.step, others | scored | buffers, batch, self.batch_idx)
        check_depends(loss)
        return loss

    def _others(self) -> Params:
        return {name: tensor for name, tensor in self.params.items() if name not in self.scored}

    def record_batch_norm(self) -> bool:
        """Record the statistics of the whole batch in one forward pass; return whether batch normalisation needs them.

        A module without a batch-normalisation layer is not run; if it calls the function itself, `replayed` notices.
        """
        self.batch_norm = _BatchNormConstants()
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.module.modules()):
            buffers, batch = self.fresh(self.batch)
            with torch.no_grad(), self.batch_norm.recorded():
                self.stateless.loss(self.step, self.params | buffers, batch, self.batch_idx)
        return bool(self.batch_norm.statistics)

    def samples_that_fit(self, total: int, memory_bytes: int | None) -> int:
        """Choose a chunk size by the memory that one sample needs for its backward pass and its gradients."""
        device = next(iter(self.scored.values())).device
        budget = memory_bytes if memory_bytes is not None else int(free_memory_bytes(device) * _MEMORY_SHARE)
        buffers, batch = self.fresh(self.cut(slice(0, 1)))
        weights = {tensor.untyped_storage().data_ptr() for tensor in self.params.values()}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with self.batch_norm.replayed(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.stateless.plain_gradients(self.step, self.params, buffers, self.scored, batch, self.batch_idx)
        gradients = sum(tensor.nbytes for tensor in self.scored.values())
        # Twice: the backward pass allocates as much as the forward pass kept, and computing moments as much as the
        # gradients take.
        return max(1, min(total, budget // (2 * (sum(kept.values()) + gradients))))


class _Trainable(TorchFunctionMode):
    """Makes ``requires_grad`` true for tensors that torch.func does not differentiate with respect to.

    A step that reads it sees the same value as in training. A step that then differentiates with respect to such a
    tensor fails, and plain autograd is used instead.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self._ids = frozenset(map(id, tensors))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == _REQUIRES_GRAD and id(args[0]) in self._ids:
            return True
        return func(*args, **(kwargs or {}))


_REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]


def _has_hooks(parameter: nn.Parameter) -> bool:
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def _owned(gradients: Params) -> Params:
    """Copy gradients that share memory with each other or within themselves, as those of the terms of a sum do.

    Gradients of complex weights become pairs of real numbers, ``[*, 2]``: the gradients of both parts.
    """
    seen: set[int] = set()
    owned: Params = {}
    for name, complex_or_real in gradients.items():
        gradient = real_view(complex_or_real)
        expanded = not gradient.is_contiguous() and any(
            stride == 0 and size > 1 for stride, size in zip(gradient.stride(), gradient.shape, strict=True)
        )
        storage = gradient.untyped_storage().data_ptr()
        owned[name] = gradient.clone() if expanded or storage in seen else gradient
        seen.add(storage)
    return owned


class _BatchNormConstants:
    """Statistics of a whole batch, in the order in which batch normalisation used them.

    A mode that sees every call of ``F.batch_norm`` works for layers, subclasses, layers that run twice and layers
    without running statistics alike, and changes no module.
    """

    def __init__(self) -> None:
        self.statistics: list[tuple[Tensor, Tensor]] = []

    def recorded(self) -> TorchFunctionMode:
        def record(arguments: dict[str, Any]) -> Tensor:
            if not arguments.get("training", False):
                return F.batch_norm(**arguments)
            x = arguments["input"].detach()
            dims = [d for d in range(x.ndim) if d != 1]
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            variance, mean = torch.var_mean(wide, dim=dims, correction=0)  # [C]
            # In the dtype of the layer's own tensors, which under autocast is not that of its input.
            own = (arguments.get(name) for name in ("weight", "running_mean", "input"))
            dtype = next(tensor.dtype for tensor in own if tensor is not None)
            self.statistics.append((mean.to(dtype), variance.to(dtype)))
            return F.batch_norm(**arguments)

        return BatchNormMode(record)

    def replayed(self) -> TorchFunctionMode:
        remaining = iter(self.statistics)

        def replay(arguments: dict[str, Any]) -> Tensor:
            if not arguments.get("training", False):
                return F.batch_norm(**arguments)
            mean, variance = next(remaining, (None, None))
            if mean is None:
                raise ZiCoError(
                    "Batch normalisation ran more often on a sample than on the whole batch, so its statistics are not "
                    'known. Use `axis="batch"`, or a `BatchNorm` layer instead of `F.batch_norm`.'
                )
            return F.batch_norm(**arguments | {"running_mean": mean, "running_var": variance, "training": False})

        return BatchNormMode(replay)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, including the CPU, ran out of memory."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    # The allocators of the CPU and of MPS raise a plain RuntimeError.
    signs = ("can't allocate memory", "MPS backend out of memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def free_memory_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    try:
        with open("/proc/meminfo") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        # Not Linux: the physical memory, of which the caller uses a fraction.
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
