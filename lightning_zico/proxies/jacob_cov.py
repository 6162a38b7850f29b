"""jacob_cov: how differently the network responds to small changes of different inputs.

Index conventions:
    N: samples in a batch
    D: entries of an input
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_zico._typing import Params
from lightning_zico.engine.cutting import check_strided, listed
from lightning_zico.engine.dependence import Dependence
from lightning_zico.engine.graphs import check_graph
from lightning_zico.engine.observers import Observer, per_sample, samples_first
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.tree import parameters
from lightning_zico.errors import NonFiniteError, NotApplicableError
from lightning_zico.proxies.base import Proxy, register_proxy

_STABILISER = 1e-5  # from the published code


def correlations(rows: Tensor) -> Tensor:
    """Correlate rows, ``[N, D]``, with one another, in float64.

    Returns:
        ``[N, N]``; NaN for a row that is constant up to rounding errors of its precision.
    """
    wide = rows.double()
    centred = wide - wide.mean(dim=1, keepdim=True)
    lengths = centred.norm(dim=1, keepdim=True)
    is_constant = lengths <= torch.finfo(rows.dtype).eps * wide.norm(dim=1, keepdim=True)
    normed = centred / lengths.masked_fill(is_constant, math.nan)
    return (normed @ normed.T).clamp_(-1, 1)  # [N, D] @ [D, N] -> [N, N]


def jacob_cov_score(jacobian: Tensor) -> float:
    r"""Score a network by how little the gradients of its output at different inputs resemble one another.

    .. math::
        -\sum_i \Bigl( \log(v_i + k) + \frac{1}{v_i + k} \Bigr), \qquad k = 10^{-5}

    with :math:`v_i` the eigenvalues of the correlation matrix of the rows.

    Args:
        jacobian: Gradient of the sum of the outputs with respect to each input, ``[N, D]``.

    Returns:
        No unit, higher is better, at most ``-N``.

    Raises:
        NonFiniteError: If a gradient is not finite.
        NotApplicableError: If the gradient at an input is constant.

    Example:
        >>> round(jacob_cov_score(torch.eye(4) - 0.25), 4)  # correlations of -1/3: eigenvalues 0, 4/3, 4/3, 4/3
        -99991.6...

    Source:
        Mellor et al., *Neural Architecture Search without Training*, arXiv:2006.04647v1, and its public code.
    """
    if not bool(jacobian.isfinite().all()):
        raise NonFiniteError("The gradient of the output with respect to an input has NaN or infinite entries.")
    matrix = correlations(jacobian)
    if not bool(matrix.isfinite().all()):
        raise NotApplicableError(
            "all entries of the output's gradient at an input are equal, such as zeros, so it correlates with nothing."
        )
    eigenvalues = torch.linalg.eigvalsh(matrix).clamp_(min=0)
    stabilised = eigenvalues + _STABILISER
    return float(-(stabilised.log() + 1 / stabilised).sum())


@dataclass(unsafe_hash=True)
class InputJacobian(Observer):
    """Differentiate the sum of the network's output with respect to the floating-point tensors of the batch."""

    needs_graph: ClassVar[bool] = True

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self.rows: Tensor  # [N, D]

    def forwarded(self, output: Tensor, inputs: Sequence[Tensor]) -> None:
        """Differentiate, and keep the graph for other observers."""
        if not (inputs and output.requires_grad):
            raise NotApplicableError(
                "the network reads no floating-point tensor of the batch to differentiate with respect to."
            )
        check_strided(*inputs)
        check_graph(output)
        gradients = torch.autograd.grad(output.sum(), list(inputs), retain_graph=True, allow_unused=True)
        given = [samples_first(gradient, self.time_first) for gradient in gradients if gradient is not None]
        rows = [per_sample(gradient) for gradient in given if gradient.ndim and len(gradient) == len(output)]
        if not rows:
            raise NotApplicableError("the output depends on no floating-point input with one row per sample.")
        self.rows = torch.cat(rows, dim=1)


