"""Where the data of a step narrows to one tensor: the calls of submodules that all of it passes through."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_zico._typing import Batch, Step
from lightning_zico.engine.batches import map_tensors, tensors_of
from lightning_zico.engine.dispatched import SHAPED, SHAPED_RANDOM, key_of, name_of, tensors_in, written_by
from lightning_zico.engine.meta import META, placing, slow_input
from lightning_zico.engine.observers import floating_tensor_in
from lightning_zico.engine.outside import outside_put_back
from lightning_zico.engine.scope import preserved, seed_all, unfused
from lightning_zico.engine.stateless import Stateless
from lightning_zico.engine.tree import submodules
from lightning_zico.engine.watch import is_in_place
from lightning_zico.errors import SkippedBatchError


@dataclass(eq=False)
class Call:
    """One call of a submodule in a run.

    Args:
        name: Name of the submodule, the first one if it has several.
        module: The submodule.
        within: Calls that it made, in order.
        reads_batch: Whether its input comes from the batch without having met a parameter.
        is_link: Whether it has one input and one output, and all data passes through both. An output that is only added
            to the input counts, as in ``x = x + block(x)``.
        is_identity: Whether its output is its input.
        keeps_rank: Whether the output has as many dimensions as the input.
    """

    name: str
    module: nn.Module
    within: "list[Call]" = field(default_factory=list)
    reads_batch: bool = False
    is_link: bool = False
    is_identity: bool = False
    keeps_rank: bool = False

    def __iter__(self) -> "Iterator[Call]":
        """Yield the call and all calls within it, in the order in which they begin."""
        yield self
        for call in self.within:
            yield from call


def trace_calls(
    module: nn.Module, step: Step, batch: Batch, muted: Callable[[nn.Module], None] = lambda _: None
) -> list[Call]:
    """Run a step once and follow its data, on the meta device where that is possible.

    A point of the run through which all data passes is a dominator of the network's output in the graph of operators.
    The graph begins where data of the batch is first multiplied with a parameter or looks one up, so that masks, which
    reach every block, open no way around it. Neither do weights that blocks share.

    Args:
        module: Put back afterwards.
        step: ``(module, batch, batch_idx) -> loss``. Autograd is off, unless the step fails without it.
        batch: Some samples.
        muted: Given the module before the run, to silence what cannot run on the meta device.

    Returns:
        The outermost calls; none if the step fails.
    """

    def trace(device: torch.device | None, *, differentiates: bool) -> list[Call]:
        placed = placing(device)
        stateless = Stateless(module)
        tensors = {name: placed(tensor) for name, tensor in (stateless.params | stateless.buffers).items()}
        trainable = [name for name, p in stateless.params.items() if differentiates and p.requires_grad]
        own_batch = map_tensors(placed, batch)
        seed_all(0)
        graph = _Graph([tensors[name] for name in stateless.params], tensors_of(own_batch))
        calls = _Calls({id(part): name for name, part in submodules(module).items()}, graph)

        def run() -> Any:
            with torch.set_grad_enabled(differentiates), calls, _Shortcuts(), graph:
                return step(module, own_batch, 0)

        # The module's own parameters cannot be on another device.
        loss = stateless.call(tensors, run) if device else stateless.run(tensors, run, trainable)
        return calls.finished(loss)

    with torch.inference_mode(False), unfused(), preserved(module) as reset:
        muted(module)
        for device, differentiates in ((META, False), (None, False), (None, True)):
            try:
                with outside_put_back(module, step):
                    return trace(device, differentiates=differentiates)
            except SkippedBatchError:
                raise
            except Exception:  # a step that looks at values, or makes tensors on the CPU; or one that fails anyway
                reset()
        return []


_ROOT, _WEIGHT, _FRESH = 0, -1, -2

# Additions to a parameter or to data from the batch; anything else makes data of the two.
_SUMS = frozenset({"add", "sub", "add_", "sub_"})


class _Graph(TorchDispatchMode):
    """Keeps, for the memory of each tensor, the operator that last wrote to it, and the operator's dominators.

    An operator dominates another if the data cannot reach the other without passing through it. Every operator is
    added after those whose results it reads, so that its nearest dominator is known at once: the nearest common one of
    these operators (Cooper, Harvey & Kennedy, *A Simple, Fast Dominance Algorithm*, 2001).
    """

    supports_higher_order_operators = True

    def __init__(self, params: Any, batch: Sequence[Tensor]) -> None:
        super().__init__()
        # A weak reference keeps the address of freed memory from being used again.
        self._nodes: dict[StorageWeakRef, int] = {}
        self._nodes |= {key_of(tensor): _FRESH for tensor in batch}
        self._nodes |= {key_of(tensor): _WEIGHT for tensor in params}
        self._nearest = [_ROOT]
        self._depths = [0]
        self.sums: dict[frozenset[int], int] = {}

    def node_of(self, tensor: Tensor) -> int | None:
        return self._nodes.get(key_of(tensor))

    def passed(self, node: int) -> set[int]:
        """List the operators that all data passes through on its way to one, which is among them."""
        found = set()
        while node != _ROOT:
            found.add(node)
            node = self._nearest[node]
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Looked up first: an operator may write to what it is given.
        given = [key_of(tensor) for tensor in (*tensors_in(args), *tensors_in(kwargs))]
        read = {self._nodes[key] for key in given if key in self._nodes}
        out = func(*args, **kwargs)
        changed = [key_of(tensor) for tensor in tensors_in(out)]
        changed = [key for key in changed if key not in given]
        changed += [key for key in map(key_of, written_by(func, args, kwargs)) if self._nodes.get(key) != _WEIGHT]
        name = name_of(func)
        if read and changed and not name.startswith((*SHAPED, *SHAPED_RANDOM)):
            self._nodes |= dict.fromkeys(changed, self._node(name, read))
        return out

    def _node(self, name: str, read: set[int]) -> int:
        data = {node for node in read if node > _ROOT}
        if not data:
            if len(read) == 1:
                return next(iter(read))
            if name in _SUMS:
                return _FRESH
        nearest = list(data) or [_ROOT]
        while len(nearest) > 1:
            a, b = nearest.pop(), nearest.pop()
            while a != b:
                if self._depths[a] < self._depths[b]:
                    a, b = b, a
                a = self._nearest[a]
            nearest.append(a)
        node = len(self._nearest)
        self._nearest.append(nearest[0])
        self._depths.append(self._depths[nearest[0]] + 1)
        if name in _SUMS and len(data) == 2:
            self.sums[frozenset(data)] = node
        return node


class _Shortcuts(TorchFunctionMode):
    """Replaces norms and activations, which are slow on the meta device, by an operator that reads the same.

    Activations in place, and what may be differentiated, are left alone.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = slow_input(func, args, kwargs)
        if given is not None and (func is F.batch_norm or not is_in_place(func, args, kwargs)):
            return given.neg()
        return func(*args, **kwargs)


