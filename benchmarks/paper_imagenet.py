"""The three published searches for ImageNet, run from end to end on generated images, and how long they would take."""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fidelity import say
from rich.console import Console
from search import CONFIG, PUBLISHED
from speed import print_table
from torch.nn.functional import cross_entropy

from lightning_zico import Candidate, SearchResult
from lightning_zico.bridge import Reading
from lightning_zico.proxies import resolve_proxies
from lightning_zico.scoring.placement import Placement
from lightning_zico.scoring.scorer import Scorer
from lightning_zico.spaces import get_space

Record = dict[str, Any]

RESOLUTION = 224
NUM_TRIALS, NUM_BATCHES, BATCH_SIZE = 100_000, 2, 128  # as published
MOST_DEPTH = {450: 14, 600: 14, 1000: 16}


@dataclass(frozen=True)
class Settings:
    """How much of each search is run.

    Args:
        budgets: Budgets in million MACs, from those that have a file.
        num_trials: Number of trials.
        batch_size: Images in a batch.
        resolution: Size of the images, in pixels.
        images_per_class: Number of images in each of eight classes.
    """

    budgets: tuple[int, ...] = (450, 600, 1000)
    num_trials: int = 4
    batch_size: int = 4
    resolution: int = RESOLUTION
    images_per_class: int = 2


QUICK = Settings(budgets=(450,), num_trials=2, batch_size=2, resolution=32)


def make_images(root: Path, settings: Settings) -> None:
    """Write a folder of noise, with one folder per class."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in range(8):
        folder = root / f"class_{label}"
        folder.mkdir(parents=True)
        for number in range(settings.images_per_class):
            pixels = rng.integers(0, 256, (settings.resolution, settings.resolution, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")


def command(config: Path, images: Path, output: Path, settings: Settings) -> list[str]:
    """Return the command of a search, as a user would type it for a small try."""
    options = {
        "--config": config,
        "--data.root": images,
        "--data.batch_size": settings.batch_size,
        "--data.image_size": settings.resolution,
        "--data.num_workers": 0,
        "--batch_size": "null",
        "--num_trials": settings.num_trials,
        "--storage": output / "trials.db",
        "--output": output,
    }
    return [sys.executable, "-m", "lightning_zico", "search", *(str(word) for pair in options.items() for word in pair)]


def run_config(millions: int, images: Path, output: Path, settings: Settings) -> Record:
    """Run a search from its file.

    Raises:
        RuntimeError: If the command fails, or an arch is over the budget.
    """
    config = CONFIG.with_name(f"search_imagenet_{millions}m.yaml")
    start = time.perf_counter()
    done = subprocess.run(command(config, images, output, settings), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{config.name} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    result = SearchResult.from_json(output / "search.json")
    over = [row["arch"] for row in result.history if row["cost_macs"] > millions * 1e6]
    if over or any(row["cost_depth"] > MOST_DEPTH[millions] for row in result.history):
        raise RuntimeError(f"{config.name} scored archs over its budget: {over}")
    return {
        "config": config.name,
        "trials": len(result),
        "without_score": sum(row["error"] is not None for row in result.history),
        "best": str(result.best),
        "best_macs": result.ranked[0]["cost_macs"],
        "seconds": time.perf_counter() - start,
        "ms_per_trial": 1000 * statistics.median(row["seconds"] for row in result.history),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def time_published(millions: int, device: str, batch_size: int = BATCH_SIZE, resolution: int = RESOLUTION) -> float:
    """Time ZiCo of a published network, from building to the score, in milliseconds."""
    space = get_space("plainnet")
    arch = space.parse(PUBLISHED[millions])
    images = torch.rand(NUM_BATCHES * batch_size, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(NUM_BATCHES * batch_size) % 1000
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    placement = Placement(devices=(torch.device(device),))
    scorer = Scorer(Reading.of(batches), resolve_proxies(["zico"]), loss_fn=cross_entropy, placement=placement)
    candidate = Candidate("published", lambda: space.build(arch, 1000), space.blocks(arch))
    cards = [scorer.score(candidate) for _ in range(4)]
    if (error := cards[0]["zico"].error) is not None:
        raise RuntimeError(error)
    return 1000 * statistics.median(card.seconds for card in cards[1:])  # the first loads libraries


def compare(console: Console, arguments: Any) -> Record:
    """Run the searches, print and return what they took."""
    settings: Settings = arguments.imagenet
    records = []
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        make_images(images, settings)
        for millions in settings.budgets:
            record = run_config(millions, images, Path(folder, str(millions)), settings)
            record["gpu_ms"] = time_published(millions, "cuda") if torch.cuda.is_available() else None
            records.append(record)
    rows = [
        [
            own["config"],
            f"{own['trials']}, {own['without_score']} without a score",
            f"{own['best_macs'] / 1e6:.0f}",
            f"{own['ms_per_trial']:.0f} ({own['device']})",
            "not measured" if own["gpu_ms"] is None else f"{own['gpu_ms']:.0f}",
            "not measured" if own["gpu_ms"] is None else f"{own['gpu_ms'] * NUM_TRIALS / 3.6e6:.1f}",
        ]
        for own in records
    ]
    title = f"imagenet: {NUM_BATCHES} batches of {settings.batch_size} at {settings.resolution} pixels, from end to end"
    hours = f"hours of {NUM_TRIALS:,} trials on it"
    columns = ["file", "trials", "M MACs of the best", "ms a trial", "ms on a GPU, batches of 128", hours]
    print_table(console, title, columns, rows)
    if not torch.cuda.is_available():
        say(console, "There is no GPU here: hours are not measured. The paper reports 10 hours on one RTX 3090.")
    return {"searches": records}
