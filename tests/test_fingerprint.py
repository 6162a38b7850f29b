"""A fingerprint changes with whatever changes a number, and with nothing else."""

import copy
import enum
import functools
import os
import random
import subprocess
import sys
import textwrap
import threading
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch import nn

from lightning_zico import ZiCo, score
from lightning_zico.errors import UnfingerprintableError
from lightning_zico.proxies import list_proxies, resolve_proxies
from lightning_zico.scoring.fingerprint import fingerprint, surroundings
from tests.modules import BusyClassifier, Classifier, make_batches, make_network, twice

SOURCE = """
    SCALE = 2.0
    SETTINGS = {"shift": 1.0}

    def inner(x):
        return x + SETTINGS["shift"]

    def helper(x, slope=0.1):
        return inner(x) * slope

    def factor(by):
        return lambda x: x * by

    class Base(nn.Module):
        bias = 3

        def added(self, x):
            return x + self.bias

    class Net(Base):
        triple = staticmethod(factor(3))

        def forward(self, x):
            return self.triple(self.added(helper(x) * SCALE))
"""


def user_module(source: str, name: str = "user_code") -> types.ModuleType:
    """Make a module as if a user had written it."""
    module = types.ModuleType(name)
    vars(module).update(nn=nn, torch=torch)
    exec(textwrap.dedent(source), vars(module))
    return module


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2.0", "SCALE = 3.0"),
        ('"shift": 1.0', '"shift": -1.0'),
        ("inner(x) * slope", "inner(x) / slope"),
        ("x + SETTINGS", "x - SETTINGS"),
        ("slope=0.1", "slope=0.2"),
        ("factor(3)", "factor(4)"),
        ("bias = 3", "bias = 3.0"),
        ("x + self.bias", "x - self.bias"),
        ("class Net(Base)", "class Net(nn.Identity, Base)"),
    ],
)
def test_code_that_a_module_runs_is_seen_wherever_it_stands(old: str, new: str) -> None:
    assert old in SOURCE
    assert fingerprint(user_module(SOURCE.replace(old, new)).Net()) != fingerprint(user_module(SOURCE).Net())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2.0", "# a comment\n\n    SCALE = 2.0"),
        ("class Base", "UNREAD = object()\n\n    class Base"),
        ("def forward(self, x):", "def forward(self, x):  # a comment"),
    ],
)
def test_comments_lines_and_what_is_not_read_are_not_seen(old: str, new: str) -> None:
    assert old in SOURCE
    assert fingerprint(user_module(SOURCE.replace(old, new)).Net()) == fingerprint(user_module(SOURCE).Net())


def test_functions_of_the_users_modules_are_seen_through_the_name_of_the_module() -> None:
    layers = "def act(x):\n    return x.relu()\n\ndef other(x):\n    return x.sin()\n"
    net = "class Net(nn.Module):\n    def forward(self, x):\n        return package.layers.act(x)\n"

    def net_with(layers: str) -> nn.Module:
        module = user_module(net)
        module.package = user_module("", "package")
        module.package.layers = user_module(layers, "package.layers")
        module.package.layers.package = module.package  # as modules that import each other hold each other
        return module.Net()

    assert fingerprint(net_with(layers)) == fingerprint(net_with(layers))
    assert fingerprint(net_with(layers)) == fingerprint(net_with(layers.replace("sin", "cos")))
    assert fingerprint(net_with(layers)) != fingerprint(net_with(layers.replace("relu", "gelu")))


def one_bit(module: nn.Module) -> None:
    module.network[0].weight.data.view(torch.int32)[0, 0, 0, 0] ^= 1


