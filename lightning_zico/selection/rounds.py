"""Rounds of finals: all finalists are trained for a while, then the better ones for a while longer."""

import logging
import math
import statistics
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from lightning.pytorch.loggers.logger import DummyLogger
from scipy import stats

from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import InvalidArgumentError, NotLoggedError, number_of
from lightning_zico.ranking import kendall, kendall_interval
from lightning_zico.ranking.learned import FEWEST_LABELS
from lightning_zico.results import Agreement
from lightning_zico.results.rows import LEAST_AGREEMENT, REDUCTION_FACTOR
from lightning_zico.scoring.arguments import positive, whole_number
from lightning_zico.selection.entrants import Learn
from lightning_zico.selection.final_cache import FinalsCache
from lightning_zico.selection.finalist import Conditions, Finalist
from lightning_zico.texts import count, printable

_log = logging.getLogger(__name__)

# With more finalists than this, the number is halved from round to round.
MOST_AT_ONCE = 4

# Two rounds are compared on this number of finalists or more.
_FEWEST_IN_BOTH = 4


@dataclass(frozen=True)
class FinalsRules:
    """How finals are held: the arguments of `ZeroShotSelector` with these names.

    Raises:
        InvalidArgumentError: If a number is out of range, or the arguments do not go together.
        ValueError: If ``mode`` is neither ``"min"`` nor ``"max"``.
        TypeError: If ``monitor`` is not a string.
    """

    finalists: int = 1
    learn: Learn | None = None
    final_epochs: int = 1
    final_seeds: int = 1
    reduction_factor: int | None = None
    least_agreement: float = LEAST_AGREEMENT
    patience: int | None = None
    time_budget_s: float | None = None
    monitor: str = "val_loss"
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        for name in ("finalists", "final_epochs", "final_seeds"):
            self._set_whole(name, 1)
        if self.reduction_factor is not None:
            self._set_whole("reduction_factor", 2, "2 trains the better half in the next round.")
        if self.patience is not None:
            self._set_whole("patience", 1)
        self._check_least_agreement()
        if not isinstance(self.monitor, str):
            raise TypeError(
                f"Invalid monitor={self.monitor!r}: expected the name of a logged metric, such as 'val_loss'."
            )
        if self.mode not in ("min", "max"):
            raise ValueError(
                f"Invalid mode={self.mode!r}: expected 'min' if lower values of `monitor` are better, or 'max' if "
                "higher values are."
            )
        self._check_learn()
        self._check_time_budget()

    def _set_whole(self, name: str, least: int, why: str = "") -> None:
        # An int, since JSON takes no integers of NumPy.
        object.__setattr__(self, name, whole_number(name, getattr(self, name), least, why))

    def _check_least_agreement(self) -> None:
        least = number_of(self.least_agreement)
        if least is None or not -1 <= least <= 1:
            raise InvalidArgumentError(
                f"Invalid least_agreement={self.least_agreement!r}: expected a Kendall's tau from -1 to 1. With -1, "
                "finalists are dropped after every round."
            )
        object.__setattr__(self, "least_agreement", least)

    def _check_learn(self) -> None:
        learn = self.learn
        if learn is not None and not isinstance(learn, bool) and learn != "rank":
            raise InvalidArgumentError(
                f"Invalid learn={learn!r}: expected True to find the best candidate, 'rank' to learn the order of all, "
                f"False to train the first by score, or None for True with more than {FEWEST_LABELS} finalists."
            )
        if learn == "rank" and self.finalists < FEWEST_LABELS:
            raise InvalidArgumentError(
                f"Invalid finalists={self.finalists} with `learn='rank'`: expected at least {FEWEST_LABELS}, since "
                "fewer results do not show how certain the learned ranks are."
            )

    def _check_time_budget(self) -> None:
        object.__setattr__(self, "time_budget_s", positive("time_budget_s", self.time_budget_s))
        if self.time_budget_s is None:
            return
        if self.time_budget_s == math.inf:
            raise InvalidArgumentError(
                f"Invalid time_budget_s={self.time_budget_s!r}: expected a finite number, or None for no limit."
            )
        if self.finalists == 1:
            raise InvalidArgumentError(
                f"Invalid finalists=1 with `time_budget_s={self.time_budget_s}`: expected at least 2. It is the "
                "largest number of finalists that the time is spent on."
            )
        if self.learn == "rank":
            raise InvalidArgumentError(
                f"Invalid time_budget_s={self.time_budget_s!r} with `learn='rank'`: expected None, since finalists are "
                "spread over the ranking before it is known how many fit."
            )

    @property
    def learns(self) -> Learn:
        """What ``learn`` stands for."""
        return self.finalists > FEWEST_LABELS if self.learn is None else self.learn

    def factor(self, num: int) -> int:
        """Return the factor by which the number of finalists falls from round to round, for a number in the first."""
        return self.reduction_factor or (REDUCTION_FACTOR if num > MOST_AT_ONCE else num)

    def round_sizes(self, num: int) -> list[int]:
        """Return the number of finalists in each round.

        Example:
            >>> FinalsRules().round_sizes(4), FinalsRules().round_sizes(8)
            ([4], [8, 4, 2])
            >>> FinalsRules(reduction_factor=3).round_sizes(8)
            [8, 3]
        """
        sizes = [num]
        while (size := math.ceil(sizes[-1] / self.factor(num))) > 1:
            sizes.append(size)
        return sizes

    def batch_size(self, num_taken: int, num_at_once: int) -> int | None:
        """Return how many finalists of the first round to take before their results are there; None for all.

        Args:
            num_taken: Number of finalists that were taken before.
            num_at_once: Number of finalists that are trained at the same time.
        """
        num_by_score = max(FEWEST_LABELS - num_taken, 0) if self.learns is True else 0
        if self.time_budget_s is not None:
            return min(num_by_score or num_at_once, num_at_once)
        return (num_by_score or num_at_once) if self.learns is True else None

    def has_time_for_another(self, finalists: Sequence[Finalist], num_at_once: int, spent_s: float) -> bool:
        """Whether the time is enough for one more finalist in the first round, and for the rounds after it.

        ``spent_s`` is the time so far. Another one is assumed to take as long as the mean of those before it. One must
        succeed in any case.
        """
        done = [finalist for finalist in finalists if finalist.is_done]
        trained = [finalist for finalist in done if finalist.error is None]
        if self.time_budget_s is None or not trained:
            return True
        mean = sum(finalist.seconds for finalist in trained) / len(trained)
        num_turns = sum(math.ceil(size / num_at_once) for size in self.round_sizes(len(finalists) + 1))
        coming = (num_turns - len(done) / num_at_once) * mean
        return spent_s + coming <= self.time_budget_s

    def has_time_for(self, remaining: Sequence[Finalist], num_at_once: int, spent_s: float) -> bool:
        """Whether the time is enough for one more round of the remaining finalists, at their own speed."""
        each = [finalist.seconds / max(finalist.num_rounds, 1) for finalist in remaining]
        return self.time_budget_s is None or spent_s + _time_of(each, num_at_once) <= self.time_budget_s


