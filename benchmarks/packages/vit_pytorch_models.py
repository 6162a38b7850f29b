"""vit-pytorch: variants of vision transformers."""

import torch.nn.functional as F  # noqa: N812
from vit_pytorch import SimpleViT, ViT
from vit_pytorch.cait import CaiT

from packages import Entry, Fitted, batches, images, labels

PACKAGE = "vit-pytorch"

_SHAPE = {"image_size": 32, "patch_size": 8, "num_classes": 4, "depth": 2, "heads": 2, "dim_head": 8}


def _classified(module, batch):
    return F.cross_entropy(module.network(batch[0]), batch[1])


def _entry(network, **options):
    def build(width):
        return Fitted(network(**_SHAPE, dim=width, mlp_dim=2 * width, **options), _classified)

    return Entry(network.__name__, build, _data)


_data = batches(lambda g: (images(g), labels(g)))

ENTRIES = (
    _entry(ViT),
    _entry(SimpleViT),
    _entry(CaiT, cls_depth=1),
)
