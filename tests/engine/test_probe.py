import copy
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_zico.engine.learned import FirstGradients, MomentsOverBatches
from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NoGradientError, NotApplicableError, UnknownNameError, UnsupportedModuleError
from tests.engine.models import assert_same, batches_of, cnn, identical, mlp, step
from tests.reference.gradients import gradient_of


class Counting:
    """A step that counts its calls, for each batch."""

    def __init__(self, step=step):
        self.step = step
        self.calls = []

    def __call__(self, module, batch, batch_idx):
        self.calls.append(batch_idx)
        return self.step(module, batch, batch_idx)


@dataclass(unsafe_hash=True)
class Forward(Observer):
    """Adds what goes into activation functions, and keeps the output."""

    key: int = 0

    def start(self, module):
        self.total = 0.0

    def activation(self, before, after):
        self.total += before.abs().sum().item()

    def forwarded(self, output, inputs):
        self.output = output.detach().clone()


@dataclass(unsafe_hash=True)
class Graph(Observer):
    """Differentiates the output with respect to the input."""

    key: int = 0
    needs_graph: ClassVar[bool] = True

    def forwarded(self, output, inputs):
        (self.gradient,) = torch.autograd.grad(output.sum(), inputs, retain_graph=True)


def probed(module=None, step=step, num_batches=2, **options):
    counting = Counting(step)
    return Probe(module or mlp(), counting, batches_of(4, num_batches=num_batches), **options), counting.calls


# Who shares a pass

NEEDS = [Forward(), Forward(1), Graph(), Graph(1), FirstGradients(), MomentsOverBatches(), MomentsOverBatches(of="abs")]


@given(st.lists(st.sampled_from(NEEDS), min_size=1, max_size=9))
def test_no_mixture_of_needs_runs_a_batch_twice(needs):
    probe, calls = probed()
    probe.observe(needs)
    everything = any(isinstance(need, MomentsOverBatches) for need in needs)
    assert calls == ([0, 1] if everything else [0])
    for need in needs:
        assert probe.observed(need) == need
    assert calls == ([0, 1] if everything else [0])


@pytest.mark.parametrize("need", NEEDS, ids=repr)
def test_what_is_seen_in_company_is_what_is_seen_alone(need):
    module = mlp(dropout=0.5)
    batches = batches_of(4)
    together = Probe(module, step, batches)
    together.observe(NEEDS)
    seen, alone = together.observed(need), Probe(module, step, batches).observed(need)
    if isinstance(need, Forward):
        assert seen.total == alone.total
        assert torch.equal(seen.output, alone.output)
    elif isinstance(need, Graph):
        assert torch.equal(seen.gradient, alone.gradient)
    elif isinstance(need, FirstGradients):
        assert_same([seen.by_name], [alone.by_name], 0)
    else:
        for name, moments in seen.result.by_name.items():
            other = alone.result.by_name[name]
            assert torch.equal(moments.mean, other.mean)
            assert torch.equal(moments.mean_abs, other.mean_abs)
            assert torch.equal(moments.std, other.std)


def test_equal_needs_share_one_result_and_unequal_ones_do_not():
    probe, calls = probed()
    assert probe.observed(Forward(1)) is probe.observed(Forward(1))
    assert calls == [0]
    assert probe.observed(Forward(2)) is not probe.observed(Forward(1))
    assert calls == [0, 0]


def test_the_observer_that_is_asked_with_is_not_written_to():
    probe, _ = probed()
    need = Forward()
    assert probe.observed(need) is not need
    assert not hasattr(need, "total")


def test_moments_and_gradients_are_taken_once():
    probe, calls = probed()
    assert probe.moments() is probe.moments()
    assert calls == [0, 1]
    assert probe.gradients is probe.gradients
    assert calls == [0, 1, 0]
    assert_same([probe.gradients], [expected_gradients(probe)], 1e-6)  # float32


def expected_gradients(probe):
    gradients = gradient_of(probe.module, step, probe.batches[0])
    return {name: gradients[name] for name in probe.layers}


