"""Graphs and sets: a batch holds the nodes of several graphs in one row, or sets of points."""

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tests.contracts.modules.registry import NUM_CLASSES, NUM_SAMPLES, Trained, batches, labels, ordinary

NODES = torch.tensor([3, 5, 4, 6, 2, 5, 4, 3])  # 32 nodes, 4 a graph
NUM_EDGES = 64  # 8 a graph
NUM_FEATURES = 7


@dataclasses.dataclass
class Graphs:
    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    batch: Tensor
    y: Tensor

    @property
    def num_graphs(self) -> int:
        return len(self.y)

    def to(self, device: Any, non_blocking: bool = False) -> "Graphs":
        return dataclasses.replace(self, **{name: value.to(device) for name, value in vars(self).items()})


def edges(g: Generator) -> Tensor:
    starts = torch.cat([torch.zeros(1, dtype=torch.long), NODES.cumsum(0)[:-1]])
    return torch.cat(
        [start + torch.randint(int(n), (2, 8), generator=g) for start, n in zip(starts, NODES, strict=True)], 1
    )


def graphs(g: Generator) -> Graphs:
    x = torch.randn(int(NODES.sum()), NUM_FEATURES, generator=g)
    owners = torch.repeat_interleave(torch.arange(NUM_SAMPLES), NODES)
    return Graphs(x, edges(g), torch.randn(NUM_EDGES, 3, generator=g), owners, labels(g))


def summed(values: Tensor, index: Tensor, size: int) -> Tensor:
    return torch.zeros(size, *values.shape[1:], dtype=values.dtype, device=values.device).index_add(0, index, values)


