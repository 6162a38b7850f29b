"""NAS-Bench-BERT: costs counted elsewhere, what the networks do, and how strings are read."""

import math
import random
import re
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import optuna
import pytest
import scipy.fft
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from lightning_zico import Budget, ZeroShotSearch, score
from lightning_zico.engine.size import count_macs, count_params
from lightning_zico.ranking import get_recipe
from lightning_zico.spaces import ArchSyntaxError, BERTArch, BERTLayer, NASBenchBERT, NASBenchBERTNamed, get_space
from lightning_zico.spaces.bert import MLP, OPS, Mixing, SelfAttention, SpanConvolution, Transform
from lightning_zico.zoo.classifiers import SequenceClassifier
from tests.data import data_rows

TRAINED, NAMED = SPACES = (NASBenchBERT(), NASBenchBERTNamed())
SMALLEST = TRAINED.parse("bert-128-2-sdp2:512-sdp2:512")
of_each_space = pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)

# Space, arch, parameters with two classes, without the head, and MACs with 128 tokens and two classes (None: not
# counted), of an independent builder that was compared with the published parameter counts of all 500 networks.
COUNTED = [
    (TRAINED, "bert-128-2-sdp2:512-sdp2:512", 4_369_666, 4_369_408, 58_720_512),
    (TRAINED, "bert-128-2-sdp4:512+512+512-sdp4:512+1024+1024", 6_535_426, 6_535_168, 335_544_576),
    (
        TRAINED,
        "bert-128-4-sdp4:512-sdp2:512+512+512-sdp2:512-sdp4:512+1024+1024",
        6_931_970,
        6_931_712,
        394_264_832,
    ),
    (TRAINED, "bert-256-2-sdp4:1024-sdp2:1024", 5_585_922, 5_585_408, 222_298_624),
    (TRAINED, "bert-256-4" + "-sdp4:1024" * 4, 7_165_442, 7_164_928, 440_402_432),
    (
        TRAINED,
        "bert-256-4-sdp4:1024+1024+1024-sdp2:1024+512+512-sdp4:1024+512+512-sdp4:1024",
        10_577_410,
        10_576_896,
        876_610_048,
    ),
    (NAMED, "bert-128-2-wma2:512-wma4:512", 4_402_434, 4_402_176, 62_914_816),
    (NAMED, "bert-256-2-dft4:1024-dct2:512+512+512", 5_585_410, 5_584_896, None),
    (NAMED, "bert-256-2-dsc5.2:512-dsc9.4:512", 5_001_369, 5_000_855, None),
    (NAMED, "bert-128-2-dsc9.4:1024-dsc5.4:1024+1024+1024", 6_719_134, 6_718_876, None),
    (
        NAMED,
        "bert-256-4-wma4:1024+1024+1024-dct2:512+512+512-sdp4:512+512+512-sdp4:1024",
        9_723_906,
        9_723_392,
        None,
    ),
    (NAMED, "bert-256-4" + "-wma4:1024+1024+1024" * 4, 15_824_386, 15_823_872, 1_547_698_688),
]


@st.composite
def archs(draw, space):
    hidden = draw(st.sampled_from([128, 256]))
    if space is TRAINED:
        widths = [(4 * hidden,), (4 * hidden, 512, 512), (4 * hidden, 1024, 1024)]
    else:
        widths = [(512,), (1024,), (512,) * 3, (1024,) * 3]
    ops = ["sdp"] if space is TRAINED else list(OPS)
    layers = st.builds(BERTLayer, st.sampled_from(ops), st.sampled_from([2, 4]), st.sampled_from(widths))
    depth = draw(st.sampled_from([2, 4]))
    return BERTArch(hidden, draw(st.lists(layers, min_size=depth, max_size=depth)))


