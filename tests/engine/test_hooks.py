"""Calls of modules are reported alike by one hook on all modules and by hooks of their own, as torch 2.5 needs them."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_zico.engine import hooks
from lightning_zico.engine.hooks import call_hooks

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


class Scaled(nn.Module):
    def forward(self, x: Tensor, *, factor: float = 1.0) -> Tensor:
        return x * factor


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.scaled = Scaled()
        self.script = torch.jit.script(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.script(self.scaled(self.first(x), factor=3.0))


@pytest.fixture(params=[True, False], ids=["one hook", "own hooks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not hooks._SHOWS_KEYWORDS:
        pytest.skip("torch 2.5 does not show keyword arguments to hooks on all modules")
    monkeypatch.setattr(hooks, "_SHOWS_KEYWORDS", request.param)


@pytest.mark.usefixtures("way")
def test_calls_are_reported_with_keywords_and_in_order() -> None:
    net, seen = Net(), []
    names = {part: name for name, part in net.named_modules()}
    x = torch.ones(1, 2)
    with call_hooks(
        net,
        lambda part, args, kwargs, output: seen.append(("ended", names[part], len(args), kwargs, output)),
        lambda part, args: seen.append(("begins", names[part], len(args))),
    ):
        out = net(x)
    first = net.first(x)
    assert [event[:3] for event in seen] == [
        ("begins", "", 1),
        ("begins", "first", 1),
        ("ended", "first", 1),
        ("begins", "scaled", 1),
        ("ended", "scaled", 1),
        ("begins", "script", 1),
        ("ended", "script", 1),
        ("ended", "", 1),
    ]
    ended = {event[1]: event[3:] for event in seen if event[0] == "ended"}
    assert [ended[name][0] for name in names.values()] == [{}, {}, {"factor": 3.0}, {}]
    assert torch.equal(ended["first"][1], first)
    assert torch.equal(ended["scaled"][1], 3 * first)
    assert ended[""][1] is out


@pytest.mark.usefixtures("way")
def test_outputs_are_those_before_the_hooks_of_the_module() -> None:
    layer, seen = nn.Linear(2, 2), []
    layer.register_forward_hook(lambda part, args, output: output + 1)
    with call_hooks(layer, lambda part, args, kwargs, output: seen.append(output)):
        out = layer(torch.ones(1, 2))
    assert torch.equal(seen[0] + 1, out)


@pytest.mark.usefixtures("way")
def test_nothing_is_reported_behind_the_body_even_if_it_raises() -> None:
    net, seen = Net(), []
    with pytest.raises(RuntimeError, match="own"), call_hooks(net, lambda *call: seen.append(call)):  # noqa: PT012
        net(torch.ones(1, 2))
        raise RuntimeError("own")
    count = len(seen)
    net(torch.ones(1, 2))
    assert len(seen) == count == 4
    assert not any(part._forward_hooks or part._forward_hooks_with_kwargs for part in net.modules())


@pytest.mark.usefixtures("way")
def test_a_copy_made_meanwhile_does_not_copy_what_looks() -> None:
    layer = nn.Linear(2, 2)
    looking = [layer(torch.ones(1, 2))]  # has a history, so that a copy of it fails
    with call_hooks(layer, lambda part, *_: looking.append(part)):
        copied = copy.deepcopy(layer)
        layer(torch.ones(1, 2))
    assert looking[1:] == [layer]
    assert torch.equal(copied.weight, layer.weight)
