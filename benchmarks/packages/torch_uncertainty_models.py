"""torch-uncertainty: routines around networks that estimate their uncertainty."""

import torch
from torch import nn
from torch_uncertainty.layers import BayesLinear
from torch_uncertainty.layers.distributions import NormalLinear
from torch_uncertainty.losses import DistributionNLLLoss, ELBOLoss
from torch_uncertainty.methods import mc_dropout
from torch_uncertainty.optim_recipes import optim_cifar10_resnet18
from torch_uncertainty.routines import ClassificationRoutine, RegressionRoutine, SegmentationRoutine

from packages import NUM_SAMPLES, Entry, batches, images, labels

PACKAGE = "torch-uncertainty"


def _adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


def _cnn(width):
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(width, 4)),
    )


def _classification(width):
    return ClassificationRoutine(_cnn(width), 4, nn.CrossEntropyLoss(), optim_recipe=optim_cifar10_resnet18)


def _mixup(width):
    return ClassificationRoutine(
        _cnn(width), 4, nn.CrossEntropyLoss(), optim_recipe=_adam, mixup_params={"mixtype": "mixup", "mixup_alpha": 1.0}
    )


def _dropout(width):
    model = mc_dropout(_cnn(width), num_estimators=2, on_batch=False)
    return ClassificationRoutine(model, 4, nn.CrossEntropyLoss(), optim_recipe=_adam, is_ensemble=True)


def _bayesian(width):
    network = nn.Sequential(BayesLinear(6, width), nn.ReLU(), BayesLinear(width, 4))
    loss = ELBOLoss(network, nn.CrossEntropyLoss(), kl_weight=1e-3, num_samples=2)
    return ClassificationRoutine(network, 4, loss, optim_recipe=_adam)


def _regression(width):
    network = nn.Sequential(nn.Linear(6, width), nn.ReLU(), NormalLinear(nn.Linear, event_dim=1, in_features=width))
    return RegressionRoutine(network, 1, DistributionNLLLoss(), dist_family="normal", optim_recipe=_adam)


def _segmentation(width):
    network = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 4, 1))
    return SegmentationRoutine(network, 4, nn.CrossEntropyLoss(), optim_recipe=_adam)


_pictures = batches(lambda g: (images(g), labels(g)))
_rows = batches(lambda g: (torch.randn(NUM_SAMPLES, 6, generator=g), labels(g)))
_numbers = batches(lambda g: (torch.randn(NUM_SAMPLES, 6, generator=g), torch.randn(NUM_SAMPLES, 1, generator=g)))
_masks = batches(lambda g: (images(g, 16), torch.randint(4, (NUM_SAMPLES, 16, 16), generator=g)))

ENTRIES = (
    Entry("ClassificationRoutine", _classification, _pictures),
    Entry("Mixup", _mixup, _pictures),
    Entry("MCDropout", _dropout, _pictures),
    Entry("BayesLinear", _bayesian, _rows),
    Entry("RegressionRoutine", _regression, _numbers),
    Entry("SegmentationRoutine", _segmentation, _masks),
)
