"""Three kinds of networks for images of 32 x 32 pixels.

Index conventions:
    N: samples in a batch
    C, H, W: channels, height, width
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """A body with a shortcut, and optionally an activation after the sum."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut or nn.Identity()
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to the shape that body and shortcut share."""
        return self.after(self.body(x) + self.shortcut(x))


class Cell(nn.Module):
    """A cell of NAS-Bench-201: four nodes, here joined by three 3x3 and one 1x1 convolution and two skips."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(relu_conv_norm(width, width, kernel=kernel) for kernel in (3, 3, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        first = self.edges[0](x)
        second = self.edges[1](first) + x
        return self.edges[2](second) + self.edges[3](first) + x


class VisionTransformer(nn.Module):
    """A network like ViT-tiny: patches of 4, width 192, 3 heads; the mean over tokens is classified."""

    def __init__(self, depth: int = 6, width: int = 192, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            )
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, 3, 32, 32]`` to logits ``[N, 10]``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)  # [N, 192, 8, 8] -> [N, 64, 192]
        return self.head(self.layers(tokens + self.positions).mean(dim=1))


def relu_conv_norm(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Build an operation in NAS-Bench-201's order."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(outputs))


def nas_bench_201(cells: int = 5) -> nn.Module:
    """Build a network of NAS-Bench-201's skeleton: three stages of cells, 16, 32 and 64 wide; 0.8 M parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)]
    for width in (16, 32, 64):
        if width > 16:
            body = nn.Sequential(relu_conv_norm(width // 2, width, stride=2), relu_conv_norm(width, width))
            shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(width // 2, width, 1, bias=False))
            layers.append(Residual(body, shortcut))
        layers.extend(Cell(width) for _ in range(cells))
    return nn.Sequential(*layers, nn.BatchNorm2d(64), nn.ReLU(), *head(64))


def resnet18() -> nn.Module:
    """Build ResNet-18 for CIFAR: a 3x3 stem and no pooling before the last layer; 11 M parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for width in (64, 64, 128, 128, 256, 256, 512, 512):
        stride = 1 if width == inputs else 2
        conv = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        body = nn.Sequential(conv, nn.BatchNorm2d(width), relu_conv_norm(width, width))
        shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False)
        projected = nn.Sequential(shortcut, nn.BatchNorm2d(width)) if stride == 2 else None
        layers.append(Residual(body, projected, nn.ReLU()))
        inputs = width
    return nn.Sequential(*layers, *head(512))


def head(width: int) -> tuple[nn.Module, ...]:
    """Build the classifier of a convolutional network."""
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "nas_bench_201": nas_bench_201,
    "resnet18": resnet18,
    "vit_tiny": VisionTransformer,
}
