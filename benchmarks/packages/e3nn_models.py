"""e3nn: a network of equivariant layers, which are compiled to TorchScript."""

import torch
import torch.nn.functional as F  # noqa: N812
from e3nn import o3
from e3nn.nn import FullyConnectedNet, Gate
from torch import nn

from packages import NUM_SAMPLES, Entry, Fitted, batches

PACKAGE = "e3nn"


class _Equivariant(nn.Module):
    """Sums over pairs of points, by tensor products whose weights a network makes from distances."""

    def __init__(self, width):
        super().__init__()
        self.harmonics = o3.Irreps.spherical_harmonics(1)
        self.gate = Gate(f"{width}x0e", [torch.tanh], "2x0e", [torch.sigmoid], "2x1o")
        self.product = o3.FullyConnectedTensorProduct("2x0e", self.harmonics, self.gate.irreps_in, shared_weights=False)
        self.weights = FullyConnectedNet([4, width, self.product.weight_numel], torch.tanh)
        self.out = o3.Linear(self.gate.irreps_out, "1x0e")

    def forward(self, kinds, places):
        first, second = torch.where(~torch.eye(places.shape[1], dtype=torch.bool, device=places.device))
        difference = places[:, first] - places[:, second]
        length = difference.norm(dim=-1, keepdim=True)
        radial = torch.exp(-((length - torch.linspace(0, 3, 4, device=places.device)) ** 2))
        angles = o3.spherical_harmonics(self.harmonics, difference, normalize=True, normalization="component")
        messages = self.product(
            kinds[:, first], angles, self.weights(radial.flatten(0, 1)).unflatten(0, radial.shape[:2])
        )
        return self.out(self.gate(messages)).sum((1, 2))


def _loss(module, batch):
    return F.mse_loss(module.network(batch["kinds"], batch["places"]), batch["energy"])


def _molecules(g):
    return {
        "kinds": torch.randn(NUM_SAMPLES, 4, 2, generator=g),
        "places": torch.randn(NUM_SAMPLES, 4, 3, generator=g),
        "energy": torch.randn(NUM_SAMPLES, generator=g),
    }


ENTRIES = (Entry("FullyConnectedTensorProduct", lambda w: Fitted(_Equivariant(w), _loss), batches(_molecules)),)
