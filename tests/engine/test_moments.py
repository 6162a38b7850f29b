import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lightning_zico.engine.moments import Moments, add_to_each, portions
from lightning_zico.engine.probe import Probe
from tests.engine.models import mlp
from tests.reference.memory import peak_bytes

# Values with a spread that float64 sums without loss worth speaking of; zeros and repeats are frequent.
stacks = arrays(
    np.float64,
    st.tuples(st.integers(2, 9), array_shapes(max_dims=2, max_side=4)).map(lambda shape: (shape[0], *shape[1])),
    elements=st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-100, 100, width=32)),
)


def merged(parts):
    first, *others = [Moments.of(torch.tensor(part)) for part in parts]
    for other in others:
        first.merge(other)
    return first


def split(stack, cuts):
    return [part for part in np.split(stack, sorted(cut % len(stack) for cut in cuts)) if len(part)]


def assert_moments(moments, stack, rtol, atol):
    assert moments.count == len(stack)
    for actual, expected in (
        (moments.mean, stack.mean(0)),
        (moments.mean_abs, np.abs(stack).mean(0)),
        (moments.std, stack.std(0)),
    ):
        np.testing.assert_allclose(actual.double().numpy(), expected, rtol=rtol, atol=atol)


@given(stacks, st.lists(st.integers(1, 8), max_size=8), st.randoms(use_true_random=False))
def test_any_split_in_any_order_gives_the_moments_of_the_whole(stack, cuts, random):
    parts = split(stack, cuts)
    random.shuffle(parts)
    # rounding of at most nine float64 numbers up to 100
    assert_moments(merged(parts), stack, rtol=1e-11, atol=1e-11)


@given(stacks, stacks, stacks)
def test_merging_is_associative(a, b, c):
    size = min(a[0].size, b[0].size, c[0].size)
    a, b, c = (x.reshape(len(x), -1)[:, :size] for x in (a, b, c))
    left = merged([a, b, c])
    right, tail = merged([a]), merged([b, c])
    right.merge(tail)
    assert left.count == right.count
    for of in ("mean", "mean_abs", "std"):
        torch.testing.assert_close(getattr(left, of), getattr(right, of), rtol=1e-11, atol=1e-11)


@given(st.integers(2, 9), st.lists(st.integers(1, 8), max_size=8), st.floats(-(2.0**100), 2.0**100, width=32))
def test_equal_gradients_have_a_deviation_of_exactly_zero(count, cuts, value):
    stack = np.full((count, 3), value, dtype=np.float32)
    assert torch.equal(merged(split(stack, cuts)).std, torch.zeros(3))


def test_deviation_survives_a_mean_a_hundred_times_as_large():
    stack = 1e-2 + 1e-4 * np.random.standard_normal((64, 500))
    stack = stack.astype(np.float32).astype(np.float64)
    for parts in ([stack], np.split(stack, 64), np.split(stack, 4)):
        moments = merged([part.astype(np.float32) for part in parts])
        # float32 resolves 1e-2 to 9e-10, a hundred-thousandth of the deviation; E[g^2] - E[g]^2 is 5e-3 off
        np.testing.assert_allclose(moments.std.numpy(), stack.std(0), rtol=2e-5)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e20])
