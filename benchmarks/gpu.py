"""What scoring takes on one GPU, in one table; it is planned for eight minutes.

README.md beside this file tells how. `--device cpu --quick` checks anywhere that it runs.

Index conventions:
    N: samples in a batch
"""

import argparse
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import count, cycle, islice
from pathlib import Path
from typing import Literal

import torch
from fidelity import say
from networks import NETWORKS
from rich.console import Console
from speed import Batches, backward, plain, print_table, published, random_batches, ratio_text, rounds_of
from torch import nn

from lightning_zico import Candidate, ProcessExecutor, score
from lightning_zico.bridge import Reading
from lightning_zico.candidates import Built
from lightning_zico.proxies import Proxies
from lightning_zico.scoring.choice import Choice
from lightning_zico.scoring.executors.base import Job
from lightning_zico.scoring.placement import Placement
from lightning_zico.scoring.scorer import Scorer
from lightning_zico.spaces import get_space

ROOT = Path(__file__).parents[1]
Precision = Literal["bf16-mixed"]

# Goals on a GPU: milliseconds of a network, the published code over ours, and ZiCo over its passes.
MOST_MS, LEAST_SPEEDUP, MOST_OVER_PASSES = 20.0, 5.0, 1.05
BATCH_SIZE, NUM_BATCHES = 16, 2
FAILED = "failed"
SEED = 777  # of the networks, as in fidelity.py
WAYS: dict[str, tuple[Precision | None, bool]] = {
    "float32": (None, False),
    "bf16-mixed": ("bf16-mixed", False),
    "float32, channels last": (None, True),
    "bf16-mixed, channels last": ("bf16-mixed", True),
}

_loss_fn = nn.CrossEntropyLoss()


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    num_nets: int
    num_rounds: int
    workers: tuple[int, ...]
    batch_counts: tuple[int, int]
    models: tuple[str, ...]
    num_samples: int


FULL = Size(12, 7, (1, 2, 4, 8), (2, 32), ("vit_small_patch16_224", "resnet50"), 64)
QUICK = Size(2, 2, (1, 2), (2, 4), ("resnet18",), 4)


@dataclass(frozen=True)
class Line:
    """A line of the table: what was measured, its value with its unit, and whether it meets the goal."""

    what: str
    value: str
    goal: str = ""

    @classmethod
    def held(cls, what: str, value: float, text: str, limit: float, *, at_most: bool = True) -> "Line":
        """Compare a value with a goal."""
        holds = value <= limit if at_most else value >= limit
        return cls(
            what, text, f"at {'most' if at_most else 'least'} {limit:g}: {'holds' if holds else 'DOES NOT HOLD'}"
        )


class Device:
    """A device, and how to time on it."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.is_cuda = self.device.type == "cuda"
        if self.is_cuda and self.device.index is None:  # as that of tensors, which have an index
            self.device = torch.device("cuda", torch.cuda.current_device())

    @property
    def described(self) -> str:
        """Name of the device."""
        return torch.cuda.get_device_name(self.device) if self.is_cuda else f"CPU, {torch.get_num_threads()} threads"

    def synced(self, function: Callable[[], object]) -> Callable[[], None]:
        """Make a function wait until the device has finished."""

        def run() -> None:
            function()
            if self.is_cuda:
                torch.cuda.synchronize(self.device)

        return run

    def batches(self, num_batches: int, batch_size: int, resolution: int = 32) -> Batches:
        """Draw batches of noise on the device."""
        drawn = random_batches(num_batches, batch_size)
        if resolution != 32:
            drawn = [(torch.randn(batch_size, 3, resolution, resolution), labels) for _, labels in drawn]
        return [(images.to(self.device), labels.to(self.device)) for images, labels in drawn]

    def peak_bytes(self, function: Callable[[], object]) -> int:
        """Return the peak of the memory that is allocated above the level before."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        function()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def seconds(self, functions: Sequence[Callable[[], object]], num_rounds: int) -> list[tuple[float, ...]]:
        """Time functions that take turns; each has run once before."""
        waiting = [self.synced(function) for function in functions]
        for function in waiting:
            function()
        return list(zip(*rounds_of(waiting, num_rounds), strict=True))


def scored(model: nn.Module, batches: Batches, proxies: Proxies = "zico") -> None:
    """Score a model where it is.

    Raises:
        RuntimeError: If a proxy has no value.
    """
    card = score(model, batches, proxies=proxies, loss_fn=_loss_fn)
    errors = {name: card[name].error for name in card if card[name].error is not None}
    if errors:
        raise RuntimeError(f"There is no score: {errors}")


