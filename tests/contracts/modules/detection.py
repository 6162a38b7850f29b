"""Objects in images: boxes, centres, key points."""

from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor, nn
from torchvision.ops import box_iou, roi_align, sigmoid_focal_loss

from tests.contracts.modules.registry import NUM_SAMPLES, Trained, batches, ordinary

NUM_OBJECTS = 2
NUM_CLASSES = 3


def boxes_in(g: Generator, *shape: int) -> Tensor:
    corner = 0.5 * torch.rand(*shape, 2, generator=g)
    return torch.cat([corner, corner + 0.2 + 0.3 * torch.rand(*shape, 2, generator=g)], -1)


def listed(g: Generator) -> Any:
    sizes = [(16, 16), (12, 16), (16, 10), (14, 14)]
    targets = [{"boxes": boxes_in(g, n), "labels": torch.randint(NUM_CLASSES, (n,), generator=g)} for n in (1, 3, 2, 4)]
    return [torch.randn(3, *size, generator=g) for size in sizes], targets


def padded(g: Generator) -> Any:
    return {
        "image": torch.randn(NUM_SAMPLES, 3, 16, 16, generator=g),
        "boxes": boxes_in(g, NUM_SAMPLES, NUM_OBJECTS),
        "labels": torch.randint(NUM_CLASSES, (NUM_SAMPLES, NUM_OBJECTS), generator=g),
    }


def grids(g: Generator) -> Any:
    objects = (torch.rand(NUM_SAMPLES, 1, 4, 4, generator=g) < 0.3).float()
    offsets = torch.rand(NUM_SAMPLES, 4, 4, 4, generator=g)
    return torch.randn(NUM_SAMPLES, 3, 16, 16, generator=g), torch.cat([objects, offsets], 1)


def heat(g: Generator) -> Any:
    maps = torch.rand(NUM_SAMPLES, NUM_CLASSES, 8, 8, generator=g)
    return torch.randn(NUM_SAMPLES, 3, 16, 16, generator=g), maps / maps.amax((2, 3), keepdim=True)


def stem(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())


def stem_macs(w: int) -> int:
    return 64 * 27 * w + 16 * 9 * w * w


@ordinary(batches(listed), lambda w: stem_macs(w) + 16 * 9 * w * (NUM_CLASSES + 4))
class ImageList(Trained):
    """Takes a list of images of different sizes, as torchvision's detectors do, and pads them itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone, self.head = stem(width), nn.Conv2d(width, NUM_CLASSES + 4, 3, padding=1)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        x = torch.stack([F.pad(image, (0, 16 - image.shape[2], 0, 16 - image.shape[1])) for image in images])
        out = self.head(self.backbone(x)).mean((2, 3))
        scores, boxes = out.split([NUM_CLASSES, 4], 1)
        labels = [
            F.cross_entropy(row.expand(len(t["labels"]), -1), t["labels"])
            for row, t in zip(scores, targets, strict=True)
        ]
        places = [
            F.smooth_l1_loss(row.expand_as(t["boxes"]), t["boxes"]) for row, t in zip(boxes, targets, strict=True)
        ]
        return {"loss_classifier": torch.stack(labels).mean(), "loss_box": torch.stack(places).mean()}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        losses = self(images, targets)
        loss = sum(losses.values())
        self.log_dict(losses, batch_size=len(images))
        return loss


@ordinary(batches(grids), lambda w: stem_macs(w) + 16 * w * 5)
class YOLOGrid(Trained):
    """One prediction a cell; the boxes of empty cells do not count."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone, self.head = stem(width), nn.Conv2d(width, 5, 1)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        x, target = batch
        out = self.head(self.backbone(x))
        objects = target[:, 0] > 0.5
        confidence = F.binary_cross_entropy_with_logits(out[:, 0], target[:, 0])
        boxes = F.mse_loss(out[:, 1:].sigmoid().movedim(1, -1)[objects], target[:, 1:].movedim(1, -1)[objects])
        return {"loss": confidence + 5.0 * boxes, "confidence": confidence.detach(), "boxes": boxes.detach()}