# Trains the finalists of a schedule for a round each, and yields each of them when it is trained. The schedule is given
# the number of those that are trained at the same time; it yields None if its next finalist depends on their results.
Play: TypeAlias = Callable[[Conditions, Callable[[int], Iterator[Finalist | None]]], Generator[Finalist, None, None]]


def play_here(
    conditions: Conditions, schedule: Callable[[int], Iterator[Finalist | None]]
) -> Generator[Finalist, None, None]:
    """Train finalists in this process, one after the other."""
    for finalist in schedule(1):
        if finalist is not None:
            finalist.play(conditions)
            yield finalist


def hold_finals(
    entrants: Iterable[Finalist],
    trainer: Any,
    data: Mapping[str, Any],
    *,
    finalists: list[Finalist],
    rules: FinalsRules,
    cache: FinalsCache | None = None,
    play: Play = play_here,
) -> bool:
    r"""Train finalists for a few epochs, and sort them by the result.

    The best is then first: finalists that came further come before others, then those with the better value; failed
    ones are last. If finals are interrupted, the finalists that are done are sorted as well.

    Up to four are all trained for ``final_epochs``. With more, the better half continues from where it paused, until
    one is left (successive halving): of :math:`k` finalists, round :math:`r = 0, 1, \dots` trains

    .. math::
        k_r = \lceil k / 2^r \rceil \quad \text{while } k_r > 1

    of them for :math:`e` epochs each, which takes :math:`e \sum_r k_r < e\,(2k + \log_2 k)` epochs in all. With
    ``reduction_factor``, any number of finalists has such rounds, and the factor stands for 2. If the order after a
    round agrees less than ``least_agreement`` with that after the round before it (Kendall's tau of four or more
    finalists), no finalist is dropped after that round; the number of rounds stays the same.

    With ``patience``, a training ends when ``monitor`` has not improved in this number of validations. It keeps its
    last value, as one does that was trained to the end.

    With ``time_budget_s``, the first round takes another finalist, and a later round is held, only if there is time for
    it. The first finalist that succeeds is trained in any case.

    Args:
        entrants: The finalists of the first round; each is taken when the results that it may depend on are there.
        trainer: The trainer. Its callbacks, loggers, limits and progress are restored afterwards.
        data: Arguments of `Trainer.fit`.
        finalists: An empty list, which the finalists are put into; equal values keep the order of the first round.
        rules: How the finals are held.
        cache: Stores the trainings; None if nothing does.
        play: Trains the finalists, here or elsewhere.

    Returns:
        Whether there was no time for a round.

    Raises:
        NotLoggedError: If the first finalist that is trained does not log ``monitor``; the others are not trained then.

    Source:
        Jamieson & Talwalkar, *Non-stochastic best arm identification and hyperparameter optimization*, AISTATS 2016,
        arXiv:1502.07943, figure 3. Their version divides a total budget evenly among the rounds, so later rounds are
        longer; here each round has ``final_epochs``.
    """
    rounds = _Rounds(entrants, finalists, rules)
    try:
        with borrowed(trainer) as rewind, preserved_rng():
            conditions = Conditions(
                trainer, data, rewind, rules.final_epochs, rules.monitor, rules.mode, rules.patience, cache
            )
            with closing(play(conditions, rounds.schedule)) as played:
                for finalist in played:
                    rounds.finish(finalist)
            if cache is not None or play is not play_here:
                _catch_up(sorted(finalists, key=rounds.rank_key), conditions)
    finally:
        finalists.sort(key=rounds.rank_key)
    return rounds.lacks_time


