"""Candidates are scored on small batches: which samples these have for every kind of data, and what stays as it was."""

import copy
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from lightning_zico import Candidate, ZeroShotSearch, ZeroShotSelector, ZiCoCallback, score
from lightning_zico.bridge.data import Reading, TrainingData
from lightning_zico.engine.scope import preserved_rng
from tests.callbacks.training import quiet_trainer
from tests.modules import Classifier, assert_same, assert_untouched, make_batches
from tests.search.spaces import Bits

SEED = 5


class Samples(Dataset[Any]):
    """Images with labels, some of which are drawn; it remembers which samples were read."""

    def __init__(self, num_samples: int = 256) -> None:
        ((self.images, self.labels),) = make_batches(1, num_samples=num_samples)
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, idx: int) -> Any:
        LOG.append(idx)
        self.read.append(idx)
        return self.images[idx] + 0.1 * torch.randn_like(self.images[idx]), self.labels[idx]


LOG: list[int] = []  # what datasets were asked for, which restoring them does not undo


@dataclass
class Stream(IterableDataset[Any]):
    num_samples: int = 256

    def __iter__(self) -> Iterator[Any]:
        samples = Samples(self.num_samples)
        return (samples[idx] for idx in range(self.num_samples))


class Batched(IterableDataset[Any]):
    """Makes batches itself."""

    def __iter__(self) -> Iterator[Any]:
        return iter(make_batches(4, num_samples=64))


class Again:
    """No loader, but can be iterated again."""

    def __iter__(self) -> Iterator[Any]:
        return iter(make_batches(4, num_samples=64))


class Graphs:
    """A batch of graphs, as torch_geometric has it: nodes in one tensor, and which graph each belongs to."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self.x = torch.cat([image[0, : 1 + int(label)] for image, label in samples])
        self.batch = torch.repeat_interleave(torch.tensor([1 + int(label) for _, label in samples]))
        self.y = torch.stack([label for _, label in samples])

    @property
    def num_graphs(self) -> int:
        return len(self.y)


class GraphLoader(DataLoader[Any]):
    """Has arguments and a collate of its own, as the loader of torch_geometric."""

    def __init__(self, dataset: Any, batch_size: int = 1, follow: Sequence[str] = (), **kwargs: Any) -> None:
        self.follow = follow
        super().__init__(dataset, batch_size, collate_fn=Graphs, **kwargs)


class Transforming(DataLoader[Any]):
    """Iterates in its own way, over the batches of torch's loader."""

    def __iter__(self) -> Any:
        for images, labels in super().__iter__():
            yield 2 * images, labels


class Slicing(DataLoader[Any]):
    """Iterates in its own way, and pays no attention to the batch sampler."""

    def __iter__(self) -> Any:
        yield from make_batches(4, num_samples=64)


class Pairs(BatchSampler):
    """Puts a sample beside its neighbour, as samplers for metric learning do."""

    def __iter__(self) -> Iterator[list[int]]:
        for indices in super().__iter__():
            yield [other for idx in indices for other in (idx, idx ^ 1)]


def padded(samples: Sequence[Any]) -> Any:
    """Texts of different lengths: padded to the longest of the batch, with their lengths."""
    texts = [image.flatten()[: 3 + int(label)] for image, label in samples]
    return {
        "tokens": pad_sequence(texts, batch_first=True),
        "lengths": torch.tensor([len(text) for text in texts]),
        "labels": torch.stack([label for _, label in samples]),
    }


def boxes(samples: Sequence[Any]) -> Any:
    """What torchvision's detectors take: a list of images, and a list of dictionaries."""
    images = [image[:, : 3 + int(label)] for image, label in samples]
    return images, [{"boxes": torch.ones(1 + int(label), 4), "labels": label.expand(1)} for _, label in samples]


def as_dictionary(samples: Sequence[Any]) -> Any:
    images, labels = zip(*samples, strict=True)
    return {"image": torch.stack(images), "target": {"label": torch.stack(labels)}, "name": ["a"] * len(images)}


def views(samples: Sequence[Any]) -> Any:
    """Several rows a sample, which nothing in the batch tells from samples."""
    return torch.cat([torch.stack([image] * 4) for image, _ in samples])


