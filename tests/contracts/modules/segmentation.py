"""A label for each pixel of images of 8 x 8."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torchmetrics.segmentation import DiceScore

from tests.contracts.modules.registry import NUM_SAMPLES, Trained, batches, ordinary

NUM_CLASSES = 3
IGNORED = 255


def images(g: Generator, channels: int = 3) -> Tensor:
    return torch.randn(NUM_SAMPLES, channels, 8, 8, generator=g)


def masks(g: Generator) -> Any:
    return images(g), (torch.rand(NUM_SAMPLES, 1, 8, 8, generator=g) < 0.4).float()


def maps(g: Generator) -> Any:
    target = torch.randint(NUM_CLASSES, (NUM_SAMPLES, 8, 8), generator=g)
    return images(g), target.masked_fill(torch.rand(NUM_SAMPLES, 8, 8, generator=g) < 0.1, IGNORED)


def one_hot(g: Generator) -> Any:
    target = torch.randint(NUM_CLASSES, (NUM_SAMPLES, 8, 8), generator=g)
    return {"image": images(g), "mask": F.one_hot(target, NUM_CLASSES).movedim(-1, 1).float()}


def volumes(g: Generator) -> Any:
    target = torch.randint(NUM_CLASSES, (4, 1, 4, 8, 8), generator=g)
    return {"image": torch.randn(4, 1, 4, 8, 8, generator=g), "label": target.float()}


def conv(in_channels: int, out_channels: int, **options: Any) -> nn.Sequential:
    options = {"padding": 1, "bias": False} | options
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, **options), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
    )


def dice_loss(p: Tensor, target: Tensor) -> Tensor:
    axes = tuple(range(2, p.ndim))
    return 1 - ((2 * (p * target).sum(axes) + 1) / (p.sum(axes) + target.sum(axes) + 1)).mean()


class UNet(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, width: int) -> None:
        super().__init__()
        self.down1, self.down2 = conv(in_channels, width), conv(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join, self.out = conv(2 * width, width), nn.Conv2d(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        x = self.down2(F.max_pool2d(skip, 2))
        return self.out(self.join(torch.cat([skip, self.up(x)], 1)))


def unet_macs(w: int, out_channels: int) -> int:
    return 64 * 27 * w + 16 * 9 * w * 2 * w + 16 * 2 * w * w * 4 + 64 * 9 * 2 * w * w + 64 * w * out_channels


@ordinary(batches(masks), lambda w: unet_macs(w, 1))
class BinaryUNet(Trained):
    """Cross-entropy and Dice on masks that have to lie in [0, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = UNet(3, 1, width)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, target = batch
        assert float(target.max()) <= 1.0
        assert float(target.min()) >= 0.0
        logits = self.net(x)
        return F.binary_cross_entropy_with_logits(logits, target) + dice_loss(logits.sigmoid(), target)


@ordinary(batches(maps), lambda w: unet_macs(w, NUM_CLASSES))
class IgnoringUNet(Trained):
    """Classes as integers, some pixels of which do not count."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = UNet(3, NUM_CLASSES, width)
        self.criterion = nn.CrossEntropyLoss(ignore_index=IGNORED)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, target = batch
        logits = self.net(x)
        loss = self.criterion(logits, target)
        self.log("pixel_acc", (logits.argmax(1) == target)[target != IGNORED].float().mean())
        return loss


@ordinary(batches(one_hot), lambda w: unet_macs(w, NUM_CLASSES))
class OneHotUNet(Trained):
    """One-hot floats as targets, made classes again, and a metric that checks them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = UNet(3, NUM_CLASSES, width)
        self.dice = DiceScore(NUM_CLASSES, input_format="index")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        target = batch["mask"]
        logits = self.net(batch["image"])
        if not torch.equal(target.sum(1), torch.ones_like(target[:, 0])):
            raise ValueError("the target is no one-hot code")
        self.log("dice", self.dice(logits.argmax(1), target.argmax(1)))
        focal = F.cross_entropy(logits, target.argmax(1), reduction="none")
        return ((1 - torch.exp(-focal)) ** 2 * focal).mean() + dice_loss(logits.softmax(1), target)


@ordinary(
    batches(volumes),
    lambda w: 256 * 27 * w + 32 * 27 * w * 2 * w + 32 * 2 * w * w * 8 + 256 * 27 * 2 * w * w + 256 * w * NUM_CLASSES,
    small=2,
    big=4,
)
class VolumeUNet(Trained):
    """Three dimensions, with labels that come as floats and become indices."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv3d(1, width, 3, padding=1), nn.InstanceNorm3d(width), nn.PReLU())
        self.down2 = nn.Sequential(nn.Conv3d(width, 2 * width, 3, padding=1), nn.InstanceNorm3d(2 * width), nn.PReLU())
        self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.join = nn.Sequential(nn.Conv3d(2 * width, width, 3, padding=1), nn.InstanceNorm3d(width), nn.PReLU())
        self.out = nn.Conv3d(width, NUM_CLASSES, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        skip = self.down1(batch["image"])
        x = self.up(self.down2(F.max_pool3d(skip, 2)))
        p = self.out(self.join(torch.cat([skip, x], 1))).softmax(1)
        target = torch.zeros_like(p).scatter_(1, batch["label"].long(), 1.0)
        return dice_loss(p, target)


@ordinary(batches(maps), lambda w: 64 * 27 * w + 64 * (w * w + 2 * 9 * w * w) + w * w + 64 * 4 * w * w + 64 * w * 3)
class ASPP(Trained):
    """Dilated convolutions side by side, as DeepLab has them, one of them on the mean of the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = conv(3, width)
        self.branches = nn.ModuleList(
            [nn.Conv2d(width, width, 1), *(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in (1, 2))]
        )
        self.pooled = nn.Conv2d(width, width, 1)
        self.join, self.out = nn.Conv2d(4 * width, width, 1), nn.Conv2d(width, NUM_CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = self.pooled(x.mean((2, 3), keepdim=True))
        parts = [F.relu(branch(x)) for branch in self.branches]
        pooled = F.interpolate(pooled, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.out(F.relu(self.join(torch.cat([*parts, pooled], 1))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1], ignore_index=IGNORED)


@ordinary(batches(masks), lambda w: 64 * 27 * w + 16 * 9 * w * w + 64 * 9 * w * w + 16 * w + 64 * w)
class DeepSupervision(Trained):
    """Two outputs, of which the coarse one counts less in every epoch, and a dictionary of losses."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, width), conv(width, width), conv(width, width)
        self.coarse, self.fine = nn.Conv2d(width, 1, 1), nn.Conv2d(width, 1, 1)

    def on_train_epoch_start(self) -> None:
        self.coarse_weight = 1 - self.current_epoch / self.trainer.max_epochs

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, target = batch
        x = self.first(x)
        y = self.second(F.avg_pool2d(x, 2))
        x = self.third(x + F.interpolate(y, scale_factor=2))
        fine = F.binary_cross_entropy(self.fine(x).sigmoid(), target)
        coarse = F.binary_cross_entropy(self.coarse(y).sigmoid(), F.adaptive_max_pool2d(target, 4))
        return {"loss": fine + self.coarse_weight * coarse, "fine": fine.detach(), "coarse": coarse.detach()}


@ordinary(
    batches(maps), lambda w: 64 * 27 * w + 16 * 9 * w * w + (64 + 16) * w * w + 64 * w + 64 * 9 * 2 * w * w + 64 * w * 3
)
class AttentionGate(Trained):
    """A skip connection that a gate weighs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv(3, width), conv(width, width)
        self.query, self.key = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1, bias=False)
        self.gate, self.join = nn.Conv2d(width, 1, 1), conv(2 * width, width)
        self.out = nn.Conv2d(width, NUM_CLASSES, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, target = batch
        skip = self.first(x)
        y = self.second(F.max_pool2d(skip, 2))
        up = F.interpolate(self.key(y), scale_factor=2, mode="bilinear")
        gate = self.gate(F.relu(self.query(skip) + up)).sigmoid()
        x = self.join(torch.cat([gate * skip, F.interpolate(y, scale_factor=2)], 1))
        return F.cross_entropy(self.out(x), target, ignore_index=IGNORED)
