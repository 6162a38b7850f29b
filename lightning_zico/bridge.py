"""From Lightning to plain functions: a module's ``training_step`` as a loss, a data module's batches as a list.

Everything that is written to a module, a data module, a loader or a trainer on the way is put back before control
returns.
"""

import copy
import inspect
import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, nullcontext
from functools import partial
from io import IOBase
from multiprocessing.process import BaseProcess
from threading import Thread
from types import ModuleType
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.core.hooks import DataHooks
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import Precision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter as _LoaderIter
from torchmetrics import Metric

from lightning_zico._typing import Batch, LossFn, Step
from lightning_zico.engine.batches import map_tensors
from lightning_zico.engine.contents import contents
from lightning_zico.engine.scope import preserved, preserved_rng, refill, remembered
from lightning_zico.errors import TooFewBatchesError, UnsupportedBatchError, UnsupportedModuleError

_WAY_OUT = (
    "Pass `loss_fn=`, called as `loss_fn(outputs, targets)` on batches `(inputs, targets)`, or `step=`, called as "
    "`step(module, batch, batch_idx)`, which returns the loss."
)
_MOST_IN_VAIN = 2  # times that a loader is read again without giving a batch that it had not given before
_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
# Threads and processes go on by themselves, as do trainers, which lead to everything besides.
_NOT_LOOKED_INTO = (type, ModuleType, Thread, BaseProcess, IOBase)


class Bridge(NamedTuple):
    """What the engine needs to know of a module.

    Args:
        step: ``(module, batch, batch_idx) -> mean loss``.
        prepare: ``(batch, batch_idx) -> batch`` on the module's device, through its transfer hooks.
        muted: Silences the module's metrics, whose arithmetic no proxy wants; for counting on the meta device.
    """

    step: Step
    prepare: Callable[[Batch, int], Batch]
    muted: Callable[[nn.Module], None]


class Reread(list[Batch]):
    """Batches of a loader that has fewer of them than were asked for, and was read several times.

    Args:
        batches: As many as were asked for.
        num_in_a_pass: How many the loader has.
        num_passes: How often it was read.
        are_copies: Whether all of them are one batch with the same samples, so that gradients vary only by what the
            training step draws itself: windows, noise, dropout. Else no two hold the same samples.
    """

    def __init__(
        self, batches: Iterable[Batch], *, num_in_a_pass: int = 1, num_passes: int = 1, are_copies: bool = False
    ) -> None:
        super().__init__(batches)
        self.num_in_a_pass = num_in_a_pass
        self.num_passes = num_passes
        self.are_copies = are_copies


@contextmanager
def bridged(
    module: nn.Module,
    *,
    loss_fn: LossFn | None = None,
    step: Step | None = None,
    datamodule: Any = None,
    trainer: Trainer | None = None,
    precision: Precision | None = None,
) -> Iterator[Bridge]:
    """Make a module ready to be measured, and put it back as it was, also when the body raises.

    For a LightningModule, ``self.log`` and ``self.log_dict`` say nothing and ``self.logger`` swallows what it is given
    while the body runs. A module that is not in training already gets a private trainer, and its ``setup("fit")`` and
    ``configure_model`` run, as Lightning runs them before training. A module in eval mode is put in train mode as a
    whole; one in train mode keeps the modes of its parts (a frozen backbone stays in eval mode), as Lightning keeps
    them.

    Args:
        module: A LightningModule (of ``lightning`` or ``pytorch_lightning``) or, with ``loss_fn`` or ``step``, any
            module.
        loss_fn: ``(outputs, targets) -> mean loss``, used instead of ``training_step`` on batches ``(inputs,
            targets)``.
        step: ``(module, batch, batch_idx) -> mean loss``, used instead of ``training_step`` on any batches.
        datamodule: Where its transfer hooks are overridden they run, as in Lightning, instead of the module's.
        trainer: The trainer that is training the module; None to attach a private one.
        precision: In which the step runs; None for the trainer's, or for none with a private one.

    Raises:
        UnsupportedModuleError: If there is neither ``loss_fn`` nor ``step``, and the module's own training gives no
            single loss: no ``training_step``, manual optimisation, several optimisers.
    """
    lightning = is_lightning(module)
    has_own_loss = loss_fn is None and step is None
    if has_own_loss:
        check_training_step(module)
    # The hooks of a data module may count or draw, too.
    hooked = [datamodule] if overrides_transfer(datamodule) else []
    with _values_kept(module), preserved(module), _undisturbed(*hooked):
        if lightning:
            _mute_logging(module)
        with _quiet_trainer(module, datamodule, trainer, precision) if lightning else nullcontext() as quiet:
            if quiet is not None and trainer is None:
                _call_if_there(module, "setup", "fit")
                _call_if_there(module, "configure_model")
                _set_up_optimizers(quiet, module, has_own_loss)
            if not module.training:
                module.train()
            run = _training_step if step is None else _returning_loss(step)
            if loss_fn is not None:
                run = _step_with(loss_fn)
            plugin = precision if trainer is None else trainer.precision_plugin
            if plugin is not None:
                run = _in_precision(plugin, run)
            yield Bridge(run, _preparer(module, datamodule, trainer), _mute_metrics)


