"""One precision for everything that a module computes, whatever it casts to."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}
_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_COMPLEXES = frozenset({torch.complex128, torch.complex64, torch.complex32})
# Methods that cast by their name.
_CASTS = frozenset({Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16})
_COMPLEX_CASTS = frozenset(getattr(Tensor, name) for name in ("cfloat", "cdouble", "chalf"))
# `torch.FloatTensor` and similar types, also by name, as `Tensor.type` takes them.
_TENSOR_TYPE = type(torch.FloatTensor)
_NAMES = {f"torch.{prefix}{kind}Tensor" for prefix in ("", "cuda.") for kind in ("Float", "Double", "Half", "BFloat16")}

# Functions that make tensors of the default dtype unless they are given another one; those by value only if the given
# numbers are floating point.
_FACTORIES = frozenset(
    getattr(torch, name)
    for name in (
        *("empty", "ones", "zeros", "eye", "rand", "randn", "linspace", "logspace", "empty_strided", "empty_permuted"),
        *("bartlett_window", "blackman_window", "hamming_window", "hann_window", "kaiser_window"),
    )
) | {torch.fft.fftfreq, torch.fft.rfftfreq}
_FACTORIES_BY_VALUE = frozenset({torch.arange, torch.range, torch.full, torch.scalar_tensor, torch.tensor})


def as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a floating-point or complex tensor to a precision; return others unchanged."""
    if tensor.is_floating_point():
        return tensor.to(dtype)
    return tensor.to(_COMPLEX[dtype]) if tensor.is_complex() else tensor


class OneDtype(TorchFunctionMode):
    """Computes in one precision: casts, factories and tensors of another one are converted to it.

    Constants that a module makes get that precision, too. The default dtype, which other threads share, stays.

    Args:
        dtype: float64 or float32.
        follows_casts: Whether to convert casts and tensors as well as constants.
    """

    def __init__(self, dtype: torch.dtype, follows_casts: bool = True) -> None:
        super().__init__()
        self._dtype = dtype
        self._follows_casts = follows_casts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") is None and self._is_default(func, args, kwargs):
            kwargs = {**kwargs, "dtype": self._dtype}
        if not self._follows_casts:
            return func(*args, **kwargs)
        if func in _CASTS:
            return args[0].to(self._dtype)
        if func in _COMPLEX_CASTS:
            return args[0].to(_COMPLEX[self._dtype])
        return func(*self._turned(args), **self._turned(kwargs))

    def _is_default(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        by_value = func in _FACTORIES_BY_VALUE and func(*args, **kwargs).dtype is torch.get_default_dtype()
        return by_value or func in _FACTORIES

    def _turned(self, value: Any) -> Any:
        kind = type(value)
        if kind is torch.dtype:
            return self._dtype if value in _FLOATS else _COMPLEX[self._dtype] if value in _COMPLEXES else value
        if isinstance(value, Tensor):
            is_other = value.dtype is not self._dtype and value.dtype in _FLOATS
            is_other = is_other or (value.dtype in _COMPLEXES and value.dtype is not _COMPLEX[self._dtype])
            return as_dtype(value, self._dtype) if is_other else value
        if kind is tuple or kind is list:
            return kind(self._turned(part) for part in value)
        if kind is dict:
            return {key: self._turned(part) for key, part in value.items()}
        if kind is _TENSOR_TYPE:
            return self._turned(value.dtype)
        return self._dtype if kind is str and value in _NAMES else value
