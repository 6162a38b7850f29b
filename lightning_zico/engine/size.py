"""Sizes of a module: parameters and multiply-accumulate operations."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_zico._typing import Batch, Step
from lightning_zico.engine.batches import map_tensors
from lightning_zico.engine.chain import Chain
from lightning_zico.engine.hooks import call_hooks
from lightning_zico.engine.layers import Layout
from lightning_zico.engine.meta import META, placing
from lightning_zico.engine.observers import floating_tensor_in
from lightning_zico.engine.operators import counts_nothing, macs_of, most_macs_of
from lightning_zico.engine.outside import outside_put_back
from lightning_zico.engine.samples import Seen, is_settled, known_samples, num_samples
from lightning_zico.engine.scope import preserved, seed_all, unfused
from lightning_zico.engine.stateless import Stateless
from lightning_zico.engine.transforms import is_transforming
from lightning_zico.engine.tree import parameters, submodules
from lightning_zico.engine.watch import ACTIVATIONS, is_in_place
from lightning_zico.errors import NotApplicableError, ZiCoError

# Functions behind `a + b` and `a += b`, and their other spellings.
_SUMS = frozenset({Tensor.add, torch.add, Tensor.add_})

# A count is complete enough if operators without a formula add at most this share to it.
_NEGLIGIBLE = 0.01

# Functions whose first two arguments are compared with each other, row by row.
_LOSSES = frozenset(
    getattr(F, name)
    for name in dir(F)
    if name.endswith(("_loss", "cross_entropy", "kl_div", "_with_logits")) and callable(getattr(F, name))
)
_SEQUENTIAL = (nn.RNNBase, nn.MultiheadAttention)


def count_params(module: nn.Module) -> int:
    """Count the trainable and frozen parameters; tied ones count once.

    Raises:
        NotApplicableError: If one is not initialised, so that its size is not known.

    Example:
        >>> count_params(nn.Linear(3, 2))
        8
    """
    by_name = parameters(module)
    for name, parameter in by_name.items():
        if is_lazy(parameter):
            raise NotApplicableError(f"parameter '{name}' is not initialised, so its size is not known.")
    return sum(parameter.numel() for parameter in by_name.values())


@dataclass(frozen=True)
class MacCount:
    """Multiply-accumulate operations of one forward pass.

    Args:
        total: Operations for the whole batch, as far as they are counted.
        num_samples: Samples in the batch; None if their number is unknown.
        device: Device of the count: ``"meta"``, where nothing is computed, or the module's own device, if the step
            reads values.
        uncounted: Operators without a formula whose operations may matter; ``total`` does not include them.
    """

    total: float
    num_samples: int | None
    device: str
    uncounted: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Operations per sample.

        Raises:
            NotApplicableError: If samples cannot be counted, or operators with much of the work have no formula.
        """
        self.check_complete()
        return round(self.total / known_samples(self.num_samples))

    def check_complete(self) -> None:
        """Check that the total does not miss operations that may be much of the work.

        Raises:
            NotApplicableError: With the names of the operators that have no formula.
        """
        if self.uncounted:
            raise NotApplicableError(
                f"there is no formula for the operations of {', '.join(self.uncounted)}, which may be most of the "
                "work. Register one with `torch.utils.flop_counter.register_flop_formula`."
            )