CHANGES: dict[str, Callable[[Any], object]] = {
    "one bit of a weight": one_bit,
    "a buffer": lambda m: m.network[1].running_mean.add_(1),
    "requires_grad": lambda m: m.network[0].weight.requires_grad_(False),
    "the mode of a part": lambda m: m.network[1].eval(),
    "a setting of a layer": lambda m: setattr(m.network[3], "p", 0.5),
    "a number": lambda m: setattr(m, "num_steps", 1),
    "a hyperparameter": lambda m: m.hparams.update(width=5),
    "the precision": lambda m: m.double(),
    "the memory format": lambda m: m.to(memory_format=torch.channels_last),
    "a hook": lambda m: m.network[0].register_forward_hook(lambda module, args, output: 2 * output),
    "a function in a layer's place": lambda m: setattr(m.network[2], "forward", torch.tanh),
    "a layer of another kind": lambda m: m.network.__setitem__(2, nn.GELU()),
    "the order of two parts": lambda m: m._modules.update(network=m._modules.pop("network")),
    "a tied weight": lambda m: setattr(m.network[1], "bias", m.network[1].weight),
    "a list": lambda m: m.losses.append(torch.zeros(())),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_is_changed_in_a_module_is_seen(change: Callable[[nn.Module], object]) -> None:
    module, changed = twice(BusyClassifier)
    assert fingerprint(module) == fingerprint(changed)
    change(changed)
    assert fingerprint(module) != fingerprint(changed)


def test_scoring_does_not_change_the_fingerprint() -> None:
    module = BusyClassifier()
    before = fingerprint(module)
    assert score(module, make_batches())["zico"].error is None
    assert fingerprint(module) == before


def test_running_a_function_often_does_not_change_its_fingerprint() -> None:
    net = user_module(SOURCE).Net()
    before = fingerprint(net)
    for _ in range(100):  # after some calls the interpreter rewrites what it runs
        net(torch.ones(1))
    assert fingerprint(net) == before


def test_the_number_of_hooks_that_were_ever_made_is_not_seen() -> None:
    def hooked() -> nn.Module:
        module = nn.ReLU()
        module.register_forward_hook(lambda module, args, output: output)
        return module

    assert fingerprint(hooked()) == fingerprint(hooked())


def test_the_trainer_of_a_module_is_not_seen() -> None:
    module = Classifier()
    before = fingerprint(module)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    assert fingerprint(module) == before


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Pair(NamedTuple):
    a: Any
    b: Any


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a: Any) -> None:
        self.a = a


def seeded(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# Values that are all different, and each the same when it is made again.
VALUES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "false": lambda: False,
    "zero": lambda: 0,
    "zero, real": lambda: 0.0,
    "minus zero": lambda: -0.0,
    "zero, complex": lambda: 0j,
    "text": lambda: "0",
    "bytes": lambda: b"0",
    "tuple": lambda: (0,),
    "list": lambda: [0],
    "nested": lambda: [[0], []],
    "nested otherwise": lambda: [[], [0]],
    "two texts": lambda: ["a", "bc"],
    "two other texts": lambda: ["ab", "c"],
    "set": lambda: {"a", "b", "c"},
    "frozen set": lambda: frozenset({"a", "b", "c"}),
    "dict": lambda: {"a": 1, "b": 2},
    "dict in another order": lambda: {"b": 2, "a": 1},
    "ordered dict": lambda: OrderedDict(a=1, b=2),
    "named tuple": lambda: Pair(1, 2),
    "enum": lambda: Colour.RED,
    "another": lambda: Colour.BLUE,
    "slots": lambda: Slotted(1),
    "other slots": lambda: Slotted(2),
    "path": lambda: Path("a"),
    "array": lambda: np.arange(6),
    "array, shaped": lambda: np.arange(6).reshape(2, 3),
    "array, of another type": lambda: np.arange(6, dtype=np.int32),
    "number of NumPy": lambda: np.float64(0.0),
    "generator of NumPy": lambda: seeded(0),
    "another of NumPy": lambda: seeded(1),
    "generator of torch": lambda: torch.Generator().manual_seed(0),
    "another of torch": lambda: torch.Generator().manual_seed(1),
    "generator of Python": lambda: random.Random(0),
    "tensor": lambda: torch.arange(6),
    "tensor, shaped": lambda: torch.arange(6).reshape(2, 3),
    "tensor, transposed": lambda: torch.arange(6).reshape(3, 2).T,
    "tensor, real": lambda: torch.arange(6.0),
    "tensor, half": lambda: torch.arange(6.0, dtype=torch.bfloat16),
    "tensor, complex": lambda: torch.arange(6) * (1 + 1j),
    "tensor, conjugate": lambda: (torch.arange(6) * (1 + 1j)).conj(),
    "tensor, learnt": lambda: nn.Parameter(torch.arange(6.0)),
    "tensor, scalar": lambda: torch.tensor(0),
    "tensor, empty": lambda: torch.zeros(0),
    "tensor, sparse": lambda: torch.eye(2).to_sparse(),
    "tensor, meta": lambda: torch.zeros(2, device="meta"),
    "tensor, lazy": lambda: nn.UninitializedParameter(),
    "type of numbers": lambda: torch.float32,
    "layout": lambda: torch.strided,
    "device": lambda: torch.device("cpu"),
    "function of torch": lambda: nn.functional.relu,
    "builtin": lambda: torch.relu,
    "partial": lambda: functools.partial(torch.relu, inplace=True),
    "other partial": lambda: functools.partial(torch.relu, inplace=False),
    "lambda": lambda: lambda x: x,
    "other lambda": lambda: lambda x: -x,
    "cached": lambda: functools.lru_cache(lambda x: x),
    "module": lambda: nn.ReLU(),
    "module, other": lambda: nn.ReLU(inplace=True),
    "class": lambda: Slotted,
    "proxy": lambda: ZiCo(),
    "proxy, set otherwise": lambda: ZiCo(std_of="abs"),
}


