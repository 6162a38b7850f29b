import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_zico.engine.gradients import check_chunk_size, free_memory_bytes, is_out_of_memory, stream_gradients
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import (
    NoGradientError,
    NonFiniteError,
    UnsupportedBatchError,
    UnsupportedModuleError,
    ZiCoError,
)
from tests.engine.models import (
    Attention,
    Checkpointed,
    Doubling,
    Last,
    Peeking,
    Remembering,
    Tied,
    Writing,
    assert_same,
    batches_of,
    cnn,
    gradients_of,
    identical,
    mlp,
    step,
    trainable,
)
from tests.reference.gradients import per_batch, per_sample, with_constant_batch_norm

# float32: sums of a few hundred products in another order
EXACT = 1e-6
# the same through kernels of another shape (batched, chunked, stacked)
CLOSE = 1e-5

# torch has no batching rule for the LSTM of oneDNN, runs it sample by sample, and says so
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop.*mkldnn_rnn_layer:UserWarning")

MODELS = {
    "mlp": (mlp, (4,)),
    "cnn": (cnn, (2, 5, 5)),
    "lstm": (Last, (7, 4)),
    "attention": (Attention, (7, 4)),
    "tied": (Tied, (4,)),
}
WITHOUT_BATCH_NORM = [name for name in MODELS if name != "cnn"]


def made(name):
    make, shape = MODELS[name]
    return make(), batches_of(*shape)


# Per batch


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["grad", "autograd"])
def test_gradients_of_batches_are_those_of_backward(name, backend):
    module, batches = made(name)
    gradients, facts = gradients_of(module, batches, backend=backend)
    assert_same(gradients, per_batch(module, step, batches), EXACT)
    assert facts.axis == "batch"
    assert facts.backends == [backend]
    assert facts.batch_norm is None
    assert facts.chunk_sizes == []


@pytest.mark.parametrize("name", MODELS)
def test_both_backends_can_follow_ordinary_models_per_batch(name):
    module, batches = made(name)
    assert gradients_of(module, batches)[1].backends == ["autograd"]
    assert gradients_of(module, batches, backend="grad")[1].backends == ["grad"]


def test_losses_are_handed_over_with_the_gradients():
    module, batches = made("cnn")
    for axis, expected in (
        ("batch", [step(module, batch, 0) for batch in batches]),
        ("sample", [F.cross_entropy(module(x), y, reduction="none") for x, y in batches]),
    ):
        losses = []
        stream_gradients(
            module, step, batches, lambda c, into=losses: into.append(c.losses), names=["0.weight"], axis=axis
        )
        torch.testing.assert_close(torch.cat(losses), torch.cat([e.reshape(-1) for e in expected]).detach())


# Per sample


@pytest.mark.parametrize("name", WITHOUT_BATCH_NORM)
@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_gradients_of_samples_are_those_of_one_backward_each(name, backend):
    module, batches = made(name)
    gradients, facts = gradients_of(module, batches, axis="sample", backend=backend)
    assert_same(gradients, per_sample(module, step, batches), CLOSE)
    assert facts.backends == [backend]
    assert facts.batch_norm is None
    assert facts.chunk_sizes == [6, 6]


@pytest.mark.parametrize("norm", [{}, {"track_running_stats": False}, {"affine": False}, {"momentum": None}])
@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_batch_norm_per_sample_holds_the_statistics_of_the_batch_constant(norm, backend):
    module, batches = cnn(**norm), batches_of(2, 5, 5)
    gradients, facts = gradients_of(module, batches, axis="sample", backend=backend)
    expected = []
    for batch in batches:
        expected += per_sample(with_constant_batch_norm(module, step, batch), step, [batch])
    assert_same(gradients, expected, CLOSE)
    assert facts.batch_norm == "statistics of the whole batch, held constant"


def test_batch_norm_in_evaluation_mode_keeps_its_running_statistics():
    module, batches = cnn(), batches_of(2, 5, 5)
    module.eval()
    gradients, facts = gradients_of(module, batches, axis="sample")
    assert_same(gradients, per_sample(module, step, batches), CLOSE)
    assert facts.batch_norm is None


