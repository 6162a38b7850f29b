import threading
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NotApplicableError
from tests.engine.models import Attention, Checkpointed, Output, batches_of, cnn, mlp, step


@dataclass(unsafe_hash=True)
class Everything(Observer):
    """Notes all that it is told."""

    def start(self, module):
        self.activations = []
        self.norms = []
        self.calls = []
        self.outputs = []

    def activation(self, before, after):
        assert not torch.is_grad_enabled()
        self.activations.append((before.detach().clone(), after.detach().clone()))

    def batch_norm(self, inputs):
        assert not torch.is_grad_enabled()
        self.norms.append(inputs.detach().clone())

    def module_call(self, name, module, inputs, output):
        assert not torch.is_grad_enabled()
        self.calls.append((name, module, inputs, output))

    def forwarded(self, output, inputs):
        assert torch.is_grad_enabled() == self.needs_graph
        self.outputs.append((output.detach().clone(), inputs))

    def wanted(self):
        return ("*",)


@dataclass(unsafe_hash=True)
class WithGraph(Everything):
    needs_graph: ClassVar[bool] = True


@dataclass(unsafe_hash=True)
class WithGradients(Everything):
    needs_gradients: ClassVar[bool] = True


def watched(module, batch, step=step, kind=Everything):
    return Probe(module, step, [batch]).observed(kind())


def mean_step(module, batch, batch_idx):
    return module(batch).mean()


def image_batch():
    return batches_of(2, 5, 5, num_batches=1)[0]


# Activation functions


class Calling(nn.Module):
    """A layer and a function of its output."""

    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.function = function

    def forward(self, x):
        return self.function(self.linear(x))


ACTIVATIONS = {
    "nn.ReLU": (nn.ReLU(), torch.relu),
    "nn.ReLU in place": (nn.ReLU(inplace=True), torch.relu),
    "F.relu": (F.relu, torch.relu),
    "F.relu in place": (lambda x: F.relu(x, inplace=True), torch.relu),
    "F.relu in place by position": (lambda x: F.relu(x, True), torch.relu),
    "F.relu by keyword": (lambda x: F.relu(input=x, inplace=True), torch.relu),
    "F.relu_": (F.relu_, torch.relu),
    "torch.relu": (torch.relu, torch.relu),
    "torch.relu_": (torch.relu_, torch.relu),
    "Tensor.relu": (lambda x: x.relu(), torch.relu),
    "Tensor.relu_": (lambda x: x.relu_(), torch.relu),
    "nn.ReLU6 in place": (nn.ReLU6(inplace=True), F.relu6),
    "F.relu6": (F.relu6, F.relu6),
    "nn.GELU": (nn.GELU(), F.gelu),
    "F.gelu": (lambda x: F.gelu(x, approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "nn.SiLU in place": (nn.SiLU(inplace=True), F.silu),
    "nn.Mish": (nn.Mish(), F.mish),
    "nn.Hardswish in place": (nn.Hardswish(inplace=True), F.hardswish),
    "nn.Hardsigmoid": (nn.Hardsigmoid(), F.hardsigmoid),
    "nn.Hardtanh": (nn.Hardtanh(-0.5, 0.5, inplace=True), lambda x: x.clamp(-0.5, 0.5)),
    "nn.LeakyReLU in place": (nn.LeakyReLU(0.3, inplace=True), lambda x: F.leaky_relu(x, 0.3)),
    "F.leaky_relu_": (lambda x: F.leaky_relu_(x, 0.3), lambda x: F.leaky_relu(x, 0.3)),
    "nn.PReLU of one": (nn.PReLU(), lambda x: torch.where(x > 0, x, x / 4)),
    "nn.PReLU of each": (nn.PReLU(6), lambda x: torch.where(x > 0, x, x / 4)),
    "nn.ELU in place": (nn.ELU(inplace=True), F.elu),
    "nn.SELU in place": (nn.SELU(inplace=True), F.selu),
    "nn.CELU": (nn.CELU(), F.celu),
    "nn.RReLU": (nn.RReLU().eval(), lambda x: F.leaky_relu(x, (1 / 8 + 1 / 3) / 2)),
    "nn.Softplus": (nn.Softplus(), F.softplus),
    "nn.Softsign": (nn.Softsign(), F.softsign),
    "nn.LogSigmoid": (nn.LogSigmoid(), F.logsigmoid),
    "nn.Sigmoid": (nn.Sigmoid(), torch.sigmoid),
    "Tensor.sigmoid_": (lambda x: x.sigmoid_(), torch.sigmoid),
    "nn.Tanh": (nn.Tanh(), torch.tanh),
    "F.tanh": (torch.tanh, torch.tanh),
    "Tensor.tanh_": (lambda x: x.tanh_(), torch.tanh),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_way_to_call_an_activation_is_seen_once_with_the_value_before(name):
    function, plain = ACTIVATIONS[name]
    module, (batch,) = Calling(function), batches_of(4, num_batches=1)
    ((before, after),) = watched(module, batch).activations
    expected = F.linear(batch[0], module.linear.weight, module.linear.bias).detach()
    torch.testing.assert_close(before, expected)
    torch.testing.assert_close(after, plain(expected).detach())


def test_what_is_no_activation_is_not_seen():
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1), nn.Softmax(dim=1), nn.LayerNorm(3), nn.Identity())
    assert watched(module, *batches_of(4, num_batches=1)).activations == []


def test_activations_come_in_order_and_each_time():
    relu = nn.ReLU()
    module = nn.Sequential(nn.Linear(4, 6), relu, nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), relu)
    seen = watched(module, *batches_of(4, num_batches=1)).activations
    assert [before.shape[1] for before, _ in seen] == [6, 5, 3]


