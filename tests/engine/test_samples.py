"""How many samples a batch has, against counts by hand."""

from collections import UserDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_zico._typing import check_num_samples
from lightning_zico.engine.samples import Seen, num_samples, stated_samples
from lightning_zico.engine.size import count_macs
from lightning_zico.errors import NotApplicableError, message_of
from tests.engine.batches import IMAGES, TARGETS, Graphs, Named, Nodes, Pair, TensorDict, labels, packed, zeros

# What says it by itself: (batch, samples)
PLAIN = {
    "one tensor": (zeros(5, 3), 5),
    "images and labels": ((zeros(5, 3, 8, 8), labels(5)), 5),
    "a list of images and labels": ([zeros(5, 3, 8, 8), labels(5)], 5),
    "dictionary with scalars and texts": (
        {"input_ids": labels(5, 7), "labels": labels(5), "weight": torch.tensor(0.5), "task": "qa", "none": None},
        5,
    ),
    "user dictionary": (UserDict(x=zeros(5, 3), y=labels(5)), 5),
    "dataclass": (Pair(zeros(5, 3), labels(5)), 5),
    "named tuple": (Named(zeros(5, 3), labels(5)), 5),
    "views and labels": (([zeros(5, 3, 8, 8), zeros(5, 3, 8, 8)], labels(5)), 5),
    "two inputs and labels": (((zeros(5, 3), zeros(5, 7)), labels(5)), 5),
    "images and targets of different sizes": ((IMAGES, TARGETS), 5),
    "the same in tuples": ((tuple(IMAGES), tuple(TARGETS)), 5),
    "as many boxes as channels": ((IMAGES, [{"boxes": zeros(3, 4), "labels": labels(3)}] * 5), 5),
    "stacked images and targets": ((zeros(5, 3, 8, 8), TARGETS), 5),
    "sequences of different lengths and labels": (([zeros(n, 4) for n in (2, 7, 3)], labels(3)), 3),
    "graphs": (Graphs(4, x=zeros(20, 3)), 4),
    "graphs and their targets": ((Graphs(4, x=zeros(20, 3)), zeros(4)), 4),
    "seed nodes": (type("Sampled", (), {"batch_size": 6, "x": zeros(20, 3)})(), 6),
    "packed sequences": (packed([5, 3, 2]), 3),
    "packed sequences and labels": ((packed([5, 3, 2]), labels(3)), 3),
    "tensor dictionary": (TensorDict({"x": zeros(4, 9, 2), "pixels": zeros(4, 9, 3, 8, 8)}, [4, 9]), 4),
    "nested tensors": (torch.nested.nested_tensor([zeros(2, 3), zeros(4, 3)], layout=torch.jagged), 2),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_batch_tells_its_samples(name):
    batch, by_hand = PLAIN[name]
    assert num_samples(batch) == by_hand
    assert num_samples(batch, Seen(rows=77, compared={78})) == by_hand


@pytest.mark.parametrize(
    "batch",
    [
        torch.tensor(1.0),
        "text",
        {},
        {"x": 3, "y": None},
        zeros(0, 3),
        (zeros(20, 3), zeros(4)),
        (zeros(20), zeros(5), zeros(5)),  # tokens, where bags begin, labels
        [zeros(3, 12, 10), zeros(3, 9, 12)],  # two images, or three pairs
        [zeros(5, 8), zeros(5, 1)],
        (Graphs(4), Graphs(5)),
    ],
)
def test_where_nothing_or_several_things_tell_it_is_unknown(batch):
    assert num_samples(batch) is None


@pytest.mark.parametrize(
    ("batch", "seen", "by_hand"),
    [
        ([zeros(5, 8), zeros(5, 1)], Seen(rows=5), 5),
        (IMAGES, Seen(rows=5), 5),
        (IMAGES, Seen(rows=3), 3),  # whose channels are what the network takes for samples
        (IMAGES, Seen(rows=1), None),  # one image at a time
        ((zeros(20), labels(4), labels(4)), Seen(rows=4), 4),
        ((zeros(20, 3), labels(2, 60), labels(4)), Seen(rows=4), 4),
        ((zeros(20, 3), labels(2, 60), labels(4)), Seen(rows=20, compared={4}), None),
        ((zeros(20, 3), labels(2, 60), labels(20)), Seen(rows=20, compared={13}), 20),  # masked nodes are compared
        (Nodes(x=zeros(20, 3), edge_index=labels(2, 60), y=labels(20)), Seen(rows=20), 20),
        ({"x": zeros(4, 3), "positions": zeros(1, 3)}, Seen(rows=4), 4),
        ((zeros(4, 3), zeros(6, 3)), Seen(rows=10), None),
        # Channels and windows that attention sees as sequences of their own; others are no part of samples.
        ((zeros(4, 24, 3), zeros(4, 6, 3)), Seen(rows=12, compared={4}, sequences={12}), 4),
        ([zeros(4, 24, 3), zeros(4, 6, 3)], Seen(rows=12, compared={4}, sequences={12, 8}), 4),
        ((zeros(4, 24, 3), zeros(4, 6, 3)), Seen(rows=10, compared={4}, sequences={10}), None),
    ],
)
def test_outputs_and_losses_tell_what_fields_leave_open(batch, seen, by_hand):
    assert num_samples(batch, seen) == by_hand


@given(st.lists(st.integers(1, 6), min_size=2, max_size=6), st.data())
def test_a_field_that_divides_nodes_among_graphs_counts_the_graphs(sizes, data):
    bounds = torch.tensor([0, *sizes]).cumsum(0)
    fields = {
        "x": zeros(sum(sizes), 3),
        "edge_index": labels(2, 97),
        "energy": zeros(len(sizes)),
        "by": data.draw(
            st.sampled_from(
                [
                    torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
                    torch.tensor(sizes),
                    bounds,
                    bounds[1:],
                ]
            )
        ),
    }
    num_nodes = sum(sizes)
    if data.draw(st.booleans()):  # two edges from every node, in order: nodes are parts of them
        fields |= {"source": torch.arange(num_nodes).repeat_interleave(2), "distance": zeros(2 * num_nodes)}
    if num_nodes == len(sizes):
        return  # every graph has one node
    order = data.draw(st.permutations(list(fields)))
    per_node = Seen(rows=num_nodes)  # energies are summed up behind the last layer
    assert num_samples({name: fields[name] for name in order}, per_node) == len(sizes)


@pytest.mark.parametrize(
    ("batch", "sequences", "by_hand"),
    [
        (zeros(7, 4, 3), {4}, 4),
        ((zeros(7, 4, 3), labels(7, 4)), {4}, 4),
        ((zeros(7, 4, 3), labels(4)), {4}, 4),
        (zeros(7, 4, 3), {7}, 7),
        ((zeros(4, 7, 3), labels(4)), {7}, 4),  # labels have no such dimension: attention between samples
        ((zeros(4, 7, 3), labels(4, 7)), {28}, 4),  # windows
        (zeros(4, 7, 3), set(), 4),
    ],
)
def test_recurrent_layers_and_attention_tell_which_dimension_counts(batch, sequences, by_hand):
    assert num_samples(batch, Seen(sequences=sequences)) == by_hand


# Modules and their batches as they are found in projects, with the operations of one sample by hand.


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.EmbeddingBag(50, 8), nn.Linear(8, 3)

    def forward(self, fields):
        return F.cross_entropy(self.head(self.embedding(fields["tokens"], fields["offsets"])), fields["labels"])


class GraphNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.message, self.head = nn.Linear(7, 8), nn.Linear(8, 2)

    def forward(self, fields):
        sources, sinks = fields["edge_index"]
        nodes = zeros(len(fields["x"]), 8).index_add(0, sinks, self.message(fields["x"])[sources])
        graphs = zeros(len(fields["y"]), 8).index_add(0, fields["batch"], nodes)
        return F.cross_entropy(self.head(graphs), fields["y"])


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6), nn.Linear(6, 3)

    def forward(self, fields):
        states, _ = self.lstm(fields["x"])
        return F.cross_entropy(self.head(states).flatten(0, -2), fields["y"].flatten())


