"""zuko: normalising flows, which return a distribution for each batch."""

import torch
from zuko.flows import CNF, MAF, NICE, NSF

from packages import NUM_SAMPLES, Entry, Fitted, batches

PACKAGE = "zuko"


def _likelihood(module, batch):
    x, context = batch
    return -module.network(context).log_prob(x).mean()


def _entry(flow, **options):
    def build(width):
        return Fitted(flow(4, context=3, hidden_features=(width, width), **options), _likelihood)

    return Entry(flow.__name__, build, _data)


_data = batches(lambda g: (torch.randn(NUM_SAMPLES, 4, generator=g), torch.randn(NUM_SAMPLES, 3, generator=g)))

ENTRIES = (_entry(NSF, transforms=2), _entry(MAF, transforms=2), _entry(NICE, transforms=2), _entry(CNF))