# --- the parts -----------------------------------------------------------------------------------


def cuda_tests(device: Device, size: Size) -> Iterator[Line]:
    """Run the tests of the suite that need a GPU."""
    if not device.is_cuda:
        yield Line("tests that need CUDA", "not run: no CUDA device")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "-n0", "tests"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = ran.stdout.strip().splitlines() or [ran.stderr.strip()[-200:]]
    yield Line("tests that need CUDA", lines[-1], "pass: holds" if ran.returncode == 0 else "pass: DOES NOT HOLD")


def small_networks(device: Device, size: Size) -> Iterator[Line]:
    """Time networks of NAS-Bench-201: plain passes, published, and ours in all precisions and formats."""
    batches = device.batches(NUM_BATCHES, BATCH_SIZE)
    proxies = {"ZiCo": Choice.of("zico").proxies, "default": Choice.of("default").proxies}
    columns: dict[str, list[float]] = {}
    for candidate in networks(size.num_nets):
        model = candidate.build().to(device.device)
        functions: dict[str, Callable[[], object]] = {
            "plain passes": partial(plain, model, batches),
            "published ZiCo": partial(published, model, batches),
        }
        for way, (precision, channels_last) in WAYS.items():
            # Laid out before the clock runs, so that nothing is converted while it does.
            own = candidate.build().to(device.device)
            own = own.to(memory_format=torch.channels_last) if channels_last else own
            placement = Placement((device.device,), precision, channels_last)
            for name, members in proxies.items():
                scorer = Scorer(Reading.of(batches), members, loss_fn=_loss_fn, placement=placement)
                functions[f"{name}, {way}"] = partial(scorer.score, Candidate(candidate.name, Built(own)))
        for name, seconds in zip(functions, device.seconds(list(functions.values()), size.num_rounds), strict=True):
            columns.setdefault(name, []).append(statistics.median(seconds))
    passes = columns["plain passes"]
    for name, own_s in columns.items():
        milliseconds = 1000 * statistics.median(own_s)
        text = f"{milliseconds:.1f} ms; {ratio_text(own_s, passes)} x passes"
        is_ours = name.endswith("float32")
        yield Line.held(name, milliseconds, text, MOST_MS) if is_ours else Line(name, text)
    ours = columns["ZiCo, float32"]
    over = statistics.median(a / b for a, b in zip(ours, passes, strict=True))
    yield Line.held("ZiCo, float32, over its passes", over, f"{over:.2f}", MOST_OVER_PASSES)
    speedup = statistics.median(a / b for a, b in zip(columns["published ZiCo"], ours, strict=True))
    yield Line.held(
        "published ZiCo over ours", speedup, ratio_text(columns["published ZiCo"], ours), LEAST_SPEEDUP, at_most=False
    )


def networks(num_nets: int) -> list[Candidate]:
    """Draw networks of NAS-Bench-201 through which gradients flow."""
    candidates = get_space("nas_bench_201").candidates(4 * num_nets, seed=SEED)
    batches = random_batches(NUM_BATCHES, 2)
    flowing = (c for c in candidates if score(c, batches, loss_fn=_loss_fn)["zico"].value is not None)
    return list(islice(flowing, num_nets))


def workers(device: Device, size: Size) -> Iterator[Line]:
    """Count the networks that several worker processes score in a second on one device."""
    candidates, batches = networks(size.num_nets), random_batches(NUM_BATCHES, BATCH_SIZE)
    placement = Placement((device.device,))
    scorer = Scorer(Reading.of(batches), Choice.of("default").proxies, loss_fn=_loss_fn, placement=placement)
    first = None
    for num_workers in size.workers:
        rate = networks_per_second(scorer, candidates, num_workers)
        first = first or rate
        yield Line(f"default, {num_workers} workers", f"{rate:.1f} networks/s; {rate / first:.2f} x one")


def networks_per_second(scorer: Scorer, candidates: Sequence[Candidate], num_workers: int) -> float:
    """Score candidates in worker processes; the clock starts when every worker has finished one."""
    jobs = (Job(replace(c, name=f"{c.name}-{idx}"), repeat_idx=0) for c, idx in zip(cycle(candidates), count()))
    num_timed = 2 * num_workers + 2 * len(candidates)
    with closing(ProcessExecutor(num_workers).run([scorer], islice(jobs, 3 * num_workers + num_timed))) as done:
        for _ in range(2 * num_workers):
            next(done)
        start = time.perf_counter()
        for _ in range(num_timed):
            next(done)
        return num_timed / (time.perf_counter() - start)