def nodes(samples: Sequence[Any]) -> Any:
    """A graph without an object that counts: no two tensors are as long."""
    return {"x": torch.cat([image[0] for image, _ in samples]), "y": torch.stack([label for _, label in samples])}


def packed(samples: Sequence[Any]) -> Any:
    texts = [image.flatten()[: 3 + int(label)] for image, label in samples]
    return pack_sequence(texts, enforce_sorted=False), torch.stack([label for _, label in samples])


def loader(batch_size: int = 64, kind: Any = DataLoader, num_samples: int = 256, **kwargs: Any) -> Any:
    return kind(Samples(num_samples), batch_size, **kwargs)


class Module(LightningDataModule):
    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.make = make

    def train_dataloader(self) -> Any:
        return self.make()


Make = Callable[[int], Any]

# Loaders that are built again, by their batch size.
BUILT_AGAIN: dict[str, Make] = {
    "in order": loader,
    "shuffled": lambda size: loader(size, shuffle=True),
    "last one dropped": lambda size: loader(size, shuffle=True, drop_last=True, num_samples=100),
    "last one kept": lambda size: loader(size, shuffle=True, num_samples=20),
    "own generator": lambda size: loader(size, shuffle=True, generator=torch.Generator().manual_seed(1)),
    "sampler": lambda size: loader(size, sampler=RandomSampler(range(256), replacement=True, num_samples=90)),
    "torch's batch sampler": lambda size: DataLoader(
        Samples(), batch_sampler=BatchSampler(RandomSampler(range(256)), size, drop_last=True)
    ),
    "workers": lambda size: loader(size, shuffle=True, num_workers=2, prefetch_factor=4, persistent_workers=True),
    "padded texts": lambda size: loader(size, shuffle=True, collate_fn=padded),
    "boxes": lambda size: loader(size, shuffle=True, collate_fn=boxes),
    "dictionaries": lambda size: loader(size, shuffle=True, collate_fn=as_dictionary),
    "views": lambda size: loader(size, shuffle=True, collate_fn=views),
    "nodes": lambda size: loader(size, shuffle=True, collate_fn=nodes),
    "packed": lambda size: loader(size, shuffle=True, collate_fn=packed),
    "graphs": lambda size: loader(size, GraphLoader, follow=["x"], shuffle=True),
    "own iteration": lambda size: loader(size, Transforming, shuffle=True),
    "by name": lambda size: {"a": loader(size, shuffle=True), "b": loader(min(size, 8))},
    "listed": lambda size: [loader(size), loader(size, num_samples=90)],
    "combined": lambda size: CombinedLoader({"a": loader(size), "b": loader(size, num_samples=40)}, "min_size"),
    "one after the other": lambda size: CombinedLoader([loader(size, num_samples=20), loader(size)], "sequential"),
    "data module": lambda size: Module(lambda: loader(size, shuffle=True)),
    "data module of several": lambda size: Module(
        lambda: CombinedLoader([loader(size, shuffle=True), loader(min(size, 2))])
    ),
}

# What is cut, as it gives its batches of 64.
CUT: dict[str, Callable[[], Any]] = {
    "batch sampler": lambda: DataLoader(Samples(), batch_sampler=Pairs(SequentialSampler(range(256)), 32, True)),
    "stream": lambda: DataLoader(Stream(), 64),
    "stream of dictionaries": lambda: DataLoader(Stream(), 64, collate_fn=as_dictionary),
    "stream of texts": lambda: DataLoader(Stream(), 64, collate_fn=padded),
    "stream of boxes": lambda: DataLoader(Stream(), 64, collate_fn=boxes),
    "own batches": lambda: DataLoader(Batched(), batch_size=None),
    "batches of a sampler": lambda: DataLoader(
        Samples(), batch_size=None, sampler=BatchSampler(SequentialSampler(range(256)), 64, True)
    ),
    "own batches only": lambda: loader(64, Slicing),
    "list": lambda: make_batches(4, num_samples=64),
    "generator": lambda: (batch for batch in make_batches(4, num_samples=64)),
    "iterable": Again,
    "list of dictionaries": lambda: [{"x": x, "y": y} for x, y in make_batches(4, num_samples=64)],
    "stream by name": lambda: {"a": DataLoader(Stream(), 64), "b": DataLoader(Batched(), batch_size=None)},
    "data module": lambda: Module(lambda: DataLoader(Stream(), 64)),
}


