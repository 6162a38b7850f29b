"""PlainNet: published networks and their costs, how networks are built and mutated, and how strings are read."""

import random
import re
from collections import Counter
from dataclasses import asdict, replace
from itertools import product

import optuna
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_zico.engine.size import count_macs, count_params
from lightning_zico.spaces import ArchSyntaxError, get_space
from lightning_zico.spaces.plainnet import START, PlainNet, PlainNetArch, PlainNetBlock, PlainNetSE

SPACES = (PlainNet(), PlainNetSE())
SPACE = SPACES[0]
FOUND_450M = (
    "SuperConvK3BNRELU(3,16,2,1)SuperResIDWE1K7(16,40,2,40,1)SuperResIDWE2K7(40,80,2,64,1)"
    "SuperResIDWE4K7(80,96,2,96,5)SuperResIDWE2K7(96,224,2,224,5)SuperConvK1BNRELU(224,2048,1,1)"
)

# String, layers, million parameters without and with squeeze-and-excitation, million MACs with it as the published
# code counts them; at 224 x 224 pixels and with 1000 classes. Found by ZiCo for 450, 600 and 1000 million MACs, found
# by the number of parameters for 450, and what the search begins with (SLDGroup/ZiCo).
PUBLISHED = [
    (FOUND_450M, 14, 5.7413, 7.5264, 441.6),
    (
        "SuperConvK3BNRELU(3,24,2,1)SuperResIDWE1K7(24,48,2,48,1)SuperResIDWE2K7(48,72,2,72,1)"
        "SuperResIDWE6K5(72,160,2,96,1)SuperResIDWE6K7(160,200,2,112,5)SuperResIDWE6K7(200,168,1,168,4)"
        "SuperConvK1BNRELU(168,2048,1,1)",
        *(14, 9.7031, 19.1944, 601.4),
    ),
    (
        "SuperConvK3BNRELU(3,48,2,1)SuperResIDWE1K7(48,48,2,72,1)SuperResIDWE1K7(48,80,2,128,1)"
        "SuperResIDWE2K7(80,160,2,144,3)SuperResIDWE4K7(160,288,2,232,4)SuperResIDWE6K5(288,232,1,208,5)"
        "SuperConvK1BNRELU(232,2048,1,1)",
        *(16, 15.3146, 28.7815, 994.6),
    ),
    (
        "SuperConvK3BNRELU(3,8,2,1)SuperResIDWE1K3(8,8,2,8,1)SuperResIDWE1K3(8,8,2,8,1)SuperResIDWE1K5(8,64,2,8,1)"
        "SuperResIDWE6K5(64,1024,2,48,1)SuperConvK1BNRELU(1024,2048,1,1)",
        *(6, 11.0221, 29.9565, 469.3),
    ),
    (
        "SuperConvK3BNRELU(3,8,2,1)SuperResIDWE6K3(8,32,2,8,1)SuperResIDWE6K3(32,48,2,32,1)"
        "SuperResIDWE6K3(48,96,2,48,1)SuperResIDWE6K3(96,128,2,96,1)SuperConvK1BNRELU(128,2048,1,1)",
        *(6, 2.8243, 3.5792, 164.5),
    ),
]
published = pytest.mark.parametrize(("text", "layers", "params", "params_se", "macs_se"), PUBLISHED)


@published
def test_layers_and_parameters_are_the_published_ones(text, layers, params, params_se, macs_se):
    arch = SPACE.parse(text)
    assert str(arch) == text
    assert SPACE.num_layers(arch) == layers
    counts = [space.params(arch, num_classes=1000) for space in SPACES]
    assert [round(count / 1e6, 4) for count in counts] == [params, params_se]


@published
def test_macs_are_the_published_ones_but_for_what_is_counted(text, layers, params, params_se, macs_se):
    macs = PlainNetSE().macs(SPACE.parse(text), num_classes=1000)
    assert round(counted(text, as_published=True) / 1e6, 1) == macs_se
    assert macs == counted(text, as_published=False)
    assert macs == pytest.approx(1e6 * macs_se, rel=0.03)


