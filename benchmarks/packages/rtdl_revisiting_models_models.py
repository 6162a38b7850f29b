"""rtdl_revisiting_models: networks for tables."""

import torch
import torch.nn.functional as F  # noqa: N812
from rtdl_revisiting_models import MLP, FTTransformer, ResNet

from packages import NUM_SAMPLES, Entry, Fitted, batches

PACKAGE = "rtdl_revisiting_models"


def _rows(module, batch):
    return F.mse_loss(module.network(batch[0]).squeeze(1), batch[2])


def _columns(module, batch):
    return F.mse_loss(module.network(batch[0], batch[1]).squeeze(1), batch[2])


def _mlp(width):
    return Fitted(MLP(d_in=5, d_out=1, n_blocks=2, d_block=width, dropout=0.1), _rows)


def _resnet(width):
    network = ResNet(d_in=5, d_out=1, n_blocks=2, d_block=width, d_hidden_multiplier=2.0, dropout1=0.1, dropout2=0.0)
    return Fitted(network, _rows)


def _transformer(width):
    options = FTTransformer.get_default_kwargs() | {
        "n_blocks": 1,
        "d_block": width,
        "attention_n_heads": 2,
        "_is_default": False,
    }
    return Fitted(FTTransformer(n_cont_features=5, cat_cardinalities=[3], d_out=1, **options), _columns)


def _batch(g):
    return (
        torch.randn(NUM_SAMPLES, 5, generator=g),
        torch.randint(3, (NUM_SAMPLES, 1), generator=g),
        torch.randn(NUM_SAMPLES, generator=g),
    )


ENTRIES = (
    Entry("MLP", _mlp, batches(_batch)),
    Entry("ResNet", _resnet, batches(_batch)),
    Entry("FTTransformer", _transformer, batches(_batch)),
)
