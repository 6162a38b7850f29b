"""Models of timm at their own image sizes: how many a machine scores in a minute, before and after cutting batches.

README.md beside this file tells how. An interrupted run resumes.
"""

import argparse
import cProfile
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from fidelity import positive, say
from rich.console import Console
from scores import records_in
from speed import print_table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_zico import Candidate, ProcessExecutor, ZeroShotSelector, __version__
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.scoring.executors.pool import resident_bytes
from lightning_zico.zoo import from_zoo
from lightning_zico.zoo.base import ImageModel, params_of
from lightning_zico.zoo.classifiers import ImageClassifier

MAX_PARAMS = 15e6
NUM_CLASSES = 10
LOADER_SIZE = 64  # samples in a batch of the loader
IMAGE_SIZE = 224  # of the data; each model resizes to its own size
SIZES: tuple[int | None, ...] = (16, None)  # `batch_size` of the selector: after and before
MEMORY_PERIOD_S = 0.05
NUM_SLOWEST = 3
FILLING = ("normal_", "uniform_", "erfinv_", "clamp_", "fill_", "zero_", "mul_", "add_")  # methods that fill weights

# What a fresh process does before it can score or list; the seconds of the last line are measured.
STARTS = {
    "import the selector": ("", "from lightning_zico import ZeroShotSelector"),
    "import timm after that": ("from lightning_zico import ZeroShotSelector", "import timm"),
    "list timm:* after that": (
        "import timm; from lightning_zico.zoo import from_zoo",
        "from_zoo('timm:*', num_classes=10).names",
    ),
}


@dataclass(frozen=True)
class Native:
    """How to build a model of timm that resizes images to the size that it was designed for."""

    model: ImageModel
    size: tuple[int, int]

    def __call__(self) -> ImageClassifier:
        """Build the network and its LightningModule."""
        return ImageClassifier(self.network(), self.model.num_classes, in_chans=3, input_size=self.size, resize=True)

    def network(self) -> nn.Module:
        """Build the network."""
        return self.model.build(None)


@dataclass(frozen=True)
class Part:
    """One part of the models, scored with one batch size.

    Args:
        names: Names of the models.
        batch_size: See `SIZES`.
        num_workers: Number of worker processes.
        elapsed_s: Seconds that the ranking took, with the start of the workers.
        seconds: Seconds of each model in its worker, building included.
        peak_bytes: Largest resident memory of this process and its workers together.
        errors: Reasons, by name, of the models that failed.
    """

    names: tuple[str, ...]
    batch_size: int | None
    num_workers: int
    elapsed_s: float
    seconds: dict[str, float]
    peak_bytes: int
    errors: dict[str, str]


# --- what is scored ------------------------------------------------------------------------------


def drawn(num_models: int, seed: int) -> Iterator[Candidate]:
    """Draw models of at most `MAX_PARAMS` parameters from all of timm's, each at its own image size."""
    import timm

    zoo = from_zoo("timm:*", num_classes=NUM_CLASSES)
    found = 0
    for model in random.Random(seed).sample(zoo.models, len(zoo.models)):
        if found == num_models:
            return
        if isinstance(model, ImageModel) and params_of(model) <= MAX_PARAMS:
            found += 1
            config = timm.get_pretrained_cfg(model.name)
            assert config is not None, "every model in timm's list has a configuration"
            height, width = config.input_size[-2:]
            yield Candidate(model.name, Native(model, (height, width)))


