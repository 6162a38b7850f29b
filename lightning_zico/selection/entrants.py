"""Who takes part in finals: the first by score, or the candidates that the results so far make the most promising."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from torch import nn

from lightning_zico.ranking import placed_beside
from lightning_zico.ranking.aggregate import Values
from lightning_zico.ranking.learned import choose_next, choose_spread, label_noise, learned_ranks
from lightning_zico.results import LEARNED_COLUMNS, Leaderboard, Row, ranks_of
from lightning_zico.scoring.choice import Choice
from lightning_zico.selection.finalist import Finalist, Training

Learn: TypeAlias = bool | Literal["rank"]
Build: TypeAlias = Callable[[int], nn.Module]  # of a seed

# Recipes that can compare candidates of different families, if all are pretrained.
_ACROSS_FAMILIES = ("transfer", "linear_probe")


class Entrants:
    """The candidates of finals.

    Args:
        builds: Functions that build the candidates that may take part under a seed, by name, best by score first.
        scores: Their scores; higher is better.
        members: Their scores by each member of the recipe; higher is better, None if missing.
        num: Number of candidates that take part; all if there are no more.
        learn: False for the first by score; True for those that `ranking.learned.choose_next` chooses by the results so
            far; ``"rank"`` for candidates spread over the ranking.
        first_by: Name of the score.
    """

    def __init__(
        self,
        builds: Mapping[str, Build],
        scores: Values,
        members: Mapping[str, Values],
        *,
        num: int,
        learn: Learn,
        first_by: str,
    ) -> None:
        self._builds = dict(builds)
        self._names = list(builds)
        self._scores = scores
        self._members = members
        self._taken: dict[int, Finalist] = {}
        self._sign = 1
        self.num: int = min(num, len(self._names))
        self.learn = learn
        self.first_by = first_by

    def finalists(self, folder: Path, *, seeds: Sequence[int], higher_is_better: bool) -> Iterator[Finalist]:
        """Yield the finalists of the first round. With ``learn=True``, each is chosen by the results that are there.

        Args:
            folder: Folder for their checkpoints.
            seeds: The seed of each of their trainings.
            higher_is_better: Direction of their values.
        """
        self._sign = 1 if higher_is_better else -1
        for idx, chosen in enumerate(self._choices()):
            name = self._names[chosen]
            build = self._builds[name]
            self._taken[chosen] = finalist = Finalist(
                [
                    Training(name, partial(build, seed), Path(folder, f"{idx}-{seed_idx}.ckpt"), seed)
                    for seed_idx, seed in enumerate(seeds)
                ]
            )
            yield finalist

    def _labels(self) -> dict[int, float | None]:
        """Return the results of the first round by position; None for a finalist that failed in it."""
        return {
            chosen: self._sign * finalist.by_round[0] if finalist.by_round else None
            for chosen, finalist in self._taken.items()
            if finalist.is_done
        }

    def _choices(self) -> Iterator[int]:
        if self.learn is not True:
            yield from choose_spread(self._scores, self.num) if self.learn else range(self.num)
            return
        for _ in range(self.num):
            labels = self._labels()
            pending = self._taken.keys() - labels.keys()
            chosen = choose_next(self._scores, self._members, labels, sorted(pending))
            assert chosen is not None  # there are at least ``num`` candidates
            yield chosen

    def predict_cells(self) -> dict[str, Row] | None:
        """Return the cells of `LEARNED_COLUMNS` by candidate; None if the order of all was not to be learned."""
        if self.learn != "rank":
            return None
        noise = label_noise([finalist.rounds[0] for finalist in self._taken.values() if finalist.rounds])
        ranks = learned_ranks(self._scores, self._members, self._labels(), noise)
        return {
            name: dict(zip(LEARNED_COLUMNS, rank, strict=True))
            for name, rank in zip(self._names, ranks, strict=True)
            if rank is not None
        }


def entrants_of(
    leaderboard: Leaderboard,
    choice: Choice,
    builds: Mapping[str, Build],
    *,
    num: int,
    learn: Learn,
) -> Entrants:
    """Find the candidates of finals in a ranking.

    Candidates of a zoo are of different families, which only ``"transfer"`` and ``"linear_probe"`` compare. If another
    recipe ranks them, learning starts from the known values (the column ``prior``) instead, or from the number of
    parameters if there are none.

    Args:
        leaderboard: The ranking, before finals.
        choice: The proxies and recipes that were computed.
        builds: Functions that build candidates under a seed, by name: all that were ranked, or without learning the
            first ``num``.
        num: Number of finalists.
        learn: See `Entrants`.
    """
    rows = [row for row in leaderboard.rows if row["rank"] is not None and row["name"] in builds]
    facts = leaderboard.provenance
    used = facts["recipes"].get(choice.rank_by)

    def orient(name: str) -> list[float | None]:
        sign = 1 if choice.higher_is_better(name) else -1
        return [None if row.get(name) is None else sign * row[name] for row in rows]

    members = {name: orient(name) for name in used["members"]} if used else {}
    first_by, scores = choice.rank_by, [-float(row["rank"]) for row in rows]
    num_of_a_zoo = facts.get("num_of_a_zoo")
    are_compared = used and used["used"] in _ACROSS_FAMILIES and facts.get("num_pretrained") == num_of_a_zoo
    if learn and used and num_of_a_zoo and not are_compared:
        is_known = "prior" in choice.columns and any(row["prior"] is not None for row in rows)
        first_by = "prior" if is_known else "params"
        values = placed_beside(orient(first_by), orient("params"))
        places = ranks_of([None if v is None else (v, s) for v, s in zip(values, scores, strict=True)])
        scores = [-float(len(rows) + 1 if place is None else place) for place in places]
    order = sorted(range(len(rows)), key=lambda idx: -scores[idx])
    names = [rows[idx]["name"] for idx in order]
    return Entrants(
        {name: builds[name] for name in names},
        [scores[idx] for idx in order],
        {name: [values[idx] for idx in order] for name, values in members.items()},
        num=num,
        learn=learn,
        first_by=first_by,
    )
