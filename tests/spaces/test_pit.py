"""PiT: costs counted elsewhere, what the networks do, and how strings are read."""

import csv
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
from lightning_zico.spaces import ArchSyntaxError, PiT, PiTArch, get_space
from lightning_zico.spaces.pit import Attention, Pooling, PoolingTransformer
from tests.data import data_file

SPACE = PiT()
SMALLEST, LARGEST = SPACE.parse("pit-16-2-1.4.2-2.2.2"), SPACE.parse("pit-40-8-3.8.6-8.8.8")
TIMM = SPACE.parse("pit-32-4-2.6.4-2.4.8")  # `pit_ti_224`

# Arch, parameters with 10 and with 100 classes, MACs with 100 classes at 224 x 224: of an independent builder, whose
# parameters are those of Auto-Prox's own build.
COUNTED = [
    ("pit-16-2-1.4.2-2.2.2", 110_922, 113_892, 75_607_072),
    ("pit-16-6-2.8.4-2.4.4", 887_978, 893_828, 267_613_760),
    ("pit-24-4-2.6.4-2.4.8", 2_607_514, 2_624_884, 437_594_304),
    ("pit-32-4-1.6.6-2.8.8", 9_713_674, 9_736_804, 1_432_989_440),
    ("pit-40-2-2.4.4-2.4.8", 4_414_330, 4_443_220, 671_887_040),
    ("pit-24-8-1.4.6-4.4.8", 5_550_058, 5_567_428, 692_912_448),
    ("pit-40-6-3.6.2-2.2.4", 1_900_090, 1_914_580, 725_938_080),
    ("pit-40-8-3.8.6-8.8.8", 35_603_850, 35_632_740, 9_738_739_520),
]


@st.composite
def archs(draw):
    heads = sorted(draw(st.tuples(*[st.sampled_from([2, 4, 8])] * 3)))
    depths = [draw(st.sampled_from(choices)) for choices in ([1, 2, 3], [4, 6, 8], [2, 4, 6])]
    return PiTArch(draw(st.sampled_from([16, 24, 32, 40])), draw(st.sampled_from([2, 4, 6, 8])), depths, heads)


@pytest.mark.parametrize(("text", "params", "params_100", "macs_100"), COUNTED)
def test_costs_are_those_counted_elsewhere(text, params, params_100, macs_100):
    arch = SPACE.parse(text)
    assert SPACE.params(arch) == params
    assert SPACE.params(arch, num_classes=100) == params_100
    assert SPACE.macs(arch, num_classes=100) == SPACE.macs(arch, 224, num_classes=100) == macs_100


@pytest.mark.parametrize("arch", [SMALLEST, TIMM, LARGEST], ids=str)
@pytest.mark.parametrize(("resolution", "num_classes", "in_channels"), [(224, 1000, 3), (37, 2, 1), (16, 7, 4)])
def test_costs_are_those_of_the_network(arch, resolution, num_classes, in_channels):
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    with torch.device("meta"):
        network = SPACE.build(arch, **sizes)
        images = torch.randn(2, in_channels, resolution, resolution)
    count = count_macs(network, lambda m, b, _: m(b).mean(), images)
    assert SPACE.params(arch, **sizes) == count_params(network)
    assert SPACE.macs(arch, resolution, **sizes) == count.macs
    assert count.uncounted == ()


def test_there_are_4320_archs():
    found = new = {SMALLEST}
    while new:
        new = {other for arch in new for other in SPACE.neighbours(arch)} - found
        found = found | new
    assert SPACE.size == len(found) == 4320
    assert LARGEST in found
    assert len({arch.heads for arch in found}) == 10
    costs = [SPACE.params(arch) for arch in found]
    assert (min(costs), max(costs)) == (SPACE.params(SMALLEST), SPACE.params(LARGEST))


def test_the_table_is_of_this_space():
    with open(data_file("pit_60.csv"), newline="") as file:
        texts = [row["arch"] for row in csv.DictReader(file)]
    assert [str(SPACE.parse(text)) for text in texts] == texts
    assert len(set(texts)) == 60


