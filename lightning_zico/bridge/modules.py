"""From Lightning to plain functions: a module's ``training_step`` as a loss.

Everything that is written to a module, a data module, a loader or a trainer on the way is put back before control
returns.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from lightning.pytorch.core.hooks import DataHooks
from lightning.pytorch.plugins import Precision
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from lightning_zico._typing import Batch, LossFn, Step
from lightning_zico.bridge.data import attached, overrides_transfer
from lightning_zico.bridge.hooks import (
    WRITING_HOOKS,
    Opening,
    call_hook,
    check_surroundings,
    describe_error,
    is_lightning,
    refusal,
)
from lightning_zico.bridge.private_trainer import at_batch, begin, private_trainer, quieted
from lightning_zico.bridge.steps import WAY_OUT, check_training_step, loss_step
from lightning_zico.bridge.trainers import (
    DEFAULT_SETTINGS,
    TrainerSettings,
    TrainingLoader,
    goes_on,
    is_overridden,
    takes_part,
    without_chatter,
)
from lightning_zico.bridge.undisturbed import undisturbed
from lightning_zico.engine.batches import copied_batch, map_tensors
from lightning_zico.engine.scope import preserved, weights_behind
from lightning_zico.engine.tree import parameters
from lightning_zico.errors import (
    HookError,
    SkippedBatchError,
    SurroundingsError,
    UnsupportedModuleError,
)

# Start of the reason when a module's optimisers cannot be made.
OPTIMIZERS_FAIL = "its `configure_optimizers` fails: "


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
        enter(_preserved_values(module, if_=writes))
        enter(preserved(module, *weights_behind(loss_fn, step)))
        enter(undisturbed(*hooked, *callbacks))
        if lightning:
            _mute_logging(module, *callbacks)
        opening, refused = None, None
        if trainer is not None:
            enter(quieted(trainer))
            enter(undisturbed(*_list_reachable(trainer)))
            opening = Opening(module, trainer, callbacks) if lightning else None
            if opening is not None and running is not None:
                _go_on(opening, running)
        elif lightning or hooked:
            device = device or _device_of(module)
            seen: dict[str, Any] = {"datamodule": datamodule, "loader": loader, "precision": precision}
            remember = _put_back_later(stack)
            if datamodule is not None and any(value is datamodule for value in vars(module).values()):
                remember(datamodule)
            private = enter(private_trainer(settings, module=module, device=device, reached=remember, **seen))
            if datamodule is not None:
                enter(attached(datamodule, private))
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
        left_out = () if opening is None else opening.left_out
        run = loss_step(module, loss_fn, step, precision=plugin, left_out=left_out)
        if opening is not None:
            run, prepare = _count_batches(opening, run, prepare)
        yield Bridge(run, prepare, _mute_metrics, refused)


def _put_back_later(stack: ExitStack) -> Callable[[Any], None]:
    """Make a function that remembers an object when it is first accessed, so that it is restored at the end.

    Most modules access neither the data module nor the loaders, and should not pay for copies of their contents.
    """
    seen: dict[int, Any] = {}

    def remember(obj: Any) -> None:
        if id(obj) not in seen:
            seen[id(obj)] = obj
            stack.enter_context(undisturbed(obj))

    return remember


def _list_reachable(trainer: Any) -> list[Any]:
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


def unwrap_compiled(module: nn.Module) -> nn.Module:
    """Return the module inside one of `torch.compile`, as Lightning does; compiling would cost more than scoring."""
    return getattr(module, "_orig_mod", module)


def _count_batches(
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

    def count_and_prepare(batch: Batch, batch_idx: int) -> Batch:
        nonlocal changes_module
        at_batch(opening.trainer, batch_idx)
        batch = prepare(batch, batch_idx)
        if batch is None:
            raise SkippedBatchError(f"Batch {batch_idx} is None")
        if not changes_batches:
            return batch
        before = copied_batch(batch)
        with _preserved_values(opening.module), preserved(opening.module), torch.enable_grad():
            state = opening.state()
            opening.start_batch(batch, batch_idx)
            to_repeat.clear()  # one batch at a time is held
            # Checked once for all batches: between two batches of a pass the module is as the hook has left it.
            changes_module = changes_module or opening.state() != state
            if changes_module:
                to_repeat[batch_idx] = before
        return batch

    def count_and_step(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        at_batch(opening.trainer, batch_idx)
        if batch_idx in to_repeat:
            try:
                opening.start_batch(copied_batch(to_repeat[batch_idx]), batch_idx)
            except HookError as error:
                # Raised as if by the step: `vmap` may fail where plain autograd works.
                raise error.__cause__ or error from None
        return step(module, batch, batch_idx)

    return count_and_step, count_and_prepare


@contextmanager
def _preserved_values(module: nn.Module, *, if_: bool = True) -> Iterator[None]:
    """Restore the values of parameters and buffers, if code outside the engine may run on them."""
    tensors = (*module.parameters(), *module.buffers()) if if_ else ()
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors if not is_lazy(tensor)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in saved:
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
        if has_own_loss and "multiple optimizers" in describe_error(error):
            raise UnsupportedModuleError(
                f"{type(module).__name__} configures several optimisers, so there is no single loss. {WAY_OUT}"
            ) from None
        with suppress(SurroundingsError):
            check_surroundings(error, "configure_optimizers", ())
            return OPTIMIZERS_FAIL + describe_error(error) if has_own_loss else None
    return None


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
