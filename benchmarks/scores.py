"""Scores of a table's candidates, computed once in separate processes and kept in a file.

The name of the file depends on the versions of torch and of the package, but not on the source code: after a change to
a proxy, delete it.
"""

import hashlib
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from tables import Row, Table, found
from torch import Tensor, nn
from workers import outcomes

from lightning_zico import Candidate, ScoreCard, __version__, score
from lightning_zico.candidates import Built
from lightning_zico.engine.scope import preserved_rng

Record: TypeAlias = dict[str, Any]
Numbers: TypeAlias = np.ndarray[Any, Any]
Draw: TypeAlias = Literal["file", "random", "stratified"]

LOADER_SAMPLES = 64  # in a batch of a loader, from which fewer are drawn
NUM_CLASSES = 10
NUM_TIMED = 5  # candidates on which the time of each proxy alone is measured


# --- scoring one candidate -----------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """The settings with which all candidates of a benchmark are scored.

    Args:
        images: File with the images of CIFAR-10; not read if candidates take texts.
        batch_size: Images or texts in a batch.
        num_batches: Number of batches.
        seed: The seed of the weights, of the sample and of random numbers in proxies.
        first_image: Position in the file of the first image of the first batch.
        draw: How batches are drawn from the file; see `cifar10_batches`.
    """

    images: Path
    batch_size: int = 16
    num_batches: int = 2
    seed: int = 777
    first_image: int = 0
    draw: Draw = "file"


@cache
def cifar10_batches(protocol: Protocol, resolution: int) -> list[tuple[Tensor, Tensor]]:
    """Read the batches, normalised as usual and enlarged if a network takes larger images.

    With ``draw="file"``, batches have the images in the order of the file, which cycles through the classes. Otherwise
    the images are shuffled with the protocol's seed and read as a loader reads them, in batches of `LOADER_SAMPLES`.
    Each of these is cut: with ``"random"`` to its first samples, with ``"stratified"`` to samples of as many classes as
    possible (`stratified`).

    Raises:
        ValueError: If there are fewer images.
    """
    needed = protocol.batch_size * protocol.num_batches
    with np.load(found(protocol.images)) as file:
        taken = positions_of(protocol, file["y_train"])
        images, labels = file["x_train"][taken], file["y_train"][taken]
    if not 0 < len(images) == needed:
        raise ValueError(
            f"{protocol.num_batches} batches of {protocol.batch_size} are {needed} images; expected at least one and "
            f"at most the {len(images)} of {protocol.images}, from image {protocol.first_image} on."
        )
    mean, std = torch.tensor([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]])[:, :, None, None]
    # Contiguous, since strides of channels-last images made torch 2.14.1 crash in the backward pass of some models.
    inputs = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std  # [N, 3, 32, 32]
    if resolution != inputs.shape[-1]:
        inputs = nn.functional.interpolate(inputs, size=resolution, mode="bilinear", align_corners=False)
    targets = torch.from_numpy(labels).long()
    pairs = zip(inputs.contiguous().split(protocol.batch_size), targets.split(protocol.batch_size), strict=True)
    return list(pairs)


@cache
def token_batches(protocol: Protocol, vocab_size: int, num_tokens: int) -> list[tuple[Tensor, Tensor]]:
    """Draw texts of noise: token ids whose frequencies fall as one over their rank, as those of words do.

    Each text begins with the same token, as tokenisers make them. Classes take turns; ids of 0 are padding, of which
    there is none.
    """
    generator = torch.Generator().manual_seed(protocol.seed)
    shape = (protocol.num_batches, protocol.batch_size, num_tokens)
    frequencies = 1 / torch.arange(1, vocab_size)
    ids = 1 + torch.multinomial(frequencies, math.prod(shape), replacement=True, generator=generator).view(shape)
    ids[..., 0] = 1
    targets = (torch.arange(math.prod(shape[:2])) % NUM_CLASSES).view(shape[:2])
    return list(zip(ids, targets, strict=True))


def batches_for(row: Row, protocol: Protocol) -> list[tuple[Tensor, Tensor]]:
    """Return the batches on which a candidate is scored."""
    if row.vocab_size is None:
        return cifar10_batches(protocol, row.resolution)
    return token_batches(protocol, row.vocab_size, row.resolution)


def positions_of(protocol: Protocol, labels: Numbers) -> Numbers:
    """List the positions in the file of the images of all batches; fewer if there are too few."""
    if protocol.draw == "file":
        needed = protocol.batch_size * protocol.num_batches
        return np.arange(len(labels))[protocol.first_image : protocol.first_image + needed]
    shuffled = np.random.default_rng(protocol.seed).permutation(len(labels))[protocol.first_image :]
    read = [shuffled[idx * LOADER_SAMPLES : (idx + 1) * LOADER_SAMPLES] for idx in range(protocol.num_batches)]
    if protocol.draw == "stratified":
        read = [batch[stratified(labels[batch])] for batch in read]
    return np.concatenate([batch[: protocol.batch_size] for batch in read])


def stratified(labels: Numbers) -> Numbers:
    """Order samples so that the first ones of a batch are of as many classes as possible.

    The first sample of every class comes first, then the second of every class, each time in the order of the batch.

    Args:
        labels: The class of each sample of a batch, [N].

    Returns:
        Positions in the batch, [N].
    """
    seen: Counter[int] = Counter()
    rounds = []
    for label in labels.tolist():
        rounds.append(seen[label])
        seen[label] += 1
    return np.argsort(rounds, kind="stable")


def prepared(row: Row, protocol: Protocol) -> Callable[[Sequence[str]], ScoreCard]:
    """Build a candidate under the common seed, and return how it is scored."""
    with preserved_rng(protocol.seed):
        model = row.build()
    batches = batches_for(row, protocol)
    candidate = Candidate(row.name, Built(model), row.blocks)
    return partial(score, candidate, batches, loss_fn=nn.CrossEntropyLoss(), seed=protocol.seed)


def score_row(row: Row, protocol: Protocol, proxies: Sequence[str]) -> Record:
    """Score a candidate; a score that cannot be ranked by is an error instead."""
    card = prepared(row, protocol)(proxies)
    return {
        "scores": {name: card[name].value for name in proxies if card[name].error is None},
        "errors": {name: card[name].error for name in proxies if card[name].error is not None},
        "untrainable": card.untrainable,
    }


def time_row(row: Row, protocol: Protocol, sets: Iterable[str]) -> dict[str, float]:
    """Time sets of proxies, each separately; a set in which no proxy can be scored has no time.

    Args:
        row: The candidate.
        protocol: See `score_row`.
        sets: Names of proxies, joined by commas.

    Returns:
        Seconds of each set.
    """
    score_with = prepared(row, protocol)
    score_with(sorted({name for joined in sets for name in joined.split(",")}))  # what a library allocates once
    seconds = {}
    for joined in sets:
        start = time.perf_counter()
        card = score_with(joined.split(","))
        elapsed = time.perf_counter() - start
        if any(card[name].error is None for name in card):
            seconds[joined] = elapsed
    return seconds


# --- scoring all ---------------------------------------------------------------------------------


def records_in(path: Path) -> list[Record]:
    """Read a file with one JSON object per line, which need not exist; an incomplete last line is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        file.seek(0)
        complete = file.read().rpartition(b"\n")
        file.truncate(len(complete[0] + complete[1]))
    return [json.loads(line) for line in complete[0].splitlines()]


