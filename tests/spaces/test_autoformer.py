"""AutoFormer: published networks and their costs, what the networks do, and how strings are read."""

import random
import re
from collections import Counter
from dataclasses import replace
from math import isqrt

import optuna
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from lightning_zico.engine.size import count_macs, count_params
from lightning_zico.spaces import ArchSyntaxError, get_space
from lightning_zico.spaces.autoformer import (
    MLP,
    Attention,
    AutoFormerArch,
    AutoFormerBase,
    AutoFormerLayer,
    AutoFormerSmall,
    AutoFormerTiny,
    Distances,
    VisionTransformer,
)

TINY, SMALL, BASE = SPACES = (AutoFormerTiny(), AutoFormerSmall(), AutoFormerBase())
SMALLEST = TINY.parse("autoformer-tiny-192-12" + "-3x3.5" * 12)
of_each_scale = pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)


def arch_of(scale, width, heads, ratios):
    return AutoFormerArch(
        scale, width, tuple(map(AutoFormerLayer, map(int, heads.split()), map(float, ratios.split())))
    )


# What the published search found (microsoft/Cream, AutoFormer-S.yaml and AutoFormer-B.yaml), with its million
# parameters and 1000 million MACs (Chen et al., arXiv:2107.00651, table 2).
FOUND = [
    (arch_of("small", 384, "6 6 5 7 5 5 5 6 6 7 7 6 7", "3 3.5 3 3.5 4 4 4 4 4 4 4 3.5 4"), 22.9, 5.1),
    (arch_of("base", 576, "9 9 9 9 9 10 9 9 10 9 10 9 9 10", "3.5 3.5 4 3.5 4 3.5 3.5 3 4 4 3 4 3 3.5"), 53.7, 11.0),
]

# What the published code printed for archs that it drew, with 10 classes (log of Intel's DE-NAS, which runs it).
LOGGED = [
    ("9 10 9 10 9 9 10 10 9 10 10 10 9 10 10", "3.5 3 3.5 4 3.5 3.5 3.5 3.5 3.5 4 3 4 3 3.5 3", 64_340_602),
    ("10 9 9 9 9 9 10 9 9 10 10 9 10 10 9", "3 4 3 3 4 3.5 4 4 4 3 4 3.5 3.5 3 4", 65_029_858),
    ("9 9 9 10 10 9 9 9 9 9 9 10 10 9 9", "4 3 4 4 4 3.5 3.5 3 4 3.5 3.5 4 3 3.5 3", 64_709_986),
]


@pytest.mark.parametrize(("heads", "ratios", "params"), LOGGED)
def test_parameters_are_those_the_published_code_counts(heads, ratios, params):
    assert BASE.params(arch_of("base", 624, heads, ratios)) == params


@pytest.mark.parametrize(("arch", "million_params", "billion_macs"), FOUND, ids=["small", "base"])
def test_costs_are_the_published_ones(arch, million_params, billion_macs):
    space = get_space(f"autoformer_{arch.scale}")
    assert round(space.params(arch, num_classes=1000) / 1e6, 1) == million_params
    # the published count does not multiply all pairs of tokens by their distance
    assert space.macs(arch, num_classes=1000) / 1e9 == pytest.approx(billion_macs, rel=0.07)


@of_each_scale
@pytest.mark.parametrize(
    ("resolution", "num_classes", "in_channels"), [(224, 1000, 3), (32, 10, 3), (16, 7, 1), (240, 2, 4)]
)
def test_costs_are_those_of_the_network(space, resolution, num_classes, in_channels):
    arch, sizes = space.sample(random.Random(num_classes)), {"num_classes": num_classes, "in_channels": in_channels}
    with torch.device("meta"):
        network = space.build(arch, **sizes)
        images = torch.randn(2, in_channels, resolution, resolution)
    count = count_macs(network, lambda m, b, _: m(b).mean(), images)
    assert space.params(arch, **sizes) == count_params(network)
    assert space.macs(arch, resolution, **sizes) == count.macs
    assert count.uncounted == ()


@pytest.mark.parametrize("resolution", [-16, 0, 8, 33])
def test_images_that_cannot_be_cut_into_patches_are_refused(resolution):
    with pytest.raises(ValueError, match=f"resolution={resolution}: expected a multiple of 16"):
        TINY.macs(SMALLEST, resolution)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (40, 40), (8, 8)])
def test_the_network_refuses_images_that_cannot_be_cut_into_a_square_of_patches(height, width):
    with pytest.raises(
        ValueError, match=f"images are {height} x {width}: expected squares whose side is a multiple of 16"
    ):
        TINY.build(SMALLEST)(torch.randn(1, 3, height, width))