def is_lightning(module: nn.Module) -> bool:
    """Tell whether a module is a LightningModule, of whichever package: they are told by what they can do."""
    return callable(getattr(module, "training_step", None)) and hasattr(module, "automatic_optimization")


def is_trainer(value: Any) -> bool:
    """Whether something is a Trainer of ``lightning`` or ``pytorch_lightning``."""
    return any(
        base.__name__ == "Trainer" and base.__module__.partition(".")[0] in ("lightning", "pytorch_lightning")
        for base in value.__class__.__mro__  # asked for `__class__`, weak proxies name that of their object
    )


def uncompiled(module: nn.Module) -> nn.Module:
    """Give the module behind one of `torch.compile`, as Lightning does; compiling would cost more than scoring."""
    return getattr(module, "_orig_mod", module)


def check_training_step(module: nn.Module) -> None:
    """Refuse a module whose own ``training_step`` gives no loss to differentiate, before anything runs.

    Raises:
        UnsupportedModuleError: With the ways out, which are always ``loss_fn=`` and ``step=``.
    """
    name = type(module).__name__
    if not is_lightning(module):
        raise UnsupportedModuleError(f"{name} is no LightningModule, so it has no loss of its own. {_WAY_OUT}")
    if not _is_overridden(module, "training_step"):
        raise UnsupportedModuleError(f"{name} defines no `training_step`. {_WAY_OUT}")
    if not module.automatic_optimization:
        raise UnsupportedModuleError(
            f"{name} optimises manually: its `training_step` takes steps instead of returning a loss. {_WAY_OUT}"
        )
    parameters = inspect.signature(module.training_step).parameters  # type: ignore[arg-type]
    if "optimizer_idx" in parameters:
        raise UnsupportedModuleError(f"{name} has several optimisers (`optimizer_idx`). {_WAY_OUT}")
    if "dataloader_iter" in parameters:
        raise UnsupportedModuleError(f"{name} fetches its batches itself (`dataloader_iter`). {_WAY_OUT}")


def read_batches(data: Any, num_batches: int, *, seed: int = 0) -> list[Batch]:
    """Read the first batches of training data under a seed, and leave the data's state and all generators as they were.

    Args:
        data: A LightningDataModule (``prepare_data``, ``setup("fit")``, ``train_dataloader`` and ``teardown("fit")``
            run, in that order), a DataLoader, a list or dictionary of DataLoaders, or an iterable of batches.
        num_batches: How many.
        seed: Of shuffling and augmentation; generators that a loader brings along go on from their own state.

    Returns:
        Exactly ``num_batches`` batches. A loader that has fewer is read again from its start, where that gives other
        batches, as a shuffling loader does; a loader of one batch with always the same samples gives it as often as
        asked for. Both are a `Reread`.

    Raises:
        TooFewBatchesError: If there are fewer.
        UnsupportedBatchError: If ``data`` is none of these.
    """
    if is_datamodule(data):
        with training_loader(data, seed=seed) as loader:
            return _first(loader, num_batches)
    if not isinstance(data, Iterable):
        raise UnsupportedBatchError(
            f"The training data is {type(data).__name__}; needed is a LightningDataModule, a DataLoader, or an "
            "iterable of batches."
        )
    with preserved_rng(seed):
        return _first(data, num_batches)


