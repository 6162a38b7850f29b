"""Work that looks into a cache before it scores, and writes what it scored."""

import json
import platform
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, NoReturn

from lightning_zico.bridge import OPTIMIZERS_FAIL, overrides_transfer, uncompiled
from lightning_zico.candidates import Built, Candidate
from lightning_zico.engine.contents import weights_digest
from lightning_zico.errors import (
    IdenticalBatchesError,
    NoGradientError,
    NonFiniteError,
    TooFewBatchesError,
    UnfingerprintableError,
    UnknownNameError,
    UnsupportedBatchError,
    UnsupportedInputError,
    UnsupportedModuleError,
)
from lightning_zico.proxies import Proxy
from lightning_zico.results import NOT_APPLICABLE, Score, ScoreCard
from lightning_zico.scoring.cache import ClaimingCache, Keep, ScoreCache
from lightning_zico.scoring.fingerprint import fingerprint, surroundings
from lightning_zico.scoring.process_state import ProcessState
from lightning_zico.scoring.scorer import STEP_FAILS
from lightning_zico.scoring.work import Executor, Job, Work
from lightning_zico.trainers import TrainingLoader

# Reasons that hold as long as nothing in the fingerprint changes. Memory, time, a disk or a network that failed may be
# there again the next time, and an exception of the user's own code may come from them.
_LASTING = (
    NOT_APPLICABLE,
    "over budget",
    "untrainable",
    *(
        kind.__name__
        for kind in (
            IdenticalBatchesError,
            NoGradientError,
            NonFiniteError,
            TooFewBatchesError,
            UnknownNameError,
            UnsupportedBatchError,
            UnsupportedInputError,
            UnsupportedModuleError,
        )
    ),
)


@dataclass(frozen=True)
class Entry:
    """A score as it is kept.

    Args:
        score: With its seconds, layers and details.
        seconds: Its share of the time that the candidate took, in seconds.
        error: Of the card it stood in.
        untrainable: Of the card it stood in.
        company: Fingerprint of all proxies that were asked for with it. What a card says besides its scores may depend
            on them: that a loss is not finite is known only if a proxy needs the loss.

    Example:
        >>> entry = Entry(Score("zico", 12.5), seconds=0.25)
        >>> Entry.from_json(entry.to_json()) == entry
        True
    """

    score: Score
    seconds: float
    error: str | None = None
    untrainable: str | None = None
    company: str = ""

    def to_json(self) -> str:
        """Turn into JSON, which gives every float back as it is.

        Raises:
            TypeError: If the details hold something else than plain values.
            ValueError: If a number is not finite.
        """
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Entry":
        """Make an entry from what `to_json` gave."""
        data = json.loads(text)
        return cls(**{**data, "score": Score.from_dict(data["score"])})

    def holds_among(self, company: str) -> bool:
        """Tell whether the same would be found with other proxies beside it."""
        return self.company == company or (self.error is None and self.untrainable is None)

    @property
    def is_lasting(self) -> bool:
        """Whether scoring once more would find the same."""
        failure = None if self.untrainable is None else self.untrainable
        for prefix in (STEP_FAILS, f"untrainable: {OPTIMIZERS_FAIL}"):
            failure = None if failure is None else failure.removeprefix(prefix)
        return is_lasting([self.score.error, self.error, failure])


# How often it is looked whether other processes are done with what they claimed, once nothing else is left to score.
_POLL_S = 0.05


@dataclass(frozen=True)
class Claimed(ScoreCard):
    """The card of a candidate that another process is scoring; `scored` turns it into one with scores.

    Args:
        key: Fingerprint of the candidate.
    """

    key: str = ""


