"""NAS-Bench-101: its table, published numbers, and what its cells compute."""

import math
import random
import re
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import permutations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_zico.engine.size import count_macs, count_params
from lightning_zico.spaces import ArchSyntaxError
from lightning_zico.spaces.nas_bench_101 import OPS, NASBench101, NASBench101Arch
from tests.data import data_rows

SPACE = NASBench101()

CONV1, CONV3, POOL = OPS

# As NASLib numbers them in the table.
CODES = ("input", "output", POOL, CONV1, CONV3)

# Three vertices share 128 channels as 43, 43 and 42; those of 43 feed the one of 42.
UNEVEN = f"|{CONV3}~0|{CONV1}~0~1|{POOL}~1~2|output~0~1~2~3|"


def arch_of(row):
    numbers = [int(number) for number in row["arch"].strip("()").split(",")]
    matrix = [numbers[start : start + 7] for start in range(0, 49, 7)]
    return NASBench101Arch.from_matrix(matrix, [CODES[code] for code in numbers[49:]])


def digits(number):
    """Write a number as the table does, in millions with seven digits."""
    return float(f"{number / 1e6:.7g}")


@cache
def graphs():
    """All graphs of at most seven vertices and nine edges: which edges come into each vertex after the input."""
    subsets = [[[v for v in range(end) if mask >> v & 1] for mask in range(1, 2**end)] for end in range(7)]
    found = []
    for num_vertices in range(2, 8):
        for inputs in product(*subsets[1:num_vertices]):
            if sum(map(len, inputs)) <= 9 and len(set().union(*inputs)) == num_vertices - 1:
                found.append(tuple(map(tuple, inputs)))
    return found


def test_params_are_those_of_the_table():
    rows = data_rows("nas_bench_101_500.csv.gz")
    assert len(rows) == 500
    for row in rows:
        assert digits(SPACE.params(arch_of(row))) == float(row["params"])


def test_macs_are_those_of_the_table_beside_what_it_counts_for_other_layers():
    for row in data_rows("nas_bench_101_500.csv.gz")[::80]:
        arch = arch_of(row)
        assert digits(SPACE.macs(arch) + cost_of_other_layers(arch)) == float(row["flops"])


def cost_of_other_layers(arch):
    """Count two for a number that is normalised, one for a ReLU, one for each number that a maximum is taken of."""
    with torch.device("meta"):
        network, images = SPACE.build(arch), torch.randn(1, 3, 32, 32)
    costs = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.ReLU | nn.MaxPool2d):
            each = {nn.BatchNorm2d: 2, nn.ReLU: 1}.get(type(module)) or module.kernel_size**2
            module.register_forward_hook(lambda _, __, out, each=each: costs.append(each * out.numel()))
    network(images)
    return sum(costs)


def test_params_are_published_ones():
    # the example of google-research/nasbench, as it is given and as the benchmark numbers its vertices
    ops = ["input", CONV1, CONV3, CONV3, CONV3, POOL, "output"]
    edges = {(0, 1), (0, 2), (0, 3), (0, 5), (1, 6), (2, 6), (3, 4), (4, 6), (5, 6)}
    matrix = [[int((start, end) in edges) for end in range(7)] for start in range(7)]
    asked = NASBench101Arch.from_matrix(matrix, ops)
    found = SPACE.parse(f"|{CONV3}~0|{CONV1}~0|{POOL}~0|{CONV3}~0|{CONV3}~4|output~1~2~3~5|")
    assert SPACE.params(asked) == SPACE.params(found) == 2_694_282


def test_the_largest_and_the_smallest_networks_are_those_of_the_benchmark():
    params = [SPACE.params(NASBench101Arch((op,) * (len(g) - 1), g)) for g in graphs() for op in (CONV3, POOL)]
    assert (min(params), max(params)) == (227_274, 49_979_274)


def test_size_counts_the_graphs_with_their_operations():
    assert SPACE.size == sum(len(OPS) ** (len(graph) - 1) for graph in graphs()) == 1_293_208


