"""Networks and batches at the edge of what the formulas were made for."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_zico import Score, score
from lightning_zico.candidates import Built, Candidate
from lightning_zico.engine.weights import drawn_indices
from lightning_zico.errors import NonFiniteError
from lightning_zico.proxies import AZTrainability, swap
from lightning_zico.proxies.meco import least_eigenvalue
from lightning_zico.proxies.ntk import ntk_cond_score
from tests.modules import Classifier, make_batches
from tests.proxies.models import Tokens, cnn


def tokens_and_mask() -> list[tuple[dict[str, Tensor], Tensor]]:
    ids, mask = torch.randint(10, (4, 5)), torch.ones(4, 5)
    return [({"ids": ids, "mask": mask}, torch.randint(3, (4,)))]


class Masked(Tokens):
    """Takes a mask of floating point beside its tokens."""

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return super().forward(inputs["ids"])


class Functional(Classifier):
    """Calls no submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(50, 8), nn.Linear(8, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = F.relu(F.linear(batch[0].flatten(1), self.first.weight, self.first.bias))
        return F.cross_entropy(F.linear(hidden, self.last.weight), batch[1])


class Checkpointed(nn.Module):
    """Has a part that only `backward()` can be led through."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.stem, self.hidden, self.head = nn.Linear(50, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.stem(images.flatten(1)).tanh()
        return self.head(checkpoint(self.hidden, hidden, use_reentrant=self.use_reentrant).tanh())


class Pair(nn.Module):
    """Puts out its loss and its logits, as models of transformers may."""

    def __init__(self) -> None:
        super().__init__()
        self.network = cnn()

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(images)
        return F.cross_entropy(logits, labels), logits


class CallsForItsLoss(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.network = Pair()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.network(*batch)[0]


def test_a_block_whose_features_do_not_vary_is_an_error_for_all_that_reads_expressivity() -> None:
    one_sample = [(images[:1], labels[:1]) for images, labels in make_batches()]
    network = nn.Sequential(*(layer for _ in range(2) for layer in (nn.Conv2d(2, 2, 1), nn.ReLU())), nn.Flatten())
    network.append(nn.Linear(50, 3))
    names = ["az_expressivity", "az_expressivity_mean", "az_progressivity"]
    card = score(network, one_sample, proxies=names, loss_fn=F.cross_entropy)
    for name in names:
        reason = "not applicable: the features of block '5' do not vary, or are not finite, with Kaiming weights"
        assert str(card[name].error).startswith(reason)


@pytest.mark.parametrize("factor", [float("inf"), float("nan"), 1e30])
def test_features_that_leave_the_range_of_floats_are_told_in_words(factor: float) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) * factor * factor

    layers = [layer for _ in range(4) for layer in (nn.Linear(6, 6), Scaled())]
    batches = [(torch.randn(5, 6), torch.arange(5) % 3) for _ in range(2)]
    names = ["az_expressivity", "az_expressivity_mean", "az_progressivity", "az_trainability"]
    card = score(nn.Sequential(*layers, nn.Linear(6, 3)), batches, names, F.cross_entropy)
    for name in names:
        assert "are not finite, with Kaiming weights" in str(card[name].error)
        assert str(card[name].error).startswith("not applicable: the ")


def test_an_output_that_no_input_moves_correlates_with_nothing() -> None:
    network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    nn.init.zeros_(network[-1].weight)
    batches = [(torch.randn(5, 6), torch.arange(5) % 3) for _ in range(2)]
    error = score(network, batches, "jacob_cov", F.cross_entropy)["jacob_cov"].error
    assert str(error).startswith("not applicable: all entries of the output's gradient at an input are equal")


def test_blocks_of_tokens_are_differentiated_also_beside_a_mask_of_floating_point() -> None:
    batches = tokens_and_mask()
    network, proxy = Masked(), AZTrainability(tokens=True)
    masked = score(network, batches, proxies=proxy, loss_fn=F.cross_entropy)["az_trainability"]
    assert masked.value is not None
    plain = [({"ids": inputs["ids"]}, labels) for inputs, labels in batches]
    alone = score(network, plain, proxies=proxy, loss_fn=F.cross_entropy)["az_trainability"]
    assert masked.value == alone.value


def test_one_number_a_sample_is_an_output_too() -> None:
    torch.manual_seed(0)
    column = nn.Sequential(nn.Flatten(), nn.Linear(50, 8), nn.ReLU(), nn.Linear(8, 1))
    vector = nn.Sequential(*column, nn.Flatten(0))
    batches = [(images, torch.randn(len(images))) for images, _ in make_batches()]
    names = ["ntk_cond", "jacob_cov", "synflow"]
    expected = score(column, [(x, y.unsqueeze(1)) for x, y in batches], proxies=names, loss_fn=F.mse_loss)
    card = score(vector, batches, proxies=names, loss_fn=F.mse_loss)
    for name in names:
        assert card[name].value == expected[name].value is not None


def test_a_singular_tangent_kernel_has_no_condition_number() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(50, 8), nn.ReLU(), nn.Linear(8, 4))
    batches = make_batches()
    assert score(network, batches, proxies="ntk_cond", loss_fn=F.cross_entropy)["ntk_cond"].value is not None
    normed = nn.Sequential(*network, nn.BatchNorm1d(4))  # the sum of a batch's outputs is then constant
    twice = [tuple(torch.cat([tensor, tensor]) for tensor in batch) for batch in batches]
    for model, data in ((normed, batches), (network, twice)):
        error = score(model, data, proxies="ntk_cond", loss_fn=F.cross_entropy)["ntk_cond"].error
        assert error is not None
        assert error.startswith("not applicable: the tangent kernel is singular")
    for entry in (math.inf, math.nan):
        with pytest.raises(NonFiniteError, match="NaN or infinite"):
            ntk_cond_score(torch.full((9, 9), entry))


@pytest.mark.parametrize("name", ["naswot", "log_neurons", "swap", "near"])
def test_activations_are_seen_where_a_step_calls_no_submodule(name: str) -> None:
    assert score(Functional(), make_batches(num_samples=3), proxies=name)[name].value is not None


@pytest.mark.parametrize("name", ["jacob_cov", "ntk_cond", "synflow", "fisher", "macs_live"])
def test_what_a_step_without_submodules_does_not_show_is_not_applicable(name: str) -> None:
    assert (score(Functional(), make_batches(), proxies=name)[name].error or "").startswith("not applicable: ")


def test_layers_whose_weight_is_used_without_a_call_are_named() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRU(5, 5, batch_first=True), nn.Linear(50, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.cell(images.flatten(1, 2))[0].flatten(1))

    found = score(Recurrent(), make_batches(), proxies="macs_live", loss_fn=F.cross_entropy)["macs_live"]
    assert found.value == 150
    assert found.details["uncounted_layers"] == ["cell.weight_ih_l0", "cell.weight_hh_l0"]
    assert found.details["covered"] == 150 / (150 + 3 + 2 * 15 * 5 + 2 * 15)


def test_a_penalty_on_outputs_that_cannot_be_seen_is_no_number() -> None:
    module = nn.Sequential(nn.Flatten(), nn.RNN(50, 4), First(), nn.Linear(4, 3))
    card = score(module, make_batches(), proxies=["zico", "zico_bc"], loss_fn=F.cross_entropy)
    assert card["zico"].value is not None
    assert (card["zico_bc"].error or "").startswith("not applicable: the penalty needs the output shape of every layer")


class First(nn.Module):
    def forward(self, outputs: tuple[Tensor, Tensor]) -> Tensor:
        return outputs[0]


def test_logits_beside_a_loss_are_the_output() -> None:
    batches = [(torch.randn(6, 2, 6, 6), torch.randint(3, (6,)))]
    module = CallsForItsLoss()
    names = ["jacob_cov", "ntk_cond", "vkdnw"]
    card = score(module, batches, proxies=names)
    expected = score(module.network.network, batches, proxies=names, loss_fn=F.cross_entropy)
    assert [card[name].value for name in names] == [expected[name].value for name in names]
    assert None not in [card[name].value for name in names]


@pytest.mark.parametrize("name", ["synflow", "jacob_cov", "ntk_cond", "grasp"])
def test_a_checkpoint_that_hides_its_weights_is_no_number(name: str) -> None:
    hidden = score(Checkpointed(True), make_batches(), proxies=name, loss_fn=F.cross_entropy)[name]
    assert (hidden.error or "").startswith("not applicable: a checkpoint with `use_reentrant=True`")
    shown = score(Checkpointed(False), make_batches(), proxies=name, loss_fn=F.cross_entropy)[name]
    assert shown.error is None


def test_zen_counts_the_scales_alone_that_a_batch_normalisation_takes_away() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4))
    network.extend([nn.Flatten(), nn.Linear(16, 3)])
    network[1].eval()  # divides by its running variance
    found = score(network, make_batches(), proxies="zen", loss_fn=F.cross_entropy)["zen"]
    assert found.details["num_batch_norms"] == 1


class Branches(nn.Module):
    """Two branches with a norm each, the second of which sees zeros, or numbers beyond float32."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.live, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((self.other(self.factor * x) + self.live(x)).mean((2, 3)))


def test_zen_of_a_network_with_a_dead_branch_is_that_of_the_rest() -> None:
    dead, alone = Branches(0.0), Branches(0.0)
    alone.other = nn.Identity()
    found, expected = (
        score(net, make_batches(), proxies="zen", loss_fn=F.cross_entropy)["zen"] for net in (dead, alone)
    )
    assert found.value == pytest.approx(expected.value, rel=1e-6)
    assert found.details["num_batch_norms"] == 2
    assert expected.details["num_batch_norms"] == 1


def test_zen_takes_scales_whose_square_is_beyond_float32_and_no_features_that_are() -> None:
    one, far, beyond = (
        score(Branches(factor), make_batches(), proxies="zen", loss_fn=F.cross_entropy)["zen"]
        for factor in (1.0, 1e25, 1e39)
    )
    assert far.value == pytest.approx(one.value + math.log(1e25), abs=1e-2)
    assert str(beyond.error).startswith("not applicable: with Gaussian weights the features overflow float32")


def test_zen_of_a_network_through_which_nothing_flows_is_no_number() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Threshold(math.inf, 0.0), nn.BatchNorm2d(4), nn.ReLU())
    network.extend([nn.Flatten(), nn.LazyLinear(3)])
    network(make_batches()[0][0])
    found = score(network, make_batches(), proxies="zen", loss_fn=F.cross_entropy)["zen"]
    assert "does not depend on the input" in str(found.error)


