"""A module's loss as a function of its parameters: the one place where `torch.func.functional_call` is called."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from lightning_zico._typing import Batch, Buffers, Params, Step
from lightning_zico.engine.observers import REENTRANT_CHECKPOINT, Watch, graph_of
from lightning_zico.errors import NoGradientError, UnsupportedModuleError

T = TypeVar("T")


class Stateless:
    """A module that runs on parameters and buffers which are handed to it.

    The module itself stays as it is, apart from attributes that its own code sets; `scope.preserved` puts those back.

    Args:
        module: Walked over once: parameters and buffers that it gets later are not known.

    Attributes:
        params: The module's own parameters, by name; a tied one once, under its first name.
        buffers: Its own buffers, likewise.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.params: dict[str, nn.Parameter] = {}
        self.buffers: Buffers = {}
        self._places: dict[str, list[str]] = {}  # all names of a tensor, as `functional_call` wants them
        names: dict[int, str] = {}
        for prefix, submodule in module.named_modules():
            for registered, kept in ((submodule._parameters, self.params), (submodule._buffers, self.buffers)):
                for own_name, tensor in registered.items():
                    if tensor is None:
                        continue
                    name = f"{prefix}.{own_name}" if prefix else own_name
                    first = names.setdefault(id(tensor), name)
                    if first == name:
                        kept[name] = tensor
                    self._places.setdefault(first, []).append(f"module.{name}")

    def copied_params(self) -> Params:
        """Copy the parameters, detached.

        Copies, not views: a ``forward`` that writes to its weights (``weight.data.clamp_``) must not reach the user's.

        Raises:
            UnsupportedModuleError: If a parameter has no values: not yet initialised, or on the meta device.
        """
        for name, parameter in self.params.items():
            if is_lazy(parameter) or parameter.is_meta:
                state = "is not initialised" if is_lazy(parameter) else "is on the meta device"
                raise UnsupportedModuleError(
                    f"Parameter '{name}' {state}; needed are weights with values. Run one batch through a lazy module, "
                    "or build the module on a real device."
                )
        return _copied(self.params)

    def copied_buffers(self) -> Buffers:
        """Copy the buffers, detached."""
        return _copied(self.buffers)

    def leaves(self, params: Params) -> dict[str, nn.Parameter]:
        """Make parameters of tensors, as the module's own are: trainable, frozen, with their hooks and attributes.

        Code of the module finds in them what it finds in training: it may take penalties over all that is trainable,
        differentiate with respect to it, or switch ``requires_grad`` for a while.

        Args:
            params: By name; the leaves share their memory.
        """
        return {name: _like(self.params[name], tensor) for name, tensor in params.items()}

    def call(self, tensors: Params, function: Callable[[], T]) -> T:
        """Call a function, which runs the module, with tensors in the places of parameters and buffers.

        Args:
            tensors: By name; those left out are the module's own. Buffers are written to where the module updates them.
            function: Takes nothing.
        """
        placed = {place: tensor for name, tensor in tensors.items() for place in self._places[name]}
        return functional_call(_Caller(self.module, function), placed, (), tie_weights=False)

    def loss(self, step: Step, tensors: Params, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the mean loss of a batch.

        Args:
            step: ``(module, batch, batch_idx) -> loss``.
            tensors: See `call`.
            batch: Passed to ``step``.
            batch_idx: Passed to ``step``.

        Returns:
            Scalar.

        Raises:
            UnsupportedModuleError: If ``step`` returns anything but one number in a tensor.
        """
        return self.call(tensors, lambda: _loss_of(step(self.module, batch, batch_idx)))

    def plain_gradients(
        self,
        step: Step,
        params: Params,
        buffers: Buffers,
        names: Iterable[str],
        batch: Batch,
        batch_idx: int,
        watch: Watch | None = None,
    ) -> tuple[Params, Tensor]:
        """Differentiate the mean loss of one batch by plain reverse-mode autograd.

        All trainable parameters require a gradient, as in training; only that for ``names`` is computed.

        Args:
            step: See `loss`, as for the others.
            params: All parameters.
            buffers: All buffers; see `call`.
            names: Parameters to differentiate with respect to.
            batch: See `loss`.
            batch_idx: See `loss`.
            watch: Sees the forward pass.

        Returns:
            The gradient for each name in ``names`` (zero where the loss does not depend on it, or the step froze it),
            and the loss, a scalar.

        Raises:
            NoGradientError: If the loss depends on none of ``names``.
        """
        leaves = self.leaves(params)
        scored = {name: leaves[name] for name in names}

        def differentiate() -> tuple[Params, Tensor]:
            loss = self.watched_loss(step, batch, batch_idx, watch)
            check_depends(loss)
            return _backward(loss, scored, self.params), loss.detach()

        # Differentiated inside the call: checkpointing runs parts of the module again during the backward pass, and
        # must find these tensors there and not the user's.
        with torch.enable_grad():
            return self.call({**leaves, **buffers}, differentiate)

    def watched_loss(self, step: Step, batch: Batch, batch_idx: int, watch: Watch | None) -> Tensor:
        """Compute the mean loss of a batch, within `call`, and let observers see it.

        Where the step fails behind the network, observers see the end of the forward pass before that is raised.
        """
        if watch is None:
            return _loss_of(step(self.module, batch, batch_idx))
        batch = watch.prepared(batch)
        try:
            with watch.watching():
                output = step(self.module, batch, batch_idx)
        except Exception:
            if watch.has_run_through:
                watch.finish()
            raise
        watch.finish()
        loss = _loss_of(output)
        watch.loss = loss.detach()
        return loss


def _copied(tensors: Mapping[str, Tensor]) -> Params:
    with torch.no_grad():
        return {name: tensor.clone() for name, tensor in tensors.items()}


def _loss_of(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{type(loss).__name__}"
        raise UnsupportedModuleError(f"The loss is {given}; needed is one number, the mean over the batch.")
    return loss.reshape(())


def check_depends(loss: Tensor) -> None:
    """Refuse a loss that nothing can be differentiated through.

    Raises:
        NoGradientError: If it depends on no parameter that is differentiated with respect to.
    """
    if not loss.requires_grad:
        raise _no_gradient()


@dataclass(frozen=True)
class Ends:
    """Where the graph of a number ends.

    Args:
        leaves: Ids of the tensors there; they live as long as the graph.
        are_hidden: Whether a checkpoint hides some.
    """

    leaves: frozenset[int]
    are_hidden: bool

    @classmethod
    def of(cls, number: Tensor) -> "Ends":
        """Walk over the graph once."""
        leaves: set[int] = set()
        are_hidden = False
        for node in graph_of(number):
            name = node.name()
            if name.endswith("AccumulateGrad"):
                leaves.add(id(node.variable))
            elif name == REENTRANT_CHECKPOINT:
                are_hidden = True
        return cls(frozenset(leaves), are_hidden)

    def hold(self, leaf: Tensor) -> bool:
        """Whether a tensor is among them."""
        return id(leaf) in self.leaves


def differentiated(
    number: Tensor,
    leaves: Mapping[str, Tensor],
    originals: Mapping[str, Tensor] | None = None,
    *,
    ends: Ends | None = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> dict[str, Tensor]:
    """Differentiate a number with respect to leaves, and to the module's own parameters that they stand for.

    Code of the module may hold on to its own parameters outside of the places where leaves are put: in a list made in
    ``__init__``, in a closure, or in an optimizer. Both are the same weight, so that the gradients are added.

    Args:
        number: Scalar.
        leaves: By name. The step may have frozen some.
        originals: The module's own, by name; None if nothing but the leaves counts.
        ends: Of the number's graph, if they are known.
        create_graph: As for `torch.autograd.grad`.
        retain_graph: As for `torch.autograd.grad`.

    Returns:
        By name; without those that the number does not depend on, or that the step froze.
    """
    if not number.requires_grad:
        return {}
    active = dict(_active(leaves, originals or leaves))
    direct: dict[str, Tensor] = {}
    if originals is not None:
        ends = ends or Ends.of(number)
        direct = {name: originals[name] for name in active if ends.hold(originals[name])}
    wanted = [*active.values(), *direct.values()]
    if not wanted:
        return {}
    found = torch.autograd.grad(number, wanted, create_graph=create_graph, retain_graph=retain_graph, allow_unused=True)
    return _together((*active, *direct), found)


def _active(leaves: Mapping[str, Tensor], originals: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    # The step may have frozen either for a while.
    return ((name, leaf) for name, leaf in leaves.items() if leaf.requires_grad and originals[name].requires_grad)


def _together(names: Iterable[str], found: Iterable[Tensor | None]) -> dict[str, Tensor]:
    gradients: dict[str, Tensor] = {}
    for name, gradient in zip(names, found, strict=True):
        if gradient is not None:
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
    return gradients


def _no_gradient() -> NoGradientError:
    return NoGradientError(
        "The loss depends on no scored parameter: it is detached, or computed without them. Return a loss that "
        "`backward()` can run from."
    )


def _like(parameter: nn.Parameter, tensor: Tensor) -> nn.Parameter:
    leaf: nn.Parameter
    if type(tensor) is Tensor and isinstance(type(parameter), type(nn.Parameter)):  # or a class derived from it
        leaf = Tensor._make_subclass(type(parameter), tensor, parameter.requires_grad)
    else:
        leaf = nn.Parameter(tensor.detach(), parameter.requires_grad)
    if parameter.__dict__:
        leaf.__dict__.update(parameter.__dict__)
    if parameter.requires_grad and parameter._backward_hooks:
        for hook in parameter._backward_hooks.values():
            leaf.register_hook(hook)
    return leaf


def _backward(loss: Tensor, leaves: Mapping[str, Tensor], originals: Mapping[str, nn.Parameter]) -> Params:
    ends = Ends.of(loss)
    if not ends.are_hidden:
        gradients = differentiated(loss, leaves, originals, ends=ends)
    else:
        active = dict(_active(leaves, originals))
        # ``.grad`` of the leaves is ours, and that of the module's own is put back by `scope.preserved`.
        written = [tensors[name] for tensors in (leaves, originals) for name in active]
        for tensor in written:
            tensor.grad = None  # of what the step itself differentiated
        loss.backward()  # the only call that such a checkpoint allows
        gradients = _together((*active, *active), (tensor.grad for tensor in written))
    if not gradients:
        raise _no_gradient()
    gradients = {name: gradient.detach() for name, gradient in gradients.items()}
    for name in gradients:
        if hooks := originals[name]._post_accumulate_grad_hooks:
            gradients[name] = _accumulated(leaves[name], gradients[name], list(hooks.values()))
    return {
        name: gradients[name] if name in gradients else torch.zeros_like(leaf, requires_grad=False)
        for name, leaf in leaves.items()
    }


def _accumulated(leaf: Tensor, gradient: Tensor, hooks: Iterable[Callable[[Tensor], None]]) -> Tensor:
    """Let hooks change a gradient where `backward` would have put it.

    One that takes the gradient away, to step an optimizer with it, has it as it was.
    """
    leaf.grad = gradient.clone()  # it may share its memory
    with torch.no_grad():
        for hook in hooks:
            try:
                hook(leaf)
            except KeyError:  # it looks for an optimizer of the module's own parameter
                leaf.grad = None
            if leaf.grad is None:
                return gradient
            gradient = leaf.grad
    leaf.grad = None
    return gradient


class _Caller(nn.Module):
    """Makes a function the ``forward`` of a parent of the module, which is what `functional_call` calls."""

    def __init__(self, module: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self) -> Any:
        return self.function()
