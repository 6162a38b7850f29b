"""Whatever a module holds, wherever it holds it: scored by a step that changes it, it is the same object as before."""

import csv
import io
import itertools
import operator
import random
import sys
import threading
import weakref
from array import array
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import itemgetter, methodcaller
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_zico import score
from lightning_zico.engine.scope import preserved
from lightning_zico.errors import NotPutBackError
from tests.modules import Classifier, make_batches


@dataclass(frozen=True)
class Odd:
    """How something is made, changed, and looked at. A look may use it up, and is compared with that at a twin."""

    make: Callable[[], Any]
    change: Callable[[Any], Any]
    look: Callable[[Any], Any]


@dataclass(frozen=True)
class Hiding:
    """Where it is held, and how a step finds it there."""

    hide: Callable[[Any], Any]
    find: Callable[[Any], Any] = itemgetter(0)


class Refusing:
    """Refuses to be changed or looked at in any other way than by its base class."""

    def __init__(self, held: Any) -> None:
        object.__setattr__(self, "held", held)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)

    __delattr__ = __getattr__ = lambda self, name: [].index(name)

    @property
    def last(self) -> Any:
        return self.held[-1]


class RefusingDict(dict):
    __setitem__ = __delitem__ = pop = update = clear = copy = keys = items = None
    __setattr__ = None


class RefusingList(list):
    __setitem__ = __delitem__ = append = clear = copy = __iter__ = __len__ = __reduce__ = None


class RefusingSet(set):
    add = clear = remove = update = __iter__ = __reduce__ = None


class RefusingOrder(OrderedDict):
    update = clear = pop = copy = keys = items = None


class RefusingRandom(random.Random):
    setstate = getstate = __reduce__ = None


@dataclass(frozen=True)
class FrozenSlots:
    __slots__ = ("held",)
    held: Any


class Deferring:
    """Passes on what it does not have, to an object that it may not have yet."""

    __slots__ = ("counts", "target")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


class Named(np.ndarray):
    name = "class"


class Local(threading.local):
    count = 0


class Kept:
    """May be weakly referenced."""


Pair = namedtuple("Pair", ["first", "second"])
TEACHER = torch.nn.Linear(1, 1)
ALIVE = [Kept(), Kept(), Kept()]
PATH = Path(__file__)


def first(iterator: Iterator[Any]) -> list[Any]:
    return list(itertools.islice(iterator, 4))


def read_to_end(file: Any) -> Any:
    with file:
        return file.read()


def advanced(iterator: Iterator[Any]) -> Iterator[Any]:
    next(iterator)
    return iterator


def advanced_by_line(file: Any) -> Any:
    file.readline()
    return file


def iterating(make: Callable[[], Any]) -> Odd:
    return Odd(make, next, first)


def called(make: Callable[[], Any]) -> Odd:
    return Odd(make, lambda function: function(), lambda function: [function(), function()])


def counting() -> Callable[[], int]:
    def function(counter: Iterator[int] = itertools.count(), seen: list[int] = []) -> int:  # noqa: B006, B008
        seen.append(next(counter))
        return sum(seen)

    return function


def deferring() -> Any:
    made = Deferring()
    made.counts = [1]
    return made


def grown(values: Any) -> None:
    values.resize(5, refcheck=False)
    values[:] = 7


def with_name(name: str) -> Any:
    made = np.arange(3.0).view(Named)
    made.name = name
    return made


def read_only(values: Any) -> Any:
    values.flags.writeable = False
    return values


def weak_keys() -> Any:
    return weakref.WeakKeyDictionary(zip(ALIVE[:2], "ab", strict=True))


def pushing() -> Any:
    return [1, 2].append


def tensors() -> tuple[Tensor, ...]:
    return (torch.zeros(3)[:2], torch.ones(2, requires_grad=True) * 2, torch.zeros(1).expand(2))


def learn(tensors: tuple[Tensor, ...]) -> None:
    for tensor in tensors[:2]:
        tensor.mul_(torch.ones((), requires_grad=True)).add_(1)


def looked_at(tensors: tuple[Tensor, ...]) -> Any:
    return [(tensor.tolist(), tensor.requires_grad, tensor.stride(), tensor._version) for tensor in tensors]


