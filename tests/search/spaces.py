"""A space so small that all of it is known, and data for it."""

import itertools
import random
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_zico.spaces import ArchSyntaxError, SearchSpace


class Bits(SearchSpace[str]):
    """Texts of six bits; a one is a hidden layer as wide as its place from 1. Its network takes ``[N, 2, 5, 5]``."""

    name = "bits"

    @property
    def size(self) -> int:
        return 64

    def parse(self, text: str) -> str:
        if not re.fullmatch("[01]{6}", text):
            raise ArchSyntaxError(text, 0, "six bits")
        return text

    def sample(self, rng: random.Random) -> str:
        return format(rng.randrange(64), "06b")

    def neighbours(self, arch: str) -> Iterator[str]:
        for idx, bit in enumerate(arch):
            yield arch[:idx] + "10"[int(bit)] + arch[idx + 1 :]

    def suggest(self, trial: Any) -> str:
        return "".join(str(trial.suggest_int(f"bit_{idx}", 0, 1)) for idx in range(6))

    def widths(self, arch: str) -> list[int]:
        return [idx for idx, bit in enumerate(arch, 1) if bit == "1"]

    def depth(self, arch: str) -> int:
        return len(self.widths(arch)) + 1

    def params(self, arch: str, *, num_classes: int = 10, in_channels: int = 3) -> int:
        sizes = [25 * in_channels, *self.widths(arch), num_classes]
        return sum(a * b + b for a, b in itertools.pairwise(sizes))

    def macs(self, arch: str, resolution: int = 32, *, num_classes: int = 10, in_channels: int = 3) -> int:
        sizes = [25 * in_channels, *self.widths(arch), num_classes]
        return sum(a * b for a, b in itertools.pairwise(sizes))

    def build(self, arch: str, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
        sizes = [25 * in_channels, *self.widths(arch), num_classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def blocks(self, arch: str) -> tuple[str, ...]:
        return tuple(str(1 + 2 * idx) for idx in range(len(self.widths(arch)) + 1))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(6, 2, 5, 5, generator=generator), torch.arange(6) % 3) for _ in range(2)]
