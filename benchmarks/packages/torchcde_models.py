"""torchcde: a neural controlled differential equation, as in the package's example."""

import torch
import torch.nn.functional as F  # noqa: N812
import torchcde
from torch import nn

from packages import NUM_SAMPLES, Entry, Fitted, batches, labels

PACKAGE = "torchcde"


class _Field(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, 3 * width)

    def forward(self, t, z):
        return self.second(self.first(z).relu()).tanh().view(*z.shape[:-1], self.width, 3)


def _loss(module, batch):
    coefficients, y = batch
    path = torchcde.CubicSpline(coefficients)
    z = torchcde.cdeint(
        path,
        module.network,
        module.initial(path.evaluate(path.interval[0])),
        path.interval,
        adjoint=False,
        method="rk4",
        options={"step_size": 1.0},
    )
    return F.cross_entropy(module.readout(z[:, 1]), y)


def _build(width):
    return Fitted(_Field(width), _loss, initial=nn.Linear(3, width), readout=nn.Linear(width, 4))


def _batch(g):
    return torchcde.hermite_cubic_coefficients_with_backward_differences(
        torch.randn(NUM_SAMPLES, 6, 3, generator=g)
    ), labels(g)


ENTRIES = (Entry("cdeint", _build, batches(_batch)),)
