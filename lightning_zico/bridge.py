"""From Lightning to plain functions: a module's ``training_step`` as a loss, a data module's batches as a list.

Everything that is written to a module, a data module, a loader or a trainer on the way is put back before control
returns.
"""

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.core.hooks import DataHooks
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader
from torchmetrics import Metric

from lightning_zico._typing import Batch, LossFn, Step
from lightning_zico.engine.batches import copied_batch, map_tensors
from lightning_zico.engine.contents import contents
from lightning_zico.engine.scope import preserved, preserved_rng, weights_behind
from lightning_zico.engine.tree import parameters
from lightning_zico.errors import (
    HookError,
    SkippedBatchError,
    SurroundingsError,
    TooFewBatchesError,
    UnsupportedBatchError,
    UnsupportedModuleError,
    blame,
)
from lightning_zico.hooks import (
    TRANSFER_HOOKS,
    WRITING_HOOKS,
    Opening,
    call_hook,
    check_surroundings,
    is_lightning,
    is_overridden,
    message_of,
    refusal,
)
from lightning_zico.trainers import (
    DEFAULT_SETTINGS,
    TrainerSettings,
    TrainingLoader,
    at_batch,
    begin,
    goes_on,
    private_trainer,
    quieted,
    takes_part,
    without_chatter,
    without_iterator,
)
from lightning_zico.undisturbed import undisturbed

# Start of the reason when a module's optimisers cannot be made.
OPTIMIZERS_FAIL = "its `configure_optimizers` fails: "
_WAY_OUT = (
    "Pass `loss_fn=`, called as `loss_fn(outputs, targets)` on batches `(inputs, targets)`, or `step=`, called as "
    "`step(module, batch, batch_idx)`, which returns the loss."
)
_MOST_IN_VAIN = 2  # most passes over a loader in a row that give no new batch


class Bridge(NamedTuple):
    """What the engine needs to know about a module.

    Args:
        step: ``(module, batch, batch_idx) -> mean loss``.
        prepare: ``(batch, batch_idx) -> batch`` on the module's device, through its transfer hooks.
        muted: Silences the module's metrics, whose arithmetic no proxy should count; for counting on the meta device.
        refused: Why Lightning's trainer would not train the module; None if it would.
    """

    step: Step
    prepare: Callable[[Batch, int], Batch]
    muted: Callable[[nn.Module], None]
    refused: str | None = None


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


class Running(NamedTuple):
    """The hook that a trainer is running during training.

    Args:
        hook: ``"on_train_start"`` or ``"on_train_epoch_start"``.
        callback: The callback whose hook it is; the hooks of later callbacks and of the module have not run yet.
    """

    hook: str
    callback: Any

    def behind(self, trainer: Any) -> list[Any]:
        """List the trainer's callbacks after the one whose hook is running."""
        callbacks = list(trainer.callbacks)
        return callbacks[callbacks.index(self.callback) + 1 :] if self.callback in callbacks else []