@ordinary(batches(padded), lambda w: stem_macs(w) + 4 * 9 * w * w + (16 + 4) * 9 * w * (NUM_CLASSES + 1 + 4))
class SSD(Trained):
    """Anchors on two maps are matched with boxes by overlap."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone, self.extra = stem(width), nn.Conv2d(width, width, 3, 2, 1)
        self.classes = nn.ModuleList(nn.Conv2d(width, NUM_CLASSES + 1, 3, padding=1) for _ in range(2))
        self.boxes = nn.ModuleList(nn.Conv2d(width, 4, 3, padding=1) for _ in range(2))
        self.register_buffer("anchors", torch.cat([self.grid(4), self.grid(2)]))

    @staticmethod
    def grid(size: int) -> Tensor:
        centre = (torch.arange(size) + 0.5) / size
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        half = 0.6 / size
        return torch.stack([x - half, y - half, x + half, y + half], -1).flatten(0, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        first = self.backbone(batch["image"])
        maps = [first, F.relu(self.extra(first))]
        scores = torch.cat([h(m).flatten(2).mT for h, m in zip(self.classes, maps, strict=True)], 1)
        boxes = torch.cat([h(m).flatten(2).mT for h, m in zip(self.boxes, maps, strict=True)], 1)
        losses = []
        for n in range(len(scores)):
            overlap, match = box_iou(self.anchors, batch["boxes"][n]).max(1)
            positive = overlap >= min(0.3, float(overlap.max()))
            labels = torch.where(positive, batch["labels"][n][match] + 1, torch.zeros_like(match))
            offsets = batch["boxes"][n][match] - self.anchors
            losses.append(F.cross_entropy(scores[n], labels) + F.smooth_l1_loss(boxes[n][positive], offsets[positive]))
        return torch.stack(losses).mean()


@ordinary(batches(heat), lambda w: 64 * 27 * w + 16 * 9 * w * w + (64 + 16) * w * w + (64 + 16) * 9 * w * NUM_CLASSES)
class RetinaFPN(Trained):
    """A pyramid with a head that all levels share, and focal loss."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, width, 3, 2, 1)
        self.lateral1, self.lateral2 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.head = nn.Conv2d(width, NUM_CLASSES, 3, padding=1)
        nn.init.constant_(self.head.bias, -2.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, target = batch
        c1 = F.relu(self.c1(x))
        c2 = F.relu(self.c2(c1))
        p2 = self.lateral2(c2)
        p1 = self.lateral1(c1) + F.interpolate(p2, scale_factor=2, mode="nearest")
        fine = sigmoid_focal_loss(self.head(p1), (target > 0.8).float(), reduction="mean")
        coarse = sigmoid_focal_loss(self.head(p2), (F.max_pool2d(target, 2) > 0.9).float(), reduction="mean")
        return fine + coarse


@ordinary(batches(heat), lambda w: 64 * 27 * w + 16 * 9 * w * w + 16 * w * w * 4 + 64 * w * NUM_CLASSES)
class CenterNet(Trained):
    """Heat maps with values in [0, 1], and the loss that goes with them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = stem(width)
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.head = nn.Conv2d(width, NUM_CLASSES, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, target = batch
        assert 0 <= float(target.min()) <= float(target.max()) <= 1
        p = self.head(F.relu(self.up(self.backbone(x)))).sigmoid().clamp(1e-4, 1 - 1e-4)
        peak = target.eq(1).float()
        positive = peak * (1 - p) ** 2 * p.log()
        negative = (1 - peak) * (1 - target) ** 4 * p**2 * (1 - p).log()
        return -(positive + negative).sum() / peak.sum().clamp(min=1)


@ordinary(batches(heat), lambda w: stem_macs(w) + 16 * 9 * w * w + 16 * w * NUM_CLASSES)
class Keypoints(Trained):
    """Coordinates as the mean of a soft heat map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(stem(width), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 3, 1))

    @staticmethod
    def expected(maps: Tensor) -> Tensor:
        places = torch.linspace(-1, 1, maps.shape[-1], device=maps.device)
        return torch.stack([(maps.sum(2) * places).sum(-1), (maps.sum(3) * places).sum(-1)], -1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, target = batch
        maps = self.net(x)
        maps = maps.flatten(2).softmax(-1).view_as(maps)
        return F.l1_loss(self.expected(maps), self.expected(target / target.sum((2, 3), keepdim=True)))


@ordinary(
    batches(padded),
    # stem, memory's keys and values, queries of self- and cross-attention, two sums each, feed-forward, heads
    lambda w: (
        stem_macs(w)
        + (3 * 4 * w * w + 2 * 9 * w)
        + (3 * 2 * w * w + 16 * 2 * w * w + 2 * 3 * 16 * w)
        + 3 * 2 * w * 2 * w
        + 3 * w * (NUM_CLASSES + 1 + 4)
    ),
    unweighted=["queries", "position"],
)
class DETR(Trained):
    """Three queries, matched with the objects by the Hungarian method, which looks at values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = stem(width)
        self.position = nn.Parameter(0.1 * torch.randn(16, width))
        self.queries = nn.Parameter(torch.randn(3, width))
        self.decoder = nn.TransformerDecoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.classes, self.boxes = nn.Linear(width, NUM_CLASSES + 1), nn.Linear(width, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        memory = self.backbone(batch["image"]).flatten(2).mT + self.position
        x = self.decoder(self.queries.expand(len(memory), -1, -1), memory)
        scores, boxes = self.classes(x), self.boxes(x).sigmoid()
        losses = []
        for n in range(len(x)):
            labels, target = batch["labels"][n], batch["boxes"][n]
            cost = (boxes[n][:, None] - target[None]).abs().sum(-1) - scores[n].softmax(-1)[:, labels]
            rows, columns = linear_sum_assignment(cost.detach().cpu())
            wanted = torch.full((3,), NUM_CLASSES, device=self.device)
            wanted[rows] = labels[columns]
            losses.append(F.cross_entropy(scores[n], wanted) + F.l1_loss(boxes[n][rows], target[columns]))
        return torch.stack(losses).mean()


@ordinary(batches(padded), lambda w: stem_macs(w) + NUM_OBJECTS * (4 * w * 2 * w + 2 * w * NUM_CLASSES))
class RegionHead(Trained):
    """Classifies given regions, two of each image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = stem(width)
        self.head = nn.Sequential(nn.Linear(4 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, NUM_CLASSES))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        regions = roi_align(self.backbone(batch["image"]), list(16 * batch["boxes"]), 2, spatial_scale=0.25)
        return F.cross_entropy(self.head(regions.flatten(1)), batch["labels"].flatten())
