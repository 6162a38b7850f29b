import copy
import logging
import random
import threading
from collections import deque
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric

from lightning_zico.engine import scope
from lightning_zico.engine.scope import preserved, preserved_rng, seed_all, unfused
from lightning_zico.engine.size import count_macs
from lightning_zico.engine.stateless import Stateless


class Everything(nn.Module):
    """Has one of each thing that training code changes on a module."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.dropout = nn.Dropout(0.5)
        self.metric = MeanMetric()
        self.outputs = []
        self.nested = {"losses": [1.0], "deep": {"values": deque([1, 2], maxlen=3)}}
        self.seen = {1}
        self.calls = 0
        self.last = torch.zeros(2)
        self.history = [torch.ones(2)]
        self.by_name = {"ema": torch.ones(1)}
        self.linear.weight.grad = torch.full((2, 3), 7.0)
        self.linear.bias.requires_grad_(False)
        self.dropout.eval()

    def forward(self, x):
        out = self.norm(self.dropout(self.linear(x)))
        self.metric.update(out.detach().mean())
        return out


def spoil(module):
    """Change everything but the values of parameters and buffers."""
    module.eval()
    module.dropout.train()
    module.linear.weight.requires_grad_(False)
    module.linear.bias.requires_grad_(True)
    if module.linear.weight.grad is not None:
        module.linear.weight.grad.zero_()
    module.linear.weight.grad = torch.ones(2, 3)
    module.linear.bias.grad = torch.ones(2)
    module.linear.weight = nn.Parameter(torch.zeros(2, 3))
    module.norm.running_mean = torch.full((2,), 9.0)
    module.register_buffer("new_buffer", torch.zeros(1))
    module.new_child = nn.Linear(1, 1)
    module.dropout = nn.Identity()
    del module.norm
    module.register_forward_hook(lambda *_: None)
    module.linear.register_forward_pre_hook(lambda *_: None)
    module.linear.register_full_backward_hook(lambda *_: None)
    module.outputs.append(1)
    module.nested["losses"].append(2.0)
    module.nested["deep"]["values"].extend([3, 4])
    module.nested["new"] = 1
    module.seen.add(2)
    module.calls += 1
    module.last.fill_(5)
    module.history[0].fill_(5)
    module.history.append(torch.zeros(1))
    module.by_name["ema"].fill_(5)
    module.metric.update(3.0)
    module.metric.mean_value.fill_(4)
    module.new_attribute = "new"
    module.forward = lambda x: x
    random.random()
    np.random.rand()
    torch.rand(1)


def spelled(value, seen=None):
    """Spell an object out: identities of what must stay the same object, and contents of everything."""
    if isinstance(value, torch.Tensor):
        grad = None if value.grad is None else spelled(value.grad)
        return (id(value), value.detach().clone().numpy().tobytes(), value.requires_grad, grad)
    if isinstance(value, dict):
        return (id(value), [(key, spelled(item)) for key, item in value.items()])
    if isinstance(value, list | tuple | deque):
        return (id(value), [spelled(item) for item in value])
    if isinstance(value, set):
        return (id(value), sorted(value))
    if isinstance(value, nn.Module):
        return (id(value), [(name, spelled(attribute)) for name, attribute in vars(value).items()])
    return (id(value), repr(value))


def rng():
    return (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().numpy().tobytes())


@pytest.fixture
def module():
    module = Everything()
    module.metric.update(1.0)
    return module


def test_nothing_is_left_of_what_the_body_did(module):
    before, states = spelled(module), rng()
    with preserved(module):
        spoil(module)
        assert spelled(module) != before
    assert spelled(module) == before
    assert rng() == states


def test_nothing_is_left_when_the_body_raises(module):
    before, states = spelled(module), rng()

    def spoil_and_raise():
        with preserved(module):
            spoil(module)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spoil_and_raise()
    assert spelled(module) == before
    assert rng() == states


def test_reset_gives_the_body_the_module_as_it_was(module):
    before = spelled(module)
    with preserved(module) as reset:
        for _ in range(2):
            assert module.calls == 0
            assert module.outputs == []
            assert module.nested == {"losses": [1.0], "deep": {"values": deque([1, 2])}}
            assert torch.equal(module.last, torch.zeros(2))
            assert torch.equal(module.history[0], torch.ones(2))
            assert torch.equal(module.metric.mean_value, torch.tensor(1.0))
            assert isinstance(module.dropout, nn.Dropout)
            assert not module.dropout.training
            spoil(module)
            reset()
    assert spelled(module) == before


class HiddenBackbone(nn.Module):
    """Gives its optimiser the head alone."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def parameters(self, recurse=True):
        return self.head.parameters(recurse)


