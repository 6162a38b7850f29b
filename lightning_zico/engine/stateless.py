"""A module's loss as a function of its parameters: the only place where parameters are replaced by other tensors."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_zico._typing import Batch, Buffers, Params, Step
from lightning_zico.engine.graphs import REENTRANT_CHECKPOINT, graph_of, has_reentrant_checkpoint
from lightning_zico.engine.interrupts import uninterrupted
from lightning_zico.engine.scope import optimizers_put_back
from lightning_zico.engine.tree import submodules
from lightning_zico.engine.watch import Watch
from lightning_zico.errors import NoGradientError, UnsupportedModuleError

T = TypeVar("T")


class Stateless:
    """A module that runs on given parameters and buffers.

    The module itself does not change, except for attributes that its own code sets; `scope.preserved` restores those.

    Args:
        module: Any module. Parameters and buffers that it gets later are not known.

    Attributes:
        params: The module's own parameters, by name; a tied one is listed once, under its first name.
        buffers: Its own buffers, in the same way.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.params: dict[str, nn.Parameter] = {}
        self.buffers: Buffers = {}
        # All places of a tensor: the dictionary of a submodule that registers it, and its name there.
        self._places: dict[str, list[tuple[dict[str, Any], str]]] = {}
        names: dict[int, str] = {}
        for prefix, submodule in submodules(module).items():
            kinds: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
                (submodule._parameters, self.params),
                (submodule._buffers, self.buffers),
            )
            for registered, kept in kinds:
                for own_name, tensor in registered.items():
                    if tensor is None:
                        continue
                    name = f"{prefix}.{own_name}" if prefix else own_name
                    first = names.setdefault(id(tensor), name)
                    if first == name:
                        kept[name] = tensor
                    self._places.setdefault(first, []).append((registered, own_name))

    def copied_params(self, besides: Collection[str] = ()) -> Params:
        """Copy the parameters, detached.

        They are not views: a ``forward`` that writes to its weights (``weight.data.clamp_``) must not change the
        module's own.

        Args:
            besides: Names of parameters to leave out, because they get other values.

        Raises:
            UnsupportedModuleError: If a parameter has no values because it is lazy or on the meta device.
        """
        for name, parameter in self.params.items():
            if is_lazy(parameter) or parameter.is_meta:
                state = "is not initialised" if is_lazy(parameter) else "is on the meta device"
                raise UnsupportedModuleError(
                    f"Parameter '{name}' {state}: expected a weight with values. Run one batch through a lazy module, "
                    "or build the module on a real device."
                )
        return _copied(self.params, besides)

    def copied_buffers(self, besides: Collection[str] = ()) -> Buffers:
        """Copy the buffers, detached, except those of some names."""
        return _copied(self.buffers, besides)

    def leaves(self, params: Params) -> dict[str, nn.Parameter]:
        """Find the tensors used as the module's parameters in `holding`: the parameters themselves if possible.

        Args:
            params: The values, by name.

        Returns:
            Parameters by name. A parameter that cannot hold its value, such as one of a special class, is replaced by a
            similar one, which shares the memory of the value.
        """
        return {name: _leaf(self.params[name], tensor) for name, tensor in params.items()}

    def call(self, tensors: Params, function: Callable[[], T]) -> T:
        """Call a function that runs the module, with tensors in the places of parameters and buffers.

        Args:
            tensors: Tensors by name, which replace the ones that submodules register. `torch.func.functional_call` does
                the same, but takes ten times as long to find them by name. The module's own tensors are used for those
                left out. If the module updates buffers, the given ones change.
            function: Function without arguments.
        """
        before: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for name, tensor in tensors.items():
                for registered, own_name in self._places[name]:
                    before.append((registered, own_name, registered[own_name]))
                    registered[own_name] = tensor
            return function()
        finally:
            for registered, own_name, tensor in before:
                registered[own_name] = tensor

    @contextmanager
    def holding(
        self, params: Params, trainable: Collection[str] | None = None
    ) -> Iterator[tuple[dict[str, nn.Parameter], Params]]:
        """Set the module's own parameters to other values while the body runs.

        Code of the module sees the same parameters as in training, also if it keeps them outside of the module tree: in
        a list made in ``__init__``, in a closure, or in an optimizer. It may compute penalties over all trainable
        parameters, differentiate with respect to them, switch ``requires_grad`` for a while, or step an optimizer. The
        states of optimizers are restored.

        Args:
            params: The values, by name; those left out stay. Code of the module may write to them.
            trainable: Names of the parameters that require a gradient in the body; None to leave this unchanged.

        Yields:
            The tensor used for each parameter, and those of them that are not the parameter itself and must be put in
            its place.
        """
        leaves = self.leaves(params)
        others = {name: leaf for name, leaf in leaves.items() if leaf is not self.params[name]}
        own = {name: leaf for name, leaf in leaves.items() if name not in others} if others else leaves
        saved = [(parameter, parameter.data, parameter.requires_grad) for parameter in own.values()]
        with optimizers_put_back():
            try:
                for name, parameter in own.items():
                    value = params[name]
                    parameter.data = value.detach().clone() if value is parameter else value
                if trainable is not None:
                    for name, leaf in leaves.items():
                        leaf.requires_grad_(name in trainable)
                yield leaves, dict(others)
            finally:
                with uninterrupted():
                    for parameter, data, requires_grad in saved:
                        parameter.data = data
                        if parameter.requires_grad != requires_grad:
                            parameter.requires_grad_(requires_grad)

    def run(self, tensors: Params, function: Callable[[], T], trainable: Collection[str] | None = None) -> T:
        """Like `call`, but with the module's own parameters; see `holding`."""
        params = {name: tensor for name, tensor in tensors.items() if name in self.params}
        others = {name: tensor for name, tensor in tensors.items() if name not in self.params}
        with self.holding(params, trainable) as (_, placed):
            return self.call({**placed, **others}, function)

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

        All trainable parameters require a gradient, as in training; only the gradients for ``names`` are computed.

        Args:
            step: See `loss`.
            params: All parameters.
            buffers: All buffers; see `call`.
            names: Parameters to differentiate with respect to.
            batch: See `loss`.
            batch_idx: See `loss`.
            watch: Watches the forward pass.

        Returns:
            The gradient for each name in ``names`` (zero if the loss does not depend on it, or the step froze it),
            and the loss, a scalar.

        Raises:
            NoGradientError: If the loss depends on none of ``names``.
        """
        # Differentiate inside: checkpointing runs parts of the module again during the backward pass, and must then
        # find these values instead of the user's.
        with torch.enable_grad(), self.holding(params) as (leaves, placed):
            scored = {name: leaves[name] for name in names}

            def differentiate() -> tuple[Params, Tensor]:
                loss = self.watched_loss(step, batch, batch_idx, watch)
                check_depends(loss)
                return _backward(loss, scored), loss.detach()

            return self.call({**placed, **buffers}, differentiate)

    def watched_loss(self, step: Step, batch: Batch, batch_idx: int, watch: Watch | None) -> Tensor:
        """Compute the mean loss of a batch, within `call`, while observers watch.

        If the step fails after the network, observers see the end of the forward pass before the error is raised.
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