def test_the_network_learns_everywhere():
    network = TINY.build(SMALLEST, num_classes=7, in_channels=1)
    logits = network(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(parameter.grad.any() for parameter in network.parameters() if parameter.ndim > 1)


def test_samples_do_not_see_each_other():
    network, images = TINY.build(SMALLEST), torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))


@pytest.mark.parametrize("side", [1, 3])
def test_attention_adds_distances_to_keys_and_values(side):
    attention = Attention(width=8, heads=2)
    x = torch.randn(2, 1 + side**2, 8)
    torch.testing.assert_close(attention(x), torch.stack([attended(attention, tokens) for tokens in x]))


def attended(attention, tokens):
    """Attend token by token and head by head."""
    projected = attention.qkv(F.layer_norm(tokens, (8,)))
    queries, keys, values = projected.reshape(len(tokens), 3, 2, 64).unbind(1)  # [T, heads, 64]
    rows = []
    for asking in range(len(tokens)):
        heads = []
        for head in range(2):
            pairs = [(asking, asked) for asked in range(len(tokens))]
            near = [embedded(attention.distance_keys, isqrt(len(tokens) - 1), *pair) for pair in pairs]
            scores = torch.stack([queries[asking, head] @ (keys[b, head] + near[b]) / 8 for _, b in pairs])
            near = [embedded(attention.distance_values, isqrt(len(tokens) - 1), *pair) for pair in pairs]
            weights = scores.softmax(0)
            heads.append(sum(weights[b] * (values[b, head] + near[b]) for _, b in pairs))
        rows.append(tokens[asking] + attention.projection(torch.cat(heads)))
    return torch.stack(rows)


def embedded(distances, side, asking, asked):
    """Look a distance up: 0 is the class token's, 15 is none, and 1 and 29 are the farthest."""
    if 0 in (asking, asked):
        return distances.vertical.weight[0] + distances.horizontal.weight[0]
    (row, column), (other_row, other_column) = divmod(asking - 1, side), divmod(asked - 1, side)
    down, right = (max(-14, min(14, far)) for far in (other_row - row, other_column - column))
    return distances.vertical.weight[15 + down] + distances.horizontal.weight[15 + right]


def test_far_distances_are_all_the_same():
    distances, rng = Distances(), random.Random(0)
    table = distances(17)
    pairs = [(rng.randrange(290), rng.randrange(290)) for _ in range(300)] + [(0, 0), (0, 5), (1, 289), (289, 1)]
    for asking, asked in pairs:
        assert torch.equal(table[asking, asked], embedded(distances, 17, asking, asked))


def test_a_perceptron_has_one_hidden_layer():
    mlp, x = MLP(width=8, hidden=28), torch.randn(2, 5, 8)
    _, widen, _, narrow = mlp.body
    assert widen.out_features == 28
    torch.testing.assert_close(mlp(x), x + narrow(F.gelu(widen(F.layer_norm(x, (8,))))))


def test_the_mean_over_the_patches_is_classified():
    network = TINY.build(SMALLEST)
    network.layers = nn.Identity()
    images = torch.randn(2, 3, 224, 224)
    patches = images.unflatten(3, (14, 16)).unflatten(2, (14, 16)).permute(0, 2, 4, 1, 3, 5).flatten(3)
    tokens = patches.flatten(1, 2) @ network.patches.weight.flatten(1).T + network.patches.bias
    normed = F.layer_norm(tokens + network.positions[:, 1:], (192,))
    torch.testing.assert_close(network(images), network.head(normed.mean(1)), rtol=1e-4, atol=1e-5)


def test_the_class_token_is_seen_by_the_patches():
    network, images = TINY.build(SMALLEST), torch.randn(2, 3, 32, 32)
    before = network(images)
    nn.init.normal_(network.class_token)
    assert not torch.allclose(network(images), before)