def test_the_network_is_that_of_timm():
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("pit_ti_224", num_classes=10).eval()
    ours = SPACE.build(TIMM).eval()
    assert SPACE.params(TIMM, num_classes=1000) == 4_847_272
    renamed = {name_in_timm(name): tensor for name, tensor in ours.state_dict().items()}
    assert {*renamed} == {*theirs.state_dict()}
    for tensor in renamed.values():
        tensor.add_(0.1 * torch.randn_like(tensor))  # biases and norms, too, tell one place from another
    theirs.load_state_dict(renamed)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def name_in_timm(name):
    name = re.sub(r"^stages\.(\d)\.(\d)\.", r"transformers.\1.blocks.\2.", name)
    name = re.sub(r"^poolings\.(\d)", lambda found: f"transformers.{int(found[1]) + 1}.pool", name)
    for own, other in {
        "attention.norm": "norm1",
        "attention.qkv": "attn.qkv",
        "attention.projection": "attn.proj",
        "mlp.body.0": "norm2",
        "mlp.body.1": "mlp.fc1",
        "mlp.body.3": "mlp.fc2",
        "pool.patches": "pool.conv",
        "pool.class_token": "pool.fc",
    }.items():
        name = name.replace(own, other)
    whole = {"positions": "pos_embed", "class_token": "cls_token"}
    return whole.get(name, re.sub(r"^patches\.", "patch_embed.conv.", name))


def test_attention_is_that_of_each_head():
    attention, x = Attention(width=8, heads=2), torch.randn(2, 5, 8)
    normed = F.layer_norm(x, (8,), eps=1e-6)
    queries, keys, values = (part.unflatten(2, (2, 4)) for part in attention.qkv(normed).split(8, dim=2))
    mixed = torch.empty(2, 5, 8)
    for sample in range(2):
        for head in range(2):
            for asking in range(5):
                similar = torch.stack([queries[sample, asking, head] @ key for key in keys[sample, :, head]])
                mixed[sample, asking, 4 * head : 4 * head + 4] = (similar / 2).softmax(0) @ values[sample, :, head]
    torch.testing.assert_close(attention(x), x + attention.projection(mixed))


def test_pooling_keeps_channels_apart():
    pooling = Pooling(4, 8)
    patches, own = pooling(torch.randn(2, 4, 27, 27), torch.randn(2, 1, 4))
    assert (patches.shape, own.shape) == ((2, 8, 14, 14), (2, 1, 8))
    assert sum(p.numel() for p in pooling.parameters()) == 8 * 10 + 8 * 5
    images = torch.zeros(1, 4, 27, 27)
    images[:, 1] = 1
    reached = (pooling.patches(images) - pooling.patches(torch.zeros_like(images))).abs().sum((0, 2, 3)) > 0
    assert reached.tolist() == [False, False, True, True, False, False, False, False]


def test_only_the_class_token_is_read():
    network, seen = SPACE.build(SMALLEST), []
    network.stages[2].register_forward_hook(lambda _, __, tokens: seen.append(tokens))
    logits = network(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(logits, network.head(F.layer_norm(seen[0][:, 0], (32,), eps=1e-6)))


def test_tokens_are_as_many_as_published():
    seen = []
    with torch.device("meta"):
        network = SPACE.build(TIMM)
        for stage in network.stages:
            stage.register_forward_hook(lambda _, __, tokens: seen.append(tuple(tokens.shape)))
        network(torch.randn(2, 3, 224, 224))
    assert seen == [(2, 730, 64), (2, 197, 128), (2, 50, 256)]


def test_samples_do_not_see_each_other():
    network, images = SPACE.build(SMALLEST), torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))


def test_images_need_not_be_square():
    assert SPACE.build(SMALLEST)(torch.randn(2, 3, 40, 16)).shape == (2, 10)


@pytest.mark.parametrize("size", [(15, 32), (32, 8)])
def test_images_smaller_than_a_patch_are_refused(size):
    with pytest.raises(ValueError, match=f"images are {size[0]} x {size[1]}: expected at least 16 x 16"):
        SPACE.build(SMALLEST)(torch.randn(1, 3, *size))
    with pytest.raises(ValueError, match=f"resolution={min(size)}: expected at least 16"):
        SPACE.macs(SMALLEST, min(size))


def test_positions_are_stretched_over_the_image():
    network = SPACE.build(SMALLEST)
    with torch.no_grad():  # the middles of the rows, in parts of the image
        network.positions[0, 0] = ((torch.arange(27) + 0.5) / 27)[:, None]
    stretched = network._positions_of((9, 5))
    assert stretched.shape == (1, 32, 9, 5)
    # cubic interpolation repeats the outermost row, which it cannot look beyond: half a patch
    expected = ((torch.arange(9) + 0.5) / 9)[:, None].expand(9, 5)
    torch.testing.assert_close(stretched[0, 0], expected, rtol=0, atol=0.5 / 27)
    assert network._positions_of((27, 27)) is network.positions