def counted(text, as_published):
    """Count the MACs with squeeze-and-excitation at 224 x 224 pixels, layer by layer off the string.

    The published code also counts one for each value that batch norm or excitation scales, and it counts the
    convolution on a shortcut of stride 2 at a quarter of the positions that it has.
    """
    side, total = 224, 2048 * 1000
    for kind, numbers in re.findall(r"Super(\w+)\(([\d,]+)\)", text):
        inputs, outputs, stride, *others = map(int, numbers.split(","))
        if kind.startswith("Conv"):
            side //= stride
            total += side**2 * outputs * (inputs * int(kind[5]) ** 2 + as_published)
            continue
        (bottleneck, repeats), expansion, kernel = others, int(kind[7]), int(kind[9])
        for repeat in range(repeats):
            for source, target, first in [(inputs, bottleneck, repeat == 0), (bottleneck, outputs, False)]:
                hidden, step = target * expansion, stride if first else 1
                total += side**2 * hidden * (source + as_published)
                side //= step
                total += side**2 * hidden * (kernel**2 + as_published)
                total += 2 * hidden * round(hidden / 4) + as_published * hidden * (1 + side**2)
                total += side**2 * target * (hidden + as_published)
                if first or source != target:
                    side_of_shortcut = side / step if as_published else side
                    total += side_of_shortcut**2 * target * (source + as_published)
            inputs = outputs
    return total


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
@pytest.mark.parametrize(
    "arch", [START, SPACE.parse(FOUND_450M), SPACE.sample(random.Random(0))], ids=["start", "found", "sampled"]
)
@pytest.mark.parametrize(
    ("resolution", "num_classes", "in_channels"), [(224, 1000, 3), (32, 10, 3), (33, 7, 1), (250, 2, 4)]
)
def test_costs_are_those_of_the_network(space, arch, resolution, num_classes, in_channels):
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    network = space.build(arch, **sizes)
    count = count_macs(network, lambda m, b, _: m(b).mean(), torch.randn(2, in_channels, resolution, resolution))
    assert space.params(arch, **sizes) == count_params(network)
    assert space.macs(arch, resolution, **sizes) == count.macs
    assert count.uncounted == ()


@pytest.mark.parametrize("resolution", [-32, 0, 31])
def test_images_that_cannot_be_halved_five_times_are_refused(resolution):
    with pytest.raises(ValueError, match=f"resolution={resolution}: expected at least 32"):
        SPACE.macs(START, resolution)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_the_network_learns_everywhere_on_the_smallest_images(space):
    network = space.build(START, num_classes=7, in_channels=1)
    logits = network(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 7)
    logits[:, 0].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_an_inverted_residual_block_is_three_convolutions_beside_a_shortcut():
    block = SPACE.build(START).get_submodule("blocks.2").eval()  # SuperResIDWE6K3(32,48,2,32,1), first half
    for norm in norms(block):
        torch.nn.init.uniform_(norm.running_mean)
    x = torch.randn(2, 32, 9, 9)
    widen, depthwise, narrow = [layer for layer in block.body if isinstance(layer, nn.Conv2d)]
    hidden = F.relu(normed(F.conv2d(x, widen.weight), norms(block)[0]))
    hidden = F.relu(normed(F.conv2d(hidden, depthwise.weight, stride=2, padding=1, groups=6 * 32), norms(block)[1]))
    shortcut = F.conv2d(x, block.shortcut[0].weight, block.shortcut[0].bias, stride=2)
    expected = normed(F.conv2d(hidden, narrow.weight), norms(block)[2]) + normed(shortcut, norms(block)[3])
    torch.testing.assert_close(block(x), F.relu(expected))
    assert expected.shape == (2, 32, 5, 5)


def norms(module):
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def normed(x, norm):
    return (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-3) ** 0.5


