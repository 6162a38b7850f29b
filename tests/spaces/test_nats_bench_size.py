"""The size space of NATS-Bench: published costs, and how its networks are built."""

import random
from collections import Counter
from functools import cache
from itertools import product

import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_zico.engine.size import count_macs, count_params
from lightning_zico.spaces import ArchSyntaxError, NASBench201, get_space
from lightning_zico.spaces.nats_bench_size import WIDTHS, NATSBenchSize, NATSBenchSizeArch
from tests.data import data_rows

SPACE = NATSBenchSize()
CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"

# Counted on the published networks (D-X-Y/AutoDL-Projects), for 10 classes and images of 32 x 32.
PUBLISHED = [
    ("64:64:64:64:64", 713_674, 274_399_872),
    ("8:8:8:8:8", 11_714, 4_481_104),
    ("8:64:32:16:56", 222_914, 37_941_808),
    ("48:40:64:24:8", 325_530, 158_519_376),
]

widths = st.tuples(*[st.sampled_from(WIDTHS)] * 5)


@pytest.mark.parametrize(("text", "params", "macs"), PUBLISHED)
def test_costs_are_the_published_ones(text, params, macs):
    arch = SPACE.parse(text)
    assert SPACE.params(arch) == params
    assert SPACE.macs(arch) == macs


@pytest.mark.parametrize("text", [*(text for text, *_ in PUBLISHED), "16:16:24:8:8", "8:16:16:24:24"])
@pytest.mark.parametrize(("resolution", "num_classes", "in_channels"), [(32, 10, 3), (16, 120, 3), (8, 2, 1)])
def test_costs_are_those_of_the_network(text, resolution, num_classes, in_channels):
    arch, sizes = SPACE.parse(text), {"num_classes": num_classes, "in_channels": in_channels}
    network = SPACE.build(arch, **sizes)
    count = count_macs(network, lambda m, b, _: m(b).mean(), torch.randn(2, in_channels, resolution, resolution))
    assert SPACE.params(arch, **sizes) == count_params(network)
    assert SPACE.macs(arch, resolution, **sizes) == count.macs


@pytest.mark.parametrize("resolution", [0, -4, 2, 30, 33])
def test_images_that_cannot_be_halved_twice_are_refused(resolution):
    with pytest.raises(ValueError, match=f"resolution={resolution}: .*multiple of 4"):
        SPACE.macs(SPACE.parse("8:8:8:8:8"), resolution)


def test_the_whole_space_is_the_product_of_the_widths():
    assert len({SPACE.parse(text) for text in strings()}) == SPACE.size == 32_768
    assert get_space("nats_bench_size").size == SPACE.size


@given(widths)
def test_an_arch_is_its_string(widths):
    arch = NATSBenchSizeArch(widths)
    assert str(arch) == ":".join(map(str, widths))
    assert SPACE.parse(str(arch)) == arch


def test_the_cell_is_the_best_of_the_topology_space():
    best = max(data_rows("nas_bench_201.csv.gz"), key=lambda row: float(row["test_cifar100"]))
    assert best["arch"] == CELL


def test_a_cell_of_one_width_is_that_of_the_topology_space():
    ours = SPACE.build(SPACE.parse("16:16:16:16:16")).get_submodule("blocks.0")
    theirs = NASBench201().build(NASBench201().parse(CELL)).get_submodule("blocks.0")
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(ours(x), theirs(x))


def test_edges_from_the_input_change_the_width():
    cell = SPACE.build(SPACE.parse("8:16:24:8:40")).get_submodule("blocks.2").eval()
    x = torch.randn(2, 16, 8, 8)
    conv_01, conv_02, conv_12, skip_03, conv_13, conv_23 = cell.edges
    first = conv_01(x)
    second = conv_02(x) + conv_12(first)
    torch.testing.assert_close(cell(x), skip_03(x) + conv_13(first) + conv_23(second))
    assert [type(part) for part in conv_01] == [nn.ReLU, nn.Conv2d, nn.BatchNorm2d]
    # no ReLU before the skip, as published
    assert [type(part) for part in skip_03] == [nn.Conv2d, nn.BatchNorm2d]
    assert (skip_03[0].weight.shape, skip_03[0].bias) == ((24, 16, 1, 1), None)


def test_a_skip_that_keeps_the_width_is_the_identity():
    cell = SPACE.build(SPACE.parse("8:16:16:16:16")).get_submodule("blocks.2")
    assert isinstance(cell.edges[3], nn.Identity)