def test_archs_are_the_published_number_of_cells_if_numbers_of_vertices_do_not_matter():
    # By Burnside's lemma the automorphisms of a graph count its labellings; each cell comes once in each numbering.
    cells = Fraction(0)
    for graph in graphs():
        edges = {(start, end) for end, starts in enumerate(graph, 1) for start in starts}
        numberings = fixed = 0
        for order in permutations(range(1, len(graph))):
            renumbered = (0, *order, len(graph))
            if all(renumbered[start] < renumbered[end] for start, end in edges):
                numberings += 1
                if all((renumbered[start], renumbered[end]) in edges for start, end in edges):
                    fixed += len(OPS) ** num_cycles(renumbered)
        cells += Fraction(fixed, numberings)
    assert cells == 423_624


def num_cycles(renumbered):
    inner, cycles = set(range(1, len(renumbered) - 1)), 0
    while inner:
        cycles, vertex = cycles + 1, min(inner)
        while vertex in inner:
            inner.remove(vertex)
            vertex = renumbered[vertex]
    return cycles


def test_cells_that_differ_only_in_the_numbers_of_vertices_can_differ_in_width():
    first, last = (SPACE.parse(f"|{a}~0|{POOL}~0|{b}~0|output~1~2~3|") for a, b in [(CONV3, POOL), (POOL, CONV3)])
    assert first != last
    assert SPACE.params(first) > SPACE.params(last)


@pytest.mark.parametrize("text", ["|output~0|", f"|{POOL}~0|output~1|", UNEVEN])
@pytest.mark.parametrize(
    ("resolution", "num_classes", "in_channels"), [(1, 10, 3), (5, 2, 1), (32, 100, 3), (30, 7, 4)]
)
def test_costs_are_those_of_the_network_for_any_image(text, resolution, num_classes, in_channels):
    arch, sizes = SPACE.parse(text), {"num_classes": num_classes, "in_channels": in_channels}
    network = SPACE.build(arch, **sizes)
    count = count_macs(network, lambda m, b, _: m(b).mean(), torch.randn(2, in_channels, resolution, resolution))
    assert SPACE.params(arch, **sizes) == count_params(network)
    assert SPACE.macs(arch, resolution, **sizes) == count.macs


def test_a_vertex_sums_what_comes_in_and_the_output_concatenates():
    cell = SPACE.build(SPACE.parse(UNEVEN)).get_submodule("stack0.1").eval()
    x = torch.randn(2, 128, 8, 8)
    to_first, to_second, to_output = (cell.projections[vertex] for vertex in ("1", "2", "4"))
    first = cell.ops[0](to_first(x))
    second = cell.ops[1](first + to_second(x))
    third = nn.functional.max_pool2d((first + second)[:, :42], 3, stride=1, padding=1)
    assert (first.shape[1], second.shape[1], third.shape[1]) == (43, 43, 42)
    torch.testing.assert_close(cell(x), torch.cat([first, second, third], dim=1) + to_output(x))
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert [type(part) for part in cell.ops[0]] == [type(part) for part in to_second] == kinds
    assert [module[0].kernel_size for module in (cell.ops[0], cell.ops[1], to_output)] == [(3, 3), (1, 1), (1, 1)]


def test_a_vertex_is_as_wide_as_the_widest_that_it_feeds():
    # vertices 3 and 4 share 128 channels as 64 and 64; vertex 1 feeds both, vertex 2 one that feeds the whole output
    cell = SPACE.build(SPACE.parse(f"|{CONV1}~0|{CONV1}~1|{CONV1}~1~2|{CONV1}~1|output~3~4|")).get_submodule("stack0.0")
    assert [op[0].out_channels for op in cell.ops] == [64, 64, 64, 64]
    cell = SPACE.build(SPACE.parse(f"|{CONV1}~0|{CONV1}~1|{CONV1}~2|output~3|")).get_submodule("stack1.0")
    assert [op[0].out_channels for op in cell.ops] == [256, 256, 256]
    assert (cell.projections["1"][0].in_channels, cell.projections["1"][0].out_channels) == (128, 256)


