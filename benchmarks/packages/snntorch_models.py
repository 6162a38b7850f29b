"""snntorch: spiking networks, over steps of time."""

import snntorch
import torch
from snntorch import functional, surrogate
from torch import nn

from packages import NUM_SAMPLES, Entry, Fitted, batches, labels

PACKAGE = "snntorch"


class _Spiking(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(12, width), nn.Linear(width, 4)
        options = {"beta": 0.9, "spike_grad": surrogate.fast_sigmoid()}
        self.hidden, self.out = snntorch.Leaky(**options), snntorch.Leaky(**options)

    def forward(self, x):
        hidden, out, spikes = self.hidden.init_leaky(), self.out.init_leaky(), []
        for _ in range(5):
            spike, hidden = self.hidden(self.first(x), hidden)
            spike, out = self.out(self.second(spike), out)
            spikes.append(spike)
        return torch.stack(spikes)


def _loss(module, batch):
    return functional.ce_rate_loss()(module.network(batch[0]), batch[1])


ENTRIES = (
    Entry(
        "Leaky",
        lambda w: Fitted(_Spiking(w), _loss),
        batches(lambda g: (3 * torch.rand(NUM_SAMPLES, 12, generator=g), labels(g))),
    ),
)
