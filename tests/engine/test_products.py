import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lightning_zico.engine.products import hessian_times_gradient
from lightning_zico.errors import NoGradientError, NotApplicableError
from tests.engine.models import Attention, Checkpointed, Tied, assert_same, batches_of, cnn, identical, mlp, step

# float64, against sums in another order
TIGHT = 1e-10

MODELS = {
    "mlp": (mlp, (4,)),
    "cnn": (cnn, (2, 5, 5)),
    "cnn in eval mode": (lambda: cnn().eval(), (2, 5, 5)),
    "attention": (Attention, (3, 4)),
    "tied": (Tied, (4,)),
    "checkpointed": (lambda: Checkpointed(False), (4,)),
}


def explicit(module, batch, names):
    """Build the Hessian, column by column, and multiply."""
    own = {name: parameter.detach() for name, parameter in copy.deepcopy(module).named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    sizes = [own[name].numel() for name in names]

    def loss(flat):
        parts = dict(zip(names, flat.split(sizes), strict=True))
        tensors = own | {name: part.view_as(own[name]) for name, part in parts.items()}
        buffers_now = {name: buffer.clone() for name, buffer in buffers.items()}
        return F.cross_entropy(functional_call(module, (tensors, buffers_now), (batch[0],)), batch[1])

    flat = torch.cat([own[name].flatten() for name in names]).requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        (gradient,) = torch.autograd.grad(loss(flat), flat)
        product = torch.autograd.functional.hessian(loss, flat) @ gradient
    return {n: p.view_as(own[n]) for n, p in zip(names, product.split(sizes), strict=True)}


def made(name):
    make, shape = MODELS[name]
    module = make().double()
    (batch,) = batches_of(*shape, num_batches=1, dtype=torch.float64)
    return module, batch, [n for n, p in module.named_parameters() if p.ndim > 1]


@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_with_the_explicit_hessian(name):
    module, batch, names = made(name)
    weights, products = hessian_times_gradient(module, step, batch, names)
    twin = copy.deepcopy(module)
    if isinstance(twin, Checkpointed):
        twin.use_reentrant = None
    assert_same([products], [explicit(twin, batch, names)], TIGHT)
    assert list(weights) == list(products) == names
    assert all(torch.equal(weights[n], module.get_parameter(n)) for n in names)


def test_only_the_block_of_the_named_parameters_counts():
    module, batch, names = made("mlp")
    assert_same(
        [hessian_times_gradient(module, step, batch, names[1:])[1]], [explicit(module, batch, names[1:])], TIGHT
    )


def test_a_loss_that_is_linear_in_the_parameters_has_no_curvature():
    module = nn.Linear(4, 3)
    _, products = hessian_times_gradient(module, lambda m, b, i: m(b).sum(), torch.randn(5, 4), ["weight"])
    assert torch.equal(products["weight"], torch.zeros(3, 4))
    assert not products["weight"].requires_grad


def test_parameters_without_influence_get_zero():
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3))
    _, products = hessian_times_gradient(
        module, lambda m, b, i: m[0](b).square().sum(), torch.ones(2, 4), ["0.weight", "1.weight"]
    )
    assert products["0.weight"].any()
    assert torch.equal(products["1.weight"], torch.zeros(3, 4))


def test_a_loss_without_parameters_is_refused():
    with pytest.raises(NoGradientError, match="depends on no scored parameter"):
        hessian_times_gradient(mlp(), lambda m, b, i: torch.ones(()), None, ["0.weight"])


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_neither_the_callers_autograd_nor_anything_else_is_touched(surroundings):
    module, batch, names = made("cnn")
    expected = hessian_times_gradient(module, step, batch, names)[1]
    state, rng, grad_mode = copy.deepcopy(module.state_dict()), torch.get_rng_state(), torch.is_grad_enabled()
    with surroundings():
        weights, products = hessian_times_gradient(module, step, batch, names)
    assert_same([products], [expected], 0)
    for tensor in (*weights.values(), *products.values()):
        assert not tensor.requires_grad
        tensor.fill_(9)
    assert identical(module, state)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.is_grad_enabled() == grad_mode
    assert all(parameter.grad is None for parameter in module.parameters())


def test_dropout_is_drawn_from_the_seed():
    module, (batch,) = mlp(dropout=0.5), batches_of(4, num_batches=1)
    first, same, other = (
        hessian_times_gradient(module, step, batch, ["0.weight"], seed=seed)[1]["0.weight"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_what_has_no_second_derivative_is_not_applicable_and_says_which() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Hardsigmoid(), nn.Linear(3, 2))
    with pytest.raises(NotApplicableError, match=r"no second derivative.*hardsigmoid"):
        hessian_times_gradient(module, lambda m, batch, _: m(batch).square().mean(), torch.randn(4, 3), ["0.weight"])


def test_parameters_in_a_list_are_the_same_weights():
    module, batch, names = made("mlp")
    module.kept = list(module.parameters())

    def penalised(m, b, i, weights=None):
        return step(m, b, i) + sum(p.norm() for p in (weights or m.parameters()))

    _, plain = hessian_times_gradient(module, penalised, batch, names)
    _, kept = hessian_times_gradient(module, lambda m, b, i: penalised(m, b, i, m.kept), batch, names)
    assert_same([kept], [plain], TIGHT)


def test_what_the_step_freezes_has_no_product():
    module, batch, names = made("mlp")

    def frozen(m, b, i):
        m[0].weight.requires_grad_(False)
        return step(m, b, i)

    _, products = hessian_times_gradient(module, frozen, batch, names)
    _, expected = hessian_times_gradient(module, step, batch, [name for name in names if name != "0.weight"])
    assert_same([products], [expected | {"0.weight": torch.zeros_like(module[0].weight)}], TIGHT)
    assert module[0].weight.requires_grad
