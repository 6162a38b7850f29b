"""DARTS and NAS-Bench-301: costs counted elsewhere, what the cells do, and how strings are read."""

import math
import random
import re
from collections import Counter

import optuna
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from lightning_zico import score
from lightning_zico.engine.size import count_macs, count_params
from lightning_zico.ranking import get_recipe
from lightning_zico.spaces import DARTS, ArchSyntaxError, DARTSArch, DARTSCell, DARTSImageNet, NASBench301, get_space
from lightning_zico.spaces.darts import OPS, Cell, CellPlan, FactorisedReduction, build_op
from tests.data import data_rows

BENCHMARK, CIFAR, IMAGENET = SPACES = (NASBench301(), DARTS(), DARTSImageNet())
of_each_size = pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)


def same(normal, reduce=None):
    return "/".join("+".join([f"|{op}~0|{op}~1|"] * 4) for op in (normal, reduce or normal))


# What the first- and the second-order search found.
FIRST = (
    "|sep_conv_3x3~0|sep_conv_3x3~1|+|skip_connect~0|sep_conv_3x3~1|"
    "+|skip_connect~0|sep_conv_3x3~1|+|sep_conv_3x3~0|skip_connect~2|"
    "/|max_pool_3x3~0|max_pool_3x3~1|+|max_pool_3x3~0|skip_connect~2|"
    "+|max_pool_3x3~0|skip_connect~2|+|avg_pool_3x3~0|skip_connect~2|"
)
SECOND = (
    "|sep_conv_3x3~0|sep_conv_3x3~1|+|sep_conv_3x3~0|sep_conv_3x3~1|"
    "+|skip_connect~0|sep_conv_3x3~1|+|skip_connect~0|dil_conv_3x3~2|"
    "/|max_pool_3x3~0|max_pool_3x3~1|+|max_pool_3x3~1|skip_connect~2|"
    "+|max_pool_3x3~0|skip_connect~2|+|max_pool_3x3~1|skip_connect~2|"
)

# Arch, parameters of NAS-Bench-301 and of DARTS, MACs of NAS-Bench-301 at 32 x 32, parameters as NASLib builds it: of
# an independent builder, compared with DARTS' own.
COUNTED = [
    (FIRST, 871_786, 3_169_414, 152_441_856, 862_826),
    (SECOND, 919_722, 3_349_342, 159_765_504, 909_866),
    (same("max_pool_3x3"), 392_426, 1_370_134, 79_205_376, 392_426),
    (same("skip_connect"), 559_338, 1_580_950, 95_982_592, 556_266),
    (same("sep_conv_5x5"), 1_684_714, 5_144_086, 269_128_704, 1_664_234),
    (same("dil_conv_3x3", "dil_conv_5x5"), 981_226, 3_063_574, 159_486_976, 970_986),
]


@st.composite
def archs(draw):
    def cell():
        nodes = []
        for number in range(2, 6):
            pairs = [(first, second) for first in range(number) for second in range(first + 1, number)]
            sources = draw(st.sampled_from(pairs))
            nodes.append(tuple((draw(st.sampled_from(OPS)), source) for source in sources))
        return DARTSCell(nodes)

    return DARTSArch(cell(), cell())


@pytest.mark.parametrize(("text", "small", "large", "macs", "naslib"), COUNTED, ids=lambda value: str(value)[:20])
def test_costs_are_those_counted_elsewhere(text, small, large, macs, naslib):
    arch = BENCHMARK.parse(text)
    assert str(arch) == text
    assert BENCHMARK.params(arch) == small
    assert BENCHMARK.macs(arch) == macs
    assert CIFAR.params(arch) == large
    assert params_of_naslib(arch) == naslib


def params_of_naslib(arch):
    """Count as NASLib builds it: without weights of the batch norms in the operations."""
    network = BENCHMARK.build(arch)
    norms = [m for cell in network.cells for m in cell.nodes.modules() if isinstance(m, nn.BatchNorm2d)]
    return count_params(network) - sum(2 * norm.num_features for norm in norms)


