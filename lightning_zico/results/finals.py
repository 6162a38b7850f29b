"""Rows of a leaderboard after finals."""

from collections.abc import Mapping, Sequence

from lightning_zico.ranking.uncertainty import standard_error
from lightning_zico.results.rows import FINAL_COLUMNS, FIRST_COLUMNS, LEARNED_COLUMNS, SEED_COLUMNS, Row, number_ranks
from lightning_zico.results.scores import Final


def rows_with_finals(
    rows: Sequence[Row], finals: Sequence[Final], learned: Mapping[str, Row] | None = None
) -> list[Row]:
    """Rank again after finals; see `Leaderboard.with_finals`.

    Args:
        rows: Rows of the ranking by score, best first, failed ones last.
        finals: Results of the finals, best first, failed ones last.
        learned: What was learned about each candidate (`LEARNED_COLUMNS`); None for no such columns.
    """
    columns = [*FIRST_COLUMNS, *FINAL_COLUMNS]
    columns += SEED_COLUMNS if any(len(final.by_seed) > 1 for final in finals) else ()
    columns += LEARNED_COLUMNS if learned is not None else ()
    by_name = {final.name: final for final in finals}

    def with_cells(row: Row) -> Row:
        final = by_name.get(row["name"])
        cells = {"final": final.value, "final_epochs": final.num_epochs} if final else {}
        if final and len(final.by_seed) > 1:
            cells["final_std_error"] = standard_error(final.by_seed)
        return {**dict.fromkeys(columns), **cells, **(learned or {}).get(row["name"], {}), **row}

    finished = [final for final in finals if final.error is None]
    row_of = {row["name"]: with_cells(row) for row in rows}
    others = [row for row in row_of.values() if row["name"] not in by_name]
    ranked = [row for row in others if row["rank"] is not None]
    found = []
    ranks = number_ranks([(final.num_epochs, final.value) for final in finished])
    for final, rank in zip(finished, ranks, strict=True):
        found.append(row_of[final.name] | {"rank": rank, "final_rank": rank})
    for row, rank in zip(ranked, number_ranks([row["rank"] for row in ranked]), strict=True):
        found.append(row | {"rank": len(finished) + rank})
    for final in finals:
        if final.error is not None:
            found.append(row_of[final.name] | {"rank": None, "error": f"finals: {final.error}"})
    return found + [row for row in others if row["rank"] is None]
