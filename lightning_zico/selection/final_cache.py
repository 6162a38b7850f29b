"""Trainings of finals that are kept from run to run, so that a run that was killed goes on where it stopped."""

import base64
import hashlib
import json
import random
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_zico.bridge import TrainerSettings
from lightning_zico.bridge.modules import unwrap_compiled
from lightning_zico.errors import UnfingerprintableError
from lightning_zico.scoring.cache import CacheLike, SQLiteCache, open_cache
from lightning_zico.scoring.fingerprint import fingerprint, surroundings

_ENTRY = "training"  # what stands for a proxy in the cache of scores


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


@dataclass(frozen=True)
class KeptTraining:
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

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Claim the training while the body runs; yields False if another live run trains it."""
        with ExitStack() as claim:
            is_own = False
            with storing():
                is_own = claim.enter_context(self.cache.claim(self.key)) is not None
            try:
                yield is_own
            finally:
                with storing():
                    claim.close()

    def read(self) -> Epochs:
        """Return what is known of it; no epochs if nothing is."""
        with storing():
            if (text := self.cache.read(self.key).get(_ENTRY)) is not None:
                return Epochs.from_json(text)
        return Epochs()

    def fetch(self, epochs: Epochs, path: Path) -> bool:
        """Copy the checkpoint after some epochs to a file, and return whether it is there and as it was written."""
        try:
            shutil.copyfile(self._checkpoint(len(epochs)), path)
        except OSError:
            return False
        return _hash(path) == epochs.hash

    def write(self, epochs: Epochs, checkpoint: Path) -> Epochs:
        """Store what is known of it, with a copy of the checkpoint.

        Returns:
            The same with the hash of the checkpoint.

        Raises:
            OSError: If it cannot be stored; `CacheError` is one.
        """
        epochs = replace(epochs, hash=_hash(checkpoint))
        self.folder.mkdir(exist_ok=True)
        own = self._checkpoint(len(epochs))
        part = own.with_suffix(".part")
        shutil.copyfile(checkpoint, part)
        part.replace(own)
        self.cache.write(self.key, {_ENTRY: epochs.to_json()})
        for other in self.folder.glob(f"{self.key}-*"):
            if other != own:
                other.unlink(missing_ok=True)
        return epochs

    def _checkpoint(self, num_epochs: int) -> Path:
        return self.folder / f"{self.key}-{num_epochs}.ckpt"


@dataclass(frozen=True)
class FinalsCache:
    """Keeps trainings of finals in a file of scores, and their checkpoints in the folder ``<file>-finals`` beside it.

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
        """Return what keeps finals; None, with a warning if that is unexpected, if they cannot be kept.

        Args:
            cache: The cache of scores. Only a file keeps finals.
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

    def training(self, model: nn.Module, seed: int) -> KeptTraining | None:
        """Return the training of a model with a seed; None with a warning if it has no fingerprint."""
        try:
            key = fingerprint(self.context, surroundings(), unwrap_compiled(model), seed)
        except UnfingerprintableError as error:
            _warn(str(error).rstrip("."))
            return None
        return KeptTraining(self.cache, Path(f"{self.cache.path}-finals"), key)


@contextmanager
def storing() -> Iterator[None]:
    """Turn an error of storing in the body into a warning: the training goes on."""
    try:
        yield
    except OSError as error:
        _warn(str(error).rstrip("."))


def generators_as_text() -> str:
    """Return the states of Python's, NumPy's and torch's generators, on every device in use, as JSON."""
    numpy = sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy else None
    version, numbers, normal = random.getstate()
    states = {
        "python": [version, list(numbers), normal],
        "numpy": None if legacy is None else [legacy[0], legacy[1].tolist(), *legacy[2:]],
        "torch": _as_text(torch.get_rng_state()),
        "cuda": [_as_text(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_initialized() else None,
        "mps": _as_text(torch.mps.get_rng_state()) if torch.backends.mps.is_available() else None,
    }
    return json.dumps(states)


def set_generators(text: str) -> None:
    """Set the generators to states that `generators_as_text` returned."""
    states = json.loads(text)
    numpy = sys.modules.get("numpy")
    version, numbers, normal = states["python"]
    random.setstate((version, tuple(numbers), normal))
    if numpy and states["numpy"] is not None:
        numpy.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(_as_state(states["torch"]))
    if states["cuda"] is not None:
        torch.cuda.set_rng_state_all([_as_state(state) for state in states["cuda"]])
    if states["mps"] is not None:
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
        f"Finals are not kept in the cache: {reason}. If they are interrupted, they begin anew.", stacklevel=3
    )