def _copied(tensors: Mapping[str, Tensor], besides: Collection[str]) -> Params:
    with torch.no_grad():
        return {name: tensor.clone() for name, tensor in tensors.items() if name not in besides}


def _loss_of(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{type(loss).__name__}"
        raise UnsupportedModuleError(f"The loss is {given}: expected a single number, the mean over the batch.")
    return loss.reshape(())


def check_depends(loss: Tensor) -> None:
    """Check that the loss can be differentiated.

    Raises:
        NoGradientError: If it depends on no parameter that is differentiated with respect to.
    """
    if not loss.requires_grad:
        raise _no_gradient()


@dataclass(frozen=True)
class Ends:
    """Leaves of the graph of a number.

    Args:
        leaves: Ids of the leaf tensors, which live as long as the graph.
        are_hidden: Whether a checkpoint hides some leaves.
    """

    leaves: frozenset[int]
    are_hidden: bool

    @classmethod
    def of(cls, number: Tensor) -> "Ends":
        """Find the leaves of a graph."""
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
        """Whether a tensor is one of the leaves."""
        return id(leaf) in self.leaves


def differentiated(
    number: Tensor,
    leaves: Mapping[str, Tensor],
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> dict[str, Tensor]:
    """Differentiate a number with respect to leaves.

    Args:
        number: Scalar.
        leaves: Leaves by name. The step may have frozen some.
        create_graph: As for `torch.autograd.grad`.
        retain_graph: As for `torch.autograd.grad`.

    Returns:
        Gradients by name, without leaves on which the number does not depend, or that the step froze.
    """
    active = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    if not number.requires_grad or not active:
        return {}
    found = torch.autograd.grad(
        number, list(active.values()), create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
    )
    return {name: gradient for name, gradient in zip(active, found, strict=True) if gradient is not None}


def _no_gradient() -> NoGradientError:
    return NoGradientError(
        "The loss depends on no scored parameter: it is detached, or computed without them. Return a loss on which "
        "`backward()` can be called."
    )


def _leaf(parameter: nn.Parameter, tensor: Tensor) -> nn.Parameter:
    """Return the parameter if it can have the value of a tensor, otherwise a similar parameter."""
    if tensor is parameter or (
        type(tensor) in (Tensor, nn.Parameter)
        and type(parameter.data) is Tensor
        and not parameter.is_inference()
        and (tensor.shape, tensor.dtype, tensor.device) == (parameter.shape, parameter.dtype, parameter.device)
    ):
        return parameter
    leaf = nn.Parameter(tensor.detach(), parameter.requires_grad)
    leaf.__dict__.update(parameter.__dict__)
    if parameter.requires_grad:
        for hook in (parameter._backward_hooks or {}).values():
            leaf.register_hook(hook)
    return leaf


def _backward(loss: Tensor, leaves: Mapping[str, nn.Parameter]) -> Params:
    gradients = _accumulated(loss, leaves) if has_reentrant_checkpoint(loss) else differentiated(loss, leaves)
    if not gradients:
        raise _no_gradient()
    gradients = {name: _dense(gradient.detach()) for name, gradient in gradients.items()}
    for name in gradients:
        if hooks := leaves[name]._post_accumulate_grad_hooks:
            gradients[name] = _hooked(leaves[name], gradients[name], list(hooks.values()))
    return {
        name: gradients[name] if name in gradients else torch.zeros_like(leaf, requires_grad=False)
        for name, leaf in leaves.items()
    }


def _accumulated(loss: Tensor, leaves: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Differentiate by `backward`, the only call that a checkpoint with ``use_reentrant=True`` allows."""
    hooks: dict[str, Any] = {name: leaf._post_accumulate_grad_hooks for name, leaf in leaves.items()}
    for leaf in leaves.values():
        leaf.grad = None  # left by the step if it differentiates itself
        leaf._post_accumulate_grad_hooks = None  # type: ignore[assignment]
    try:
        loss.backward()
        active = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        return {name: leaf.grad for name, leaf in active.items() if leaf.grad is not None}
    finally:
        for name, leaf in leaves.items():
            leaf.grad = None
            if hooks[name]:
                leaf._post_accumulate_grad_hooks = hooks[name]


def _dense(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def _hooked(leaf: Tensor, gradient: Tensor, hooks: Iterable[Callable[[Tensor], None]]) -> Tensor:
    """Let hooks change a gradient in the leaf's ``.grad``, where `backward` would have put it.

    If a hook removes the gradient, for example after it steps an optimizer, the gradient before that hook is returned.
    """
    leaf.grad = gradient.clone()  # the gradient may share its memory
    with torch.no_grad():
        for hook in hooks:
            hook(leaf)
            if leaf.grad is None:
                return gradient
            gradient = leaf.grad
    leaf.grad = None
    return gradient
