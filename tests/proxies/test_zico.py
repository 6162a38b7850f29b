import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import nn

from lightning_zico.engine.moments import Moments
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import IdenticalBatchesError, NoGradientError, NonFiniteError, TooFewBatchesError
from lightning_zico.proxies import ZiCo
from lightning_zico.proxies.zico import zico_layers, zico_score
from tests.engine.models import Tied, batches_of, cnn, mlp, step
from tests.reference.gradients import per_batch, per_sample
from tests.reference.zico import zico_from_stacks

# float64 moments of a few numbers: what the law needs, not what the formula loses
TIGHT = 1e-9
# float32 gradients, whose ratios are heavy-tailed, under a logarithm
FLOAT32 = 1e-6


def moments_of(stacks, of="signed"):
    return {name: Moments.of(torch.tensor(np.abs(stack) if of == "abs" else stack)) for name, stack in stacks.items()}


def finite_stacks(min_count=2):
    # a grid, so that two gradients are equal or well apart
    elements = st.integers(-50, 50).map(lambda i: i / 8)
    return st.integers(min_count, 6).flatmap(
        lambda count: st.dictionaries(
            st.sampled_from(["a.weight", "b.weight", "c.weight"]),
            array_shapes(max_dims=2, max_side=3).flatmap(
                lambda shape: arrays(np.float64, (count, *shape), elements=elements)
            ),
            min_size=1,
        )
    )


def some_vary(stacks):
    return any(np.ptp(stack, axis=0).any() for stack in stacks.values())


@given(finite_stacks().filter(some_vary))
def test_score_is_that_of_the_formula(stacks):
    assert zico_score(moments_of(stacks)) == pytest.approx(zico_from_stacks(stacks), rel=TIGHT, abs=TIGHT)


@given(finite_stacks().filter(lambda stacks: some_vary({k: np.abs(v) for k, v in stacks.items()})))
def test_score_of_magnitudes_is_that_of_the_formula(stacks):
    expected = zico_from_stacks(stacks, std_of="abs")
    assert zico_score(moments_of(stacks, of="abs")) == pytest.approx(expected, rel=TIGHT, abs=TIGHT)


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_two_gradients_give_their_sum_over_their_difference(a, b):
    if abs(a - b) < 1e-3:
        b = a + 1
    expected = math.log((abs(a) + abs(b)) / abs(a - b))
    assert zico_score({"w": Moments.of(torch.tensor([[a], [b]], dtype=torch.float64))}) == pytest.approx(
        expected, abs=TIGHT
    )


def test_two_gradients_of_opposite_signs_count_one_each():
    stack = torch.tensor([[1.0, -2.0, 3.0], [-5.0, 0.5, -0.1]])
    assert zico_score({"w": Moments.of(stack)}) == pytest.approx(math.log(3), rel=FLOAT32)


@given(finite_stacks().filter(some_vary), st.floats(1e-6, 1e6), st.sampled_from([1, -1]))
def test_score_does_not_depend_on_the_scale_of_a_layers_gradient(stacks, scale, sign):
    scaled = {name: stack * sign * scale * (i + 1) for i, (name, stack) in enumerate(stacks.items())}
    assert zico_score(moments_of(scaled)) == pytest.approx(zico_score(moments_of(stacks)), rel=TIGHT, abs=TIGHT)


@given(finite_stacks().filter(some_vary), st.randoms(use_true_random=False))
def test_score_does_not_depend_on_order(stacks, random):
    order = list(range(len(next(iter(stacks.values())))))
    random.shuffle(order)
    shuffled = {name: stacks[name][order] for name in reversed(stacks)}
    assert zico_score(moments_of(shuffled)) == pytest.approx(zico_score(moments_of(stacks)), rel=TIGHT, abs=TIGHT)


def test_layers_sum_to_the_score_and_those_that_do_not_vary_are_left_out():
    stacks = {"still": np.ones((3, 2)), "a": np.random.randn(3, 4), "b": np.random.randn(3, 2, 2)}
    layers = zico_layers(moments_of(stacks))
    assert list(layers) == ["a", "b"]
    for name in layers:
        assert layers[name] == pytest.approx(zico_from_stacks({name: stacks[name]}), rel=TIGHT)
    assert zico_score(moments_of(stacks)) == math.fsum(layers.values())


def test_too_few_gradients_are_refused():
    with pytest.raises(TooFewBatchesError, match=r"at least two batches .*got 1\. Raise `num_batches`"):
        zico_score({"w": Moments.of(torch.ones(1, 3))})
    with pytest.raises(TooFewBatchesError, match="got 1"):
        zico_score({"v": Moments.of(torch.randn(3, 3)), "w": Moments.of(torch.ones(1, 3))})
    with pytest.raises(TooFewBatchesError, match="got 0"):
        zico_score({})


