"""NAS-Bench-201: its table, and what its operations do."""

import random
import re
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_zico.engine.size import count_macs, count_params
from lightning_zico.errors import DuplicateNameError, UnknownNameError
from lightning_zico.spaces import ArchSyntaxError, NASBench201, NASBench201Arch, base, get_space, list_spaces
from lightning_zico.spaces.nas_bench_201 import OPS
from tests.data import data_rows

SPACE = NASBench201()


def same(op):
    return SPACE.parse(f"|{op}~0|+|{op}~0|{op}~1|+|{op}~0|{op}~1|{op}~2|")


def test_the_table_is_the_space_with_its_costs():
    rows = data_rows("nas_bench_201.csv.gz")
    archs = {SPACE.parse(row["arch"]) for row in rows}
    assert len(rows) == len(archs) == SPACE.size == 15_625
    for row in rows:
        arch = SPACE.parse(row["arch"])
        assert str(arch) == row["arch"]
        assert SPACE.params(arch) == round(1e6 * float(row["params_millions"]))
        assert SPACE.macs(arch) == round(1e6 * float(row["macs_millions"]))


@pytest.mark.parametrize("op", OPS)
def test_costs_are_the_published_closed_form(op):
    n1, n3 = 6 * (op == "nor_conv_1x1"), 6 * (op == "nor_conv_3x3")
    assert SPACE.params(same(op)) == 73_306 + 28_000 * n1 + 243_040 * n3
    assert SPACE.macs(same(op)) == 7_783_040 + 3_932_160 * n1 + 35_389_440 * n3


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("resolution", "num_classes", "in_channels"), [(16, 120, 3), (32, 100, 3), (8, 2, 1)])
def test_costs_are_those_of_the_network_of_each_operation(op, resolution, num_classes, in_channels):
    arch, sizes = same(op), {"num_classes": num_classes, "in_channels": in_channels}
    network = SPACE.build(arch, **sizes)
    count = count_macs(network, lambda m, b, _: m(b).mean(), torch.randn(3, in_channels, resolution, resolution))
    assert SPACE.params(arch, **sizes) == count_params(network)
    assert SPACE.macs(arch, resolution, **sizes) == count.macs


@pytest.mark.parametrize("resolution", [0, -4, 2, 30, 33])
def test_images_that_cannot_be_halved_twice_are_refused(resolution):
    with pytest.raises(ValueError, match=f"resolution={resolution}: .*multiple of 4"):
        SPACE.macs(same("none"), resolution)


def test_a_node_sums_its_edges():
    arch = SPACE.parse("|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|")
    cell = SPACE.build(arch).get_submodule("blocks.6").eval()
    x = torch.randn(2, 32, 8, 8)
    conv_01, conv_02, _, _, pool_13, conv_23 = cell.edges
    first = conv_01(x)
    second = conv_02(x) + first
    torch.testing.assert_close(cell(x), pool_13(first) + conv_23(second))
    assert [type(part) for part in conv_01] == [nn.ReLU, nn.Conv2d, nn.BatchNorm2d]
    assert (conv_02[1].kernel_size, conv_23[1].kernel_size) == ((1, 1), (3, 3))


def test_identities_add_up():
    # node 1 is x, node 2 is x + x, node 3 is x + x + 2 x
    cell = SPACE.build(same("skip_connect")).get_submodule("blocks.0")
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(cell(x), 4 * x)


def test_pooling_does_not_count_the_padding():
    cell = SPACE.build(same("avg_pool_3x3")).get_submodule("blocks.0")
    torch.testing.assert_close(cell(torch.ones(1, 16, 5, 5)), torch.full((1, 16, 5, 5), 4.0))


def test_nothing_passes_where_no_operation_is():
    network = SPACE.build(same("none"))
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    network(images)[:, 0].sum().backward()
    # as in the published network: zero, which autograd can ask for, and not None
    assert not images.grad.any()
    assert all(parameter.grad is not None for parameter in network.parameters())
    stem = network.get_submodule("stem")
    assert not stem[0].weight.grad.any()


def test_the_residual_block_is_two_convolutions_beside_a_pooled_projection():
    block = SPACE.build(same("none")).get_submodule("blocks.5")
    x = torch.randn(2, 16, 8, 8)
    first, second = block.body
    pooled = x.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    torch.testing.assert_close(block(x), second(first(x)) + block.shortcut[1](pooled))
    assert (first[1].stride, second[1].stride) == ((2, 2), (1, 1))