class Cache:
    """Scores, errors and times of candidates, in a file with one JSON object per line.

    Args:
        path: The path of the file. An incomplete last line, which a kill can leave, is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scores: dict[str, dict[str, float]] = defaultdict(dict)
        self.errors: dict[str, dict[str, str]] = defaultdict(dict)
        self.seconds: dict[str, dict[str, float]] = defaultdict(dict)
        self.untrainable: dict[str, str] = {}
        for record in records_in(path):
            self._take_in(record)

    def add(self, arch: str, **record: Any) -> None:
        """Save the new entries of a candidate."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"arch": arch, **record}, allow_nan=False) + "\n")
        self._take_in({"arch": arch, **record})

    def note(self, arch: str, error: str, proxies: Iterable[str]) -> None:
        """Record the failure of a candidate's process for this run only: it is not known which proxy caused it."""
        self.errors[arch].update(dict.fromkeys(proxies, error))

    def score(self, arch: str, proxy: str) -> float | None:
        """Return a candidate's score; None if it has none. An untrainable one may have one as well."""
        return self.scores[arch].get(proxy)

    def error(self, arch: str, proxy: str) -> str | None:
        """Return the reason why a candidate has no score; None if it has one."""
        return None if proxy in self.scores[arch] else self.errors[arch][proxy]

    def lacks(self, arch: str, proxy: str, retry: bool) -> bool:
        """Whether a score still has to be computed; a failed one only in a retry."""
        return proxy not in self.scores[arch] and (retry or proxy not in self.errors[arch])

    def _take_in(self, record: Record) -> None:
        self.scores[record["arch"]].update(record.get("scores", {}))
        self.errors[record["arch"]].update(record.get("errors", {}))
        self.seconds[record["arch"]].update(record.get("seconds", {}))
        if record.get("untrainable"):
            self.untrainable[record["arch"]] = record["untrainable"]


