"""kornia: networks of the package, and augmentation on the device as in its example with Lightning."""

import kornia.augmentation as augmentation
import torch.nn.functional as F  # noqa: N812
from kornia.contrib import TinyViT
from kornia.losses import ssim_loss
from torch import nn

from packages import Entry, Fitted, batches, images, labels

PACKAGE = "kornia"


class _Augmented(Fitted):
    """Augments after the transfer, while training."""

    def __init__(self, network):
        super().__init__(network, lambda module, batch: F.cross_entropy(module.network(batch[0]), batch[1]))
        self.transform = augmentation.AugmentationSequential(
            augmentation.RandomHorizontalFlip(p=0.5), augmentation.ColorJiggle(0.1, 0.1, 0.1, 0.1, p=0.7)
        )

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        if self.trainer.training:
            x = self.transform(x)
        return x, y


def _cnn(width):
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)),
    )


def _vit(width):
    return TinyViT(
        img_size=32,
        num_classes=4,
        embed_dims=[width, width, 2 * width, 2 * width],
        depths=[1, 1, 1, 1],
        num_heads=[2, 2, 2, 2],
        window_sizes=[4, 4, 4, 2],
        drop_path_rate=0.0,
    )


def _restored(module, batch):
    return ssim_loss(module.network(batch[0]).sigmoid(), batch[0], window_size=5)


def _autoencoder(width):
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1))


_data = batches(lambda g: (images(g), labels(g)))

ENTRIES = (
    Entry("AugmentationSequential", lambda w: _Augmented(_cnn(w)), _data),
    Entry("TinyViT", lambda w: _Augmented(_vit(w)), _data),
    Entry("ssim_loss", lambda w: Fitted(_autoencoder(w), _restored), _data),
)