def test_the_image_is_halved_at_the_second_and_the_fourth_layer():
    arch = SPACE.parse("8:64:32:16:56")
    network, shapes = SPACE.build(arch), []
    for name in SPACE.blocks(arch):
        block = network.get_submodule(name)
        block.register_forward_hook(lambda module, _, out: shapes.append((type(module).__name__, *out.shape[1:])))
    network(torch.randn(2, 3, 32, 32))
    assert shapes == [
        ("Cell", 8, 32, 32),
        ("Reduction", 64, 16, 16),
        ("Cell", 32, 16, 16),
        ("Reduction", 16, 8, 8),
        ("Cell", 56, 8, 8),
    ]


def test_nothing_is_done_in_place():
    assert not any(getattr(module, "inplace", False) for module in SPACE.build(SPACE.parse("8:16:8:16:8")).modules())


@given(widths)
def test_every_neighbour_differs_in_one_width(widths):
    arch = NATSBenchSizeArch(widths)
    neighbours = set(SPACE.neighbours(arch))
    assert len(neighbours) == 35
    assert {sum(a != b for a, b in zip(arch.widths, other.widths, strict=True)) for other in neighbours} == {1}


def test_samples_are_uniform():
    rng = random.Random(0)
    counts = Counter(width for _ in range(5000) for width in SPACE.sample(rng).widths)
    # 25,000 draws of an eighth each: standard deviation 52
    assert all(abs(counts[width] - 3125) < 4 * 52 for width in WIDTHS)


def test_optuna_chooses_each_width():
    chosen = {"width_0": 64, "width_1": 8, "width_2": 16, "width_3": 56, "width_4": 24}
    trial = optuna.trial.FixedTrial(chosen)
    assert str(SPACE.suggest(trial)) == "64:8:16:56:24"
    assert trial.params == chosen
    assert {(d.low, d.high, d.step) for d in trial.distributions.values()} == {(8, 64, 8)}


@given(widths, st.integers(0, 20), st.text("0123456789:x", max_size=3), st.booleans())
def test_the_error_points_to_the_first_character_that_no_arch_has(widths, start, inserted, cut):
    text = str(NATSBenchSizeArch(widths))
    start %= len(text) + 1
    changed = text[:start] + inserted + ("" if cut else text[start:])
    if changed in strings():
        assert str(SPACE.parse(changed)) == changed
        return
    with pytest.raises(ArchSyntaxError) as caught:
        SPACE.parse(changed)
    assert caught.value.position == max(n for n in range(len(changed) + 1) if changed[:n] in beginnings())


@cache
def strings():
    return {":".join(map(str, widths)) for widths in product(range(8, 65, 8), repeat=5)}


@cache
def beginnings():
    return {text[:n] for text in strings() for n in range(len(text) + 1)}


def test_the_error_shows_what_is_needed():
    with pytest.raises(ArchSyntaxError, match=r"position 1 .*expected ':', found '4'"):
        SPACE.parse("84:8:8:8:8")
    with pytest.raises(ArchSyntaxError, match=r"position 1 .*expected '16', found '2'"):
        SPACE.parse("128:8:8:8:8")
    with pytest.raises(ArchSyntaxError, match="expected the end, found ':'"):
        SPACE.parse("8:8:8:8:8:8")
    with pytest.raises(ValueError, match=r"position 7 .*found the end"):
        SPACE.parse("8:8:8:8")


@pytest.mark.parametrize("widths", [(), (8,) * 4, (8,) * 6, (8, 8, 8, 8, 12), (8, 8, 8, 8, 72), (8, 8, 0, 8, 8)])
def test_an_arch_of_other_widths_is_refused(widths):
    with pytest.raises(ValueError, match="expected 5 of 8, 16, 24"):
        NATSBenchSizeArch(widths)


@pytest.mark.parametrize("width", [8.0, "8"])
def test_a_width_that_is_no_whole_number_is_refused(width):
    with pytest.raises(TypeError):
        NATSBenchSizeArch((width, 8, 8, 8, 8))


def test_an_arch_can_be_made_of_a_list():
    assert NATSBenchSizeArch([8] * 5) == SPACE.parse("8:8:8:8:8")
    assert len({NATSBenchSizeArch([8] * 5), SPACE.parse("8:8:8:8:8")}) == 1
