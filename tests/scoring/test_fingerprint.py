"""A fingerprint changes with whatever changes a number, and with nothing else."""

import abc
import copy
import dataclasses
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
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import cloudpickle
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_zico import ZiCo, score
from lightning_zico.errors import UnfingerprintableError
from lightning_zico.proxies import list_proxies, resolve_proxies
from lightning_zico.scoring.fingerprint import fingerprint, surroundings
from tests.modules import BusyClassifier, Classifier, make_batches, make_network, twice

T = TypeVar("T")

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


def test_functions_of_the_users_modules_are_seen_through_a_constant_name() -> None:
    def net_with(layers: str) -> nn.Module:
        module = user_module(
            "class Net(nn.Module):\n    def forward(self, x):\n        return getattr(layers, 'act')(x)\n"
        )
        module.layers = user_module(layers, "layers")
        return module.Net()

    layers = "def act(x):\n    return x.relu()\n\ndef other(x):\n    return x.sin()\n"
    assert fingerprint(net_with(layers)) == fingerprint(net_with(layers.replace("sin", "cos")))
    assert fingerprint(net_with(layers)) != fingerprint(net_with(layers.replace("relu", "gelu")))


@pytest.mark.parametrize(
    "member",
    [
        "__call__ = functools.partialmethod(lambda self, by, x: x * by, {number})",
        "__call__ = functools.partial(torch.mul, other={number})",
        "__scale__ = {number}",
    ],
)
def test_attributes_with_two_underscores_are_seen(member: str) -> None:
    def net(number: float) -> nn.Module:
        return user_module(f"import functools\nclass Net(nn.Module):\n    {member.format(number=number)}\n").Net()

    assert fingerprint(net(1.0)) == fingerprint(net(1.0))
    assert fingerprint(net(1.0)) != fingerprint(net(3.0))


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


def test_which_of_two_hooks_is_called_with_keywords_is_seen() -> None:
    def hooked(*with_kwargs: bool) -> nn.Module:
        module = nn.ReLU()
        for each in with_kwargs:
            module.register_forward_hook(lambda *given: len(given), with_kwargs=each)
        return module

    assert fingerprint(hooked(True, False)) == fingerprint(hooked(True, False))
    assert fingerprint(hooked(True, False)) != fingerprint(hooked(False, True))


def test_an_attribute_of_the_users_with_hooks_in_its_name_is_seen_whole() -> None:
    module, changed = nn.ReLU(), nn.ReLU()
    module.my_hooks, changed.my_hooks = {"act": 1}, {"none": 1}
    assert fingerprint(module) != fingerprint(changed)


@pytest.mark.parametrize("make", [lambda: nn.LSTM(2, 2), lambda: MulticlassAccuracy(3)])
def test_a_module_that_was_sent_to_another_process_has_the_fingerprint_it_had(make: Callable[[], nn.Module]) -> None:
    module = make()
    assert fingerprint(cloudpickle.loads(cloudpickle.dumps(module))) == fingerprint(module)


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


class Abstract(abc.ABC):
    @abc.abstractmethod
    def first(self) -> None: ...

    @abc.abstractmethod
    def second(self) -> None: ...


class Of(Generic[T]):
    __slots__ = ("a", "b")


@runtime_checkable
class Having(Protocol):
    first: int
    second: int


@dataclasses.dataclass(order=True)
class Record:
    """Has most of what the interpreter and `dataclasses` note of a class."""

    first: int = 1
    second: list[int] = dataclasses.field(default_factory=list)

    __hash__ = None
    __repr__ = object.__repr__


class Names(set[str]):
    pass


def names(text: str, note: str) -> Names:
    made = Names(text)
    made.note = note
    return made


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
    "set of a kind": lambda: names("abcdefgh", ""),
    "set of a kind, other": lambda: names("abcdefgi", ""),
    "set of a kind, with a note": lambda: names("abcdefgh", "note"),
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
    "class, abstract": lambda: Abstract,
    "class, generic": lambda: Of,
    "class, protocol": lambda: Having,
    "class of records": lambda: Record,
    "class of numbers": lambda: Colour,
    "record": lambda: Record(),
    "method in C": lambda: list.__getitem__,
    "another in C": lambda: list.__len__,
    "class method in C": lambda: vars(dict)["fromkeys"],
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


def deep() -> Any:
    module: nn.Module = nn.ReLU()
    for _ in range(1000):
        module = nn.Sequential(module)
    return module


def in_itself() -> Any:
    module = nn.ReLU()
    module.held = {module}
    return module


@pytest.mark.parametrize("make", [deep, in_itself])
def test_what_is_nested_too_deeply_is_refused_in_a_few_lines(make: Callable[[], Any]) -> None:
    with pytest.raises(UnfingerprintableError, match="nested too deeply") as raised:
        fingerprint(make())
    assert len(str(raised.value)) < 400


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


def fingerprints() -> list[str]:
    values = [fingerprint(make()) for make in VALUES.values()]
    torch.manual_seed(0)
    return [*values, fingerprint(BusyClassifier(), make_batches(), user_module(SOURCE).Net())]


def test_another_process_gives_the_same_fingerprints() -> None:
    code = "from tests.scoring.test_fingerprint import fingerprints; print(*fingerprints())"
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # of the order of sets
    command, environment = [sys.executable, "-W", "ignore", "-c", code], {**os.environ, "PYTHONHASHSEED": other}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == fingerprints()