def test_excitation_is_a_gate_for_each_channel():
    block = PlainNetSE().build(START).get_submodule("blocks.2")
    excitation = block.body[6]
    x = torch.randn(4, 192, 3, 3)
    means = x.mean((2, 3))
    squeeze, excite = [layer.weight[:, :, 0, 0] for layer in excitation.gate if isinstance(layer, nn.Conv2d)]
    assert squeeze.shape == (48, 192)
    squeezed = F.relu(over_the_batch(means @ squeeze.T))
    gate = over_the_batch(squeezed @ excite.T).sigmoid()
    torch.testing.assert_close(excitation(x), x * gate[:, :, None, None])
    kinds = [type(layer).__name__ for layer in block.body]
    assert kinds == [*["Conv2d", "BatchNorm2d", "ReLU"] * 2, "SqueezeExcitation", "Conv2d", "BatchNorm2d"]


def over_the_batch(x):
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-3) ** 0.5


def test_shortcuts_are_identities_where_widths_agree_but_in_the_first_half():
    def kernels_of_shortcuts(outputs, bottleneck):
        block = replace(START.blocks[0], outputs=outputs, bottleneck=bottleneck, repeats=2)
        network = SPACE.build(replace(START, stem=16, blocks=(block, *START.blocks[1:])))
        return [sum(1 for _ in network.get_submodule(f"blocks.{idx}").shortcut) for idx in range(4)]

    assert kernels_of_shortcuts(outputs=16, bottleneck=16) == [2, 0, 0, 0]  # convolution and norm
    assert kernels_of_shortcuts(outputs=24, bottleneck=16) == [2, 2, 2, 2]


def test_only_the_first_half_of_a_block_has_its_stride():
    network = SPACE.build(SPACE.parse(FOUND_450M))
    strides = [
        layer.stride[0]
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels
    ]
    assert strides == [*[2, 1], *[2, 1], *[2, *[1] * 9], *[2, *[1] * 9]]


def test_batch_norm_is_as_published_and_nothing_is_done_in_place():
    modules = list(PlainNetSE().build(START).modules())
    assert {module.eps for module in modules if isinstance(module, nn.BatchNorm2d)} == {1e-3}
    assert not any(getattr(module, "inplace", False) for module in modules)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_blocks_are_all_that_ends_in_an_activation(space):
    arch = SPACE.parse(FOUND_450M)
    network, names, ran = space.build(arch), space.blocks(arch), []
    for name in names:
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    network(torch.randn(2, 3, 32, 32))
    assert tuple(ran) == names == ("stem", *(f"blocks.{idx}" for idx in range(24)), "last")


def test_mutation_draws_all_the_published_changes_and_no_others():
    changes = [mutated_at(START, SPACE.mutate(START, random.Random(seed))) for seed in range(5000)]
    drawn = [block for idx, block in changes if idx == 2]  # SuperResIDWE6K3(48,96,2,48,1)
    assert {block.kind for block in drawn} == {f"SuperResIDWE{e}K{k}" for e, k in product((1, 2, 4, 6), (3, 5, 7))}
    # times and over 2.5, 2, 1.5, 1.25 and 1: of 96 these are 240, 192, 144, 120, 96, 76.8, 64, 48, 38.4
    assert {block.outputs for block in drawn} == {240, 192, 144, 120, 96, 80, 64, 48, 40}
    # of 48 these are 120, 96, 72, 60, 48, 38.4, 32, 24, 19.2
    assert {block.bottleneck for block in drawn} == {120, 96, 72, 64, 48, 40, 32, 24, 16}
    assert {block.repeats for block in drawn} == {1, 2, 3}
    assert {block.stride for block in drawn} == {2}
    assert {stem for idx, stem in changes if idx is None} == {16}  # 20 and 12 are rounded to even tens of 8
    # half of the changes of the stem are none, so that it has half as many as a block: 1 in 9, and each block 2 in 9
    counts = Counter(idx for idx, _ in changes)
    assert all(
        abs(counts[idx] - 5000 * share) < 4 * 29.4 for idx, share in [(None, 1 / 9), *[(i, 2 / 9) for i in range(4)]]
    )