def test_parameters_that_a_module_does_not_list_are_put_back_too():
    module = HiddenBackbone()
    module.backbone.weight.grad = torch.ones(3, 3)
    before = spelled(module)
    with preserved(module):
        module.backbone.weight.requires_grad_(False)
        assert module.backbone.weight.grad is None
    assert spelled(module) == before


def test_steps_on_copies_leave_the_module_bit_identical(module):
    before, states = spelled(module), rng()
    with preserved(module):
        for batch_idx in range(2):
            stateless = Stateless(module)
            copies = stateless.copied_params() | stateless.copied_buffers()
            loss = stateless.loss(lambda m, b, i: m(b).square().mean(), copies, torch.randn(4, 3), batch_idx)
            assert loss.isfinite()
    assert spelled(module) == before
    assert rng() == states


def test_the_module_works_afterwards_as_its_untouched_twin(module):
    twin = copy.deepcopy(module)
    with preserved(module):
        spoil(module)
    x = torch.randn(4, 3)
    assert torch.equal(module(x), twin(x))
    assert torch.equal(module.metric.compute(), twin.metric.compute())


def test_generators_go_on_as_if_the_body_had_not_run():
    states = rng()
    with preserved_rng():
        random.random(), np.random.rand(), torch.rand(1)
        assert rng() != states
    assert rng() == states
    with pytest.raises(ZeroDivisionError), preserved_rng(seed=3):
        raise ZeroDivisionError
    assert rng() == states


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="CUDA is in use already, so its state is put back instead")
def test_a_gpu_that_is_first_used_later_starts_from_the_seed_that_torch_had(monkeypatch):
    torch.manual_seed(5)
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    scope._seeders.cache_clear()
    try:
        with preserved_rng(seed=3):
            seed_all(4)
        with preserved_rng():
            seed_all(4)
    finally:
        monkeypatch.undo()
        scope._seeders.cache_clear()
    assert seeds == [3, 4, 5, 4, 5]


def test_devices_that_an_extension_brings_are_seeded(monkeypatch):
    seeds = []
    name = torch._C._get_privateuse1_backend_name()
    monkeypatch.setattr(torch, name, SimpleNamespace(manual_seed_all=seeds.append), raising=False)
    seed_all(4)
    assert seeds == [4]


def test_seeding_starts_every_device_where_torch_does():
    seed_all(3)
    ours = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(ours, torch.rand(2))
    assert torch.initial_seed() == 3


@pytest.mark.parametrize("seed", [0, 2**32 + 5])
def test_a_seed_fixes_all_generators(seed):
    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    with preserved_rng(seed):
        first = draws()
    draws()
    with preserved_rng(seed):
        assert draws() == first
    with preserved_rng():
        seed_all(seed)
        assert draws() == first
    with preserved_rng(seed + 1):
        assert all(a != b for a, b in zip(draws(), first, strict=True))


@pytest.mark.parametrize("fused", [True, False])
def test_the_last_of_several_threads_turns_fused_kernels_on_again(fused):
    entered, left = threading.Event(), threading.Event()
    seen = []

    def other():
        with unfused():
            entered.set()
            left.wait(60)
            seen.append(torch.backends.mha.get_fastpath_enabled())

    torch.backends.mha.set_fastpath_enabled(fused)
    try:
        thread = threading.Thread(target=other)
        with unfused():
            thread.start()
            assert entered.wait(60)
        left.set()
        thread.join()
        assert seen == [False]
        assert torch.backends.mha.get_fastpath_enabled() == fused
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


