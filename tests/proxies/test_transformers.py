"""Proxies of attention heads, hidden states and outputs of layers: laws, and closed forms beside their twins."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from timm.layers import GlobalContext
from timm.models.nest import Nest
from timm.models.volo import OutlookAttention
from timm.models.xcit import XCA
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification
from transformers.activations import NewGELUActivation, QuickGELUActivation
from transformers.pytorch_utils import Conv1D

from lightning_zico import score
from lightning_zico.proxies.dextr import extrinsic_curvature, inverse_condition
from lightning_zico.proxies.intrain import gradient_health, participation_ratio
from lightning_zico.proxies.v_pca import num_components

NUM_SAMPLES, NUM_TOKENS, WIDTH, NUM_HEADS = 4, 5, 12, 3


def in_heads(tokens: Tensor) -> Tensor:
    return tokens.unflatten(2, (NUM_HEADS, -1)).transpose(1, 2)  # [N, H, T, D]


def weights_of(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)


ATTENTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "function": F.scaled_dot_product_attention,
    "by hand": lambda q, k, v: weights_of(q, k) @ v,
    "einsum": lambda q, k, v: torch.einsum("nhts,nhsd->nhtd", weights_of(q, k), v),
    "values first": lambda q, k, v: (v.mT @ weights_of(q, k).mT).mT,
    "dropped out": lambda q, k, v: F.dropout(weights_of(q, k), 0.0) @ v,
    "masked": lambda q, k, v: weights_of(q, k).masked_fill(torch.zeros(NUM_TOKENS, NUM_TOKENS).bool(), 0.0) @ v,
    "heads among samples": lambda q, k, v: torch.bmm(weights_of(q, k).flatten(0, 1), v.flatten(0, 1)).unflatten(
        0, (-1, NUM_HEADS)
    ),
}


class Attending(nn.Module):
    """One layer of self-attention; `module` leaves it to torch's module, with the same weights."""

    def __init__(self, attention: Callable[[Tensor, Tensor, Tensor], Tensor], module: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fused = nn.MultiheadAttention(WIDTH, NUM_HEADS, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)
        self.attention, self.module = attention, module

    def forward(self, x: Tensor) -> Tensor:
        if self.module:
            x, _ = self.fused(x, x, x)
            return self.head(x.mean(dim=1))
        projections = F.linear(x, self.fused.in_proj_weight, self.fused.in_proj_bias).chunk(3, dim=-1)
        x = self.attention(*map(in_heads, projections)).transpose(1, 2).flatten(2)
        return self.head(self.fused.out_proj(x).mean(dim=1))


def batches(*shape: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(*shape, generator=generator), torch.arange(shape[0]) % 3) for _ in range(2)]


def value_of(name: str, network: nn.Module, *shape: int) -> float:
    result = score(network, batches(*shape), name, F.cross_entropy)[name]
    assert result.value is not None, result.error
    return result.value


@pytest.mark.parametrize("attention", [*ATTENTIONS, "module"])
def test_head_confidence_sees_heads_however_they_are_written(attention: str) -> None:
    shape = NUM_SAMPLES, NUM_TOKENS, WIDTH
    network = Attending(ATTENTIONS.get(attention, ATTENTIONS["function"]), module=attention == "module")
    with torch.no_grad():
        projections = F.linear(batches(*shape)[0][0], network.fused.in_proj_weight, network.fused.in_proj_bias)
        outputs = ATTENTIONS["by hand"](*map(in_heads, projections.chunk(3, dim=-1)))
    expected = sum(outputs[:, head].numpy().max(axis=1).mean() for head in range(NUM_HEADS))
    assert value_of("head_confidence", network, *shape) == pytest.approx(expected, rel=1e-5)


class Between(nn.Module):
    """A head behind a module on maps of 12 channels, as ``[N, C, 4, 4]``, or as tokens that `arrange` makes of them."""

    def __init__(self, part: nn.Module, arrange: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.part, self.head, self.arrange = part, nn.Linear(WIDTH, 3), arrange

    def forward(self, x: Tensor) -> Tensor:
        rows = self.part(self.arrange(x))
        return self.head(rows.reshape(len(x), WIDTH, -1).mean(dim=2))


class Self(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x)[0]


def windows(x: Tensor) -> Tensor:
    return x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).flatten(3, 4).flatten(0, 2)  # [N 4, 4, C]


def heads_of(network: nn.Module, *shape: int) -> Any:
    result = score(network, batches(*shape), "head_confidence", F.cross_entropy)["head_confidence"]
    return result.error or result.details["num_heads"]