class _Rounds:
    """The rounds of some finals; see `hold_finals`.

    Args:
        entrants: The finalists of the first round.
        finalists: An empty list, which the finalists are put into.
        rules: How the finals are held.

    Attributes:
        lacks_time: Whether there was no time for a round.
    """

    def __init__(self, entrants: Iterable[Finalist], finalists: list[Finalist], rules: FinalsRules) -> None:
        self.lacks_time = False
        self._entrants = iter(entrants)
        self._finalists = finalists
        self._rules = rules
        self._running: set[Finalist] = set()
        self._spent_s = 0.0

    def rank_key(self, finalist: Finalist) -> tuple[bool, int, float]:
        """Return the key by which finalists are sorted, best first."""
        sign = 1 if self._rules.mode == "min" else -1
        value = math.inf if finalist.value is None else sign * finalist.value
        return finalist.error is not None, -finalist.num_rounds, value

    def schedule(self, num_at_once: int) -> Iterator[Finalist | None]:
        """Yield each finalist when it may be trained for a round; None if `finish` must be called first."""
        rules, finalists = self._rules, self._finalists
        while batch := self._take(num_at_once):
            yield from self._train(batch, num_at_once)
        remaining = finalists
        for _ in rules.round_sizes(len(finalists))[1:]:
            factor = rules.factor(len(finalists)) if _agree(remaining, rules.least_agreement) else 1
            better = sorted(remaining, key=self.rank_key)[: math.ceil(len(remaining) / factor)]
            remaining = [finalist for finalist in better if finalist.error is None]
            if len(remaining) < 2:
                return
            self.lacks_time = not rules.has_time_for(remaining, num_at_once, self._spent_s)
            if self.lacks_time:
                return
            yield from self._train(remaining, num_at_once)

    def finish(self, finalist: Finalist) -> None:
        """Note that a finalist was trained for a round.

        Raises:
            NotLoggedError: If it did not log the metric, and no finalist before it did.
        """
        self._running.discard(finalist)
        _log.info("%s", _describe_result(finalist, self._rules.monitor))
        for own in self._finalists:
            if own.logs_monitor or not own.is_done:
                return
            if own.not_logged:
                own.error, text = None, str(own.not_logged)
                raise NotLoggedError(f"Invalid monitor={self._rules.monitor!r}. In '{own.name}', {text}")

    def _take(self, num_at_once: int) -> list[Finalist]:
        """Take the next finalists of the first round."""
        num_before = len(self._finalists)
        size = self._rules.batch_size(num_before, num_at_once)
        while size is None or len(self._finalists) < num_before + size:
            if not self._rules.has_time_for_another(self._finalists, num_at_once, self._spent_s):
                break
            finalist = next(self._entrants, None)
            if finalist is None:
                break
            self._finalists.append(finalist)
        return self._finalists[num_before:]

    def _train(self, finalists: Sequence[Finalist], num_at_once: int) -> Iterator[Finalist | None]:
        before = [finalist.seconds for finalist in finalists]
        self._running.update(finalists)
        yield from finalists
        while self._running:
            yield None
        each = [finalist.seconds - start for finalist, start in zip(finalists, before, strict=True)]
        self._spent_s += _time_of(each, num_at_once)