@pytest.mark.parametrize(("space", "text", "params", "body", "macs"), COUNTED, ids=lambda value: str(value)[:40])
def test_costs_are_those_counted_elsewhere(space, text, params, body, macs):
    arch = space.parse(text)
    assert space.params(arch, num_classes=2) == params
    assert space.params(arch, num_classes=2) - 2 * (arch.hidden + 1) == body
    if macs is not None:
        assert space.macs(arch, num_classes=2) == space.macs(arch, 128, num_classes=2) == macs


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize(("hidden", "num_tokens"), [(128, 512), (256, 7), (256, 1)])
def test_costs_are_those_of_the_network_of_each_operation(op, heads, hidden, num_tokens):
    arch = NAMED.parse(f"bert-{hidden}-2-{op}{heads}:512-{op}{heads}:1024+1024+1024")
    with torch.device("meta"):
        network, tokens = NAMED.build(arch, num_classes=3), torch.zeros(2, num_tokens, dtype=torch.long)
    count = count_macs(network, lambda m, b, _: m(b).mean(), tokens)
    assert NAMED.params(arch, num_classes=3) == count_params(network)
    assert NAMED.macs(arch, num_tokens, num_classes=3) == count.macs
    assert count.uncounted == ()


def test_there_are_as_many_archs_as_published():
    assert TRAINED.size == 2 * (6**2 + 6**4) == 2664
    assert NAMED.size == 2 * (48**2 + 48**4) == 10_621_440  # Serianni & Kalita, ACL 2023
    found = new = {SMALLEST}
    while new:
        new = {other for arch in new for other in TRAINED.neighbours(arch)} - found
        found = found | new
    assert len(found) == 2664


def test_the_table_is_of_both_spaces():
    rows = data_rows("nas_bench_bert_250.csv.gz")
    assert len(rows) == 250
    for row in rows:
        named, trained = NAMED.parse(row["arch"]), TRAINED.parse(row["arch_trained"])
        assert (str(named), str(trained)) == (row["arch"], row["arch_trained"])
        # as trained: attention everywhere, and four times the width of a token in the first hidden layer
        assert trained.hidden == named.hidden == int(row["hidden_size"])
        assert len(trained.layers) == len(named.layers) == int(row["num_layers"])
        for own, its in zip(trained.layers, named.layers, strict=True):
            assert own == BERTLayer("sdp", its.heads, (4 * trained.hidden, *its.widths[1:]))


@pytest.mark.parametrize("text", ["bert-128-4" + "-sdp2:512" * 4, "bert-256-2" + "-sdp4:1024" * 2])
def test_the_network_is_an_electra(text):
    """With one hidden layer in each perceptron, it is the discriminator of Hugging Face."""
    transformers = pytest.importorskip("transformers")
    arch = TRAINED.parse(text)
    theirs = transformers.ElectraModel(
        transformers.ElectraConfig(
            embedding_size=128,
            hidden_size=arch.hidden,
            num_hidden_layers=len(arch.layers),
            num_attention_heads=arch.layers[0].heads,
            intermediate_size=4 * arch.hidden,
        )
    ).eval()
    ours = TRAINED.build(arch).eval()
    renamed = {name_in_electra(name): tensor for name, tensor in ours.state_dict().items() if "head" not in name}
    for tensor in renamed.values():
        tensor.add_(0.1 * torch.randn_like(tensor))  # biases and norms, too, tell one place from another
    assert theirs.load_state_dict(renamed, strict=True)
    tokens = torch.randint(30_522, (3, 12))
    mask = torch.arange(12) < torch.tensor([[12], [5], [1]])
    others = {"attention_mask": mask.long(), "token_type_ids": torch.randint(2, (3, 12))}
    with torch.no_grad():
        for inputs in ({}, others):
            expected = ours.head(theirs(tokens, **inputs).last_hidden_state[:, 0])
            torch.testing.assert_close(ours(tokens, **inputs), expected, rtol=1e-4, atol=1e-4)