ODD = {
    "list iterator": iterating(lambda: advanced(iter([1, 2, 3]))),
    "list iterator, at its end": iterating(lambda: advanced(iter([1, 2]))),
    "tuple iterator": iterating(lambda: iter((1, 2, 3))),
    "dict iterator": iterating(lambda: advanced(iter({"a": 1, "b": 2, "c": 3}.items()))),
    "set iterator": iterating(lambda: iter({1, 2})),
    "range iterator": iterating(lambda: advanced(iter(range(9)))),
    "reversed": iterating(lambda: advanced(reversed([1, 2, 3]))),
    "string iterator": iterating(lambda: advanced(iter("abc"))),
    "enumerate": iterating(lambda: advanced(enumerate("abcd"))),
    "zip": iterating(lambda: advanced(zip("abcd", itertools.count(), strict=False))),
    "map": iterating(lambda: advanced(map(str, range(5)))),
    "filter": iterating(lambda: advanced(filter(None, iter([1, 0, 2, 3])))),
    "count": iterating(lambda: advanced(itertools.count(3, 2))),
    "repeat": iterating(lambda: advanced(itertools.repeat(1, 3))),
    "cycle": iterating(lambda: advanced(itertools.cycle([1, 2, 3]))),
    "chain": iterating(lambda: advanced(itertools.chain([1, 2], iter([3, 4])))),
    "chain of iterables": iterating(lambda: advanced(itertools.chain.from_iterable(iter([[1, 2], [3]])))),
    "islice": iterating(lambda: advanced(itertools.islice(itertools.count(), 5))),
    "tee": iterating(lambda: itertools.tee(advanced(iter([1, 2, 3])))[1]),
    "permutations": iterating(lambda: advanced(itertools.permutations([1, 2, 3]))),
    "accumulate": iterating(lambda: advanced(itertools.accumulate(itertools.count()))),
    "method of an iterator": called(lambda: itertools.count().__next__),
    "partial of an iterator": called(lambda: partial(next, itertools.count())),
    "function with an iterator as default": called(counting),
    "bytes in memory": Odd(
        lambda: advanced(io.BytesIO(b"a\nb\nc")), lambda file: (file.read(1), file.write(b"long text")), first
    ),
    "text in memory": Odd(lambda: io.StringIO("a\nb\nc"), lambda file: (file.readline(), file.truncate(0)), first),
    "file of bytes": Odd(lambda: advanced(PATH.open("rb")), methodcaller("read", 9), read_to_end),
    "text in memory with Windows' ends of lines": Odd(
        lambda: io.StringIO("a\r\nb", newline="\r\n"),
        lambda file: (file.read(1), file.write("long text\n")),
        lambda file: (file.tell(), file.getvalue(), file.read()),
    ),
    "file of text": Odd(PATH.open, methodcaller("readline"), read_to_end),
    "file of text, by next": Odd(PATH.open, next, read_to_end),
    "file of text, by lines up to its end": Odd(lambda: advanced_by_line(PATH.open()), list, read_to_end),
    "file of text, by csv": Odd(PATH.open, lambda file: next(csv.reader(file)), read_to_end),
    "random.Random that refuses": Odd(lambda: RefusingRandom(1), lambda rng: rng.random(), lambda rng: rng.random()),
    "random.SystemRandom": Odd(random.SystemRandom, lambda rng: rng.random(), id),
    "numpy.random.PCG64": Odd(lambda: np.random.PCG64(1), methodcaller("random_raw"), methodcaller("random_raw")),
    "numpy.random.RandomState": Odd(lambda: np.random.RandomState(1), methodcaller("rand"), methodcaller("rand")),
    "numpy.random.Generator": Odd(lambda: np.random.default_rng(1), methodcaller("random"), methodcaller("random")),
    "torch.Generator": Odd(
        lambda: torch.Generator().manual_seed(1),
        lambda rng: torch.rand(1, generator=rng),
        lambda rng: torch.rand(1, generator=rng).item(),
    ),
    "dict that refuses": Odd(
        lambda: RefusingDict(a=1, b=[2]),
        lambda held: (dict.clear(held), dict.__setitem__(held, "c", 1), vars(held).update(a=1)),
        lambda held: (list(dict.items(held)), vars(held)),
    ),
    "list that refuses": Odd(
        lambda: RefusingList([1, [2]]), lambda held: list.reverse(held), lambda held: [held[0], held[1]]
    ),
    "set that refuses": Odd(
        lambda: RefusingSet({1, 2}), lambda held: set.add(held, 3), lambda held: sorted(set.__iter__(held))
    ),
    "OrderedDict that refuses": Odd(
        lambda: RefusingOrder(a=1, b=2),
        lambda held: (held.move_to_end("a"), OrderedDict.popitem(held)),
        lambda held: list(OrderedDict.items(held)),
    ),
    "deque with a limit": Odd(
        lambda: deque([1, 2, 3], maxlen=3), methodcaller("append", 4), lambda held: (list(held), held.maxlen)
    ),
    "object that refuses": Odd(
        lambda: Refusing([1]),
        lambda held: (held.held.append(2), object.__setattr__(held, "new", 1)),
        lambda held: (held.held, held.last, list(vars(held))),
    ),
    "frozen slots": Odd(
        lambda: FrozenSlots([1]), lambda held: object.__setattr__(held, "held", [2]), lambda held: held.held
    ),
    "slots that are not filled": Odd(
        deferring, lambda held: (setattr(held, "target", 1), held.counts.append(2)), lambda held: held.counts
    ),
    "read-only view": Odd(
        lambda: MappingProxyType({"a": [1]}), lambda held: held["a"].append(2), lambda held: dict(held)
    ),
    "named tuple": Odd(lambda: Pair([1], [2]), lambda held: held.first.append(2), tuple),
    "method of a list": Odd(pushing, lambda push: push(3), lambda push: push.__self__),
    "weak keys": Odd(
        weak_keys,
        lambda held: (held.pop(ALIVE[0], None), held.update({ALIVE[2]: 1})),
        lambda held: [held.get(key) for key in ALIVE],
    ),
    "weak values": Odd(
        lambda: weakref.WeakValueDictionary(a=ALIVE[0]),
        lambda held: held.update(b=ALIVE[1]),
        lambda held: dict(held.items()),
    ),
    "weak set": Odd(
        lambda: weakref.WeakSet(ALIVE[:1]), lambda held: held.add(ALIVE[1]), lambda held: [key in held for key in ALIVE]
    ),
    "proxy": Odd(
        lambda: weakref.proxy(ALIVE[0]), lambda held: setattr(held, "new", 1), lambda held: hasattr(held, "new")
    ),
    "proxy of nothing": Odd(lambda: weakref.proxy(Kept()), lambda held: held.name, type),
    "proxy of a module": Odd(
        lambda: weakref.proxy(TEACHER),
        lambda held: held.bias.add_(1),
        lambda held: (held.bias.tolist(), held.bias._version),
    ),
    "attributes of a thread": Odd(Local, lambda held: setattr(held, "count", 1), lambda held: held.count),
    "memory map to read": Odd(
        lambda: np.memmap(PATH, mode="r", shape=(9,)),
        lambda held: (setattr(held, "offset", 1), held.__setitem__(0, 1)),
        lambda held: (held.tobytes(), held.offset, held.flags.writeable),
    ),
    "array over bytes": Odd(
        lambda: np.frombuffer(b"abcd", np.uint8), lambda held: held.__setitem__(0, 1), lambda held: held.tobytes()
    ),
    "array that may not be written to": Odd(
        lambda: read_only(np.arange(3.0)),
        lambda held: (setattr(held.flags, "writeable", True), held.fill(9)),
        lambda held: (held.tolist(), held.flags.writeable),
    ),
    "array that grows": Odd(lambda: np.arange(3.0), grown, lambda held: held.tolist()),
    "masked array": Odd(
        lambda: np.ma.masked_array([1.0, 2.0, 3.0], [False, True, False]),
        lambda held: (held.__setitem__(0, np.ma.masked), held.__setitem__(1, 9), held.data.fill(4)),
        lambda held: (held.data.tolist(), held.mask.tolist()),
    ),
    "array with a name": Odd(
        lambda: with_name("mine"), lambda held: setattr(held, "name", "theirs"), lambda held: held.name
    ),
    "view of bytes": Odd(
        lambda: memoryview(bytearray(b"abc")), lambda held: held.__setitem__(0, 9), lambda held: bytes(held)
    ),
    "array.array": Odd(lambda: array("d", [1.0]), methodcaller("append", 2.0), methodcaller("tolist")),
    "tensor over numbers that may not be written to": Odd(
        lambda: torch.from_numpy(read_only(np.arange(3.0))), methodcaller("add_", 1), methodcaller("tolist")
    ),
    "tuple of tensors": Odd(tensors, learn, looked_at),
}

