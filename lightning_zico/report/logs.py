"""Log a ranking to a Lightning logger of any kind; Lightning itself is not imported."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_zico.errors import InvalidArgumentError
from lightning_zico.texts import printable


def log_ranking(
    logger: Any,
    *,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    notes: Sequence[str],
    provenance: Mapping[str, Any],
) -> None:
    """Log the score and the rank of every candidate, what the numbers depend on, and the whole table as a text.

    Metrics are ``ranking/<name>/score`` and ``ranking/<name>/rank``, at step 0; a failed candidate has none. The
    provenance goes to the hyperparameters, under ``ranking``. A logger that accepts texts (TensorBoard) also gets the
    table.

    Args:
        logger: A logger with Lightning's ``log_metrics``, ``log_hyperparams`` and ``save``.
        rows: One row per candidate, with ``rank``, ``name`` and ``score``.
        columns: Names of the columns of the table.
        notes: Sentences below the table.
        provenance: What the numbers depend on, in plain values.

    Raises:
        InvalidArgumentError: If it is not a logger.
    """
    if not hasattr(logger, "log_metrics"):
        hint = " `Trainer(logger=False)` has none." if logger is None else ""
        raise InvalidArgumentError(
            f"Invalid logger={logger!r}: expected a logger of Lightning, such as CSVLogger.{hint}"
        )
    metrics = {}
    for row in rows:
        if row["rank"] is not None:
            name = printable(row["name"])
            metrics[f"ranking/{name}/score"] = row["score"]
            metrics[f"ranking/{name}/rank"] = float(row["rank"])
    if metrics:
        logger.log_metrics(metrics, step=0)
    # Lists of names are not hyperparameters; the notes say why numbers are missing.
    logged = {key: _printable(value) for key, value in provenance.items() if key != "missing"}
    logger.log_hyperparams({"ranking": logged})
    add_text = getattr(logger.experiment, "add_text", None)
    if add_text is not None:
        add_text("ranking", markdown(columns, rows, notes), 0)
    logger.save()


def markdown(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """Return a table in Markdown, with the notes below.

    Example:
        >>> print(markdown(["rank", "name", "error"], [{"rank": 1, "name": "a|b", "error": None}]))
        | rank | name | error |
        | --- | --- | --- |
        | 1 | a&#124;b |  |
    """
    lines = [list(columns), ["---"] * len(columns), *([_cell(row[column]) for column in columns] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *map(_cell, notes)])


def _printable(value: Any) -> Any:
    """Make all texts in nested plain values printable; their keys stay."""
    if isinstance(value, Mapping):
        return {key: _printable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_printable, value))
    return printable(value) if isinstance(value, str) else value


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