def read(data: Any, batch_size: int | None, num_batches: int = 2, **kwargs: Any) -> Reading:
    with TrainingData(data) as source:
        return source.read(num_batches, seed=SEED, batch_size=batch_size, **kwargs)


def contents(batch: Any) -> Any:
    """Turn objects into what can be compared."""
    if isinstance(batch, Graphs):
        return vars(batch)
    if isinstance(batch, nn.utils.rnn.PackedSequence):
        return [batch.data, batch.batch_sizes]
    if isinstance(batch, dict):
        return {key: contents(part) for key, part in batch.items()}
    return [contents(part) for part in batch] if isinstance(batch, list | tuple) else batch


def same(batches: Sequence[Any], others: Sequence[Any]) -> None:
    assert_same([contents(batch) for batch in batches], [contents(batch) for batch in others])


def by_hand(make: Callable[[], Any], num_batches: int = 2) -> list[Any]:
    """The first batches as Lightning combines them, or as they are iterated."""
    data = make()
    with preserved_rng(SEED):
        data = data.train_dataloader() if isinstance(data, Module) else data
        is_single = isinstance(data, DataLoader | Again) or not isinstance(data, list | dict | CombinedLoader)
        if is_single or (isinstance(data, list) and not isinstance(data[0], DataLoader)):
            return [batch for batch, _ in zip(data, range(num_batches), strict=False)]
        combined = data if isinstance(data, CombinedLoader) else CombinedLoader(data, "max_size_cycle")
        return [batch for (batch, _, _), _ in zip(combined, range(num_batches), strict=False)]


def without_workers(size: int, make: Make) -> Any:
    data = make(size)
    return loader(size, shuffle=True) if isinstance(data, DataLoader) and data.num_workers else data


@pytest.mark.parametrize("kind", BUILT_AGAIN)
@given(size=st.integers(17, 64), batch_size=st.integers(1, 16))
def test_a_loader_gives_the_batches_that_it_would_give_with_the_smaller_size(
    kind: str, size: int, batch_size: int
) -> None:
    make = BUILT_AGAIN[kind]
    reading = read(make(size), batch_size)
    expected = by_hand(lambda: without_workers(batch_size, make))
    same(reading.batches[: len(expected)], expected)
    assert reading.num_whole == 0
    assert reading.cut is not None
    assert reading.cut.to == batch_size


@pytest.mark.parametrize("kind", CUT)
def test_other_batches_are_cut_to_their_first_samples(kind: str) -> None:
    reading = read(CUT[kind](), 16)
    whole = by_hand(CUT[kind])
    same(reading.batches, [first(batch, 16) for batch in whole])
    assert (reading.cut, reading.num_whole) == ((64, 16), 0)


def first(batch: Any, most: int) -> Any:
    """Cut a batch with a plain rule: whatever is 64 long has a sample at each place."""
    if isinstance(batch, Tensor | list | tuple) and len(batch) == 64:
        return batch[:most]
    if isinstance(batch, dict):
        return {key: first(part, most) for key, part in batch.items()}
    return type(batch)(first(part, most) for part in batch) if isinstance(batch, list | tuple) else batch


@pytest.mark.parametrize("kind", [*BUILT_AGAIN, *CUT])
def test_without_a_size_batches_are_those_of_the_data(kind: str) -> None:
    make = CUT.get(kind) or (lambda: without_workers(32, BUILT_AGAIN[kind]))
    reading = read(make(), None)
    expected = by_hand(make)
    same(reading.batches[: len(expected)], expected)
    assert (reading.cut, reading.num_whole) == (None, 0)


@pytest.mark.parametrize("kind", [*BUILT_AGAIN, *CUT])
def test_data_and_generators_are_left_as_they_were(kind: str) -> None:
    data = (CUT.get(kind) or (lambda: BUILT_AGAIN[kind](32)))()
    if kind == "generator":
        pytest.skip("A generator is used up, as it is without a batch size.")
    before = everything(data)
    with assert_untouched(nn.Identity()):  # nor generators
        read(data, 16)
    assert_same(before, everything(data))
    same(read(data, None).batches, read(data, None).batches)


