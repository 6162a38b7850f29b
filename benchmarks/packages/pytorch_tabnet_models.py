"""pytorch-tabnet: the network of the package, with its sparse masks."""

import torch
import torch.nn.functional as F  # noqa: N812
from pytorch_tabnet.tab_network import TabNet

from packages import NUM_SAMPLES, Entry, Fitted, batches, labels

PACKAGE = "pytorch-tabnet"


def _build(width):
    network = TabNet(6, 4, n_d=width, n_a=width, n_steps=2, virtual_batch_size=4, group_attention_matrix=torch.eye(6))
    return Fitted(network, _loss)


def _loss(module, batch):
    logits, sparsity = module.network(batch[0])
    return F.cross_entropy(logits, batch[1]) - 1e-3 * sparsity


ENTRIES = (Entry("TabNet", _build, batches(lambda g: (torch.randn(NUM_SAMPLES, 6, generator=g), labels(g)))),)
