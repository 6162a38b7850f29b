"""V-PCA: how many principal components the hidden states of feed-forward layers have.

Index conventions:
    R: rows, all tokens of all samples
    C: width of a hidden state
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_zico.engine.dependence import Dependence
from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.spectra import eigenvalues_of
from lightning_zico.errors import NonFiniteError, NotApplicableError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy

_SHARE = 0.99  # of the variance, as published
# Modules that compute a single activation function, such as `gelu_new`, of several operators.
_ACTIVATIONS_OF_TRANSFORMERS = "transformers.activations"
# The linear layer of GPT-2, with a transposed weight. A run would show it as well, but only where it is not frozen.
_LINEAR_OF_TRANSFORMERS = ("transformers.pytorch_utils", "Conv1D")


def num_components(hidden: Tensor, share: float = _SHARE) -> Tensor:
    """Count the principal components that together have a share of the variance.

    Args:
        hidden: ``[R, C]``, finite.
        share: Between 0 and 1.

    Returns:
        Scalar, int64, at most the smaller of ``R - 1`` and ``C``; 0 if the rows do not vary.

    Example:
        >>> num_components(torch.tensor([[3.0, 0.1], [-3.0, 0.1], [0.0, -0.2]])).item()
        1
        >>> num_components(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])).item()
        2
    """
    centred = hidden.double()
    centred = centred - centred.mean(dim=0)
    few = centred if len(centred) < centred.shape[1] else centred.T
    variances = eigenvalues_of(few @ few.T).flip(0)  # [R, C] @ [C, R], or [C, R] @ [R, C]
    shares = variances.cumsum(0)
    # Those before the share is reached, and the one that reaches it.
    return ((shares < share * shares[-1]).sum() + 1).where(shares[-1] > 0, 0)


@dataclass(unsafe_hash=True)
class HiddenStates(Observer):
    """Count the principal components of what linear layers pass to an activation function, token by token.

    Args:
        num_samples: Samples of the batch; None if unknown.
        dependence: Knows which layers see the batch; those that make a bias of relative positions do not.
    """

    num_samples: int | None
    dependence: Dependence = field(compare=False)

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self.counts: dict[str, int] = {}
        self._counted: list[tuple[str, Tensor]] = []
        self._last: tuple[str, Tensor] | None = None

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the output of a linear layer until an activation function is called."""
        if type(module).__module__ == _ACTIVATIONS_OF_TRANSFORMERS and isinstance(output, Tensor):
            self.activation(inputs[0], output)
        is_hidden = _is_linear(module) and isinstance(output, Tensor) and output.ndim > 2
        if is_hidden and self.dependence.has(output):
            self._last = name, output

    def activation(self, before: Tensor, after: Tensor) -> None:
        """Look at the input of an activation function, if it is the output of the last linear layer."""
        if self._last is None:
            return
        name, output = self._last
        # One in place has written to the output, of which `before` is then a copy.
        if output.data_ptr() not in (before.data_ptr(), after.data_ptr()) or output.numel() != before.numel():
            return
        self._last = None
        if self.num_samples is not None and len(before) % self.num_samples:
            raise NotApplicableError(
                f"its feed-forward layer '{name}' sees {len(before)} rows, which are not those of all "
                f"{self.num_samples} samples. Run the network on the whole batch at once."
            )
        hidden = before.flatten(0, -2)
        finite = hidden.isfinite().all()
        counted = num_components(hidden.masked_fill(~finite, 0.0))
        self._counted.append((name, counted.where(finite, -1)))

    def ended(self) -> None:
        """Collect the counts."""
        if not self._counted:
            raise NotApplicableError(
                "the network has no feed-forward layer on tokens: no `nn.Linear`, nor `Conv1D` of transformers, passes "
                "positions of the samples straight to an activation function of torch or transformers."
            )
        names, tensors = zip(*self._counted, strict=True)
        counts = torch.stack(tensors).tolist()
        if min(counts) < 0:
            raise NonFiniteError("The hidden states of a feed-forward layer have NaN or infinite entries.")
        for name, count in zip(names, counts, strict=True):
            self.counts[name] = self.counts.get(name, 0) + count
        self._last, self._counted = None, []


def _is_linear(module: nn.Module) -> bool:
    names = ((cls.__module__, cls.__name__) for cls in type(module).__mro__)
    return isinstance(module, nn.Linear) or _LINEAR_OF_TRANSFORMERS in names


def component_counts(probe: Probe) -> dict[str, int]:
    """Count the principal components of each feed-forward layer on the first batch.

    Raises:
        NotApplicableError: If the network has no feed-forward layer on tokens, or runs on part of a batch at a time.
    """
    return probe.once(_component_counts)


def _component_counts(probe: Probe) -> dict[str, int]:
    batch = probe.first_batch
    dependence = Dependence(batch)
    observer = HiddenStates(probe.num_samples, dependence)
    probe.forward(observer, batch=batch, mode=dependence, fed="the first batch while its tensors are followed")
    return observer.counts


@register_proxy("v_pca")
class VPCA(Proxy):
    """Sum over feed-forward layers of the principal components of their hidden states (W-PCA, ICLR 2025).

    A feed-forward layer is a linear layer on tokens (`nn.Linear`, or the ``Conv1D`` of GPT-2 in transformers) whose
    output goes straight into an activation function; that output is its hidden state. All tokens of all samples are
    rows, and as many components count as have 99 % of the variance. A layer that runs several times, as in ALBERT,
    counts each time. A layer has at most as many components as tokens minus one, so small batches of short texts
    compare lengths only.

    Source:
        *W-PCA Based Gradient-Free Proxy for Efficient Search of Lightweight Language Models*, ICLR 2025,
        arXiv:2504.15983. Its formula leaves open what the rows are and whether states are taken before or after the
        activation function; they are taken before it here.
    """

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Count the components on the first batch."""
        counts = component_counts(probe)
        return Measurement(float(sum(counts.values())), details={"components": counts})
