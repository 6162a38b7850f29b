"""The published program, `ZeroShotProxy/compute_zico.py` of SLDGroup/ZiCo, against ours.

Of its public versions this is the one that calls `network.zero_grad()` before each batch, as the paper's equation
implies; an older one lacks the call, so that its second gradient is the sum of the first two.
"""

import pytest
import torch.nn.functional as F
from torch import nn

from lightning_zico.engine.probe import Probe
from lightning_zico.proxies import ZiCo
from tests.engine.models import batches_of, cnn, step
from tests.reference.zico import published_zico


def residual():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(2, 6, 3, padding=1, bias=False)
            self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
            self.norm = nn.BatchNorm2d(6)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            x = self.stem(x)
            x = x + F.relu6(self.norm(self.depthwise(x)))
            return self.head(x.mean((2, 3)))

    return Residual()


@pytest.mark.parametrize("make", [cnn, residual])
@pytest.mark.parametrize("num_batches", [2, 4])
def test_zico_is_the_number_of_the_published_program(make, num_batches):
    network, batches = make(), batches_of(2, 5, 5, num_batches=num_batches)
    expected = published_zico(network, batches, F.cross_entropy)
    measured = ZiCo().measure(Probe(network, step, batches))
    # that program sums in float32
    assert measured.value == pytest.approx(expected, rel=1e-6)
    assert measured.details["num_gradients"] == num_batches