class Noise:
    """A scheduler as diffusion models have it: a plain object that moves its tensors to where its input is."""

    def __init__(self):
        self.betas = torch.linspace(0, 1, 5)
        self.steps = 0
        self.log = {"seen": []}
        self.inner = None

    def __call__(self, x):
        self.betas = self.betas.to(x.device)
        self.steps += 1
        self.log["seen"].append(self.steps)
        return x * self.betas[0]


class Slotted:
    __slots__ = ("__hidden", "count", "noise")

    def __init__(self, noise):
        self.noise = noise
        self.count = 0
        self.__hidden = 0

    def __call__(self, x):
        self.count += 1
        self.__hidden = self.noise
        return self.noise(x)

    @property
    def state(self):
        return self.count, self.__hidden


@dataclass(frozen=True)
class Frozen:
    noise: Noise

    def __call__(self, x):
        return self.noise(x)


class Holding(nn.Module):
    def __init__(self, hold):
        super().__init__()
        self.noise = Noise()
        self.linear = nn.Linear(3, 3)
        self.held = hold(self.noise)

    def forward(self, x):
        held = self.held
        while isinstance(held, dict | list | tuple):
            held = next(iter(held.values())) if isinstance(held, dict) else held[0]
        return self.linear(held(x))


HOLDERS = {
    "itself": lambda noise: noise,
    "list": lambda noise: [noise],
    "nest": lambda noise: {"a": ({"b": [noise]},)},
    "namespace": lambda noise: SimpleNamespace(noise=noise, __call__=None).noise,
    "slots": Slotted,
    "frozen dataclass": Frozen,
    "bound method": lambda noise: noise.__call__,
    "partial function": lambda noise: partial(Noise.__call__, noise),
    "closure": lambda noise: lambda x: noise(x),
    "deep": lambda noise: Slotted(Frozen(Slotted(noise))),
}


@pytest.mark.parametrize("name", HOLDERS)
@pytest.mark.parametrize("registered", [True, False])
def test_plain_objects_that_a_module_holds_are_put_back(name, registered):
    module = Holding(HOLDERS[name])
    noise = module.noise
    if not registered:
        del module.noise  # reached through the other alone
    noise.inner = noise  # a circle
    module.shared = [noise]
    before = {key: id(value) for key, value in vars(noise).items()}
    betas = noise.betas.clone()
    with preserved(module) as reset:
        for _ in range(2):
            module.to("meta")(torch.zeros(2, 3, device="meta"))
            assert noise.betas.is_meta
            reset()
            noise.betas.add_(1)
            noise.new = 1
    assert {key: id(value) for key, value in vars(noise).items()} == before
    assert torch.equal(noise.betas, betas)
    assert (noise.steps, noise.log) == (0, {"seen": []})
    if name == "slots":
        assert module.held.state == (0, 0)


def test_counting_on_the_meta_device_leaves_no_tensor_there():
    module = Holding(lambda noise: SimpleNamespace(schedulers=[noise]).schedulers)
    twin = copy.deepcopy(module)
    x = torch.randn(2, 3)
    count = count_macs(module, lambda m, b, i: m(b).sum(), x)
    assert (count.macs, count.device) == (9, "meta")
    assert torch.equal(module(x), twin(x))


class Counting(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True)
        self.count = 0


class Guarded:
    """Shares what it has with another thread."""

    def __init__(self):
        self.lock = threading.Lock()
        self.count = 0


@pytest.mark.parametrize("make", [Counting, Guarded, lambda: logging.getLogger(__name__), lambda: Color.RED])
def test_what_is_at_work_elsewhere_is_left_alone(make):
    module = nn.Linear(1, 1)
    module.worker = make()
    with preserved(module):
        module.worker.count = 7
    assert module.worker.count == 7


class Color(Enum):
    RED = 1


def test_classes_are_not_looked_into():
    module, other = nn.Linear(1, 1), Noise()
    other.kind = Slotted
    module.held = [other]
    with preserved(module):
        Slotted.note = 1
    assert Slotted.note == 1
    del Slotted.note
