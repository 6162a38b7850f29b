"""A supernet of NAS-Bench-201: all archs share weights, and are ranked by their accuracy with these.

Index conventions:
    N: images
"""

import math
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from paper_theory import Images, images_of
from torch import nn
from torch.nn.functional import cross_entropy
from transfer_zoo import Kept

from lightning_zico.engine.scope import preserved_rng
from lightning_zico.ranking import kendall
from lightning_zico.spaces import NASBench201, NASBench201Arch
from lightning_zico.spaces.nas_bench_201 import EDGES, OPS

SPACE = NASBench201()
NUM_TRAINED, NUM_VALIDATED = 1600, 400  # of the 2,000 training images
BATCH_SIZE, LR, MOMENTUM, WEIGHT_DECAY = 64, 0.05, 0.9, 5e-4
SHARE_OF_TRAINING = 0.5  # of the seconds; the rest is for ranking


class Found(NamedTuple):
    """What a search found: an arch, its processor seconds, how many archs it looked at, and a remark."""

    arch: str
    seconds: float
    num_archs: int
    note: str = ""


class Supernet(nn.Module):
    """Five networks of one operation each, of which every arch takes the parts that it needs.

    Stem, residual blocks between stages, and head are those of the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.donors = nn.ModuleDict({op: SPACE.build(NASBench201Arch((op,) * len(EDGES))) for op in OPS})

    def path(self, arch: NASBench201Arch) -> nn.Sequential:
        """Return the network of an arch; it shares its weights with all others."""
        blocks = []
        for place, own in enumerate(self.donors[OPS[0]].blocks):
            if hasattr(own, "edges"):
                edges = (self.donors[op].blocks[place].edges[edge] for edge, op in enumerate(arch.ops))
                own = type(own)(edges)
            blocks.append(own)
        first = self.donors[OPS[0]]
        return nn.Sequential(first.stem, *blocks, first.head)

    def shared_parameters(self) -> list[nn.Parameter]:
        """List the parameters that any arch uses, each once."""
        first, *others = self.donors.values()
        cells = [block for donor in others for block in donor.blocks if hasattr(block, "edges")]
        return [*first.parameters(), *(parameter for cell in cells for parameter in cell.parameters())]


def train(supernet: Supernet, data: Images, seconds: float, seed: int) -> int:
    """Train a random path in each step for some processor seconds, and return the number of steps."""
    parameters = supernet.shared_parameters()
    optimizer = torch.optim.SGD(parameters, LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    start, num_steps = time.process_time(), 0
    while (elapsed := time.process_time() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 + math.cos(math.pi * elapsed / seconds)) / 2
        places = torch.randint(len(data.labels), (BATCH_SIZE,), generator=generator)
        images = data.images[places]
        images = images.flip(-1) if rng.random() < 0.5 else images
        optimizer.zero_grad()
        cross_entropy(supernet.path(SPACE.sample(rng)).train()(images), data.labels[places]).backward()
        optimizer.step()
        num_steps += 1
    return num_steps


@torch.no_grad()
def accuracy(network: nn.Module, data: Images) -> float:
    """Compute the accuracy in %, with the statistics of batches of a hundred images."""
    batches = data.batches(min(100, len(data.labels)))
    right = sum(int((network(images).argmax(dim=1) == labels).sum()) for images, labels in batches)
    return 100 * right / len(data.labels)


def rank(supernet: Supernet, data: Images, seconds: float, seed: int) -> dict[str, float]:
    """Measure at least two random archs with the shared weights, for some processor seconds."""
    rng, found = random.Random(f"rank {seed}"), dict[str, float]()
    start = time.process_time()
    while len(found) < 2 or time.process_time() - start < seconds:
        arch = SPACE.sample(rng)
        if str(arch) not in found:
            found[str(arch)] = accuracy(supernet.path(arch).train(), data)
        if len(found) == SPACE.size:
            break
    return found


def searched(data: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Train a supernet, and rank archs with it, within some processor seconds."""
    images, labels = images_of(data, "train", NUM_TRAINED + NUM_VALIDATED)
    trained = Images(images[:NUM_TRAINED], labels[:NUM_TRAINED])
    validated = Images(images[NUM_TRAINED:], labels[NUM_TRAINED:])
    with preserved_rng(seed):
        supernet = Supernet()
    start = time.process_time()
    num_steps = train(supernet, trained, SHARE_OF_TRAINING * seconds, seed)
    accuracies = rank(supernet, validated, (1 - SHARE_OF_TRAINING) * seconds, seed)
    return {"num_steps": num_steps, "accuracies": accuracies, "cost_s": time.process_time() - start}


def search_supernet(arguments: Any, seconds: int, num_seeds: int, truths: Mapping[str, float]) -> list[Found]:
    """Search with a supernet under each seed, each for the same time, and describe how well it ranks."""
    kept = Kept(arguments.cache / f"paper-supernet-{torch.__version__.partition('+')[0]}.jsonl")
    found = []
    for seed in range(num_seeds):
        record = kept.once(f"{seconds} {seed}", lambda s=seed: searched(arguments.data, seconds, s))
        accuracies = record["accuracies"]
        tau = kendall(list(accuracies.values()), [truths[arch] for arch in accuracies])
        best = max(accuracies, key=lambda arch: accuracies[arch])
        told = "-" if tau is None else f"{tau:.2f}"
        note = (
            f"seed {seed}, {record['num_steps']} steps, {len(accuracies)} archs ranked. Kendall's tau of the accuracy "
            f"with shared weights and the true one is {told}. The first has {accuracies[best]:.1f} % with them."
        )
        found.append(Found(best, record["cost_s"], len(accuracies), note))
    return found