def name_in_electra(name):
    for own, its in {
        "words": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "segments": "embeddings.token_type_embeddings",
        "widening": "embeddings_project",
        "attention.op": "attention.self",
        "attention.projection": "attention.output.dense",
        "attention.norm": "attention.output.LayerNorm",
        "mlp.body.0": "intermediate.dense",
        "mlp.body.2": "output.dense",
        "mlp.norm": "output.LayerNorm",
    }.items():
        name = name.replace(own, its)
    return re.sub(r"^norm", "embeddings.LayerNorm", re.sub(r"^layers", "encoder.layer", name))


@pytest.mark.parametrize(("heads", "kernel"), [(2, 5), (4, 9)])
def test_the_convolution_is_that_of_convbert(heads, kernel):
    transformers = pytest.importorskip("transformers")
    convbert = pytest.importorskip("transformers.models.convbert.modeling_convbert")
    config = transformers.ConvBertConfig(
        hidden_size=16, num_attention_heads=heads, head_ratio=2, conv_kernel_size=kernel, num_groups=1
    )
    theirs, ours = convbert.ConvBertSelfAttention(config).eval(), SpanConvolution(16, heads, kernel).eval()
    nn.init.normal_(ours.bias)
    renamed = {}
    for name, tensor in ours.state_dict().items():
        place = name.removeprefix("attention.") if name.startswith("attention.") else None
        moved = {"weighing": "conv_kernel_layer", "value": "conv_out_layer"}
        module, _, kind = name.rpartition(".")
        prefix = f"{moved[module]}." if module in moved else f"key_conv_attn_layer.{module}{'.' * bool(module)}"
        renamed[place or f"{prefix}{kind}"] = tensor
    theirs.load_state_dict(renamed, strict=True)
    x = torch.randn(2, 11, 16)
    torch.testing.assert_close(ours(x), theirs(x)[0])


@pytest.mark.parametrize("num_tokens", [1, 6, 7])
def test_transforms_are_those_of_scipy(num_tokens):
    x = torch.randn(2, num_tokens, 8, dtype=torch.float64)
    for kind, transform in (("dct", scipy.fft.dctn), ("dft", lambda head: scipy.fft.fft2(head).real)):
        module = Transform(8, 2, kind).double()
        values = module.value(x).detach().numpy()
        expected = np.zeros_like(values)
        for sample in range(2):
            for head in (slice(0, 4), slice(4, 8)):
                expected[sample, :, head] = transform(values[sample, :, head])
        torch.testing.assert_close(module(x), torch.from_numpy(expected))


def test_weighted_attention_multiplies_the_queries_by_one_more_matrix():
    x = torch.randn(2, 5, 8)
    weighted, plain = SelfAttention(8, 8, 2, is_weighted=True).eval(), SelfAttention(8, 8, 2).eval()
    plain.load_state_dict({name: t for name, t in weighted.state_dict().items() if not name.startswith("weight.")})
    assert weighted.weight.bias is None
    with torch.no_grad():
        assert not torch.allclose(weighted(x), plain(x))
        plain.query.weight.copy_(weighted.weight.weight @ plain.query.weight)
        plain.query.bias.copy_(weighted.weight.weight @ plain.query.bias)
        torch.testing.assert_close(weighted(x), plain(x))


def test_a_layer_norm_is_behind_each_sum():
    mixing, mlp, x = Mixing(nn.Identity(), 8).eval(), MLP(8, (16, 12, 12)).eval(), torch.randn(2, 3, 8)
    mixing.op.forward = lambda x, is_padding: x
    torch.testing.assert_close(mixing(x), nn.functional.layer_norm(x + mixing.projection(x), (8,), eps=1e-12))
    first, _, second, _, third, _, last, _ = mlp.body
    hidden = x
    for layer in (first, second, third):
        hidden = nn.functional.gelu(layer(hidden))
    torch.testing.assert_close(mlp(x), nn.functional.layer_norm(x + last(hidden), (8,), eps=1e-12))