@contextmanager
def bridged(
    module: nn.Module,
    *,
    loss_fn: LossFn | None = None,
    step: Step | None = None,
    datamodule: Any = None,
    settings: TrainerSettings = DEFAULT_SETTINGS,
    loader: TrainingLoader | None = None,
    precision: Precision | None = None,
    device: torch.device | None = None,
    place: Callable[[nn.Module], None] | None = None,
    trainer: Any = None,
    running: Running | None = None,
) -> Iterator[Bridge]:
    """Make a module ready to be measured, and restore it afterwards, also when the body raises.

    A LightningModule sees what it would see at the first batch of ``fit``. ``self.log`` and ``self.log_dict`` do
    nothing, and ``self.logger`` discards what it receives. A module that is not yet in training gets a private
    trainer, and the hooks before the first step run as Lightning runs them: ``configure_callbacks``, ``prepare_data``,
    ``setup``, ``configure_model``, ``configure_optimizers``, ``on_fit_start``, ``on_train_start``,
    ``on_train_epoch_start``, and for each batch ``on_train_batch_start``. For a module in training, only the hooks run
    that have not run yet. A module in eval mode is put in train mode as a whole; one in train mode keeps the modes of
    its parts (a frozen backbone stays in eval mode), as Lightning does.

    Args:
        module: A LightningModule (of ``lightning`` or ``pytorch_lightning``) or, with ``loss_fn`` or ``step``, any
            module.
        loss_fn: ``(outputs, targets) -> mean loss``, used instead of ``training_step`` on batches ``(inputs,
            targets)``.
        step: ``(module, batch, batch_idx) -> mean loss``, used instead of ``training_step`` on any batches.
        datamodule: Its overridden transfer hooks run instead of the module's, as in Lightning. Meanwhile its
            ``trainer`` is that of the module.
        settings: Settings of the private trainer.
        loader: The loader that the private trainer shows.
        precision: Precision plugin that the step runs in; None for the trainer's, or for none with a private trainer.
        device: Device that ``place`` moves the module to; None for its present one.
        place: Moves and converts the module once its parts exist, before optimisers are made.
        trainer: The trainer that is training the module; None to attach a private one.
        running: The hook that this trainer is running; None if all hooks before the next batch have run.

    Raises:
        UnsupportedModuleError: If there is neither ``loss_fn`` nor ``step``, and the module's own training has no
            single loss: no ``training_step``, manual optimisation, several optimisers.
        HookError: If a hook fails.
    """
    lightning = is_lightning(module)
    has_own_loss = loss_fn is None and step is None
    if has_own_loss:
        check_training_step(module)
    # The hooks of a data module may also count or draw random numbers.
    hooked = [datamodule] if overrides_transfer(datamodule) else []
    callbacks = [each for each in (settings if trainer is None else trainer).callbacks if takes_part(each)]
    writes = bool(callbacks) or any(is_overridden(module, hook) for hook in WRITING_HOOKS)
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(_values_kept(module, if_=writes))
        enter(preserved(module, *weights_behind(loss_fn, step)))
        enter(undisturbed(*hooked, *callbacks))
        if lightning:
            _mute_logging(module, *callbacks)
        opening, refused = None, None
        if trainer is not None:
            enter(quieted(trainer))
            enter(undisturbed(*_shown_by(trainer)))
            opening = Opening(module, trainer, callbacks) if lightning else None
            if opening is not None and running is not None:
                _go_on(opening, running)
        elif lightning or hooked:
            device = device or _device_of(module)
            seen: dict[str, Any] = {"datamodule": datamodule, "loader": loader, "precision": precision}
            reached = _put_back_once_reached(stack)
            if datamodule is not None and any(value is datamodule for value in vars(module).values()):
                reached(datamodule)
            private = enter(private_trainer(settings, module=module, device=device, reached=reached, **seen))
            if datamodule is not None:
                enter(_attached(datamodule, private))
            if lightning:
                opening = Opening(module, private)
                refused = _open(opening, settings, stack, place, has_own_loss=has_own_loss)
            else:
                begin(private)
        if not lightning and place is not None:
            place(module)
        if not module.training:
            module.train()
        plugin = precision if trainer is None else trainer.precision_plugin
        prepare = _preparer(module, datamodule, None if trainer is None else plugin)
        if loss_fn is not None:
            run = _step_with(loss_fn)
        else:
            run = _step_of(module) if step is None else _returning_loss(step)
        name = f"{type(module).__name__}.training_step" if has_own_loss else "loss_fn=" if step is None else "step="
        run = _in_surroundings(run, name, () if opening is None else opening.left_out)
        if plugin is not None:
            run = _in_precision(plugin, run)
        if opening is not None:
            run, prepare = _counted(opening, run, prepare)
        yield Bridge(run, prepare, _mute_metrics, refused)


def _put_back_once_reached(stack: ExitStack) -> Callable[[Any], None]:
    """Make a function that remembers an object when it is first accessed, so that it is restored at the end.

    Most modules access neither the data module nor the loaders, and should not pay for copies of their contents.
    """
    seen: dict[int, Any] = {}

    def reached(obj: Any) -> None:
        if id(obj) not in seen:
            seen[id(obj)] = obj
            stack.enter_context(undisturbed(obj))

    return reached


def _shown_by(trainer: Any) -> list[Any]:
    """List what hooks reach through a trainer in training: its data module, its loaders and its callbacks.

    Progress bars, whose threads keep running, and callbacks of this package, which hold the scores, are left out.
    """
    loops = (trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop)
    loaders = [loop._combined_loader.iterables for loop in loops if loop._combined_loader is not None]
    callbacks = [callback for callback in trainer.callbacks if not goes_on(callback)]
    return [*_if_there(getattr(trainer, "datamodule", None)), *loaders, *callbacks]