def test_a_cell_without_operations_is_a_projection():
    cell = SPACE.build(SPACE.parse("|output~0|")).get_submodule("stack2.0").eval()
    x = torch.randn(2, 256, 4, 4)
    assert torch.equal(cell(x), cell.projections["1"](x))
    assert not cell.ops


def test_stacks_are_three_cells_and_halve_the_image_of_any_size():
    network = SPACE.build(SPACE.parse("|output~0|"))
    shapes = {}
    for name in (*SPACE.blocks(SPACE.parse("|output~0|")), "stem", "pool1", "pool2"):
        module = network.get_submodule(name)
        module.register_forward_hook(lambda *passed, name=name: shapes.update({name: tuple(passed[2].shape[1:])}))
    network(torch.randn(2, 3, 9, 9))
    assert shapes == {
        "stem": (128, 9, 9),
        **{f"stack0.{idx}": (128, 9, 9) for idx in range(3)},
        "pool1": (128, 5, 5),
        **{f"stack1.{idx}": (256, 5, 5) for idx in range(3)},
        "pool2": (256, 3, 3),
        **{f"stack2.{idx}": (512, 3, 3) for idx in range(3)},
    }


def test_batch_norms_are_the_published_ones():
    norms = [module for module in SPACE.build(SPACE.parse(UNEVEN)).modules() if isinstance(module, nn.BatchNorm2d)]
    # TensorFlow's momentum .997 is of what is kept, torch's of what is new
    assert {(norm.eps, norm.momentum, norm.affine) for norm in norms} == {(1e-5, 0.003, True)}


def test_weights_are_drawn_as_published():
    network = SPACE.build(SPACE.parse(f"|{CONV3}~0|output~1|"), num_classes=100)
    weight = network.get_submodule("stack2.1.ops.0.0").weight
    deviation = 1 / math.sqrt(9 * 512)
    assert weight.std().item() == pytest.approx(deviation, rel=0.01)  # of 2.4 million numbers: off by .0005
    assert weight.abs().max().item() == pytest.approx(2 * deviation / 0.8796, rel=0.01)
    head = network.get_submodule("head.2")
    assert head.weight.abs().max().item() == pytest.approx(math.sqrt(6 / (512 + 100)), rel=0.01)
    assert not head.bias.any()


def test_neighbours_differ_in_an_operation_or_an_edge_or_a_vertex():
    assert {*map(str, SPACE.neighbours(SPACE.parse("|output~0|")))} == {f"|{op}~0|output~0~1|" for op in OPS}
    assert {*map(str, SPACE.neighbours(SPACE.parse(f"|{CONV1}~0|{CONV3}~0|output~1~2|")))} >= {
        f"|{POOL}~0|{CONV3}~0|output~1~2|",  # an operation
        f"|{CONV1}~0|{CONV3}~0~1|output~1~2|",  # an edge more
        f"|{CONV3}~0|output~1|",  # a vertex less
        f"|{CONV1}~0|{POOL}~1|{CONV3}~0|output~1~2~3|",  # a vertex more, in each place
        f"|{CONV1}~0|{CONV3}~0|{POOL}~1|output~1~2~3|",
    }
    assert f"|{CONV1}~0|{CONV3}~1|output~2|" in map(
        str, SPACE.neighbours(SPACE.parse(f"|{CONV1}~0|{CONV3}~1|output~1~2|"))
    )


def test_neighbours_lead_everywhere_and_back():
    # operations are changed one by one, so one of them is enough; more vertices would take longer
    neighbours, left = {}, [SPACE.parse("|output~0|")]
    while left:
        arch = left.pop()
        if arch not in neighbours:
            found = list(SPACE.neighbours(arch))
            assert len(set(found)) == len(found)
            neighbours[arch] = [other for other in found if len(other.ops) <= 3 and {*other.ops} <= {POOL}]
            left += neighbours[arch]
    assert {arch.inputs for arch in neighbours} == {graph for graph in graphs() if len(graph) <= 4}
    assert all(arch in neighbours[other] for arch, others in neighbours.items() for other in others)


