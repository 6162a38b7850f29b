"""Random images and sentences for models of zoos."""

from typing import Any

import torch
from torch import Tensor

NUM_CLASSES = 3


def image_batches(size: int, num_samples: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Make two batches of images ``[N, 3, size, size]`` with labels."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(num_samples) % NUM_CLASSES
    return [(torch.randn(num_samples, 3, size, size, generator=generator), labels) for _ in range(2)]


def text_batches(num_samples: int = 4, length: int = 12, vocab_size: int = 40) -> list[dict[str, Any]]:
    """Make two batches of sentences as a tokeniser gives them; each is padded a little."""
    generator = torch.Generator().manual_seed(7)
    batches = []
    for _ in range(2):
        tokens = torch.randint(1, vocab_size, (num_samples, length), generator=generator)
        mask = (torch.arange(length) < length - 1 - torch.arange(num_samples)[:, None] % 3).long()
        labels = torch.arange(num_samples) % NUM_CLASSES
        batches.append({"input_ids": tokens * mask, "attention_mask": mask, "labels": labels})
    return batches