def test_activations_of_transformers_are_seen_in_evaluation_mode_too():
    (batch,) = batches_of(7, 4, num_batches=1)
    for module in (Attention(), Attention().eval()):
        ((before, _),) = watched(module, batch).activations
        assert before.shape == (6, 7, 8)


def test_activations_of_the_step_count():
    (batch,) = batches_of(4, num_batches=1)
    module = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 3)])
    functional = watched(module, batch, lambda m, b, i: F.cross_entropy(m[1](F.relu(m[0](b[0]))), b[1]))
    assert len(functional.activations) == 1


def test_what_comes_later_in_place_does_not_reach_the_values_seen():
    class Later(nn.Linear):
        def forward(self, x):
            return F.gelu(super().forward(x)).mul_(0)

    (batch,) = batches_of(4, num_batches=1)
    ((_, after),) = watched(Later(4, 3), batch).activations
    assert after.any()


def test_sums_of_an_observer_are_not_in_half_precision():
    @dataclass(unsafe_hash=True)
    class Products(Observer):
        def start(self, module):
            self.dtypes = []

        def activation(self, before, after):
            rows = after.float().flatten(1)
            self.dtypes += [after.dtype, (rows @ rows.T).dtype]

        def module_call(self, name, module, inputs, output):
            self.dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)

    def in_half(module, batch, batch_idx):
        with torch.autocast("cpu", torch.bfloat16):
            loss = step(module, batch, batch_idx)
            assert torch.is_autocast_enabled("cpu")
        return loss

    (batch,) = batches_of(4, num_batches=1)
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    dtypes = watched(module, batch, in_half, Products).dtypes
    assert dtypes == [torch.float32, torch.bfloat16, torch.float32, torch.float32, torch.float32]


# Batch normalisation


def test_what_goes_into_batch_norms_is_seen():
    module, batch = cnn(), image_batch()
    seen = watched(module, batch).norms
    torch.testing.assert_close(seen[0], module[0](batch[0]).detach())
    assert len(seen) == 2
    functional = watched(Calling(lambda x: F.batch_norm(x, None, None, training=True)), *batches_of(4, num_batches=1))
    assert len(functional.norms) == 1
    by_keyword = watched(
        Calling(lambda x: F.batch_norm(input=x, running_mean=None, running_var=None, training=True)),
        *batches_of(4, num_batches=1),
    )
    assert len(by_keyword.norms) == 1


# Calls of modules


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 5)))
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.body(x))


def test_calls_of_nested_modules_are_seen_when_they_end():
    module, (batch,) = Nested(), batches_of(4, num_batches=1)
    seen = watched(module, batch).calls
    assert [name for name, *_ in seen] == ["body.0", "body.1.0", "body.1.1", "body.1", "body", "head", ""]
    assert all(part is module.get_submodule(name) for name, part, *_ in seen)
    for earlier, later in ((0, 1), (1, 2), (4, 5)):
        assert seen[later][2][0] is seen[earlier][3]


def test_inputs_are_what_was_given_by_position_and_then_by_name():
    class Scaled(nn.Linear):
        def forward(self, x, scale):
            return super().forward(x) * scale

    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Scaled(4, 3)

        def forward(self, x):
            return self.layer(x, scale=2.0) + self.layer(scale=3.0, x=x)

    (first, second, _) = watched(Keywords(), *batches_of(4, num_batches=1)).calls
    assert [type(part) for part in first[2]] == [Tensor, float]
    assert [type(part) for part in second[2]] == [float, Tensor]