def test_heads_are_not_windows_or_patches() -> None:
    shape = NUM_SAMPLES, WIDTH, 4, 4
    network = Between(Self(WIDTH, NUM_HEADS, batch_first=True), windows)
    assert heads_of(network, *shape) == [NUM_HEADS]
    assert heads_of(Between(OutlookAttention(WIDTH, NUM_HEADS), lambda x: x.permute(0, 2, 3, 1)), *shape) == [NUM_HEADS]
    nest = Nest(img_size=16, in_chans=2, patch_size=2, num_levels=2, embed_dims=(6, 8), num_heads=(3, 2), depths=(1, 1))
    assert heads_of(nest, NUM_SAMPLES, 2, 16, 16) == [3, 2]


def test_heads_among_samples_that_no_module_counts_do_not_apply() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (weights_of(q.flatten(0, 1), k.flatten(0, 1)) @ v.flatten(0, 1)).unflatten(0, (-1, NUM_HEADS))

    error = heads_of(Attending(attend), NUM_SAMPLES, NUM_TOKENS, WIDTH)
    assert str(error).startswith("not applicable: heads cannot be counted")


def test_attention_over_channels_or_of_one_query_gives_no_number() -> None:
    shape = NUM_SAMPLES, WIDTH, 4, 4
    error = heads_of(Between(XCA(WIDTH, NUM_HEADS), lambda x: x.flatten(2).mT), *shape)
    assert "it does not attend to positions" in str(error)
    assert str(heads_of(Between(GlobalContext(WIDTH)), *shape)).startswith(
        "not applicable: the network has no attention"
    )


def test_a_softmax_without_values_is_no_head() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x * self.gate(x).softmax(dim=-1)).mean(dim=1)).log_softmax(dim=1)

    error = score(Gated(), batches(NUM_SAMPLES, NUM_TOKENS, WIDTH), "head_confidence", F.nll_loss)
    assert str(error["head_confidence"].error).startswith("not applicable: the network has no attention head")


class Feeding(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor], norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.widen, self.narrow, self.head = nn.Linear(WIDTH, 30), nn.Linear(30, WIDTH), nn.Linear(WIDTH, 3)
        self.activation = activation
        self.norm = nn.LayerNorm(30) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.narrow(self.activation(self.norm(self.widen(x)))).mean(dim=1).tanh())


@pytest.mark.parametrize(
    "activation",
    [F.gelu, nn.GELU(), nn.ReLU(inplace=True), torch.relu_, Tensor.tanh, NewGELUActivation(), QuickGELUActivation()],
)
def test_v_pca_looks_before_the_activation_function_whatever_its_form(activation: Callable[[Tensor], Tensor]) -> None:
    shape = 20, NUM_TOKENS, WIDTH
    network = Feeding(activation)
    with torch.no_grad():
        hidden = network.widen(batches(*shape)[0][0]).flatten(0, 1).double().numpy()
    variances = np.sort(np.linalg.eigvalsh(np.cov(hidden.T)))[::-1]
    expected = 1 + np.count_nonzero(np.cumsum(variances) < 0.99 * variances.sum())
    assert expected <= WIDTH
    assert value_of("v_pca", network, *shape) == expected
    assert value_of("w_pca", network, *shape) == expected * sum(p.numel() for p in network.parameters())


def test_v_pca_of_a_layer_whose_output_goes_elsewhere_first_does_not_apply() -> None:
    card = score(Feeding(F.gelu, norm=True), batches(4, NUM_TOKENS, WIDTH), "v_pca", F.cross_entropy)
    assert str(card["v_pca"].error).startswith("not applicable: the network has no feed-forward layer on tokens")


class Reading(nn.Module):
    """A small GPT-2 whose layers are those of transformers, or linear ones with the transposed weights."""

    def __init__(self, is_linear: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"vocab_size": 40, "n_positions": 8, "n_embd": WIDTH, "n_layer": 2, "n_head": NUM_HEADS}
        drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        self.model = GPT2ForSequenceClassification(GPT2Config(**sizes, **drop, num_labels=3, pad_token_id=0))
        for name, part in [*self.model.named_modules()] if is_linear else ():
            if isinstance(part, Conv1D):
                layer = nn.Linear(part.nx, part.nf)
                layer.load_state_dict({"weight": part.weight.T, "bias": part.bias})
                self.model.set_submodule(name, layer)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens).logits


