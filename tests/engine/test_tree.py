"""The walk over a tree of modules, against torch's own."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_zico.engine.tree import buffers, holders, parameters, submodules


def shared():
    part = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    return nn.ModuleDict({"a": nn.Sequential(part, nn.Linear(2, 2)), "b": part, "c": nn.Sequential(part[1])})


def tied():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    module[1].weight = module[0].weight
    return module


def partly_empty():
    module = nn.Sequential(nn.Linear(2, 2, bias=False))
    module.add_module("nothing", None)
    module.register_parameter("absent", None)
    module.register_buffer("missing", None)
    module.register_buffer("own", torch.ones(2))
    return module


def circular():
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    module[1].add_module("back", module)
    return module


TREES = {
    "shared": shared,
    "tied": tied,
    "partly empty": partly_empty,
    "circular": circular,
    "transformer": lambda: nn.Transformer(8, 2, 2, 2, 16, batch_first=True),
    "parametrised": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3))),
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("kind", TREES)
def test_the_walk_finds_what_torch_finds_in_the_same_order(kind):
    module = TREES[kind]()
    pairs = (
        (submodules(module), module.named_modules()),
        (parameters(module), module.named_parameters()),
        (buffers(module), module.named_buffers()),
    )
    for ours, theirs in pairs:
        expected = list(theirs)
        assert list(ours) == [name for name, _ in expected]
        if kind != "scripted":  # whose tensors are wrapped anew each time
            assert all(mine is other for mine, (_, other) in zip(ours.values(), expected, strict=True))


@pytest.mark.parametrize("kind", ["shared", "circular", "transformer"])
def test_holders_are_all_modules_with_one_of_the_held_inside(kind):
    module = TREES[kind]()
    parts = list(module.modules())
    held = {id(part) for part in parts if isinstance(part, nn.Linear)}
    assert held
    expected = {id(part) for part in parts if any(id(inner) in held for inner in part.modules())}
    assert holders(parts, held) == expected
