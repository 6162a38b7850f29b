"""Devices and precision for scoring candidates, with Lightning's names."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_zico._typing import Batch
from lightning_zico.engine.batches import map_tensors
from lightning_zico.engine.lazy import copied
from lightning_zico.engine.tree import buffers, parameters
from lightning_zico.errors import InvalidArgumentError

AcceleratorName: TypeAlias = Literal["cpu", "gpu", "cuda", "mps", "auto"]
Devices: TypeAlias = int | str | list[int]
PrecisionName: TypeAlias = Literal["32-true", "64-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"]

# A trainer takes the same values.
PrecisionLike: TypeAlias = PrecisionName | Literal["64", "32", "16", "bf16", 64, 32, 16]

_SHORT_PRECISIONS: dict[str, PrecisionName] = {
    "64": "64-true",
    "32": "32-true",
    "16": "16-mixed",
    "bf16": "bf16-mixed",
}
# In Lightning's order: "auto" means the first that is available.
_ACCELERATORS: dict[str, type[Accelerator]] = {"mps": MPSAccelerator, "cuda": CUDAAccelerator, "cpu": CPUAccelerator}
_MEANT_BY = {"auto": ("mps", "cuda", "cpu"), "gpu": ("mps", "cuda")}
# The dtypes that parameters and buffers are converted to. With "32-true" and "mixed", Lightning leaves a module as it
# is and expects float32; here it is converted, because the result names the precision.
_DTYPES: dict[PrecisionName, torch.dtype] = {
    "32-true": torch.float32,
    "64-true": torch.float64,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "bf16-mixed": torch.float32,
    "16-mixed": torch.float32,
}


@dataclass(frozen=True)
class Placement:
    """The device and precision in which a candidate is scored; the default leaves it as it is built.

    Args:
        devices: Devices of one accelerator; the first is used, see `of_worker`. Empty to score it where it is built.
        precision: Lightning's name of the precision; None for that in which the candidate is built.
        channels_last: Whether images and the weights of convolutions are laid out with their channels last.
    """

    devices: tuple[torch.device, ...] = ()
    precision: PrecisionName | None = None
    channels_last: bool = False

    @property
    def accelerator(self) -> str | None:
        """Type of the devices; None if candidates are scored where they are built."""
        return self.devices[0].type if self.devices else None

    @property
    def kind(self) -> tuple[str | None, str | None, bool]:
        """The part that numbers depend on; they do not depend on the index of the device."""
        return self.accelerator, self.precision, self.channels_last

    def of_worker(self, worker_idx: int) -> "Placement":
        """Choose the device of one of several workers; up to one worker per device, none is shared."""
        return replace(self, devices=(self.devices[worker_idx % len(self.devices)],)) if self.devices else self

    def enter(self) -> AbstractContextManager[object]:
        """Make the device the current CUDA device, as a trainer does."""
        return torch.cuda.device(self.devices[0]) if self.accelerator == "cuda" else nullcontext()

    def own(self, module: nn.Module) -> nn.Module:
        """Return a module that `place` may change: a copy, unless there is nothing to change."""
        return module if self._fits(module) else copied(module)

    def place(self, module: nn.Module) -> None:
        """Move and convert a module if needed."""
        if self._fits(module):
            return
        wanted: dict[str, Any] = {}
        if self.devices:
            wanted["device"] = self.devices[0]
        if self.precision is not None:
            wanted["dtype"] = _DTYPES[self.precision]
        if self.channels_last:
            wanted["memory_format"] = torch.channels_last
        module.to(**wanted)

    def plugin(self, module: nn.Module) -> Precision | None:
        """Return the precision plugin that a trainer would use for a placed module; None for that of its weights."""
        if self.precision is None:
            return None
        if self.precision in ("bf16-mixed", "16-mixed"):
            own = next((parameter.device.type for parameter in module.parameters()), "cpu")
            return MixedPrecision(self.precision, self.accelerator or own)
        if self.precision in ("bf16-true", "16-true"):
            return HalfPrecision(self.precision)
        return DoublePrecision() if self.precision == "64-true" else Precision()

    def wrap_prepare(self, prepare: Callable[[Batch, int], Batch]) -> Callable[[Batch, int], Batch]:
        """Wrap a function that prepares batches, so that they have the module's memory layout."""
        if not self.channels_last:
            return prepare
        return lambda batch, batch_idx: map_tensors(_channels_last, prepare(batch, batch_idx))

    def _fits(self, module: nn.Module) -> bool:
        if not self.devices and self.precision is None and not self.channels_last:
            return True
        return all(self._fits_tensor(tensor) for tensor in (*parameters(module).values(), *buffers(module).values()))

    def _fits_tensor(self, tensor: Tensor) -> bool:
        if self.devices and tensor.device != self.devices[0]:
            return False
        if self.precision is not None and tensor.is_floating_point() and tensor.dtype != _DTYPES[self.precision]:
            return False
        laid_out = not self.channels_last or is_lazy(tensor) or tensor.ndim != 4
        return laid_out or tensor.is_contiguous(memory_format=torch.channels_last)


AS_BUILT = Placement()


