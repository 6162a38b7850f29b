"""Small modules, one for each thing that differentiation stumbles over, and batches for them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_zico.engine.gradients import stream_gradients


def step(module, batch, batch_idx):
    return F.cross_entropy(module(batch[0]), batch[1])


def batches_of(*shape, num_batches=2, num_samples=6, dtype=torch.float32):
    return [
        (torch.randn(num_samples, *shape, dtype=dtype), torch.randint(0, 3, (num_samples,))) for _ in range(num_batches)
    ]


def trainable(module):
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def gradients_of(module, batches, step=step, names=None, **options):
    """All gradients of a pass, in order, each a dictionary by name; and the facts of the pass."""
    collected = []

    def consume(chunk):
        for i in range(len(chunk.losses)):
            collected.append({name: gradient[i] for name, gradient in chunk.gradients.items()})

    facts = stream_gradients(module, step, batches, consume, names=names or trainable(module), **options)
    return collected, facts


def assert_same(actual, expected, relative):
    """Compare gradients by name, each with the largest entry of its parameter's gradient as the scale."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.keys() == e.keys()
        for name in e:
            assert a[name].shape == e[name].shape
            scale = max(e[name].abs().max().item(), 1e-3)
            assert (a[name] - e[name]).abs().max().item() <= relative * scale, name


def identical(module, state):
    now = module.state_dict()
    return now.keys() == state.keys() and all(torch.equal(now[name], state[name]) for name in state)


def mlp(dropout=0.0):
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 3))


def cnn(**norm):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4, **norm),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4, **norm),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 25, 3),
    )


class Last(nn.Module):
    """The last step of a recurrent network, classified."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 5, num_layers=2, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.layer(x).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.second(torch.tanh(self.first(x))))


class Writing(nn.Module):
    """Writes to its own weight before it uses it, as weight clipping and weight standardisation do."""

    def __init__(self, how):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.how = how

    def forward(self, x):
        if self.how == "data":
            self.linear.weight.data.clamp_(-0.1, 0.1)
        else:
            with torch.no_grad():
                self.linear.weight.mul_(0.5)
        return self.linear(x)


class _Doubled(torch.autograd.Function):
    """The old style, without `setup_context`, which `torch.func` refuses."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return _Doubled.apply(self.linear(x))


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant, norm=False):
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5) if norm else nn.Identity()
        self.second = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)
        self.use_reentrant = use_reentrant

    def _middle(self, x):
        return torch.tanh(self.second(self.norm(x)))

    def forward(self, x):
        x = self.first(x)
        x = (
            self._middle(x)
            if self.use_reentrant is None
            else checkpoint(self._middle, x, use_reentrant=self.use_reentrant)
        )
        return self.head(x)


class Peeking(nn.Module):
    """Looks at a value, which nothing batched by vmap has."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x) * (2.0 if x.sum().item() > 0 else 1.0)


class Remembering(nn.Module):
    """Writes its last output into a tensor that is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.last = torch.zeros(3)

    def forward(self, x):
        out = self.linear(x)
        self.last.copy_(out.detach().mean(0))
        return out


@dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor
