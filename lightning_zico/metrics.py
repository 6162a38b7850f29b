"""ZiCo as a torchmetrics metric, merged over ranks by the metric's own reduction.

Index conventions:
    P: number of entries of all scored weights together
    W: ranks
    *: shape of one parameter
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_zico.engine.layers import Layer, Layers, known_layers, matching_layers
from lightning_zico.engine.moments import Moments
from lightning_zico.proxies.zico import zico_layers, zico_score

_Shapes: TypeAlias = Mapping[str, torch.Size]


class ZiCoMetric(Metric):
    """ZiCo of the gradients seen so far, on this rank and all others.

    The state is one vector of ``1 + 3 P`` numbers: the number of gradients, then for each weight their mean, mean
    magnitude and deviation. Ranks exchange it once and merge it as batches are merged, so the result is the same as
    that of one process that saw all gradients.

    Args:
        module: The module whose gradients will be passed. Only names and shapes are stored.
        parameters: Shell patterns of the parameters to score; None for the layers known from the classes of the
            module's parts; see `engine.layers.known_layers`.
        kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If there is no parameter to score.

    Example:
        >>> metric = ZiCoMetric(nn.Linear(2, 1, bias=False))
        >>> for gradient in ([[1.0, 2.0]], [[3.0, 2.0]]):
        ...     metric.update({"weight": torch.tensor(gradient)})
        >>> metric.compute()  # log(2 / 1); the second weight never varies and drops out
        tensor(0.6931)

    Note:
        Use ``update``. Calling the metric would return the score of a single gradient, which is not defined.
    """

    higher_is_better: bool | None = True
    is_differentiable: bool | None = False
    full_state_update: bool | None = False
    moments: Tensor

    def __init__(self, module: nn.Module, parameters: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        layers = known_layers(module) if parameters is None else matching_layers(module, parameters)
        if not layers:
            raise ValueError(
                f"{type(module).__name__} has no trainable parameter to score. Choose some with `parameters=`."
            )
        named = {name: parameter.detach() for name, parameter in module.named_parameters()}
        self._prepare(layers, layers.split(named))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "ZiCoMetric":
        """Create a metric for gradients of known names and shapes, whatever module they come from."""
        metric = cls.__new__(cls)
        Metric.__init__(metric)
        metric._prepare(Layers({name: Layer(name, name) for name in tensors}), tensors)
        return metric

    def _prepare(self, layers: Layers, tensors: Mapping[str, Tensor]) -> None:
        self._layers = layers
        self._shapes: _Shapes = {name: tensor.shape for name, tensor in tensors.items()}
        dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors.values()) else torch.float32
        # The registered default is empty, since torchmetrics keeps a copy of it.
        self.add_state("moments", torch.zeros(0, dtype=dtype), dist_reduce_fx=partial(_merge_ranks, self._shapes))
        self._clear()

    def reset(self) -> None:
        """Forget all gradients."""
        super().reset()
        self._clear()

    def update(self, gradients: Mapping[str, Tensor | Moments]) -> None:
        """Add one gradient of every scored weight, or the moments of several.

        Args:
            gradients: Tensors of the parameters' shapes ``[*]`` by layer or parameter name, or moments by layer.
                Further names are ignored.

        Raises:
            KeyError: If a scored weight is missing.
            ValueError: If a gradient does not have its parameter's shape.
        """
        new = {}
        for name, shape in self._shapes.items():
            layer = self._layers[name]
            given = gradients[name] if name in gradients else layer.of(gradients[layer.parameter])  # type: ignore[arg-type]
            given_shape = given.mean.shape if isinstance(given, Moments) else given.shape
            if given_shape != shape:
                raise ValueError(
                    f"The gradient of '{name}' has shape {tuple(given_shape)}: expected {tuple(shape)}, the shape of "
                    "the parameter. Stack several gradients with `Moments.of`, or call `update` once for each."
                )
            new[name] = given if isinstance(given, Moments) else Moments.of(given.detach()[None].to(self.moments))
        self.moments = _merge(self.moments, _packed(new, self.moments), self._shapes)

    def compute(self) -> Tensor:
        """Compute the score over all gradients of all ranks; see `proxies.zico.zico_score`."""
        return self.moments.new_tensor(zico_score(_unpacked(self.moments, self._shapes)))

    def layers(self) -> dict[str, float]:
        """Compute each layer's contribution to the score, over all ranks; see `proxies.zico.zico_layers`."""
        with self.sync_context():
            return zico_layers(_unpacked(self.moments, self._shapes))

    def _clear(self) -> None:
        numbers = 1 + 3 * sum(math.prod(shape) for shape in self._shapes.values())
        self.moments = torch.zeros(numbers, device=self.moments.device, dtype=self.moments.dtype)


def _merge_ranks(shapes: _Shapes, stacked: Tensor) -> Tensor:
    """Merge the states of all ranks, ``[W, 1 + 3 P] -> [1 + 3 P]``."""
    merged = stacked[0]
    for state in stacked[1:]:
        merged = _merge(merged, state, shapes)
    return merged


def _merge(state: Tensor, other: Tensor, shapes: _Shapes) -> Tensor:
    if not state[0] or not other[0]:
        return other if not state[0] else state
    merged = _unpacked(state, shapes)
    for name, moments in _unpacked(other, shapes).items():
        merged[name].merge(moments)
    return _packed(merged, state)


def _unpacked(state: Tensor, shapes: _Shapes) -> dict[str, Moments]:
    """Split a state into the moments of each weight; they share its memory."""
    count = int(state[0])
    parts = {}
    start = 1
    for name, shape in shapes.items():
        stop = start + 3 * math.prod(shape)
        parts[name] = Moments(count, *state[start:stop].view(3, *shape))
        start = stop
    return parts


def _packed(moments: Mapping[str, Moments], like: Tensor) -> Tensor:
    count = next(iter(moments.values())).count
    parts = [torch.full((1,), float(count)).to(like)]
    for m in moments.values():
        deviation = torch.zeros_like(m.mean) if m.count == 1 or m.deviation is None else m.deviation
        parts += [part.reshape(-1).to(like) for part in (m.mean, m.mean_abs, deviation)]
    return torch.cat(parts)