class NormTwice(nn.Module):
    """Runs one layer on two inputs, or a layer each that share their weights, which is the same function."""

    def __init__(self, split):
        super().__init__()
        self.linear = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.again = nn.BatchNorm1d(5) if split else self.norm
        self.again.weight, self.again.bias = self.norm.weight, self.norm.bias
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.again(torch.tanh(self.norm(self.linear(x)))))


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_a_batch_norm_layer_that_runs_twice_has_statistics_for_each_time(backend):
    module, batches = NormTwice(split=False), batches_of(4)
    split = NormTwice(split=True)
    split.load_state_dict(module.state_dict())
    expected = []
    for batch in batches:
        pinned = with_constant_batch_norm(split, step, batch)
        expected += per_sample(pinned, step, [batch])
    gradients, _ = gradients_of(module, batches, axis="sample", backend=backend)
    assert_same(gradients, expected, CLOSE)


class FunctionalNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return F.batch_norm(self.linear(x), None, None, training=True)


def test_batch_norm_without_a_layer_is_refused_per_sample():
    with pytest.raises(ZiCoError, match=r"ran more often on a sample than on the whole batch.*axis=\"batch\""):
        gradients_of(FunctionalNorm(), batches_of(4), axis="sample")
    module, batches = FunctionalNorm(), batches_of(4)
    assert_same(gradients_of(module, batches)[0], per_batch(module, step, batches), EXACT)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_batch_norm_in_a_reentrant_checkpoint_is_refused_per_sample():
    with pytest.raises(ZiCoError, match=r"use_reentrant=True.*axis=\"batch\""):
        gradients_of(Checkpointed(True, norm=True), batches_of(4), axis="sample")


def test_batch_norm_in_another_checkpoint_fails_per_sample_rather_than_lie():
    # torch finds other tensors when it runs the layer again, or a single value to normalise
    with pytest.raises((RuntimeError, ValueError), match=r"different metadata|more than 1 value per channel"):
        gradients_of(Checkpointed(False, norm=True), batches_of(4), axis="sample")


def test_samples_of_unequal_tensors_are_refused():
    with pytest.raises(UnsupportedBatchError):
        gradients_of(mlp(), [(torch.zeros(3, 4), torch.zeros(2, dtype=torch.long))], axis="sample")


def test_batches_may_be_nested_and_hold_more_than_tensors():
    module = mlp()
    plain = batches_of(4)
    nested = [{"inputs": [x], "meta": {"y": y, "source": "camera"}} for x, y in plain]

    def nested_step(module, batch, batch_idx):
        assert batch.pop("meta")["source"] == "camera"
        return step(module, (batch["inputs"][0], targets_of(batch)), batch_idx)

    def targets_of(batch):
        return torch.zeros(len(batch["inputs"][0]), dtype=torch.long)

    expected = per_sample(module, step, [(x, torch.zeros_like(y)) for x, y in plain])
    for backend in ("vmap", "loop"):
        gradients, _ = gradients_of(module, nested, nested_step, axis="sample", backend=backend)
        assert_same(gradients, expected, CLOSE)
    assert all("meta" in batch for batch in nested)


# Chunks


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk_size", [1, 2, 4, 100, "auto"])
def test_gradients_do_not_depend_on_chunk_size(name, chunk_size):
    module, batches = made(name)
    whole, _ = gradients_of(module, batches, axis="sample")
    chunked, facts = gradients_of(module, batches, axis="sample", chunk_size=chunk_size)
    assert_same(chunked, whole, CLOSE)
    if chunk_size != "auto":
        assert facts.chunk_sizes == [min(chunk_size, 6)] * 2