@pytest.mark.parametrize("count", [2, 3])
def test_gradients_that_do_not_vary_are_refused(count):
    with pytest.raises(IdenticalBatchesError, match=f"The {count} gradients of every scored weight are equal"):
        zico_score({"w": Moments.of(torch.full((count, 3), 0.1))})


@pytest.mark.parametrize("make", [cnn, mlp, Tied])
@pytest.mark.parametrize("std_of", ["signed", "abs"])
@pytest.mark.parametrize("num_batches", [2, 3, 5])
def test_proxy_is_the_formula_on_the_gradients_of_backward(make, std_of, num_batches):
    module = make()
    batches = batches_of(*((2, 5, 5) if make is cnn else (4,)), num_batches=num_batches)
    gradients = per_batch(module, step, batches)
    probe = Probe(module, step, batches)
    measured = ZiCo(std_of=std_of).measure(probe)
    stacks = {name: np.stack([g[name].numpy() for g in gradients]) for name in probe.layers}
    # gradients by another route, float32: what they differ by, near-equal ones magnify
    assert measured.value == pytest.approx(zico_from_stacks(stacks, std_of), rel=1e-5)
    assert measured.value == pytest.approx(math.fsum(measured.layers.values()))
    assert set(measured.layers) <= set(stacks)
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    assert measured.details == {
        "axis": "batch",
        "num_gradients": num_batches,
        "backend": "autograd",
        "std_of": std_of,
        "covered": sum(weight.numel() for weight in probe.layers.values()) / trainable,
    }


def test_proxy_per_sample_is_the_formula_on_the_gradients_of_samples():
    module, batches = mlp(), batches_of(4)
    gradients = per_sample(module, step, batches)
    measured = ZiCo().measure(Probe(module, step, batches, axis="sample", chunk_size=4))
    stacks = {name: np.stack([g[name].numpy() for g in gradients]) for name in ("0.weight", "3.weight")}
    assert measured.value == pytest.approx(zico_from_stacks(stacks), rel=FLOAT32)
    assert measured.details == {
        "axis": "sample",
        "num_gradients": 12,
        "backend": "vmap",
        "std_of": "signed",
        "covered": (4 * 5 + 5 * 3) / sum(parameter.numel() for parameter in module.parameters()),
        "chunk_sizes": [4, 4],
        "batch_norm": None,
    }


def test_proxy_does_not_depend_on_the_scale_of_the_loss_or_the_order_of_the_batches():
    module, batches = cnn(), batches_of(2, 5, 5, num_batches=4)
    value = ZiCo().measure(Probe(module, step, batches)).value
    # a power of two is exact; the rest is float32
    assert ZiCo().measure(Probe(module, lambda m, b, i: 64 * step(m, b, i), batches)).value == value
    scaled = ZiCo().measure(Probe(module, lambda m, b, i: 1e-3 * step(m, b, i), batches)).value
    assert scaled == pytest.approx(value, rel=1e-5)
    assert ZiCo().measure(Probe(module, step, batches[::-1])).value == pytest.approx(value, rel=FLOAT32)


def test_parameters_choose_what_is_scored():
    probe = Probe(mlp(), step, batches_of(4))
    assert set(ZiCo(parameters=["*.bias"]).measure(probe).layers) == {"0.bias", "3.bias"}
    with pytest.raises(NoGradientError, match="no match"):
        ZiCo(parameters=["nothing"]).measure(probe)


def test_a_loss_linear_in_the_weights_does_not_vary_over_equal_inputs():
    probe = Probe(nn.Linear(4, 3), lambda m, b, i: m(b).sum(), [torch.ones(2, 4)] * 2)
    with pytest.raises(IdenticalBatchesError):
        ZiCo().measure(probe)


def test_arguments_are_checked_at_construction_and_stored_as_given():
    with pytest.raises(ValueError, match=r"expected 'signed' .* or 'abs'"):
        ZiCo(std_of="both")
    with pytest.raises(TypeError, match=r"expected a list of patterns. Pass \['\*.weight'\]"):
        ZiCo(parameters="*.weight")
    patterns = ["*.weight"]
    zico = ZiCo("abs", patterns, name="zico_abs")
    assert (zico.std_of, zico.parameters, zico.name) == ("abs", patterns, "zico_abs")
    assert zico.parameters is patterns
    assert (ZiCo.higher_is_better, ZiCo.needs_labels, ZiCo.min_gradients) == (True, True, 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused(bad):
    with pytest.raises(NonFiniteError, match=r"fc\.weight"):
        zico_score({"fc.weight": Moments.of(torch.tensor([[1.0, 2.0, bad], [3.0, 5.0, 1.0]]))})