def mutated_at(arch, mutant):
    """Find what differs, the stem (None) or a block, where none was split."""
    changed = [idx for idx, (old, new) in enumerate(zip(arch.blocks, mutant.blocks, strict=True)) if old != new]
    if mutant.stem != arch.stem:
        assert not changed
        return None, mutant.stem
    (idx,) = changed
    return idx, mutant.blocks[idx]


def test_a_block_of_many_repeats_is_split_in_two():
    arch = SPACE.parse(FOUND_450M)
    mutants = [SPACE.mutate(arch, random.Random(seed)) for seed in range(300)]
    split = [mutant for mutant in mutants if len(mutant.blocks) > len(arch.blocks)]
    assert {len(mutant.blocks) for mutant in split} == {5}
    for mutant in split:
        idx = next(idx for idx, block in enumerate(mutant.blocks) if block.stride == 1)
        first, second = mutant.blocks[idx - 1 : idx + 1]
        assert second == replace(first, stride=1)
        assert first.repeats == 3
        assert (*mutant.blocks[: idx - 1], *mutant.blocks[idx + 1 :]) == (*arch.blocks[: idx - 1], *arch.blocks[idx:])
    whole = [mutated_at(arch, mutant) for mutant in mutants if mutant not in split]
    assert {block.repeats for idx, block in whole if idx in (2, 3)} == {3, 4, 5}
    # of the changes two in five are of the blocks with five repeats, and two in five of these lead to six or seven
    assert len(split) == pytest.approx(0.4 * 0.4 * 300, abs=4 * 6.4)


def test_mutation_stays_inside_at_the_ends_of_the_space():
    block = PlainNetBlock(kernel=7, expansion=6, outputs=2040, stride=2, bottleneck=2040, repeats=5)
    largest = PlainNetArch(2040, (*[block] * 4, *[replace(block, stride=1)] * 10))
    mutants = [SPACE.mutate(largest, random.Random(seed)) for seed in range(1000)]
    assert largest not in mutants
    assert {len(mutant.blocks) for mutant in mutants} == {14}
    # over 1, 1.25, 1.5, 2 and 2.5
    assert {mutant.stem for mutant in mutants} == {2040, 1632, 1360, 1024, 816}


def test_samples_are_one_to_ten_mutations_from_the_start():
    class Counting(PlainNet):
        calls = 0

        def mutate(self, arch, rng):
            assert self.calls or arch == START
            self.calls += 1
            return super().mutate(arch, rng)

    counts = Counter()
    for seed in range(2000):
        space = Counting()
        space.sample(random.Random(seed))
        counts[space.calls] += 1
    assert sorted(counts) == list(range(1, 11))
    assert all(abs(count - 200) < 4 * 13.4 for count in counts.values())


def test_a_neighbour_differs_by_one_step():
    arch = SPACE.parse(FOUND_450M)
    neighbours = list(SPACE.neighbours(arch))
    assert len(set(neighbours)) == len(neighbours)
    steps = Counter()
    for neighbour in neighbours:
        pairs = zip(values(arch), values(neighbour), strict=True)
        ((name, old, new),) = [(name, old, new) for (name, old), (_, new) in pairs if old != new]
        steps[name, new - old if name not in ("kernel", "expansion") else 0] += 1
    assert steps == {
        **{("stem", change): 1 for change in (-8, 8)},
        **{(name, change): 4 for name in ("outputs", "bottleneck") for change in (-8, 8)},
        **{("repeats", 1): 2, ("repeats", -1): 2},  # the blocks have 1, 1, 5 and 5
        **{("kernel", 0): 8, ("expansion", 0): 12},
    }


def values(arch):
    return [("stem", arch.stem), *(pair for block in arch.blocks for pair in asdict(block).items())]