@pytest.mark.parametrize("resolution", [32, 224, 256])
def test_positions_are_stretched_over_the_image(resolution):
    network, seen = TINY.build(SMALLEST), []
    nn.init.zeros_(network.patches.weight)
    nn.init.zeros_(network.patches.bias)
    side = resolution // 16
    with torch.no_grad():  # the middles of the rows and of the columns, in parts of the image
        middles = (torch.arange(14) + 0.5) / 14
        network.positions[0, 1:, 0] = middles.repeat_interleave(14)
        network.positions[0, 1:, 1] = middles.repeat(14)
    network.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.randn(1, 3, resolution, resolution))
    ((tokens,),) = seen
    assert torch.equal(tokens[0], (network.class_token + network.positions[:, :1])[0, 0])
    expected = (torch.arange(side) + 0.5) / side
    # cubic interpolation repeats the outermost row, which it cannot look beyond: half a patch
    torch.testing.assert_close(tokens[1:, 0], expected.repeat_interleave(side), rtol=0, atol=0.5 / 14)
    torch.testing.assert_close(tokens[1:, 1], expected.repeat(side), rtol=0, atol=0.5 / 14)


def test_weights_are_drawn_as_published():
    network = TINY.build(SMALLEST, num_classes=1000)
    layer = network.layers[3]
    drawn = [network.positions, network.head.weight, layer.attention.qkv.weight, layer.attention.projection.weight]
    drawn += [layer.mlp.body[1].weight, layer.attention.distance_keys.vertical.weight]
    # the fewest are 1920: 3 % is two standard deviations of theirs
    assert [tensor.std().item() for tensor in drawn] == pytest.approx([0.02] * 6, rel=0.05)
    assert network.class_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert not any(module.bias.any() for module in network.modules() if isinstance(module, nn.Linear))
    # as torch draws those of a convolution by default: uniform, up to one over the root of what comes in
    assert network.patches.weight.abs().max().item() == pytest.approx((3 * 16 * 16) ** -0.5, rel=1e-3)


@of_each_scale
def test_blocks_are_the_attention_and_the_perceptron_of_each_layer(space):
    arch, ran = space.sample(random.Random(0)), []
    with torch.device("meta"):
        network, images = space.build(arch), torch.randn(2, 3, 32, 32)
    names = space.blocks(arch)
    for name in names:
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    network(images)
    assert tuple(ran) == names
    assert [type(network.get_submodule(name)) for name in names] == [Attention, MLP] * len(arch.layers)


def test_nothing_is_done_in_place():
    assert not any(getattr(module, "inplace", False) for module in TINY.build(SMALLEST).modules())


def test_sizes_are_sums_over_the_depths():
    assert TINY.size == 3 * (4**12 + 4**13 + 4**14)
    assert SMALL.size == 3 * (9**12 + 9**13 + 9**14)
    assert BASE.size == 3 * (6**14 + 6**15 + 6**16)


def test_samples_choose_each_value_alike():
    rng = random.Random(0)
    archs = [SMALL.sample(rng) for _ in range(3000)]
    for values in (
        [arch.width for arch in archs],
        [len(arch.layers) for arch in archs],
        [arch.layers[0].heads for arch in archs],
        [arch.layers[11].mlp_ratio for arch in archs],
    ):
        counts = Counter(values)
        assert len(counts) == 3
        assert all(abs(count - 1000) < 4 * 26 for count in counts.values())


def test_a_neighbour_differs_in_one_choice():
    arch = TINY.parse("autoformer-tiny-216-13" + "-3x3.5" * 12 + "-4x4.0")
    kinds = Counter(what_differs(arch, other) for other in TINY.neighbours(arch))
    assert kinds == {"width": 2, "heads": 13, "ratio": 13, "a layer less": 1, "a layer more": 4}
    deepest, shallowest = replace(arch, layers=(*arch.layers, arch.layers[0])), replace(arch, layers=arch.layers[:12])
    assert "a layer more" not in {what_differs(deepest, other) for other in TINY.neighbours(deepest)}
    assert "a layer less" not in {what_differs(shallowest, other) for other in TINY.neighbours(shallowest)}


def what_differs(arch, other):
    if other.width != arch.width:
        assert other.layers == arch.layers
        return "width"
    if len(other.layers) != len(arch.layers):
        fewer, more = sorted([arch.layers, other.layers], key=len)
        assert more[:-1] == fewer
        return "a layer less" if other.layers == fewer else "a layer more"
    ((old, new),) = [pair for pair in zip(arch.layers, other.layers, strict=True) if pair[0] != pair[1]]
    assert old.heads == new.heads or old.mlp_ratio == new.mlp_ratio
    return "ratio" if old.heads == new.heads else "heads"


def test_a_trial_can_choose_what_was_found():
    for arch, _, _ in FOUND:
        chosen = {"width": arch.width, "depth": len(arch.layers)}
        for idx, layer in enumerate(arch.layers):
            chosen |= {f"layer_{idx}_heads": layer.heads, f"layer_{idx}_mlp_ratio": layer.mlp_ratio}
        assert get_space(f"autoformer_{arch.scale}").suggest(optuna.trial.FixedTrial(chosen)) == arch


