import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_zico.engine.weights import drawn_like, gaussian_batch, gaussian_weights, kaiming_weights
from tests.engine.models import Tied, cnn, identical


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def wide():
    return nn.ModuleDict(
        {"linear": nn.Linear(200, 100), "conv": nn.Conv2d(20, 40, 5), "transposed": nn.ConvTranspose1d(30, 50, 7)}
    )


@pytest.mark.parametrize("draw", [gaussian_weights, kaiming_weights])
def test_weights_are_normal_with_the_deviation_of_their_rule(draw):
    drawn = draw(wide(), generator())
    # the inputs of one number of the output; of a transposed convolution as torch counts them
    fan_in = {"linear": 200, "conv": 20 * 25, "transposed": 50 * 7}
    for name, fan in fan_in.items():
        weight = drawn[f"{name}.weight"]
        std = 1.0 if draw is gaussian_weights else math.sqrt(2 / fan)
        reference = torch.empty_like(weight)
        nn.init.normal_(reference) if draw is gaussian_weights else nn.init.kaiming_normal_(reference)
        for sample in (weight, reference):  # five standard errors of mean and deviation
            assert abs(sample.mean().item()) < 5 * std / math.sqrt(weight.numel())
            assert abs(sample.std().item() / std - 1) < 5 / math.sqrt(2 * weight.numel())
        assert (weight.abs() < std).float().mean().item() == pytest.approx(0.6827, abs=0.02)
        assert not drawn[f"{name}.bias"].any()


@pytest.mark.parametrize("draw", [gaussian_weights, kaiming_weights])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.InstanceNorm1d(4, True)])
def test_norms_are_at_one_and_zero(draw, norm):
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    drawn = draw(norm, generator())
    assert drawn.keys() == dict(norm.named_parameters()).keys()
    assert all(torch.equal(t, torch.full_like(t, name == "weight")) for name, t in drawn.items())


def test_a_norm_without_parameters_is_left_out():
    assert gaussian_weights(nn.BatchNorm2d(4, affine=False), generator()) == {}


def test_other_parameters_stay():
    module = nn.ModuleDict({"embed": nn.Embedding(3, 4), "rnn": nn.LSTM(4, 5), "head": nn.Linear(5, 2)})
    drawn = gaussian_weights(module, generator()).keys()
    assert {name for name, _ in module.named_parameters()} - drawn == {"embed.weight"}


def test_what_a_parametrised_weight_is_computed_from_stays():
    module = nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    assert kaiming_weights(module, generator()).keys() == {"0.bias", "1.weight", "1.bias"}


def test_a_tied_weight_is_drawn_once():
    drawn = gaussian_weights(Tied(), generator())
    assert drawn.keys() == dict(Tied().named_parameters()).keys()
    numbers = generator()
    assert torch.equal(drawn["first.weight"], torch.randn(4, 4, generator=numbers))
    assert torch.equal(drawn["head.weight"], torch.randn(3, 4, generator=numbers))  # nothing in between


def test_frozen_layers_are_drawn_too():
    module = cnn().requires_grad_(False)
    assert gaussian_weights(module, generator()).keys() == dict(module.named_parameters()).keys()


@pytest.mark.parametrize("draw", [gaussian_weights, kaiming_weights])
def test_the_same_seed_draws_the_same_whatever_the_module_holds(draw):
    module = cnn()
    first, second = draw(module, generator()), draw(cnn(), generator())
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = draw(module, generator(1))
    assert not torch.equal(first["0.weight"], other["0.weight"])


@pytest.mark.parametrize("draw", [gaussian_weights, kaiming_weights])
def test_nothing_is_written_and_no_global_generator_moves(draw):
    module = cnn()
    state, rng = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    drawn = draw(module, generator())
    for tensor in drawn.values():
        assert not tensor.requires_grad
        tensor.fill_(9)
    assert identical(module, state)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_numbers_of_another_type_are_the_same_rounded(dtype):
    expected, actual = (gaussian_weights(m, generator()) for m in (cnn(), cnn().to(dtype)))
    assert all(torch.equal(actual[name], expected[name].to(dtype)) for name in expected)


def test_neither_the_default_type_nor_the_default_device_matters():
    tensor = torch.zeros(3, 4)
    expected = drawn_like(tensor, generator())
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(drawn_like(tensor, generator()), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.equal(drawn_like(tensor, generator()), expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_device_gets_the_same_numbers():
    expected = kaiming_weights(cnn(), generator())
    actual = kaiming_weights(cnn().cuda(), generator())
    assert all(tensor.is_cuda and torch.equal(tensor.cpu(), expected[name]) for name, tensor in actual.items())


def test_a_gaussian_batch_keeps_its_nest_and_what_is_not_floating():
    labels = torch.arange(100)
    batch = {"x": torch.ones(100, 30), "y": [labels, "two"]}
    drawn = gaussian_batch(batch, generator())
    assert drawn["y"][0].equal(labels)
    assert drawn["y"][1] == "two"
    assert abs(drawn["x"].mean().item()) < 5 / math.sqrt(3000)  # five standard errors
    assert abs(drawn["x"].std().item() - 1) < 5 / math.sqrt(6000)
    assert batch["x"].eq(1).all()
