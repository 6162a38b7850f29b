"""Small networks of every kind that proxies meet; activations are modules, since that is what the twins see."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(out_channels)
        self.first_relu = nn.ReLU()
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(out_channels)
        self.link = nn.Identity() if stride == 1 else nn.Conv2d(channels, out_channels, 1, stride)
        self.last_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first_relu(self.first_norm(self.first(x)))
        return self.last_relu(self.second_norm(self.second(hidden)) + self.link(x))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm, self.attention = nn.LayerNorm(width), Attention(width)
        self.second_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first_norm(x))
        return x + self.mlp(self.second_norm(x))


class ViT(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, width, 2, stride=2)
        self.positions = nn.Parameter(0.1 * torch.randn(1, 9, width))
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class Tokens(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 12, dropout=0.0, activation=nn.GELU(), batch_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(dim=1))


class Mixed(nn.Module):
    """What is rarer: groups, a transposed convolution, activations in place, a layer that runs twice, a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
        self.relu = nn.ReLU(inplace=True)
        self.transposed = nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.leaky = nn.LeakyReLU(0.1, inplace=True)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.sigmoid = nn.Sigmoid()
        self.frozen = nn.Linear(6, 5).requires_grad_(False)
        self.hidden, self.tanh = nn.Linear(5, 5), nn.Tanh()
        self.tied = nn.Linear(5, 5)
        self.tied.weight = self.hidden.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.leaky(self.transposed(self.relu(self.grouped(x))))
        x = self.shared(self.shared(x)) * self.sigmoid(x)
        return self.head(self.tied(self.tanh(self.hidden(self.frozen(x.mean(dim=(2, 3)))))))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        Residual(3, 3, stride=1),
        Residual(3, 4, stride=2),
        Residual(4, 4, stride=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def mlp(num_classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, num_classes))
