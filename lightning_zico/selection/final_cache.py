"""Trainings of finals that are stored, so that a run that was killed resumes where it stopped."""

import base64
import hashlib
import json
import random
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_zico.bridge import TrainerSettings
from lightning_zico.bridge.modules import unwrap_compiled
from lightning_zico.errors import UnfingerprintableError
from lightning_zico.scoring.cache import CacheLike, SQLiteCache, open_cache
from lightning_zico.scoring.fingerprint import fingerprint, surroundings

_ENTRY = "training"  # the column `proxy` of its entry


@dataclass(frozen=True)
class Epochs:
    """What is known of a training after its last epoch.

    Args:
        values: The monitored metric after each epoch; None where it was not read or not logged.
        seconds: Time that each epoch took, in seconds.
        ends: Numbers of epochs after which training ended by itself.
        generators: The states of the generators after the last epoch; see `generators_as_text`.
        classes: Names of the classes in the checkpoint that torch only loads if they are declared safe; None if they
            are unknown.
        hash: Hash of the file of the checkpoint.

    Example:
        >>> epochs = Epochs((0.5, None), (1.0, 1.5))
        >>> Epochs.from_json(epochs.to_json()) == epochs
        True
    """

    values: tuple[float | None, ...] = ()
    seconds: tuple[float, ...] = ()
    ends: tuple[int, ...] = ()
    generators: str = ""
    classes: tuple[str, ...] | None = None
    hash: str = ""

    def __len__(self) -> int:
        return len(self.values)

    def last_value(self, num_epochs: int) -> float | None:
        """Return the last known metric of the first epochs, as Lightning does in a training without pauses."""
        return next((value for value in reversed(self.values[:num_epochs]) if value is not None), None)

    def to_json(self) -> str:
        """Convert to JSON, which preserves every float exactly, and NaN as well."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Epochs":
        """Create it from the result of `to_json`."""
        data: dict[str, Any] = {
            name: tuple(part) if isinstance(part, list) else part for name, part in json.loads(text).items()
        }
        return cls(**data)


@dataclass
class StoredTraining:
    """A training in the cache.

    Its entry is in the cache of scores, and its checkpoint, after the last epoch in the entry, in the folder. The
    checkpoint is stored first and the one before it is removed last, so a kill leaves an entry with its checkpoint.

    Args:
        cache: The cache of scores.
        folder: Folder for checkpoints.
        key: Fingerprint of the training.
    """

    cache: SQLiteCache
    folder: Path
    key: str
    _has_warned: bool = field(default=False, init=False, repr=False)

    def read(self) -> Epochs:
        """Return what is known of it; no epochs if nothing is."""
        with _warned():
            return self._read()
        return Epochs()

    def _read(self) -> Epochs:
        text = self.cache.read(self.key).get(_ENTRY)
        return Epochs() if text is None else Epochs.from_json(text)

    def fetch(self, epochs: Epochs, path: Path) -> bool:
        """Copy the checkpoint after some epochs to a file, and return whether it is there and as it was written."""
        try:
            shutil.copyfile(self._checkpoint(len(epochs)), path)
        except OSError:
            return False
        return _hash(path) == epochs.hash

    def store(self, epochs: Epochs, checkpoint: Path) -> None:
        """Store what is known of it, with a copy of the checkpoint, unless more is stored already.

        An error is a warning, and so is, once, another run that is storing it: this one tries again after the next
        epoch.
        """
        with _warned(), self.cache.claim(self.key) as own:
            if own is not None:
                known = self._read()
                if len(known) <= len(epochs) or not self._has_checkpoint(known):
                    self._write(epochs, checkpoint)
            elif not self._has_warned:
                self._has_warned = True
                _warn("another run holds the claim for a finalist; this run asks again after each epoch")

    def _write(self, epochs: Epochs, checkpoint: Path) -> None:
        self.folder.mkdir(exist_ok=True)
        own = self._checkpoint(len(epochs))
        part = own.with_suffix(".part")
        shutil.copyfile(checkpoint, part)
        entry = replace(epochs, hash=_hash(part)).to_json()
        part.replace(own)
        self.cache.write(self.key, {_ENTRY: entry})
        for other in self.folder.glob(f"{self.key}-*"):
            if other != own:
                other.unlink(missing_ok=True)

    def _has_checkpoint(self, epochs: Epochs) -> bool:
        path = self._checkpoint(len(epochs))
        return path.is_file() and _hash(path) == epochs.hash

    def _checkpoint(self, num_epochs: int) -> Path:
        return self.folder / f"{self.key}-{num_epochs}.ckpt"


@dataclass(frozen=True)
class FinalsCache:
    """Stores trainings of finals in a file of scores, and their checkpoints in the folder ``<file>-finals`` beside it.

    The key of a training covers the model with its weights, the seed, the trainer's settings, the training and
    validation data with everything they are made of (`scoring.fingerprint.fingerprint`), the hash of the batches that
    candidates are scored on, the name of the metric, and what `scoring.fingerprint.surroundings` lists. Files that the
    data reads are not in the key, but the batches show most changes in them.

    Args:
        cache: The cache of scores.
        context: Fingerprint of everything that the trainings of all finalists share.
    """

    cache: SQLiteCache
    context: str

    @classmethod
    def of(
        cls, cache: CacheLike | None, trainer: Any, data: Mapping[str, Any], *, monitor: str, batches_hash: str | None
    ) -> "FinalsCache | None":
        """Open the cache for finals. Return None if it cannot store them, with a warning unless no file was given.

        Args:
            cache: The cache of scores.
            trainer: The trainer.
            data: Arguments of `Trainer.fit`.
            monitor: Name of the metric.
            batches_hash: Hash of the batches that candidates are scored on; None if they have none.
        """
        opened = None if cache is None else open_cache(cache)
        if not isinstance(opened, SQLiteCache):
            return None
        if trainer.world_size > 1:
            _warn("they are trained in several processes")
            return None
        settings = replace(TrainerSettings.of(trainer), callbacks=(), loggers=())
        devices = (type(trainer.accelerator), type(trainer.strategy))
        try:
            return cls(opened, fingerprint(settings.facts, devices, dict(data), monitor, batches_hash))
        except UnfingerprintableError as error:
            _warn(str(error).rstrip("."))
            return None

    def training(self, model: nn.Module, seed: int) -> StoredTraining | None:
        """Return the training of a model with a seed; None with a warning if it has no fingerprint."""
        try:
            key = fingerprint(self.context, surroundings(), unwrap_compiled(model), seed)
        except UnfingerprintableError as error:
            _warn(str(error).rstrip("."))
            return None
        return StoredTraining(self.cache, Path(f"{self.cache.path}-finals"), key)


@contextmanager
def _warned() -> Iterator[None]:
    """Turn an error of storing in the body into a warning: the training goes on."""
    try:
        yield
    except OSError as error:
        _warn(str(error).rstrip("."))


def generators_as_text(device: torch.device) -> str:
    """Return the states of Python's, NumPy's and torch's generators, on the CPU and on a device, as JSON."""
    numpy = sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy else None
    version, numbers, normal = random.getstate()
    states = {
        "python": [version, list(numbers), normal],
        "numpy": None if legacy is None else [legacy[0], legacy[1].tolist(), *legacy[2:]],
        "torch": _as_text(torch.get_rng_state()),
    }
    if device.type == "cuda":
        states["cuda"] = _as_text(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states["mps"] = _as_text(torch.mps.get_rng_state())
    return json.dumps(states)


def set_generators(text: str, device: torch.device) -> None:
    """Set the generators to states that `generators_as_text` returned for a device of this type."""
    states = json.loads(text)
    numpy = sys.modules.get("numpy")
    version, numbers, normal = states["python"]
    random.setstate((version, tuple(numbers), normal))
    if numpy and states["numpy"] is not None:
        numpy.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(_as_state(states["torch"]))
    if device.type == "cuda":
        torch.cuda.init()  # otherwise the state would be set later
        torch.cuda.set_rng_state(_as_state(states["cuda"]), device)
    elif device.type == "mps":
        torch.mps.set_rng_state(_as_state(states["mps"]))


def _as_text(state: Tensor) -> str:
    return base64.b64encode(bytes(state.tolist())).decode()


def _as_state(text: str) -> Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)


def _hash(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _warn(reason: str) -> None:
    warnings.warn(
        f"Finals are not stored in the cache: {reason}. If they are interrupted, they begin anew.", stacklevel=3
    )
