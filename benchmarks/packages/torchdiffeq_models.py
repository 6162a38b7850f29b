"""torchdiffeq: differential equations, through the solver and by the adjoint."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torchdiffeq import odeint, odeint_adjoint

from packages import NUM_SAMPLES, Entry, Fitted, batches

PACKAGE = "torchdiffeq"


class _Field(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 3))

    def forward(self, t, y):
        return self.net(y)


def _entry(solve, method):
    def loss(module, batch):
        start, path = batch
        times = torch.linspace(0, 1, 4, device=start.device)
        return F.mse_loss(solve(module.network, start, times, method=method).movedim(0, 1), path)

    return Entry(f"{solve.__name__}, {method}", lambda width: Fitted(_Field(width), loss), _data)


_data = batches(lambda g: (torch.randn(NUM_SAMPLES, 3, generator=g), torch.randn(NUM_SAMPLES, 4, 3, generator=g)))

ENTRIES = (_entry(odeint, "rk4"), _entry(odeint, "dopri5"), _entry(odeint_adjoint, "rk4"))