@pytest.mark.parametrize("measure", [len, lambda inputs: sum(map(len, inputs))], ids=["vertices", "edges"])
def test_samples_are_uniform(measure):
    shares = Counter()
    for graph in graphs():
        shares[measure(graph)] += len(OPS) ** (len(graph) - 1) / SPACE.size
    rng = random.Random(0)
    counts = Counter(measure(SPACE.sample(rng).inputs) for _ in range(3000))
    for value, share in shares.items():
        assert abs(counts[value] - 3000 * share) < 4 * math.sqrt(3000 * share) + 1


def test_operations_are_drawn_equally():
    rng = random.Random(0)
    counts = Counter(op for _ in range(1000) for op in SPACE.sample(rng).ops)
    total = sum(counts.values())
    assert all(abs(counts[op] - total / 3) < 4 * math.sqrt(2 / 9 * total) for op in OPS)


def test_a_trial_can_choose_every_arch():
    class Chosen:
        def __init__(self, arch):
            self.ops, self.inputs = (*arch.ops, "output"), arch.inputs

        def suggest_categorical(self, name, choices):
            kind, *vertices = name.split("_")
            *start, end = map(int, vertices)
            choice = self.ops[end - 1] if kind == "op" else start[0] in self.inputs[end - 1]
            assert choice in choices
            return choice

    rng = random.Random(0)
    archs = [SPACE.sample(rng) for _ in range(100)]
    assert [SPACE.suggest(Chosen(arch)) for arch in archs] == archs


@pytest.mark.parametrize(
    ("text", "position", "needed"),
    [
        ("", 0, "'|'"),
        ("output~0", 0, "'|'"),
        ("|conv5x5-bn-relu~0|output~1|", 5, "'conv1x1-bn-relu' or 'conv3x3-bn-relu'"),
        ("|output|", 7, "'~0'"),
        ("|output~1|", 8, "'~0'"),
        ("|output~0||", 10, "the end"),
        (f"|{POOL}~0|output~0|", 22, "'~1'"),  # vertex 1 leads nowhere
        (f"|{POOL}~0|{POOL}~0|output~2|", 34, "'~0' or '~1'"),
        (f"|{POOL}~0|output~1~0|", 22, "'|'"),  # not in ascending order
        (f"|{POOL}~0|output~1~1|", 22, "'|'"),
        (f"|{POOL}~0|output~1~2|", 22, "'|'"),  # the output itself
        ("|" + "|".join(f"{POOL}~{start}" for start in range(6)), 66, "'output'"),  # a sixth operation
        (f"|{POOL}~0|{POOL}~0~1|{POOL}~0~1~2|{POOL}~0~1~2~3|output~4|", 59, "'~3'"),  # it would be the tenth edge
    ],
)
def test_the_error_shows_what_is_needed_where(text, position, needed):
    with pytest.raises(ArchSyntaxError) as caught:
        SPACE.parse(text)
    assert (caught.value.position, caught.value.needed) == (position, needed)


TOKENS = ("|", "output", *OPS, *(f"~{start}" for start in range(7)))


@given(st.integers(0, 10**6), st.floats(0, 1), st.lists(st.sampled_from(TOKENS), max_size=6))
def test_the_error_points_to_the_first_character_that_no_arch_has(seed, part, tokens):
    text = str(SPACE.sample(random.Random(seed)))
    text = text[: int(part * len(text))] + "".join(tokens)
    try:
        assert str(SPACE.parse(text)) == text
    except ArchSyntaxError as error:
        position = error.position
        assert begins_an_arch(text[:position])
        assert position == len(text) or not begins_an_arch(text[: position + 1])


