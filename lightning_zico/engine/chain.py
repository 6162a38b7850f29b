"""Find where the data of a step narrows to one tensor: calls of submodules that all data passes through."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from lightning_zico._typing import Batch
from lightning_zico.engine.batches import tensors_of
from lightning_zico.engine.dispatched import key_of, looks_at_shapes, name_of, tensors_in, written_by
from lightning_zico.engine.hooks import call_hooks
from lightning_zico.engine.observers import floating_tensor_in
from lightning_zico.engine.tree import submodules

T = TypeVar("T")


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


_ROOT, _WEIGHT, _FRESH = 0, -1, -2

# Adding a parameter to data of the batch does not start the graph; any other operator on the two does.
_SUMS = frozenset({"add", "sub", "add_", "sub_"})


class _Graph:
    """For the memory of each tensor: the operator that last wrote to it, and that operator's dominators.

    An operator dominates another if the data cannot reach the other without passing through it. Every operator is
    added after those whose results it reads, so that its nearest dominator is known at once: the nearest common one of
    these operators (Cooper, Harvey & Kennedy, *A Simple, Fast Dominance Algorithm*, 2001).
    """

    def __init__(self, params: Iterable[Tensor], batch: Iterable[Tensor]) -> None:
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
        """List the operators that all data passes through on its way to an operator, including that operator."""
        found = set()
        while node != _ROOT:
            found.add(node)
            node = self._nearest[node]
        return found

    def note(self, name: str, given: Iterable[StorageWeakRef], changed: Iterable[StorageWeakRef]) -> None:
        """Note an operator, with the memory that it reads and the memory that it changes."""
        read = {self._nodes[key] for key in given if key in self._nodes}
        changed = [key for key in changed if self._nodes.get(key) != _WEIGHT]
        if read and changed:
            self._nodes |= dict.fromkeys(changed, self._node(name, read))

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


class Chain:
    """The calls of submodules in one run of a step, and through which of them all data passes.

    A point of the run through which all data passes is a dominator of the network's output in the graph of operators.
    The graph begins where data of the batch is first multiplied by a parameter or looks one up. So masks, which reach
    every block, do not count as a way around a block, and neither do weights that blocks share.

    If the data cannot be followed, for example through a tensor without memory of its own, following stops and the run
    continues; `calls` is then empty.

    Args:
        module: The module whose submodules are followed.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._names = {id(part): name for name, part in submodules(module).items()}
        self._graph = _Graph((), ())
        self._open = [Call("", nn.Module())]  # the last one is running; the first one is for the caller
        self._ends: dict[Call, tuple[Tensor | None, int | None, int | None]] = {}
        self._output: int | None = None
        self._has_given_up = False

    @contextmanager
    def following(self, params: Iterable[Tensor], batch: Batch) -> Iterator[None]:
        """Follow a run, which reports its operators with `call` and `note`; forget an earlier one.

        Args:
            params: Parameters with which it runs.
            batch: Batch that it runs on.
        """
        self._has_given_up = False
        self._graph = self._attempt(_Graph, params, tensors_of(batch)) or _Graph((), ())
        self._open = [Call("", nn.Module())]
        self._ends.clear()
        self._output = None
        with call_hooks(self._module, self._called, self._begins):
            yield

    @property
    def calls(self) -> list[Call]:
        """The outermost calls of the run, in order; empty if it could not be followed to the end."""
        return [] if self._has_given_up else self._open[0].within

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operator, as a ``TorchDispatchMode`` sees it, and note what it reads and writes."""
        # Looked up before the call, because an operator may write to its arguments.
        given = self._attempt(_keys_in, (args, kwargs) if kwargs else args)
        out = func(*args, **kwargs)
        if given and not looks_at_shapes(func):
            self._attempt(self._note_operator, func, args, kwargs, given, out)
        return out

    def note(self, func: Any, given: Iterable[Tensor], out: Tensor) -> None:
        """Note a function of torch that reads some tensors and writes one without calling an operator."""
        self._attempt(self._note_function, func, given, out)

    def finish(self, loss: Tensor) -> None:
        """Find the links among the calls of the run that was followed.

        Args:
            loss: What the step returned. It is the end of the run if the module itself was not called.
        """
        self._attempt(self._find_links, loss)

    def _attempt(self, act: Callable[..., T], *args: Any) -> T | None:
        """Call a method that follows the run; if it fails, stop following, so that the step itself does not fail."""
        if self._has_given_up:
            return None
        try:
            return act(*args)
        except Exception:
            self._has_given_up = True
            return None

    def _note_operator(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[StorageWeakRef], out: Any
    ) -> None:
        made = [key for key in _keys_in(out) if key not in given]
        self._graph.note(name_of(func), given, [*made, *map(key_of, written_by(func, args, kwargs))])

    def _note_function(self, func: Any, given: Iterable[Tensor], out: Tensor) -> None:
        self._graph.note(func.__name__, map(key_of, given), [key_of(out)])

    # Without this guard, an active function mode would also see what the next two call on tensors, which is slow.

    def _begins(self, module: nn.Module, args: Any) -> None:
        with torch._C.DisableTorchFunction():
            self._attempt(self._begin, module, args)

    def _called(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        with torch._C.DisableTorchFunction():
            self._attempt(self._end, module, args, kwargs, output)

    def _begin(self, module: nn.Module, args: Any) -> None:
        if id(module) in self._names:
            call = Call(self._names[id(module)], module)
            self._open[-1].within.append(call)
            self._open.append(call)
            given = _data_in(args)
            self._ends[call] = given, None if given is None else self._graph.node_of(given), None

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if id(module) not in self._names:
            return
        while (call := self._open.pop()).module is not module:
            pass  # a call that ended with an exception which the module caught
        given, start, _ = self._ends[call]
        if given is None and (given := _data_in(kwargs)) is not None:
            start = self._graph.node_of(given)
        result = _data_in(output)
        end = None if result is None else self._graph.node_of(result)
        if given is not None and result is not None:
            call.keeps_rank = given.ndim == result.ndim
            call.is_identity = start == end and given.shape == result.shape
        call.reads_batch = start is None or start < _ROOT
        self._ends[call] = None, start, end
        if not call.name:
            self._output = end

    def _find_links(self, loss: Tensor) -> None:
        end = self._output
        if end is None:
            end = self._graph.node_of(loss)
        passed = self._graph.passed(end) if end is not None and end > _ROOT else set()
        for call, (_, start, end) in self._ends.items():
            if end is not None and start is not None and (call.reads_batch or start in passed):
                call.is_link = end in passed or self._graph.sums.get(frozenset({start, end})) in passed


def _keys_in(value: Any) -> list[StorageWeakRef]:
    return list(map(key_of, tensors_in(value)))


def _data_in(value: Any) -> Tensor | None:
    """Find the tensor of a call's arguments or output.

    Raises:
        TypeError: If `torch.fx` traces the call: it would record the look as a part of the network.
    """
    if any(isinstance(part, Proxy) for part in tree_leaves(value)):
        raise TypeError("A call that is traced has no data.")
    return floating_tensor_in(value)