def test_the_published_sizes_are_those_of_the_found_cells():
    assert round(CIFAR.params(CIFAR.parse(SECOND)) / 1e6, 1) == 3.3  # Liu et al., table 1
    assert round(IMAGENET.params(IMAGENET.parse(SECOND), num_classes=1000) / 1e6, 1) == 4.7  # table 3


def test_the_table_is_of_this_space():
    rows = data_rows("nas_bench_301_150.csv.gz")
    assert len({row["arch"] for row in rows}) == 150
    counted = [(675_818, 2_113_606, 118_010_880), (695_018, 2_258_326, 122_229_760), (997_610, 3_146_518, 165_254_144)]
    for row, (small, large, macs) in zip(rows, counted, strict=False):
        arch = BENCHMARK.parse(row["arch"])
        assert (BENCHMARK.params(arch), CIFAR.params(arch), BENCHMARK.macs(arch)) == (small, large, macs)
    known = [row for row in rows if row["params_millions_naslib"]]
    for row in known[:10]:
        assert params_of_naslib(BENCHMARK.parse(row["arch"])) / 1e6 == pytest.approx(
            float(row["params_millions_naslib"]), abs=5e-6
        )
    assert all(str(BENCHMARK.parse(row["arch"])) == row["arch"] for row in rows)


@pytest.mark.parametrize(
    ("space", "resolution", "num_classes", "in_channels"),
    [
        (BENCHMARK, 32, 10, 3),
        (BENCHMARK, 12, 2, 1),
        (CIFAR, 32, 100, 3),
        (IMAGENET, 224, 1000, 3),
        (IMAGENET, 32, 7, 4),
    ],
    ids=lambda value: getattr(value, "name", None),
)
@pytest.mark.parametrize("seed", [0, 1])
def test_costs_are_those_of_the_network(space, resolution, num_classes, in_channels, seed):
    arch, sizes = space.sample(random.Random(seed)), {"num_classes": num_classes, "in_channels": in_channels}
    with torch.device("meta"):
        network, images = space.build(arch, **sizes), torch.randn(2, in_channels, resolution, resolution)
    count = count_macs(network, lambda m, b, _: m(b).mean(), images)
    assert space.params(arch, **sizes) == count_params(network)
    assert space.macs(arch, resolution, **sizes) == count.macs
    assert count.uncounted == ()


@of_each_size
def test_there_are_as_many_archs_as_published(space):
    assert space.size == 1_037_664_180**2
    assert f"{space.size:.2e}" == "1.08e+18"


@pytest.mark.parametrize(
    ("space", "resolution", "divisor"), [(BENCHMARK, 30, 4), (CIFAR, 2, 4), (IMAGENET, 48, 32), (IMAGENET, 0, 32)]
)
def test_images_that_cannot_be_halved_are_refused(space, resolution, divisor):
    with pytest.raises(ValueError, match=f"resolution={resolution}: expected a multiple of {divisor}"):
        space.macs(space.parse(FIRST), resolution)
    network = space.build(space.parse(FIRST))
    with pytest.raises(ValueError, match=f"images are {resolution} x 64: expected multiples of {divisor}"):
        network(torch.zeros(1, 3, resolution, 64))


def test_a_node_sums_two_operations_and_the_cell_concatenates_the_nodes():
    text = (
        "|sep_conv_3x3~0|skip_connect~1|+|avg_pool_3x3~0|dil_conv_5x5~2|"
        "+|max_pool_3x3~1|sep_conv_5x5~3|+|skip_connect~2|dil_conv_3x3~4|"
    )
    arch = BENCHMARK.parse(f"{text}/{text}")
    for reduces in (False, True):
        cell = Cell(arch.normal, CellPlan(older=6, newer=4, width=4, reduces=reduces, is_halved=False, halvings=0))
        cell.eval()
        older, newer = torch.randn(2, 6, 8, 8), torch.randn(2, 4, 8, 8)
        states = [cell.older(older), cell.newer(newer)]
        states.append(cell.nodes[0][0](states[0]) + cell.nodes[0][1](states[1]))
        states.append(cell.nodes[1][0](states[0]) + cell.nodes[1][1](states[2]))
        states.append(cell.nodes[2][0](states[1]) + cell.nodes[2][1](states[3]))
        states.append(cell.nodes[3][0](states[2]) + cell.nodes[3][1](states[4]))
        torch.testing.assert_close(cell(older, newer), torch.cat(states[2:], dim=1))
        side = 4 if reduces else 8
        assert cell(older, newer).shape == (2, 16, side, side)