@pytest.mark.parametrize("chunk_size", [1, 3, "auto"])
def test_moments_do_not_depend_on_chunk_size(chunk_size):
    module, batches = made("cnn")
    whole, chunked = (
        Probe(module, step, batches, axis="sample", chunk_size=size).moments().by_name for size in (None, chunk_size)
    )
    for name in whole:
        assert chunked[name].count == whole[name].count == 12
        torch.testing.assert_close(chunked[name].mean_abs, whole[name].mean_abs, rtol=CLOSE, atol=CLOSE * 1e-1)
        torch.testing.assert_close(chunked[name].std, whole[name].std, rtol=CLOSE, atol=CLOSE * 1e-1)


def test_little_memory_makes_chunks_of_one():
    facts = gradients_of(mlp(), batches_of(4), axis="sample", chunk_size="auto", memory_bytes=1)[1]
    assert facts.chunk_sizes == [1, 1]


def test_chunks_grow_with_the_memory():
    module, batches = mlp(), batches_of(4, num_samples=64)
    sizes = [
        gradients_of(module, batches, axis="sample", chunk_size="auto", memory_bytes=bytes_)[1].chunk_sizes[0]
        for bytes_ in (5_000, 10_000, 20_000, 10**9)
    ]
    assert 1 < sizes[0] < sizes[1] < sizes[2] < sizes[3] == 64


OUT_OF_MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    torch.cuda.OutOfMemoryError("CUDA out of memory."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_receiver_without_memory_gets_smaller_chunks_and_every_sample_once(error):
    module, batches = mlp(), batches_of(4, num_samples=7)
    collected, lengths = [], []

    def consume(chunk):
        lengths.append(len(chunk.losses))
        if lengths[-1] > 2:
            raise error
        collected.extend({name: g[i] for name, g in chunk.gradients.items()} for i in range(lengths[-1]))

    facts = stream_gradients(
        module, step, batches, consume, names=trainable(module), axis="sample", chunk_size="auto", memory_bytes=10**9
    )
    assert_same(collected, per_sample(module, step, batches), CLOSE)
    assert lengths == [7, 3, 1, 1, 1, 1, 1, 1, 1] * 2
    assert facts.chunk_sizes == [1, 1]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("make", [mlp, lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))])
def test_a_step_without_memory_gets_smaller_chunks_and_every_sample_once(error, make):
    module, batches = make(), batches_of(4, num_samples=7, num_batches=1)
    expected, _ = gradients_of(module, batches, axis="sample")
    runs = []

    def greedy_step(module, batch, batch_idx):
        loss = step(module, batch, batch_idx)
        if torch._C._functorch.is_functorch_wrapped_tensor(loss):  # not where the chunk is planned
            runs.append(batch_idx)
            if len(runs) in (1, 3):
                raise error
        return loss

    gradients, facts = gradients_of(module, batches, greedy_step, axis="sample", chunk_size="auto", memory_bytes=10**9)
    assert_same(gradients, expected, CLOSE)
    # of 7 fails; of 3 goes, then fails; of 1 four times
    assert len(runs) == 1 + 2 + 4
    assert facts.chunk_sizes == [1]
    assert facts.backends == ["vmap"]


def test_running_out_of_memory_is_raised_where_the_chunk_was_chosen():
    def consume(chunk):
        raise MemoryError

    for chunk_size in (None, 2):
        with pytest.raises(MemoryError):
            stream_gradients(
                mlp(), step, batches_of(4), consume, names=["0.weight"], axis="sample", chunk_size=chunk_size
            )


def test_running_out_of_memory_on_one_sample_is_raised():
    def consume(chunk):
        raise MemoryError

    with pytest.raises(MemoryError):
        stream_gradients(mlp(), step, batches_of(4), consume, names=["0.weight"], axis="sample", chunk_size="auto")


def test_other_errors_of_the_receiver_are_not_taken_for_lack_of_memory():
    calls = []

    def consume(chunk):
        calls.append(len(chunk.losses))
        raise ValueError("mine")

    for axis in ("batch", "sample"):
        with pytest.raises(ValueError, match="mine"):
            stream_gradients(mlp(), step, batches_of(4), consume, names=["0.weight"], axis=axis, chunk_size="auto")
    assert calls == [1, 6]