@given(
    st.sampled_from([192, 216, 240]),
    st.lists(st.sampled_from(["-3x3.5", "-3x4.0", "-4x3.5", "-4x4.0"]), min_size=12, max_size=14),
    st.integers(0, 200),
    st.text("-x.1234059 ", max_size=4),
    st.booleans(),
)
def test_the_error_points_to_the_first_character_that_no_arch_has(width, layers, start, inserted, cut):
    text = "".join([f"autoformer-tiny-{width}-{len(layers)}", *layers])
    start %= len(text)
    # the lengths of archs differ by multiples of 6, so that neither of these is another arch
    changed = text[:start] + inserted + ("" if cut or not inserted else text[start:])
    assume(changed != text)
    with pytest.raises(ArchSyntaxError) as caught:
        TINY.parse(changed)
    prefixes = [changed[:length] for length in range(len(changed) + 1)]
    assert caught.value.position == max(len(prefix) for prefix in prefixes if begins_an_arch(prefix))


def begins_an_arch(text):
    pattern = "|".join(
        rf"autoformer-tiny-(192|216|240)-{depth}(-[34]x(3\.5|4\.0)){{{depth}}}" for depth in (12, 13, 14)
    )
    # whatever of an arch is missing at the end stands at the end of one of these
    archs = (
        f"autoformer-tiny-{width}-{depth}{layer * depth}"
        for width in (192, 216, 240)
        for depth in (12, 13, 14)
        for layer in ("-3x3.5", "-4x4.0")
    )
    return any(re.fullmatch(pattern, text + arch[idx:]) for arch in archs for idx in range(len(arch) + 1))


def test_the_error_shows_what_is_needed():
    with pytest.raises(ArchSyntaxError, match=r"position 11 .*expected 'autoformer-base-', found 't'"):
        BASE.parse(str(SMALLEST))
    with pytest.raises(ArchSyntaxError, match=r"expected '14' or '15' or '16', found '3'"):
        BASE.parse("autoformer-base-528-13")
    with pytest.raises(ArchSyntaxError, match=r"expected '-9x3.0' or '-9x3.5' or '-9x4.0' or '-10x3.0' .*found '8'"):
        BASE.parse("autoformer-base-528-14-8x3.0")
    with pytest.raises(ArchSyntaxError, match=r"position 88 .*expected '-3x3.5' or .*, found the end"):
        TINY.parse(str(SMALLEST)[:-6])
    with pytest.raises(ArchSyntaxError, match=r"position 94 .*expected the end, found '-'"):
        TINY.parse(f"{SMALLEST}-3x3.5")


def test_an_arch_outside_the_space_is_refused():
    layer = AutoFormerLayer(3, 3.5)
    with pytest.raises(ValueError, match="Invalid scale='huge': expected tiny or small or base"):
        AutoFormerArch("huge", 192, (layer,) * 12)
    with pytest.raises(ValueError, match=r"Invalid width=200: expected 192 or 216 or 240 \(tiny\)"):
        AutoFormerArch("tiny", 200, (layer,) * 12)
    for depth in (0, 11, 15):
        with pytest.raises(ValueError, match=rf"`layers` has {depth} layers: expected 12 or 13 or 14 \(tiny\)"):
            AutoFormerArch("tiny", 192, (layer,) * depth)
    for wrong in (AutoFormerLayer(5, 3.5), AutoFormerLayer(3, 3.0)):
        with pytest.raises(ValueError, match=f"`layers` has {wrong}: expected 3 or 4 heads and a ratio of 3.5 or 4.0"):
            AutoFormerArch("tiny", 192, (*[layer] * 11, wrong))


def test_an_arch_can_be_made_of_a_list_and_of_whole_ratios():
    made = AutoFormerArch("tiny", 192, [AutoFormerLayer(3, 4)] * 12)
    assert len({made, TINY.parse(str(made))}) == 1


def test_networks_can_be_built_of_other_layers():
    # the published result of the tiny space has ratios of 3.0, which that space has not
    network = VisionTransformer(192, [AutoFormerLayer(3, 3.0)] * 2, num_classes=10, in_channels=3)
    assert network.layers[1].mlp.body[1].out_features == 576


@of_each_scale
def test_spaces_are_found_by_name(space):
    assert type(get_space(f"autoformer_{space.scale}")) is type(space)
    assert space.name == f"autoformer_{space.scale}"