class GCNLayer(nn.Module):
    """Written after torch_geometric's, with a weight of its own."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index
        degree = 1 + summed(torch.ones(len(target), device=x.device), target, len(x))
        norm = degree.rsqrt()
        x = x @ self.weight
        return (
            summed((norm[source] * norm[target])[:, None] * x[source], target, len(x)) + x / degree[:, None] + self.bias
        )


@ordinary(batches(graphs), lambda w: 4 * (NUM_FEATURES * w + w * w) + w * NUM_CLASSES)
class GCN(Trained):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = GCNLayer(NUM_FEATURES, width), GCNLayer(width, width)
        self.head = nn.Linear(width, NUM_CLASSES)

    def training_step(self, batch: Graphs, batch_idx: int) -> Tensor:
        x = F.relu(self.first(batch.x, batch.edge_index))
        x = F.relu(self.second(x, batch.edge_index))
        loss = F.cross_entropy(self.head(summed(x, batch.batch, batch.num_graphs)), batch.y)
        self.log("loss", loss, batch_size=batch.num_graphs)
        return loss


@ordinary(batches(graphs), lambda w: 4 * NUM_FEATURES * w + w * NUM_CLASSES, unweighted=["source", "target"])
class GAT(Trained):
    """Attention over neighbours with a softmax by scattering."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin = nn.Linear(NUM_FEATURES, width, bias=False)
        self.source, self.target = nn.Parameter(torch.randn(2, width // 2)), nn.Parameter(torch.randn(2, width // 2))
        self.head = nn.Linear(width, NUM_CLASSES)

    def training_step(self, batch: Graphs, batch_idx: int) -> Tensor:
        x = self.lin(batch.x).unflatten(1, (2, -1))
        start, end = batch.edge_index
        scores = F.leaky_relu((x * self.source).sum(-1)[start] + (x * self.target).sum(-1)[end], 0.2)
        highest = torch.full((len(x), 2), -1e9, device=x.device).scatter_reduce(
            0, end[:, None].expand(-1, 2), scores.detach(), "amax"
        )
        scores = torch.exp(scores - highest[end])
        weights = scores / (summed(scores, end, len(x))[end] + 1e-9)
        x = F.elu(summed(weights[..., None] * x[start], end, len(x))).flatten(1)
        mean = summed(x, batch.batch, len(batch.y)) / NODES[:, None].to(x.device)
        return F.cross_entropy(self.head(mean), batch.y)


@ordinary(
    batches(graphs),
    lambda w: 4 * NUM_FEATURES * w + 8 * (3 * 8 + 8 * w * w) + 8 * w * w + 4 * w * w + w,
    unweighted=["epsilon"],
)
class MessagePassing(Trained):
    """A network makes a matrix for each edge, which turns the features of its start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Linear(NUM_FEATURES, width)
        self.edge_net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, width * width))
        self.update, self.head = nn.Linear(width, width), nn.Linear(width, 1)

    def training_step(self, batch: Graphs, batch_idx: int) -> Tensor:
        x = F.relu(self.embed(batch.x))
        matrices = self.edge_net(batch.edge_attr).view(-1, self.width, self.width)
        messages = torch.bmm(x[batch.edge_index[0]][:, None], matrices)[:, 0]
        x = F.relu(x + self.update(summed(messages, batch.edge_index[1], len(x))))
        out = self.head(summed(x, batch.batch, batch.num_graphs)).squeeze(1)
        return F.mse_loss(out, batch.y.float())


class Links(NamedTuple):
    """The edges come first."""

    edge_index: Tensor
    x: Tensor
    batch: Tensor
    label: Tensor


def links(g: Generator) -> Links:
    return Links(*(getattr(graphs(g), name) for name in ("edge_index", "x", "batch", "y")))


@ordinary(batches(links), lambda w: 4 * (2 * NUM_FEATURES * w + 2 * w * w) + w * NUM_CLASSES)
class GraphSAGE(Trained):
    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [(NUM_FEATURES, width), (width, width)]
        self.own = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.neighbours = nn.ModuleList(nn.Linear(*size, bias=False) for size in sizes)
        self.head = nn.Linear(width, NUM_CLASSES)

    def training_step(self, batch: Links, batch_idx: int) -> Tensor:
        source, target = batch.edge_index
        x = batch.x
        count = summed(torch.ones(len(target), 1), target, len(x)).clamp(min=1)
        for own, neighbours in zip(self.own, self.neighbours, strict=True):
            x = F.normalize(F.relu(own(x) + neighbours(summed(x[source], target, len(x)) / count)), dim=-1)
        return F.cross_entropy(self.head(summed(x, batch.batch, len(batch.label))), batch.label)


def dense(g: Generator) -> Any:
    adjacency = (torch.rand(NUM_SAMPLES, 6, 6, generator=g) < 0.4).float()
    return {"adjacency": adjacency, "x": torch.randn(NUM_SAMPLES, 6, NUM_FEATURES, generator=g), "y": labels(g)}


@ordinary(batches(dense), lambda w: 6 * NUM_FEATURES * w + 2 * 36 * w + 6 * w * w + w * NUM_CLASSES)
class DenseGIN(Trained):
    """Matrices of neighbours in one tensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(NUM_FEATURES, width), nn.Linear(width, width)
        self.epsilon = nn.Parameter(torch.zeros(2))
        self.head = nn.Linear(width, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = self.first(batch["x"])
        x = F.relu((1 + self.epsilon[0]) * x + torch.bmm(batch["adjacency"], x))
        x = self.second(x)
        x = F.relu((1 + self.epsilon[1]) * x + batch["adjacency"] @ x)
        return F.cross_entropy(self.head(x.sum(1)), batch["y"])


points = batches(lambda g: (torch.randn(NUM_SAMPLES, 10, 3, generator=g), labels(g)))


@ordinary(points, lambda w: 10 * (3 * w + w * 2 * w) + 2 * w * 9 + 10 * 9 + 10 * (3 * w) + w * NUM_CLASSES)
class PointNet(Trained):
    """Turns the points by a matrix that it computes from them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.align = nn.Sequential(
            nn.Conv1d(3, width, 1), nn.BatchNorm1d(width), nn.ReLU(), nn.Conv1d(width, 2 * width, 1)
        )
        self.matrix = nn.Linear(2 * width, 9)
        self.shared = nn.Sequential(nn.Conv1d(3, width, 1), nn.BatchNorm1d(width), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.0), nn.Linear(width, NUM_CLASSES))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        matrix = self.matrix(self.align(x.mT).amax(-1)).view(-1, 3, 3) + torch.eye(3, device=x.device)
        features = self.shared((x @ matrix).mT)
        penalty = (torch.eye(3, device=x.device) - matrix * matrix.mT).square().mean()
        return F.cross_entropy(self.head(features.amax(-1)), y) + 1e-3 * penalty


@ordinary(points, lambda w: 10 * (3 * w + w * w) + w * w + w * NUM_CLASSES)
class DeepSets(Trained):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, width), nn.ELU(), nn.Linear(width, width))
        self.rho = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, NUM_CLASSES))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.rho(self.phi(batch[0]).sum(1)), batch[1])


@ordinary(points, lambda w: 10 * 10 * 3 + 30 * (6 * w + w * w) + w * NUM_CLASSES)
class EdgeConv(Trained):
    """Convolves over the three nearest neighbours of each point."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(6, width, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, width, 1))
        self.head = nn.Linear(width, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        with torch.no_grad():
            square = x.square().sum(-1)
            distance = square[:, :, None] - 2 * x @ x.mT + square[:, None]
            nearest = distance.topk(3, largest=False).indices
        near = x[torch.arange(len(x), device=x.device)[:, None, None], nearest]
        pairs = torch.cat([x[:, :, None].expand_as(near), near - x[:, :, None]], -1).movedim(-1, 1)
        return F.cross_entropy(self.head(self.net(pairs).amax((2, 3))), y)
