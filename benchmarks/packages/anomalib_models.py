"""anomalib: detectors of anomalies, whose pre-processor is a callback of the module."""

import tempfile
from pathlib import Path

import numpy as np
import timm
from anomalib.data import Folder
from anomalib.models import Fastflow, Ganomaly, ReverseDistillation, Stfpm
from PIL import Image

from packages import Entry

PACKAGE = "anomalib"

# Some models accept only pretrained backbones, and weights are not downloaded here.
_create_model = timm.create_model
timm.create_model = lambda *args, **options: _create_model(*args, **options | {"pretrained": False})

_FOLDER = tempfile.TemporaryDirectory()


def _pictures():
    folder = Path(_FOLDER.name, "normal")
    if not folder.exists():
        folder.mkdir()
        random = np.random.default_rng(0)
        for idx in range(8):
            Image.fromarray(random.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(folder / f"{idx}.png")
    return _FOLDER.name


def _data():
    return Folder(
        name="noise",
        root=_pictures(),
        normal_dir="normal",
        train_batch_size=4,
        num_workers=0,
        test_split_mode="none",
        val_split_mode="none",
    )


def _entry(model, said=None, **options):
    def build(width):
        chosen = {name: value(width) if callable(value) else value for name, value in options.items()}
        pre_processor = model.configure_pre_processor((96, 96))
        return model(**chosen, pre_processor=pre_processor, visualizer=False, evaluator=False)

    return Entry(model.__name__, build, _data, options=said or {})


def _resnet(width):
    return "resnet18" if width == 8 else "resnet34"


def _ganomaly_step(module, batch, batch_idx):
    padded, fake, latent, again = module.model(batch.image)
    judged = [module.model.discriminator(images)[0] for images in (padded, fake)]
    return module.generator_loss(latent, again, padded, fake, *judged)


ENTRIES = (
    _entry(Stfpm, backbone=_resnet),
    _entry(Fastflow, pre_trained=False, flow_steps=lambda width: width // 4),
    _entry(ReverseDistillation, backbone=_resnet, pre_trained=False),
    _entry(
        Ganomaly,
        {"step": _ganomaly_step},
        n_features=lambda width: width,
        latent_vec_size=lambda width: width,
    ),
)
