"""Watch: report a forward pass to observers, whether a module, function or method makes a call.

Index conventions:
    N: samples in a batch
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from lightning_zico._typing import Batch
from lightning_zico.engine.batches import copied_batch, tensors_of
from lightning_zico.engine.graphs import graph_of
from lightning_zico.engine.hooks import call_hooks
from lightning_zico.engine.layers import Layout
from lightning_zico.engine.observers import Observer, floating_tensor_in, listens, samples_first
from lightning_zico.engine.scope import unfused
from lightning_zico.engine.transforms import is_transforming, outside_transforms, real_view, unwrapped
from lightning_zico.errors import NotApplicableError, without_frames

# Functions that are applied to every number of a layer's output, including gates (sigmoid).
_NAMES = (
    *(
        "relu",
        "relu_",
        "relu6",
        "leaky_relu",
        "leaky_relu_",
        "prelu",
        "rrelu",
        "rrelu_",
        "elu",
        "elu_",
        "selu",
        "selu_",
    ),
    *("celu", "celu_", "gelu", "silu", "mish", "hardswish", "hardtanh", "hardtanh_", "softplus", "softsign"),
    *("tanh", "tanh_", "sigmoid", "sigmoid_", "hardsigmoid", "logsigmoid"),
)
ACTIVATIONS = frozenset(
    getattr(namespace, name) for namespace in (F, torch, Tensor) for name in _NAMES if hasattr(namespace, name)
)


# The events of a forward pass that an observer can watch.
_EVENTS = ("activation", "batch_norm", "module_call", "forwarded")
_NO_LAYOUT = Layout({}, {}, frozenset())


def _uncompiled(module: nn.Module) -> Any:
    """Run compiled submodules eagerly, because compiled code does not call hooks that were added later.

    The setting is that of the process: another thread that calls compiled code meanwhile runs it eagerly as well.
    """
    set_stance = getattr(torch.compiler, "set_stance", None)  # since torch 2.6
    has_compiled = any("_orig_mod" in part._modules or part._compiled_call_impl for part in module.modules())
    return set_stance("force_eager") if set_stance and has_compiled else nullcontext()


class Watch:
    """Reports one forward pass to observers. An observer that fails gets no more events; the others continue.

    The network's output is the output of the last call to end of a submodule with trainable weights of layers. It is
    the module's own if the step calls the module. If an observer differentiates, calls under ``no_grad`` (such as those
    of a branch that is not trained) are ignored.

    Args:
        module: Any module; the caller puts it back.
        observers: The observers, which are started here.
        layout: Returns the layout of the module; called only if an observer needs it. None to compute the layout.
        read: Returns the positions of the tensors of a batch that the network reads; called only if a batch has
            several floating-point tensors and an observer differentiates with respect to them. None for all.
        is_whole: Takes the names of `calls` and returns whether the network has run to its end. If the step then fails
            in its loss, observers still see the end of the forward pass. None if that is unknown.
        time_first: Number of samples if parts of the module have time steps before samples; observers then see
            activations and outputs with samples first.

    Attributes:
        calls: Names of the submodules with trainable weights of layers whose calls have ended, in this order.
        broke_off: Whether the body of `watching` failed.
    """

    def __init__(
        self,
        module: nn.Module,
        observers: Sequence[Observer],
        layout: Callable[[], Layout] | None = None,
        read: Callable[[], Set[int]] | None = None,
        is_whole: Callable[[Sequence[str]], bool] | None = None,
        time_first: int | None = None,
    ) -> None:
        self.observers: list[Observer] = list(observers)
        self._read = read
        self.errors: dict[Observer, Exception] = {}
        self.inputs: list[Tensor] = []
        self.calls: list[str] = []
        self.broke_off: bool = False
        self.finished: bool = False
        self.loss: Tensor | None = None
        self._is_whole = is_whole
        self.time_first = time_first
        self._unwraps = True
        self._is_hidden = False  # whether the network ran under `no_grad`
        self._output: Any = None
        self._outputs: dict[str, Any] = {}  # of the outermost calls, if an observer needs those beside the last one
        self.aside: bool = False  # whether an observer is running
        self._device_type = next((parameter.device.type for parameter in module.parameters()), "cpu")
        self._may_cast = torch.amp.is_autocast_available(self._device_type)
        self._dtype = torch.get_default_dtype()
        self._listeners: dict[str, list[Observer]] = {}
        self._is_blind = bool(observers) and not any(map(self._listening, _EVENTS))
        self._sees_calls = not observers or any(map(self._listening, ("module_call", "forwarded")))
        self._layout = _NO_LAYOUT if not self._sees_calls else layout() if layout else Layout.of(module)
        self.needs_graph: bool = any(observer.needs_graph for observer in observers)
        self._needs_beside = any(observer.needs_beside for observer in observers)
        self._needs_input_graph = any(observer.needs_graph and observer.needs_input_graph for observer in observers)
        self._module = module
        for observer in observers:
            observer.layout = self._layout  # type: ignore[misc]
            observer.time_first = time_first  # type: ignore[misc]
        self.restart()

    def restart(self) -> None:
        """Reset the observations, because the pass stopped before its end and another batch follows."""
        self._output, self.inputs = None, []
        self._outputs.clear()
        for observer in list(self.observers):
            self.tell(observer, observer.start, self._module)

    def prepared(self, batch: Batch) -> Batch:
        """Clone a batch; if an observer needs it, floating-point inputs require a gradient.

        Targets do not: a step may convert them to something that cannot have a gradient.
        """
        self.inputs = []
        floating = [position for position, t in enumerate(tensors_of(batch)) if t.is_floating_point()]
        read = self._read() if self._read and self._needs_input_graph and len(floating) > 1 else floating
        positions = itertools.count()

        def clone(tensor: Tensor) -> Tensor:
            position = next(positions)
            if not (tensor.is_floating_point() and position in read):
                return tensor.clone()
            leaf = tensor.detach().clone().requires_grad_(self._needs_input_graph)
            self.inputs.append(leaf)
            # not the leaf itself, which could not be written to
            return leaf.clone() if self._needs_input_graph else leaf

        return copied_batch(batch, clone)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the body runs."""
        if self._is_blind:
            yield
            return
        # Tensors that are observed inside transforms must not leave them.
        self._unwraps = not is_transforming()
        self._output, self._is_hidden = None, False
        self._outputs.clear()
        self.calls.clear()
        functions = self._listening("activation") or self._listening("batch_norm") or self._needs_input_graph
        hooks = call_hooks(self._module, self._called) if self._sees_calls else nullcontext()
        try:
            with unfused(), _uncompiled(self._module), hooks, _Functions(self) if functions else nullcontext():
                yield
        except Exception:
            self.broke_off = True
            raise

    @property
    def has_run_through(self) -> bool:
        """Whether the network is known to have returned its output, though the step may not have ended."""
        return self._is_whole is not None and self._is_whole(self.calls)

    def finish(self) -> None:
        """Report the end of the forward pass, and release its tensors."""
        self.finished = True
        in_turn = sorted(self.observers, key=lambda observer: not observer.needs_graph)
        for observer in in_turn:
            if listens(observer, "forwarded"):
                self.tell(observer, self._forwarded, observer)
        with torch.no_grad():
            for observer in in_turn:
                self.tell(observer, observer.ended)
        self._output, self.inputs = None, []
        self._outputs.clear()

    def output(self) -> Tensor:
        """Return the network's output.

        Raises:
            NotApplicableError: If there is none.
        """
        output = floating_tensor_in(self._output)
        if output is None and self._is_hidden:
            raise NotApplicableError("the network runs under `torch.no_grad()`, so nothing can be differentiated.")
        if output is None:
            raise NotApplicableError(
                "the step called no submodule with trainable layers that outputs a floating-point tensor with one row "
                "per sample."
            )
        return output

    def _forwarded(self, observer: Observer) -> None:
        output = self.output()
        if observer.needs_beside:
            observer.beside = self._beside(output)  # type: ignore[misc]
        output = samples_first(output, self.time_first)
        with torch.set_grad_enabled(observer.needs_graph):
            observer.forwarded(output, self.inputs)

    def _note_output(self, name: str) -> None:
        """Keep the output of a call that has just ended, and drop those of calls within it and of its earlier calls."""
        within = f"{name}." if name else ""
        while self._outputs and next(reversed(self._outputs)).startswith(within):
            self._outputs.popitem()
        self._outputs.pop(name, None)
        self._outputs[name] = self._output

    def _beside(self, output: Tensor) -> list[Tensor]:
        """Find outputs of other networks on which an output does not depend."""
        others = [tensors_of(other) for other in list(self._outputs.values())[:-1]]
        on_the_way = set(graph_of(output)) if others else set()
        found = []
        for tensors in reversed(others):
            ends = {tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None}
            other = floating_tensor_in(tensors)
            if other is not None and other.grad_fn is not None and not ends & on_the_way:
                on_the_way.update(graph_of(other))
                found.append(other)
        return found

    def _called(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        name = self._layout.names.get(id(module))
        # While autograd runs in a step that itself differentiates, a checkpoint repeats calls that were seen before.
        # Modes do not see that; torch's checkpoints use the same check.
        if name is None or torch._C._current_graph_task_id() != -1:
            return
        if id(module) in self._layout.holding:
            self.calls.append(name)
            if not self.needs_graph or torch.is_grad_enabled():
                self._output = output
                if self._unwraps and is_transforming():
                    with outside_transforms():
                        self._output = unwrapped(output)
                if self._needs_beside:
                    self._note_output(name)
            else:
                self._is_hidden = True
        self.report("module_call", name, module, (*args, *kwargs.values()), output)

    def _listening(self, event: str) -> list[Observer]:
        if event not in self._listeners:
            self._listeners[event] = [observer for observer in self.observers if listens(observer, event)]
        return self._listeners[event]

    def report(self, event: str, *args: Any) -> None:
        """Pass an event to the observers that listen to it."""
        listening = self._listening(event)
        if not listening:
            return
        if self._unwraps and is_transforming():
            with outside_transforms():
                self.report(event, *unwrapped(args))
            return
        if torch.is_inference_mode_enabled():
            # Otherwise, what an observer keeps could not be written to outside of inference mode, nor differentiated.
            with torch.inference_mode(False):
                self.report(event, *tree_map_only(Tensor, torch.clone, args))
            return
        # Switches off the autograd and the autocast of the step: in half precision, sums would be wrong. It is done by
        # hand, and only if needed, because it happens at every call of a submodule, and contexts take longer than most
        # observers.
        grad, default = torch.is_grad_enabled(), torch.get_default_dtype()
        casting = self._may_cast and torch.is_autocast_enabled(self._device_type)
        self.aside = True
        try:
            if grad:
                torch.set_grad_enabled(False)
            if default != self._dtype:
                torch.set_default_dtype(self._dtype)
            with torch.autocast(self._device_type, enabled=False) if casting else nullcontext():
                for observer in listening:
                    self.tell(observer, getattr(observer, event), *args)
        finally:
            if default != self._dtype:
                torch.set_default_dtype(default)
            if grad:
                torch.set_grad_enabled(True)
            self.aside = False

    def tell(self, observer: Observer, method: Callable[..., None], *args: Any) -> None:
        """Call a method of an observer; if it fails, the observer gets no more events."""
        if observer in self.errors:
            return
        try:
            method(*args)
        except Exception as error:
            self.errors[observer] = without_frames(error)
            self.observers = [other for other in self.observers if other is not observer]
            self._listeners.clear()


_SET_REQUIRES_GRAD = Tensor.requires_grad.__set__  # type: ignore[attr-defined]


class _Functions(TorchFunctionMode):
    """Sees activation functions and batch normalisations, whether a module, a function or a method calls them.

    A mode is used instead of hooks or FX: ``F.relu`` has no module, and a ``training_step`` cannot be traced.
    """

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._watch.aside:
            return func(*args, **kwargs)
        if func in ACTIVATIONS:
            before = args[0] if args else kwargs["input"]
            kept = before.detach().clone() if is_in_place(func, args, kwargs) else before
            after = func(*args, **kwargs)
            seen = (samples_first(real_view(tensor), self._watch.time_first) for tensor in (kept, after))
            self._watch.report("activation", *seen)
            return after
        if func == _SET_REQUIRES_GRAD and args[0].requires_grad and args[1]:
            return None  # torch refuses this for inputs that require a gradient already
        if func is F.batch_norm and (args[5] if len(args) > 5 else kwargs.get("training", False)):
            self._watch.report("batch_norm", args[0] if args else kwargs["input"])
        return func(*args, **kwargs)


def is_in_place(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of an activation function overwrites its input."""
    return kwargs.get("inplace", False) or any(arg is True for arg in args[1:]) or function.__name__.endswith("_")