def loader(num_batches: int = 2) -> DataLoader[Any]:
    """Make a loader of noise; time and memory do not depend on the content of an image."""
    generator = torch.Generator().manual_seed(0)
    num_samples = num_batches * LOADER_SIZE
    images = torch.randn(num_samples, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    labels = torch.randint(NUM_CLASSES, (num_samples,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=LOADER_SIZE, shuffle=True)


# --- measuring -----------------------------------------------------------------------------------


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Sample the resident memory of this process and all below it; yields a list with the peak in bytes."""
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(MEMORY_PERIOD_S):
            peak[0] = max(peak[0], sum(resident_bytes(pid) for pid in [None, *descendants()]))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def descendants(pid: str = "self") -> list[int]:
    """List the processes that a process has started, and those that they have started."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            own = children.read_text().split()
        except OSError:  # a thread or a process that has ended meanwhile
            continue
        for child in own:
            found += [int(child), *descendants(child)]
    return found


def ranked(candidates: Sequence[Candidate], batch_size: int | None, num_workers: int, timeout_s: float) -> Part:
    """Rank models by the default recipe in worker processes."""
    selector = ZeroShotSelector(
        batch_size=batch_size,
        executor=ProcessExecutor(num_workers, timeout_s),
        enable_progress_bar=False,
    )
    data = loader()
    with watched_memory() as peak:
        start = time.perf_counter()
        rows = selector.rank(candidates, data).rows
        elapsed = time.perf_counter() - start
    errors = {row["name"]: row["error"] for row in rows if row["error"] is not None}
    seconds = {row["name"]: row["seconds"] for row in rows}
    names = tuple(candidate.name for candidate in candidates)
    return Part(names, batch_size, num_workers, elapsed, seconds, peak[0], errors)


def building_seconds(candidates: Sequence[Candidate]) -> tuple[float, float]:
    """Time the building of all models, and within it the operations that fill weights.

    Returns:
        Seconds of building, and seconds of these operations, from a second run that is profiled.
    """
    building = filling = 0.0
    for candidate in candidates:
        with preserved_rng(0):
            candidate.build()  # what the model imports
            start = time.perf_counter()
            candidate.build()
            building += time.perf_counter() - start
            profile = cProfile.Profile()
            profile.runcall(candidate.build)
        profile.create_stats()
        for (_, _, function), (_, _, own_s, _, _) in profile.stats.items():  # type: ignore[attr-defined]
            if any(f"'{name}' of 'torch" in function for name in FILLING):
                filling += own_s
    return building, filling


def start_seconds(first: str, measured: str, repeats: int) -> float:
    """Time a statement in a fresh process, after another one; the median of some repeats."""
    program = f"{first}\nimport time\nstart = time.perf_counter()\n{measured}\nprint(time.perf_counter() - start)"
    runs = [
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
        for _ in range(repeats)
    ]
    return statistics.median(float(run.split()[-1]) for run in runs)


# --- resuming ------------------------------------------------------------------------------------


class Journal:
    """Parts that have been measured, in a file with one JSON object per line.

    Scores themselves are not cached: a part that was interrupted is scored again, so that its minutes are those of all
    its models.

    Args:
        path: The path of the file. An incomplete last line, which a kill can leave, is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts = [Part(**{**record, "names": tuple(record["names"])}) for record in records_in(path)]

    def part(self, names: Sequence[str], batch_size: int | None, num_workers: int) -> Part | None:
        """Return the part of these models with this batch size; None if it was not measured."""
        wanted = (tuple(names), batch_size, num_workers)
        return next((p for p in self.parts if (p.names, p.batch_size, p.num_workers) == wanted), None)

    def add(self, part: Part) -> None:
        """Save a part."""
        self.parts.append(part)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(part)) + "\n")


def measured(journal: Journal, candidates: Sequence[Candidate], arguments: argparse.Namespace) -> list[Part]:
    """Measure all parts that the journal lacks; the batch sizes take turns."""
    parts = []
    for start in range(0, len(candidates), arguments.part):
        own = candidates[start : start + arguments.part]
        for batch_size in SIZES:
            part = journal.part([candidate.name for candidate in own], batch_size, arguments.workers)
            if part is None:
                part = ranked(own, batch_size, arguments.workers, arguments.timeout)
                journal.add(part)
                done = f"{start + len(own)} of {len(candidates)} models"
                print(f"{done}, batch_size={batch_size}: {part.elapsed_s:.0f} s", file=sys.stderr, flush=True)
            parts.append(part)
    return parts


# --- what is printed -----------------------------------------------------------------------------


def cells_of(parts: Sequence[Part], batch_size: int | None) -> list[str]:
    """Format the row of a batch size."""
    own = [part for part in parts if part.batch_size == batch_size]
    num_models, seconds = sum(len(part.names) for part in own), sum(part.elapsed_s for part in own)
    failures = sum(len(part.errors) for part in own)
    name = f"{LOADER_SIZE}, as the loader gives them" if batch_size is None else str(batch_size)
    peak = max(part.peak_bytes for part in own) / 1e6
    return [
        name,
        str(num_models),
        f"{seconds / 60:.1f}",
        f"{60 * num_models / seconds:.1f}",
        str(failures),
        f"{peak:.0f}",
    ]


def seconds_of(parts: Sequence[Part], batch_size: int | None) -> float:
    """Sum up the seconds of all models in the workers, building included."""
    return sum(sum(part.seconds.values()) for part in parts if part.batch_size == batch_size)


def report(console: Console, parts: Sequence[Part], building: tuple[float, float], repeats: int) -> None:
    """Print the tables."""
    columns = ["samples in a batch", "models", "minutes", "models per minute", "failures", "peak MB"]
    print_table(console, "The default recipe, two batches", columns, [cells_of(parts, size) for size in SIZES])
    whole = {size: seconds_of(parts, size) for size in SIZES}
    rows = [
        [what, f"{seconds:.2f}", *(f"{seconds / whole[size]:.1%}" for size in SIZES)]
        for what, seconds in zip(("building", "of that, filling weights"), building, strict=True)
    ]
    columns = ["what", "s", "share of the scoring at 16", "share of the scoring at 64"]
    print_table(console, "Building the models, one after the other", columns, rows)
    rows = [[name, f"{start_seconds(*statements, repeats):.2f}"] for name, statements in STARTS.items()]
    print_table(console, f"In a fresh process, median of {repeats}", ["what", "s"], rows)
    seconds_at_16 = {name: s for part in parts if part.batch_size == SIZES[0] for name, s in part.seconds.items()}
    slowest = sorted(seconds_at_16, key=lambda name: -seconds_at_16[name])[:NUM_SLOWEST]
    say(console, f"Slowest at {SIZES[0]}: {', '.join(f'{name} {seconds_at_16[name]:.1f} s' for name in slowest)}.")
    for size in SIZES:
        reasons = Counter(reason for part in parts if part.batch_size == size for reason in part.errors.values())
        for reason, count in reasons.most_common():
            say(console, f"batch_size={size}: {count} of the models: {reason}")


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--num-models", type=positive, default=100)
    made.add_argument("--seed", type=int, default=0, help="seed of the draw of models")
    made.add_argument("--workers", type=positive, default=2, help="worker processes")
    made.add_argument("--part", type=positive, default=20, help="models in a ranking; a part is the unit of resuming")
    made.add_argument("--timeout", type=float, default=600.0, help="time limit for one model, in seconds")
    made.add_argument("--cache", type=Path, default=Path(__file__).parent / "cache", help="folder of what was measured")
    made.add_argument("--quick", action="store_true", help="quick check with two models")
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    arguments = parser().parse_args(words)
    repeats = 3
    if arguments.quick:
        arguments.num_models, repeats = min(2, arguments.num_models), 1
    console = Console(width=None if Console().is_terminal else 200)  # a file or a pipe has no width: nothing is cut
    candidates = list(drawn(arguments.num_models, arguments.seed))
    drawn_models = f"{len(candidates)} models of at most {MAX_PARAMS / 1e6:.0f} M parameters, seed {arguments.seed}"
    machine = f"torch {torch.__version__}, timm {version('timm')}, CPU, {arguments.workers} workers"
    say(console, f"{machine}; {drawn_models}.")
    name = f"zoo-{__version__}-{torch.__version__}-{version('timm')}.jsonl"
    parts = measured(Journal(arguments.cache / name), candidates, arguments)
    report(console, parts, building_seconds(candidates), repeats)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from here.")