OF_ITERTOOLS = {"count", "repeat", "cycle", "chain", "chain of iterables", "islice", "tee", "permutations"} | {
    *("accumulate", "zip", "method of an iterator", "partial of an iterator", "function with an iterator as default")
}
if sys.version_info >= (3, 14):  # where they cannot be copied
    ODD = {name: odd for name, odd in ODD.items() if name not in OF_ITERTOOLS}


def in_closure(held: Any) -> Callable[[], Any]:
    return lambda: held


def in_defaults(held: Any) -> Any:
    def function(default: Any = held) -> Any:
        return default

    return function


def in_keyword(held: Any) -> Any:
    def function(*, keyword: Any = held) -> Any:
        return keyword

    return function


def call(function: Callable[[], Any]) -> Any:
    return function()


HIDINGS = {
    "attribute": Hiding(lambda held: held, lambda held: held),
    "list": Hiding(lambda held: [held]),
    "deque": Hiding(lambda held: deque([held], maxlen=1)),
    "dict": Hiding(lambda held: {0: held}),
    "read-only view": Hiding(lambda held: MappingProxyType({0: held})),
    "tuple": Hiding(lambda held: (held, 1)),
    "named tuple": Hiding(lambda held: Pair(1, held), itemgetter(1)),
    "tuple of tuples in a list": Hiding(lambda held: [(1, (held, held))], lambda held: held[0][1][1]),
    "object": Hiding(lambda held: SimpleNamespace(held=held), lambda held: held.held),
    "object that refuses": Hiding(Refusing, lambda held: held.held),
    "slots": Hiding(FrozenSlots, lambda held: held.held),
    "closure": Hiding(in_closure, call),
    "default": Hiding(in_defaults, call),
    "keyword": Hiding(in_keyword, call),
    "partial": Hiding(lambda held: partial(SimpleNamespace, held), lambda held: held.args[0]),
}


