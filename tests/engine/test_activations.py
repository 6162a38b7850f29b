import pytest
import torch
from torch import nn

from lightning_zico.engine.activations import recording


def hooks_of(module):
    return [len(submodule._forward_hooks) for submodule in module.modules()]


class Twice(nn.Module):
    """Runs one layer twice, and one that puts out no tensor."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.rnn = nn.GRU(3, 3)

    def forward(self, x):
        return self.rnn(self.layer(self.layer(x)))[0]


def test_outputs_stand_under_the_names_of_the_layers():
    model = nn.Sequential(nn.Linear(3, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 2)))
    x = torch.randn(4, 3)
    with recording(model) as outputs:
        result = model(x)
    assert list(outputs) == ["0", "1.0", "1.1"]
    assert torch.equal(outputs["0"][0], model[0](x).detach())
    assert torch.equal(outputs["1.0"][0], model[0](x).relu().detach())
    assert torch.equal(outputs["1.1"][0], result.detach())
    assert not any(output.requires_grad for calls in outputs.values() for output in calls)


def test_each_call_adds_an_output_in_order():
    model, x = Twice(), torch.randn(4, 3)
    with recording(model) as outputs:
        model(x)
        model(2 * x)
    once = model.layer(x)
    expected = [once, model.layer(once), model.layer(2 * x), model.layer(model.layer(2 * x))]
    assert list(outputs) == ["layer"]  # the recurrent layer puts out a tuple
    assert all(torch.equal(a, b) for a, b in zip(outputs["layer"], expected, strict=True))


def test_types_choose_the_layers_those_with_children_too():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU()))
    with recording(model, nn.Linear, nn.Sequential) as outputs:
        model(torch.randn(4, 3))
    assert set(outputs) == {"", "0", "1"}


def test_hooks_are_gone_afterwards():
    model = Twice()
    before = hooks_of(model)
    with recording(model) as outputs:
        assert hooks_of(model) != before
    assert hooks_of(model) == before
    model(torch.randn(4, 3))
    assert outputs == {}


def test_hooks_are_gone_when_the_body_raises_and_the_users_own_stay():
    model = Twice()
    calls = []
    model.layer.register_forward_hook(lambda *_: calls.append(1))
    before = hooks_of(model)
    with pytest.raises(ZeroDivisionError), recording(model):
        raise ZeroDivisionError
    assert hooks_of(model) == before
    model(torch.randn(4, 3))
    assert calls == [1, 1]
