"""Classification of images of three channels and 8 x 8 pixels."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from tests.contracts.modules.registry import NUM_CLASSES, NUM_SAMPLES, Trained, batches, labels, loader_of, ordinary

images = batches(lambda g: (torch.randn(NUM_SAMPLES, 3, 8, 8, generator=g), labels(g)))


@ordinary(images, lambda w: 64 * 27 * w + 16 * 9 * w * 2 * w + 2 * w * 5)
class PlainCNN(Trained):
    """Logs a loss and a metric."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
        )
        self.head = nn.Linear(2 * width, NUM_CLASSES)
        self.accuracy = MulticlassAccuracy(NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", self.accuracy(logits, y), on_step=True, on_epoch=True)
        return loss


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(x + self.norm2(self.conv2(y)))


@ordinary(images, lambda w: 64 * 27 * w + 2 * 2 * 64 * 9 * w * w + w * 5)
class OneCycleResNet(Trained):
    """Asks the trainer how long it trains, as Lightning's documentation shows."""

    def __init__(self, width: int, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(Residual(width), Residual(width))
        self.head = nn.Linear(width, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        self.log("lr", self.lr_schedulers().get_last_lr()[0])
        return F.cross_entropy(logits, y, label_smoothing=0.1)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.hparams.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@ordinary(
    images,
    lambda w: 16 * 27 * w + 16 * w * 2 * w + 16 * 9 * 2 * w + 2 * (2 * w * (w // 2)) + 16 * 2 * w * w + w * 5,
)
class MobileNet(Trained):
    """An inverted residual with squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU(True))
        self.depthwise = nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1, groups=wide), nn.BatchNorm2d(wide), nn.SiLU(True))
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            *(nn.Conv2d(wide, width // 2, 1), nn.SiLU(), nn.Conv2d(width // 2, wide, 1), nn.Sigmoid()),
        )
        self.project = nn.Sequential(nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, NUM_CLASSES)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        x = x + self.project(y * self.squeeze(y))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, y = batch
        logits = self(x)
        return {"loss": self.criterion(logits, y), "logits": logits.detach()}


@ordinary(
    images,
    lambda w: 4 * 48 * w + 5 * 4 * w * w + 2 * 25 * w + 5 * 2 * w * 2 * w + w * 5,
    unweighted=["position", "cls"],
)
class MHAViT(Trained):
    """A vision transformer around `nn.MultiheadAttention`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 5, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.position
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(self.norm2(x)))[:, 0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.05)


@ordinary(images, lambda w: 4 * 48 * w + w * 2 * 4 * 8 + 4 * 2 * w * 2 * w + w * 5)
class Mixer(Trained):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(48, width)
        self.tokens = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.channels = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        x = self.embed(F.unfold(x, 4, stride=4).mT)
        x = x + self.tokens(self.norm(x).mT).mT
        x = x + self.channels(x)
        return F.cross_entropy(self.head(x.mean(1)), y)


class LoRALinear(nn.Module):
    """A frozen layer and a trainable update of rank two, as papers' code writes it."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.lora_b = nn.Parameter(0.1 * torch.randn(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.lora_a.T @ self.lora_b.T) * 0.5


@ordinary(images, lambda w: 192 * w + 2 * 192 + 2 * w + w * w + 2 * w + 2 * w + w * 5, small=8, big=16)
class LoRAClassifier(Trained):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = LoRALinear(nn.Linear(192, width)), LoRALinear(nn.Linear(width, width))
        self.head = nn.Linear(width, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = F.gelu(self.first(batch[0].flatten(1)))
        return F.cross_entropy(self.head(F.gelu(self.second(x))), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


@ordinary(
    images,
    lambda w: 4 * 48 * w + 5 * 4 * w * w + 2 * 25 * w + 5 * 2 * w * 4 * w + w * 5,
    unweighted=["*pos_embed", "*cls_token"],
)
class TimmViT(Trained):
    """A model of timm, whose attention is fused."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = VisionTransformer(
            img_size=8, patch_size=4, embed_dim=width, depth=1, num_heads=2, num_classes=NUM_CLASSES
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])


@ordinary(images, lambda w: 16 * 27 * w + 16 * 9 * w * w + w * 16 + 16 * 5)
class FrozenBackbone(Trained):
    """Trains a head of two layers on features that stay as they are; the backbone is in eval mode all the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            *(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.backbone.requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, NUM_CLASSES))

    def on_train_epoch_start(self) -> None:
        self.backbone.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            features = self.backbone(batch[0])
        return F.cross_entropy(self.head(features), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), lr=0.1)


class StandardizedConv(nn.Module):
    """A convolution of its own class, whose weight is standardised in every pass."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(out_channels, in_channels, 3, 3))
        self.gain = nn.Parameter(torch.ones(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(var + 1e-5) * self.gain[:, None, None, None]
        return F.conv2d(x, weight, padding=1)


@ordinary(images, lambda w: 64 * 27 * w + 64 * 9 * w * w + w * 5)
class NormFreeNet(Trained):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = StandardizedConv(3, width), StandardizedConv(width, width)
        self.head = nn.Linear(width, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = F.relu(self.first(batch[0]))
        return F.cross_entropy(self.head(F.relu(x + self.second(x)).mean((-2, -1))), batch[1])


@ordinary(images, lambda w: (192 * 6 + 6 * 5) + (192 * w + w * 5))
class Distillation(Trained):
    """A student that learns from a frozen teacher."""

    def __init__(self, width: int, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, NUM_CLASSES))
        for parameter in self.teacher.parameters():
            parameter.requires_grad = False
        self.student = nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, NUM_CLASSES))

    def on_fit_start(self) -> None:
        self.teacher.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        with torch.no_grad():
            target = F.softmax(self.teacher(x) / self.temperature, dim=1)
        logits = self.student(x)
        soft = F.kl_div(F.log_softmax(logits / self.temperature, dim=1), target, reduction="batchmean")
        return 0.5 * F.cross_entropy(logits, y) + 0.5 * self.temperature**2 * soft


class NormalizedImages(LightningDataModule):
    """Normalises on the device, while training only, as Lightning's documentation shows."""

    def setup(self, stage: str) -> None:
        self.batches = images()

    def train_dataloader(self) -> Any:
        return loader_of([(5 + 3 * x, y) for x, y in self.batches])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        if self.trainer.training:
            x = (x - 5) / 3
        return x, y


@ordinary(NormalizedImages, lambda w: 4 * 48 * w + 4 * w * 2 * w + 2 * w * 5, comparable=False)
class PatchNet(Trained):
    """Builds its layers when the trainer asks it to, and its loss when fitting starts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.network: nn.Module | None = None

    def configure_model(self) -> None:
        if self.network is None:
            self.network = nn.Sequential(
                *(nn.Conv2d(3, self.width, 4, 4), nn.ReLU(), nn.Conv2d(self.width, 2 * self.width, 1), nn.ReLU()),
                *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * self.width, NUM_CLASSES)),
            )

    def on_fit_start(self) -> None:
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        assert x.abs().mean() < 2, "the data module has normalised"
        return self.criterion(self.network(x), y)


@ordinary(images, lambda w: 64 * 27 * w + 64 * 9 * w * w + w * 5, comparable=False)
class Mixup(Trained):
    """Mixes the samples of a batch with a weight drawn in the step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(3, width, 3, 1, 1), nn.GroupNorm(2, width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1)),
            *(nn.GroupNorm(2, width), nn.ReLU(), nn.Dropout(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(width, NUM_CLASSES),
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        weight = torch.distributions.Beta(0.4, 0.4).sample().item()
        order = torch.randperm(len(x), device=self.device)
        logits = self.net(weight * x + (1 - weight) * x[order])
        return weight * F.cross_entropy(logits, y) + (1 - weight) * F.cross_entropy(logits, y[order])


@ordinary(images, lambda w: 192 * w + w * w + w * 5, comparable=False)
class LazyMLP(Trained):
    """Does not know the size of its inputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Flatten(), nn.LazyLinear(width), nn.LazyBatchNorm1d(), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, NUM_CLASSES)),
        )
        self.example_input_array = torch.zeros(2, 3, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def on_fit_start(self) -> None:
        self.eval()
        self(self.example_input_array)
        self.train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])