def test_a_module_that_is_called_by_its_forward_is_not_seen():
    module, (batch,) = Nested(), batches_of(4, num_batches=1)
    seen = watched(module, batch, lambda m, b, i: F.cross_entropy(m.head(m.body.forward(b[0])), b[1])).calls
    assert [name for name, *_ in seen] == ["body.0", "body.1.0", "body.1.1", "body.1", "head"]


def test_what_an_observer_computes_is_not_seen_itself():
    @dataclass(unsafe_hash=True)
    class Busy(Everything):
        def module_call(self, name, module, inputs, output):
            torch.relu(output)
            F.batch_norm(output, None, None, training=True)
            super().module_call(name, module, inputs, output)

        def activation(self, before, after):
            torch.relu(before)
            super().activation(before, after)

    seen = watched(mlp(), *batches_of(4, num_batches=1), kind=Busy)
    assert len(seen.activations) == 1
    assert seen.norms == []


def test_events_that_a_class_inherits_are_seen():
    @dataclass(unsafe_hash=True)
    class Heir(Everything):
        pass

    seen = watched(cnn(), image_batch(), kind=Heir)
    assert len(seen.activations) == len(seen.norms) == 2
    assert seen.calls
    assert seen.outputs


def test_other_modules_and_other_threads_are_not_seen():
    other = nn.Sequential(nn.Linear(4, 3), nn.ReLU())

    class Meanwhile(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                thread = threading.Thread(target=lambda: other(torch.zeros(1, 4)))
                thread.start()
                thread.join()
                nn.Linear(4, 3)(x.detach())
            return super().forward(x)

    seen = watched(Meanwhile(4, 3), *batches_of(4, num_batches=1))
    assert [name for name, *_ in seen.calls] == [""]
    assert seen.activations == []


def test_threads_do_not_disturb_each_other():
    (batch,) = batches_of(4, num_batches=1)
    barrier = threading.Barrier(2, timeout=60)

    def run(module, seen):
        def together(module, batch, batch_idx):
            barrier.wait()
            return step(module, batch, batch_idx)

        seen.append(watched(module, batch, together))

    results = [[], []]
    threads = [threading.Thread(target=run, args=(mlp(), seen)) for seen in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (seen,) in results:
        assert len(seen.activations) == 1
        assert [name for name, *_ in seen.calls] == ["0", "1", "2", "3", ""]


# The network's output


def output_of(module, batch, step=step):
    ((output, _),) = watched(module, batch, step).outputs
    return output


def test_the_output_of_a_module_that_the_step_calls_is_its_own():
    module, (batch,) = mlp(), batches_of(4, num_batches=1)
    assert torch.equal(output_of(module, batch), module(batch[0]))


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = mlp()
        self.head = nn.Linear(3, 3)
        self.perceptual = nn.Sequential(nn.Linear(3, 7)).requires_grad_(False)
        self.scale = nn.Identity()


def test_the_output_of_parts_called_one_after_the_other_is_that_of_the_last_with_weights():
    def parts_step(module, batch, batch_idx):
        features = module.backbone(batch[0])
        loss = F.cross_entropy(module.scale(module.head(features)), batch[1])
        return loss + module.perceptual(features).mean()

    module, (batch,) = Parts(), batches_of(4, num_batches=1)
    assert torch.equal(output_of(module, batch, parts_step), module.head(module.backbone(batch[0])))


def test_a_head_whose_weight_is_tied_to_an_embedding_is_the_last():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 4)
            self.body = nn.Linear(4, 4)
            self.head = nn.Linear(4, 11, bias=False)
            self.head.weight = self.embed.weight

    def token_step(module, batch, batch_idx):
        return module.head(module.body(module.embed(batch))).mean()

    assert output_of(Tokens(), torch.randint(11, (2, 5)), token_step).shape == (2, 5, 11)


def test_a_module_that_catches_an_error_of_its_part_keeps_its_output():
    class Failing(nn.Linear):
        def forward(self, x):
            raise KeyError("now and then")

    class Catching(nn.Module):
        def __init__(self):
            super().__init__()
            self.failing = nn.Sequential(Failing(4, 3))
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            try:
                return self.failing(x)
            except KeyError:
                return self.linear(x)

    module, (batch,) = Catching(), batches_of(4, num_batches=1)
    seen = watched(module, batch)
    assert [name for name, *_ in seen.calls] == ["linear", ""]
    assert torch.equal(seen.outputs[0][0], module.linear(batch[0]))


@pytest.mark.parametrize("kind", [Everything, WithGraph])
def test_packed_outputs_work_in_a_step(kind):
    class Packing(nn.Linear):
        def forward(self, x):
            logits = super().forward(x)
            return Output(logits.mean(), logits)

    def packed_step(module, batch, batch_idx):
        return F.cross_entropy(module(batch[0]).logits, batch[1])

    ((output, _),) = watched(Packing(4, 3), *batches_of(4, num_batches=1), packed_step, kind).outputs
    assert output.shape == (6, 3)


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (nn.Sequential(nn.Linear(4, 3)), lambda m, b, i: m[0].weight.sum()),
        (nn.Sequential(nn.Linear(4, 3)).requires_grad_(False), mean_step),
        (nn.Sequential(nn.LayerNorm(4)), mean_step),
    ],
)
def test_a_step_without_an_output_is_not_for_those_who_want_it(module, step):
    with pytest.raises(NotApplicableError, match="called no submodule with trainable layers"):
        watched(module, torch.randn(2, 4), step)


