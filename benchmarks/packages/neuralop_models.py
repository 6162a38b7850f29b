"""neuraloperator: operators between functions on a grid, with complex weights."""

import torch
from neuralop.losses import LpLoss
from neuralop.models import FNO, TFNO

from packages import Entry, Fitted, batches

PACKAGE = "neuraloperator"


def _entry(operator, **options):
    def build(width):
        network = operator(n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=width, n_layers=2, **options)
        return Fitted(network, lambda module, batch: LpLoss(d=2)(module.network(batch[0]), batch[1]))

    return Entry(operator.__name__, build, batches(_fields))


def _fields(g):
    return torch.randn(4, 1, 16, 16, generator=g), torch.randn(4, 1, 16, 16, generator=g)


ENTRIES = (_entry(FNO), _entry(TFNO, factorization="Tucker", rank=0.5, implementation="factorized"))