@pytest.mark.parametrize("op", ["sdp", "wma"])
def test_padding_does_not_matter_to_attention(op):
    network = NAMED.build(NAMED.parse(f"bert-128-2-{op}2:512-{op}4:512")).eval()
    tokens = torch.randint(1, 30_522, (2, 6))
    padded = torch.cat([tokens, torch.zeros(2, 3, dtype=torch.long)], dim=1)
    mask = torch.tensor([[1] * 6 + [0] * 3] * 2)
    torch.testing.assert_close(network(padded, attention_mask=mask), network(tokens))
    assert not torch.allclose(network(padded), network(tokens))


def test_the_order_of_tokens_matters_and_texts_do_not_see_each_other():
    network, tokens = TRAINED.build(SMALLEST).eval(), torch.randint(1, 30_522, (3, 6))
    torch.testing.assert_close(network(tokens)[1:2], network(tokens[1:2]))
    swapped = tokens[:, [0, 2, 1, 3, 4, 5]]
    assert not torch.allclose(network(swapped), network(tokens), rtol=1e-6, atol=1e-7)


def test_texts_that_are_empty_or_too_long_are_refused():
    network = TRAINED.build(SMALLEST)
    assert network(torch.ones(1, 512, dtype=torch.long)).shape == (1, 10)
    with pytest.raises(ValueError, match="texts have 0 tokens: expected 1 to 512"):
        network(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="texts have 513 tokens: expected 1 to 512"):
        network(torch.ones(1, 513, dtype=torch.long))
    with pytest.raises(ValueError, match="resolution=513: expected 1 to 512"):
        TRAINED.macs(SMALLEST, 513)


def test_weights_are_drawn_as_published():
    network = NAMED.build(NAMED.parse("bert-256-2-wma4:1024-dsc9.4:1024"))
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding) and module.weight.numel() > 2000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.06)
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert not module.bias.any()
    assert not network.words.weight[0].any()
    assert network.words.weight[1].any()
    assert not network.layers[1].attention.op.bias.any()


def test_padding_is_not_learned():
    network = TRAINED.build(SMALLEST)
    network(torch.tensor([[5, 7, 0, 0]])).sum().backward()
    learned = network.words.weight.grad.abs().sum(1).nonzero().flatten()
    assert learned.tolist() == [5, 7]


@of_each_space
def test_zico_and_the_default_recipe_give_numbers_for_masked_texts(space):
    ops = space.ops
    network = space.build(space.parse(f"bert-128-2-{ops[0]}2:512-{ops[-1]}4:512"), num_classes=2)
    tokens, mask = torch.randint(1, 30_522, (2, 4, 9)), torch.arange(9) < torch.tensor([[9], [7], [9], [4]])
    batches = [
        {"input_ids": ids * mask, "attention_mask": mask.long(), "labels": torch.tensor([0, 1, 0, 1])} for ids in tokens
    ]
    members = get_recipe("macs+expressivity").members  # to which the default falls back
    card = score(SequenceClassifier(network, 2), batches, proxies=["zico", *members])
    found = {name: card[name].error or card[name].value for name in ("zico", *members)}
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values()), found