class _Calls:
    """Keeps the calls of submodules while its context is open."""

    def __init__(self, names: dict[int, str], graph: _Graph) -> None:
        self._names = names
        self._graph = graph
        self._open: list[Call] = [Call("", nn.Module())]
        self._ends: dict[Call, tuple[Tensor | None, int | None, int | None]] = {}
        self._output: int | None = None

    def __enter__(self) -> None:
        self._handles = (
            register_module_forward_pre_hook(self._begins),
            register_module_forward_hook(self._called, with_kwargs=True),
        )

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begins(self, module: nn.Module, args: Any) -> None:
        if id(module) in self._names:
            call = Call(self._names[id(module)], module)
            self._open[-1].within.append(call)
            self._open.append(call)
            given = floating_tensor_in(args)
            self._ends[call] = given, None if given is None else self._graph.node_of(given), None

    def _called(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if id(module) not in self._names:
            return
        while (call := self._open.pop()).module is not module:
            pass  # a call that ended with an exception which the module caught
        given, start, _ = self._ends[call]
        if given is None and (given := floating_tensor_in(kwargs)) is not None:
            start = self._graph.node_of(given)
        result = floating_tensor_in(output)
        end = None if result is None else self._graph.node_of(result)
        if given is not None and result is not None:
            call.keeps_rank = given.ndim == result.ndim
            call.is_identity = start == end and given.shape == result.shape
        call.reads_batch = start is None or start < _ROOT
        self._ends[call] = None, start, end
        if not call.name:
            self._output = end

    def finished(self, loss: Any) -> list[Call]:
        """Find the links among the calls, and return the outermost ones."""
        end = self._output
        if end is None and isinstance(loss, Tensor):
            end = self._graph.node_of(loss)
        passed = self._graph.passed(end) if end is not None and end > _ROOT else set()
        for call, (_, start, end) in self._ends.items():
            if end is not None and start is not None and (call.reads_batch or start in passed):
                call.is_link = end in passed or self._graph.sums.get(frozenset({start, end})) in passed
        return self._open[0].within
