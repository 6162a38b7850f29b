"""Between Lightning and the engine: a module's training step as a loss, and data as lists of batches."""

from lightning_zico.bridge.checks import check_data, check_readable_again, check_validation_data, pick_data
from lightning_zico.bridge.data import Reading, TrainingData
from lightning_zico.bridge.hooks import is_lightning
from lightning_zico.bridge.trainers import DEFAULT_SETTINGS, TrainerSettings

__all__ = [
    "DEFAULT_SETTINGS",
    "Reading",
    "TrainerSettings",
    "TrainingData",
    "check_data",
    "check_readable_again",
    "check_validation_data",
    "is_lightning",
    "pick_data",
]