@pytest.mark.parametrize("is_frozen", [False, True])
def test_v_pca_of_gpt2_is_that_of_the_same_network_of_linear_layers(is_frozen: bool) -> None:
    tokens, labels = torch.randint(1, 40, (20, 6), generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    linear = Reading(is_linear=True)
    hidden: list[np.ndarray] = []
    for block in linear.model.transformer.h:
        block.mlp.c_fc.register_forward_hook(lambda *call: hidden.append(call[2].detach().flatten(0, 1).numpy()))
    linear(tokens)
    expected = 0
    for states in hidden:
        variances = np.sort(np.linalg.eigvalsh(np.cov(states.T)))[::-1]
        expected += 1 + np.count_nonzero(np.cumsum(variances) < 0.99 * variances.sum())
    for network in (Reading(is_linear=True), Reading(is_linear=False)):
        network.model.transformer.requires_grad_(not is_frozen)
        card = score(network, [(tokens, labels)], ["v_pca", "w_pca"], F.cross_entropy)
        assert card["v_pca"].value == expected > 2
        assert card["w_pca"].value == expected * sum(parameter.numel() for parameter in network.parameters())


class Biased(Feeding):
    """Runs its feed-forward layer several times, and one that makes a bias of relative positions."""

    def __init__(self, repeats: int, biased: bool) -> None:
        super().__init__(torch.tanh)
        self.repeats, self.biased = repeats, biased
        self.bias = nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        offset = self.bias(torch.ones(len(x), x.shape[1], 2)) if self.biased else 0.0
        hidden = sum(self.narrow(self.activation(self.widen(x))) for _ in range(self.repeats))
        return self.head((hidden + offset).mean(dim=1))


def test_v_pca_counts_each_call_of_a_layer_that_sees_the_samples() -> None:
    shape = 20, NUM_TOKENS, WIDTH
    once = value_of("v_pca", Biased(1, biased=False), *shape)
    assert once > 1
    assert value_of("v_pca", Biased(3, biased=True), *shape) == 3 * once


def test_v_pca_of_a_layer_that_sees_one_sample_at_a_time_does_not_apply() -> None:
    class OneByOne(Feeding):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super(OneByOne, self).forward(row) for row in x.split(1)])

    card = score(OneByOne(F.gelu), batches(4, 4, WIDTH), "v_pca", F.cross_entropy)
    assert str(card["v_pca"].error).startswith("not applicable: its feed-forward layer 'widen' sees 1 rows")