def test_only_what_comes_from_outside_is_strided_in_a_reduction_cell():
    network = BENCHMARK.build(BENCHMARK.parse(same("sep_conv_3x3", "sep_conv_5x5")))
    found = {
        idx: {module.stride[0] for module in cell.nodes.modules() if isinstance(module, nn.Conv2d)}
        for idx, cell in enumerate(network.cells)
    }
    assert [idx for idx, strides in found.items() if 2 in strides] == [2, 5]
    for ops in network.cells[2].nodes:
        for op in ops:  # only the first depthwise convolution
            assert [m.stride[0] for m in op if isinstance(m, nn.Conv2d)] == [2, 1, 1, 1]
    reduced = [idx for idx, cell in enumerate(network.cells) if isinstance(cell.older, FactorisedReduction)]
    assert reduced == [3, 6]
    assert {type(cell.newer) for cell in network.cells} == {nn.Sequential}


@pytest.mark.parametrize(
    ("space", "reductions", "widths"),
    [(BENCHMARK, [2, 5], (32, 64, 128)), (CIFAR, [6, 13], (36, 72, 144)), (IMAGENET, [4, 9], (48, 96, 192))],
    ids=lambda value: getattr(value, "name", None),
)
def test_cells_get_the_image_at_the_published_size_and_width(space, reductions, widths):
    seen = []
    with torch.device("meta"):
        network = space.build(space.parse(SECOND))
        for cell in network.cells:
            cell.register_forward_hook(lambda _, inputs, output: seen.append((inputs[1].shape, output.shape)))
        network(torch.randn(2, 3, 64, 64))
    assert [idx for idx, (before, after) in enumerate(seen) if before[-1] != after[-1]] == reductions
    stages = [sum(idx >= start for start in reductions) for idx in range(space.num_cells)]
    assert [after[1] for _, after in seen] == [4 * widths[stage] for stage in stages]
    first = 64 // (8 if space.for_imagenet else 1)
    assert [after[-1] for _, after in seen] == [first // 2**stage for stage in stages]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("is_strided", [False, True])
def test_an_operation_keeps_the_image_or_halves_it(op, is_strided):
    side = 4 if is_strided else 8
    assert build_op(op, 6, is_strided=is_strided)(torch.randn(2, 6, 8, 8)).shape == (2, 6, side, side)


def test_operations_are_those_published():
    x = torch.randn(2, 4, 6, 6)
    for kernel in (3, 5):
        conv, point, norm = list(build_op(f"dil_conv_{kernel}x{kernel}", 4, is_strided=False).eval())[1:]
        assert (conv.dilation, conv.groups, conv.bias, point.bias) == ((2, 2), 4, None, None)
        own = nn.Sequential(nn.ReLU(), conv, point, norm)
        expected = point(F.conv2d(x.relu(), conv.weight, padding=kernel - 1, dilation=2, groups=4))
        torch.testing.assert_close(own(x), norm(expected))
        parts = list(build_op(f"sep_conv_{kernel}x{kernel}", 4, is_strided=False))
        assert [type(part) for part in parts] == [nn.ReLU, nn.Conv2d, nn.Conv2d, nn.BatchNorm2d] * 2
        assert {part.kernel_size[0] for part in parts if isinstance(part, nn.Conv2d)} == {kernel, 1}
    ones = torch.ones(1, 4, 6, 6)
    assert torch.equal(build_op("avg_pool_3x3", 4, is_strided=False)(ones), ones)  # padding is not counted
    assert torch.equal(build_op("skip_connect", 4, is_strided=False)(x), x)
    assert torch.equal(build_op("max_pool_3x3", 4, is_strided=True)(x), F.max_pool2d(x, 3, 2, 1))


def test_the_factorised_reduction_looks_at_even_and_at_odd_pixels():
    reduction, x = FactorisedReduction(3, 4).eval(), torch.randn(2, 3, 8, 6)
    even = torch.einsum("nchw,oc->nohw", x.relu()[:, :, ::2, ::2], reduction.even.weight[:, :, 0, 0])
    odd = torch.einsum("nchw,oc->nohw", x.relu()[:, :, 1::2, 1::2], reduction.odd.weight[:, :, 0, 0])
    torch.testing.assert_close(reduction(x), reduction.norm(torch.cat([even, odd], dim=1)))


def test_stems_are_those_published():
    small, large = (space.build(space.parse(FIRST)) for space in (BENCHMARK, IMAGENET))
    assert [type(part) for part in small.stem[0]] == [nn.Conv2d, nn.BatchNorm2d]
    x = torch.randn(2, 3, 32, 32)
    assert small.stem[1](x) is x  # both inputs of the first cell are one
    convs = [module for module in large.stem.modules() if isinstance(module, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels, conv.stride[0]) for conv in convs] == [
        (3, 24, 2),
        (24, 48, 2),
        (48, 48, 2),
    ]
    assert large.stem[0](x).shape == (2, 48, 8, 8)
    assert large.stem[1](large.stem[0](x)).shape == (2, 48, 4, 4)
    assert isinstance(large.cells[0].older, FactorisedReduction)


def test_zico_and_the_default_recipe_give_numbers():
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(10, (4,))) for _ in range(2)]
    members = get_recipe("default").members
    card = score(
        BENCHMARK.build(BENCHMARK.parse(SECOND)), batches, proxies=["zico", *members], loss_fn=nn.CrossEntropyLoss()
    )
    found = {name: card[name].error or card[name].value for name in ("zico", *members)}
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values()), found