class PreActivation(nn.Module):
    """A norm and an activation in place before the convolution, beside a shortcut."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.body = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace), nn.Conv2d(3, 3, 3, padding=1))
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = -self.stem(x)  # so that the activation changes something
        return self.head((x + self.body(x)).mean((2, 3)))


def test_synflow_is_the_same_with_activations_in_place_behind_a_norm_that_is_left_out() -> None:
    batches = [(torch.randn(4, 2, 6, 6), torch.randint(3, (4,)))]
    values = []
    for inplace in (False, True):
        torch.manual_seed(0)
        values.append(score(PreActivation(inplace), batches, ["synflow"], nn.CrossEntropyLoss())["synflow"].value)
    assert values[0] is not None
    assert values[0] == values[1]


def chain_of(num_layers: int) -> nn.Sequential:
    """Make a chain through each of whose layers `16 ** num_layers` flows."""
    network = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(num_layers)))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 16.0)
    return network


def synflow_of(network: nn.Module) -> Score:
    return score(network, [(torch.randn(4, 1), torch.randn(4, 1))], ["synflow"], F.mse_loss)["synflow"]


def test_synflow_is_exact_up_to_the_end_of_float64_and_says_where_it_leaves_it() -> None:
    # 255 layers of 2 ** 1020 each: the sum of them is beyond float64, its logarithm is not
    last = synflow_of(chain_of(255))
    assert last.value == pytest.approx(math.log(255) + 1020 * math.log(2), rel=1e-14)
    assert list(last.details["shares"].values()) == pytest.approx([1 / 255] * 255)
    beyond = synflow_of(chain_of(256))
    assert beyond.value is None
    assert (beyond.error or "").startswith("not applicable: the flow at '0.weight' is inf: ")


def test_synflow_of_a_broken_weight_is_a_failure_of_the_candidate() -> None:
    network = chain_of(3)
    nn.init.constant_(network[1].weight, float("inf"))
    assert synflow_of(network).error == (
        "NonFiniteError: Parameter '1.weight' has NaN or infinite entries: expected finite weights. Check how it is "
        "initialised."
    )


class WithClassToken(nn.Module):
    """Patches, to which a token is added between the first block and the second."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.patches = nn.Linear(5, 4)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x)], dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


