"""A scorer that reads a cache before it scores, and stores new scores in it."""

import json
import platform
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from torch import nn

from lightning_zico.bridge.data import overrides_transfer
from lightning_zico.bridge.modules import OPTIMIZERS_FAIL, unwrap_compiled
from lightning_zico.candidates import Candidate
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
from lightning_zico.proxies.transfer import SourceHeadProxy, load_source_head
from lightning_zico.results import NOT_APPLICABLE, Score, ScoreCard
from lightning_zico.scoring.cache import ClaimingCache, ScoreCache, Store
from lightning_zico.scoring.executors.base import Executor, Job
from lightning_zico.scoring.fingerprint import fingerprint, surroundings
from lightning_zico.scoring.process_state import ProcessState, one_ranking
from lightning_zico.scoring.reasons import STEP_FAILS, describe
from lightning_zico.scoring.scorer import Scorer, identity_of

# Reasons that hold as long as nothing in the fingerprint changes. Failures of memory, time, disk or network may not
# happen again the next time, and exceptions from user code may come from them.
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
    """A score as it is stored.

    Args:
        score: The score, with its seconds, layers and details.
        seconds: Its share of the candidate's time, in seconds.
        error: The error of its card.
        untrainable: The ``untrainable`` of its card.
        company: Fingerprint of all proxies that were computed with it. The rest of the card may depend on them: that a
            loss is not finite is known only if a proxy needs the loss.

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
        """Convert to JSON, which preserves every float exactly.

        Raises:
            TypeError: If the details hold anything but plain values.
            ValueError: If a number is not finite.
        """
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Entry":
        """Create an entry from the result of `to_json`."""
        data = json.loads(text)
        return cls(**{**data, "score": Score.from_dict(data["score"])})

    def holds_among(self, company: str) -> bool:
        """Whether the result would be the same if it were computed with other proxies."""
        return self.company == company or (self.error is None and self.untrainable is None)

    @property
    def is_lasting(self) -> bool:
        """Whether scoring again would give the same result."""
        failure = None if self.untrainable is None else self.untrainable
        for prefix in (STEP_FAILS, f"untrainable: {OPTIMIZERS_FAIL}"):
            failure = None if failure is None else failure.removeprefix(prefix)
        return is_lasting([self.score.error, self.error, failure])


# Interval for checking whether other processes are done with their claims, once nothing else is left to score.
_POLL_S = 0.05


@dataclass(frozen=True)
class Claimed(ScoreCard):
    """The card of a candidate that another process is scoring; `score_jobs` turns it into one with scores.

    Args:
        key: Fingerprint of the candidate.
    """

    key: str = ""


@dataclass(frozen=True)
class CachedScorer(Scorer):
    """A `Scorer` that computes only the scores that its cache does not have; created by `with_cache`.

    A candidate is always built: its fingerprint is that of the model with its weights and attributes, and the model
    that is built is the one that is scored. The process that scores also reads and writes the cache, so this works in
    any executor, and scores are stored even if the process that asked for them ends.

    A card is always assembled from entries, whether computed or found, so the next card is equal, ``seconds`` included:
    these are the seconds of the computation.

    Args:
        cache: The cache to read and write.
        context: Fingerprint of everything shared by all candidates, except proxies and `fingerprint.surroundings`.
        keys: Fingerprints of the proxies, by name; a proxy without one, or that reads names, is always computed.
    """

    cache: ScoreCache = field(kw_only=True)
    context: str = field(kw_only=True)
    keys: Mapping[str, str] = field(kw_only=True)

    def _build_and_score(self, candidate: Candidate, state: ProcessState) -> ScoreCard:
        """Build a candidate and compute the proxies that the cache does not have.

        Returns:
            The card; a `Claimed` one if another process is scoring the candidate.
        """
        start = time.perf_counter()
        try:
            model = self.build(candidate)
        except BaseException as raised:
            return replace(self._card_of_failure(candidate, raised), seconds=time.perf_counter() - start)
        identity = identity_of(model)
        module = unwrap_compiled(model)
        own = (module, candidate.blocks, candidate.num_samples, *self._source_heads(module))
        key = fingerprint_or_warning(self.context, surroundings(), *own)
        if key is None:
            card = self._score_built(candidate, model)
            return replace(card, seconds=time.perf_counter() - start, **identity)
        entries = self._read_entries(key)
        if self._missing(entries):
            try:
                with self._claim(key) as store:
                    if store is None:
                        reason = "is being scored by another process"
                        return Claimed(candidate.name, {}, reason, key=key, **identity)
                    entries = self._read_entries(key)  # the previous owner may have scored it in the meantime
                    if missing := self._missing(entries):
                        card = replace(self, proxies=missing)._score_built(candidate, model)
                        state.raise_interrupt()
                        scored, texts = self._entries_of(replace(card, seconds=time.perf_counter() - start))
                        entries |= scored
                        # If the candidate changed the process, its numbers may depend on that.
                        if not state.list_changes():
                            store(texts)
            except Exception as error:
                if self._missing(entries):
                    raise
                self._warn_not_stored(describe(error).rstrip("."))
        return replace(self._card(candidate.name, entries), **identity)

    def is_held(self, claimed: Claimed) -> bool:
        """Whether another process is still scoring a candidate."""
        return isinstance(self.cache, ClaimingCache) and self.cache.is_claimed(claimed.key)

    def read_claimed(self, claimed: Claimed) -> ScoreCard | None:
        """Return the card with the scores of another process; None if some scores are missing."""
        entries = self._read_entries(claimed.key)
        if self._missing(entries):
            return None
        card = self._card(claimed.name, entries)
        return replace(card, weights=claimed.weights, hyperparameters=claimed.hyperparameters)

    @contextmanager
    def _claim(self, candidate: str) -> Iterator[Store | None]:
        """Claim a candidate while the body runs; with a cache without claims, this always succeeds."""
        if isinstance(self.cache, ClaimingCache):
            with self.cache.claim(candidate) as store:
                yield store
            return
        stored: dict[str, str] = {}
        yield stored.update
        if stored:
            self.cache.write(candidate, stored)

    def _source_heads(self, module: nn.Module) -> list[Any]:
        """Load the head of the checkpoint, which is no part of a module, if there is one and a proxy looks at it."""
        if not any(isinstance(proxy, SourceHeadProxy) for proxy in self.proxies):
            return []
        try:
            found = load_source_head(module)
        except Exception as error:  # also raised to the proxy
            return [describe(error)]
        return [] if found is None else [found]

    def _missing(self, entries: Mapping[str, Entry]) -> list[Proxy]:
        return [proxy for proxy in self.proxies if proxy.name not in entries]

    def _read_entries(self, candidate: str) -> dict[str, Entry]:
        texts = self.cache.read(candidate)
        entries = {name: Entry.from_json(texts[key]) for name, key in self.keys.items() if key in texts}
        return {name: entry for name, entry in entries.items() if entry.holds_among(self._company)}

    def _entries_of(self, card: ScoreCard) -> tuple[dict[str, Entry], dict[str, str]]:
        """Split a card into entries.

        Returns:
            All entries, as if they had been read from the cache, and the texts to store, by key of the proxy.
        """
        entries: dict[str, Entry] = {}
        texts: dict[str, str] = {}
        for name, score in card.scores.items():
            share = card.seconds / len(card)
            entries[name] = Entry(score, share, card.error, card.untrainable, self._company)
            try:
                text = entries[name].to_json()
            except (TypeError, ValueError) as error:
                _warn(f"The details of `{name}` cannot be stored as JSON: {error}.")
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

    def _warn_not_stored(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            message = (
                f"Scores could not be stored in the cache: {reason}. They are on the leaderboard, and are computed"
            )
            warnings.warn(f"{message} again next time.", stacklevel=2)

    @cached_property
    def _warned(self) -> set[str]:
        return set()

    @cached_property
    def _company(self) -> str:
        return fingerprint([(name, self.keys.get(name)) for name in sorted(self.names)])


def score_jobs(
    executor: Executor, scorers: Sequence[Scorer], jobs: Iterable[Job]
) -> Generator[tuple[Job, ScoreCard], None, None]:
    """Run jobs; for candidates that other processes are scoring, wait for their scores.

    If such a process ends without scores, the candidate is scored here.

    Args:
        executor: The executor that runs the jobs.
        scorers: Scorers, indexed by ``repeat_idx``.
        jobs: Jobs, as for `Executor.run`.

    Yields:
        Each job with its card, as `Executor.run` does, but never a `Claimed` card.
    """
    claimed: list[tuple[Job, Claimed]] = []  # never more than other processes are scoring at the same time
    again: deque[Job] = deque()

    def offer(fresh: Iterable[Job]) -> Iterator[Job]:
        for job in fresh:
            while again:
                yield again.popleft()
            yield job
        while again:
            yield again.popleft()

    def settle() -> Iterator[tuple[Job, ScoreCard]]:
        for pair in list(claimed):
            job, card = pair
            scorer = scorers[job.repeat_idx]
            assert isinstance(scorer, CachedScorer)
            if not scorer.is_held(card):
                claimed.remove(pair)
                found = scorer.read_claimed(card)
                if found is None:
                    again.append(job)
                else:
                    yield job, found

    while True:
        with one_ranking(), closing(executor.run(scorers, offer(jobs))) as coming:
            for job, card in coming:
                if isinstance(card, Claimed):
                    claimed.append((job, card))
                else:
                    yield job, card
                yield from settle()
        while claimed and not again:
            time.sleep(_POLL_S)
            yield from settle()
        if not again:
            return
        jobs = list(again)
        again.clear()


def is_lasting(errors: Iterable[str | None]) -> bool:
    """Whether all errors, if any, would be the same if the candidate were scored again.

    Example:
        >>> is_lasting([None, "NonFiniteError: ..."]), is_lasting(["took more than 2 s"])
        (True, False)
    """
    return all(error is None or error.startswith(_LASTING) for error in errors)


def with_cache(scorer: Scorer, cache: ScoreCache) -> Scorer:
    """Return a scorer that reads a cache before it scores.

    The key of a score covers the model, its blocks and samples, the proxy and its settings, and the whole scorer:
    batches, loss function, axis, chunk size, seed, budget, device type, precision, the settings of the trainer, the
    lengths of the loader and its dataset, and the data module if it overrides a transfer hook. The key of a proxy that
    looks at features covers their samples. Every key covers what `fingerprint.surroundings` lists in the process that
    scores: versions, global precision, the state of autocast, and the number of threads (``torch.get_num_threads()``),
    which changes ZiCo by up to one percent. A worker with fewer threads therefore does not find scores computed with
    more. The key of a proxy that is not repeatable includes the machine, and so do all keys under a limit on latency.
    Names of candidates are not in the key. If a proxy looks at the head of a checkpoint, the key covers that head too.

    Args:
        scorer: The scorer without a cache.
        cache: The cache to read and write.

    Returns:
        A scorer with the same cards. If something that all scores depend on has no fingerprint, such as an open file in
        the closure of the loss function, it is ``scorer`` itself, with a warning.
    """
    named = {each.name: getattr(scorer, each.name) for each in fields(scorer)}
    seen = {
        "batches": scorer.batches,
        **named,
        "datamodule": scorer.datamodule if overrides_transfer(scorer.datamodule) else None,
        "placement": scorer.placement.kind,
        "settings": scorer.settings.facts,
        "loader": scorer.reading.loader.facts,
        **({} if scorer.reading.cut is None else {"cut": scorer.reading.cut}),
    }
    del seen["proxies"], seen["reading"]
    is_timed = scorer.budget is not None and scorer.budget.latency_s is not None
    context = fingerprint_or_warning(seen, platform.node() if is_timed else None)
    if context is None:
        return scorer
    keyed = [proxy for proxy in scorer.proxies if not proxy.reads_name]
    # one at a time, since they may be on disk
    digests = list(map(fingerprint_or_warning, scorer.reading.transfer_batches))
    features = None if None in digests else "".join(map(str, digests))
    keys = {proxy.name: key for proxy in keyed if (key := _key_of(proxy, features)) is not None}
    return CachedScorer(**named, cache=cache, context=context, keys=keys)


def fingerprint_or_warning(*parts: Any) -> str | None:
    """Return a fingerprint, or None with a warning if there is none."""
    try:
        return fingerprint(*parts)
    except UnfingerprintableError as error:
        _warn(str(error))
        return None


def _key_of(proxy: Proxy, features: str | None) -> str | None:
    """Return the fingerprint of a proxy and, if it looks at features, of their samples; None if there is none."""
    if proxy.needs_features and features is None:
        return None
    samples = (features,) if proxy.needs_features else ()
    return fingerprint_or_warning(proxy.name, proxy, None if proxy.is_repeatable else platform.node(), *samples)


def _warn(reason: str) -> None:
    # Python shows the same warning from the same line only once.
    warnings.warn(f"{reason} Scores that depend on it are computed, but not stored in the cache.", stacklevel=2)
