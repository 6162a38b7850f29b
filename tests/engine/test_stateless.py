import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_zico.engine.batches import tensors_of
from lightning_zico.engine.stateless import Stateless
from lightning_zico.errors import NoGradientError, UnsupportedModuleError
from tests.engine.models import Checkpointed, Last, Tied, Writing, assert_same, batches_of, identical, step
from tests.reference.gradients import gradient_of


def plain(module, step, batch):
    stateless = Stateless(module)
    params, buffers = stateless.copied_params(), stateless.copied_buffers()
    return stateless.plain_gradients(step, params, buffers, params, batch, 0)


@pytest.mark.parametrize("how", ["data", "no_grad"])
def test_a_forward_that_writes_to_its_weights_does_not_reach_the_module(how):
    module = Writing(how)
    state = copy.deepcopy(module.state_dict())
    (batch,) = batches_of(4, num_batches=1)
    gradients, _ = plain(module, step, batch)
    assert gradients["linear.weight"].any()
    assert identical(module, state)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_checkpointing_does_not_reach_the_module(use_reentrant):
    module = Checkpointed(use_reentrant, norm=True)
    state = copy.deepcopy(module.state_dict())
    (batch,) = batches_of(4, num_batches=1)
    gradients, _ = plain(module, step, batch)
    # the twin, whose weights are the same, does without checkpoints
    twin = copy.deepcopy(module)
    twin.use_reentrant = None
    assert_same([gradients], [gradient_of(twin, step, batch)], 1e-6)  # float32
    assert identical(module, state)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_recurrent_network_runs_on_the_parameters_given():
    module = Last()
    (batch,) = batches_of(7, 4, num_batches=1)
    gradients, loss = plain(module, step, batch)
    assert_same([gradients], [gradient_of(module, step, batch)], 1e-6)  # float32
    halved = {name: tensor / 2 for name, tensor in Stateless(module).copied_params().items()}
    assert Stateless(module).loss(step, halved, batch, 0) != loss


def test_tied_parameters_stand_once_under_their_first_name():
    assert list(Stateless(Tied()).copied_params()) == [
        "first.weight",
        "first.bias",
        "second.bias",
        "head.weight",
        "head.bias",
    ]


def test_weights_shared_by_two_modules_or_two_names_are_exchanged_everywhere_and_put_back():
    module = Tied()
    module.again = module.first  # one module under two names
    state = copy.deepcopy(module.state_dict())
    zeros = {name: torch.zeros_like(tensor) for name, tensor in Stateless(module).copied_params().items()}
    seen = Stateless(module).call(zeros, lambda: [p.abs().sum() for p in module.state_dict(keep_vars=True).values()])
    assert len(seen) == len(state)
    assert not any(seen)
    assert identical(module, state)
    assert module.second.weight is module.first.weight


@pytest.mark.parametrize(
    "kind", [Tied, lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), lambda: nn.GRU(4, 3)]
)
def test_a_call_is_that_of_torch_and_puts_the_tensors_back_also_when_it_fails(kind):
    module, x = kind(), torch.randn(5, 4)
    stateless = Stateless(module)
    tensors = {name: tensor * 2 for name, tensor in (stateless.copied_params() | stateless.copied_buffers()).items()}
    with torch.no_grad():
        # torch is given copies, because batch normalisation writes to its buffers
        expected = functional_call(module, {name: tensor.clone() for name, tensor in tensors.items()}, (x,))
        own = [id(tensor) for tensor in (*module.parameters(), *module.buffers())]
        actual = stateless.call(tensors, lambda: module(x))
        with pytest.raises(ZeroDivisionError):
            stateless.call(tensors, lambda: 1 // 0)
    for ours, theirs in zip(tensors_of(actual), tensors_of(expected), strict=True):
        assert torch.equal(ours, theirs)
    assert [id(tensor) for tensor in (*module.parameters(), *module.buffers())] == own


def test_what_gets_other_values_is_not_copied():
    stateless = Stateless(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    assert list(stateless.copied_params({"0.weight", "1.bias"})) == ["0.bias", "1.weight"]
    assert list(stateless.copied_buffers({"1.running_mean"})) == ["1.running_var", "1.num_batches_tracked"]


def test_copies_share_no_memory_with_the_module():
    module = nn.BatchNorm1d(3)
    for tensor in (Stateless(module).copied_params() | Stateless(module).copied_buffers()).values():
        tensor.fill_(9)
    assert identical(module, nn.BatchNorm1d(3).state_dict())


def test_lazy_parameters_are_refused_by_name():
    with pytest.raises(UnsupportedModuleError, match=r"'0.weight' is not initialised.*Run one batch"):
        Stateless(nn.Sequential(nn.LazyLinear(3))).copied_params()


def test_meta_parameters_are_refused_by_name():
    with pytest.raises(UnsupportedModuleError, match=r"'weight' is on the meta device.*real device"):
        Stateless(nn.Linear(3, 2, device="meta")).copied_params()


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (None, "NoneType"),
        (1.0, "float"),
        ({"loss": torch.ones(())}, "dict"),
        (torch.ones(3), r"a tensor of shape \(3,\)"),
        (torch.ones(0), r"a tensor of shape \(0,\)"),
    ],
)
def test_a_loss_that_is_not_one_number_is_refused(loss, said):
    with pytest.raises(UnsupportedModuleError, match=rf"The loss is {said}: expected a single number"):
        Stateless(nn.Linear(3, 2)).loss(lambda m, b, i: loss, {}, None, 0)


def test_one_number_in_any_shape_is_a_scalar():
    loss = Stateless(nn.Linear(3, 2)).loss(lambda m, b, i: torch.ones(1, 1), {}, None, 0)
    assert loss.shape == ()


def test_parameters_without_influence_get_zero():
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3))
    gradients, _ = plain(module, lambda m, b, i: m[0](b).sum(), torch.ones(2, 4))
    assert gradients["0.weight"].all()
    assert torch.equal(gradients["1.weight"], torch.zeros(3, 4))
    assert not any(gradient.requires_grad for gradient in gradients.values())


@pytest.mark.parametrize("loss", [lambda m: m.weight.detach().sum(), lambda m: torch.ones(())])
def test_a_loss_without_parameters_is_refused(loss):
    with pytest.raises(NoGradientError, match="depends on no scored parameter"):
        plain(nn.Linear(3, 2), lambda m, b, i: loss(m), None)


def test_batch_and_index_reach_the_step():
    seen = []
    Stateless(nn.Linear(1, 1)).loss(lambda m, b, i: seen.append((b, i)) or torch.ones(()), {}, "batch", 7)
    assert seen == [("batch", 7)]


def test_an_optimizer_that_steps_keeps_the_very_state_that_it_had():
    module = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters(), lr=torch.tensor(0.1), amsgrad=True)

    def learn():
        optimizer.zero_grad()
        module(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"].mul_(0.5)
        optimizer.param_groups[0]["betas"] = (0.1, 0.2)

    learn()
    optimizer.param_groups[0]["betas"] = (0.8, 0.9)

    def photo():
        states = [(id(key), id(state), state) for key, state in optimizer.state.items()]
        tensors = [
            (key, id(value), value.tolist(), value._version) for _, _, state in states for key, value in state.items()
        ]
        group = optimizer.param_groups[0]
        return [state[:2] for state in states], tensors, id(group), id(group["lr"]), repr(group)

    before = photo()
    stateless = Stateless(module)
    with stateless.holding(stateless.copied_params()):
        learn()
        learn()
        assert photo() != before
    assert photo() == before