def test_weights_are_drawn_as_published():
    network = SPACE.build(TIMM)
    assert network.positions.std().item() == pytest.approx(0.02, rel=0.02)
    assert network.class_token.std().item() == pytest.approx(0.02, rel=0.4)  # 64 numbers: four standard deviations
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):  # uniform, as torch draws them by default
            assert module.weight.abs().max().item() == pytest.approx(module.weight[0].numel() ** -0.5, rel=0.1)


def test_zico_and_the_default_recipe_give_numbers():
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(10, (4,))) for _ in range(2)]
    members = get_recipe("macs+expressivity").members  # to which the default falls back
    card = score(SPACE.build(SMALLEST), batches, proxies=["zico", *members], loss_fn=nn.CrossEntropyLoss())
    for name in ("zico", *members):
        assert card[name].error is None
        assert math.isfinite(card[name].value)


@given(archs())
def test_an_arch_is_its_string(arch):
    assert SPACE.parse(str(arch)) == arch
    assert str(SPACE.parse(str(arch))) == str(arch)
    assert SPACE.params(SMALLEST) <= SPACE.params(arch) <= SPACE.params(LARGEST)
    assert arch.widths == tuple(arch.base * heads for heads in arch.heads)


@given(archs(), archs())
def test_neighbours_differ_in_one_number(arch, other):
    numbers, others = ([int(n) for n in re.findall(r"\d+", str(each))] for each in (arch, other))
    differing = sum(own != its for own, its in zip(numbers, others, strict=True))
    assert (other in SPACE.neighbours(arch)) == (differing == 1)


@given(archs(), st.integers(0, 30), st.text("pit-.0123468 ", max_size=4))
def test_the_error_points_to_the_first_character_that_no_arch_has(arch, start, inserted):
    changed = str(arch)[:start] + inserted
    assume(not re.fullmatch(PATTERN, changed))
    with pytest.raises(ArchSyntaxError) as caught:
        SPACE.parse(changed)
    prefixes = [changed[:length] for length in range(len(changed) + 1)]
    assert caught.value.position == max(len(prefix) for prefix in prefixes if begins_an_arch(prefix))


PATTERN = (
    r"pit-(16|24|32|40)-[2468]-[123]\.[468]\.[246]-"
    r"(2\.2\.[248]|2\.4\.[48]|2\.8\.8|4\.4\.[48]|4\.8\.8|8\.8\.8)"
)


def begins_an_arch(text):
    # whatever of an arch is missing at the end stands at the end of one of these
    endings = [f"pit-{base}-2-1.4.2-8.8.8" for base in (16, 24, 32, 40)]
    return any(re.fullmatch(PATTERN, text + ending[idx:]) for ending in endings for idx in range(len(ending) + 1))


def test_samples_choose_each_value_alike():
    rng = random.Random(0)
    drawn = [SPACE.sample(rng) for _ in range(4000)]
    for values, num in (
        ([arch.base for arch in drawn], 4),
        ([arch.mlp_ratio for arch in drawn], 4),
        ([arch.depths for arch in drawn], 27),
        ([arch.heads for arch in drawn], 10),
    ):
        counts = Counter(values)
        assert len(counts) == num
        assert all(abs(count - 4000 / num) < 4 * (4000 / num) ** 0.5 for count in counts.values())


def test_a_trial_can_choose_the_network_of_timm():
    chosen = {"base": 32, "mlp_ratio": 4, "depth_0": 2, "depth_1": 6, "depth_2": 4, "heads": "2.4.8"}
    assert SPACE.suggest(optuna.trial.FixedTrial(chosen)) == TIMM


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"base": 48}, "Invalid base=48: expected 16 or 24 or 32 or 40"),
        ({"mlp_ratio": 3}, "Invalid mlp_ratio=3: expected 2 or 4 or 6 or 8"),
        ({"depths": (2, 6)}, "Invalid depths="),
        ({"depths": (4, 4, 4)}, r"Invalid depths=\(4, 4, 4\): expected 1 or 2 or 3, then 4 or 6 or 8, then"),
        ({"heads": (4, 2, 8)}, r"Invalid heads=\(4, 2, 8\): expected 3 numbers, each 2 or 4 or 8 and none smaller"),
        ({"heads": (2, 4)}, "Invalid heads="),
    ],
)
def test_an_arch_outside_the_space_is_refused(choices, message):
    inside = {"base": 32, "mlp_ratio": 4, "depths": (2, 6, 4), "heads": (2, 4, 8)}
    assert PiTArch(**inside) == TIMM
    with pytest.raises(ValueError, match=message):
        PiTArch(**inside | choices)


def test_the_space_is_found_by_name():
    assert type(get_space("pit")) is PiT
    assert isinstance(SPACE.build(SMALLEST), PoolingTransformer)