def test_what_is_lack_of_memory():
    assert all(is_out_of_memory(error) for error in OUT_OF_MEMORY)
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_free_memory_is_below_what_the_machine_has():
    import os

    assert 0 < free_memory_bytes(torch.device("cpu")) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("chunk_size", [0, -1, 1.5, "all"])
def test_chunk_sizes_that_are_none_are_refused(chunk_size):
    with pytest.raises(ValueError, match=r"chunk_size=.*: expected None, 'auto', or a positive number"):
        check_chunk_size(chunk_size)


@pytest.mark.parametrize("chunk_size", [None, 1, 64, "auto"])
def test_chunk_sizes_pass(chunk_size):
    check_chunk_size(chunk_size)


# Where torch.func cannot follow


@pytest.mark.parametrize(
    ("make", "axis", "backends"),
    [
        (Doubling, "batch", ["autograd"]),
        (Doubling, "sample", ["loop"]),
        (lambda: Checkpointed(True), "batch", ["autograd"]),
        (lambda: Checkpointed(True), "sample", ["loop"]),
        (lambda: Checkpointed(False), "batch", ["autograd"]),
        (lambda: Checkpointed(False), "sample", ["loop"]),
        (lambda: Checkpointed(False, norm=True), "batch", ["autograd"]),
        (lambda: Checkpointed(True, norm=True), "batch", ["autograd"]),
        (Peeking, "batch", ["autograd"]),
        (Peeking, "sample", ["loop"]),
        (Remembering, "batch", ["autograd"]),
        (Remembering, "sample", ["loop"]),
    ],
)
# torch says so before torch.func refuses the checkpoint
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_plain_autograd_takes_over_and_says_so(make, axis, backends):
    module, batches = make(), batches_of(4)
    state = copy.deepcopy(module.state_dict())
    gradients, facts = gradients_of(module, batches, axis=axis)
    twin = copy.deepcopy(module)
    if isinstance(module, Checkpointed):
        twin.use_reentrant = None
    assert_same(gradients, (per_batch if axis == "batch" else per_sample)(twin, step, batches), CLOSE)
    assert facts.backends == backends
    assert identical(module, state)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_what_cannot_be_followed_is_not_tried_again():
    tried = []

    def counting_step(module, batch, batch_idx):
        tried.append(batch_idx)
        return step(module, batch, batch_idx)

    gradients_of(Doubling(), batches_of(4, num_batches=3), counting_step, axis="sample")
    assert tried == [0] + 6 * [0] + 6 * [1] + 6 * [2]  # vmap once, then one sample after the other


def test_an_error_of_ours_is_raised_at_once():
    tried = []

    def counting_step(module, batch, batch_idx):
        tried.append(batch_idx)
        return None

    for axis in ("batch", "sample"):
        with pytest.raises(UnsupportedModuleError, match="NoneType"):
            gradients_of(mlp(), batches_of(4), counting_step, axis=axis)
    assert tried == [0, 0]


def test_a_backend_asked_for_is_used_alone():
    with pytest.raises(RuntimeError, match="setup_context"):
        gradients_of(Doubling(), batches_of(4), backend="grad")


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_an_error_of_the_module_is_its_own(axis):
    class Broken(nn.Linear):
        def forward(self, x):
            raise KeyError("the module's own words")

    module = Broken(4, 3)
    attributes = set(vars(module))
    with pytest.raises(KeyError, match="the module's own words"):
        gradients_of(module, batches_of(4), axis=axis)
    assert set(vars(module)) == attributes


# Which parameters


def test_a_tied_weight_has_the_sum_over_its_uses():
    module, batches = Tied(), batches_of(4)
    untied = copy.deepcopy(module)
    untied.second.weight = nn.Parameter(module.first.weight.detach().clone())
    expected = per_batch(untied, step, batches)
    for gradients, parts in zip(gradients_of(module, batches)[0], expected, strict=True):
        assert "second.weight" not in gradients
        torch.testing.assert_close(gradients["first.weight"], parts["first.weight"] + parts["second.weight"])


