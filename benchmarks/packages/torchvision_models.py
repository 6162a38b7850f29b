"""torchvision: classification, detection, segmentation."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torchvision.models import SqueezeNet
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.segmentation.fcn import FCNHead

from packages import NUM_SAMPLES, Entry, Fitted, batches, images, labels

PACKAGE = "torchvision"


def _targets(g, num_images=4):
    def boxes():
        corner = 24 * torch.rand(2, 2, generator=g)
        return torch.cat([corner, corner + 12 + 20 * torch.rand(2, 2, generator=g)], 1)

    return [{"boxes": boxes(), "labels": torch.randint(1, 4, (2,), generator=g)} for _ in range(num_images)]


def _backbone(width):
    network = nn.Sequential(
        *(nn.Conv2d(3, width, 3, 4, 1), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, 4, 1), nn.BatchNorm2d(width), nn.ReLU()),
    )
    network.out_channels = width
    return network


_SMALL = {"min_size": 64, "max_size": 64, "num_classes": 4}
_ANCHORS = {"sizes": ((16, 32),), "aspect_ratios": ((1.0,),)}


def _faster_rcnn(width):
    return FasterRCNN(
        _backbone(width),
        rpn_anchor_generator=AnchorGenerator(**_ANCHORS),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(width * 49, width), nn.ReLU()),
        box_predictor=_Predictor(width),
        rpn_pre_nms_top_n_train=50,
        rpn_post_nms_top_n_train=20,
        min_size=64,
        max_size=64,
    )


class _Predictor(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scores, self.boxes = nn.Linear(width, 4), nn.Linear(width, 16)

    def forward(self, x):
        return self.scores(x), self.boxes(x)


def _retina_net(width):
    return RetinaNet(_backbone(width), anchor_generator=AnchorGenerator(**_ANCHORS), **_SMALL)


def _detection(module, batch):
    return sum(module.network(*batch).values())


class _Segmenter(nn.Sequential):
    def __init__(self, width):
        super().__init__(_backbone(4 * width), FCNHead(4 * width, 3), nn.Upsample(scale_factor=16, mode="bilinear"))


_detections = batches(lambda g: (list(images(g, 64, num_samples=4)), _targets(g)))
_pictures = batches(lambda g: (images(g, 64), labels(g)))
_masks = batches(lambda g: (images(g), torch.randint(3, (NUM_SAMPLES, 32, 32), generator=g)))


def _classes(module, batch):
    return F.cross_entropy(module.network(batch[0]), batch[1])


def _squeezenet(width):
    version = "1_1" if width == 8 else "1_0"
    return SqueezeNet(version, num_classes=4)


ENTRIES = (
    Entry("FasterRCNN", lambda w: Fitted(_faster_rcnn(w), _detection), _detections),
    Entry("RetinaNet", lambda w: Fitted(_retina_net(w), _detection), _detections, small=32, big=64),
    Entry("FCNHead", lambda w: Fitted(_Segmenter(w), _classes), _masks),
    Entry("SqueezeNet", lambda w: Fitted(_squeezenet(w), _classes), _pictures),
)
