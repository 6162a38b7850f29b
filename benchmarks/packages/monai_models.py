"""MONAI: networks for images and volumes, with losses on masks."""

import torch
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, TverskyLoss
from monai.networks.nets import UNETR, AttentionUnet, BasicUNet, DenseNet, SegResNet, UNet

from packages import Entry, Fitted, batches, images, labels

PACKAGE = "monai"


def _volumes(size, channels=1):
    def make(g):
        shape = (2, channels, size, size, size)
        mask = (torch.rand(2, 1, size, size, size, generator=g) < 0.4).float()
        return {"image": torch.randn(shape, generator=g), "label": mask}

    return batches(make)


def _loss(module, batch):
    return module.criterion(module.network(batch["image"]), batch["label"])


def _one_hot(g):
    return {"image": images(g, channels=1), "label": torch.randint(3, (8, 1, 32, 32), generator=g).float()}


def _unet(width):
    return UNet(3, 1, 1, channels=(width, 2 * width), strides=(2,), num_res_units=1)


def _basic(width):
    return BasicUNet(2, 1, 3, features=(width, width, width, 2 * width, 2 * width, width))


def _attention(width):
    return AttentionUnet(3, 1, 1, channels=(width, 2 * width), strides=(2,))


def _residual(width):
    return SegResNet(3, width, 1, 1, blocks_down=(1, 1), blocks_up=(1,))


def _unetr(width):
    return UNETR(1, 1, (32, 32, 32), feature_size=4, hidden_size=2 * width, mlp_dim=4 * width, num_heads=2)


def _densenet(width):
    return DenseNet(2, 1, 4, init_features=width, growth_rate=width // 2, block_config=(2, 2))


def _classified(module, batch):
    return torch.nn.functional.cross_entropy(module.network(batch[0]), batch[1])


def _entry(network, name, criterion, data):
    return Entry(name, lambda width: Fitted(network(width), _loss, criterion=criterion()), data)


ENTRIES = (
    _entry(_unet, "UNet", lambda: DiceLoss(sigmoid=True), _volumes(16)),
    _entry(_basic, "BasicUNet", lambda: DiceCELoss(to_onehot_y=True, softmax=True), batches(_one_hot)),
    _entry(_attention, "AttentionUnet", lambda: TverskyLoss(sigmoid=True), _volumes(16)),
    _entry(_residual, "SegResNet", lambda: FocalLoss(), _volumes(16)),
    _entry(_unetr, "UNETR", lambda: DiceLoss(sigmoid=True), _volumes(32)),
    Entry(
        "DenseNet", lambda w: Fitted(_densenet(w), _classified), batches(lambda g: (images(g, channels=1), labels(g)))
    ),
)