class LastState(TimeFirst):
    def forward(self, fields):
        _, (state, _) = self.lstm(fields["x"])
        return F.cross_entropy(self.head(state[-1]), fields["y"])


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, fields):
        images = [F.pad(image, (0, 12 - image.shape[2], 0, 12 - image.shape[1])) for image in fields["images"]]
        maps = self.conv(torch.stack(images)).mean((2, 3))
        return sum((maps[i].mean() - target["boxes"].mean()) ** 2 for i, target in enumerate(fields["targets"]))


GRAPH_SIZES = (3, 5, 2, 6)
NODES = sum(GRAPH_SIZES)
CASES = {
    "bags": (
        Bag(),
        {
            "tokens": torch.randint(50, (20,)),
            "offsets": torch.tensor([0, 4, 9, 15]),
            "labels": torch.tensor([2, 0, 1, 1]),
        },
        8 * 3,
        4,
    ),
    "graphs": (
        GraphNet(),
        {
            "x": torch.randn(NODES, 7),
            "edge_index": torch.randint(NODES, (2, 41)),
            "batch": torch.arange(4).repeat_interleave(torch.tensor(GRAPH_SIZES)),
            "y": torch.tensor([1, 0, 0, 1]),
        },
        (NODES * 7 * 8) / 4 + 8 * 2,
        4,
    ),
    "time first, a label a step": (
        TimeFirst(),
        {"x": torch.randn(5, 3, 4), "y": torch.randint(3, (5, 3))},
        5 * (4 * 6 * (4 + 6) + 6 * 3),
        3,
    ),
    "time first, a label a sequence": (
        LastState(),
        {"x": torch.randn(5, 3, 4), "y": torch.randint(3, (3,))},
        5 * 4 * 6 * (4 + 6) + 6 * 3,
        3,
    ),
    "time first, nothing else": (
        nn.LSTM(4, 6),
        {"x": torch.randn(5, 3, 4)},
        5 * 4 * 6 * (4 + 6),
        3,
    ),
    "packed": (nn.LSTM(4, 6), {"x": packed([5, 3, 2])}, 10 * 4 * 6 * (4 + 6) / 3, 3),
    "detection": (Padded(), {"images": IMAGES, "targets": TARGETS}, 12 * 12 * 4 * 3 * 9, 5),
}


