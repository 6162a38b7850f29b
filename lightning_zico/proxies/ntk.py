"""ntk_cond: how evenly a network learns different samples, by its neural tangent kernel.

Index conventions:
    N: samples in a batch
    P: entries of the weights of all layers
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_zico.engine.graphs import check_graph
from lightning_zico.engine.learned import WeightDifferentiator
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.transforms import real_view
from lightning_zico.errors import NonFiniteError, NotApplicableError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy

# A smallest eigenvalue below this fraction of the largest is a rounding error of float32 gradients.
_SMALLEST = 1e-9


def ntk_cond_score(kernel: Tensor) -> float:
    r"""Score a network by the condition number of its tangent kernel.

    .. math::
        -\lambda_{\max}(\Theta) / \lambda_{\min}(\Theta)

    Args:
        kernel: :math:`\Theta`, scalar products of the samples' gradients, ``[N, N]``.

    Returns:
        No unit, higher is better, at most -1.

    Raises:
        NonFiniteError: If the kernel has NaN or infinite entries.
        NotApplicableError: If the kernel is singular, so its condition number is infinite: the samples' gradients are
            linearly dependent.

    Example:
        >>> ntk_cond_score(torch.diag(torch.tensor([1.0, 4.0])))
        -4.0

    Source:
        Chen et al., *TE-NAS*, ICLR 2021, arXiv:2102.11535, which ranks by this and the number of linear regions.
    """
    if not bool(kernel.isfinite().all()):
        raise NonFiniteError("The tangent kernel has NaN or infinite entries: the gradients of the outputs overflow.")
    eigenvalues = torch.linalg.eigvalsh(kernel.double())
    least, most = float(eigenvalues[0]), float(eigenvalues[-1])
    if not least > _SMALLEST * most:
        raise NotApplicableError(
            f"the tangent kernel is singular, with eigenvalues from {least:.3g} to {most:.3g}. Either a norm at the "
            "end keeps the sum of all outputs constant, or the first batch has duplicates or more samples than the "
            "network can tell apart. Pass fewer, distinct samples."
        )
    return -most / least


class _TangentKernel(WeightDifferentiator):
    """Differentiate the output of each sample, and multiply the gradients."""

    def forwarded(self, output: Tensor, inputs: Sequence[Tensor]) -> None:
        """Build the kernel, sample by sample."""
        check_graph(output)
        rows = []
        for sample in output.reshape(len(output), -1).sum(dim=1):
            gradients = self.differentiated(sample, retain_graph=True)
            rows.append(torch.cat([real_view(gradient).flatten() for gradient in gradients]))
        stacked = torch.stack(rows)  # [N, P]
        self.kernel = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=output.device)
        for part in stacked.split(2**16, dim=1):  # converted to float64 piece by piece
            self.kernel += part.double() @ part.double().T


@register_proxy("ntk_cond")
class NTKCond(Proxy):
    """Negative condition number of the neural tangent kernel (Chen et al., TE-NAS, ICLR 2021).

    The gradient of a sample is the gradient of the sum of its outputs in the forward pass of the whole batch. This
    takes one backward pass per sample, and memory for the gradients of all samples.
    """

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Build the kernel of the first batch."""
        kernel = _TangentKernel(tuple(probe.chosen().parameters))
        own = probe.stateless.copied_params()
        trainable = {name: own[name].requires_grad_(p.requires_grad) for name, p in probe.stateless.params.items()}
        probe.forward(kernel, tensors=trainable)
        return Measurement(ntk_cond_score(kernel.kernel), details={"covered": probe.covered()})