def test_samples_are_kept_apart_from_batches():
    probe, calls = probed(axis="sample")
    probe.observe([Forward(), Graph(), FirstGradients(), MomentsOverBatches()])
    # the first batch for those that see it, and per sample once under vmap
    assert calls == [0, 0, 1]
    facts = probe.moments().facts
    assert (facts.axis, facts.backends, facts.chunk_sizes) == ("sample", ["vmap"], [6, 6])
    moments = next(iter(probe.moments().by_name.values()))
    assert moments.count == 12
    assert_same([probe.gradients], [expected_gradients(probe)], 1e-6)  # float32


def test_observers_that_need_no_gradient_run_without_a_graph():
    recorded = []

    def noting(module, batch, batch_idx):
        loss = step(module, batch, batch_idx)
        recorded.append(loss.requires_grad)
        return loss

    probe, _ = probed(step=noting)
    probe.observe([Forward()])
    probe.observe([Graph()])
    assert recorded == [False, True]


# What is remembered


def test_a_value_is_computed_once():
    probe, _ = probed()
    asked = []

    def value(probe):
        asked.append(probe)
        return {"number": 7}

    assert probe.once(value) is probe.once(value)
    assert asked == [probe]


def test_an_error_is_raised_each_time_and_computed_once():
    probe, calls = probed()

    def fail(probe):
        calls.append("asked")
        raise KeyError("the computation's own words")

    for _ in range(2):
        with pytest.raises(KeyError, match="own words"):
            probe.once(fail)
    assert calls == ["asked"]

    @dataclass(unsafe_hash=True)
    class Failing(Observer):
        def forwarded(self, output, inputs):
            raise KeyError("the observer's own words")

    for _ in range(2):
        with pytest.raises(KeyError, match="own words"):
            probe.observed(Failing())
    assert calls == ["asked", 0]


class ComposingError(Exception):
    """Makes a message of its argument, so that a copy would say another."""

    def __init__(self, number):
        super().__init__(f"failed with {number}")


def test_an_error_that_cannot_be_copied_is_raised_as_it_is():
    probe, _ = probed()

    def fail(probe):
        raise ComposingError(3)

    for _ in range(2):
        with pytest.raises(ComposingError) as info:
            probe.once(fail)
        assert str(info.value) == "failed with 3"


def test_a_note_says_where_it_happened():
    probe, _ = probed()

    def fail(probe):
        raise KeyError("here")

    for _ in range(2):
        with pytest.raises(KeyError) as info:
            probe.once(fail)
        (note,) = info.value.__notes__
        assert 'raise KeyError("here")' in note


# Failures


def unequal_losses(module, batch, batch_idx):
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


def detached(module, batch, batch_idx):
    return step(module, batch, batch_idx).detach()


def not_a_number(module, batch, batch_idx):
    return step(module, batch, batch_idx) * float("nan")


@pytest.mark.parametrize(
    ("loss", "kind"),
    [(unequal_losses, UnsupportedModuleError), (detached, NoGradientError), (not_a_number, ArithmeticError)],
)
def test_a_loss_that_fails_leaves_those_alive_who_do_not_need_it(loss, kind):
    probe, calls = probed(step=loss)
    probe.observe([Forward(), Graph(), FirstGradients(), MomentsOverBatches()])
    assert calls in ([0], [0, 1])
    for need in (FirstGradients(), MomentsOverBatches()):
        with pytest.raises(kind):
            probe.observed(need)
    assert probe.observed(Forward()).total > 0
    assert probe.observed(Graph()).gradient.any()


def test_a_later_batch_that_fails_leaves_those_alive_who_saw_the_first():
    def fails_later(module, batch, batch_idx):
        if batch_idx:
            raise RuntimeError("on the second batch")
        return step(module, batch, batch_idx)

    probe, _ = probed(step=fails_later)
    probe.observe([Forward(), MomentsOverBatches()])
    assert probe.observed(Forward()).total > 0
    with pytest.raises(RuntimeError, match="second batch"):
        probe.moments()