def test_the_size_counts_all_places_of_the_strides():
    places = [sum(1 for strides in product((1, 2), repeat=num - 1) if strides.count(2) == 3) for num in range(4, 15)]
    of_a_block = 3 * 4 * 255 * 255 * 5
    assert SPACE.size == 255 * sum(places * of_a_block**num for places, num in zip(places, range(4, 15), strict=True))


STEM = "SuperConvK3BNRELU(3,8,2,1)"
FOUR = STEM + "SuperResIDWE6K3(8,8,2,8,1)" * 4


@pytest.mark.parametrize(
    ("text", "rest", "needed"),
    [
        ("", "", "'SuperConvK3BNRELU(3,'"),
        ("SuperConvK3BNRELU(", "1,8,2,1)", "'SuperConvK3BNRELU(3,'"),
        ("SuperConvK3BNRELU(3,", "07,2,1)", "a multiple of 8 from 8 to 2040, then ','"),
        ("SuperConvK3BNRELU(3,17", ",2,1)", "a multiple of 8 from 8 to 2040, then ','"),
        ("SuperConvK3BNRELU(3,204", "8,2,1)", "a multiple of 8 from 8 to 2040, then ','"),
        ("SuperConvK3BNRELU(3,8", "", "a multiple of 8 from 8 to 2040, then ','"),
        ("SuperConvK3BNRELU(3,", "-8,2,1)", "a multiple of 8 from 8 to 2040, then ','"),
        ("SuperConvK3BNRELU(3,", "\u0668,2,1)", "a multiple of 8 from 8 to 2040, then ','"),  # an Arabic 8
        ("SuperConvK3BNRELU(3,8,2,", "2)", "'2,1)'"),
        (STEM, "", "'SuperResIDWE1K3('"),
        (STEM + "Super", "ConvK1BNRELU(8,2048,1,1)", "'SuperResIDWE1K3('"),  # four blocks come before it
        (STEM + "SuperResIDWE", "3K3(8,8,2,8,1)", "'SuperResIDWE1K3('"),
        (STEM + "SuperResIDWE1K", "9(8,8,2,8,1)", "'SuperResIDWE1K3(' or 'SuperResIDWE1K5(' or 'SuperResIDWE1K7('"),
        (STEM + "SuperResIDWE1K3(", "16,8,2,8,1)", "'8,'"),  # not what the stem gives
        (STEM + "SuperResIDWE1K3(8,8,", "1,8,1)", "2, then ','"),  # the first halves the image
        (STEM + "SuperResIDWE1K3(8,8,2,8,", "0)", "a number from 1 to 5, then ')'"),
        (STEM + "SuperResIDWE1K3(8,8,2,8,", "6)", "a number from 1 to 5, then ')'"),
        (STEM + "SuperResIDWE1K3(8,8,2,8,1", "0)", "a number from 1 to 5, then ')'"),
        (FOUR + "SuperResIDWE1K3(8,8,", "2,8,1)", "1, then ','"),  # the image is as small as it may be
        (FOUR + "SuperResIDWE6K3(8,8,1,8,1)" * 10 + "Super", "ResIDWE6K3(8,8,1,8,1)", "'SuperConvK1BNRELU('"),
        (
            STEM + "SuperResIDWE6K3(8,8,2,8,1)" + "SuperResIDWE6K3(8,8,1,8,1)" * 10 + "SuperResIDWE6K3(8,8,",
            *("1,8,1)", "2, then ','"),  # three blocks are left, and three halvings
        ),
        (FOUR + "SuperConvK1BNRELU(", "16,2048,1,1)", "'8,'"),
        (FOUR + "SuperConvK1BNRELU(8,", "1024,1,1)", "'2048,1,1)'"),
        (FOUR + "SuperConvK1BNRELU(8,2048,1,1)", ";", "the end"),
    ],
)
def test_the_error_points_to_the_first_character_that_no_arch_has(text, rest, needed):
    with pytest.raises(ArchSyntaxError) as caught:
        SPACE.parse(text + rest)
    assert caught.value.position == len(text)
    assert caught.value.needed.startswith(needed)


