"""x-transformers: a language model that computes its own loss, and an encoder."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from x_transformers import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper

from packages import NUM_SAMPLES, Entry, Fitted, batches, labels

PACKAGE = "x-transformers"


def _decoder(width):
    layers = Decoder(dim=width, depth=2, heads=2, attn_dim_head=8, rotary_pos_emb=True)
    network = AutoregressiveWrapper(TransformerWrapper(num_tokens=50, max_seq_len=16, attn_layers=layers))
    return Fitted(network, lambda module, batch: module.network(batch[0]))


def _encoder(width):
    layers = Encoder(dim=width, depth=2, heads=2, attn_dim_head=8, ff_glu=True)
    network = TransformerWrapper(num_tokens=50, max_seq_len=16, attn_layers=layers, return_only_embed=True)
    return Fitted(network, _classified, head=nn.Linear(width, 4))


def _classified(module, batch):
    return F.cross_entropy(module.head(module.network(batch[0]).mean(1)), batch[1])


_data = batches(lambda g: (torch.randint(50, (NUM_SAMPLES, 12), generator=g), labels(g)))

ENTRIES = (Entry("Decoder", _decoder, _data), Entry("Encoder", _encoder, _data))
