"""Log a ranking to a Lightning logger of any kind; Lightning itself is not imported."""

from typing import Any

from torch.utils._pytree import tree_map_only

from lightning_zico.errors import InvalidArgumentError
from lightning_zico.report.series import proxies_of
from lightning_zico.results import Leaderboard
from lightning_zico.texts import printable


def log_leaderboard(leaderboard: Leaderboard, logger: Any) -> None:
    """Log the score and the rank of every candidate, what the numbers depend on, and the whole table as a text.

    Metrics are ``ranking/<name>/score`` and ``ranking/<name>/rank``, at step 0; a failed candidate has none. The
    provenance goes to the hyperparameters, under ``ranking``. A logger that accepts texts (TensorBoard) also gets the
    table.

    Args:
        leaderboard: Leaderboard to log.
        logger: A logger with Lightning's ``log_metrics``, ``log_hyperparams`` and ``save``.

    Raises:
        InvalidArgumentError: If it is not a logger.
    """
    if not hasattr(logger, "log_metrics"):
        hint = " `Trainer(logger=False)` has none." if logger is None else ""
        raise InvalidArgumentError(
            f"Invalid logger={logger!r}: expected a logger of Lightning, such as CSVLogger.{hint}"
        )
    metrics = {}
    for row in leaderboard:
        if row["rank"] is not None:
            name = printable(row["name"])
            metrics[f"ranking/{name}/score"] = row["score"]
            metrics[f"ranking/{name}/rank"] = float(row["rank"])
    if metrics:
        logger.log_metrics(metrics, step=0)
    # Lists of names are not hyperparameters; the notes say why numbers are missing.
    provenance = {key: value for key, value in leaderboard.provenance.items() if key != "missing"}
    logger.log_hyperparams({"ranking": tree_map_only(str, printable, provenance)})
    add_text = getattr(logger.experiment, "add_text", None)
    if add_text is not None:
        add_text("ranking", markdown(leaderboard), 0)
    logger.save()


def markdown(leaderboard: Leaderboard) -> str:
    """Return a leaderboard as a table in Markdown, with its notes below.

    Example:
        >>> row = {"rank": 1, "name": "a|b", "score": 2.5, "zico": 2.5, "error": None, "seconds": 0.1}
        >>> print(markdown(Leaderboard((row,))))
        | rank | name | score | zico | error |
        | --- | --- | --- | --- | --- |
        | 1 | a&#124;b | 2.5 | 2.5 |  |
    """
    columns = ["rank", "name", "score", *proxies_of(leaderboard), "error"]
    lines = [columns, ["---"] * len(columns), *([_cell(row[column]) for column in columns] for row in leaderboard)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *map(_cell, leaderboard.notes)])


def _cell(value: Any) -> str:
    """Return a value as text without Markdown's marks."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(printable(str(value)).split())
    return "".join(f"&#{ord(char)};" if char in _MARKS else char for char in text)


# What starts a tag, ends a cell or marks up a text.
_MARKS = frozenset("&<>|`*_[]\\~")