class Holding(Classifier):
    """Its step changes all that it holds."""

    def __init__(self, odd: list[Odd], hidings: list[Hiding], made: list[Any]) -> None:
        super().__init__()
        self.odd, self.hidings = odd, hidings
        self.holders = [hiding.hide(one) for hiding, one in zip(hidings, made, strict=True)]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            for odd, hiding, holder in zip(self.odd, self.hidings, self.holders, strict=True):
                with suppress(
                    AttributeError, LookupError, ReferenceError, RuntimeError, StopIteration, TypeError, ValueError
                ):
                    odd.change(hiding.find(holder))
        return super().training_step(batch, batch_idx)


def check_same(odd: list[Odd], hidings: list[Hiding], made: list[Any]) -> None:
    module = Holding(odd, hidings, made)
    holders = list(module.holders)
    card = score(module, make_batches(), proxies="zico")
    assert card["zico"].error is None
    assert all(map(operator.is_, module.holders, holders))
    assert all(map(operator.is_, (hiding.find(holder) for hiding, holder in zip(hidings, holders, strict=True)), made))
    looked: dict[int, Any] = {}
    for one, before in zip(odd, made, strict=True):
        if id(before) not in looked:
            looked[id(before)] = one.look(before)
            if one is not ODD["random.SystemRandom"]:
                assert looked[id(before)] == one.look(one.make())


pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")


@pytest.mark.parametrize("name", ODD)
def test_what_a_step_changes_is_as_before_wherever_it_is(name: str) -> None:
    odd, hidings = ODD[name], list(HIDINGS.values())
    check_same([odd] * len(hidings), hidings, [odd.make() for _ in hidings])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(sorted(ODD)), st.lists(st.sampled_from(sorted(HIDINGS)), min_size=1))))