def loss(module, batch, batch_idx):
    if isinstance(module, nn.LSTM):
        out = module(batch["x"])[0]
        return (out.data if isinstance(out, nn.utils.rnn.PackedSequence) else out).mean()
    fields = dict(zip(batch._fields, batch, strict=True)) if hasattr(batch, "_fields") else batch
    return module(fields)


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_macs_per_sample_do_not_depend_on_the_order_of_fields(name, data):
    module, fields, by_hand, samples = CASES[name]
    order = data.draw(st.permutations(list(fields)))
    batch = {field: fields[field] for field in order}
    if not isinstance(module, nn.LSTM) and data.draw(st.booleans()):
        batch = namedtuple("Fields", order)(*batch.values())
    count = count_macs(module, loss, batch)
    assert (count.num_samples, count.macs) == (samples, round(by_hand))


def test_an_unknown_count_makes_no_number():
    count = count_macs(nn.Linear(3, 2), lambda m, b, i: m(torch.cat(b)).sum(), (zeros(4, 3), zeros(6, 3)))
    with pytest.raises(NotApplicableError, match="Pass `num_samples=`"):
        _ = count.macs


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "16", torch.tensor(4)])
def test_a_wrong_count_is_refused_early(wrong):
    with pytest.raises(ValueError, match="Invalid num_samples="):
        check_num_samples(wrong)
    with pytest.raises(ValueError, match="`num_samples=` returned"):
        stated_samples(zeros(5, 3), lambda batch: wrong)


def test_a_stated_count_holds():
    assert stated_samples(zeros(5, 3), None) is None
    assert stated_samples(zeros(5, 3), 4) == 4
    assert stated_samples((zeros(5, 3), zeros(4)), lambda batch: len(batch[1])) == 4
    for right in (None, 3, len):
        check_num_samples(right)


# What a pass shows of batches whose samples several things could be, through modules that are run in different ways.


