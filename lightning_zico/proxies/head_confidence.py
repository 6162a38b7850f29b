"""Head confidence: how far the outputs of attention heads rise above zero at their best position.

Index conventions:
    N: samples in a batch
    H: heads
    T, S: positions that attend, and that are attended to
    D: width of a head
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_zico.engine.dispatched import key_of, name_of, tensors_in
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NonFiniteError, NotApplicableError
from lightning_zico.proxies.attention import UnfusedAttention
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy

_NUM_HEADS = ("num_heads", "n_heads", "num_attention_heads")  # attributes of modules
_SOFTMAX = frozenset({"_softmax", "_safe_softmax"})
# Operators whose result has the attention weights that they read: dropped out, masked, of another precision or shape.
_KEEPING = frozenset(
    {"view", "_unsafe_view", "expand", "clone", "_to_copy", "native_dropout", "mul", "div", "where", "masked_fill"}
    | {"nan_to_num", "transpose", "permute", "t", "unsqueeze", "squeeze"}
)


def confidence(outputs: Tensor) -> Tensor:
    """Average the maximum over positions of a head's outputs, over samples and channels.

    Args:
        outputs: ``[N, T, D]``.

    Returns:
        Scalar.

    Example:
        >>> float(confidence(torch.tensor([[[1.0, 0.0], [3.0, -2.0]]])))  # maxima of 3 and 0
        1.5
    """
    return outputs.amax(dim=1).mean()


class _Heads(TorchDispatchMode):
    """Finds the outputs of attention heads: products of matrices that come out of a softmax over the last dimension.

    Args:
        num_samples: Samples in the batch; None if unknown.
    """

    def __init__(self, num_samples: int | None) -> None:
        super().__init__()
        self._num_samples = num_samples
        self._unfused = UnfusedAttention()

    def __enter__(self) -> "_Heads":
        """Reset what was found."""
        self.confidences: list[Tensor] = []
        self.num_heads: list[int] = []
        self.reason: str | None = None  # why the outputs of an attention are not those of heads
        # Shapes of attention weights, and the modules that made them, by the memory that holds the weights.
        self._weights: dict[StorageWeakRef, tuple[torch.Size, nn.Module | None]] = {}
        self._running: list[nn.Module] = []
        # Called for modules that fail as well, which a step may survive.
        self._hooks = (
            register_module_forward_pre_hook(lambda module, _: self._running.append(module)),
            register_module_forward_hook(self._ended, always_call=True),
        )
        self._unfused.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._unfused.__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _ended(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = name_of(func)
        if name in _SOFTMAX and args[0].ndim > 2 and args[1] in (-1, args[0].ndim - 1):
            self._weights[key_of(out)] = out.shape, self._attending()
        elif name in _KEEPING:
            result = tensors_in(out)[0]
            for tensor in tensors_in(list(args)):
                if (key := key_of(tensor)) in self._weights and tensor.numel() == result.numel():
                    self._weights[key_of(result)] = self._weights[key]
                    break
        elif name == "bmm":
            for dim, operand in enumerate(args, start=1):  # outputs are [B, T, D], or [B, D, T] for the second
                if (key := key_of(operand)) in self._weights:
                    try:
                        self._take(out.transpose(1, dim), *self._weights[key])
                    except NotApplicableError as error:  # raised here, it would be another error of the product
                        self.reason = self.reason or str(error)
                    break
        return out

    def _take(self, outputs: Tensor, shape: torch.Size, module: nn.Module | None) -> None:
        """Look at the outputs of heads, ``[B, T, D]``, unless they have a single position, as those that pool."""
        if outputs.shape[1] == 1:
            return
        num_heads = self._count_heads(shape, module)
        weights = [weight for weight in module.parameters() if weight.ndim > 1] if module else []
        widths = {length for weight in weights for length in weight.shape}
        if widths and num_heads * outputs.shape[2] not in widths:
            raise NotApplicableError(
                f"the outputs of {num_heads} heads of an attention have {outputs.shape[2]} channels each, which "
                "together are no width of its weights: it does not attend to positions, but perhaps to channels."
            )
        self.num_heads.append(num_heads)
        self.confidences.append(num_heads * confidence(outputs))

    def _attending(self) -> nn.Module | None:
        """Find the innermost running module that is more than a function, such as a softmax or dropout."""
        return next((module for module in reversed(self._running) if any(True for _ in module.parameters())), None)

    def _count_heads(self, shape: torch.Size, module: nn.Module | None) -> int:
        """Count the heads of attention weights, by the module if it says, else in ``[N, H, T, S]`` or ``[N, T, S]``."""
        if self._num_samples is None:
            raise NotApplicableError("the number of samples of a batch is unknown, so heads cannot be counted.")
        count = math.prod(shape[:-2])
        stated = next((getattr(module, name) for name in _NUM_HEADS if hasattr(module, name)), None)
        if isinstance(stated, int) and stated > 0 and count % (stated * self._num_samples) == 0:
            return stated
        if count == self._num_samples:
            return 1
        if len(shape) == 4 and shape[0] % self._num_samples == 0:  # windows count as samples
            return shape[1]
        raise NotApplicableError(
            f"heads cannot be counted in attention weights of shape {tuple(shape)} for {self._num_samples} "
            "samples. Expected [samples, heads, positions, positions], or an attribute `num_heads` of the module."
        )


@register_proxy("head_confidence")
class HeadConfidence(Proxy):
    r"""Sum over the attention heads of the largest output among positions (Serianni & Kalita, ACL 2023).

    .. math::
        \sum_h \frac{1}{N D} \sum_{n, d} \max_t \, (A_h V_h)_{n t d}

    with :math:`A_h` a head's attention weights and :math:`V_h` its values. A head is any softmax over the last
    dimension of a tensor of at least three that is then multiplied with other matrices, sample by sample, whether a
    module, a function or products written by hand do that. The attribute ``num_heads``, ``n_heads`` or
    ``num_attention_heads`` of the module that attends tells how many there are, else dimension 1 of weights with four.
    Windows count as samples. Attention with a single query, which pools, does not count. As a sum, the score rewards
    depth and the number of heads.

    Source:
        Serianni & Kalita, *Training-free Neural Architecture Search for RNNs and Transformers*, ACL 2023,
        arXiv:2306.00288, implemented from its formula. The published code averages the outputs of the projections of
        queries, keys and values in place of those of the heads, and its figures are those of other networks than were
        trained.
    """

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Run the first batch once, with attention of plain products."""
        heads = _Heads(probe.num_samples)
        probe.forward(mode=heads, fed="attention of plain products")
        if heads.reason is not None:
            raise NotApplicableError(heads.reason)
        if not heads.confidences:
            raise NotApplicableError(
                "the network has no attention head: no softmax over the last dimension is multiplied with values for "
                "several queries."
            )
        values = torch.stack([value.double() for value in heads.confidences]).tolist()
        if not all(map(math.isfinite, values)):
            raise NonFiniteError("The output of an attention head has NaN or infinite entries.")
        return Measurement(math.fsum(values), details={"attentions": values, "num_heads": heads.num_heads})