@dataclass(frozen=True)
class CachedWork(Work):
    """A `Work` that scores what its cache does not have; made by `with_cache`.

    A candidate is built in any case: its fingerprint is that of the model, whose weights and attributes are there only
    then, and what is built is what is scored. Whoever scores also reads and writes, so that it works in any executor,
    and what was scored is kept however the process that asked for it ends.

    A card is put together from entries whether they were scored or found, so that the next one is equal, seconds
    included: they are those of the scoring.

    Args:
        cache: Where to look and to keep.
        context: Fingerprint of what is the same for all candidates, proxies and `fingerprint.surroundings` excepted.
        keys: Fingerprints of the proxies, by name; one that has none, or reads names, is always scored.
    """

    cache: ScoreCache = field(kw_only=True)
    context: str = field(kw_only=True)
    keys: Mapping[str, str] = field(kw_only=True)

    def _scored(self, candidate: Candidate, state: ProcessState) -> ScoreCard:
        """Build a candidate and score it by the proxies whose numbers are not known.

        Returns:
            Its card; a `Claimed` one if another process is scoring it.
        """
        start = time.perf_counter()
        try:
            model = self.build(candidate)
        except BaseException as raised:
            return super()._scored(replace(candidate, build=partial(_raise, raised)), state)
        # A factory's model is not made twice; a module that was offered built must be told from it.
        built = candidate if isinstance(candidate.build, Built) else replace(candidate, build=lambda: model)
        weights = weights_digest(model)  # now, since scoring may convert the model
        key = fingerprint_or_warning(
            self.context, surroundings(), uncompiled(model), candidate.blocks, candidate.num_samples
        )
        if key is None:
            return super()._scored(built, state)
        entries = self._known(key)
        if self._missing(entries):
            with self._claim(key) as keep:
                if keep is None:
                    return Claimed(candidate.name, {}, "is being scored by another process", weights=weights, key=key)
                entries = self._known(key)  # who had the claim before may have scored it meanwhile
                if missing := self._missing(entries):
                    card = Work._scored(replace(self, proxies=missing), built, state)
                    state.raise_interrupt()
                    scored, texts = self._kept(replace(card, seconds=time.perf_counter() - start))
                    entries |= scored
                    if not state.changed():  # the numbers of whoever changed the process may come from that
                        keep(texts)
        return replace(self._card(candidate.name, entries), weights=weights)

    def is_held(self, claimed: Claimed) -> bool:
        """Whether another process is still scoring a candidate."""
        return isinstance(self.cache, ClaimingCache) and self.cache.is_claimed(claimed.key)

    def found(self, claimed: Claimed) -> ScoreCard | None:
        """Make the card of what another process has scored; None if that is not all there is to score."""
        entries = self._known(claimed.key)
        return None if self._missing(entries) else replace(self._card(claimed.name, entries), weights=claimed.weights)

    @contextmanager
    def _claim(self, candidate: str) -> Iterator[Keep | None]:
        """Claim a candidate while the body runs; of a cache without claims, it is this process's in any case."""
        if isinstance(self.cache, ClaimingCache):
            with self.cache.claim(candidate) as keep:
                yield keep
            return
        kept: dict[str, str] = {}
        yield kept.update
        if kept:
            self.cache.write(candidate, kept)

    def _missing(self, entries: Mapping[str, Entry]) -> list[Proxy]:
        return [proxy for proxy in self.proxies if proxy.name not in entries]

    def _known(self, candidate: str) -> dict[str, Entry]:
        kept = self.cache.read(candidate)
        entries = {name: Entry.from_json(kept[key]) for name, key in self.keys.items() if key in kept}
        return {name: entry for name, entry in entries.items() if entry.holds_among(self._company)}

    def _kept(self, card: ScoreCard) -> tuple[dict[str, Entry], dict[str, str]]:
        """Take a card apart.

        Returns:
            All of it, as if it had been kept; and the texts that are to be kept, by key of the proxy.
        """
        entries: dict[str, Entry] = {}
        texts: dict[str, str] = {}
        for name, score in card.scores.items():
            share = card.seconds / len(card)
            entries[name] = Entry(score, share, card.error, card.untrainable, self._company)
            try:
                text = entries[name].to_json()
            except (TypeError, ValueError) as error:
                _warn(f"What `{name}` says of its score is no JSON: {error}.")
                continue
            entries[name] = Entry.from_json(text)
            if name in self.keys and entries[name].is_lasting:
                texts[self.keys[name]] = text
        return entries, texts

    def _card(self, name: str, entries: Mapping[str, Entry]) -> ScoreCard:
        in_order = [entries[proxy] for proxy in self.names]
        seconds = sum(entry.seconds for entry in in_order)
        for entry in in_order:
            if entry.error is not None:
                return ScoreCard.failed(name, self.names, entry.error, seconds, entry.score.traceback)
        untrainable = next((entry.untrainable for entry in in_order if entry.untrainable is not None), None)
        return ScoreCard(name, {e.score.name: e.score for e in in_order}, None, seconds, untrainable)

    @cached_property
    def _company(self) -> str:
        return fingerprint([(name, self.keys.get(name)) for name in sorted(self.names)])


