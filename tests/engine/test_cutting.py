"""Single samples, or the first ones, cut out of batches, against cuts by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_zico import score
from lightning_zico.engine.cutting import are_first, check_cut, cut, cut_length, first_samples
from lightning_zico.engine.samples import num_samples
from lightning_zico.errors import NotApplicableError, UnsupportedBatchError
from tests.engine.batches import IMAGES, TARGETS, Graphs, labels, packed, zeros


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((zeros(3), zeros(4)), r"\[\(3,\), \(4,\)\]"),
        ((zeros(3), torch.tensor(1.0)), r"\[\(3,\), \(\)\]"),
        (torch.tensor(1.0), r"\[\(\)\]"),
        ("text", r"\[\]"),
    ],
)
def test_what_has_no_common_length_is_not_cut_to_single_samples(batch, said):
    with pytest.raises(UnsupportedBatchError, match=said + r".*axis=\"batch\""):
        cut_length(batch)


@pytest.mark.parametrize(
    ("batch", "count", "is_time_first", "said"),
    [
        (IMAGES, None, False, "the number of samples in a batch is unknown.*Pass `num_samples=`"),
        ((zeros(7, 4, 3), labels(7, 4)), 4, False, r"a batch of 4 with tensors of the shapes \(7, 4, 3\), \(7, 4\)\."),
        ((zeros(20, 3), labels(2, 60), labels(4)), 4, False, "a batch of 4"),
        ((zeros(5, 3), labels(2, 5)), 5, False, "a batch of 5"),  # five edges between five nodes
        ((zeros(5, 3), Graphs(5)), 5, False, "a batch of 5"),
        (Graphs(5), 5, False, "a batch of 5 with no tensors in tuples"),
        ((packed([5, 3, 2]), labels(3)), 3, False, "a batch of 3"),
        (([zeros(3, 8, 8)] * 3, labels(3)), 3, False, "a batch of 3"),  # three views, or images of three channels
        ((zeros(5, 5, 3), labels(5)), 5, True, "first two dimensions of a tensor both have length 5"),
        ({"x": zeros(20, 3), **{str(n): labels(n) for n in range(9)}}, 4, False, r"\(6,\), \.\.\.\. Use"),
    ],
)
def test_single_samples_are_cut_out_of_a_batch_or_there_is_a_reason(batch, count, is_time_first, said):
    with pytest.raises(NotApplicableError, match=said):
        check_cut(batch, count, may_be_time_first=is_time_first)


SINGLE = {
    "tensors": ((zeros(5, 3), labels(5)), 5, [(1, 3), (1,)]),
    "values that all share": (
        {"x": zeros(5, 3), "weight": torch.tensor(0.5), "task": "qa", "none": None, "n": 5},
        5,
        None,
    ),
    "a value for each": ({"x": zeros(3, 3), "ids": [7, 8, 9], "names": ["a", "b", "c"]}, 3, None),
    "arrays": ((zeros(3, 3), np.arange(3), np.arange(4)), 3, None),
    "views": (([zeros(5, 3), zeros(5, 3)], labels(5)), 5, [[(1, 3), (1, 3)], (1,)]),
    "as many views as fields": ([zeros(2, 3), zeros(2, 1)], 2, [(1, 3), (1, 1)]),
    "detection": ((IMAGES, TARGETS), 5, [[(3, 12, 10)], [{"boxes": (1, 4), "labels": (1,)}]]),
    "images as high as there are": (([zeros(3, 4, n) for n in (5, 6, 7, 8)], labels(4)), 4, [[(3, 4, 5)], (1,)]),
    "time first": ((zeros(7, 5, 3), labels(5)), 5, [(7, 1, 3), (1,)]),
    "tensor dictionary": ({"x": zeros(5, 3), "positions": zeros(1, 3)}, 5, {"x": (1, 3), "positions": (1, 3)}),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_sample_is_cut_out_of_every_field(name):
    batch, count, expected = SINGLE[name]
    is_time_first = name == "time first"
    assert check_cut(batch, count, may_be_time_first=is_time_first) == count
    first, second = (cut(batch, slice(n, n + 1), count, may_be_time_first=is_time_first) for n in (0, 1))
    if expected is not None:
        assert shapes(first) == expected
    elif name == "a value for each":
        assert (second["ids"], second["names"], shapes(second["x"])) == ([8], ["b"], (1, 3))
    elif name == "arrays":
        assert (second[1].tolist(), second[2].tolist()) == ([1], [0, 1, 2, 3])
    else:
        assert shapes(first) == {**batch, "x": (1, 3), "weight": ()}
    is_plain = name in ("tensors", "values that all share", "views", "as many views as fields", "tensor dictionary")
    assert are_first(batch, count) == is_plain


def shapes(batch):
    if isinstance(batch, torch.Tensor):
        return tuple(batch.shape)
    if isinstance(batch, dict):
        return {key: shapes(value) for key, value in batch.items()}
    return [shapes(part) for part in batch] if isinstance(batch, list | tuple) else batch


@pytest.mark.parametrize(
    ("batch", "count", "cut"),
    [
        ((zeros(5, 3), labels(5), torch.tensor(0.5), "text"), None, [(2, 3), (2,), (), "text"]),
        ((IMAGES, TARGETS), None, [shapes(IMAGES[:2]), shapes(TARGETS[:2])]),
        ([zeros(5, 8), zeros(5, 1)], 5, [(2, 8), (2, 1)]),
        (([zeros(5, 3)] * 2, labels(5)), None, [[(2, 3), (2, 3)], (2,)]),
        ((zeros(7, 5, 3), labels(5)), 5, [(7, 2, 3), (2,)]),
        ({"x": zeros(5, 3), "positions": zeros(1, 3)}, 5, {"x": (2, 3), "positions": (1, 3)}),
    ],
)
def test_the_first_samples_are_those_of_every_field(batch, count, cut):
    assert shapes(first_samples(batch, 2, count)) == cut


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ((zeros(20, 3), labels(2, 60), labels(4)), 4),
        (Graphs(4, x=zeros(20, 3)), None),
        ((zeros(20), torch.tensor([0, 4, 9, 15]), labels(4)), 4),
        (packed([5, 3, 2, 1]), None),
        ((zeros(20, 3), zeros(4)), None),
        (zeros(2, 3), 2),
    ],
)
def test_what_cannot_be_cut_as_a_whole_stays_whole(batch, count):
    assert first_samples(batch, 3, count) is batch


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("to_sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
@pytest.mark.parametrize("proxy", ["synflow", "zen", "jacob_cov", "epe_nas"])
@pytest.mark.parametrize("nodes", [5, 16])
def test_sparse_tensors_are_refused_in_words(to_sparse, proxy, nodes):
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, adjacency, x):
            return self.head(torch.sparse.mm(adjacency, self.inside(x)).relu())

    batches = [
        (to_sparse(torch.eye(nodes)), torch.randn(nodes, 4, generator=torch.manual_seed(i)), torch.arange(nodes) % 3)
        for i in (0, 1)
    ]
    step = lambda module, batch, i: F.cross_entropy(module(*batch[:2]), batch[2])  # noqa: E731
    error = score(Graph(), batches, (proxy,), step=step)[proxy].error
    assert error.startswith("not applicable: the batch has a sparse tensor")


class StatedDict(dict[str, torch.Tensor]):
    """A dictionary that knows its samples, as a TensorDict does, and cannot be cut by its index as one can."""

    @property
    def batch_size(self):
        return torch.Size([len(self["x"])])


def test_a_dictionary_that_knows_its_samples_is_cut_field_by_field():
    whole = StatedDict(x=torch.arange(5), y=torch.arange(5))
    assert num_samples(whole) == 5
    few = first_samples(whole, 2)
    assert type(few) is StatedDict
    assert {name: field.tolist() for name, field in few.items()} == {"x": [0, 1], "y": [0, 1]}