def test_a_search_takes_texts_and_refuses_images():
    tokens, labels = torch.randint(1, 30_522, (8, 12)), torch.arange(8) % 2
    texts = [{"input_ids": ids, "labels": label} for ids, label in zip(tokens, labels, strict=True)]
    wrap = partial(SequenceClassifier, num_classes=2)
    search = ZeroShotSearch(
        "nas_bench_bert", Budget(params=5e6), proxies="params", num_trials=8, num_classes=2, wrap=wrap
    )
    result = search.run(DataLoader(texts, batch_size=4))
    best = TRAINED.parse(result.best)
    assert result[0]["cost_params"] == TRAINED.params(best, num_classes=2) <= 5e6
    assert result[0]["cost_macs"] == TRAINED.macs(best, 12, num_classes=2)
    images = DataLoader([(torch.randn(3, 8, 8), 0)] * 8, batch_size=4)
    with pytest.raises(
        ValueError, match=r"expected token ids `\[N, T\]`, because the space contains networks for texts"
    ):
        search.run(images)
    with pytest.raises(ValueError, match="because the space contains networks for images"):
        ZeroShotSearch("nas_bench_201", num_trials=2).run(DataLoader(texts, batch_size=4))


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
@given(st.data())
def test_an_arch_is_its_string(space, data):
    arch = data.draw(archs(space))
    assert space.parse(str(arch)) == arch
    assert str(space.parse(str(arch))) == str(arch)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
@given(st.data(), st.integers(0, 120), st.text("bert-sdpwma.:+0124568 ", max_size=5))
def test_the_error_points_to_the_first_character_that_no_arch_has(space, data, start, inserted):
    changed = str(data.draw(archs(space)))[:start] + inserted
    assume(not re.fullmatch(pattern_of(space), changed))
    with pytest.raises(ArchSyntaxError) as caught:
        space.parse(changed)
    prefixes = [changed[:length] for length in range(len(changed) + 1)]
    assert caught.value.position == max(len(prefix) for prefix in prefixes if begins_an_arch(space, prefix))


def pattern_of(space):
    ops = "|".join(map(re.escape, space.ops))
    forms = []
    for hidden in (128, 256):
        own = (
            rf"{4 * hidden}(\+512\+512|\+1024\+1024)?"
            if space is TRAINED
            else r"(512(\+512\+512)?|1024(\+1024\+1024)?)"
        )
        forms += [rf"bert-{hidden}-{depth}(-({ops})[24]:{own}){{{depth}}}" for depth in (2, 4)]
    return "|".join(forms)


def begins_an_arch(space, text):
    # whatever of an arch is missing at the end stands at the end of one of these
    ends = []
    for hidden in (128, 256):
        for depth in (2, 4):
            for op in space.ops:
                for width in (512, 1024):
                    first = 4 * hidden if space is TRAINED else width
                    ends.append(f"bert-{hidden}-{depth}" + f"-{op}2:{first}+{width}+{width}" * depth)
                    ends.append(f"bert-{hidden}-{depth}" + f"-{op}2:{first}" * depth)
    pattern = re.compile(pattern_of(space))
    return any(pattern.fullmatch(text + end[idx:]) for end in ends for idx in range(len(end) + 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bert-512-2", "expected '128-' or '256-', found '5'"),
        ("bert-128-3", "expected '2' or '4', found '3'"),
        ("bert-128-2-wma2:512", "expected '-sdp', found 'w'"),
        ("bert-128-2-sdp2:1024", "expected '512', found '1'"),
        ("bert-128-2-sdp2:512+512+1024", r"expected '512', found '1'"),
        ("bert-128-2-sdp2:512.", r"expected '\+' or '-', found '.'"),
        ("bert-128-2-sdp2:512-sdp2:512-sdp2:512", r"expected '\+' or the end, found '-'"),
        ("bert-128-2-sdp2:512+512+512-sdp2:512+512+512+512", r"expected the end, found '\+'"),
    ],
)
def test_the_error_shows_what_is_needed(text, message):
    with pytest.raises(ArchSyntaxError, match=message):
        TRAINED.parse(text)


@of_each_space
def test_samples_choose_each_value_alike(space):
    rng = random.Random(0)
    drawn = [space.sample(rng) for _ in range(3000)]
    for values in (
        [arch.hidden for arch in drawn],
        [len(arch.layers) for arch in drawn],
        [arch.layers[0].heads for arch in drawn],
        [len(arch.layers[1].widths) for arch in drawn],
        [arch.layers[1].op for arch in drawn],
    ):
        counts = Counter(values)
        expected = 3000 / len(counts)
        assert all(abs(count - expected) < 4 * expected**0.5 for count in counts.values())
    assert {arch.layers[0].op for arch in drawn} == {*space.ops}