def begins_an_arch(text):
    """Try to end a text with as few edges as can be: the token and the vertex that it is in, then the output."""
    tails = {token[start:] for token in TOKENS for start in range(len(token) + 1)}
    begun = {f"{text}{tail}{edge}" for tail in tails for edge in ("", *TOKENS[-7:])}
    outputs = (f"{vertices}{output}" for vertices in begun for output in ("", "output", "|output"))
    return any(map(is_arch, begun)) or any(is_arch(f"{output}{unused_of(output)}|") for output in outputs)


def unused_of(text):
    used = re.findall(r"~(\d)", text)
    return "".join(f"~{vertex}" for vertex in range(text.count("|")) if str(vertex) not in used)


def is_arch(text):
    if not re.fullmatch(rf"\|(({'|'.join(OPS)})(~\d)*\|)*output(~\d)*\|", text):
        return False
    vertices = [vertex.split("~") for vertex in text[1:-1].split("|")]
    try:
        return bool(NASBench101Arch([op for op, *_ in vertices[:-1]], [map(int, starts) for _, *starts in vertices]))
    except ValueError:
        return False


@pytest.mark.parametrize("ops", [(POOL,) * 6, ("skip",), ("output",)])
def test_an_arch_of_other_operations_is_refused(ops):
    with pytest.raises(ValueError, match="expected at most 5 of conv1x1-bn-relu"):
        NASBench101Arch(ops, ((0,), *((vertex,) for vertex in range(1, len(ops) + 1))))


@pytest.mark.parametrize(
    ("num_ops", "inputs"),
    [
        (0, ()),
        (0, ((),)),
        (0, ((1,),)),
        (1, ((0,),)),
        (1, ((0,), (0,))),
        (1, ((0,), (1, 0))),
        (1, ((0,), (0, 0, 1))),
        (1, ((0,), (-1, 1))),
        (2, ((0,), (2,), (1, 2))),
        (4, ((0,), (0, 1), (0, 1, 2), (0, 1, 2, 3), (4,))),
    ],
)
def test_an_arch_of_another_graph_is_refused(num_ops, inputs):
    with pytest.raises(ValueError, match=rf"Invalid inputs=.* expected, for each of the {num_ops} `ops`"):
        NASBench101Arch((POOL,) * num_ops, inputs)


def test_an_arch_can_be_made_of_lists():
    arch = NASBench101Arch([POOL], [[0], [0, 1]])
    assert {arch} == {SPACE.parse(f"|{POOL}~0|output~0~1|")}


def test_vertices_on_no_path_are_left_out():
    # 1 is reached but leads nowhere, 3 leads to the output but is not reached
    edges = {(0, 1), (0, 2), (2, 4), (3, 4), (0, 4)}
    matrix = [[int((start, end) in edges) for end in range(5)] for start in range(5)]
    arch = NASBench101Arch.from_matrix(matrix, ["input", CONV1, CONV3, POOL, "output"])
    assert str(arch) == f"|{CONV3}~0|output~0~1|"
    assert NASBench101Arch.from_matrix(torch.tensor(matrix), ["input", CONV1, CONV3, POOL, "output"]) == arch


@pytest.mark.parametrize(
    ("matrix", "ops", "needed"),
    [
        ([[0, 1]], ("input", "output"), "a row and a column for each of the 2 `ops`"),
        ([[0, 1], [0]], ("input", "output"), "a row and a column for each of the 2 `ops`"),
        ([[0, 1], [1, 0]], ("input", "output"), "zeros on and below the diagonal"),
        ([[1, 1], [0, 0]], ("input", "output"), "zeros on and below the diagonal"),
        ([[0, 0], [0, 0]], ("input", "output"), "a path from the first to the last vertex"),
        ([[0, 1], [0, 0]], (POOL, "output"), "'input' as the first and 'output' as the last"),
        ([], (), "'input' as the first and 'output' as the last"),
        ([[int(end > start) for end in range(5)] for start in range(5)], ("input", *OPS, "output"), "at most 9 edges"),
    ],
)
def test_another_matrix_is_refused(matrix, ops, needed):
    with pytest.raises(ValueError, match=f"expected.*{needed}"):
        NASBench101Arch.from_matrix(matrix, ops)