def _describe_result(finalist: Finalist, monitor: str) -> str:
    if finalist.error is not None:
        return printable(f"Finals: '{finalist.name}' failed after {finalist.seconds:.1f} s: {finalist.error}")
    trained = f"{count(finalist.num_epochs, 'epoch')} in {finalist.seconds:.1f} s"
    return printable(f"Finals: '{finalist.name}' has {monitor}={finalist.value:.6g} after {trained}.")


def compare_rounds(finalists: Sequence[Finalist]) -> list[Agreement]:
    """Compute how much each round agrees with the next, by Kendall's tau of the finalists that finished both.

    A low tau means that a round is too short to choose by. Rounds with fewer than four such finalists are left out.
    """
    found: list[Agreement] = []
    for idx in range(max(finalist.num_rounds for finalist in finalists) - 1):
        both = [finalist.by_round[idx : idx + 2] for finalist in finalists if finalist.num_rounds > idx + 1]
        if len(both) >= _FEWEST_IN_BOTH:
            tau = kendall([before for before, _ in both], [after for _, after in both])
            low, high = (None, None) if tau is None else kendall_interval(tau, len(both))
            found.append({"round": idx + 1, "n": len(both), "tau": tau, "low": low, "high": high})
    return found


def _agree(finalists: Sequence[Finalist], least: float) -> bool:
    """Whether the last round of some finalists agrees enough with the one before it to drop some of them."""
    found = compare_rounds(finalists)[-1:]
    num_rounds = max(finalist.num_rounds for finalist in finalists)
    return all(own["tau"] is None or own["tau"] >= least for own in found if own["round"] == num_rounds - 1)


