"""segmentation_models_pytorch: as in the package's example, which normalises in the network and checks its masks."""

import segmentation_models_pytorch as smp
import torch

from packages import NUM_SAMPLES, Entry, Fitted, batches

PACKAGE = "segmentation_models_pytorch"

_SIZE = 64


class _Segmenter(Fitted):
    """The example's module, without its validation."""

    def __init__(self, network, criterion, **parts):
        super().__init__(network, self.loss_of, criterion=criterion, **parts)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))

    @staticmethod
    def loss_of(module, batch):
        image, mask = batch
        assert image.ndim == 4
        assert mask.max() <= 1.0
        assert mask.min() >= 0
        logits = module.network((image - module.mean) / module.std)
        loss = module.criterion(logits, mask)
        predicted = (logits.sigmoid() > 0.5).float()
        smp.metrics.get_stats(predicted.long(), mask.long(), mode="binary")
        return loss


def _masks(g):
    image = torch.rand(NUM_SAMPLES, 3, _SIZE, _SIZE, generator=g)
    return image, (torch.rand(NUM_SAMPLES, 1, _SIZE, _SIZE, generator=g) < 0.4).float()


def _classes(g):
    image = torch.rand(NUM_SAMPLES, 3, _SIZE, _SIZE, generator=g)
    return image, torch.randint(3, (NUM_SAMPLES, _SIZE, _SIZE), generator=g)


def _encoder(width):
    return {"encoder_name": "resnet18" if width == 8 else "resnet34", "encoder_weights": None, "in_channels": 3}


def _binary(architecture, criterion, **options):
    def build(width):
        return _Segmenter(architecture(**_encoder(width), classes=1, **options), criterion())

    return Entry(architecture.__name__, build, batches(_masks))


def _dice():
    return smp.losses.DiceLoss("binary", from_logits=True)


def _focal():
    return smp.losses.FocalLoss("binary")


def _multiclass_loss(module, batch):
    return module.criterion(module.network(batch[0]), batch[1])


def _multiclass(width):
    return Fitted(
        smp.PSPNet(**_encoder(width), classes=3), _multiclass_loss, criterion=smp.losses.JaccardLoss("multiclass")
    )


ENTRIES = (
    _binary(smp.Unet, _dice),
    _binary(smp.FPN, _dice),
    _binary(smp.DeepLabV3Plus, _focal),
    _binary(smp.Linknet, smp.losses.SoftBCEWithLogitsLoss),
    Entry("PSPNet", _multiclass, batches(_classes)),
)