def test_blocks_are_fifteen_cells_and_two_residual_blocks():
    network = SPACE.build(same("none"))
    kinds = [type(network.get_submodule(name)).__name__ for name in SPACE.blocks(same("none"))]
    assert kinds == [*["Cell"] * 5, "Reduction", *["Cell"] * 5, "Reduction", *["Cell"] * 5]


def test_nothing_is_done_in_place():
    assert not any(getattr(module, "inplace", False) for module in SPACE.build(same("nor_conv_3x3")).modules())
    norms = [m for m in SPACE.build(same("nor_conv_3x3")).modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.affine and norm.track_running_stats for norm in norms)


def test_every_neighbour_differs_on_one_edge():
    arch = same("none")
    neighbours = list(SPACE.neighbours(arch))
    assert len(neighbours) == 24
    assert {sum(a != b for a, b in zip(arch.ops, other.ops, strict=True)) for other in neighbours} == {1}


def test_samples_are_uniform():
    rng = random.Random(0)
    counts = Counter(op for _ in range(5000) for op in SPACE.sample(rng).ops)
    # 30,000 draws of a fifth each: standard deviation 69
    assert all(abs(counts[op] - 6000) < 4 * 69 for op in OPS)


def test_the_whole_space_can_be_drawn():
    assert len({candidate.name for candidate in SPACE.candidates(SPACE.size)}) == SPACE.size


@given(
    st.tuples(*[st.sampled_from(OPS)] * 6),
    st.integers(0, 200),
    st.text("|+~0123_nxcorvslip", max_size=4),
    st.booleans(),
)
def test_the_error_points_to_the_first_character_that_no_arch_has(ops, start, inserted, cut):
    text = str(NASBench201Arch(ops))
    start %= len(text)
    # the lengths of archs differ by multiples of 8, so that neither of these is another arch
    changed = text[:start] + inserted + ("" if cut or not inserted else text[start:])
    with pytest.raises(ArchSyntaxError) as caught:
        SPACE.parse(changed)
    prefixes = [changed[:length] for length in range(len(changed) + 1)]
    assert caught.value.position == max(len(prefix) for prefix in prefixes if begins_an_arch(prefix))


def begins_an_arch(text):
    op = f"({'|'.join(OPS)})"
    pattern = rf"\|{op}~0\|\+\|{op}~0\|{op}~1\|\+\|{op}~0\|{op}~1\|{op}~2\|"
    # whatever of an arch is missing at the end stands at the end of one of these
    tails = (tail[idx:] for op in OPS for tail in [str(same(op))] for idx in range(len(tail) + 1))
    return any(re.fullmatch(pattern, text + tail) for tail in tails)


def test_the_error_shows_what_is_needed():
    with pytest.raises(ArchSyntaxError, match=r"position 1 .*'none' or 'skip_connect' or 'nor_conv_1x1'.* found '~'"):
        SPACE.parse("|~0|")
    with pytest.raises(ValueError, match=r"position 7 .*expected '\|\+\|', found the end"):
        SPACE.parse("|none~0")
    with pytest.raises(ArchSyntaxError, match="expected the end, found 'x'"):
        SPACE.parse(f"{same('none')}x")
    with pytest.raises(ArchSyntaxError) as caught:
        SPACE.parse("x" * 10_000)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("ops", [(), ("none",) * 5, ("none",) * 7, ("none",) * 5 + ("max_pool_3x3",)])
def test_an_arch_of_other_operations_is_refused(ops):
    with pytest.raises(ValueError, match="expected 6 of none, skip_connect"):
        NASBench201Arch(ops)


def test_an_arch_can_be_made_of_a_list():
    assert NASBench201Arch(["none"] * 6) == same("none")
    assert len({NASBench201Arch(["none"] * 6), same("none")}) == 1


@pytest.mark.usefixtures("_own_registries")
def test_spaces_are_found_by_name():
    assert isinstance(get_space("nas_bench_201"), NASBench201)
    with pytest.raises(UnknownNameError, match=r"no space named 'nasbench201'\. Did you mean 'nas_bench_201'"):
        get_space("nasbench201")
    with pytest.raises(DuplicateNameError):
        base.register_space("nas_bench_201")(NASBench201)

    @base.register_space("own")
    class Own(NASBench201):
        pass

    assert get_space("own").name == "own"
    assert "own" in list_spaces()
    assert NASBench201.name == "nas_bench_201"
