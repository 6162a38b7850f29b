"""pytorch-metric-learning: an embedding with losses, some of which have weights, and miners."""

from pytorch_metric_learning import losses, miners
from torch import nn

from packages import Entry, Fitted, batches, images, labels

PACKAGE = "pytorch_metric_learning"


def _network(width):
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 8)),
    )


def _plain(module, batch):
    return module.criterion(module.network(batch[0]), batch[1])


def _mined(module, batch):
    embedded = module.network(batch[0])
    return module.criterion(embedded, batch[1], module.miner(embedded, batch[1]))


def _entry(name, criterion, loss=_plain, **parts):
    def build(width):
        return Fitted(_network(width), loss, criterion=criterion(), **{key: part() for key, part in parts.items()})

    return Entry(name, build, batches(lambda g: (images(g), labels(g, 3))))


ENTRIES = (
    _entry("NTXentLoss", losses.NTXentLoss),
    _entry("ArcFaceLoss", lambda: losses.ArcFaceLoss(num_classes=3, embedding_size=8)),
    _entry("TripletMarginLoss", losses.TripletMarginLoss, _mined, miner=lambda: miners.MultiSimilarityMiner(0.5)),
    _entry("ProxyAnchorLoss", lambda: losses.ProxyAnchorLoss(num_classes=3, embedding_size=8)),
)
