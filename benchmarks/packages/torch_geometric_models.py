"""torch_geometric: networks over graphs, on batches of its own class."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GAT, GCN, GIN, EdgeConv, GraphSAGE, SchNet, global_add_pool, global_mean_pool

from packages import NUM_SAMPLES, Entry, Fitted

PACKAGE = "torch_geometric"


def _graph(idx):
    g = torch.Generator().manual_seed(idx)
    nodes = int(torch.randint(4, 10, (1,), generator=g))
    return Data(
        x=torch.randn(nodes, 7, generator=g),
        z=torch.randint(1, 9, (nodes,), generator=g),
        pos=2 * torch.randn(nodes, 3, generator=g),
        edge_index=torch.randint(nodes, (2, 3 * nodes), generator=g),
        y=torch.tensor([idx % 4]),
    )


def _data():
    return DataLoader([_graph(idx) for idx in range(2 * NUM_SAMPLES)], batch_size=NUM_SAMPLES)


def _graph_loss(module, batch):
    x = module.network(batch.x, batch.edge_index)
    return F.cross_entropy(module.head(global_mean_pool(x, batch.batch)), batch.y)


def _graph_network(network, **options):
    def build(width):
        return Fitted(network(7, width, num_layers=2, **options), _graph_loss, head=nn.Linear(width, 4))

    return Entry(network.__name__, build, _data)


def _edge_conv(width):
    network = EdgeConv(nn.Sequential(nn.Linear(14, width), nn.ReLU(), nn.Linear(width, width)), aggr="max")
    return Fitted(network, _graph_loss, head=nn.Linear(width, 4))


def _energy(module, batch):
    return F.mse_loss(module.network(batch.z, batch.pos, batch.batch).squeeze(1), batch.y.float())


def _schnet(width):
    edges = _Neighbours()
    return Fitted(SchNet(width, width, 2, num_gaussians=8, cutoff=4.0, interaction_graph=edges), _energy)


class _Neighbours(nn.Module):
    """All pairs of a graph, for when no package for searching neighbours is installed."""

    def forward(self, pos, batch):
        same = (batch[:, None] == batch[None]).fill_diagonal_(False)
        edges = same.nonzero().T
        return edges, (pos[edges[0]] - pos[edges[1]]).norm(dim=-1)


def _node_loss(module, batch):
    return F.cross_entropy(
        module.network(batch.x, batch.edge_index), global_add_pool(batch.x, batch.batch)[batch.batch].argmax(1) % 4
    )


ENTRIES = (
    _graph_network(GCN),
    _graph_network(GAT, heads=2),
    _graph_network(GIN),
    _graph_network(GraphSAGE),
    Entry("GCN of nodes", lambda w: Fitted(GCN(7, w, 2, out_channels=4), _node_loss), _data),
    Entry("EdgeConv", _edge_conv, _data),
    Entry("SchNet", _schnet, _data),
)
