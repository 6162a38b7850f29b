"""Whatever a module holds, and whatever a body does to it: after it, all are the same objects with the same content."""

import operator
import signal
import threading
import weakref
from array import array
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, LifoQueue, PriorityQueue, Queue
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_zico import ZeroShotSelector
from lightning_zico.bridge.undisturbed import undisturbed
from lightning_zico.engine.scope import preserved
from lightning_zico.errors import NotPutBackError
from tests.interrupts import interrupted_at
from tests.modules import Classifier, make_batches

Look = Callable[[], Any]
Change = Callable[[], Any]


def refuse(*_: Any, **__: Any) -> Any:
    raise TypeError("This is immutable.")


class FrozenDict(OrderedDict):
    """Forbids whatever changes it, as the configurations of diffusers do."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.frozen = True

    def __setitem__(self, key: Any, value: Any) -> None:
        refuse() if getattr(self, "frozen", False) else super().__setitem__(key, value)

    __delitem__ = pop = popitem = update = setdefault = clear = copy = __iter__ = items = values = keys = refuse


class ImmutableDict(dict):
    __setitem__ = __delitem__ = pop = popitem = update = setdefault = clear = copy = __iter__ = __len__ = refuse


class ImmutableList(list):
    __setitem__ = __delitem__ = append = extend = clear = pop = copy = __iter__ = __len__ = __bool__ = refuse


class ModelOutput(OrderedDict):
    """Has each entry as an attribute as well, as the outputs of transformers do."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for key, value in super().items():
            super().__setattr__(key, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    __delitem__ = pop = update = setdefault = refuse

    def copy(self) -> Any:
        return type(self)(first=0)  # what some make of it


class Grandparent:
    __slots__ = ("__hidden", "empty")


class Slotted(Grandparent):
    __slots__ = ("__hidden", "__weakref__", "shown")


@dataclass(frozen=True)
class Frozen:
    held: Any


@dataclass(frozen=True, slots=True)
class FrozenSlots:
    held: Any


Pair = namedtuple("Pair", ["first", "second"])


class World:
    """What was built: how to look at each, and ways to change it."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        self.choose = choose
        self.looks: list[Look] = []
        self.changes: list[Change] = []
        self.made: list[Any] = []
        self.alive: list[Any] = []

    def make(self, depth: int = 0) -> Any:
        if self.made and self.choose(5) == 0:
            return self.made[self.choose(len(self.made))]  # the same once more, which may be a circle
        builders = LEAVES if depth > 3 else (*LEAVES, *NESTS)
        made = builders[self.choose(len(builders))](self, lambda: self.make(depth + 1))
        self.made.append(made)
        return made

    def adds(self, obj: Any, look: Look, *changes: Change) -> Any:
        self.looks.append(look)
        self.changes += changes
        return obj


def ids(values: Any) -> list[int]:
    return [id(value) for value in values]


def of_dict(kind: type, base: Any, world: World, child: Callable[[], Any]) -> Any:
    entries = [("a", child()), ("b", 1), ("c", child())]
    made = kind(dict(entries) if kind is Counter else entries)
    if kind is defaultdict:
        made.default_factory = list

    def look() -> Any:
        items = list(base.items(made))
        attributes = list(getattr(made, "__dict__", {}).items())
        factory = getattr(made, "default_factory", None)
        return ids(key for key, _ in items), ids(value for _, value in items), ids(v for _, v in attributes), factory

    changes = [
        lambda: base.__setitem__(made, "a", 5),
        lambda: base.__setitem__(made, "new", made),
        lambda: base.pop(made, "b") if base is dict else base.move_to_end(made, "a"),
        lambda: base.clear(made),
        lambda: setattr(made, "attribute", 1),
        lambda: setattr(made, "default_factory", None),
        lambda: made["made by reading"],
    ]
    return world.adds(made, look, *changes)


def of_list(kind: Any, base: Any, world: World, child: Callable[[], Any]) -> Any:
    made = kind([child(), 2, child()])
    looks = {set: lambda: sorted(ids(set.__iter__(made)))}
    changes = [
        lambda: base.append(made, made),
        lambda: base.clear(made),
        lambda: base.__setitem__(made, 0, 7),
        lambda: base.reverse(made),
        lambda: base.extend(made, [1, 2, 3, 4]),
        lambda: setattr(made, "attribute", 1),
    ]
    return world.adds(made, looks.get(base, lambda: ids(base.__iter__(made))), *changes)


def of_set(world: World, child: Callable[[], Any]) -> Any:
    made = {1, "a", Frozen(1), SimpleNamespace}
    return world.adds(made, lambda: sorted(ids(made)), lambda: made.add(5), made.clear, lambda: made.discard("a"))


def of_user(kind: Any, world: World, child: Callable[[], Any]) -> Any:
    made = kind({"a": child()} if kind is UserDict else [child()])
    inner = made.data

    def look() -> Any:
        return id(made.data), ids(inner.values() if kind is UserDict else inner)

    return world.adds(made, look, inner.clear, lambda: setattr(made, "data", type(inner)()), made.clear)


def of_tuple(make: Callable[[Any, Any], Any], world: World, child: Callable[[], Any]) -> Any:
    return make(child(), child())


def of_view(world: World, child: Callable[[], Any]) -> Any:
    return MappingProxyType(of_dict(dict, dict, world, child))


def of_attributes(make: Callable[[Any], Any], world: World, child: Callable[[], Any]) -> Any:
    made, held = make(child()), "held"

    def look() -> Any:
        return id(made.held), ids(getattr(made, "__dict__", {}).values())

    changes = [
        lambda: object.__setattr__(made, held, 3),
        lambda: object.__delattr__(made, held),
        lambda: object.__setattr__(made, "new", 3),
    ]
    return world.adds(made, look, *changes)


def of_slots(world: World, child: Callable[[], Any]) -> Any:
    made = Slotted()
    made.shown, made._Slotted__hidden, made._Grandparent__hidden = child(), child(), child()
    names = ("shown", "_Slotted__hidden", "_Grandparent__hidden", "empty")

    def look() -> Any:
        return ids(getattr(made, name, None) for name in names)

    return world.adds(made, look, *(partial(setattr, made, name, 9) for name in names), lambda: delattr(made, "shown"))


def of_closure(world: World, child: Callable[[], Any]) -> Any:
    count, held = 0, child()

    def function(default: list[int] = [], *, keyword: dict[str, int] = {}) -> None:  # noqa: B006
        nonlocal count, held
        count += 1
        held = count
        default.append(count)
        keyword["a"] = count
        function.attribute = count

    def look() -> Any:
        defaults = (function.__defaults__, function.__kwdefaults__)
        return count, id(held), repr(defaults), list(vars(function).items())

    return world.adds(function, look, function)


class Bound:
    def __init__(self, held: Any) -> None:
        self.held = held

    def method(self) -> None:
        self.held = 1


def of_link(link: Callable[[Any], Any], world: World, child: Callable[[], Any]) -> Any:
    target = of_attributes(Bound, world, child)
    world.alive.append(target)
    return link(target)


def of_method(world: World, child: Callable[[], Any]) -> Any:
    return of_attributes(Bound, world, child).method


def bytes_of(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8).tolist())


def look_at(tensor: Tensor) -> Any:
    grad = None if tensor.grad is None else (id(tensor.grad), bytes_of(tensor.grad))
    place = (tensor.data_ptr(), tensor.stride(), tensor.storage_offset(), tensor._version)
    return bytes_of(tensor), place, tensor.requires_grad, tensor.is_leaf, grad


def tensor_of(make: Callable[[], Tensor], world: World, child: Callable[[], Any]) -> Any:
    made = make()

    @torch.no_grad()
    def write() -> None:
        made.add_(1)

    def write_unseen() -> None:
        made.data.fill_(3)

    def rebind() -> None:
        made.data = torch.ones(7)

    def learn() -> None:
        (made * torch.ones((), requires_grad=True)).sum().backward()

    def with_history() -> None:
        made.mul_(torch.ones((), requires_grad=True))

    def switch() -> None:
        made.requires_grad_(not made.requires_grad)

    changes = [write, write_unseen, switch]
    if not made._is_view():
        changes += [rebind, learn, with_history]
    return world.adds(made, partial(look_at, made), *changes)


def with_gradient() -> Tensor:
    parameter = nn.Parameter(torch.randn(2))
    parameter.grad = torch.ones(2)
    return parameter


def array_of(make: Callable[[], Any], world: World, child: Callable[[], Any]) -> Any:
    made = make()
    owner = made if made.base is None else made.base
    return world.adds(
        made,
        lambda: (owner.tobytes(), made.tobytes(), made.shape, made.flags.writeable, owner.flags.writeable),
        lambda: operator.setitem(made, slice(None), 3),
        lambda: operator.setitem(owner, slice(None), 3),
        *(partial(setattr, each.flags, "writeable", flag) for each in (owner, made) for flag in (True, False)),
    )


def buffer_of(make: Callable[[], Any], world: World, child: Callable[[], Any]) -> Any:
    made = make()
    changes = [lambda: made.append(9), made.pop, made.reverse, lambda: operator.setitem(made, 0, 7)]
    return world.adds(made, lambda: bytes(made), *changes)


def of_queue(kind: Any, world: World, child: Callable[[], Any]) -> Any:
    made = kind()
    made.put_nowait((1, child()))
    made.put_nowait((2, child()))

    def look() -> Any:
        return ids(made.queue), made.unfinished_tasks, made.maxsize

    def take() -> None:
        with suppress(Empty):  # if an earlier change has cleared it
            made.get_nowait()

    return world.adds(made, look, take, made.task_done, lambda: made.put_nowait((0, 0)), made.queue.clear)


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


def hidden_module(world: World, child: Callable[[], Any]) -> Any:
    made = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    made.held = child()
    tensors = [*made.parameters(), *made.buffers()]

    def look() -> Any:
        now = [*made.parameters(), *made.buffers()]
        return ids(now), [look_at(tensor) for tensor in tensors], made.training, id(made.held), list(vars(made))

    def train() -> None:
        made(torch.randn(4, 2)).sum().backward()

    @torch.no_grad()
    def average() -> None:
        for parameter in made.parameters():
            parameter.mul_(0.9).add_(1)

    def replace() -> None:
        made[0].weight = nn.Parameter(torch.zeros(2, 2))
        made[1].running_mean = torch.ones(2)

    return world.adds(made, look, train, average, replace, made.eval, lambda: setattr(made, "held", 1))


def hidden_optimizer(world: World, child: Callable[[], Any]) -> Any:
    parameter = nn.Parameter(torch.randn(3))
    made = torch.optim.Adam([parameter], lr=torch.tensor(0.1))
    parameter.grad = torch.ones(3)
    made.step()

    def look() -> Any:
        state = made.state[parameter]
        tensors = [look_at(tensor) for tensor in state.values()]
        group = made.param_groups[0]
        settings = [repr(value) for key, value in group.items() if key != "params"]
        return id(made.state), id(state), ids(state.values()), tensors, id(group), settings, look_at(parameter)

    def step() -> None:
        parameter.grad = torch.ones(3)
        made.step()

    def schedule() -> None:
        made.param_groups[0]["lr"].mul_(2)
        made.param_groups[0]["betas"] = (0.1, 0.2)

    return world.adds(made, look, step, step, schedule, made.zero_grad, lambda: made.state.clear())


LEAVES: tuple[Callable[[World, Callable[[], Any]], Any], ...] = (
    of_set,
    partial(tensor_of, lambda: torch.tensor([1.0, float("nan"), -0.0])),
    partial(tensor_of, lambda: torch.zeros(1).expand(4)),
    partial(tensor_of, lambda: torch.arange(6.0).as_strided((4, 3), (1, 1))),
    partial(tensor_of, lambda: torch.randn(4)[1:]),
    partial(tensor_of, lambda: torch.randn(2, requires_grad=True)),
    partial(tensor_of, lambda: torch.zeros(())),
    partial(tensor_of, with_gradient),
    partial(array_of, lambda: np.array([1.0, float("nan")])),
    partial(array_of, lambda: read_only(np.array([1.0, float("nan")]))),
    partial(array_of, lambda: read_only(np.arange(6.0)[::2])),
    partial(array_of, lambda: read_only(np.arange(6.0))[::2]),
    partial(buffer_of, lambda: bytearray(b"abc")),
    partial(buffer_of, lambda: array("d", [1.0, float("nan")])),
)
NESTS: tuple[Callable[[World, Callable[[], Any]], Any], ...] = (
    *(partial(of_dict, kind, dict) for kind in (dict, ImmutableDict, Counter)),
    lambda world, child: of_dict(lambda items: defaultdict(list, items), dict, world, child),  # type: ignore[arg-type]
    *(partial(of_dict, kind, OrderedDict) for kind in (OrderedDict, FrozenDict, ModelOutput)),
    *(partial(of_list, kind, list) for kind in (list, ImmutableList)),
    *(partial(of_list, kind, deque) for kind in (deque, lambda values: deque(values, maxlen=4))),
    *(partial(of_user, kind) for kind in (UserDict, UserList)),
    partial(of_tuple, lambda first, second: (first, second)),
    partial(of_tuple, Pair),
    of_view,
    *(partial(of_attributes, make) for make in (Frozen, FrozenSlots, lambda held: SimpleNamespace(held=held), Bound)),
    of_slots,
    *(partial(of_queue, kind) for kind in (Queue, LifoQueue, PriorityQueue)),
    of_closure,
    of_method,
    *(partial(of_link, kind) for kind in (weakref.ref, lambda held: partial(repr, held), lambda held: lambda: held)),
    hidden_module,
    hidden_optimizer,
)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_nothing_of_what_a_module_holds_differs_afterwards(data: st.DataObject) -> None:
    world = World(lambda n: data.draw(st.integers(0, n - 1)))
    module = nn.Linear(1, 1)
    module.held = [world.make() for _ in range(world.choose(3) + 1)]
    vars(module)["direct"] = world.make()  # not registered
    world.adds(module, lambda: (ids(module.held), id(module.direct)), module.held.clear)
    before = [look() for look in world.looks]
    with preserved(module) as reset:
        for _ in range(2):
            for _ in range(world.choose(8)):
                try:
                    world.changes[world.choose(len(world.changes))]()
                except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
                    continue  # it refuses
            reset()
    assert [look() for look in world.looks] == before


class Lent(Classifier):
    """Its step makes a buffer longer, and lends it to somebody else, so that it must keep its length."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray(b"abc")

    def lend(self) -> None:
        self.buffer.append(1)
        VIEWS.append(memoryview(self.buffer))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.lend()
        return super().training_step(batch, batch_idx)


VIEWS: list[memoryview] = []


def test_what_cannot_be_put_back_is_named_and_all_else_is_put_back() -> None:
    module = Lent()
    weight = module.network[0].weight
    weight.grad = gradient = torch.ones_like(weight)
    module.first, module.last = {"a": 1}, {"b": 2}
    module.held = [bytearray(b"d"), module.first, np.random.default_rng(3)]
    module.metric = torch.zeros(2)
    metric, states = module.metric, (torch.get_rng_state(), module.held[2].bit_generator.state)

    def spoil() -> None:
        with preserved(module):
            module.lend()
            module.first.clear()
            module.last["b"] = 3
            module.held[0].append(1)
            module.held[2].random()
            module.metric.add_(1)
            weight.grad = torch.zeros_like(weight)
            module.eval()
            torch.rand(1)

    with pytest.raises(NotPutBackError, match=r"^bytearray could not .* \(BufferError: Existing exports"):
        spoil()
    assert (module.first, module.last, module.training, module.held[0]) == ({"a": 1}, {"b": 2}, True, b"d")
    assert module.metric is metric
    assert metric.eq(0).all()
    assert weight.grad is gradient
    assert torch.equal(torch.get_rng_state(), states[0])
    assert module.held[2].bit_generator.state == states[1]


def test_a_module_that_cannot_be_put_back_is_a_row_with_the_reason() -> None:
    leaderboard = ZeroShotSelector(proxies="zico").rank({"good": Classifier, "bad": Lent}, make_batches())
    assert [row["name"] for row in leaderboard] == ["good", "bad"]
    assert "NotPutBackError" in leaderboard.errors["bad"]
    assert "bytearray" in leaderboard.errors["bad"]


class Named:
    """Has a hash only while it has a name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Named) and self.name == other.name


def test_a_container_gets_back_elements_that_lost_their_hash() -> None:
    module = nn.Linear(1, 1)
    first, second = Named("first"), Named("second")
    module.set, module.dict = {first, second}, {first: 1, second: 2}
    module.ordered, module.default = OrderedDict(module.dict), defaultdict(int, module.dict)
    with preserved(module):
        for container in (module.set, module.dict, module.ordered, module.default):
            container.clear()
            container |= {"other"} if container is module.set else {"other": 1}
        del first.name, second.name
    assert first.name, second.name
    assert module.set == {first, second}
    assert all(held == {first: 1, second: 2} for held in (module.dict, module.ordered, module.default))


def test_a_container_that_cannot_get_back_what_it_had_keeps_what_it_has() -> None:
    class Fickle(str):
        has_hash = True
        __slots__ = ()

        def __hash__(self) -> int:
            if not Fickle.has_hash:  # of the class, which is not put back
                raise TypeError("no hash")
            return 1

    module = nn.Linear(1, 1)
    module.held, module.other = OrderedDict([(Fickle("a"), 1)]), {"b": 2}

    def spoil() -> None:
        with preserved(module):
            module.held["c"] = 3
            module.other.clear()
            Fickle.has_hash = False

    with pytest.raises(NotPutBackError, match=r"^OrderedDict could not be restored"):
        spoil()
    Fickle.has_hash = True
    assert list(module.held.items()) == [("a", 1), ("c", 3)]
    assert module.other == {"b": 2}


def test_a_queue_that_a_thread_waits_for_is_left_to_it() -> None:
    module, taken = nn.Linear(1, 1), []
    module.held = Queue()
    thread = threading.Thread(target=lambda: taken.append(module.held.get()))
    thread.start()
    while not module.held.not_empty._waiters:
        pass
    with preserved(module):
        module.held.put("something")
        thread.join()
    assert taken == ["something"]
    assert not module.held.qsize()


STEPS = ("engine/undo.py", "engine/scope.py", "engine/interrupts.py")


def test_ctrl_c_at_any_step_of_the_undo_ends_the_body_when_all_is_put_back() -> None:
    def body() -> None:
        with preserved(module):
            module.held.clear()
            module.items.add(5)
            module.held_array[:] = 7
            module.weight.grad = None
            module.eval()
            module.hidden[0].weight.data.fill_(9)
            module.attribute = 1
            torch.rand(1)

    for step in range(1, 10_000):
        torch.manual_seed(0)
        module = nn.Linear(1, 1)
        module.held, module.items, module.held_array = OrderedDict(a=1, b=2), {1, 2}, np.zeros(2)
        module.hidden = [nn.Linear(1, 1)]
        module.hidden[0].weight.data.fill_(1)
        module.weight.grad = gradient = torch.ones(1, 1)
        state = torch.get_rng_state()
        try:
            was_there = interrupted_at(step, body, STEPS, "put_back")
            was_interrupted = False
        except KeyboardInterrupt:
            was_there = was_interrupted = True
        assert was_interrupted == was_there, step
        assert (module.held, module.items, list(module.held_array)) == ({"a": 1, "b": 2}, {1, 2}, [0, 0]), step
        assert (module.training, module.hidden[0].weight.item(), hasattr(module, "attribute")) == (True, 1, False)
        assert module.weight.grad is gradient
        assert torch.equal(torch.get_rng_state(), state), step
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if not was_there:
            break
    assert step > 50


def test_nothing_that_did_not_change_is_written() -> None:
    class Watched(dict):
        written = 0

        def __setitem__(self, key: Any, value: Any) -> None:
            Watched.written += 1

    module = nn.Linear(1, 1)
    module.held = held = {"a": Watched(b=1), "c": [read_only(np.array([float("nan")]))]}
    readers = iter(held), iter(held["a"])
    with preserved(module) as reset:
        reset()
    assert [next(reader) for reader in readers] == ["a", "b"]  # one that is refilled breaks its readers off
    assert not Watched.written


DTYPES = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("view", [False, True])
def test_tensors_of_every_kind_are_put_back(dtype: torch.dtype, shape: tuple[int, ...], view: bool) -> None:
    base = torch.zeros(2, *shape).to(dtype)
    module = nn.Linear(1, 1)
    kept = (base[0].conj() if dtype.is_complex else base[0]) if view else base
    module.held = frozenset([kept])  # where no other tensor can stand for it
    with preserved(module):
        kept.copy_(torch.ones(()))
        assert not base.numel() or bytes_of(kept).strip(b"\0")
    assert next(iter(module.held)) is kept
    assert not bytes_of(base).strip(b"\0")


OTHER_TENSORS = {
    "meta": lambda: torch.zeros(2, device="meta"),
    "meta, view": lambda: torch.zeros(2, device="meta")[:1],
    "sparse": lambda: torch.eye(2).to_sparse(),
    "sparse, with a history": lambda: torch.eye(2, requires_grad=True).to_sparse(),
    "inference": lambda: torch.inference_mode()(torch.zeros)(2),
    "lazy buffer": lambda: nn.parameter.UninitializedBuffer(),
    "lazy parameter": lambda: nn.parameter.UninitializedParameter(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
    "nested, strided": lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    "with a history": lambda: torch.ones(2, requires_grad=True) * 2,
}


@pytest.mark.parametrize("kind", OTHER_TENSORS)
@pytest.mark.parametrize("hide", [lambda t: [t], lambda t: (t,), lambda t: SimpleNamespace(t=t), lambda t: lambda: t])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:.*quantized", "ignore:.*Quantization")
def test_tensors_without_plain_memory_stay_where_they_are(kind: str, hide: Callable[[Any], Any]) -> None:
    module = nn.Linear(1, 1)
    tensor = OTHER_TENSORS[kind]()
    module.held = held = hide(tensor)
    for _ in range(2):
        with preserved(module) as reset:
            reset()
    assert module.held is held
    found = held() if callable(held) else held.t if isinstance(held, SimpleNamespace) else held[0]
    assert found is tensor
    with undisturbed(held):
        pass