def test_a_module_without_weights_to_score_is_still_seen():
    probe, calls = probed(module=mlp().requires_grad_(False))
    probe.observe([FirstGradients(), MomentsOverBatches()])
    assert calls == []
    with pytest.raises(NoGradientError, match="no trainable weight"):
        probe.moments()

    @dataclass(unsafe_hash=True)
    class Activations(Observer):
        def start(self, module):
            self.total = 0

        def activation(self, before, after):
            self.total += 1

    probe.observe([Activations(), FirstGradients()])
    assert probe.observed(Activations()).total == 1
    assert calls == [0]


@pytest.mark.parametrize("others", [[Forward()], [FirstGradients()], [Forward(), MomentsOverBatches()]])
def test_a_step_that_cannot_bear_inputs_with_a_gradient_is_seen_without(others):
    def logging_images(module, batch, batch_idx):
        batch[0].numpy()
        return step(module, batch, batch_idx)

    probe, _ = probed(step=logging_images)
    probe.observe([Graph(), *others])
    with pytest.raises(NotApplicableError, match=r"fails on inputs that require a gradient: RuntimeError: .*numpy"):
        probe.observed(Graph())
    for need in others:
        probe.observed(need)


@dataclass(unsafe_hash=True)
class Exhausting(Observer):
    """Fails when it sees gradients."""

    error: type[Exception] = KeyError
    needs_gradients: ClassVar[bool] = True

    def wanted(self):
        return ("0.weight",)

    def gradients(self, gradients, losses):
        raise self.error("while it takes gradients")


def test_an_observer_that_fails_on_gradients_does_not_disturb_the_others():
    for needs in ([Exhausting(), MomentsOverBatches()], [MomentsOverBatches(), Exhausting()]):
        probe, calls = probed()
        probe.observe([*needs, Forward()])
        with pytest.raises(KeyError, match="takes gradients"):
            probe.observed(Exhausting())
        assert probe.moments().by_name.keys() == probe.layers.keys()
        assert calls == [0, 1]


def test_a_chunk_for_which_memory_runs_out_is_taken_again_and_counted_once():
    seen = []

    @dataclass(unsafe_hash=True)
    class Narrow(MomentsOverBatches):
        def gradients(self, gradients, losses) -> Callable[[], None] | None:
            if len(losses) > 2:
                raise MemoryError
            seen.append(len(losses))
            return super().gradients(gradients, losses)

    probe, _ = probed(axis="sample", chunk_size="auto")
    probe.observe([MomentsOverBatches(), Narrow()])
    alone, _ = probed(module=probe.module, axis="sample")
    alone.batches = probe.batches
    for need in (MomentsOverBatches(), Narrow()):
        moments = probe.observed(need).result
        for name, expected in alone.moments().by_name.items():
            assert moments.by_name[name].count == expected.count == 12
            torch.testing.assert_close(moments.by_name[name].mean, expected.mean)
    assert sum(seen) == 12


# What is left behind


def test_the_module_and_the_generators_are_as_they_were():
    module = cnn()
    state, rng = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    probe = Probe(module, step, batches_of(2, 5, 5))
    rng = torch.get_rng_state()
    probe.observe(NEEDS)
    probe.forward(Forward())
    assert identical(module, state)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(parameter.grad is None for parameter in module.parameters())


@dataclass(unsafe_hash=True)
class Noting(Observer):
    """Notes, without keeping them, the tensors that a pass makes."""

    fails: bool = False
    needs_graph: ClassVar[bool] = True

    def start(self, module):
        self.alive = []

    def module_call(self, name, module, inputs, output):
        self.alive.append(weakref.ref(output))
        references.append(self.alive[-1])

    def forwarded(self, output, inputs):
        references.extend(weakref.ref(tensor) for tensor in inputs)
        if self.fails:
            kept_by_frame = output.exp()
            raise KeyError(f"after {kept_by_frame.shape}")


references: list[weakref.ref] = []


