"""What all transfer proxies cost beside one plain forward pass over the same samples, in time and in memory.

See README.md for how to run it and for its latest figures.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from fidelity import positive, say
from rich.console import Console
from speed import print_table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transfer_zoo import SCORES

from lightning_zico import Candidate
from lightning_zico.bridge import TrainingData
from lightning_zico.proxies import resolve_proxies
from lightning_zico.results import ScoreCard
from lightning_zico.scoring.scorer import Scorer
from lightning_zico.zoo import ImageClassifier
from lightning_zico.zoo.layers import last_layer

NUM_CLASSES = 10
MODES = ("network", "plain", "scored")  # what a process does whose memory is measured


class Noise(Dataset[Any]):
    """Images of noise, each made when it is read."""

    def __init__(self, num_samples: int, size: int) -> None:
        self.num_samples = num_samples
        self.size = size

    def __len__(self) -> int:
        """Return the number of images."""
        return self.num_samples

    def __getitem__(self, idx: int) -> tuple[Tensor, int]:
        """Make an image and its class."""
        if idx >= len(self):
            raise IndexError
        return torch.rand(3, self.size, self.size, generator=torch.Generator().manual_seed(idx)), idx % NUM_CLASSES


def network_of(name: str) -> nn.Module:
    """Build a network of timm with its 1,000 classes, so that `leep` and `nce` have a head to look at."""
    import timm

    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name)
    return network


def loader_of(arguments: argparse.Namespace) -> "DataLoader[Any]":
    """Return a loader of all samples."""
    return DataLoader(Noise(arguments.num_samples, arguments.size), batch_size=arguments.batch_size)


def pass_plainly(network: nn.Module, batches: Any) -> None:
    """Pass all samples through a network in evaluation mode."""
    network.eval()
    with torch.no_grad():
        for images, _ in batches:
            network(images)
    network.train()


def scorer_of(arguments: argparse.Namespace) -> Scorer:
    """Read the samples, and return what scores a candidate on them."""
    with TrainingData(loader_of(arguments)) as data:
        reading = data.read(2, num_samples_transfer=arguments.num_samples)
    proxies = resolve_proxies(SCORES)
    return Scorer(reading, proxies)


def scored(scorer: Scorer, network: nn.Module) -> ScoreCard:
    """Score a network, which must succeed by all proxies."""
    name, head = last_layer(network)
    module = ImageClassifier(network, NUM_CLASSES, source_head=lambda: (f"network.{name}", head))
    card = scorer.score(Candidate("network", lambda: module))
    errors = [card[name].error for name in SCORES if card[name].error is not None]
    if errors:
        raise RuntimeError(errors[0])
    return card


def peak_of(mode: str, words: Sequence[str]) -> int:
    """Run this file in a process of its own, and return the peak of its memory in bytes."""
    done = subprocess.run(
        [sys.executable, __file__, *words, "--memory-of", mode], capture_output=True, text=True, check=True
    )
    return int(json.loads(done.stdout))


def run_for_memory(mode: str, arguments: argparse.Namespace) -> int:
    """Run a mode, and return the peak of this process's memory in bytes."""
    network = network_of(arguments.model)
    if mode == "plain":
        pass_plainly(network, islice(loader_of(arguments), 4))  # more batches take no more memory
    if mode == "scored":
        scored(scorer_of(arguments), network)
    status = Path("/proc/self/status").read_text()  # of Linux; getrusage would include the parent before `exec`
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--model", default="resnet50", help="a model of timm")
    made.add_argument("--num-samples", type=positive, default=1000)
    made.add_argument("--size", type=positive, default=224, help="height and width of the images, in pixels")
    made.add_argument("--batch-size", type=positive, default=16)
    made.add_argument("--rounds", type=positive, default=3, help="measurements of each, taking turns")
    made.add_argument("--quick", action="store_true", help="show in a minute that it runs, with few and small images")
    made.add_argument("--memory-of", choices=MODES, help=argparse.SUPPRESS)
    words = sys.argv[1:] if words is None else words
    arguments = made.parse_args(words)
    if arguments.quick:
        vars(arguments).update(model="lcnet_050", num_samples=32, size=64, rounds=1)
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(run_for_memory(arguments.memory_of, arguments))
        return
    console = Console(width=None if Console().is_terminal else 200)
    network, scorer = network_of(arguments.model), scorer_of(arguments)
    passes, scorings = [], []
    for _ in range(arguments.rounds):
        start = time.process_time()
        pass_plainly(network, scorer.transfer_batches)
        between = time.process_time()
        scored(scorer, network)
        passes.append(between - start)
        scorings.append(time.process_time() - between)
    print_times(console, passes, scorings)
    peaks = {mode: peak_of(mode, words) / 1e6 for mode in MODES}
    samples = arguments.num_samples * 3 * arguments.size**2 * 4 / 1e6
    rows = [[mode, f"{peak:.0f}", f"{peak - peaks['network']:.0f}"] for mode, peak in peaks.items()]
    title = f"Peak memory, MB; the samples themselves take {samples:.0f} MB"
    print_table(console, title, ["a process with", "peak", "above the network"], rows)
    say(console, f"{Path(__file__).name}: {arguments.model}, {arguments.num_samples} samples, {arguments.size} pixels.")


def print_times(console: Console, passes: Sequence[float], scorings: Sequence[float]) -> None:
    """Print seconds of the process: medians over the rounds."""
    ratios = [scoring / own for scoring, own in zip(scorings, passes, strict=True)]
    rows = [
        ["one plain pass", f"{statistics.median(passes):.2f}", "1.00"],
        ["all transfer proxies", f"{statistics.median(scorings):.2f}", f"{statistics.median(ratios):.3f}"],
    ]
    title = f"Seconds of the process; ratios of the rounds: {', '.join(f'{ratio:.3f}' for ratio in ratios)}"
    print_table(console, title, ["what", "seconds", "of a pass"], rows)


if __name__ == "__main__":
    main()