@contextmanager
def training_loader(datamodule: Any, *, seed: int = 0) -> Iterator[Any]:
    """Set a data module up while the body runs, and give its loader for training.

    Args:
        datamodule: Its hooks run as for `read_batches`.
        seed: Of the body; all generators are put back.
    """
    with _attached_datamodule(datamodule), preserved_rng(seed):
        datamodule.prepare_data()
        datamodule.setup("fit")
        try:
            yield datamodule.train_dataloader()
        finally:
            datamodule.teardown("fit")


def read_training_batches(trainer: Trainer, num_batches: int, *, seed: int = 0) -> list[Batch]:
    """Read the first batches of what a trainer is training on, without it noticing.

    Args:
        trainer: In ``fit``.
        num_batches: How many, whatever ``limit_train_batches`` says.
        seed: As for `read_batches`, which also says what is raised.
    """
    with preserved_rng(seed):
        return _first(trainer.fit_loop._combined_loader, num_batches, readable_once=False)


def is_datamodule(data: Any) -> bool:
    """Tell whether data is a LightningDataModule, of whichever package."""
    return isinstance(data, LightningDataModule) or all(
        callable(getattr(data, hook, None)) for hook in ("prepare_data", "setup", "train_dataloader", "teardown")
    )


def overrides_transfer(datamodule: Any) -> bool:
    """Tell whether a data module has hooks of its own that batches pass on their way to the device."""
    return any(_is_overridden(datamodule, hook) for hook in _HOOKS)