def test_frozen_parameters_are_used_and_left_out():
    module, batches = mlp(), batches_of(4)
    module[0].requires_grad_(False)
    for axis, twin in (("batch", per_batch), ("sample", per_sample)):
        gradients, _ = gradients_of(module, batches, axis=axis)
        assert set(gradients[0]) == {"3.weight", "3.bias"}
        assert_same(gradients, twin(module, step, batches), CLOSE)
    assert not module[0].weight.requires_grad


@pytest.mark.parametrize(
    ("axis", "backend"), [("batch", "grad"), ("batch", "autograd"), ("sample", "vmap"), ("sample", "loop")]
)
def test_a_parameter_without_influence_has_gradient_zero(axis, backend):
    module = nn.ModuleDict({"used": nn.Linear(4, 3), "idle": nn.Linear(4, 3)})
    gradients, _ = gradients_of(
        module, batches_of(4), lambda m, b, i: step(m["used"], b, i), axis=axis, backend=backend
    )
    for gradient in gradients:
        assert gradient["used.weight"].any()
        assert torch.equal(gradient["idle.weight"], torch.zeros(3, 4))


class Summed(nn.Module):
    """Autograd hands the two terms of a sum one gradient tensor."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 3, bias=False)
        self.delta = nn.Linear(4, 3, bias=False)
        self.offset = nn.Parameter(torch.zeros(5))

    def forward(self, x):
        # the gradient of the last term is one number, expanded
        return F.linear(x, self.base.weight + self.delta.weight) + self.offset.sum()


@pytest.mark.parametrize(
    ("axis", "backend"), [("batch", "grad"), ("batch", "autograd"), ("sample", "vmap"), ("sample", "loop")]
)
def test_the_receiver_may_write_to_each_gradient_alone(axis, backend):
    module, batches = Summed(), batches_of(4)

    def squared(module, batch, batch_idx):
        return module(batch[0]).square().mean()

    expected = (per_batch if axis == "batch" else per_sample)(module, squared, batches)
    collected = []

    def consume(chunk):
        for name in module_names:
            taken = chunk.gradients.pop(name)
            collected.extend((name, gradient.clone()) for gradient in taken)
            taken.sub_(1)  # raises where memory is shared within

    module_names = trainable(module)
    stream_gradients(module, squared, batches, consume, names=module_names, axis=axis, backend=backend, chunk_size=3)
    for name in module_names:
        actual = [{name: gradient} for key, gradient in collected if key == name]
        assert_same(actual, [{name: gradient[name]} for gradient in expected], CLOSE)


def test_integer_buffers_pass_through():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * self.calls

    module, batches = Counting(), batches_of(4)
    # every batch, and every sample, starts from the module's own buffer
    assert_same(gradients_of(module, batches)[0], per_batch(module, step, batches), EXACT)
    for backend in ("vmap", "loop"):
        gradients, _ = gradients_of(module, batches, axis="sample", backend=backend)
        assert_same(gradients, per_sample(module, step, batches), CLOSE)
    assert module.calls == 0


@pytest.mark.parametrize("how", ["data", "no_grad"])
@pytest.mark.parametrize(
    ("axis", "backend"), [("batch", "grad"), ("batch", "autograd"), ("sample", "vmap"), ("sample", "loop")]
)
def test_every_gradient_starts_from_the_modules_own_parameters(how, axis, backend):
    module, batches = Writing(how), batches_of(4, num_batches=3)
    state = copy.deepcopy(module.state_dict())
    expected = (per_batch if axis == "batch" else per_sample)(module, step, batches)
    gradients, _ = gradients_of(module, batches, axis=axis, backend=backend)
    assert_same(gradients, expected, CLOSE)
    assert identical(module, state)


# Precision and randomness


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_gradients_have_the_modules_precision_and_moments_at_least_float32(dtype, axis):
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 3)).to(dtype)
    batches = batches_of(2, 5, 5, dtype=dtype)
    gradients, _ = gradients_of(module, batches, axis=axis)
    assert gradients[0]["0.weight"].dtype == dtype
    moments = Probe(module, step, batches, axis=axis).moments().by_name["0.weight"]
    assert moments.std.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wide = copy.deepcopy(module).double()
    expected = Probe(wide, step, [(x.double(), y) for x, y in batches], axis=axis).moments().by_name["0.weight"]
    # bfloat16 has 8 bits, float16 11; through three layers
    tolerance = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float64: 1e-12}[dtype] * expected.mean_abs.max()
    assert (moments.mean_abs - expected.mean_abs).abs().max() <= tolerance


@pytest.mark.parametrize(("axis", "backend"), [("batch", None), ("sample", "vmap"), ("sample", "loop")])
def test_dropout_is_the_same_for_one_seed_and_another_for_another(axis, backend):
    module, batches = mlp(dropout=0.5), batches_of(4)
    first, _ = gradients_of(module, batches, axis=axis, backend=backend, seed=1)
    torch.rand(3)
    assert_same(gradients_of(module, batches, axis=axis, backend=backend, seed=1)[0], first, 0)
    other, _ = gradients_of(module, batches, axis=axis, backend=backend, seed=2)
    assert any(not torch.equal(a["3.weight"], b["3.weight"]) for a, b in zip(first, other, strict=True))


def test_dropout_differs_between_batches():
    module, (batch,) = mlp(dropout=0.5), batches_of(4, num_batches=1)
    gradients, _ = gradients_of(module, [batch] * 4)
    assert any(not torch.equal(g["3.weight"], gradients[0]["3.weight"]) for g in gradients)


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_dropout_differs_between_samples_also_of_different_chunks(backend, chunk_size):
    module = mlp(dropout=0.5)
    x, y = torch.randn(1, 4).expand(8, 4), torch.zeros(8, dtype=torch.long)
    gradients, _ = gradients_of(module, [(x, y)], axis="sample", backend=backend, chunk_size=chunk_size)
    # five units are on or off: eight equal draws have odds of 2^-35
    assert any(not torch.equal(g["3.weight"], gradients[0]["3.weight"]) for g in gradients)


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_gradients_do_not_depend_on_the_order_of_the_batches(axis):
    module, batches = cnn(), batches_of(2, 5, 5, num_batches=3)
    forward, _ = gradients_of(module, batches, axis=axis)
    backward, _ = gradients_of(module, batches[::-1], axis=axis)
    per = len(forward) // 3
    reordered = [g for i in (2, 1, 0) for g in backward[i * per : (i + 1) * per]]
    assert_same(reordered, forward, 0)


# Nothing is touched


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("axis", "backend"), [("batch", "grad"), ("batch", "autograd"), ("sample", "vmap"), ("sample", "loop")]
)
def test_module_batches_and_generators_are_left_alone(name, axis, backend):
    module, batches = made(name)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    grads = [parameter.grad for parameter in module.parameters()]
    state, kept = copy.deepcopy(module.state_dict()), copy.deepcopy(batches)
    generators = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()

    def writing_step(module, batch, batch_idx):
        batch[0].mul_(2)
        return step(module, batch, batch_idx)

    gradients_of(module, batches, writing_step, axis=axis, backend=backend)
    assert identical(module, state)
    assert all(parameter.grad is grad for parameter, grad in zip(module.parameters(), grads, strict=True))
    assert all((grad == 3).all() for grad in grads)
    assert all(torch.equal(a, b) for one, two in zip(batches, kept, strict=True) for a, b in zip(one, two, strict=True))
    assert random.getstate() == generators[0]
    assert repr(np.random.get_state()) == generators[1]
    assert torch.equal(torch.get_rng_state(), generators[2])


def test_batches_may_come_from_a_generator_and_are_read_once():
    module, batches = made("mlp")
    held = []

    def generate():
        for batch in batches:
            held.append("read")
            yield batch

    def consume(chunk):
        held.append("consumed")

    stream_gradients(module, step, generate(), consume, names=["0.weight"])
    assert held == ["read", "consumed", "read", "consumed"]


@pytest.mark.parametrize(
    "make", [mlp, Doubling, lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), Remembering]
)
@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_gradients_flow_where_the_caller_has_switched_them_off(make, axis):
    module, batches = make(), batches_of(4)
    expected, _ = gradients_of(module, batches, axis=axis)
    with torch.no_grad():
        assert_same(gradients_of(module, batches, axis=axis)[0], expected, 0)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert_same(gradients_of(module, batches, axis=axis)[0], expected, 0)
        moments = Probe(module, step, batches, axis=axis).moments(["*.weight"]).by_name
        inside = batches_of(4)
        assert gradients_of(module, inside, axis=axis)[0]
    assert not any(m.mean_abs.is_inference() for m in moments.values())


# Losses without gradients


@pytest.mark.parametrize(
    ("axis", "backend"), [("batch", "grad"), ("batch", "autograd"), ("sample", "vmap"), ("sample", "loop")]
)
def test_a_loss_that_depends_on_no_parameter_is_refused(axis, backend):
    with pytest.raises(NoGradientError, match="depends on no scored parameter"):
        gradients_of(mlp(), batches_of(4), lambda m, b, i: step(m, b, i).detach(), axis=axis, backend=backend)


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_a_gradient_of_zero_everywhere_is_refused_by_the_probe(axis):
    probe = Probe(mlp(), lambda m, b, i: (m(b[0]) * 0).sum(), batches_of(4), axis=axis)
    with pytest.raises(NoGradientError, match="gradients of all 2 scored parameters are zero"):
        probe.moments()


def test_a_module_without_layers_is_refused_by_the_probe():
    with pytest.raises(NoGradientError, match="no trainable weight of a layer among 2"):
        Probe(nn.LayerNorm(4), step, batches_of(4)).moments()
    with pytest.raises(NoGradientError, match=r"no match for \['\*.kernel'\]"):
        Probe(mlp(), step, batches_of(4)).moments(["*.kernel"])


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_what_is_not_finite_is_refused_by_the_probe(axis):
    def infinite_loss(module, batch, batch_idx):
        return step(module, batch, batch_idx) / 0

    def infinite_gradient(module, batch, batch_idx):
        out = module[0](batch[0].abs())
        return (out - out.detach()).sum().sqrt()

    def nan_gradient(module, batch, batch_idx):
        return (module(batch[0]) * 0).sum().abs().sqrt()

    with pytest.raises(NonFiniteError, match="The loss of gradient 0 is inf"):
        Probe(mlp(), infinite_loss, batches_of(4), axis=axis).moments()
    for bad, num_batches in ((nan_gradient, 2), (infinite_gradient, 2), (infinite_gradient, 1)):
        probe = Probe(mlp(), bad, batches_of(4, num_batches=num_batches, num_samples=1), axis=axis)
        with pytest.raises(
            NonFiniteError, match=r"gradient of '0.weight' has NaN or infinite entries, although the loss"
        ):
            probe.moments()


def test_the_probe_makes_one_pass_for_each_choice_of_parameters():
    passes = []

    def counting_step(module, batch, batch_idx):
        passes.append(batch_idx)
        return step(module, batch, batch_idx)

    probe = Probe(mlp(), counting_step, batches_of(4))
    assert probe.moments() is probe.moments()
    assert passes == [0, 1]
    assert set(probe.moments(["*.bias"]).by_name) == {"0.bias", "3.bias"}
    magnitudes = probe.moments(of="abs").by_name["0.weight"]
    torch.testing.assert_close(magnitudes.mean, probe.moments().by_name["0.weight"].mean_abs)
    assert passes == [0, 1] * 3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_cuda_gives_the_gradients_of_the_cpu(name, axis, monkeypatch):
    # TF32 has 10 bits, and is the default of cuDNN
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    module, batches = made(name)
    expected, _ = gradients_of(module, batches, axis=axis)
    module.cuda()
    batches = [tuple(tensor.cuda() for tensor in batch) for batch in batches]
    gradients, _ = gradients_of(module, batches, axis=axis, chunk_size="auto")
    # float32 with other kernels
    assert_same([{name: g.cpu() for name, g in gradient.items()} for gradient in gradients], expected, 1e-4)