@given(archs())
def test_an_arch_is_its_string(arch):
    assert BENCHMARK.parse(str(arch)) == arch
    assert str(BENCHMARK.parse(str(arch))) == str(arch)
    assert 392_426 <= BENCHMARK.params(arch) <= 1_684_714


@given(archs(), st.data())
def test_the_order_of_the_two_sources_does_not_matter(arch, data):
    def shuffled(cell):
        return DARTSCell([data.draw(st.permutations(node)) for node in cell.nodes])

    assert DARTSArch(shuffled(arch.normal), shuffled(arch.reduce)) == arch


@given(archs())
def test_parameters_are_those_of_the_published_sum(arch):
    def params(op, width, is_strided):
        kernel = int(op[-1]) if "conv" in op else 0
        if op.startswith("sep"):
            return 2 * (kernel**2 * width + width**2 + 2 * width)
        if op.startswith("dil"):
            return kernel**2 * width + width**2 + 2 * width
        return width**2 + 2 * width if op == "skip_connect" and is_strided else 0

    total = 392_426
    for width in (32, 64, 128):
        total += 2 * sum(params(op, width, False) for node in arch.normal.nodes for op, _ in node)
    for width in (64, 128):
        total += sum(params(op, width, source < 2) for node in arch.reduce.nodes for op, source in node)
    assert BENCHMARK.params(arch) == total


CELL = r"\|O~0\|O~1\|\+\|O~(0\|O~[12]|1\|O~2)\|\+\|O~(0\|O~[123]|1\|O~[23]|2\|O~3)\|" + (
    r"\+\|O~(0\|O~[1234]|1\|O~[234]|2\|O~[34]|3\|O~4)\|"
)
PATTERN = re.compile(f"{CELL}/{CELL}".replace("O", f"({'|'.join(OPS)})"))


@given(archs(), st.integers(0, 280), st.text("|+/~_x01234567 sepconvdil", max_size=4))
def test_the_error_points_to_the_first_character_that_no_arch_has(arch, start, inserted):
    changed = str(arch)[:start] + inserted
    assume(not PATTERN.fullmatch(changed))
    with pytest.raises(ArchSyntaxError) as caught:
        BENCHMARK.parse(changed)
    position = caught.value.position
    assert is_beginning(changed[:position])
    assert position == len(changed) or not is_beginning(changed[: position + 1])