def count_macs(
    module: nn.Module,
    step: Step,
    batch: Batch,
    muted: Callable[[nn.Module], None] = lambda _: None,
    *,
    stated: int | None = None,
    layout: Callable[[], Layout] | None = None,
    chain: Chain | None = None,
) -> MacCount:
    """Count the multiply-accumulate operations of a module's forward pass, on the meta device if possible.

    Nothing is differentiated. A step that itself differentiates, such as for forces, then fails. It is counted again
    with autograd, including the operations of its own backward passes.

    Args:
        module: Any module; it is put back afterwards.
        step: ``(module, batch, batch_idx) -> loss``.
        batch: As for `gradients.stream_gradients`.
        muted: Called with the module before the count on the meta device, to silence code that cannot run there and
            adds no MACs.
        stated: Samples in the batch, as the user states them; None to count them (`samples.num_samples`).
        layout: Returns the layout of the module, if it is known already; None to compute it.
        chain: Follows the data of the same run, if given.

    Returns:
        The count. All matrix products count, also in attention; biases and norms do not.

    Source:
        The formulas of `torch.utils.flop_counter`, whose numbers are halved, and those of `engine.operators`.
    """
    is_open = stated is None and not is_settled(batch)
    looks = is_open and (num_samples(batch) is None or may_be_time_first(module))

    def count(device: torch.device | None, *, differentiates: bool) -> MacCount:
        placed = placing(device)
        stateless = Stateless(module)
        tensors = {name: placed(tensor) for name, tensor in (stateless.params | stateless.buffers).items()}
        here = device or next(iter(tensors.values()), torch.empty(0)).device
        trainable = [name for name, p in stateless.params.items() if differentiates and p.requires_grad]
        for name in trainable:
            tensors[name].requires_grad_()
        seed_all(0)
        own = map_tensors(placed, batch)
        counter, seen = _Counter(chain), Seen()
        functions = _Functions(seen, chain, skips=device is not None) if device or looks else nullcontext()
        looking = _looking(module, seen, layout() if layout else Layout.of(module)) if looks else nullcontext()
        following = chain.following([tensors[name] for name in stateless.params], own) if chain else nullcontext()
        with torch.set_grad_enabled(differentiates), looking, following, functions, counter:
            if device:
                loss = stateless.loss(step, tensors, own, 0)
            else:
                loss = stateless.run(tensors, lambda: stateless.watched_loss(step, own, 0, None), trainable)
        if chain:
            chain.finish(loss)
        samples = stated or num_samples(batch, seen if looks else None)
        return MacCount(counter.macs, samples, here.type, counter.missing())

    def either(device: torch.device | None) -> MacCount:
        try:
            return count(device, differentiates=False)
        except Exception as error:
            # On the meta device, most steps fail because they read values, with or without autograd.
            if isinstance(error, ZiCoError) or (device and "does not require grad" not in str(error)):
                raise
            reset()
            return count(device, differentiates=True)

    with torch.inference_mode(False), unfused(), preserved(module) as reset:
        muted(module)
        try:
            with outside_put_back(module, step):
                return either(META)
        except Exception:
            # The step reads values, makes tensors on the CPU, or is itself broken, which raises again below.
            reset()
            return either(None)


def may_be_time_first(module: nn.Module) -> bool:
    """Whether parts of a module expect samples along a dimension other than 0, such as without ``batch_first``."""
    return any(
        isinstance(part, nn.RNNCellBase) or (isinstance(part, _SEQUENTIAL) and not part.batch_first)
        for part in submodules(module).values()
    )


