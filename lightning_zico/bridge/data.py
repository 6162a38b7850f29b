"""Training data: a data module's or a loader's batches as a list.

Everything that is written to a data module, a loader or a trainer on the way is put back before control returns.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader

from lightning_zico._typing import Batch, NumSamples
from lightning_zico.bridge.batch_size import Cut, Smaller
from lightning_zico.bridge.checks import is_datamodule
from lightning_zico.bridge.hooks import TRANSFER_HOOKS, check_surroundings, describe_error
from lightning_zico.bridge.private_trainer import private_trainer
from lightning_zico.bridge.stored import hold_batches
from lightning_zico.bridge.trainers import (
    DEFAULT_SETTINGS,
    TrainerSettings,
    TrainingLoader,
    is_overridden,
    without_iterator,
)
from lightning_zico.bridge.undisturbed import undisturbed
from lightning_zico.engine.batches import all_equal
from lightning_zico.engine.contents import contents
from lightning_zico.engine.samples import num_samples as counted_samples
from lightning_zico.engine.samples import stated_samples
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import (
    IdenticalBatchesError,
    SurroundingsError,
    TooFewBatchesError,
    UnsupportedBatchError,
)
from lightning_zico.texts import all_of, count

_MOST_IN_VAIN = 2  # most passes over a loader in a row that give no new batch


class Reread(list[Batch]):
    """Batches of a loader that has fewer of them than requested and was read several times.

    Args:
        batches: The batches, as many as requested.
        num_in_a_pass: Number of batches of the loader.
        num_passes: How often it was read.
        are_copies: Whether all of them are one batch with the same samples, so that gradients vary only by what the
            training step draws itself: windows, noise, dropout. Otherwise no two hold the same samples.
    """

    def __init__(
        self, batches: Iterable[Batch], *, num_in_a_pass: int = 1, num_passes: int = 1, are_copies: bool = False
    ) -> None:
        super().__init__(batches)
        self.num_in_a_pass = num_in_a_pass
        self.num_passes = num_passes
        self.are_copies = are_copies


_SERVES_ALL = (
    "A data module serves all candidates, so its trainer has no module while it is set up, read or torn down. Pass "
    "what it needs as an argument of its own, or ask in `on_after_batch_transfer`, which runs for each candidate."
)


class Reading(NamedTuple):
    """Batches that were read.

    Args:
        batches: The batches.
        loader: The loader that they come from, as the user made it.
        cut: Batch sizes before and after batches were made smaller; None if none was.
        num_whole: Number of batches that may be larger than requested, because they could not be counted or cut.
        transfer_batches: Batches of the samples whose features are looked at, on disk if they are large; empty if none
            were requested.
    """

    batches: list[Batch]
    loader: TrainingLoader
    cut: Cut | None = None
    num_whole: int = 0
    transfer_batches: Sequence[Batch] = ()

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> "Reading":
        """Return a reading of exactly these batches."""
        batches = list(batches)
        return cls(batches, TrainingLoader(batches))


class TrainingData:
    """Training data that is read for scoring; a data module stays set up until the context ends.

    A data module is set up each time batches are read, under the seed of that reading, and torn down before the next
    reading and at the end. So its hooks find what ``setup`` made while candidates are scored: after several readings,
    what the last one made.

    Args:
        data: A LightningDataModule (``prepare_data``, ``setup("fit")``, ``train_dataloader`` and at the end
            ``teardown("fit")`` run, in that order), a DataLoader, a list or dictionary of DataLoaders, or an iterable
            of batches.
        settings: Settings of the trainer that a data module sees.
    """

    def __init__(self, data: Any, settings: TrainerSettings = DEFAULT_SETTINGS) -> None:
        self.data = data
        self.datamodule: Any = data if is_datamodule(data) else None
        self.settings = settings
        self._is_set_up = False

    def __enter__(self) -> "TrainingData":
        """Enter; nothing is set up before the first reading."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Tear a data module down, also if the body raised."""
        self._tear_down()

    def read(
        self,
        num_batches: int,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        num_samples: NumSamples | None = None,
        num_samples_transfer: int = 0,
    ) -> Reading:
        """Read the first batches under a seed, and leave the data's state and all generators as they were.

        Args:
            num_batches: Number of batches to read.
            seed: Seed of shuffling and augmentation; generators that a loader owns continue from their own state.
            batch_size: The largest number of samples in a batch: loaders are built again with this batch size, and
                other batches are cut to their first samples where that is possible. None for batches as they come.
            num_samples: The user's count of the samples in a batch; None to read it from the batch.
            num_samples_transfer: Number of samples whose features are looked at, rounded up to whole batches; fewer if
                one pass over the data gives no more. They are read in a pass of their own. Data that can be read only
                once gives none, so that the features are those of the batches.

        Returns:
            Exactly ``num_batches`` batches, and their loader. A loader that has fewer is read again from its start if
            that gives other batches, as a shuffling loader does; for a loader with a single batch of always the same
            samples, that batch is repeated. Both are a `Reread`.

        Raises:
            TooFewBatchesError: If there are fewer.
            UnsupportedBatchError: If the data is not iterable.
            SurroundingsError: If a data module asks for a candidate, or for something that only a running training has.
        """
        if self.datamodule is None and not isinstance(self.data, Iterable):
            raise UnsupportedBatchError(
                f"Invalid training data of type {type(self.data).__name__}: expected a LightningDataModule, a "
                "DataLoader, or an iterable of batches."
            )
        with self._loader(seed) as loader:
            return _first(
                loader,
                num_batches,
                batch_size=batch_size,
                num_samples=num_samples,
                num_samples_transfer=num_samples_transfer,
            )

    def read_repeats(
        self,
        num_batches: int,
        repeats: int,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        num_samples: NumSamples | None = None,
        num_samples_transfer: int = 0,
    ) -> list[Reading]:
        """Read the batches of all repeats at once, since they are few and a wrong number then fails before any scoring.

        A data module and loaders are read again for every repeat, with its own seed; a data module is set up once per
        repeat, and stays as the last repeat left it. An iterable of batches, which a seed does not affect, is read
        further: it must give ``repeats`` times ``num_batches`` batches.

        Args:
            num_batches: Number of batches in each repeat.
            repeats: Number of repeats.
            seed: The seed of the first repeat; repeat r has ``seed + r``.
            batch_size: See `read`.
            num_samples: See `read`.
            num_samples_transfer: See `read`.

        Returns:
            The batches by repeat, with their loader.

        Raises:
            TooFewBatchesError: If the data gives too few batches.
            IdenticalBatchesError: If all repeats have the same batches.
        """
        size: dict[str, Any] = {"batch_size": batch_size, "num_samples": num_samples}
        size["num_samples_transfer"] = num_samples_transfer
        if self._is_seeded or repeats == 1:
            by_repeat = [self.read(num_batches, seed=seed + idx, **size) for idx in range(repeats)]
        else:
            by_repeat = self._read_on(num_batches, repeats, seed=seed, **size)
        if all_equal([reading.batches for reading in by_repeat]):
            raise IdenticalBatchesError(
                f"{all_of(repeats, 'repeat')} have the same batches: the data is not shuffled, or it is shuffled with "
                "its own generator, which the seed does not affect. Shuffle without a generator, or pass a list of "
                f"{count(num_batches * repeats, 'batch')}."
            )
        return by_repeat

    def read_given(
        self,
        num_batches: int | None,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        num_samples: NumSamples | None = None,
        cuts_given: bool = False,
        num_samples_transfer: int = 0,
    ) -> Reading:
        """Read as many batches as requested; if no number is given, two of a loader, and otherwise all.

        Args:
            num_batches: Number of batches to read; None for the default.
            seed: See `read`.
            batch_size: See `read`.
            num_samples: See `read`.
            cuts_given: Whether to cut batches that are given themselves, not by a loader or data module, as well.
            num_samples_transfer: See `read`; none are read in addition to all batches.
        """
        is_given = not self._is_seeded
        size: dict[str, Any] = {"batch_size": None if is_given and not cuts_given else batch_size}
        if num_batches is None and is_given:
            batches = list(self.data)
            if batches and size["batch_size"] is not None:
                return TrainingData(batches, self.settings).read(
                    len(batches), seed=seed, num_samples=num_samples, **size
                )
            return Reading.of(batches)
        size["num_samples_transfer"] = num_samples_transfer
        return self.read(num_batches or 2, seed=seed, num_samples=num_samples, **size)

    @property
    def _is_seeded(self) -> bool:
        """Whether other seeds may give other batches."""
        return self.datamodule is not None or any(isinstance(leaf, DataLoader) for leaf in tree_leaves(self.data))

    def _read_on(self, num_batches: int, repeats: int, **settings: Any) -> list[Reading]:
        """Read an iterable of batches once, and divide its batches among the repeats."""
        try:
            whole = self.read(num_batches * repeats, **settings)
        except TooFewBatchesError as error:
            raise TooFewBatchesError(
                f"An iterable of batches cannot be shuffled, so {count(repeats, 'repeat')} of "
                f"{count(num_batches, 'batch')} need {count(num_batches * repeats, 'batch')}. Pass that many, or a "
                f"DataLoader that shuffles. {error}"
            ) from error
        starts = range(0, len(whole.batches), num_batches)
        num_whole = min(whole.num_whole, num_batches)
        return [
            whole._replace(batches=whole.batches[start : start + num_batches], num_whole=num_whole) for start in starts
        ]

    def fit_arguments(self, val_dataloaders: Any = None) -> dict[str, Any]:
        """Return the arguments with which `Trainer.fit` takes the data.

        Args:
            val_dataloaders: Validation data, if the training data is not a data module.
        """
        if self.datamodule is not None:
            return {"datamodule": self.datamodule}
        return {"train_dataloaders": _for_trainer(self.data), "val_dataloaders": _for_trainer(val_dataloaders)}

    @contextmanager
    def _loader(self, seed: int) -> Iterator[Any]:
        self._tear_down()
        if self.datamodule is None:
            with preserved_rng(seed):
                yield self.data
            return
        with self._with_trainer() as trainer, preserved_rng(seed):
            self._call(trainer, "prepare_data")
            self._call(trainer, "setup", stage=trainer.state.fn)
            self._is_set_up = True
            yield self._call(trainer, "train_dataloader")

    def _tear_down(self) -> None:
        if self._is_set_up:
            self._is_set_up = False
            with self._with_trainer() as trainer, preserved_rng():
                self._call(trainer, "teardown", stage=trainer.state.fn)

    def _call(self, trainer: Any, hook: str, **kwargs: Any) -> Any:
        """Run a hook of the data module; its exceptions pass unchanged, unless it lacks a running training."""
        name = f"{type(self.datamodule).__name__}.{hook}"
        try:
            result = getattr(self.datamodule, hook)(**kwargs)
        except Exception as error:
            if trainer.private_was_asked and "NoneType" in str(error):
                raise SurroundingsError(f"`{name}` raised {describe_error(error)}. {_SERVES_ALL}") from error
            check_surroundings(error, name, ())
            raise
        if trainer.private_was_asked:
            trainer.private_was_asked = False
            warnings.warn(f"`{name}` asked its trainer for the module and found None. {_SERVES_ALL}", stacklevel=2)
        return result

    @contextmanager
    def _with_trainer(self) -> Iterator[Any]:
        with (
            private_trainer(self.settings, datamodule=self.datamodule) as trainer,
            attached(self.datamodule, trainer),
        ):
            yield trainer