class OneByOne(nn.Module):
    """Has no forward call of its own: the step runs its convolution on each image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def run(self, images):
        return sum(self.conv(image[None]).pow(2).mean() for image in images)


SQUARES = [zeros(3, 4, 4), zeros(3, 4, 5), zeros(3, 6, 4)]
AREAS = (16 + 20 + 24) / 3
BOXES = [{"boxes": zeros(k, 4), "labels": labels(k)} for k in (1, 3, 2)]


@pytest.mark.parametrize(
    ("batch", "images_of"),
    [
        (SQUARES, list),
        ({"images": SQUARES}, lambda batch: batch["images"]),
        ({"images": SQUARES, "masks": [image[:1] for image in SQUARES]}, lambda batch: batch["images"]),
        ([*zip(SQUARES, BOXES, strict=True)], lambda batch: [image for image, _ in batch]),
        ([{"image": image, **target} for image, target in zip(SQUARES, BOXES, strict=True)], None),
        ([{"image": image, "target": target} for image, target in zip(SQUARES, BOXES, strict=True)], None),
        ([{"image": image, "boxes": zeros(1, 4)} for image in SQUARES], None),
        ([{"image": image, "boxes": zeros(3, 4)} for image in SQUARES], None),
    ],
)
def test_samples_of_a_list_that_are_run_one_by_one_are_its_elements(batch, images_of):
    images_of = images_of or (lambda batch: [sample["image"] for sample in batch])
    count = count_macs(OneByOne(), lambda module, batch, i: module.run(images_of(batch)), batch)
    assert (count.num_samples, count.macs) == (3, round(AREAS * 3 * 4))


def squared(*outputs):
    return sum(output.pow(2).mean() for output in outputs)


@pytest.mark.parametrize(
    ("batch", "step", "by_hand"),
    [
        ([zeros(n, 4) for n in (3, 5, 2, 7, 3)], lambda net, b: squared(*map(net, b)), 5),
        ([zeros(4, 4), zeros(12, 4)], lambda net, b: squared(*map(net, b)), None),  # perhaps two batches
        ([(zeros(4, 4), labels(4)), (zeros(12, 4), labels(12))], lambda net, b: squared(net(b[0][0])), None),
        ([zeros(8, 4), zeros(8, 4)], lambda net, b: squared(net(torch.cat(b))), 8),
        (([zeros(8, 4)] * 3,), lambda net, b: squared(net(torch.cat(b[0]))), 8),
        ([zeros(8, 4)] * 3, lambda net, b: F.triplet_margin_loss(*map(net, b)), 8),
        ([zeros(3, 4), zeros(5, 4)], lambda net, b: squared(net(torch.cat(b))), None),
        ([zeros(8, 2, 4), zeros(8, 3, 4)], lambda net, b: F.mse_loss(net(b[0]).mean(1), net(b[1]).mean(1)), 8),
        ([zeros(1, 4)] * 3, lambda net, b: squared(*map(net, b)), None),  # views of one sample, or samples
    ],
)
def test_calls_tell_views_from_samples(batch, step, by_hand):
    net = nn.ModuleDict({"net": nn.Linear(4, 3)})
    assert count_macs(net, lambda module, batch, i: step(module["net"], batch), batch).num_samples == by_hand


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize(("has_target", "by_hand"), [(False, None), (True, 16)])
def test_the_order_in_which_networks_are_called_decides_nothing(names, has_target, by_hand):
    towers = nn.ModuleDict({"a": nn.Linear(4, 5), "b": nn.Linear(2, 5)})
    batch = {"a": zeros(16, 4), "b": zeros(9, 2), "matches": labels(16 if has_target else 30)}

    def step(module, batch, batch_idx):
        out = {name: module[name](batch[name]) for name in names}
        products = out["a"] @ out["b"].T
        return F.cross_entropy(products, batch["matches"]) if has_target else -products.log_softmax(-1).mean()

    assert count_macs(towers, step, batch).num_samples == by_hand


def test_a_loss_on_one_of_two_batches_counts_none_of_them():
    batch = {"labelled": (zeros(4, 4), labels(4)), "others": (zeros(12, 4), labels(12))}

    def step(module, batch, batch_idx):
        others = squared(module["net"](batch["others"][0]))
        return F.cross_entropy(module["net"](batch["labelled"][0]), batch["labelled"][1]) + others

    assert count_macs(nn.ModuleDict({"net": nn.Linear(4, 3)}), step, batch).num_samples is None


@pytest.mark.parametrize(
    ("batch", "seen", "by_hand"),
    [
        ({"m": zeros(7, 7), "s": zeros(5, 8, 4), "t": zeros(7, 8, 4), "p": zeros(8, 5)}, Seen(7, compared={7}), 8),
        ((zeros(7, 8, 4), zeros(7, 7)), Seen(7), 8),
        ((labels(7, 5), labels(35)), Seen(7, compared={35}), 5),
        ((labels(7, 5), labels(35), zeros(7, 7)), Seen(7, compared={35}), 5),
        ((labels(7, 7), labels(49)), Seen(7, compared={49}), 7),
        ((labels(7, 5), zeros(9, 3)), Seen(7, compared={7}), None),  # cannot be used, so that nothing is known
        ((zeros(16, 8, 3), labels(16)), Seen(16, compared={16}), 16),  # a multiple by chance
    ],
)
def test_time_first_holds_beside_masks_and_targets_in_a_row(batch, seen, by_hand):
    seen.sequences = {5 if by_hand is None else 8 if by_hand == 16 else by_hand}
    assert num_samples(batch, seen) == by_hand


@pytest.mark.parametrize(
    ("batch", "by_hand"),
    [
        ((zeros(8, 1), zeros(8, 1)), 8),
        ((zeros(8, 6), labels(8)), 8),
        ((zeros(7, 1, 4), labels(1)), 1),
        (zeros(1, 7, 4), 1),
        (zeros(7, 1, 4), None),  # one sequence of seven steps, or seven samples
    ],
)
def test_attention_between_samples_makes_no_batch_of_one(batch, by_hand):
    assert num_samples(batch, Seen(rows=8, sequences={1})) == by_hand


def test_what_others_say_at_length_is_cut():
    assert len(message_of(RuntimeError("word " * 1000))) <= 300
    assert message_of(RuntimeError("word " * 1000)).endswith("word ...")
    assert message_of(NotApplicableError("x" * 400)) == "x" * 400