def _if_there(obj: Any) -> list[Any]:
    return [] if obj is None else [obj]


def _open(
    opening: Opening,
    settings: TrainerSettings,
    stack: ExitStack,
    place: Callable[[nn.Module], None] | None,
    *,
    has_own_loss: bool,
) -> str | None:
    """Run what comes before the first batch of ``fit``, in Lightning's order.

    Returns:
        Why Lightning's trainer would refuse the module, or could not set up its optimisers; None if neither.
    """
    module, trainer = opening.module, opening.trainer
    for part in module.modules():
        if is_lightning(part):
            # The property's setter refuses a module of the other package. The device is set before the parts are moved
            # to it, as Lightning does.
            vars(part).update(_trainer=trainer, _device=trainer.strategy.root_device)
    with torch.enable_grad():
        trainer.callbacks = opening.take_callbacks(settings)
        brought = [callback for callback in opening.callbacks if callback not in settings.callbacks]
        stack.enter_context(undisturbed(*brought))
        _mute_logging(*brought)
        refused = refusal(trainer) if has_own_loss else None
        opening.run("prepare_data", callbacks=())
        opening.run("setup", stage=trainer.state.fn)  # by name, as Lightning does
        opening.run("configure_model", callbacks=())
        if place is not None:
            place(module)
        failed = _set_up_optimizers(trainer, module, has_own_loss)
        if not module.training:
            module.train()
        opening.run("on_fit_start")
        begin(trainer)
        for hook in ("on_train_start", "on_train_epoch_start"):
            opening.run(hook)
    return refused or failed


