"""Names for the types that many signatures share."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

Params: TypeAlias = dict[str, Tensor]
Buffers: TypeAlias = dict[str, Tensor]

# Any nest of tuples, lists, mappings and dataclasses with tensors as leaves; what a loader yields.
Batch: TypeAlias = Any

# (outputs, targets) -> mean loss over the batch, a scalar
LossFn: TypeAlias = Callable[[Any, Any], Tensor]

# (module, batch, batch_idx) -> mean loss over the batch, a scalar
Step: TypeAlias = Callable[[nn.Module, Batch, int], Tensor]

# What varies between two gradients: the batch (the published ZiCo) or the sample.
Axis: TypeAlias = Literal["batch", "sample"]