def everything(data: Any) -> dict[str, Any]:
    """Copy what loaders, samplers, generators and datasets are made of."""
    found: dict[str, Any] = {}

    def visit(path: str, part: Any) -> None:
        if isinstance(part, torch.Generator):
            found[path] = part.get_state()
        elif isinstance(part, Tensor | int | float | str | None):
            found[path] = copy.deepcopy(part)
        elif isinstance(part, list | tuple):
            [visit(f"{path}[{idx}]", item) for idx, item in enumerate(part)]
        elif isinstance(part, dict):
            [visit(f"{path}[{key}]", item) for key, item in part.items()]
        elif isinstance(part, DataLoader | Dataset | BatchSampler | CombinedLoader) or hasattr(part, "replacement"):
            found[path] = id(part)
            visit(path, dict(vars(part)))
        else:
            found[path] = id(part)

    visit("data", data)
    return found


@given(size=st.integers(17, 128), batch_size=st.integers(1, 16), num_batches=st.integers(1, 4), shuffle=st.booleans())
def test_no_more_samples_are_read_than_are_used(size: int, batch_size: int, num_batches: int, shuffle: bool) -> None:
    LOG.clear()
    read(loader(size, shuffle=shuffle), batch_size, num_batches)
    assert len(LOG) == num_batches * batch_size
    assert len(set(LOG)) == len(LOG)


def test_a_small_batch_size_of_the_loader_is_kept() -> None:
    for size in (3, 16):
        reading = read(loader(size, shuffle=True), 16)
        same(reading.batches, by_hand(lambda size=size: loader(size, shuffle=True)))
        assert (reading.cut, reading.num_whole) == (None, 0)


class Starting:
    """Counts processes that are started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        start = multiprocessing.process.BaseProcess.start

        def counted(process: Any) -> None:
            self.count += 1
            start(process)

        monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", counted)


def test_no_worker_processes_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Starting(monkeypatch)
    with_workers = loader(64, shuffle=True, num_workers=2)
    read(with_workers, 16)
    assert started.count == 0
    assert with_workers.num_workers == 2
    read(with_workers, None)
    assert started.count == 2


class Opened(Dataset[Any]):
    """Reads from what its workers open."""

    source: Tensor | None = None

    def __len__(self) -> int:
        return 64

    def __getitem__(self, idx: int) -> Any:
        assert self.source is not None
        return self.source[idx]


def open_source(worker_idx: int) -> None:
    info = torch.utils.data.get_worker_info()
    assert info is not None
    info.dataset.source = torch.arange(64.0)  # type: ignore[attr-defined]


def test_a_dataset_that_its_workers_prepare_is_read_by_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Starting(monkeypatch)
    data = DataLoader(Opened(), 32, num_workers=2, worker_init_fn=open_source, persistent_workers=True)
    same(read(data, 16).batches, [torch.arange(16.0), torch.arange(16.0, 32.0)])
    assert started.count == 1


# What cannot be cut: samples that cannot be counted, and a batch of packed sequences.
WHOLE: dict[str, Callable[[], Any]] = {
    "uncounted": lambda: DataLoader(Stream(), 64, collate_fn=nodes),
    "packed": lambda: DataLoader(Stream(), 64, collate_fn=packed),
    "graphs": lambda: DataLoader(Stream(), 64, collate_fn=Graphs),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_cannot_be_cut_is_whole(kind: str) -> None:
    reading = read(WHOLE[kind](), 16)
    same(reading.batches, by_hand(WHOLE[kind]))
    assert (reading.cut, reading.num_whole) == (None, 2)


class OnNodes(Classifier):
    """Takes a batch that does not tell its number of samples."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        features = batch["x"].unflatten(0, (-1, 5)).mean(1)
        return nn.functional.cross_entropy(self.network[-1](features[:, :4]), batch["y"])


def test_the_leaderboard_says_what_was_scored_whole() -> None:
    said = "2 batches were scored whole, and not on `batch_size=16`"
    leaderboard = ZeroShotSelector(proxies="zico").rank([OnNodes()], WHOLE["uncounted"]())
    assert not leaderboard.errors
    assert any(note.startswith(said) for note in leaderboard.notes)
    assert leaderboard.provenance["num_larger_batches"] == 2
    built_again = ZeroShotSelector(proxies="zico").rank([OnNodes()], loader(collate_fn=nodes))
    assert not built_again.errors
    assert not any("scored whole" in note for note in built_again.notes)
    small = ZeroShotSelector(proxies="zico", batch_size=4 * 64 * 5).rank([OnNodes()], WHOLE["uncounted"]())
    assert not any("scored whole" in note for note in small.notes)  # no batch has more nodes than that
    asked = ZeroShotSelector(proxies="zico", batch_size=None).rank([OnNodes()], WHOLE["uncounted"]())
    assert not any("scored whole" in note for note in asked.notes)