def test_values_have_the_same_fingerprint_if_they_are_the_same_and_only_then() -> None:
    prints = {name: fingerprint(make()) for name, make in VALUES.items()}
    assert prints == {name: fingerprint(make()) for name, make in VALUES.items()}
    by_print: dict[str, list[str]] = {}
    for name, found in prints.items():
        by_print.setdefault(found, []).append(name)
    assert [names for names in by_print.values() if len(names) > 1] == []


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(plain, plain)
def test_fingerprints_of_plain_values_differ_as_their_texts_do(a: Any, b: Any) -> None:
    assert fingerprint(a) == fingerprint(copy.deepcopy(a))
    assert (fingerprint(a) == fingerprint(b)) == (repr(a) == repr(b))


def test_what_leads_back_to_itself_ends() -> None:
    def knot(number: int) -> list[Any]:
        loop: list[Any] = [number]
        loop.append(loop)
        return loop

    assert fingerprint(knot(1)) == fingerprint(knot(1))
    assert fingerprint(knot(1)) != fingerprint(knot(2))


def test_every_proxy_has_a_fingerprint_of_its_own() -> None:
    prints = [fingerprint(proxy.name, proxy) for proxy in resolve_proxies("all")]
    assert prints == [fingerprint(proxy.name, proxy) for proxy in resolve_proxies("all")]
    assert len(set(prints)) == len(list_proxies())


@pytest.mark.parametrize(
    "make",
    [threading.Lock, Path(os.devnull).open, lambda: (x for x in ()), torch.jit.CompilationUnit],
)
def test_what_has_no_content_is_refused_and_the_error_says_where_it_is(make: Callable[[], Any]) -> None:
    module = make_network()
    value = module[2].held = make()
    with pytest.raises(UnfingerprintableError, match=r"'_modules\.2\.held'"):
        fingerprint(module)
    if hasattr(value, "close"):
        value.close()


def test_surroundings_tell_the_precision() -> None:
    before = fingerprint(surroundings())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fingerprint(surroundings()) != before
    torch.set_default_dtype(torch.float64)
    try:
        assert fingerprint(surroundings()) != before
    finally:
        torch.set_default_dtype(torch.float32)
    assert fingerprint(surroundings()) == before


def test_another_process_gives_the_same_fingerprints() -> None:
    code = """
import torch
from tests.test_fingerprint import SOURCE, VALUES, BusyClassifier, fingerprint, make_batches, user_module
for make in VALUES.values():
    print(fingerprint(make()))
torch.manual_seed(0)
print(fingerprint(BusyClassifier(), make_batches(), user_module(SOURCE).Net()))
"""
    outputs = []
    for seed in ("1", "2"):  # of the order of sets
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        outputs.append(done.stdout.split())
    assert len(outputs[0]) == len(VALUES) + 1
    assert outputs[0] == outputs[1]