def find_tie(finalists: Sequence[Finalist]) -> list[str]:
    """Find the finalists that seeds cannot distinguish from the first one.

    They have been trained as long as the first one, and the 95 % interval of the difference of the means includes zero
    (`difference_margin`, from all that have been trained as long).

    Args:
        finalists: Finalists with two or more seeds, best first.

    Returns:
        Their names, with the first one.
    """
    first = finalists[0]
    others = [own for own in finalists[1:] if own.error is None and own.num_rounds == first.num_rounds]
    if first.error is not None or not others:
        return [first.name]
    margin = difference_margin([own.by_seed for own in (first, *others)])
    best = statistics.fmean(first.by_seed)
    return [first.name, *(own.name for own in others if abs(statistics.fmean(own.by_seed) - best) <= margin)]


def difference_margin(table: Sequence[Sequence[float]]) -> float:
    r"""Compute the half width of the 95 % interval of the difference of any two finalists' means.

    .. math::
        t_{0.975, \nu}\, s \sqrt{\frac{2}{R}}, \qquad \nu = (n - 1)(R - 1), \qquad
        s^2 = \frac{1}{\nu} \sum_{i, r} (x_{ir} - \bar x_i - \bar x_r + \bar x)^2

    with :math:`t` the quantile of Student's distribution. The noise is estimated from all finalists together, as if it
    were equal for all. For two finalists, this is the paired t-test.

    Args:
        table: For each of n finalists one number per seed, [n][R].

    Raises:
        ValueError: If there are fewer than two finalists or seeds, or the finalists differ in their number.

    Example:
        >>> difference_margin([[3.0, 4.0, 5.0], [1.0, 2.0, 3.0]])
        0.0

    Source:
        The least significant difference of a randomised block design: Fisher, *The Design of Experiments*, 1935.
    """
    if len({len(row) for row in table}) != 1 or len(table) < 2 or len(table[0]) < 2:
        raise ValueError(
            f"The table has {count(len(table), 'finalist')} with {sorted({len(row) for row in table})} seeds: expected "
            "at least 2 finalists, each with the same number of seeds of at least 2."
        )
    x = np.array(table, dtype=np.float64)
    num_free = (x.shape[0] - 1) * (x.shape[1] - 1)
    residuals = x - x.mean(axis=1, keepdims=True) - x.mean(axis=0) + x.mean()
    deviation = math.sqrt(float((residuals**2).sum()) / num_free)
    return float(stats.t.ppf(0.975, num_free)) * deviation * math.sqrt(2 / x.shape[1])


@contextmanager
def borrowed(trainer: Any) -> Iterator[Callable[[], None]]:
    """Use a trainer as Lightning's `Tuner` does: without its callbacks and loggers, which are restored at the end.

    A trainer can be neither copied nor rebuilt from its attributes.

    Yields:
        A function that resets the trainer to the start of training.
    """
    loop = trainer.fit_loop
    callbacks, loggers = trainer.callbacks, trainer.loggers
    limits = loop.max_epochs, loop.min_epochs, loop.epoch_loop.min_steps
    progress = deepcopy(loop.state_dict())

    def rewind() -> None:
        loop.load_state_dict(deepcopy(progress))
        loop.restarting = False

    trainer.loggers = [DummyLogger() for _ in loggers]
    loop.min_epochs, loop.epoch_loop.min_steps = None, None  # these would prevent a pause
    try:
        yield rewind
    finally:
        rewind()
        trainer.callbacks, trainer.loggers = callbacks, loggers
        loop.max_epochs, loop.min_epochs, loop.epoch_loop.min_steps = limits
        trainer.should_stop = False


def _catch_up(finalists: Iterable[Finalist], conditions: Conditions) -> None:
    """Prepare the first finalist to continue its training.

    With a cache, its checkpoint may be missing, or be that of a later epoch.
    """
    for finalist in finalists:
        if finalist.error is None:
            finalist.catch_up(conditions)
            if finalist.error is None:
                return


def _time_of(each: Sequence[float], num_at_once: int) -> float:
    """Return how long finalists that take these times are trained, if at most ``num_at_once`` are at a time."""
    return max(sum(each) / min(num_at_once, len(each)), *each)
