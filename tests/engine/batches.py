"""Batches of many kinds."""

import dataclasses
from collections import UserDict, namedtuple
from typing import Any

import torch
from torch import nn


class Graphs:
    """As torch_geometric's: an object that is no container, is cloned and knows its graphs."""

    def __init__(self, num_graphs, **fields):
        self.num_graphs = num_graphs
        self.__dict__.update(fields)

    def clone(self):
        return self


class Nodes(Graphs):
    """Gives itself as a dictionary, and does not know its graphs."""

    def __init__(self, **fields):
        self.fields = fields

    def to_dict(self):
        return self.fields


class TensorDict(UserDict):
    def __init__(self, fields, batch_size):
        super().__init__(fields)
        self.batch_size = torch.Size(batch_size)


@dataclasses.dataclass
class Pair:
    x: Any
    y: Any


Named = namedtuple("Named", ["x", "y"])


def zeros(*shape):
    return torch.zeros(*shape)


def labels(*shape):
    return torch.zeros(*shape, dtype=torch.long)


def packed(lengths):
    return nn.utils.rnn.pack_padded_sequence(zeros(len(lengths), max(lengths), 4), lengths, batch_first=True)


IMAGES = [zeros(3, 12, 10), zeros(3, 9, 12), zeros(3, 8, 8), zeros(3, 12, 12), zeros(3, 7, 7)]
TARGETS = [{"boxes": zeros(k, 4), "labels": labels(k)} for k in (1, 3, 2, 4, 2)]