def test_parts_of_a_collection_are_cut_one_by_one() -> None:
    reading = read({"a": loader(64), "b": DataLoader(Stream(), 48), "c": DataLoader(Stream(), 8)}, 16)
    assert [{name: len(part[0]) for name, part in batch.items()} for batch in reading.batches] == [
        {"a": 16, "b": 16, "c": 8}
    ] * 2
    assert (reading.cut, reading.num_whole) == ((64, 16), 0)


@given(own=st.integers(17, 64), batch_size=st.integers(1, 16))
def test_a_function_counts_samples_where_the_batch_does_not_tell(own: int, batch_size: int) -> None:
    """Time comes first, in sequences that are as long as there are samples in the other field."""

    def make() -> Any:
        return ({"x": torch.randn(own + 1, own, 3), "y": torch.randn(own)} for _ in range(3))

    assert read(make(), batch_size).num_whole == 2
    reading = read(make(), batch_size, num_samples=lambda batch: batch["x"].shape[1])
    assert reading.num_whole == 0
    assert {batch["x"].shape for batch in reading.batches} == {torch.Size([own + 1, batch_size, 3])}
    stated = read(make(), batch_size, num_samples=own)
    assert {batch["y"].shape for batch in stated.batches} == {torch.Size([batch_size])}


@pytest.mark.parametrize("make", [loader, lambda: DataLoader(Stream(), 64), lambda: make_batches(2, num_samples=64)])
@pytest.mark.parametrize("of", ["ranking", "candidate"])
def test_a_stated_number_is_that_of_the_batches_before(make: Any, of: str) -> None:
    """MACs are per sample, whatever the size of the batches."""
    candidate = Candidate("a", Classifier, num_samples=64 if of == "candidate" else None)
    settings = {"proxies": "macs", "num_samples": 64 if of == "ranking" else None}
    (expected,) = (row["score"] for row in ZeroShotSelector(proxies="macs").rank([Classifier], make()).rows)
    for batch_size in (16, None, 7):
        ranked = ZeroShotSelector(batch_size=batch_size, **settings).rank([candidate], make())
        assert ranked.rows[0]["score"] == expected


def test_selector_and_search_score_on_sixteen_samples_by_default() -> None:
    selector = ZeroShotSelector(proxies="zico", seed=SEED)
    leaderboard = selector.rank({"a": Classifier}, loader(64, shuffle=True))
    assert leaderboard.provenance["batch_size"] == 16
    assert leaderboard.provenance["batch_shapes"] == [[16, 2, 5, 5], [16]]
    assert leaderboard.provenance["num_larger_batches"] == 0
    expected = score(selector.best_model_, by_hand(lambda: loader(16, shuffle=True)), seed=SEED)["zico"].value
    assert leaderboard.rows[0]["score"] == expected
    published = ZeroShotSelector(proxies="zico", seed=SEED, batch_size=None).rank(
        {"a": Classifier}, loader(64, shuffle=True)
    )
    assert published.provenance["batch_size"] is None
    whole = by_hand(lambda: loader(64, shuffle=True))
    assert published.rows[0]["score"] == score(selector.best_model_, whole, seed=SEED)["zico"].value
    result = ZeroShotSearch(Bits(), num_trials=2, num_classes=3, proxies="zico").run(loader(64, shuffle=True))
    assert result.provenance["batch_size"] == 16
    assert result.provenance["batch_shapes"] == [[16, 2, 5, 5], [16]]


