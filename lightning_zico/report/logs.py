"""Log a ranking to a Lightning logger of any kind; Lightning itself is not imported."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lightning_zico.errors import InvalidArgumentError
from lightning_zico.report.table import Column, Table, as_markdown
from lightning_zico.texts import printable

# MLflow refuses other characters in keys, and takes keys for paths.
# Older versions of it refuse colons, too, and Lightning removes letters that are not ASCII.
_UNSAFE = re.compile(r"[^\w/. -]+", re.ASCII)
_LONGEST_NAME = 200  # MLflow's keys have at most 250 characters, some of which come before and after a name


def log_ranking(
    logger: Any,
    *,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    notes: Sequence[str],
    provenance: Mapping[str, Any],
) -> None:
    """Log a ranking and what its numbers depend on, in the form that suits the logger.

    - W&B and MLflow get the table ``ranking``; MLflow as the artifact ``ranking.json``, and as ``ranking.md`` with the
      notes. Logged to the same run again, such as after finals, it replaces the one before.
    - Other loggers get the metrics ``ranking/<name>/score`` and ``ranking/<name>/rank`` of each candidate that did not
      fail, at step 0. A logger that accepts texts (TensorBoard) also gets the table.

    The provenance goes to the hyperparameters, under ``ranking``. In MLflow's, characters that it refuses in keys are
    replaced by an underscore. MLflow does not let a run change a parameter, so the first value stays; the artifact
    ``ranking_provenance.json`` has the last.

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
    # Lists of names are not hyperparameters; the notes say why numbers are missing.
    logged = {key: value for key, value in provenance.items() if key != "missing"}
    cells = {column: [_printable(row[column]) for row in rows] for column in columns}
    experiment = logger.experiment
    is_mlflow = hasattr(logger, "run_id") and hasattr(experiment, "log_table")
    if hasattr(logger, "log_table"):  # W&B
        logger.log_table("ranking", columns=list(cells), data=list(map(list, zip(*cells.values(), strict=True))))
    elif is_mlflow:
        _log_table_to_mlflow(experiment, logger.run_id, cells)
        experiment.log_text(logger.run_id, _markdown(columns, rows, notes), "ranking.md")
        experiment.log_text(logger.run_id, json.dumps(_plain(logged, list), indent=2), "ranking_provenance.json")
    elif metrics := _metrics(rows):
        logger.log_metrics(metrics, step=0)
    hyperparameters = {"ranking": _plain(logged, _safe_keys if is_mlflow else list)}
    if is_mlflow:
        hyperparameters = _without(experiment.get_run(logger.run_id).data.params, hyperparameters)
    logger.log_hyperparams(hyperparameters)
    if hasattr(experiment, "add_text"):  # TensorBoard
        experiment.add_text("ranking", _markdown(columns, rows, notes), 0)
    logger.save()


def _log_table_to_mlflow(experiment: Any, run_id: str, cells: Mapping[str, Sequence[Any]]) -> None:
    """Log a table as ``ranking.json``, or replace it; `log_table` would add the rows to those that are there."""
    name = "ranking.json"
    if name not in [file.path for file in experiment.list_artifacts(run_id)]:
        experiment.log_table(run_id, cells, name)
        return
    data = list(map(list, zip(*cells.values(), strict=True)))
    experiment.log_text(run_id, json.dumps({"columns": list(cells), "data": data}), name)  # as `log_table` writes it


def _without(known: Collection[str], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leave out what a run of MLflow has already.

    Args:
        known: Names of its parameters: the keys of nested mappings, joined by slashes.
        values: Nested mappings.
        prefix: The keys of the outer mappings.

    Example:
        >>> _without({"a/b"}, {"a": {"b": 1, "c": 2}})
        {'a': {'c': 2}}
    """
    return {
        key: _without(known, value, f"{prefix}{key}/") if isinstance(value, Mapping) else value
        for key, value in values.items()
        if f"{prefix}{key}" not in known
    }


def _metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    metrics = {}
    for row in rows:
        if row["rank"] is not None:
            name = printable(row["name"])
            metrics[f"ranking/{name}/score"] = row["score"]
            metrics[f"ranking/{name}/rank"] = float(row["rank"])
    return metrics


def _safe_keys(names: Collection[str]) -> list[str]:
    """Return a key for each name that MLflow accepts; different names have different keys, whatever their order.

    Example:
        >>> _safe_keys(["zico|naswot", "zico+naswot", "timm//resnet18", "Mlp(width=32)"])
        ['zico_naswot_2', 'zico_naswot', 'timm/resnet18', 'Mlp_width_32_']
    """
    keys: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for name in sorted(names):
        parts = [part for part in _UNSAFE.sub("_", name).split("/") if part.strip(". ")]
        key = start = "/".join(parts)[:_LONGEST_NAME].rstrip("/ ") or "_"
        while key in keys.values():
            counts[start] += 1
            key = f"{start}_{counts[start] + 1}"
        keys[name] = key
    return [keys[name] for name in names]


def _plain(value: Any, keys_of: Callable[[Collection[str]], list[str]]) -> Any:
    """Make the texts in nested plain values printable, and exchange the keys of mappings."""
    if isinstance(value, Mapping):
        return {key: _plain(part, keys_of) for key, part in zip(keys_of(value), value.values(), strict=True)}
    if isinstance(value, list | tuple):
        return type(value)(_plain(part, keys_of) for part in value)
    return _printable(value)


def _markdown(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    texts = ("name", "error")
    shown = tuple(Column(name, tuple(_text(row[name]) for row in rows), name in texts) for name in columns)
    return as_markdown(Table("", shown, notes=tuple(notes)))


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
