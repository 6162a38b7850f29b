"""Zen-score: how much a network with Gaussian weights amplifies a small change of its input.

Index conventions:
    N: samples in a batch
    C: channels
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_zico.engine.observers import Observer, samples_first
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.transforms import real_view
from lightning_zico.engine.weights import drawn_like, gaussian_batch, gaussian_weights, map_inputs
from lightning_zico.errors import NotApplicableError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy

_PERTURBATION = 0.01  # from the published code
# The paper uses 16, which rank the networks of five spaces alike (tests/published/test_zen_inputs.py).
NUM_INPUTS = 8


@dataclass(unsafe_hash=True)
class _LastMap(Observer):
    """Keep the last feature map."""

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self.last_map: Tensor | None = None
        self.last_input: Tensor | None = None

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep a map with several positions, and the input of a layer."""
        if isinstance(output, Tensor) and output.ndim > 2:
            positions = output.shape[1] if output.ndim == 3 else math.prod(output.shape[2:])
            if positions > 1:
                self.last_map = samples_first(output, self.time_first)
        if id(module) in self.layout.layers and inputs:
            self.last_input = samples_first(inputs[0], self.time_first)

    def ended(self) -> None:
        """Store the features."""
        found = self.last_input if self.last_map is None else self.last_map
        if found is None:
            raise NotApplicableError("the network has neither a feature map nor a layer.")
        self.features = real_view(found).double().flatten(1)


@dataclass(unsafe_hash=True)
class _LastMapAndScales(_LastMap):
    """Also keep the scales that batch normalisation removes."""

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        super().start(module)
        self._variances: list[Tensor] = []

    def batch_norm(self, inputs: Tensor) -> None:
        """Compute the variance over the batch, averaged over the channels."""
        # On a CPU this takes a third of the time of `var` over these dimensions; without an epsilon the result is the
        # same.
        _, _, inverse_std = torch.native_batch_norm(inputs, None, None, None, None, True, 0.0, 0.0)
        variances = inverse_std.double().pow_(-2)
        if not bool(inverse_std.all()):  # 0 for a channel that does not vary, and for one that overflows float32
            variances = inputs.double().var(dim=[0, *range(2, inputs.ndim)], correction=0)
        self._variances.append(variances.mean())

    def ended(self) -> None:
        """Sum the logarithms of the scales."""
        super().ended()
        self.num_batch_norms = len(self._variances)
        variances = torch.stack(self._variances).tolist() if self._variances else []
        self.log_scales = math.fsum(math.log(variance) / 2 for variance in variances if variance != 0)


@register_proxy("zen")
class Zen(Proxy):
    r"""Logarithm of how much a small change of a Gaussian input moves the last feature map (Lin et al., ICCV 2021).

    .. math::
        \log \frac{1}{N} \sum_n \bigl\lVert f(x_n) - f(x_n + 0.01\,\epsilon_n) \bigr\rVert_1
        + \sum_{\text{batch norms}} \log \sqrt{\textstyle\frac{1}{C} \sum_c \sigma_c^2}

    with 8 inputs (or as many as the batch has), noise and the weights of layers from N(0, 1), norms in their initial
    state, and :math:`f` the last feature map with several positions (before global pooling), or the input of the last
    layer if there is none. Norms with constant inputs remove no scale and are left out.

    Source:
        Lin et al., *Zen-NAS*, ICCV 2021, arXiv:2102.01063. The published code uses 16 inputs. It removes residual
        links, which is left to the candidate here. It reads running variances, which blend the variance of the batch
        with one; here, the variance of the batch is used. Where variances are large, the value of that code after two
        passes is lower by ``-log(0.19) / 2`` for each batch normalisation.
    """

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Run the network on noise, twice."""
        batch, positions, _ = probe.first_samples(NUM_INPUTS)
        if not positions:
            raise NotApplicableError("the network reads no floating-point tensor of the batch to perturb.")
        generator = torch.Generator().manual_seed(probe.seed)
        weights = gaussian_weights(probe.module, generator, probe.structure)
        inputs = gaussian_batch(batch, generator, positions)
        moved = map_inputs(lambda t: t + _PERTURBATION * drawn_like(t, generator), inputs, positions)
        here, there = _LastMapAndScales(), _LastMap()
        for observer, given in ((here, inputs), (there, moved)):
            probe.forward(observer, tensors=weights, batch=given, fed="Gaussian inputs and weights", is_cut=True)
        change = float((here.features - there.features).abs().sum(dim=1).mean())
        if not math.isfinite(change + here.log_scales):
            raise NotApplicableError("with Gaussian weights the features overflow float32, as is usual without norms.")
        if change == 0:
            raise NotApplicableError("the last feature map does not depend on the input.")
        return Measurement(
            math.log(change) + here.log_scales,
            details={"log_scales": here.log_scales, "num_batch_norms": here.num_batch_norms},
        )
