"""Modules whose steps reach weights otherwise than through the module tree, and write to them."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.modules import Classifier


class Slots:
    __slots__ = ("net",)

    def __init__(self, net: nn.Module) -> None:
        self.net = net


def in_a_closure(net: nn.Module) -> Callable[[], nn.Module]:
    return lambda: net


def in_an_array(net: nn.Module) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = net
    return array


def on_a_tensor(net: nn.Module) -> Tensor:
    tensor: Any = torch.zeros(1)
    tensor.net = net
    return tensor


HIDING: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any], nn.Module]]] = {
    "list": (lambda net: [net], lambda held: held[0]),
    "tuple": (lambda net: (net,), lambda held: held[0]),
    "dict": (lambda net: {"teacher": net}, lambda held: held["teacher"]),
    "closure": (in_a_closure, lambda held: held()),
    "default": (lambda net: lambda own=net: own, lambda held: held()),
    "bound method": (lambda net: net.forward, lambda held: held.__self__),
    "object": (lambda net: SimpleNamespace(net=net), lambda held: held.net),
    "slots": (Slots, lambda held: held.net),
    "array": (in_an_array, lambda held: held[0]),
    "tensor": (on_a_tensor, lambda held: held.net),
    "nest": (lambda net: [{"a": (SimpleNamespace(nets=[net]),)}], lambda held: held[0]["a"][0].nets[0]),
}


class Taught(Classifier):
    """Distils from a moving average of itself that is not registered, normalises there, and moves it in its step."""

    def __init__(self, hiding: str = "list", unseen: bool = False) -> None:
        super().__init__()
        hide, self.find = HIDING[hiding]
        self.unseen = unseen
        self.held = hide(copy.deepcopy(self.network).requires_grad_(False))

    @property
    def teacher(self) -> nn.Module:
        return self.find(self.held)

    def hidden(self) -> list[Tensor]:
        return [*self.teacher.parameters(), *self.teacher.buffers()]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            targets = self.teacher(batch[0])
            for own, mean in zip(self.network.parameters(), self.teacher.parameters(), strict=True):
                if self.unseen:
                    mean.data.mul_(0.9).add_(own.data, alpha=0.1)
                else:
                    mean.lerp_(own, 0.1)
        return F.mse_loss(self(batch[0]), targets) + super().training_step(batch, batch_idx)


class Assisted(Classifier):
    """Trains a head of its own, in no module tree, with an optimizer that it holds, while it computes its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.tools = SimpleNamespace(head=nn.Linear(3, 3), scale=nn.Parameter(torch.ones(3)))
        self.tools.optimizer = torch.optim.Adam([*self.tools.head.parameters(), self.tools.scale], amsgrad=True)
        self._learn(torch.ones(1, 3))

    def hidden(self) -> list[Tensor]:
        states = [value for state in self.tools.optimizer.state.values() for value in state.values()]
        return [*self.tools.head.parameters(), self.tools.scale, *states]

    def _learn(self, logits: Tensor) -> None:
        with torch.enable_grad():
            (self.tools.head(logits.detach()) * self.tools.scale).square().sum().backward()
        self.tools.optimizer.step()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch[0])
        self._learn(logits)
        return F.cross_entropy(logits * self.tools.scale.detach(), batch[1])


class Stepping(Classifier):
    """Steps an optimizer over its own weights, which it also keeps in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = list(self.network.parameters())
        self.own = torch.optim.AdamW(self.weights, lr=0.1)
        F.cross_entropy(self(torch.ones(2, 2, 5, 5)), torch.tensor([0, 1])).backward()
        self.own.step()

    def hidden(self) -> list[Tensor]:
        return [value for parameter in self.weights for value in self.own.state[parameter].values()]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        gradients = torch.autograd.grad(loss, self.weights, retain_graph=True)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient.detach()
        self.own.step()
        self.weights[0].data.mul_(1.5)
        return super().training_step(batch, batch_idx)


class Averaging:
    """Keeps large means of weights in a plain object, as packages for moving averages do."""

    def __init__(self, parameters: Any) -> None:
        self.shadow = [parameter.detach().clone() for parameter in parameters]
        self.num_updates = 0

    @torch.no_grad()
    def update(self, parameters: Any) -> None:
        self.num_updates += 1
        for mean, parameter in zip(self.shadow, parameters, strict=True):
            mean.sub_((mean - parameter) * 0.1)


class Averaged(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(3, 2**21)  # 24 MB
        self.ema = Averaging(self.parameters())

    def hidden(self) -> list[Tensor]:
        return self.ema.shadow

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.ema.update(self.parameters())
        return super().training_step(batch, batch_idx) + self.wide(self(batch[0])).square().mean()


class Listed(Classifier):
    """Writes to its own weights through a list."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = list(self.network.parameters())

    def hidden(self) -> list[Tensor]:
        return self.weights

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.weights[0].data.mul_(1.5)
        return super().training_step(batch, batch_idx)


BANK = torch.zeros(8, 3)


class Banked(Classifier):
    """Keeps features in a tensor that a global variable refers to as well."""

    def __init__(self) -> None:
        super().__init__()
        self.bank = BANK

    def hidden(self) -> list[Tensor]:
        return [self.bank]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch[0])
        BANK[: len(logits)] = logits.detach()
        return F.cross_entropy(logits + BANK.mean(), batch[1])


KINDS: dict[str, Callable[[], Any]] = {
    **{f"teacher in {hiding}": (lambda hiding=hiding: Taught(hiding)) for hiding in HIDING},
    "teacher, unseen by autograd": lambda: Taught(unseen=True),
    "head with an optimizer": Assisted,
    "optimizer over its own weights": Stepping,
    "list of its own weights": Listed,
    "means in a plain object": Averaged,
    "bank": Banked,
}
