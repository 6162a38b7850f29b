import dataclasses
import threading
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import MutableMapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_zico import ZeroShotSelector
from lightning_zico.engine.batches import all_equal, copied_batch, map_tensors, tensors_of, with_tensors
from tests.modules import Classifier, make_batches

Pair = namedtuple("Pair", ["x", "y"])


@dataclasses.dataclass
class Open:
    x: Any
    y: Any = "label"


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any = None


class Foreign(MutableMapping):
    """Stores its items where `copy.copy` does not reach."""

    def __init__(self, **items):
        self.items_ = items

    def __getitem__(self, key):
        return self.items_[key]

    def __setitem__(self, key, value):
        self.items_[key] = value

    def __delitem__(self, key):
        del self.items_[key]

    def __iter__(self):
        return iter(self.items_)

    def __len__(self):
        return len(self.items_)


class Cloneable:
    def __init__(self, value):
        self.value = value

    def clone(self):
        return Cloneable(self.value)


def nests(leaves):
    def around(inner):
        return st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(UserDict),
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(OrderedDict),
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(lambda items: Foreign(**items)),
            st.builds(Pair, inner, inner),
            st.builds(Open, inner, inner),
            st.builds(Frozen, inner, inner),
        )

    return st.recursive(leaves, around, max_leaves=8)


# Each leaf a tensor of its own, so that identity tells them apart.
tensor_nests = nests(st.one_of(st.builds(torch.zeros, st.integers(0, 3)), st.just("text"), st.none(), st.integers()))


def plain(nest, leaf=id):
    """Spell a nest out, classes of containers included, with a function of each tensor."""
    if isinstance(nest, torch.Tensor):
        return leaf(nest)
    if isinstance(nest, dict | UserDict | Foreign):
        return (type(nest), [(key, plain(value, leaf)) for key, value in nest.items()])
    if isinstance(nest, tuple | list):
        return (type(nest), [plain(part, leaf) for part in nest])
    if dataclasses.is_dataclass(nest):
        return (type(nest), plain(nest.x, leaf), plain(nest.y, leaf))
    return nest


@given(tensor_nests)
def test_with_tensors_undoes_tensors_of(nest):
    assert plain(with_tensors(nest, tensors_of(nest))) == plain(nest)


@given(tensor_nests)
def test_mapping_leaves_the_nest_itself_alone(nest):
    before = plain(nest)
    mapped = map_tensors(lambda t: t + 1, nest)
    assert plain(nest) == before
    assert plain(mapped, lambda t: t.tolist()) == plain(nest, lambda t: (t + 1).tolist())


@pytest.mark.parametrize(
    "container",
    [
        lambda t: [t],
        lambda t: {"x": t},
        lambda t: UserDict(x=t),
        lambda t: OrderedDict(x=t),
        lambda t: Foreign(x=t),
        lambda t: Open(t),
        lambda t: Frozen(t),
        lambda t: {"deep": [{"x": t}]},
    ],
)
def test_containers_are_new(container):
    nest = container(torch.zeros(2))
    before = plain(nest)
    copied = map_tensors(lambda t: t, nest)
    assert copied is not nest
    assert plain(copied) == before
    if isinstance(copied, dict | UserDict | Foreign):
        copied.popitem()
    elif isinstance(copied, list):
        copied.clear()
    else:
        object.__setattr__(copied, "x", None)
    assert plain(nest) == before


def test_a_read_only_mapping_becomes_a_dictionary():
    tensor = torch.zeros(2)
    assert map_tensors(lambda t: t, MappingProxyType({"x": tensor})) == {"x": tensor}


def test_a_subclass_of_dict_keeps_its_class_and_attributes():
    class Tagged(dict):
        pass

    tagged = Tagged(x=torch.zeros(2))
    tagged.tag = "kept"
    mapped = map_tensors(lambda t: t + 1, tagged)
    assert type(mapped) is Tagged
    assert mapped.tag == "kept"
    assert torch.equal(mapped["x"], torch.ones(2))
    assert torch.equal(tagged["x"], torch.zeros(2))


def test_objects_that_can_clone_are_cloned_and_others_passed_on():
    cloneable, other = Cloneable(3), object()
    mapped = map_tensors(lambda t: t, [cloneable, other])
    assert mapped[0] is not cloneable
    assert mapped[0].value == 3
    assert mapped[1] is other


def test_all_equal_compares_values():
    def batch(last):
        return {"x": torch.tensor([1.0, last]), "y": torch.tensor([0])}

    assert all_equal([batch(2.0), batch(2.0), batch(2.0)])
    assert not all_equal([batch(2.0), batch(2.0), batch(3.0)])


@pytest.mark.parametrize(
    "batches",
    [
        [],
        [torch.ones(2)],
        ["a", "a"],
        [torch.ones(2), (torch.ones(2), torch.ones(2))],
        [torch.ones(2), torch.ones(3)],
        [torch.tensor([float("nan")]), torch.tensor([float("nan")])],
    ],
)
def test_all_equal_is_false_where_nothing_equal_can_be_shown(batches):
    assert not all_equal(batches)


class Plain:
    """Has neither tensors that are found nor a way to clone it."""

    def __init__(self) -> None:
        self.numbers = [1.0, 2.0]
        self.hidden = torch.zeros(2)


def test_whoever_writes_to_a_copy_leaves_the_batch_alone() -> None:
    batch = {"array": np.zeros(2), "inner": [(torch.zeros(2), Plain())], "lock": threading.Lock(), "text": "a"}
    copy = copied_batch(batch)
    copy["array"] += 1
    copy["inner"][0][0].add_(1)
    copy["inner"][0][1].numbers.append(3.0)
    copy["inner"][0][1].hidden.add_(1)
    assert not batch["array"].any()
    assert not batch["inner"][0][0].any()
    assert batch["inner"][0][1].numbers == [1.0, 2.0]
    assert not batch["inner"][0][1].hidden.any()
    assert copy["lock"] is batch["lock"]


def test_a_step_that_writes_into_its_batch_changes_no_other_candidates_score() -> None:
    class Writing(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            batch["scale"] += 1
            return float(batch["scale"]) * super().training_step((batch["x"], batch["y"]), batch_idx)

    batches = [{"x": x, "y": y, "scale": np.zeros(())} for x, y in make_batches()]
    selector = ZeroShotSelector(proxies="grad_norm", num_batches=len(batches))
    board = selector.rank({"first": Writing, "second": Writing}, batches)
    assert board.errors == {}
    assert len({row["score"] for row in board}) == 1
    assert not any(batch["scale"] for batch in batches)
