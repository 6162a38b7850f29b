"""lightly: self-supervised learning as in the package's own examples."""

import copy
from functools import partial

import torch
from lightly.loss import (
    BarlowTwinsLoss,
    DINOLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    SwaVLoss,
    TiCoLoss,
    VICRegLoss,
)
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
    SwaVProjectionHead,
    SwaVPrototypes,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import nn

from packages import Entry, Fitted, batches, images

PACKAGE = "lightly"

_OUT = 16


def _backbone(width):
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def _projected(module, x):
    return module.head(module.network(x))


def _views(g):
    x = images(g)
    return [x + 0.1 * torch.randn(x.shape, generator=g) for _ in range(2)], torch.zeros(len(x), dtype=torch.long), []


def _two_views(head, criterion):
    def loss(module, batch):
        return module.criterion(*(_projected(module, x) for x in batch[0]))

    return lambda width: Fitted(_backbone(width), loss, head=head(width, 2 * width, _OUT), criterion=criterion())


class _WithTeacher(Fitted):
    """A copy follows the network slowly."""

    def __init__(self, width, loss, head, criterion, **parts):
        super().__init__(_backbone(width), loss, head=head(), criterion=criterion, **parts)
        self.teacher, self.teacher_head = copy.deepcopy(self.network), head()
        self.teacher_head.load_state_dict(self.head.state_dict())
        deactivate_requires_grad(self.teacher)
        deactivate_requires_grad(self.teacher_head)

    def training_step(self, batch, batch_idx):
        update_momentum(self.network, self.teacher, m=0.99)
        update_momentum(self.head, self.teacher_head, m=0.99)
        return super().training_step(batch, batch_idx)

    def taught(self, x):
        with torch.no_grad():
            return self.teacher_head(self.teacher(x))


def _byol_loss(module, batch):
    a, b = batch[0]
    seen = [module.prediction(_projected(module, x)) for x in (a, b)]
    return 0.5 * (module.criterion(seen[0], module.taught(b)) + module.criterion(seen[1], module.taught(a)))


def _byol(width):
    head = partial(BYOLProjectionHead, width, 2 * width, _OUT)
    prediction = BYOLPredictionHead(_OUT, 2 * width, _OUT)
    return _WithTeacher(width, _byol_loss, head, NegativeCosineSimilarity(), prediction=prediction)


def _moco_loss(module, batch):
    return module.criterion(_projected(module, batch[0][0]), module.taught(batch[0][1]))


def _moco(width):
    return _WithTeacher(
        width, _moco_loss, partial(MoCoProjectionHead, width, 2 * width, _OUT), NTXentLoss(memory_bank_size=(32, _OUT))
    )


def _dino_loss(module, batch):
    return module.criterion(
        [module.taught(x) for x in batch[0]], [_projected(module, x) for x in batch[0]], epoch=module.current_epoch
    )


def _dino(width):
    head = partial(DINOProjectionHead, width, 2 * width, _OUT, 2 * _OUT, batch_norm=False)
    return _WithTeacher(width, _dino_loss, head, DINOLoss(output_dim=2 * _OUT))


def _tico_loss(module, batch):
    return module.criterion(_projected(module, batch[0][0]), module.taught(batch[0][1]))


def _tico(width):
    return _WithTeacher(width, _tico_loss, partial(BYOLProjectionHead, width, 2 * width, _OUT), TiCoLoss())


def _simsiam_loss(module, batch):
    z = [_projected(module, x) for x in batch[0]]
    p = [module.prediction(x) for x in z]
    return 0.5 * (module.criterion(p[0], z[1].detach()) + module.criterion(p[1], z[0].detach()))


def _simsiam(width):
    return Fitted(
        _backbone(width),
        _simsiam_loss,
        head=SimSiamProjectionHead(width, 2 * width, _OUT),
        prediction=SimSiamPredictionHead(_OUT, width, _OUT),
        criterion=NegativeCosineSimilarity(),
    )


def _swav_loss(module, batch):
    module.prototypes.normalize()
    scores = [
        module.prototypes(nn.functional.normalize(_projected(module, x), dim=1), module.global_step) for x in batch[0]
    ]
    return module.criterion(scores, [])


def _swav(width):
    return Fitted(
        _backbone(width),
        _swav_loss,
        head=SwaVProjectionHead(width, 2 * width, _OUT),
        prototypes=SwaVPrototypes(_OUT, 8, n_steps_frozen_prototypes=1),
        criterion=SwaVLoss(),
    )


_data = batches(_views)

ENTRIES = (
    Entry("SimCLR", _two_views(SimCLRProjectionHead, NTXentLoss), _data),
    Entry("BarlowTwins", _two_views(BarlowTwinsProjectionHead, BarlowTwinsLoss), _data),
    Entry("VICReg", _two_views(BarlowTwinsProjectionHead, VICRegLoss), _data),
    Entry("BYOL", _byol, _data),
    Entry("MoCo", _moco, _data),
    Entry("DINO", _dino, _data),
    Entry("TiCo", _tico, _data),
    Entry("SimSiam", _simsiam, _data),
    Entry("SwaV", _swav, _data),
)