def memory(device: Device, size: Size) -> Iterator[Line]:
    """Measure the peak of memory with few and with many batches."""
    model = NETWORKS["resnet18"]().to(device.device)
    for num_batches in size.batch_counts:
        if not device.is_cuda:
            yield Line(f"resnet18, {num_batches} batches, peak", "not measured: no CUDA device")
            continue
        batches = device.batches(num_batches, BATCH_SIZE)
        scored(model, batches[:2])  # what a library allocates once
        ours = device.peak_bytes(partial(scored, model, batches)) / 1e6
        passes = device.peak_bytes(partial(plain, model, batches)) / 1e6
        yield Line(f"resnet18, {num_batches} batches, peak", f"{ours:.0f} MB; passes {passes:.0f} MB")


def per_sample(device: Device, size: Size) -> Iterator[Line]:
    """Time per-sample gradients by `vmap` against a loop over the samples."""
    model, batches = NETWORKS["nas_bench_201"]().to(device.device).eval(), device.batches(1, size.num_samples)
    (inputs, targets) = batches[0]

    def loop() -> None:
        for idx in range(len(inputs)):
            backward(model, (inputs[idx : idx + 1], targets[idx : idx + 1]))
            model.zero_grad()

    def vmapped() -> None:
        if score(model, batches, loss_fn=_loss_fn, axis="sample")["zico"].value is None:
            raise RuntimeError("There is no per-sample score.")

    by_loop, by_vmap = device.seconds([loop, vmapped], size.num_rounds)
    yield Line(f"per sample, N = {size.num_samples}: loop over vmap", ratio_text(by_loop, by_vmap))


def large_networks(device: Device, size: Size) -> Iterator[Line]:
    """Time models of timm at 224 pixels."""
    if find_spec("timm") is None:
        yield Line("models of timm at 224", "not measured: timm is not installed")
        return
    import timm

    batches = device.batches(NUM_BATCHES, BATCH_SIZE, resolution=224)
    for name in size.models:
        model = timm.create_model(name, num_classes=10).to(device.device).train()
        functions = [partial(plain, model, batches), partial(scored, model, batches)]
        functions.append(partial(scored, model, batches, "default"))
        passes, zico, default = device.seconds(functions, max(2, size.num_rounds // 2))
        for what, seconds in (("ZiCo", zico), ("default", default)):
            text = f"{1000 * statistics.median(seconds):.0f} ms; {ratio_text(seconds, passes)} x passes"
            yield Line(f"{name} at 224, {what}", text)


PARTS: dict[str, Callable[[Device, Size], Iterator[Line]]] = {
    "small": small_networks,
    "memory": memory,
    "samples": per_sample,
    "large": large_networks,
    "workers": workers,
    "tests": cuda_tests,
}


def made_by(part: str, device: Device, size: Size) -> Iterator[Line]:
    """Measure a part. If it fails, a line has the reason, since the time on a GPU is too short to start again."""
    try:
        yield from PARTS[part](device, size)
    except Exception as error:
        traceback.print_exc()
        yield Line(part, f"{FAILED}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


# --- the command line ----------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--limit-s", type=float, default=480.0, help="no part begins after this time, in seconds")
    made.add_argument("--quick", action="store_true", help="quick check with few networks and rounds")
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    arguments = (usage := parser()).parse_args(words)
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        usage.error("There is no CUDA device. `--device cpu --quick` checks that the benchmark runs.")
    device, size = Device(arguments.device), QUICK if arguments.quick else FULL
    console = Console(width=None if Console().is_terminal else 200)  # a file or a pipe has no width: nothing is cut
    start, lines = time.perf_counter(), []
    for name in arguments.parts:
        if time.perf_counter() - start > arguments.limit_s:
            lines.append(Line(name, f"left out: {arguments.limit_s:.0f} s have passed"))
            continue
        for line in made_by(name, device, size):
            lines.append(line if device.is_cuda else replace(line, goal=""))  # the goals are those of a GPU
            print(line.what, line.value, sep=" | ", file=sys.stderr, flush=True)  # progress
    say(console, f"torch {torch.__version__}, {device.described}, {(time.perf_counter() - start) / 60:.1f} minutes.")
    title = f"{NUM_BATCHES} batches of {BATCH_SIZE}; medians over {size.num_nets} networks of NAS-Bench-201"
    print_table(console, title, ["what", "value", "goal"], [[line.what, line.value, line.goal] for line in lines])
    if any(line.value.startswith(FAILED) for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