def scored(
    executor: Executor, works: Sequence[Work], jobs: Iterable[Job]
) -> Generator[tuple[Job, ScoreCard], None, None]:
    """Run jobs, and leave what other processes are scoring to them: it comes as soon as they are done.

    Should such a process end without scores, the candidate is scored here.

    Args:
        executor: Where to run.
        works: By ``repeat_idx``.
        jobs: As for `Executor.run`.

    Yields:
        Each job with its card, as `Executor.run` does, and none of them a `Claimed` one.
    """
    claimed: list[tuple[Job, Claimed]] = []  # never more than other processes are scoring at the time
    again: deque[Job] = deque()

    def offered(fresh: Iterable[Job]) -> Iterator[Job]:
        for job in fresh:
            while again:
                yield again.popleft()
            yield job
        while again:
            yield again.popleft()

    def settled() -> Iterator[tuple[Job, ScoreCard]]:
        for pair in list(claimed):
            job, card = pair
            work = works[job.repeat_idx]
            assert isinstance(work, CachedWork)
            if not work.is_held(card):
                claimed.remove(pair)
                found = work.found(card)
                if found is None:
                    again.append(job)
                else:
                    yield job, found

    while True:
        with closing(executor.run(works, offered(jobs))) as coming:
            for job, card in coming:
                if isinstance(card, Claimed):
                    claimed.append((job, card))
                else:
                    yield job, card
                yield from settled()
        while claimed and not again:
            time.sleep(_POLL_S)
            yield from settled()
        if not again:
            return
        jobs = list(again)
        again.clear()


def is_lasting(errors: Iterable[str | None]) -> bool:
    """Tell whether all errors, where there are any, are such that scoring once more would find the same.

    Example:
        >>> is_lasting([None, "NonFiniteError: ..."]), is_lasting(["took more than 2 s"])
        (True, False)
    """
    return all(error is None or error.startswith(_LASTING) for error in errors)


def with_cache(work: Work, cache: ScoreCache) -> Work:
    """Let a work look into a cache before it scores.

    In the key of a score stand the model, its blocks and samples, the proxy and its settings, and all of the work:
    batches, loss function, axis, chunk size, seed, budget, kind of device, precision, the settings of the trainer, the
    lengths of the loader and its dataset, and the data module if it overrides a transfer hook; besides them, as they
    are where it is scored, what `fingerprint.surroundings` lists: versions, global precision, the state of autocast,
    and the number of threads (``torch.get_num_threads()``), which moves ZiCo by up to a percent. So a worker with fewer
    threads does not find what this process scored with more. A proxy that is not repeatable has the machine in its key
    as well, and under a limit on latency all have it. Names of candidates are not in it.

    Args:
        work: What to do.
        cache: Where to look and to keep.

    Returns:
        A work whose cards are the same. Where something that all scores depend on has no fingerprint, such as an open
        file in the closure of the loss function, it is ``work`` itself, and a warning says so.
    """
    named = {each.name: getattr(work, each.name) for each in fields(work)}
    seen = {
        **named,
        "datamodule": work.datamodule if overrides_transfer(work.datamodule) else None,
        "placement": work.placement.kind,
        "settings": work.settings.facts,
        "loader": (work.loader or TrainingLoader(work.batches)).facts,
    }
    del seen["proxies"]
    is_timed = work.budget is not None and work.budget.latency_s is not None
    context = fingerprint_or_warning(seen, platform.node() if is_timed else None)
    if context is None:
        return work
    keyed = [proxy for proxy in work.proxies if not proxy.reads_name]
    keys = {proxy.name: key for proxy in keyed if (key := _key_of(proxy)) is not None}
    return CachedWork(**named, cache=cache, context=context, keys=keys)


def fingerprint_or_warning(*parts: Any) -> str | None:
    """Take a fingerprint; None, after a warning, if there is none."""
    try:
        return fingerprint(*parts)
    except UnfingerprintableError as error:
        _warn(str(error))
        return None


def _key_of(proxy: Proxy) -> str | None:
    return fingerprint_or_warning(proxy.name, proxy, None if proxy.is_repeatable else platform.node())


def _warn(reason: str) -> None:
    # Python shows the same warning from the same line once.
    warnings.warn(f"{reason} So the scores that depend on it are computed, and not kept in the cache.", stacklevel=2)


def _raise(error: BaseException) -> NoReturn:
    raise error
