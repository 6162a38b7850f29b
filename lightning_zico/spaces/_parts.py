"""Parts from which several spaces build their networks, and their costs.

Index conventions:
    N: samples in a batch
    C, H, W: channels, height, width
    K: classes
"""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

# (from, to) of each edge of a cell, in the order of the strings; node 0 is the input of the cell, node 3 its output.
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))

NUM_NODES = 4

# Kernel sizes of the operations that consist of ReLU, convolution and batch norm.
KERNELS = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}


class Conv(NamedTuple):
    """The costs of a convolution without bias.

    Attributes:
        kernel: Height and width of the kernel.
        inputs: Number of input channels.
        outputs: Number of output channels.
        halvings: How often the image has been halved after the convolution.
        normed: Whether a batch norm follows; its scale and shift are counted as well.
    """

    kernel: int
    inputs: int
    outputs: int
    halvings: int = 0
    normed: bool = True

    def params(self) -> int:
        """Count the parameters."""
        return self.kernel**2 * self.inputs * self.outputs + 2 * self.normed * self.outputs

    def macs(self, resolution: int) -> int:
        """Count the multiply-accumulate operations for one image with this height and width."""
        side = -(-resolution // 2**self.halvings)  # rounded up, as in strided convolutions
        return self.kernel**2 * self.inputs * self.outputs * side**2


class Cell(nn.Module):
    """A cell: each node is the sum of its incoming edges.

    Args:
        edges: Operation of each of `EDGES`.
    """

    def __init__(self, edges: Iterable[nn.Module]) -> None:
        super().__init__()
        self.edges = nn.ModuleList(edges)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to the output shape of the edges from node 0."""
        nodes = [x]
        for node in range(1, NUM_NODES):
            incoming = [edge(nodes[start]) for edge, (start, end) in zip(self.edges, EDGES, strict=True) if end == node]
            nodes.append(reduce(torch.add, incoming))
        return nodes[-1]


class Reduction(nn.Module):
    """The residual block between two stages of NATS-Bench; it halves the image.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(relu_conv_norm(3, inputs, outputs, stride=2), relu_conv_norm(3, outputs, outputs))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, H / 2, W / 2]``."""
        return self.shortcut(x) + self.body(x)

    @staticmethod
    def convs(inputs: int, outputs: int, halvings: int) -> list[Conv]:
        """List the convolutions; that of the shortcut has no batch norm."""
        return [
            Conv(3, inputs, outputs, halvings),
            Conv(3, outputs, outputs, halvings),
            Conv(1, inputs, outputs, halvings, normed=False),
        ]


class Zero(nn.Module):
    """The operation ``none``."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to zeros of the same shape."""
        # As published: a product, so that layers before this edge get a gradient of zero instead of none.
        return x.mul(0.0)


def relu_conv_norm(kernel: int, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Build ReLU, convolution, batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(outputs))


def nats_stem(in_channels: int, width: int) -> nn.Sequential:
    """Build the layers before the first cell of a NATS-Bench network."""
    return nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))


def nats_head(width: int, num_classes: int) -> nn.Sequential:
    """Build the layers after the last cell of a NATS-Bench network: ``[N, C, H, W]`` to ``[N, K]``."""
    return nn.Sequential(
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )


def nats_params(convs: Iterable[Conv], width: int, num_classes: int) -> int:
    """Count the parameters of a NATS-Bench network with these convolutions and a last width of ``width``."""
    return sum(conv.params() for conv in convs) + 2 * width + (width + 1) * num_classes


def nats_macs(convs: Iterable[Conv], width: int, num_classes: int, resolution: int) -> int:
    """Count the multiply-accumulate operations of that network, per sample.

    Raises:
        ValueError: If ``resolution`` is not a multiple of 4: the two branches of a residual block would differ in size.
    """
    if resolution < 1 or resolution % 4:
        raise ValueError(
            f"Invalid resolution={resolution}: expected a multiple of 4, because the network halves it twice."
        )
    return sum(conv.macs(resolution) for conv in convs) + width * num_classes