# Inputs


def nested_batch():
    return {"x": torch.randn(6, 4), "ids": torch.arange(6), "y": [torch.randint(0, 3, (6,)), torch.rand(6)]}


def nested_step(module, batch, batch_idx):
    return F.cross_entropy(module(batch["x"]), batch["y"][0])


def test_inputs_are_the_floating_tensors_of_the_batch():
    batch = nested_batch()
    ((_, inputs),) = watched(mlp(), batch, nested_step).outputs
    assert [tensor.shape for tensor in inputs] == [(6, 4), (6,)]
    assert torch.equal(inputs[0], batch["x"])
    assert not any(tensor.requires_grad for tensor in inputs)


def test_inputs_require_a_gradient_only_if_an_observer_differentiates():
    required = []

    def noting_step(module, batch, batch_idx):
        required.append(batch["x"].requires_grad)
        return nested_step(module, batch, batch_idx)

    for kind in (Everything, WithGradients, WithGraph):
        watched(mlp(), nested_batch(), noting_step, kind)
    assert required == [False, False, True]  # what is noted while the network's inputs are found is put back
    ((_, inputs),) = watched(mlp(), nested_batch(), nested_step, WithGraph).outputs
    assert [tensor.shape for tensor in inputs] == [(6, 4)]
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in inputs)


def test_targets_do_not_require_a_gradient():
    def strict_step(module, batch, batch_idx):
        batch[1].numpy()
        return F.mse_loss(module(batch[0]), batch[1])

    batch = torch.randn(6, 4), torch.randn(6, 3)
    ((_, inputs),) = watched(mlp(), batch, strict_step, WithGraph).outputs
    assert [tensor.shape for tensor in inputs] == [(6, 4)]


def test_a_step_may_switch_the_gradient_of_its_input_on():
    def switching_step(module, batch, batch_idx):
        hidden = batch[0][:, None]
        hidden.requires_grad = True
        return F.cross_entropy(module(hidden[:, 0]), batch[1])

    module, batch = mlp(), batches_of(4)[0]
    switched, plain = (watched(module, batch, made, InputGradient) for made in (switching_step, step))
    assert torch.equal(switched.gradient, plain.gradient)


@dataclass(unsafe_hash=True)
class InputGradient(Observer):
    needs_graph: ClassVar[bool] = True

    def forwarded(self, output, inputs):
        (self.gradient,) = torch.autograd.grad(output.sum(), inputs, retain_graph=True)


def test_a_step_may_write_to_its_batch():
    def preprocessing(module, batch, batch_idx):
        batch[0].mul_(3)
        batch[0][:, 0] = 0
        return step(module, batch, batch_idx)

    module, (batch,) = mlp(), batches_of(4, num_batches=1)
    kept = batch[0].clone()
    found = watched(module, batch, preprocessing, InputGradient).gradient
    x = kept.clone().requires_grad_()
    mask = torch.tensor([0.0, 1, 1, 1])
    (expected,) = torch.autograd.grad(module(3 * x * mask).sum(), x)
    torch.testing.assert_close(found, expected)
    assert torch.equal(batch[0], kept)
    watched(module, batch, preprocessing)
    assert torch.equal(batch[0], kept)


def test_the_input_can_be_differentiated_where_gradients_are_taken_too():
    (batch,) = batches_of(4, num_batches=1)
    probe = Probe(mlp(), step, [batch])
    needs = [InputGradient(), WithGradients()]
    probe.observe(needs)
    (alone,) = [Probe(probe.module, step, [batch]).observed(InputGradient()).gradient]
    assert torch.equal(probe.observed(InputGradient()).gradient, alone)
    assert probe.observed(WithGradients()).outputs


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("kind", [Everything, WithGraph, WithGradients, InputGradient])
def test_the_callers_mode_does_not_matter(mode, kind):
    with mode():
        (batch,) = batches_of(4, num_batches=1)
        watched(mlp(), batch, kind=kind)