def _training_step(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
    training_step: Any = module.training_step
    # Lightning's own rule: the second argument is the index, whatever its name.
    takes_index = len(inspect.signature(training_step).parameters) > 1
    output = training_step(batch, batch_idx) if takes_index else training_step(batch)
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if loss is None:
        raise UnsupportedModuleError(
            f"`training_step` of {type(module).__name__} returned {'no `loss`' if output is not None else 'None'}; "
            "needed is a tensor, or a dictionary with the key 'loss'. If it has no loss of its own, pass `loss_fn=`."
        )
    return loss


def _returning_loss(step: Step) -> Step:
    def returning_loss(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        output: Any = step(module, batch, batch_idx)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if loss is None:
            raise UnsupportedModuleError(
                f"`step=` returned {'a dictionary without a loss' if output is not None else 'None'}: expected the "
                "mean loss of the batch as a tensor, or a dictionary with the key 'loss'."
            )
        return loss

    return returning_loss


def _step_with(loss_fn: LossFn) -> Step:
    def step(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise UnsupportedBatchError(
                f"A batch is {type(batch).__name__}; with `loss_fn=`, needed is a pair `(inputs, targets)`. For other "
                "batches pass `step=`, called as `step(module, batch, batch_idx)`."
            )
        return loss_fn(module(batch[0]), batch[1])

    return step


def _in_precision(precision: Precision, step: Step) -> Step:
    def in_precision(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        with precision.train_step_context():
            return step(module, batch, batch_idx)

    return in_precision


@contextmanager
def _values_kept(module: nn.Module) -> Iterator[None]:
    """Put the values of parameters and buffers back, if the module has code of its own that runs on them here."""
    kept = []
    if any(_is_overridden(module, hook) for hook in ("setup", "configure_model", *_HOOKS)):
        tensors = (*module.parameters(), *module.buffers())
        kept = [(tensor, tensor.detach().clone()) for tensor in tensors if not is_lazy(tensor)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)


def _mute_logging(module: nn.Module) -> None:
    for part in module.modules():
        if is_lightning(part):
            vars(part).update(log=_say_nothing, log_dict=_say_nothing)


def _mute_metrics(module: nn.Module) -> None:
    def zero(*_: Any, **__: Any) -> Tensor:
        return torch.zeros(())

    for part in module.modules():
        if isinstance(part, Metric):
            vars(part).update(forward=zero, update=zero, compute=zero)


def _say_nothing(*_: Any, **__: Any) -> None:
    pass


def _call_if_there(module: Any, hook: str, *args: Any) -> None:
    if callable(getattr(module, hook, None)):
        getattr(module, hook)(*args)


def _set_up_optimizers(trainer: Trainer, module: nn.Module, has_own_loss: bool) -> None:
    """Let ``self.optimizers()`` and ``self.lr_schedulers()`` work, as far as the module's do without a real trainer."""
    try:
        with warnings.catch_warnings(), _without_chatter():
            warnings.simplefilter("ignore")  # a module without optimisers can be scored
            trainer.strategy.setup_optimizers(trainer)
    except Exception as error:
        # Whether the module can be trained is not asked here, only whether it has one loss.
        if has_own_loss and "multiple optimizers" in str(error):
            raise UnsupportedModuleError(
                f"{type(module).__name__} configures several optimisers, so there is no one loss. {_WAY_OUT}"
            ) from None


def _is_overridden(obj: Any, hook: str) -> bool:
    method = getattr(type(obj), hook, None)
    return method is not None and method.__module__.partition(".")[0] not in ("lightning", "pytorch_lightning")


@contextmanager
def _quiet_trainer(
    module: nn.Module, datamodule: Any, trainer: Trainer | None, precision: Precision | None
) -> Iterator[Trainer]:
    """Let ``self.trainer`` work without a logger: the trainer at work, or a private one."""
    quiet = trainer or private_trainer(precision)
    # A step may stop its trainer, or change a learning rate.
    changeable = [vars(quiet), *(group for optimizer in quiet.optimizers for group in optimizer.param_groups)]
    changeable += [vars(config.scheduler) for config in quiet.lr_scheduler_configs]
    saved = [dict(part) for part in changeable]
    quiet.loggers = [DummyLogger() for _ in quiet.loggers] if trainer else [DummyLogger()]
    if trainer is None:
        quiet.strategy.connect(module)  # type: ignore[arg-type]
        quiet.datamodule = datamodule  # type: ignore[attr-defined]
        for part in module.modules():
            if is_lightning(part):
                vars(part)["_trainer"] = quiet  # the property's setter refuses a module of the other package
    try:
        yield quiet
    finally:
        for attributes, contents in zip(changeable, saved, strict=True):
            refill(attributes, contents)
        if trainer is None:
            # A trainer is a knot of cycles: what it holds would live until the garbage collector comes by.
            quiet.strategy.connect(None)  # type: ignore[arg-type]
            quiet.strategy.optimizers, quiet.strategy.lr_scheduler_configs = [], []


@contextmanager
def _attached_datamodule(datamodule: Any) -> Iterator[None]:
    previous = getattr(datamodule, "trainer", None)
    datamodule.trainer = private_trainer()
    datamodule.trainer.datamodule = datamodule
    try:
        yield
    finally:
        datamodule.trainer = previous


def private_trainer(precision: Precision | None = None) -> Trainer:
    """Make a trainer that trains nothing, writes nothing and says nothing, in the state of one that is fitting.

    Args:
        precision: Of the trainer; None for Lightning's default.
    """
    # Its own environment, whatever cluster this process belongs to.
    plugins: list[Any] = [LightningEnvironment(), *([] if precision is None else [precision])]
    with _without_chatter():
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            plugins=plugins,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    trainer.state.fn = TrainerFn.FITTING
    trainer.training = True
    return trainer


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep Lightning from telling what it does."""
    # Both packages speak through the logger of the one that was imported last.
    chatter = [logging.getLogger(f"{package}.utilities.rank_zero") for package in _PACKAGES]
    levels = [logger.level for logger in chatter]
    for logger in chatter:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(chatter, levels, strict=True):
            logger.setLevel(level)


def _preparer(module: nn.Module, datamodule: Any, trainer: Trainer | None) -> Callable[[Batch, int], Batch]:
    def hook(name: str) -> Any:
        if _is_overridden(datamodule, name):
            return getattr(datamodule, name)
        return getattr(module if is_lightning(module) else DataHooks(), name)

    def prepare(batch: Batch, batch_idx: int) -> Batch:
        # Asked now, since the module may have been moved and converted meanwhile.
        parameters = list(module.parameters())
        device = parameters[0].device if parameters else torch.device("cpu")
        dtypes = {p.dtype for p in parameters if p.is_floating_point()}
        own_dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(own_dtype) if tensor.is_floating_point() else tensor

        if trainer is not None:
            batch = trainer.precision_plugin.convert_input(batch)
        elif own_dtype != torch.float32:
            batch = map_tensors(cast, batch)  # as Lightning's "16-true", "bf16-true" and "64-true" do
        batch = hook("on_before_batch_transfer")(batch, 0)
        batch = hook("transfer_batch_to_device")(batch, device, 0)
        batch = hook("on_after_batch_transfer")(batch, 0)
        return map_tensors(_contiguous, batch)

    return prepare


def _contiguous(tensor: Tensor) -> Tensor:
    # Images that come as [N, H, W, C] and are transposed have channels-last strides, with which torch 2.14 crashed the
    # interpreter in backward for some models of timm.
    return tensor.contiguous() if tensor.layout == torch.strided and not tensor.is_nested else tensor


def _first(data: Any, num_batches: int, *, readable_once: bool = True) -> list[Batch]:
    """Read batches; from the start again where there are too few and another reading gives others."""
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
    one_pass = partial(_one_pass, iterables, mode if has_loaders else None)
    is_once = any(isinstance(leaf, Iterator) for leaf in leaves)
    is_readable_again = not is_once and (has_loaders or not isinstance(data, list | tuple))
    with _undisturbed(*leaves, readable_once=readable_once):
        batches = one_pass(num_batches)
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
    batches = _enough(batches, data, num_batches, "; reading it again gave no others")
    return Reread(batches, num_in_a_pass=num_in_a_pass, num_passes=num_passes)


def _one_pass(iterables: Any, mode: Any, num_batches: int) -> list[Batch]:
    if mode is None:
        return list(itertools.islice(iterables, num_batches))
    # Copies, since a loader with persistent workers keeps them, and with them where their randomness stands.
    combined = CombinedLoader(tree_map_only(DataLoader, _without_iterator, iterables), mode)
    batches = [batch for batch, _, _ in itertools.islice(combined, num_batches)]
    combined.reset()
    return batches


def _enough(batches: list[Batch], data: Any, num_batches: int, again: str = "") -> list[Batch]:
    """Return the batches if there are enough of them.

    Raises:
        TooFewBatchesError: If not, with what the user can do.
    """
    if len(batches) >= num_batches:
        return batches
    gave = "1 batch" if len(batches) == 1 else f"{len(batches)} batches"
    raise TooFewBatchesError(
        f"The training data gave {gave}; {num_batches} were asked for{again}. "
        f"{_way_out(data, len(batches), num_batches)}"
    )


def _way_out(data: Any, num_read: int, num_batches: int) -> str:
    """Say how more batches can be had, by numbers where there is one loader that knows how many samples it has."""
    sampler = data.sampler if isinstance(data, DataLoader) and data.batch_size is not None else None
    if isinstance(sampler, Sized) and len(sampler) >= num_batches:
        return (
            f"They come from {len(sampler)} samples in batches of {data.batch_size}: lower `batch_size` to at most "
            f"{len(sampler) // num_batches}" + (f", or `num_batches` to {num_read}." if num_read else ".")
        )
    if isinstance(data, DataLoader) and num_read:
        return f"Lower `num_batches` to {num_read}, or shuffle the data."
    if isinstance(data, DataLoader):
        return "Check that its dataset has samples, and that `drop_last` does not drop them all."
    if isinstance(data, Iterator):
        return f"A {type(data).__name__} can be read only once: pass more batches, or a DataLoader that shuffles."
    return f"Pass {num_batches} batches" + (f", or lower `num_batches` to {num_read}." if num_read else ".")


def _without_iterator(loader: DataLoader[Any]) -> DataLoader[Any]:
    own = copy.copy(loader)
    own._iterator = None
    return own


@contextmanager
def _undisturbed(*roots: Any, readable_once: bool = True) -> Iterator[None]:
    """Put back what reading moves: generators, counters, caches and orders in loaders, samplers, datasets, transforms.

    Of every object that is reached through attributes, containers, bound methods, partial functions and closures,
    generators of torch, NumPy and Python get their state back, and objects their attributes; lists, dictionaries, sets
    and deques their elements, small tensors and arrays their numbers. What stands in global variables is not reached.

    Args:
        roots: Where to start.
        readable_once: Whether iterators, which cannot be put back, are let pass.

    Raises:
        UnsupportedBatchError: If an iterator is reached that must not be moved.
    """

    def is_open(obj: Any) -> bool:
        if isinstance(obj, _NOT_LOOKED_INTO) or is_trainer(obj):
            return False
        is_read_once = isinstance(obj, Iterator) and (isinstance(obj, _LoaderIter) or not hasattr(obj, "__dict__"))
        if is_read_once and not readable_once:
            raise UnsupportedBatchError(
                f"The training data holds a {type(obj).__name__}, which can be read once, and training needs it. Use "
                "a loader that starts anew whenever it is iterated."
            )
        return True

    restore = remembered(roots, is_open=is_open)
    try:
        yield
    finally:
        for undo in restore:
            undo()