def _go_on(opening: Opening, running: Running) -> None:
    """Run the hooks that a trainer in training has not run yet before its next batch."""
    hooks = ("on_train_start", "on_train_epoch_start")
    behind = running.behind(opening.trainer)
    with torch.enable_grad():
        opening.run(running.hook, callbacks=[callback for callback in opening.callbacks if callback in behind])
        for hook in hooks[hooks.index(running.hook) + 1 :]:
            opening.run(hook)


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module inside one of `torch.compile`, as Lightning does; compiling would cost more than scoring."""
    return getattr(module, "_orig_mod", module)


def check_training_step(module: nn.Module) -> None:
    """Check, before anything runs, that a module's own ``training_step`` returns a loss to differentiate.

    Raises:
        UnsupportedModuleError: If not. The message names the alternatives, ``loss_fn=`` and ``step=``.
    """
    name = type(module).__name__
    if not is_lightning(module):
        raise UnsupportedModuleError(f"{name} is not a LightningModule, so it has no loss of its own. {_WAY_OUT}")
    if not is_overridden(module, "training_step"):
        raise UnsupportedModuleError(f"{name} defines no `training_step`. {_WAY_OUT}")
    if not module.automatic_optimization:
        raise UnsupportedModuleError(
            f"{name} optimises manually: its `training_step` takes steps instead of returning a loss. {_WAY_OUT}"
        )
    training_step: Any = module.training_step
    if "optimizer_idx" in inspect.signature(training_step).parameters:
        raise UnsupportedModuleError(f"{name} has several optimisers (`optimizer_idx`). {_WAY_OUT}")
    if is_param_in_hook_signature(training_step, "dataloader_iter", explicit=True):
        raise UnsupportedModuleError(f"{name} fetches its batches itself (`dataloader_iter`). {_WAY_OUT}")


_SERVES_ALL = (
    "A data module serves all candidates, so its trainer has no module while it is set up, read or torn down. Pass "
    "what it needs as an argument of its own, or ask in `on_after_batch_transfer`, which runs for each candidate."
)


class Reading(NamedTuple):
    """Batches that were read, and the loader they come from."""

    batches: list[Batch]
    loader: TrainingLoader


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
        self.datamodule = data if is_datamodule(data) else None
        self._settings = settings
        self._is_set_up = False

    def __enter__(self) -> "TrainingData":
        """Enter; nothing is set up before the first reading."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Tear a data module down, also if the body raised."""
        self._tear_down()

    def read(self, num_batches: int, *, seed: int = 0) -> Reading:
        """Read the first batches under a seed, and leave the data's state and all generators as they were.

        Args:
            num_batches: Number of batches to read.
            seed: Seed of shuffling and augmentation; generators that a loader owns continue from their own state.

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
            batches = _first(loader, num_batches)
            return Reading(batches, TrainingLoader(loader))

    @contextmanager
    def _loader(self, seed: int) -> Iterator[Any]:
        self._tear_down()
        if self.datamodule is None:
            with preserved_rng(seed):
                yield self.data
            return
        with self._seen_by_trainer() as trainer, preserved_rng(seed):
            self._call(trainer, "prepare_data")
            self._call(trainer, "setup", stage=trainer.state.fn)
            self._is_set_up = True
            yield self._call(trainer, "train_dataloader")

    def _tear_down(self) -> None:
        if self._is_set_up:
            self._is_set_up = False
            with self._seen_by_trainer() as trainer, preserved_rng():
                self._call(trainer, "teardown", stage=trainer.state.fn)

    def _call(self, trainer: Any, hook: str, **kwargs: Any) -> Any:
        """Run a hook of the data module; its exceptions pass unchanged, unless it lacks a running training."""
        name = f"{type(self.datamodule).__name__}.{hook}"
        try:
            result = getattr(self.datamodule, hook)(**kwargs)
        except Exception as error:
            if trainer.private_was_asked and "NoneType" in str(error):
                raise SurroundingsError(f"`{name}` raised {message_of(error)}. {_SERVES_ALL}") from error
            check_surroundings(error, name, ())
            raise
        if trainer.private_was_asked:
            trainer.private_was_asked = False
            warnings.warn(f"`{name}` asked its trainer for the module and found None. {_SERVES_ALL}", stacklevel=2)
        return result

    @contextmanager
    def _seen_by_trainer(self) -> Iterator[Any]:
        with (
            private_trainer(self._settings, datamodule=self.datamodule) as trainer,
            _attached(self.datamodule, trainer),
        ):
            yield trainer


def read_batches(data: Any, num_batches: int, *, seed: int = 0) -> list[Batch]:
    """Read the first batches of training data, and tear down a data module; see `TrainingData`, also for errors."""
    with TrainingData(data) as training_data:
        return training_data.read(num_batches, seed=seed).batches


@contextmanager
def training_loader(datamodule: Any, *, seed: int = 0) -> Iterator[Any]:
    """Set up a data module while the body runs, and yield its training loader.

    Args:
        datamodule: The data module; its hooks run as for `TrainingData`.
        seed: Seed for the body; all generators are restored afterwards.
    """
    with TrainingData(datamodule) as data, data._loader(seed) as loader:
        yield loader


def read_training_batches(trainer: Any, num_batches: int, *, seed: int = 0) -> list[Batch]:
    """Read the first batches of a trainer's training data, without affecting the training.

    Args:
        trainer: A trainer in ``fit``.
        num_batches: How many batches to read, regardless of ``limit_train_batches``.
        seed: As for `read_batches`, which also documents the exceptions.
    """
    with preserved_rng(seed):
        return _first(trainer.fit_loop._combined_loader, num_batches, readable_once=False)


def is_datamodule(data: Any) -> bool:
    """Whether data is a LightningDataModule of either package."""
    return isinstance(data, LightningDataModule) or all(
        callable(getattr(data, hook, None)) for hook in ("prepare_data", "setup", "train_dataloader", "teardown")
    )


def overrides_transfer(datamodule: Any) -> bool:
    """Whether a data module overrides hooks that transfer batches to the device."""
    return any(is_overridden(datamodule, hook) for hook in TRANSFER_HOOKS)


def _in_surroundings(step: Step, name: str, left_out: Sequence[str]) -> Step:
    def in_surroundings(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        try:
            return step(module, batch, batch_idx)
        except Exception as error:
            check_surroundings(error, name, left_out)
            raise

    return in_surroundings


def _step_of(module: nn.Module) -> Step:
    # Lightning's own rule: the second argument is the index, whatever its name.
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)  # type: ignore[arg-type]
    name = f"{type(module).__name__}.training_step"

    def training_step(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        step: Any = module.training_step
        return _loss_in(step(batch, batch_idx) if takes_index else step(batch), name, batch_idx)

    return training_step


def _returning_loss(step: Step) -> Step:
    def returning_loss(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        with _blaming("`step=`"):
            return _loss_in(step(module, batch, batch_idx), "step=", batch_idx)

    return returning_loss


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        blame(error, name)
        raise


def _loss_in(output: Any, name: str, batch_idx: int) -> Tensor:
    """Return the loss from what a step returned.

    Raises:
        SkippedBatchError: If it returned None.
        UnsupportedModuleError: If it returned a dictionary without a loss.
    """
    if output is None:
        raise SkippedBatchError(f"`{name}` returned None for batch {batch_idx}")
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if loss is None:
        raise UnsupportedModuleError(
            f"`{name}` returned a dictionary without a loss: expected the mean loss of the batch as a tensor, or a "
            "dictionary with the key 'loss'. If the module has no loss of its own, pass `loss_fn=` or `step=`."
        )
    return loss


def _step_with(loss_fn: LossFn) -> Step:
    def step(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise UnsupportedBatchError(
                f"Invalid batch of type {type(batch).__name__}: with `loss_fn=`, expected a pair `(inputs, targets)`. "
                "For other batches, pass `step=`, called as `step(module, batch, batch_idx)`."
            )
        outputs = module(batch[0])
        with _blaming("`loss_fn=`"):
            return loss_fn(outputs, batch[1])

    return step


def _in_precision(precision: Precision, step: Step) -> Step:
    def in_precision(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        with precision.train_step_context():
            return step(module, batch, batch_idx)

    return in_precision


def _counted(
    opening: Opening, step: Step, prepare: Callable[[Batch, int], Batch]
) -> tuple[Step, Callable[[Batch, int], Batch]]:
    """Set the trainer's counters when a batch is prepared and when its step runs, and run ``on_train_batch_start``.

    That hook runs when a batch is prepared, because it may change the batch, which proxies then look at. Its changes to
    the module are undone; if there were any, it runs again within the step, on the batch as it was before, because the
    module is restored after every step.
    """
    changes_batches = opening.changes_batches
    changes_module = False
    to_repeat: dict[int, Batch] = {}

    def prepare_counted(batch: Batch, batch_idx: int) -> Batch:
        nonlocal changes_module
        at_batch(opening.trainer, batch_idx)
        batch = prepare(batch, batch_idx)
        if batch is None:
            raise SkippedBatchError(f"Batch {batch_idx} is None")
        if not changes_batches:
            return batch
        before = copied_batch(batch)
        with _values_kept(opening.module), preserved(opening.module), torch.enable_grad():
            state = opening.state()
            opening.start_batch(batch, batch_idx)
            to_repeat.clear()  # one batch at a time is held
            # Checked once for all batches: between two batches of a pass the module is as the hook has left it.
            changes_module = changes_module or opening.state() != state
            if changes_module:
                to_repeat[batch_idx] = before
        return batch

    def counted(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        at_batch(opening.trainer, batch_idx)
        if batch_idx in to_repeat:
            try:
                opening.start_batch(copied_batch(to_repeat[batch_idx]), batch_idx)
            except HookError as error:
                # Raised as if by the step: `vmap` may fail where plain autograd works.
                raise error.__cause__ or error from None
        return step(module, batch, batch_idx)

    return counted, prepare_counted


@contextmanager
def _values_kept(module: nn.Module, *, if_: bool = True) -> Iterator[None]:
    """Restore the values of parameters and buffers, if code outside the engine may run on them."""
    tensors = (*module.parameters(), *module.buffers()) if if_ else ()
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors if not is_lazy(tensor)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)


def _mute_logging(*objects: Any) -> None:
    for obj in objects:
        parts = obj.modules() if isinstance(obj, nn.Module) else ()
        for part in (obj, *filter(is_lightning, parts)):
            vars(part).update(log=_say_nothing, log_dict=_say_nothing)


def _mute_metrics(module: nn.Module) -> None:
    def zero(*_: Any, **__: Any) -> Tensor:
        return torch.zeros(())

    for part in module.modules():
        if isinstance(part, Metric):
            vars(part).update(forward=zero, update=zero, compute=zero)


def _say_nothing(*_: Any, **__: Any) -> None:
    pass


def _set_up_optimizers(trainer: Any, module: nn.Module, has_own_loss: bool) -> str | None:
    """Make ``self.optimizers()`` and ``self.lr_schedulers()`` work.

    Returns:
        Why the optimisers cannot be made, so that training would fail; None if they can.
    """
    try:
        with warnings.catch_warnings(), without_chatter():
            warnings.simplefilter("ignore")  # a module without optimisers can be scored
            trainer.strategy.setup_optimizers(trainer)
    except Exception as error:
        if has_own_loss and "multiple optimizers" in message_of(error):
            raise UnsupportedModuleError(
                f"{type(module).__name__} configures several optimisers, so there is no single loss. {_WAY_OUT}"
            ) from None
        with suppress(SurroundingsError):
            check_surroundings(error, "configure_optimizers", ())
            return OPTIMIZERS_FAIL + message_of(error) if has_own_loss else None
    return None


@contextmanager
def _attached(datamodule: Any, trainer: Any) -> Iterator[None]:
    previous = getattr(datamodule, "trainer", None)
    datamodule.trainer = trainer
    try:
        yield
    finally:
        datamodule.trainer = previous


def _device_of(module: nn.Module) -> torch.device:
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _preparer(module: nn.Module, datamodule: Any, plugin: Precision | None) -> Callable[[Batch, int], Batch]:
    def hook(name: str, *args: Any) -> Any:
        if is_overridden(datamodule, name):
            return call_hook(datamodule, name, *args, blamed=True)
        if is_overridden(module, name):
            return call_hook(module, name, *args)
        return getattr(module if is_lightning(module) else DataHooks(), name)(*args)

    def prepare(batch: Batch, batch_idx: int) -> Batch:
        # Read at each call, because the module may have been moved and converted meanwhile.
        own = list(parameters(module).values())
        device = own[0].device if own else torch.device("cpu")
        dtypes = {parameter.dtype for parameter in own if parameter.is_floating_point()}
        own_dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(own_dtype) if tensor.is_floating_point() else tensor

        if plugin is not None:
            batch = plugin.convert_input(batch)
        elif own_dtype != torch.float32:
            batch = map_tensors(cast, batch)  # as Lightning's "16-true", "bf16-true" and "64-true" do
        batch = hook("on_before_batch_transfer", batch, 0)
        batch = hook("transfer_batch_to_device", batch, device, 0)
        batch = hook("on_after_batch_transfer", batch, 0)
        return map_tensors(_contiguous, batch)

    return prepare


def _contiguous(tensor: Tensor) -> Tensor:
    # Images that arrive as [N, H, W, C] and are transposed have channels-last strides. With these, torch 2.14 crashed
    # the interpreter in the backward pass of some timm models.
    return tensor.contiguous() if tensor.layout == torch.strided and not tensor.is_nested else tensor


def _first(data: Any, num_batches: int, *, readable_once: bool = True) -> list[Batch]:
    """Read batches; if there are too few, read the data again as long as it gives new ones."""
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
    with undisturbed(*leaves, readable_once=readable_once):
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
    batches = _enough(batches, data, num_batches, "; reading it again gave no new ones")
    return Reread(batches, num_in_a_pass=num_in_a_pass, num_passes=num_passes)


def _one_pass(iterables: Any, mode: Any, num_batches: int) -> list[Batch]:
    if mode is None:
        return list(itertools.islice(iterables, num_batches))
    # Copies, because a loader with persistent workers keeps them, and with them the state of their generators.
    combined = CombinedLoader(tree_map_only(DataLoader, without_iterator, iterables), mode)
    batches = [batch for batch, _, _ in itertools.islice(combined, num_batches)]
    combined.reset()
    return batches


def _enough(batches: list[Batch], data: Any, num_batches: int, again: str = "") -> list[Batch]:
    """Return the batches if there are enough of them.

    Raises:
        TooFewBatchesError: If not; the message says what the user can do.
    """
    if len(batches) >= num_batches:
        return batches
    gave = "1 batch" if len(batches) == 1 else f"{len(batches)} batches"
    raise TooFewBatchesError(
        f"The training data gave {gave}, but {num_batches} were requested{again}. "
        f"{_way_out(data, len(batches), num_batches)}"
    )


def _way_out(data: Any, num_read: int, num_batches: int) -> str:
    """Return advice on how to get more batches, with numbers if there is one loader that knows its sample count."""
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