# Failures


@pytest.mark.parametrize(
    "event", ["start", "activation", "batch_norm", "module_call", "forwarded", "wanted", "finished"]
)
@pytest.mark.parametrize("others", [Everything, WithGradients, WithGraph])
def test_an_observer_that_fails_is_told_of_nothing_more_and_the_others_go_on(event, others):
    told = []

    def fail(self, *args):
        told.append(event)
        raise KeyError("an observer's own words")

    failing = dataclass(unsafe_hash=True)(type("Failing", (WithGradients,), {event: fail}))
    probe = Probe(cnn(), step, [image_batch()])
    probe.observe([failing(), others()])
    with pytest.raises(KeyError, match="own words"):
        probe.observed(failing())
    assert told == [event]
    seen = probe.observed(others())
    assert len(seen.activations) == len(seen.norms) == 2
    assert len(seen.outputs) == 1


def test_the_first_error_of_an_observer_is_the_one_that_is_told():
    @dataclass(unsafe_hash=True)
    class Twice(Everything):
        def activation(self, before, after):
            raise KeyError("first")

        def forwarded(self, output, inputs):
            raise ValueError("second")

    with pytest.raises(KeyError, match="first"):
        watched(mlp(), *batches_of(4, num_batches=1), kind=Twice)


# What is put back


def hooks_of(module):
    tables = [vars(part)[name] for part in module.modules() for name in vars(part) if name.endswith("_hooks")]
    of_all = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    return [dict(table) for table in (*tables, *of_all)]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_hooks_modes_and_the_fused_kernel_of_transformers_are_put_back(fused, fails):
    def failing_step(module, batch, batch_idx):
        loss = step(module, batch, batch_idx)
        assert not torch.backends.mha.get_fastpath_enabled()
        assert hooks_of(module) != before
        if fails:
            raise RuntimeError("in the middle of a step")
        return loss

    module = cnn()
    module[0].register_forward_hook(lambda module, args, output: None)
    before = hooks_of(module)
    torch.backends.mha.set_fastpath_enabled(fused)
    try:
        probe = Probe(module, failing_step, [image_batch()])
        probe.observe([WithGradients(), WithGraph(), Everything()])
        assert torch.backends.mha.get_fastpath_enabled() == fused
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert hooks_of(module) == before
    assert not torch.overrides._get_current_function_mode_stack()
    for kind in (WithGradients, WithGraph, Everything):
        if fails:
            with pytest.raises(RuntimeError, match="in the middle"):
                probe.observed(kind())
        else:
            assert probe.observed(kind()).outputs


# Checkpoints


@pytest.mark.parametrize("use_reentrant", [None, True, False])
@pytest.mark.parametrize("kind", [Everything, WithGraph, WithGradients])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_what_a_checkpoint_runs_again_is_not_seen_again(use_reentrant, kind):
    (batch,) = batches_of(4, num_batches=1)
    seen = watched(Checkpointed(use_reentrant, norm=True), batch, kind=kind)
    assert [name for name, *_ in seen.calls] == ["first", "norm", "second", "head", ""]
    assert len(seen.activations) == len(seen.norms) == 1


@pytest.mark.parametrize("kind", [Everything, WithGraph, WithGradients])
def test_what_a_checkpoint_runs_again_for_a_step_that_differentiates_is_not_seen_again(kind):
    def penalised(module, batch, batch_idx):
        x = batch[0].detach().requires_grad_()
        with torch.enable_grad():
            output = module(x)
            (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return F.cross_entropy(output, batch[1]) + slope.square().mean()

    (batch,) = batches_of(4, num_batches=1)
    seen = watched(Checkpointed(False, norm=True), batch, penalised, kind=kind)
    assert [name for name, *_ in seen.calls] == ["first", "norm", "second", "head", ""]
    assert len(seen.activations) == len(seen.norms) == 1
    ((output, _),) = seen.outputs
    assert output.shape == (6, 3)


def test_a_checkpoint_around_the_whole_network_hides_nothing():
    def checkpointed(module, batch, batch_idx):
        return F.cross_entropy(checkpoint(module, batch[0], use_reentrant=False), batch[1])

    seen = watched(mlp(), *batches_of(4, num_batches=1), checkpointed, WithGradients)
    assert [name for name, *_ in seen.calls] == ["0", "1", "2", "3", ""]
    assert len(seen.outputs) == 1
