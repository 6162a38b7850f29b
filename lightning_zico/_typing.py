"""Types that many signatures share, and the check of `NumSamples`."""

import inspect
from collections.abc import Callable
from numbers import Integral
from typing import Any, Literal, TypeAlias, TypeGuard, cast

from torch import Tensor, nn

Params: TypeAlias = dict[str, Tensor]
Buffers: TypeAlias = dict[str, Tensor]

# What a loader yields: any nest of tuples, lists, mappings and dataclasses with tensors as leaves.
Batch: TypeAlias = Any

# (outputs, targets) -> mean loss over the batch, a scalar
LossFn: TypeAlias = Callable[[Any, Any], Tensor]

# (module, batch, batch_idx) -> mean loss over the batch, a scalar
Step: TypeAlias = Callable[[nn.Module, Batch, int], Tensor]

# What differs between two gradients: the batch (as in the published ZiCo) or the sample.
Axis: TypeAlias = Literal["batch", "sample"]

# Number of samples in a batch: a number, or a function of the batch that a loader yields.
NumSamples: TypeAlias = int | Callable[[Batch], int]


def check_num_samples(num_samples: Any) -> NumSamples | None:
    """Validate `num_samples` and return it, a number as an int.

    Raises:
        ValueError: If it is neither None, nor a positive int, nor a function of a batch.
    """
    expected = "expected a positive int, a function of a batch that returns one, or None to read it from the batch."
    if is_count(num_samples):
        return int(num_samples)
    if callable(num_samples):
        try:
            inspect.signature(num_samples).bind(None)
        except TypeError as error:
            raise ValueError(f"Invalid num_samples: it cannot be called with a batch ({error}): {expected}") from None
        except ValueError:  # functions written in C have no signature
            pass
    elif num_samples is not None:
        raise ValueError(f"Invalid num_samples={num_samples!r}: {expected}")
    return cast(NumSamples | None, num_samples)


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value is a positive whole number, which may be of NumPy."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0