@pytest.mark.parametrize("num_parts", [1, 4])
def test_ratio_does_not_depend_on_the_scale(scale, num_parts):
    stack = np.random.standard_normal((4, 50))
    moments = merged([part.astype(np.float32) for part in np.split(stack * scale, num_parts)])
    expected = np.abs(stack).mean(0) / stack.std(0)
    # float32; the deviation of four numbers has a condition number of a few tens at worst
    np.testing.assert_allclose((moments.mean_abs / moments.std).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("num_parts", [1, 4])
def test_a_tiny_gradient_varies_beside_a_large_one(num_parts):
    stack = np.random.standard_normal((4, 2)) * [1e-25, 1.0]
    moments = merged([part.astype(np.float32) for part in np.split(stack, num_parts)])
    np.testing.assert_allclose(moments.std.double().numpy(), stack.std(0), rtol=1e-5)  # float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3])
def test_half_precision_is_raised_to_float32(dtype, count):
    stack = torch.randn(count, 5).to(dtype)
    moments = Moments.of(stack.clone())
    assert moments.mean.dtype == moments.mean_abs.dtype == moments.std.dtype == torch.float32
    # the halves themselves are exact in float32
    assert_moments(moments, stack.double().numpy(), rtol=1e-6, atol=1e-6)


def test_double_precision_stays():
    moments = Moments.of(torch.randn(3, 5, dtype=torch.float64))
    assert moments.std.dtype == torch.float64


def test_one_gradient_does_not_vary():
    moments = Moments.of(torch.tensor([[3.0, -2.0]]))
    assert torch.equal(moments.std, torch.zeros(2))
    assert torch.equal(moments.mean_abs, torch.tensor([3.0, 2.0]))


@pytest.mark.parametrize("count", [2, 3])
def test_a_stack_can_go_when_its_moments_are_taken(count):
    stack = torch.randn(count, 5)
    moments = Moments.of(stack)
    memory = {t.untyped_storage().data_ptr() for t in (moments.mean, moments.mean_abs, moments.deviation)}
    assert len(memory) == 3  # each has its own
    assert stack.untyped_storage().data_ptr() not in memory


# Two that go together, one that is cut, one that cannot be cut, one without numbers, and one of another type.
SHAPES = [(3,), (5, 4), (2**16 + 7,), (0, 3)]


def gradients_of_many():
    return [
        *(torch.randn(shape) for shape in SHAPES),
        torch.randn(300, 300).t(),
        torch.randn(4, dtype=torch.float64),
    ]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_adding_to_many_at_once_gives_the_moments_of_each(count):
    steps = [gradients_of_many() for _ in range(count)]
    moments = [Moments.of(gradient.clone().unsqueeze(0)) for gradient in steps[0]]
    for step in steps[1:]:
        add_to_each(moments, [gradient.clone() for gradient in step])
    for idx, each in enumerate(moments):
        stack = np.stack([step[idx].double().numpy() for step in steps])
        assert_moments(each, stack, rtol=1e-5, atol=1e-6)  # float32


def test_portions_hold_every_number_once():
    first = gradients_of_many()
    seen = [0] * len(first)
    for indices, (some, same) in portions(first, first):
        assert len({(part.device, part.dtype) for part in some}) == 1
        for idx, part, other in zip(indices, some, same, strict=True):
            assert part.data_ptr() == other.data_ptr()
            assert part.untyped_storage().data_ptr() == first[idx].untyped_storage().data_ptr()
            seen[idx] += part.numel()
    assert seen == [tensor.numel() for tensor in first]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("value", [0.0, 2.0, math.inf, -math.inf, math.nan])
def test_extremes_tell_whether_magnitudes_are_finite_and_not_zero(count, value):
    stack = torch.zeros(count, 5)
    stack[-1, 3] = value
    moments = Moments.of(stack)
    extremes = torch.stack(moments.extremes)
    assert bool(extremes.isfinite().all()) == math.isfinite(value)
    assert not math.isfinite(value) or bool(extremes.any()) == bool(value)


def test_memory_does_not_grow_with_the_number_of_gradients():
    def stream(num_gradients):
        def run():
            batches = [torch.randn(8, 64) for _ in range(num_gradients)]
            Probe(model, lambda m, b, i: m(b).square().mean(), batches).moments()

        return run

    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 64))
    weights = sum(p.nbytes for p in model.parameters())
    batch = 8 * 64 * 4
    two, many = (peak_bytes(stream(n)) - n * batch for n in (2, 32))  # the batches are given, not streamed
    assert two > 3 * weights  # the measurement sees the moments
    assert many == pytest.approx(two, rel=0.05)


def test_memory_measurement_sees_what_is_kept():
    # the twin of the law above: the published program keeps every gradient
    kept = peak_bytes(lambda: [torch.ones(1000) for _ in range(10)])
    freed = peak_bytes(lambda: [torch.ones(1000).sum() for _ in range(10)])
    assert math.isclose(kept, 10 * 4000, rel_tol=0.1)  # alignment
    assert freed < 2 * 4000


def test_mlp_weights_are_what_the_probe_takes_moments_of():
    probe = Probe(mlp(), lambda m, b, i: m(b).square().mean(), [torch.randn(3, 4) for _ in range(3)])
    moments, _ = probe.moments()
    assert list(moments) == ["0.weight", "3.weight"]
    assert {m.count for m in moments.values()} == {3}