def is_beginning(text):
    """Whether text can be completed: by the rest of an operation, and by pools on the highest sources."""
    cell = "+".join(f"|max_pool_3x3~{number - 2}|max_pool_3x3~{number - 1}|" for number in range(2, 6))
    end = f"{cell}/{cell}"
    rests = {op[cut:] for op in OPS for cut in range(len(op) + 1)}
    return any(PATTERN.fullmatch(text + rest + end[idx:]) for idx in range(len(end) + 1) for rest in rests)


@of_each_size
def test_the_error_shows_what_is_needed(space):
    with pytest.raises(ArchSyntaxError, match=r"expected .*'sep_conv_5x5~'.* found '7'"):
        space.parse("|sep_conv_7x7~0")
    with pytest.raises(ArchSyntaxError, match=r"expected '0\|', found '1'"):
        space.parse("|skip_connect~1")
    with pytest.raises(ArchSyntaxError, match=r"expected '2\|', found '1'"):
        space.parse("|skip_connect~0|skip_connect~1|+|skip_connect~1|skip_connect~1|")
    with pytest.raises(ArchSyntaxError, match="expected '/', found the end"):
        space.parse(FIRST.split("/")[0])


def test_samples_choose_each_value_alike():
    rng = random.Random(0)
    drawn = [BENCHMARK.sample(rng) for _ in range(2000)]
    for values, num in (
        ([arch.normal.nodes[0][0][0] for arch in drawn], 7),
        ([arch.reduce.nodes[3][1][0] for arch in drawn], 7),
        ([tuple(source for _, source in arch.normal.nodes[3]) for arch in drawn], 10),
        ([tuple(source for _, source in arch.reduce.nodes[1]) for arch in drawn], 3),
    ):
        counts = Counter(values)
        assert len(counts) == num
        assert all(abs(count - 2000 / num) < 4 * (2000 / num) ** 0.5 for count in counts.values())


def test_a_neighbour_differs_in_one_operation_or_source():
    arch = BENCHMARK.parse(FIRST)
    kinds = Counter(what_differs(arch, other) for other in BENCHMARK.neighbours(arch))
    # node 2 can have no other sources, node 3 one other for each of its two, and so on
    assert kinds == {"operation": 2 * 8 * 6, "source": 2 * 2 * (0 + 1 + 2 + 3)}


def what_differs(arch, other):
    nodes = zip((*arch.normal.nodes, *arch.reduce.nodes), (*other.normal.nodes, *other.reduce.nodes), strict=True)
    ((old, new),) = [pair for pair in nodes if pair[0] != pair[1]]
    ((_, source),), ((_, other_source),) = {*old} - {*new}, {*new} - {*old}
    return "operation" if source == other_source else "source"


def test_a_trial_can_choose_what_was_found():
    arch = BENCHMARK.parse(SECOND)
    chosen = {}
    for name, cell in (("normal", arch.normal), ("reduce", arch.reduce)):
        for number, ((first, low), (second, high)) in enumerate(cell.nodes, 2):
            chosen |= {f"{name}_{number}_sources": f"{low},{high}"}
            chosen |= {f"{name}_{number}_op_0": first, f"{name}_{number}_op_1": second}
    assert BENCHMARK.suggest(optuna.trial.FixedTrial(chosen)) == arch


def test_a_cell_outside_the_space_is_refused():
    node = (("skip_connect", 0), ("skip_connect", 1))
    with pytest.raises(ValueError, match="`nodes` has 3 nodes: expected 4"):
        DARTSCell((node,) * 3)
    with pytest.raises(ValueError, match="expected operations from max_pool_3x3, avg_pool_3x3"):
        DARTSCell((*(node,) * 3, (("none", 0), ("skip_connect", 1))))
    for sources in ((0, 0), (0, 3), (-1, 0)):
        wrong = tuple(("skip_connect", source) for source in sources)
        with pytest.raises(ValueError, match=r"Node 3 has .* expected two different sources from 0 to 2"):
            DARTSCell((node, wrong, node, node))


@of_each_size
def test_spaces_are_found_by_name(space):
    assert type(get_space(space.name)) is type(space)