def test_az_leaves_out_a_block_whose_positions_cannot_be_lined_up() -> None:
    batches = [(torch.randn(4, 6, 5), torch.randint(3, (4,)))]
    blocks = ["patches", "layers.0", "layers.1"]
    proxies = ["az_expressivity", AZTrainability(tokens=True)]
    card = score(Candidate("one", WithClassToken, blocks), batches, proxies, nn.CrossEntropyLoss())
    assert list(card["az_expressivity"].details["blocks"]) == blocks
    assert list(card["az_trainability"].details["blocks"]) == blocks[2:]


class Joined(nn.Module):
    """Writes the sum of two branches, and an activation, over the output of a block."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        channels = [2, 8, 8, 8, 8]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, 8, 3, padding=1), nn.BatchNorm2d(8)) for before in channels
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.blocks[0](x))
        x = F.relu(self.blocks[1](x))
        one, other = self.blocks[2](x), self.blocks[3](x)
        if self.in_place:
            one += other
            F.relu_(one)
        else:
            one = F.relu(one + other)
        return self.head(self.blocks[4](one).mean(dim=(2, 3)))


def test_az_differentiates_through_what_is_written_over_a_block() -> None:
    torch.manual_seed(0)
    networks = [Joined(in_place) for in_place in (True, False)]
    networks[1].load_state_dict(networks[0].state_dict())
    batches = [(torch.randn(8, 2, 5, 5), torch.randint(3, (8,)))]
    blocks = [f"blocks.{idx}" for idx in (0, 1, 2, 4)]
    offered = [Candidate("joined", Built(network), blocks) for network in networks]
    cards = [score(candidate, batches, "az", nn.CrossEntropyLoss()) for candidate in offered]
    assert cards[0]["az_expressivity"].value == cards[1]["az_expressivity"].value is not None
    more = replace(offered[0], blocks=[*blocks[:3], "blocks.3", blocks[3]])
    found = score(more, batches, "az_trainability", nn.CrossEntropyLoss())
    assert found["az_trainability"].error is None


@pytest.mark.parametrize("name", ["naswot", "swap", "log_neurons", "linear_regions"])
def test_one_number_a_sample_is_activated_too(name: str) -> None:
    class Gated(nn.Module):
        def __init__(self, squeezed: bool) -> None:
            super().__init__()
            self.squeezed = squeezed
            self.first, self.last = nn.Linear(50, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.last(F.relu(self.first(x.flatten(1))))
            return torch.sigmoid(logits.squeeze(1)) if self.squeezed else torch.sigmoid(logits).squeeze(1)

    torch.manual_seed(0)
    networks = [Gated(squeezed) for squeezed in (True, False)]
    networks[1].load_state_dict(networks[0].state_dict())
    batches = [(images, torch.rand(len(images))) for images, _ in make_batches(num_samples=3)]
    squeezed, column = (score(network, batches, name, F.mse_loss)[name] for network in networks)
    assert squeezed.value == column.value is not None


@pytest.mark.parametrize("name", ["naswot", "swap", "near", "meco_opt"])
def test_a_default_type_and_device_of_the_user_change_nothing(name: str) -> None:
    network, batches = cnn(), make_batches(num_samples=70)
    expected = score(network, batches, name, F.cross_entropy)[name].value
    for cached in (drawn_indices, swap._weights):
        cached.cache_clear()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert score(network, batches, name, F.cross_entropy)[name].value == expected is not None
    finally:
        torch.set_default_dtype(default)


def test_meco_of_maps_that_are_not_finite_says_so() -> None:
    for entry in (math.inf, math.nan):
        feature_map = torch.randn(3, 9)
        feature_map[1] = entry
        with pytest.raises(NonFiniteError, match="not finite"):
            least_eigenvalue(feature_map)


def test_meco_counts_the_map_of_an_identity_again_as_published() -> None:
    conv, head = nn.Conv2d(2, 3, 3), nn.Sequential(nn.Flatten(), nn.Linear(27, 3))
    networks = nn.Sequential(conv, head), nn.Sequential(conv, nn.Identity(), head)
    once, twice = (score(network, make_batches(), "meco", F.cross_entropy)["meco"].value for network in networks)
    assert twice == 2 * once != 0


class Hinged(Classifier):
    """Has activation functions in its loss, which see other rows than those of the network."""

    def __init__(self, in_loss: str) -> None:
        super().__init__()
        self.layers, self.in_loss = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 5)), in_loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, _ = batch
        rows = {"each": inputs.split(1), "all": (inputs,)}[self.in_loss.partition(" ")[0]]
        outputs = torch.cat([self.layers(part) for part in rows])
        distances = torch.cdist(outputs, outputs).flatten()
        losses = {
            "pairs": lambda: F.relu(3 - distances).mean(),
            "features": lambda: F.relu(1 - outputs.std(0)).mean(),
            "both": lambda: F.relu(3 - distances).mean() + F.softplus(outputs.std(0)).mean(),
            "layers": lambda: self.layers(F.relu(outputs[:5, :4])).mean(),
            "none": lambda: outputs.square().mean(),
        }
        return losses[self.in_loss.rpartition(" ")[2]]()


def hinged(in_loss: str) -> dict[str, Score]:
    torch.manual_seed(0)
    batches = [(torch.randn(8, 4), torch.zeros(8))]
    card = score(Hinged(in_loss), batches, ["naswot", "log_neurons", "swap"])
    return {name: card[name] for name in card}


@pytest.mark.parametrize("in_loss", ["pairs", "features", "both"])
def test_activations_with_other_rows_that_come_behind_the_network_are_none_of_it(in_loss: str) -> None:
    found, plain = hinged(f"all {in_loss}"), hinged("all none")
    assert {name: found[name].value for name in found} == {name: plain[name].value for name in plain}


@pytest.mark.parametrize(
    ("in_loss", "reason"),
    [("all layers", "activation functions see different numbers"), ("each pairs", "see at most 1 of the 8 samples")],
)
def test_activations_with_other_rows_within_the_network_are_not_passed_by(in_loss: str, reason: str) -> None:
    for found in hinged(in_loss).values():
        assert found.value is None
        assert reason in str(found.error)


class Towers(Classifier):
    """Networks side by side, of which some may be off on ones, behind a trunk or without one."""

    def __init__(self, signs: tuple[float, ...], has_trunk: bool = False) -> None:
        super().__init__()
        self.network = nn.Linear(4, 4) if has_trunk else nn.Identity()
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in signs)
        self.signs = signs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs = self.network(batch[0])
        outputs = [tower(sign * inputs) for tower, sign in zip(self.towers, self.signs, strict=True)]
        return torch.stack(outputs).prod(0).square().mean()


def flow_of(model: nn.Module) -> Score:
    return score(model, [(torch.randn(8, 4), torch.zeros(8))], ["synflow"])["synflow"]


def flow_by_hand(model: Towers) -> dict[str, float]:
    """Sum up, for each weight, all paths from ones to outputs."""
    weights = {name: p.detach().double().abs().requires_grad_() for name, p in model.named_parameters() if p.ndim > 1}
    biases = {name: p.detach().double().abs() for name, p in model.named_parameters() if p.ndim == 1}
    start = torch.ones(4, dtype=torch.float64)
    if "network.weight" in weights:
        start = weights["network.weight"] @ start + biases["network.bias"]
    total = start.new_zeros(())
    for idx, sign in enumerate(model.signs):
        tower = f"towers.{idx}"
        hidden = (weights[f"{tower}.0.weight"] @ (sign * start) + biases[f"{tower}.0.bias"]).relu()
        total = total + (weights[f"{tower}.2.weight"] @ hidden + biases[f"{tower}.2.bias"]).sum()
    gradients = torch.autograd.grad(total, list(weights.values()))
    return {name: float((w * g).detach().abs().sum()) for (name, w), g in zip(weights.items(), gradients, strict=True)}


@pytest.mark.parametrize("has_trunk", [False, True])
@pytest.mark.parametrize("signs", [(1.0,), (1.0, 1.0), (1.0, 1.0, 1.0), (1.0, -1.0), (-1.0, 1.0)])
def test_synflow_is_that_of_all_networks_of_a_step(signs: tuple[float, ...], has_trunk: bool) -> None:
    model = Towers(signs, has_trunk)
    found, by_hand = flow_of(model), flow_by_hand(model)
    assert found.value == pytest.approx(math.log(sum(by_hand.values())))
    shares = {name: flow / sum(by_hand.values()) for name, flow in by_hand.items()}
    assert found.details["shares"] == pytest.approx(shares)


def test_synflow_through_activations_that_are_off_on_ones_says_so() -> None:
    assert "an activation function is off" in str(flow_of(Towers((-10.0,))).error)


class Recurrent(Classifier):
    """Hands on the last state alone, and not the outputs beside it."""

    def __init__(self, calls_itself: bool) -> None:
        super().__init__()
        self.network = nn.LSTM(4, 5, batch_first=True)
        self.head, self.calls_itself = nn.Linear(5, 3), calls_itself

    def forward(self, inputs: Tensor) -> Tensor:
        _, (state, _) = self.network(inputs.unsqueeze(1).expand(-1, 3, -1))
        return self.head(state[-1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self(batch[0]) if self.calls_itself else self.forward(batch[0])).square().mean()


def test_synflow_is_the_same_whether_the_step_calls_the_network_or_its_parts() -> None:
    whole, parts = Recurrent(True), Recurrent(False)
    parts.load_state_dict(whole.state_dict())
    assert flow_of(parts).value == flow_of(whole).value