@dataclass(unsafe_hash=True)
class _EmbeddingJacobian(Observer):
    """Differentiate the sum of the network's output with respect to the embeddings of indices from the batch.

    Args:
        dependence: Knows which indices depend on the batch; those of positions do not.
    """

    dependence: Dependence = field(compare=False)

    needs_graph: ClassVar[bool] = True
    needs_input_graph: ClassVar[bool] = False

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self.rows: Tensor | None = None  # [N, D]; None if the output depends on no such embedding
        self._embedded: list[Tensor] = []

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the output of an embedding."""
        is_embedding = isinstance(module, nn.Embedding | nn.EmbeddingBag)
        if is_embedding and output.requires_grad and self.dependence.has(inputs[0]):
            self._embedded.append(output)

    def forwarded(self, output: Tensor, inputs: Sequence[Tensor]) -> None:
        """Differentiate."""
        check_graph(output)
        gradients: Sequence[Tensor | None] = ()
        if self._embedded and output.requires_grad:
            gradients = torch.autograd.grad(output.sum(), self._embedded, allow_unused=True)
        self._embedded = []
        given = [samples_first(gradient, self.time_first) for gradient in gradients if gradient is not None]
        rows = [per_sample(gradient) for gradient in given if len(gradient) == len(output)]
        self.rows = torch.cat(rows, dim=1) if rows else None


def _at_embeddings(probe: Probe) -> Tensor | None:
    weights = {name: tensor.requires_grad_() for name, tensor in _embedding_weights(probe).items()}
    if not weights:
        return None
    batch = probe.first_batch
    dependence = Dependence(batch)
    observer = _EmbeddingJacobian(dependence)
    fed = "embeddings that require a gradient"
    probe.forward(observer, tensors=weights, batch=batch, mode=dependence, fed=fed)
    return observer.rows


def _embedding_weights(probe: Probe) -> Params:
    """Copy the weights of the embeddings, at which the graph starts."""
    embeddings = [part.weight for part in probe.module.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag)]
    known = {id(weight) for weight in embeddings}
    names = [name for name, parameter in parameters(probe.module).items() if id(parameter) in known]
    own = probe.stateless.copied_params()
    return {name: own[name] for name in names}


def input_jacobian(probe: Probe) -> Tensor:
    """Differentiate the output for the first batch with respect to its inputs, ``[N, D]``.

    Networks that embed indices from the batch, such as tokens, are differentiated with respect to these embeddings
    alone, even if they read a mask of real numbers as well.

    Raises:
        NotApplicableError: If inputs or outputs do not have one row per sample.
    """
    rows = probe.once(_at_embeddings)
    is_embedded = rows is not None
    if rows is None:
        if not probe.inputs:
            raise NotApplicableError(
                "the network reads no floating-point tensor of the batch to differentiate with respect to, and its "
                "output depends on no `nn.Embedding` of indices from the batch with one row per sample."
            )
        rows = probe.observed(InputJacobian()).rows
    count = probe.num_samples
    if count not in (None, len(rows)):
        raise NotApplicableError(f"the network outputs {len(rows)} rows for the {count} samples of the first batch.")
    if not is_embedded and probe.inputs & listed(probe.first_batch, len(rows)):
        raise NotApplicableError("the samples of the input are a list, not the rows of one tensor.")
    return rows


@register_proxy("jacob_cov")
class JacobCov(Proxy):
    """How little the input Jacobians of a batch's samples correlate (Mellor et al., 2020); needs no labels.

    The network runs in its current mode, so batch normalisation in training mode couples the samples, as in the
    published code. The inputs of networks that embed tokens are the embeddings.
    """

    needs_labels = False
    needs: Sequence[Observer] = (InputJacobian(),)

    def measure(self, probe: Probe) -> float:
        """Correlate the input Jacobians of the first batch."""
        return jacob_cov_score(input_jacobian(probe))