class NeedsItsSize(Classifier):
    """Has a buffer for every sample of a batch, as memory banks and momentum encoders do."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.register_buffer("bank", torch.ones(size, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self(batch[0]) * self.bank).sum()


@pytest.mark.parametrize("make", [*map(BUILT_AGAIN.get, ("shuffled", "data module")), lambda _: CUT["generator"]()])
def test_a_step_that_needs_the_loaders_size_is_told_how_to_get_it(make: Any) -> None:
    leaderboard = ZeroShotSelector().rank([NeedsItsSize, Classifier], make(64))
    (reason,) = leaderboard.errors.values()
    assert "fewer samples than the 64 of your batches" in reason
    assert "`batch_size=None`" in reason
    assert not ZeroShotSelector(batch_size=None).rank([NeedsItsSize, Classifier], make(64)).errors


def test_the_advice_is_given_only_where_it_helps() -> None:
    for data, kwargs in ((loader(16), {}), (loader(64), {"batch_size": None}), (WHOLE["uncounted"](), {})):
        (reason,) = ZeroShotSelector(**kwargs).rank([lambda: NeedsItsSize(5)], data).errors.values()
        assert "batch_size=None" not in reason


def test_the_cache_does_not_mix_batch_sizes(tmp_path: Any) -> None:
    def scores(batch_size: int | None, cache: Any) -> dict[str, Any]:
        selector = ZeroShotSelector(proxies="zico", batch_size=batch_size, cache=cache)
        rows = selector.rank({"a": Classifier, "b": lambda: Classifier(8)}, loader(64, shuffle=True)).rows
        return {row["name"]: row["score"] for row in rows}

    cache = tmp_path / "scores.db"
    expected = [scores(size, None) for size in (16, None, 8)]
    assert len({tuple(scored.values()) for scored in expected}) == 3
    for _ in range(2):
        assert [scores(size, cache) for size in (16, None, 8)] == expected


@pytest.mark.parametrize("batch_size", [None, 16, 5])
def test_the_callback_keeps_the_loaders_batches_by_default(batch_size: int | None) -> None:
    seen: list[int] = []

    class Watched(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            seen.append(len(batch[0]))
            return super().training_step(batch, batch_idx)

    callback = ZiCoCallback() if batch_size is None else ZiCoCallback(batch_size=batch_size)
    quiet_trainer(callback, max_epochs=1, limit_train_batches=1).fit(Watched(), loader(64, shuffle=True))
    assert callback.history[0]["error"] is None
    assert set(seen) == {64, batch_size or 64}


def test_the_callback_says_what_it_scored_whole() -> None:
    callback = ZiCoCallback(batch_size=16)
    quiet_trainer(callback, max_epochs=1, limit_train_batches=1).fit(OnNodes(), WHOLE["uncounted"]())
    assert "scored whole" in callback.history[0]["note"]


def test_score_warns_of_what_it_scores_whole() -> None:
    with pytest.warns(UserWarning, match="2 batches were scored whole, and not on `batch_size=16`"):
        score(OnNodes(), WHOLE["uncounted"]())
    score(OnNodes(), WHOLE["uncounted"](), batch_size=None)  # as asked: no warning, which would be an error


def test_score_warns_of_data_that_is_read_again() -> None:
    short = DataLoader(Samples(64), 64, shuffle=True)
    with pytest.warns(UserWarning, match="The training data has 1 batch, but 2 were requested"):
        score(Classifier(), short, batch_size=None)


def test_score_cuts_loaders_but_not_batches_that_are_given() -> None:
    torch.manual_seed(0)
    model = Classifier()
    batches = make_batches(2, num_samples=64)
    small = [(x[:16], y[:16]) for x, y in batches]
    as_given, cut = score(model, batches)["zico"].value, score(model, small)["zico"].value
    assert as_given != cut
    assert score(model, iter(batches))["zico"].value == as_given
    assert score(model, batches, batch_size=16)["zico"].value == cut  # asked for
    stream = DataLoader(batches, batch_size=None)
    assert score(model, stream)["zico"].value == cut
    assert score(model, Module(lambda: stream))["zico"].value == cut
    assert score(model, stream, batch_size=None)["zico"].value == as_given
    assert score(model, stream, num_samples=lambda batch: len(batch[1]))["zico"].value == cut


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "16", True])
def test_a_batch_size_that_is_none_is_refused(wrong: Any) -> None:
    for build in (ZeroShotSelector, lambda **kwargs: ZeroShotSearch(Bits(), **kwargs), ZiCoCallback):
        with pytest.raises((ValueError, TypeError), match=r"Invalid batch_size=.*None takes the loader's batches"):
            build(batch_size=wrong)