def precision_name(precision: PrecisionLike | None, accelerator: str | None) -> PrecisionName | None:
    """Return the full name for a short name of a precision, as a trainer reads it.

    Args:
        precision: The precision as given; anything but a short name is returned as it is.
        accelerator: The accelerator it is for. On a CPU, 16 means ``"bf16-mixed"``, as it does to a trainer: autocast
            to float16 is for GPUs only.

    Example:
        >>> precision_name("bf16", None), precision_name(16, "gpu"), precision_name(16, "cpu")
        ('bf16-mixed', '16-mixed', 'bf16-mixed')
    """
    short = isinstance(precision, int | str) and not isinstance(precision, bool) and str(precision)
    name = _SHORT_PRECISIONS.get(short) if short else None
    if name is None:
        return precision  # type: ignore[return-value]  # checked by `check_placement`
    return "bf16-mixed" if name == "16-mixed" and accelerator in (None, "cpu") else name


def check_placement(accelerator: str | None, devices: Devices, precision: Any, channels_last: bool) -> None:
    """Check the arguments without looking at the devices of this machine.

    Raises:
        ValueError: If a name is unknown, devices are given without an accelerator, no devices are chosen, or the
            accelerator cannot compute in the precision.
    """
    if accelerator not in (None, *get_args(AcceleratorName)):
        names = ", ".join(f'"{name}"' for name in get_args(AcceleratorName))
        raise ValueError(f"Invalid accelerator={accelerator!r}: expected None or one of {names}.")
    given, precision = precision, precision_name(precision, accelerator)
    if not (precision is None or isinstance(precision, str)) or precision not in (None, *get_args(PrecisionName)):
        names = ", ".join(f'"{name}"' for name in get_args(PrecisionName))
        raise ValueError(
            f'Invalid precision={given!r}: expected None, one of {names}, or the short form 64, 32, 16 or "bf16".'
        )
    if not isinstance(channels_last, bool):
        raise ValueError(f"Invalid channels_last={channels_last!r}: expected True or False.")
    if devices in (0, "0", []):
        raise ValueError(
            f'Invalid devices={devices!r}: expected "auto", a positive number of devices, or a list of device indices.'
        )
    if accelerator is None and devices != "auto":
        raise ValueError(
            f'`devices={devices!r}` needs an accelerator. Pass `accelerator="gpu"` as well, or leave `devices` out.'
        )
    if precision == "16-mixed" and accelerator in (None, "cpu"):
        raise ValueError(
            'Invalid precision="16-mixed": Lightning supports it only on GPUs. Pass `accelerator="gpu"`, or use '
            '"bf16-mixed".'
        )
    if precision == "64-true" and accelerator == "mps":
        raise ValueError(
            'Invalid precision="64-true": `mps` does not support it. Use "32-true", or `accelerator="cpu"`.'
        )


def trainers_precision(precision: str, accelerator: str | None) -> PrecisionName | None:
    """Choose the precision to score in from that of the trainer.

    Args:
        precision: The trainer's name of its precision.
        accelerator: Where candidates are scored; see `placement_of`.

    Returns:
        The precision; None, for that in which candidates are built, if the trainer leaves modules as they are or has a
        precision in which candidates cannot be scored.

    Example:
        >>> trainers_precision("bf16-mixed", None)
        'bf16-mixed'
    """
    if precision == "32-true" or precision not in get_args(PrecisionName):
        return None
    try:
        check_placement(accelerator, "auto", precision, channels_last=False)
    except ValueError:
        return None
    return precision  # type: ignore[return-value]


def placement_of(
    accelerator: AcceleratorName | None, devices: Devices, precision: PrecisionLike | None, channels_last: bool
) -> Placement:
    """Find the devices of this machine that the arguments mean.

    Args:
        accelerator: Accelerator, as for Lightning's trainer; None to score candidates where they are built.
        devices: Devices, as for Lightning's trainer.
        precision: Precision, as for Lightning's trainer; None for that in which a candidate is built.
        channels_last: See `Placement`.

    Raises:
        RuntimeError: If the accelerator is not available.
        MisconfigurationException: Lightning's own error, if there are fewer devices, or other ones.
        InvalidArgumentError: If ``devices`` is not valid for this accelerator.
        ValueError: See `check_placement`.

    Example:
        >>> placement_of("cpu", "auto", "bf16-mixed", channels_last=False).devices
        (device(type='cpu'),)
    """
    check_placement(accelerator, devices, precision, channels_last)
    if accelerator is None:
        return Placement((), precision_name(precision, None), channels_last)
    there = [name for name, kind in _ACCELERATORS.items() if kind.is_available()]
    found = next((name for name in _MEANT_BY.get(accelerator, (accelerator,)) if name in there), None)
    if found is None:
        raise RuntimeError(
            f"Invalid accelerator={accelerator!r}: torch {torch.__version__} does not find it; available: "
            f"{', '.join(there)}. Pass one of these, or None to score candidates where they are built."
        )
    check_placement(found, devices, precision, channels_last)
    kind = _ACCELERATORS[found]
    try:
        indices = kind.parse_devices(kind.auto_device_count() if devices == "auto" else devices)
    except TypeError as error:
        raise InvalidArgumentError(f"Invalid devices={devices!r} for `{found}`: {error}") from None
    meant = kind.get_parallel_devices(indices)
    return Placement(tuple(dict.fromkeys(meant)), precision_name(precision, found), channels_last)


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.ndim != 4 or tensor.layout != torch.strided or tensor.is_nested:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)