class Embedding(LightningModule):
    def __init__(self, looks_up: bool, masks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.positions = nn.Embedding(10, WIDTH), nn.Embedding(NUM_TOKENS, WIDTH)
        self.hidden, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.looks_up, self.masks = looks_up, masks

    def training_step(self, batch: Any) -> Tensor:
        tokens, mask, labels = batch
        num_tokens = tokens.shape[1]
        positions = self.positions(torch.arange(num_tokens)) if self.looks_up else self.positions.weight[:num_tokens]
        x = self.hidden(self.words(tokens) + positions).tanh()
        return F.cross_entropy(self.head((x * mask[..., None] if self.masks else x).mean(dim=1)), labels)


@pytest.mark.parametrize("num_samples", [NUM_TOKENS, NUM_TOKENS + 1])
@pytest.mark.parametrize("name", ["jacob_cov", "epe_nas"])
def test_jacobians_are_those_of_embedded_tokens(name: str, num_samples: int) -> None:
    """Neither positions nor a mask of ones change them, whatever the number of samples."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(10, (num_samples, NUM_TOKENS), generator=generator)
    given = [(tokens, torch.ones(num_samples, NUM_TOKENS), torch.arange(num_samples) % 3)] * 2
    variants = [(False, False), (True, False), (True, True)]
    values = [score(Embedding(*variant), given, name)[name].value for variant in variants]
    assert values[0] is not None
    assert values == [pytest.approx(values[0])] * 3


@pytest.mark.parametrize("share", [0.5, 0.99, 1.0])
def test_components_are_those_that_numpy_needs(share: float) -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 3.0, 1.0, 0.5, 0.1, 0.0])
    variances = np.sort(np.linalg.eigvalsh(np.cov(rows.double().numpy().T)))[::-1]
    kept = next(count for count in range(1, 7) if variances[:count].sum() >= share * variances.sum() * (1 - 1e-12))
    assert int(num_components(rows, share)) == kept
    assert int(num_components(torch.ones(4, 3))) == 0


@pytest.mark.parametrize(("rows", "columns"), [(30, 4), (4, 30)])
def test_the_participation_ratio_is_that_of_the_covariance(rows: int, columns: int) -> None:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    covariance = np.cov(values.double().numpy().T)
    expected = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    assert float(participation_ratio(values)) == pytest.approx(expected, rel=1e-5)
    assert float(participation_ratio(1e-6 * values)) == pytest.approx(expected, rel=1e-5)  # of no scale
    assert float(participation_ratio(torch.full((rows, columns), 0.1))) == 1.0


def test_healthy_gradients_are_spread_evenly() -> None:
    assert float(gradient_health(torch.zeros(3))) == 0.0
    assert float(gradient_health(torch.ones(3))) == 0.0
    spike = torch.zeros(100)
    spike[0] = -5.0
    assert float(gradient_health(spike)) == pytest.approx(math.sqrt(0.01 - 0.0001))


def test_a_circle_has_the_curvature_of_its_radius_and_a_line_has_none() -> None:
    angles = torch.tensor([0.3, 0.7])
    velocity, acceleration = (
        3 * torch.stack([-angles.sin(), angles.cos()]),
        -3 * torch.stack([angles.cos(), angles.sin()]),
    )
    assert extrinsic_curvature(velocity[:, 0], acceleration[:, 0]) == pytest.approx(1 / 3, rel=1e-6)
    assert extrinsic_curvature(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])) == pytest.approx(0.0, abs=1e-7)
    assert not math.isfinite(extrinsic_curvature(torch.zeros(2), torch.ones(2)))


def test_the_inverse_condition_is_a_ratio_of_singular_values() -> None:
    maps = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    singular = np.linalg.svd(maps.double().numpy(), compute_uv=False)
    found = inverse_condition(maps)
    assert found.numpy() == pytest.approx(singular[:, -1] / singular[:, 0], rel=1e-6)
    assert inverse_condition(maps.mT).numpy() == pytest.approx(found.numpy())
    assert inverse_condition(torch.ones(2, 3)).item() == 0.0


def test_dextr_of_one_output_does_not_apply() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(75, 1))
    result = score(network, batches(4, 2, 5, 5), "dextr", lambda logits, _: logits.square().mean())["dextr"]
    assert str(result.error).startswith("not applicable: the network has one output")


def test_dextr_of_a_linear_network_sees_the_ellipse_that_it_makes_of_a_circle() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(75, 3))
    jacobian = torch.autograd.functional.jacobian(network, torch.zeros(1, 2, 5, 5)).view(3, 50).double().numpy()
    generator = torch.Generator().manual_seed(0)
    drawn = np.stack([torch.randn(1, 2, 5, 5, generator=generator).flatten().double() for _ in range(2)], axis=1)
    point, tangent = np.linalg.qr(drawn)[0].T
    v, a = jacobian @ tangent, -jacobian @ point
    expected = np.linalg.norm(np.cross(v, a)) / np.linalg.norm(v) ** 3
    result = score(network, batches(4, 2, 5, 5), "dextr", F.cross_entropy)["dextr"]
    assert result.details["curvature"] == pytest.approx(expected, rel=1e-4)


class Returning(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("same", [nn.Identity(), nn.Dropout(0.0), nn.Dropout2d(0.0, inplace=True), Returning()])
def test_dextr_does_not_count_modules_that_return_their_input(same: nn.Module, inplace: bool) -> None:
    torch.manual_seed(0)
    conv, activation, head = nn.Conv2d(2, 3, 3, padding=1), nn.LeakyReLU(0.1, inplace=inplace), nn.Linear(75, 3)
    plain = nn.Sequential(conv, nn.LeakyReLU(0.1), nn.Flatten(), head)
    more = nn.Sequential(same, conv, same, activation, same, nn.Flatten(), head)
    assert value_of("dextr", more, 4, 2, 5, 5) == value_of("dextr", plain, 4, 2, 5, 5)


def test_dextr_of_an_input_of_one_number_does_not_apply() -> None:
    network = nn.Sequential(nn.Unflatten(1, (1, 1, 1)), nn.ConvTranspose2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3))
    result = score(network, batches(4, 1), "dextr", F.cross_entropy)["dextr"]
    assert str(result.error).startswith("not applicable: the input of a sample is a single number")


def test_dextr_names_the_single_sample_that_batch_normalisation_cannot_take() -> None:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 3))
    network = nn.Sequential(nn.Conv2d(2, 3, 3), pooled)
    error = str(score(network, batches(4, 2, 5, 5), "dextr", F.cross_entropy)["dextr"].error)
    assert error.startswith("not applicable: the step fails on a single sample")
    assert "more than 1 value per channel" in error


@pytest.mark.parametrize("rows", [1, 2])
def test_intrain_of_two_rows_does_not_apply(rows: int) -> None:
    network = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 3))
    error = str(score(network, batches(rows, WIDTH), "intrain", F.cross_entropy)["intrain"].error)
    assert error.startswith(f"not applicable: the outputs of its layers have at most {rows} rows")
    assert value_of("intrain", network, 3, WIDTH) > 0