@of_each_space
def test_a_neighbour_differs_in_one_choice(space):
    arch = space.parse("bert-128-2-sdp2:512-sdp4:512+512+512")
    kinds = Counter(what_differs(arch, other) for other in space.neighbours(arch))
    num = len(space.ops)
    layers = (num * 2 * (3 if space is TRAINED else 4)) ** 2
    widths = 2 if space is TRAINED else 3
    expected = {"hidden": 1, "depth": layers, "op": 2 * (num - 1), "heads": 2, "widths": 2 * widths}
    assert kinds == Counter({name: count for name, count in expected.items() if count})
    deepest = replace(arch, layers=arch.layers * 2)
    assert [other for other in space.neighbours(deepest) if len(other.layers) == 2] == [arch]


def what_differs(arch, other):
    if other.hidden != arch.hidden:
        assert [(own.op, own.heads, len(own.widths)) for own in other.layers] == [
            (its.op, its.heads, len(its.widths)) for its in arch.layers
        ]
        return "hidden"
    if len(other.layers) != len(arch.layers):
        assert other.layers[:2] == arch.layers[:2]
        return "depth"
    ((old, new),) = [pair for pair in zip(arch.layers, other.layers, strict=True) if pair[0] != pair[1]]
    (name,) = [name for name in ("op", "heads", "widths") if getattr(old, name) != getattr(new, name)]
    return name


@of_each_space
def test_mutants_change_each_choice_alike(space):
    arch, rng = space.parse("bert-128-2-sdp2:512-sdp4:512+512+512"), random.Random(0)
    kinds = Counter(what_differs(arch, space.mutate(arch, rng)) for _ in range(400))
    num_choices = 6 if space is TRAINED else 8
    for name in kinds:
        expected = 400 / num_choices * (1 if name in ("hidden", "depth") else 2)
        assert abs(kinds[name] - expected) < 4 * expected**0.5
    assert {*kinds} == {"hidden", "depth", "heads", "widths"} | ({"op"} if space is NAMED else set())


@of_each_space
def test_a_trial_can_choose_every_layer(space):
    for text, _ in ((text, own) for own, text, *_ in COUNTED if own is space):
        arch = space.parse(text)
        chosen = {"hidden": arch.hidden, "num_layers": len(arch.layers)}
        for idx, layer in enumerate(arch.layers):
            chosen |= {f"layer_{idx}_op": layer.op, f"layer_{idx}_heads": layer.heads}
            chosen |= {f"layer_{idx}_num_hidden": len(layer.widths), f"layer_{idx}_width": layer.widths[-1]}
        assert space.suggest(optuna.trial.FixedTrial(chosen)) == arch


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (BERTLayer("fft", 2, (512,)), "`layers` has fft2:512: expected one of sdp, wma"),
        (BERTLayer("sdp", 3, (512,)), "`layers` has sdp3:512: .* 2 or 4 heads"),
        (BERTLayer("sdp", 2, (512, 512)), r"`layers` has sdp2:512\+512: .* 1 or 3 hidden layers"),
        (BERTLayer("sdp", 2, (256,)), "`layers` has sdp2:256: .* 512 or 1024 wide"),
    ],
)
def test_an_arch_outside_the_space_is_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        BERTArch(128, [layer, layer])
    with pytest.raises(ValueError, match="Invalid hidden=64: expected 128 or 256"):
        BERTArch(64, SMALLEST.layers)
    with pytest.raises(ValueError, match="`layers` has 3 layers: expected 2 or 4"):
        BERTArch(128, [SMALLEST.layers[0]] * 3)


@of_each_space
def test_spaces_are_found_by_name(space):
    assert type(get_space(space.name)) is type(space)