def test_what_is_held_in_several_places_is_as_before(drawn: list[tuple[str, list[str]]]) -> None:
    odd, hidings, made = [], [], []
    for name, places in drawn:
        one = ODD[name].make()
        for place in places:
            odd.append(ODD[name])
            hidings.append(HIDINGS[place])
            made.append(one)
    check_same(odd, hidings, made)


class Numbers(Classifier):
    """Each step reads a number from a file that only an iterator refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.numbers = map(int, path.open())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * next(self.numbers)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_iterator_over_a_file_is_at_the_same_line_as_before(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text("1\n2\n3\n")
    module = Numbers(path)
    card = score(module, make_batches(), proxies="zico")
    assert card["zico"].error is None
    assert list(module.numbers) == [1, 2, 3]


def test_bytes_in_memory_are_as_before_while_their_buffer_is_held() -> None:
    module, file = torch.nn.Linear(1, 1), io.BytesIO(b"abc")
    module.file = file
    with file.getbuffer() as view:
        with preserved(module):
            view[0] = ord("x")
            file.read(2)
        assert (file.tell(), bytes(view)) == (0, b"abc")


def test_a_file_in_memory_that_is_too_large_to_copy_gets_its_position_back() -> None:
    module = torch.nn.Linear(1, 1)
    large = [io.BytesIO(bytes(2**24 + 1)), io.StringIO("a" * (2**22 + 1))]
    small = [io.BytesIO(bytes(2**24)), io.StringIO("a" * 2**22)]
    module.files = [*large, *small]
    contents = [file.getvalue() for file in small]
    with preserved(module):
        for file in module.files:
            file.read(1)
            file.write(b"x" if isinstance(file, io.BytesIO) else "x")
    assert [file.tell() for file in module.files] == [0, 0, 0, 0]
    assert [file.getvalue() for file in small] == contents
    assert [file.getvalue()[1] for file in large] == [ord("x"), "x"]


def test_a_file_in_several_places_is_copied_once() -> None:
    module, files = torch.nn.Linear(1, 1), [io.BytesIO(bytes(2**24)) for _ in range(2)]
    module.files = files[:1] * 100 + files[1:]  # more than all that may be copied, if each place counted
    with preserved(module):
        for file in files:
            file.write(b"x")
    assert all(file.getvalue() == bytes(2**24) for file in files)


def test_an_iterator_that_yields_nothing_any_more_is_no_obstacle() -> None:
    module, held = torch.nn.Linear(1, 1), {"a": 1, "b": 2}
    module.iterator = iterator = iter(held)
    held["c"] = 3
    with preserved(module):
        pass
    assert module.iterator is iterator


def test_an_iterator_in_a_set_stays_where_the_step_left_it() -> None:
    module, iterator = torch.nn.Linear(1, 1), iter([1, 2])
    module.held = {iterator}
    with preserved(module):
        next(iterator)
    assert module.held == {iterator}
    assert list(iterator) == [2]


def test_the_error_names_all_that_could_not_be_put_back() -> None:
    module = torch.nn.Linear(1, 1)
    module.held = [bytearray(b"a"), array("d", [1.0])]
    views: list[memoryview] = []

    def spoil() -> None:
        with preserved(module):
            for held in module.held:
                held.append(2)
                views.append(memoryview(held))

    with pytest.raises(NotPutBackError, match=r"could not be restored to their state .* does not hold them") as raised:
        spoil()
    assert set(str(raised.value).partition(" could")[0].split(", ")) == {"bytearray", "array"}


@pytest.mark.parametrize("make", [PATH.open, lambda: io.BytesIO(b"a"), lambda: io.StringIO("a")])
def test_a_file_that_the_step_closes_is_named(make: Callable[[], Any]) -> None:
    module, file = torch.nn.Linear(1, 1), make()
    module.file = file
    with (
        pytest.raises(NotPutBackError, match=f"^{type(file).__name__} could not be restored to its"),
        preserved(module),
    ):
        file.close()