@pytest.mark.parametrize("field", ["kernel", "expansion", "outputs", "stride", "bottleneck", "repeats"])
@pytest.mark.parametrize("wrong", [0, -8, 9, 2048])
def test_a_block_of_other_numbers_is_refused(field, wrong):
    with pytest.raises(ValueError, match=f"Invalid {field}={wrong}: expected "):
        replace(START.blocks[0], **{field: wrong})


@pytest.mark.parametrize("strides", [(), (2, 2, 2), (1, 2, 2, 2, 2), (2,) * 5, (2, 2, 2, 2, *[1] * 11), (2, 1, 1, 1)])
def test_blocks_of_other_strides_are_refused(strides):
    blocks = [replace(START.blocks[0], stride=stride) for stride in strides]
    with pytest.raises(
        ValueError, match=rf"`blocks` have the strides {re.escape(str(list(strides)))}: expected 4 to 14"
    ):
        PlainNetArch(8, blocks)


@pytest.mark.parametrize("stem", [0, 4, 12, 2048])
def test_another_stem_is_refused(stem):
    with pytest.raises(ValueError, match=f"Invalid stem={stem}: expected a multiple of 8 from 8 to 2040"):
        replace(START, stem=stem)


def test_an_arch_can_be_made_of_a_list():
    assert len({PlainNetArch(START.stem, list(START.blocks)), START}) == 1


def test_a_trial_can_choose_every_published_arch():
    for text, *_ in PUBLISHED:
        arch = SPACE.parse(text)
        chosen = {"num_blocks": len(arch.blocks), **width_choice("stem", arch.stem)}
        for idx, block in enumerate(arch.blocks):
            for field, value in asdict(block).items():
                name = f"block_{idx}_{field}"
                chosen |= width_choice(name, value) if field in ("outputs", "bottleneck") else {name: value}
        assert SPACE.suggest(optuna.trial.FixedTrial(chosen)) == arch


def width_choice(name, width):
    start = 2 ** (width.bit_length() - 1)
    return {f"{name}_from": start, f"{name}_from_{start}": width}


def test_a_trial_can_choose_every_width():
    for width in range(8, 2048, 8):
        trial = Overriding(width_choice("block_0_outputs", width))
        assert SPACE.suggest(trial).blocks[0].outputs == width
        assert trial.chosen.items() <= trial.asked.items()


class Overriding:
    """A trial that takes the first of all values, or what it is told."""

    def __init__(self, chosen):
        self.chosen = chosen
        self.asked = {}

    def suggest_categorical(self, name, choices):
        self.asked[name] = self.chosen.get(name, choices[0])
        assert self.asked[name] in choices
        return self.asked[name]

    def suggest_int(self, name, low, high, *, step=1):
        return self.suggest_categorical(name, range(low, high + 1, step))


def test_trials_choose_archs_of_all_depths():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    archs = []
    for _ in range(60):
        trial = study.ask()
        archs.append(SPACE.suggest(trial))
        study.tell(trial, 0.0)
    assert {len(arch.blocks) for arch in archs} == set(range(4, 15))
    assert all(SPACE.parse(str(arch)) == arch for arch in archs)


def test_both_spaces_are_found_by_name():
    assert [type(get_space(name)) for name in ("plainnet", "plainnet_se")] == [PlainNet, PlainNetSE]
    assert [get_space(name).name for name in ("plainnet", "plainnet_se")] == ["plainnet", "plainnet_se"]


@pytest.mark.parametrize("repeats", [1.0, "1"])
def test_what_would_not_be_printed_as_a_whole_number_is_refused(repeats):
    with pytest.raises(TypeError):
        PlainNetBlock(kernel=3, expansion=6, outputs=32, stride=2, bottleneck=8, repeats=repeats)
