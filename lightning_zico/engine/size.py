"""Sizes of a module: parameters, multiply-accumulate operations."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lightning_zico._typing import Batch, Step
from lightning_zico.engine.batches import map_tensors, tensors_of
from lightning_zico.engine.observers import ACTIVATIONS, is_in_place
from lightning_zico.engine.scope import preserved, seed_all, unfused
from lightning_zico.engine.stateless import Stateless

# torch counts floating-point operations, two for each multiply-accumulate operation.
FLOPS_PER_MAC = 2

# Attention as a CPU does it, of which torch's counter knows nothing (torch 2.14): it multiplies as the GPU's does.
_ALIKE = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: torch.ops.aten._scaled_dot_product_flash_attention,
}

# What `a + b` is, and how else it is written.
_SUMS = frozenset({Tensor.add, torch.add})

# Operators of torch that multiply and accumulate and for which its counter has no formula (torch 2.14). Those that do
# neither (activations, norms, copies) are left out by the definition of a MAC.
_UNCOUNTED = frozenset(
    {"mv", "addmv", "dot", "vdot", "_trilinear", "_cdist_forward", "mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn"}
    | {
        "_thnn_fused_lstm_cell",
        "_thnn_fused_gru_cell",
        "_native_multi_head_attention",
        "_scaled_dot_product_fused_attention_overrideable",
        "_scaled_dot_product_attention_math_for_mps",
        "_fft_r2c",
        "_fft_c2c",
        "_fft_c2r",
    }
)


def count_params(module: nn.Module) -> int:
    """Count the parameters, trainable and frozen; tied ones once.

    Example:
        >>> count_params(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter))


@dataclass(frozen=True)
class MacCount:
    """Multiply-accumulate operations of one forward pass, per sample.

    Args:
        macs: Per sample: those of the whole batch divided by its samples.
        device: Where they were counted: ``"meta"``, where nothing is computed, or the module's own device, if the step
            looks at values.
        uncounted: Operators that multiply and accumulate but have no formula; their cost is missing.
    """

    macs: int
    device: str
    uncounted: tuple[str, ...]


def count_macs(
    module: nn.Module, step: Step, batch: Batch, muted: Callable[[nn.Module], None] = lambda _: None
) -> MacCount:
    """Count the multiply-accumulate operations of a module's forward pass, on the meta device where that is possible.

    Args:
        module: Any module; put back afterwards.
        step: ``(module, batch, batch_idx) -> loss``.
        batch: As for `gradients.stream_gradients`; dimension 0 of its first tensor counts the samples.
        muted: Given the module before the count on the meta device, to silence what cannot run there and adds no MACs.

    Returns:
        The count. Matrix products count wherever they stand (attention too), biases and norms nowhere.

    Source:
        The formulas of `torch.utils.flop_counter`, whose numbers are halved.
    """
    sizes = [tensor.shape for tensor in tensors_of(batch) if tensor.ndim]
    samples = sizes[0][0] if sizes else 1

    def count(device: torch.device | None) -> MacCount:
        def placed(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device) if device else tensor.detach().clone()

        stateless = Stateless(module)
        tensors = {name: placed(tensor) for name, tensor in (stateless.params | stateless.buffers).items()}
        here = device or next(iter(tensors.values()), torch.empty(0)).device
        seed_all(0)
        counter = _Counter()
        skipping = _Skipping() if device else nullcontext()
        with torch.no_grad(), skipping, counter:
            stateless.loss(step, tensors, map_tensors(placed, batch), 0)
        macs = round(counter.flops / FLOPS_PER_MAC / samples)
        return MacCount(macs, here.type, tuple(sorted(counter.uncounted)))

    with torch.inference_mode(False), unfused(), preserved(module) as reset:
        muted(module)
        try:
            return count(torch.device("meta"))
        except Exception:
            # A step that looks at values, makes tensors on the CPU, or is itself broken: the next line tells.
            reset()
            return count(None)


class _Counter(TorchDispatchMode):
    """Counts floating-point operations by torch's formulas.

    Not `FlopCounterMode`, which also tells modules apart, and takes longer for that than a forward pass on the meta
    device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.uncounted: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Elsewhere what is made of other operators, such as `linear`, has been taken apart before it comes here.
        if torch.is_inference_mode_enabled():
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        packet = _ALIKE.get(func._overloadpacket, func._overloadpacket)
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        elif packet.__name__ in _UNCOUNTED or func.namespace not in ("aten", "prim", "prims", "profiler"):
            self.uncounted.add(f"{func.namespace}.{packet.__name__}")
        return out


class _Skipping(TorchFunctionMode):
    """Passes by what takes most of the time on the meta device, keeps shapes and adds no MACs.

    Of norms, activations and sums only the shape of what they put out is made, a tensor of their own, since it may be
    changed in place. What is not on the meta device, such as a number that the model computes, is left alone, and so is
    what may be differentiated: a pass backward goes through it to what has MACs.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled():
            return func(*args, **kwargs)
        if func is F.batch_norm or func in ACTIVATIONS:
            given = args[0] if args else kwargs["input"]
            if given.is_meta:
                in_place = func is not F.batch_norm and is_in_place(func, args, kwargs)
                return given if in_place else torch.empty_like(given)
        if func in _SUMS and len(args) == 2 and not kwargs and all(isinstance(arg, Tensor) for arg in args):
            a, b = args
            if a.is_meta and b.is_meta and (a.shape, a.dtype) == (b.shape, b.dtype):
                return torch.empty_like(a)
        return func(*args, **kwargs)