@pytest.fixture
def _without_collector():
    references.clear()
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_without_collector")
@pytest.mark.parametrize("company", [[], [Forward()], [MomentsOverBatches()], [Exhausting()]])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("loss", [step, unequal_losses, detached])
def test_a_pass_leaves_no_activations_behind(company, fails, loss):
    probe, _ = probed(step=loss)
    probe.observe([Noting(fails), *company])
    assert len(references) >= 6
    assert not any(reference() is not None for reference in references)


@pytest.mark.usefixtures("_without_collector")
@pytest.mark.parametrize("fails", [False, True])
def test_a_probe_is_gone_when_nobody_has_it(fails):
    probe, _ = probed(step=unequal_losses if fails else step)
    gone = [weakref.ref(probe), weakref.ref(probe.module)]

    def ask(probe):
        try:
            probe.once(lambda probe: probe.moments().facts)
        except UnsupportedModuleError:
            assert fails
        try:
            probe.forward(Noting(fails))
        except (KeyError, UnsupportedModuleError):
            assert fails

    ask(probe)
    del probe
    assert [reference() for reference in gone] == [None, None]


# A pass of one's own


def test_other_weights_and_another_batch_can_be_run():
    probe, _ = probed()
    seen = Forward()
    zeros = {name: torch.zeros_like(p) for name, p in probe.module.named_parameters()}
    probe.forward(seen, tensors=zeros)
    assert not seen.output.any()
    inputs = torch.randn(2, 4)
    probe.forward(seen, batch=(inputs, torch.tensor([0, 1])))
    assert torch.equal(seen.output, probe.module(inputs))
    probe.forward(seen)
    assert torch.equal(seen.output, probe.module(probe.batches[0][0]))


def test_a_mode_is_entered_around_the_step():
    probe, _ = probed()
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    probe.forward(Forward(), mode=Mode())
    assert F.linear in seen
    assert torch.tanh in seen


def test_an_error_of_the_step_or_of_an_observer_is_raised():
    probe, _ = probed(step=lambda m, b, i: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        probe.forward(Forward())
    probe, _ = probed()
    with pytest.raises(KeyError, match="after"):
        probe.forward(Forward(), Noting(True))


# Batches


def test_a_batch_is_prepared_on_a_copy_with_the_same_numbers_each_time():
    def augmenting(batch, batch_idx):
        batch[0].add_(torch.randn_like(batch[0]))
        return batch

    probe, _ = probed(prepare=augmenting)
    kept = [x.clone() for x, _ in probe.batches]
    first = probe.first_batch
    torch.rand(1)
    assert torch.equal(probe.first_batch[0], first[0])
    assert not torch.equal(first[0], kept[0])
    seen = Forward()
    probe.forward(seen)
    assert torch.equal(probe.observed(Forward()).output, seen.output)
    assert all(torch.equal(x, before) for (x, _), before in zip(probe.batches, kept, strict=True))


def test_a_batch_of_an_inference_mode_can_be_differentiated():
    with torch.inference_mode():
        probe, _ = probed()
        assert not probe.first_batch[0].is_inference()
        probe.observe(NEEDS)
        probe.moments()


# Blocks


def test_blocks_are_found_or_given():
    assert probed()[0].blocks == ["2", "3"]
    assert probed(blocks=("3", "0"))[0].blocks == ["3", "0"]
    with pytest.raises(UnknownNameError, match="'layer9'"):
        _ = probed(blocks=["0", "layer9"])[0].blocks


def test_sizes_are_those_of_the_module():
    probe, calls = probed()
    assert probe.params == 4 * 5 + 5 + 5 * 3 + 3
    assert (probe.macs.macs, probe.macs.macs) == (35, 35)
    assert calls == []  # what a step notes while it is counted on the meta device is put back
    assert list(probe.layers) == ["0.weight", "3.weight"]
    assert isinstance(probe.layers["0.weight"], nn.Parameter)


def test_a_batch_that_hooks_augment_is_the_same_each_time_and_draws_nothing_from_outside():
    probe = Probe(
        mlp(), step, batches_of(4), prepare=lambda batch, _: (batch[0] + torch.randn_like(batch[0]), batch[1])
    )
    state = torch.get_rng_state()
    first, again = probe.first_batch, probe.first_batch
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], probe.batches[0][0])