def read_training_batches(
    trainer: Any,
    num_batches: int,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    num_samples: NumSamples | None = None,
) -> Reading:
    """Read the first batches of a trainer's training data, without affecting the training.

    Args:
        trainer: A trainer in ``fit``.
        num_batches: How many batches to read, regardless of ``limit_train_batches``.
        seed: As for `TrainingData.read`, which also documents the exceptions.
        batch_size: As for `TrainingData.read`.
        num_samples: As for `TrainingData.read`.
    """
    loader = trainer.fit_loop._combined_loader
    with preserved_rng(seed):
        return _first(loader, num_batches, readable_once=False, batch_size=batch_size, num_samples=num_samples)


def overrides_transfer(datamodule: Any) -> bool:
    """Whether a data module overrides hooks that transfer batches to the device."""
    return any(is_overridden(datamodule, hook) for hook in TRANSFER_HOOKS)


@contextmanager
def attached(datamodule: Any, trainer: Any) -> Iterator[None]:
    """Let a data module see a trainer while the body runs."""
    previous = getattr(datamodule, "trainer", None)
    datamodule.trainer = trainer
    try:
        yield
    finally:
        datamodule.trainer = previous


def _first(
    data: Any,
    num_batches: int,
    *,
    readable_once: bool = True,
    batch_size: int | None = None,
    num_samples: NumSamples | None = None,
    num_samples_transfer: int = 0,
) -> Reading:
    """Read batches, of at most ``batch_size`` samples if it is given; see `TrainingData.read`."""
    is_combined = any(base.__name__ == CombinedLoader.__name__ for base in type(data).__mro__)  # of either package
    iterables = data.iterables if is_combined else data
    if not isinstance(iterables, Iterable):
        raise UnsupportedBatchError(
            f"The training data is {'None' if data is None else type(data).__name__}: expected a DataLoader or an "
            "iterable of batches. Have `train_dataloader` return one."
        )
    mode = data._mode if is_combined else "max_size_cycle"  # Lightning's own for training
    leaves = [leaf for leaf in tree_leaves(iterables) if not isinstance(leaf, Tensor)]
    has_loaders = any(isinstance(leaf, DataLoader) for leaf in leaves)
    smaller = None if batch_size is None else Smaller(batch_size, num_samples)
    iterables = iterables if smaller is None else smaller.replace_loaders(iterables)
    read_once = partial(_one_pass, iterables, mode if has_loaders else None)

    def one_pass(num_batches: int) -> Iterator[Batch]:
        batches = read_once(num_batches)
        return batches if smaller is None else map(smaller.batch, batches)

    is_once = any(isinstance(leaf, Iterator) for leaf in leaves)
    is_readable_again = not is_once and (has_loaders or not isinstance(data, list | tuple))
    source = iterables if isinstance(iterables, DataLoader) else data
    with undisturbed(*leaves, readable_once=readable_once):
        batches = _read_again(one_pass, source, num_batches, is_readable_again=is_readable_again)
        cut, num_whole = (None, 0) if smaller is None else (smaller.cut, min(smaller.num_whole, num_batches))
        more: Sequence[Batch] = ()
        if num_samples_transfer and not is_once:
            sizes = [leaf.batch_size for leaf in leaves if isinstance(leaf, DataLoader)]
            known = [size for size in (batch_size, *sizes) if size is not None]
            count = _count(batches[0], num_samples if cut is None else cut.scale(num_samples))
            hold = list if isinstance(data, list | tuple) and not has_loaders else hold_batches
            more = hold(one_pass(-(-num_samples_transfer // (count or min(known, default=1)))))
    return Reading(batches, TrainingLoader(data), cut, num_whole, more)


def _count(batch: Batch, num_samples: NumSamples | None) -> int | None:
    """Count the samples of a batch, as the user does or as the batch shows; None if it does not show them."""
    stated = stated_samples(batch, num_samples)
    return counted_samples(batch) if stated is None else stated


def _read_again(
    one_pass: Callable[[int], Iterator[Batch]], data: Any, num_batches: int, *, is_readable_again: bool
) -> list[Batch]:
    """Read batches; if there are too few, read the data again as long as it gives new ones."""
    batches = list(one_pass(num_batches))
    if not 0 < len(batches) < num_batches or not is_readable_again:
        return _enough(batches, data, num_batches)
    num_in_a_pass, num_passes = len(batches), 1
    known = {contents(batch) for batch in batches}
    num_in_vain = 0
    while len(batches) < num_batches and num_in_vain < _MOST_IN_VAIN:
        num_passes, num_in_vain = num_passes + 1, num_in_vain + 1
        for batch in one_pass(num_in_a_pass):
            content = contents(batch)
            if content not in known and len(batches) < num_batches:
                known.add(content)
                batches.append(batch)
                num_in_vain = 0
    if num_in_a_pass == len(batches) == 1:
        return Reread(batches * num_batches, num_in_a_pass=1, num_passes=num_passes, are_copies=True)
    batches = _enough(batches, data, num_batches, "; reading it again gave no new ones")
    return Reread(batches, num_in_a_pass=num_in_a_pass, num_passes=num_passes)


def _one_pass(iterables: Any, mode: Any, num_batches: int) -> Iterator[Batch]:
    if mode is None:
        yield from itertools.islice(iterables, num_batches)
        return
    # Copies, because a loader with persistent workers keeps them, and with them the state of their generators.
    combined = CombinedLoader(tree_map_only(DataLoader, without_iterator, iterables), mode)
    yield from (batch for batch, _, _ in itertools.islice(combined, num_batches))
    combined.reset()


def _enough(batches: list[Batch], data: Any, num_batches: int, again: str = "") -> list[Batch]:
    """Return the batches if there are enough of them.

    Raises:
        TooFewBatchesError: If not; the message says what the user can do.
    """
    if len(batches) >= num_batches:
        return batches
    raise TooFewBatchesError(
        f"The training data gave {count(len(batches), 'batch')}, but {num_batches} were requested{again}. "
        f"{_way_out(data, len(batches), num_batches)}"
    )


def _way_out(data: Any, num_read: int, num_batches: int) -> str:
    """Return advice on how to get more batches, with numbers if there is one loader that knows its sample count."""
    sampler = data.sampler if isinstance(data, DataLoader) and data.batch_size is not None else None
    if isinstance(sampler, Sized) and len(sampler) >= num_batches:
        return (
            f"They come from {count(len(sampler), 'sample')} in batches of {data.batch_size}: lower `batch_size` to "
            f"at most {len(sampler) // num_batches}" + (f", or `num_batches` to {num_read}." if num_read else ".")
        )
    if isinstance(data, DataLoader) and num_read:
        return f"Lower `num_batches` to {num_read}, or shuffle the data."
    if isinstance(data, DataLoader):
        return "Check that its dataset has samples, and that `drop_last` does not drop them all."
    if isinstance(data, Iterator):
        return f"A {type(data).__name__} can be read only once: pass more batches, or a DataLoader that shuffles."
    return f"Pass {count(num_batches, 'batch')}" + (f", or lower `num_batches` to {num_read}." if num_read else ".")


def _for_trainer(data: Any) -> Any:
    # Lightning treats a plain list as a collection of loaders.
    loaders = any(isinstance(leaf, DataLoader | Iterator) for leaf in tree_leaves(data))
    return _Batches(data) if isinstance(data, list | tuple) and not loaders else data


class _Batches:
    """A list of batches as an iterable that Lightning does not take apart."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)
