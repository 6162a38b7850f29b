"""braindecode: networks for EEG signals."""

import torch
import torch.nn.functional as F  # noqa: N812
from braindecode.models import EEGConformer, EEGNet, ShallowFBCSPNet

from packages import NUM_SAMPLES, Entry, Fitted, batches, labels

PACKAGE = "braindecode"

_SHAPE = {"n_chans": 4, "n_outputs": 4, "n_times": 200}


def _loss(module, batch):
    return F.cross_entropy(module.network(batch[0]), batch[1])


def _entry(network, **options):
    def build(width):
        return Fitted(network(**_SHAPE, **{name: value(width) for name, value in options.items()}), _loss)

    return Entry(network.__name__, build, _data)


_data = batches(lambda g: (torch.randn(NUM_SAMPLES, 4, 200, generator=g), labels(g)))

ENTRIES = (
    _entry(EEGNet, F1=lambda width: width // 2),
    _entry(ShallowFBCSPNet, n_filters_time=lambda width: width, n_filters_spat=lambda width: width),
    _entry(EEGConformer, n_filters_time=lambda width: width, num_layers=lambda width: 1, num_heads=lambda width: 2),
)
