"""torchgeo: tasks on aerial and satellite images; the data module normalises and augments on the device."""

import torch
from torch.utils.data import Dataset
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.trainers import (
    BYOLTask,
    ClassificationTask,
    ObjectDetectionTask,
    RegressionTask,
    SemanticSegmentationTask,
    SimCLRTask,
)

from packages import Entry

PACKAGE = "torchgeo"

_SIZE = 64


class _Images(Dataset):
    def __init__(self, kind, **given):
        self.kind = kind

    def __len__(self):
        return 8

    def __getitem__(self, idx):
        g = torch.Generator().manual_seed(idx)
        image = 255 * torch.rand(3, _SIZE, _SIZE, generator=g)
        return {"image": image, **_TARGETS[self.kind](g)}


_TARGETS = {
    "class": lambda g: {"label": torch.randint(4, (), generator=g)},
    "number": lambda g: {"label": torch.rand(1, generator=g)},
    "mask": lambda g: {"mask": torch.randint(4, (_SIZE, _SIZE), generator=g)},
    "nothing": lambda g: {},
    "boxes": lambda g: {
        "bbox_xyxy": torch.tensor([[4.0, 4, 30, 30], [20, 20, 60, 50]]) + 3 * torch.rand(2, 4, generator=g),
        "label": torch.randint(1, 4, (2,), generator=g),
    },
}


def _together(samples):
    lists = {"bbox_xyxy", "label"}
    return {
        key: [sample[key] for sample in samples] if key in lists else torch.stack([sample[key] for sample in samples])
        for key in samples[0]
    }


class _Data(NonGeoDataModule):
    def __init__(self, kind):
        super().__init__(_Images, batch_size=4, kind=kind)
        if kind == "boxes":
            self.collate_fn = _together

    def setup(self, stage):
        self.train_dataset = self.val_dataset = _Images(**self.kwargs)


def _resnet(width):
    return "resnet18" if width == 8 else "resnet34"


def _entry(task, kind, small=8, big=16, **options):
    def build(width):
        chosen = {name: value(width) if callable(value) else value for name, value in options.items()}
        return task(**chosen)

    return Entry(task.__name__, build, lambda: _Data(kind), small, big, validates=True)


ENTRIES = (
    _entry(ClassificationTask, "class", model=_resnet, num_classes=4),
    _entry(RegressionTask, "number", model=_resnet),
    _entry(SemanticSegmentationTask, "mask", model="fcn", num_classes=4, num_filters=lambda width: width),
    _entry(ObjectDetectionTask, "boxes", backbone=_resnet, num_classes=4),
    _entry(SimCLRTask, "nothing", model=_resnet, size=32, hidden_dim=32, output_dim=16, memory_bank_size=16),
    _entry(BYOLTask, "nothing", model=_resnet),
)