@contextmanager
def _looking(module: nn.Module, seen: Seen, layout: Layout) -> Iterator[None]:
    """Note the rows of networks' outputs, and the number of samples in the inputs of recurrent layers and attention.

    The outermost call counts; if its output has no rows, such as a loss, the calls within it count instead.
    """
    calls: Counter[int] = Counter()
    open_calls: list[tuple[int, set[int]]] = [(0, seen.outputs)]  # open modules, with the lengths found within

    def begins(part: nn.Module, args: Any) -> None:
        if id(part) in layout.holding:
            if len(open_calls) == 1:
                calls[id(part)] += 1
            open_calls.append((id(part), set()))

    def called(part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if id(part) in layout.holding:
            within = open_calls.pop()[1]
            tensor = floating_tensor_in(output)
            open_calls[-1][1].update(within if tensor is None else {len(tensor)})
            seen.rows = next(iter(seen.outputs)) if len(seen.outputs) == 1 else None
            seen.calls = max(calls.values())
        if isinstance(part, (*_SEQUENTIAL, nn.RNNCellBase)):
            count = _samples_into(part, next(iter((*args, *kwargs.values())), None))
            if count is not None:
                seen.sequences.add(count)

    with call_hooks(module, called, begins):
        yield


def _samples_into(module: nn.Module, given: Any) -> int | None:
    """Number of samples in the input of a recurrent layer or attention; None if it has no dimension for them."""
    if isinstance(given, PackedSequence):
        return int(given.batch_sizes[0])
    is_cell = isinstance(module, nn.RNNCellBase)
    if not isinstance(given, Tensor) or given.ndim != (2 if is_cell else 3):
        return None
    return given.shape[0] if is_cell or module.batch_first else given.shape[1]


class _Counter(TorchDispatchMode):
    """Counts multiply-accumulate operations, and bounds those of operators without a formula.

    `FlopCounterMode` is not used, because it also counts by module, which takes longer than a forward pass on the meta
    device.
    """

    supports_higher_order_operators = True

    def __init__(self, chain: Chain | None) -> None:
        super().__init__()
        self.macs = 0.0
        self._chain = chain
        self._most: dict[str, float] = {}  # by operator without a formula, a bound on its operations

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):
            return self._higher_order(func, args, kwargs)
        # Outside of inference mode, composite operators such as `linear` are decomposed before they arrive here.
        if torch.is_inference_mode_enabled():
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = self._chain.call(func, args, kwargs) if self._chain else func(*args, **kwargs)
        if counts_nothing(func):
            return out
        macs = macs_of(func, args, kwargs, out)
        if macs is not None:
            self.macs += macs
        elif most := most_macs_of(func, args, kwargs):
            name = f"{func.namespace}.{func._overloadpacket.__name__}"
            self._most[name] = self._most.get(name, 0) + most
        return out

    def missing(self) -> tuple[str, ...]:
        """Name the operators without a formula whose operations may matter."""
        if math.fsum(self._most.values()) <= _NEGLIGIBLE * self.macs:
            return ()
        return tuple(sorted(self._most))

    def _higher_order(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a higher-order operator; for `torch.cond`, the branch with more operations counts."""
        if func is not torch.ops.higher_order.cond:
            self._most[f"higher_order.{func._name}"] = math.inf
            return self._chain.call(func, args, kwargs) if self._chain else func(*args, **kwargs)
        predicate, *branches, operands = args
        before, counts, outs = self.macs, [], []
        for branch in branches:
            self.macs = before
            with self:
                outs.append(branch(*operands))
            counts.append(self.macs)
        self.macs = max(counts)
        is_known = not (isinstance(predicate, Tensor) and predicate.is_meta)
        return outs[0] if is_known and bool(predicate) else outs[1]


def _same_shape(tensor: Tensor) -> Tensor:
    """Make a meta tensor of the same shape and layout; on that device, `torch.empty_like` is Python code and slower."""
    if not tensor.is_contiguous():
        return torch.empty_like(tensor)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=META)


class _Functions(TorchFunctionMode):
    """Notes the lengths that loss functions compare, and skips functions that take most time on the meta device.

    Norms, activations and sums are not run: they return a new tensor of the same shape, which may be changed in place.
    Functions run as usual if their tensors are not on the meta device, such as a number that the model computes. They
    also do if autograd is on, since a backward pass goes through them to operators with MACs, and inside transforms of
    `torch.func`, whose tensors have more than a shape.

    Args:
        seen: Gets the lengths.
        chain: Records the functions that are skipped, if given.
        skips: Whether to skip functions.
    """

    def __init__(self, seen: Seen, chain: Chain | None, *, skips: bool) -> None:
        super().__init__()
        self._seen = seen
        self._chain = chain
        self._skips = skips

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LOSSES:
            self._note([value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)][:2], func)
        if not self._skips or torch.is_grad_enabled() or is_transforming():
            return func(*args, **kwargs)
        if func is F.batch_norm or func in ACTIVATIONS:
            given = args[0] if args else kwargs["input"]
            if given.is_meta:
                return self._pass_by(func, [given], func is not F.batch_norm and is_in_place(func, args, kwargs))
        if func in _SUMS and len(args) == 2 and not kwargs and isinstance(args[0], Tensor) and args[0].is_meta:
            a, b = args
            if isinstance(b, int) and func is Tensor.add_:  # the counter of batches of a norm
                return a
            if isinstance(b, Tensor) and b.is_meta and (a.shape, a.dtype) == (b.shape, b.dtype):
                return self._pass_by(func, args, func is Tensor.add_)
        return func(*args, **kwargs)

    def _pass_by(self, func: Any, given: Sequence[Tensor], in_place: bool) -> Tensor:
        out = given[0] if in_place else _same_shape(given[0])
        if self._chain:
            self._chain.note(func, given, out)
        return out

    def _note(self, compared: list[Tensor], func: Any) -> None:
        lengths = {len(tensor) for tensor in compared if tensor.ndim and not tensor.is_nested}
        if func is F.ctc_loss:
            lengths = {compared[0].shape[1]}  # log-probabilities are `[T, N, K]`
        if len(lengths) == 1:
            self._seen.compared |= lengths