def versions(table: Table) -> dict[str, str]:
    """Return the versions that numbers depend on."""
    own = {"torch": torch.__version__, "lightning_zico": __version__}
    return own if table.is_search_space else own | {"timm": version("timm")}


def cache_path(folder: Path, table: Table, protocol: Protocol) -> Path:
    """Return a file name that depends on everything that the numbers of a benchmark's candidates depend on."""
    own = asdict(protocol) | versions(table) | {"images": protocol.images.name}
    if not protocol.first_image:
        del own["first_image"]  # so that older files, from before this field existed, keep their names
    if protocol.draw == "file":
        del own["draw"]  # as above
    own["resolution"] = table.rows[0].resolution if table.is_search_space else "of each model"
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    return folder / f"{table.benchmark}-{digest[:12]}.jsonl"


@dataclass(frozen=True)
class Running:
    """How scoring runs: the number of processes, the time limit, and whether failed scores are tried again."""

    num_workers: int = 1
    timeout_s: float = 600.0
    retry: bool = False


def fill_scores(kept: Cache, table: Table, protocol: Protocol, proxies: Sequence[str], running: Running) -> None:
    """Compute all scores that the cache lacks; each is saved as soon as it is computed."""
    missing = {row.name: [p for p in proxies if kept.lacks(row.name, p, running.retry)] for row in table.rows}
    tasks = {row.name: partial(score_row, row, protocol, missing[row.name]) for row in table.rows if missing[row.name]}
    # A model of timm can hold much memory, and leftovers of one must not affect the next.
    share_process = table.is_search_space
    with (
        _progress() as progress,
        closing(outcomes(tasks, running.num_workers, running.timeout_s, share_process=share_process)) as coming,
    ):
        bar = progress.add_task(table.benchmark, total=len(table.rows), completed=len(table.rows) - len(tasks))
        for name, outcome in coming:
            if outcome.result is None:
                progress.console.print(f"{name}: {outcome.error}", markup=False, highlight=False)
                kept.note(name, outcome.error or "", missing[name])
            else:
                kept.add(name, **outcome.result)
            progress.advance(bar)


def fill_seconds(kept: Cache, table: Table, protocol: Protocol, sets: Sequence[str], running: Running) -> None:
    """Measure the times that the cache lacks, of the first few candidates, one after the other."""
    tasks = {}
    for row in table.rows[:NUM_TIMED]:
        missing = [joined for joined in sets if joined not in kept.seconds[row.name]]
        if missing:
            tasks[row.name] = partial(time_row, row, protocol, missing)
    timeout_s = running.timeout_s * (len(sets) + 1)
    with (
        _progress() as progress,
        closing(outcomes(tasks, 1, timeout_s, share_process=table.is_search_space)) as coming,
    ):
        bar = progress.add_task(f"{table.benchmark}, time", total=len(tasks))
        for name, outcome in coming:
            if outcome.result is None:
                progress.console.print(f"{name}, time: {outcome.error}", markup=False, highlight=False)
            else:
                kept.add(name, seconds=outcome.result)
            progress.advance(bar)


def _progress() -> Progress:
    return Progress(
        *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )
