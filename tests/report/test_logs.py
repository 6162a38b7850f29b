"""Loggers get the ranking, whatever they are called."""

import csv
import html
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_zico import Leaderboard, Score, ScoreCard
from tests.report.boards import EVIL, card, plain


def test_the_csv_logger_has_scores_ranks_and_provenance(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    plain().log(logger)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        (line,) = csv.DictReader(file)
    expected: dict[str, float] = {"step": 0}
    for row in plain().rows[:-1]:
        expected[f"ranking/{row['name']}/score"] = row["score"]
        expected[f"ranking/{row['name']}/rank"] = row["rank"]
    assert {key: float(value) for key, value in line.items()} == expected
    written = yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text())
    assert written["ranking"] == plain().provenance


def test_tensorboard_has_them_too_and_the_table_as_text(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: `pip install tensorboard`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    plain().log(logger)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Scalars("ranking/best/score")[0].value == 7.0
    assert events.Scalars("ranking/good/rank")[0].value == 2.0
    text = events.Tensors("ranking/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[2] == "| 1 | best | 7 | 7 | 8000 | 40 |  |"


class Recorder:
    """Has what `log` needs of a logger."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.experiment = SimpleNamespace(add_text=lambda *args: self.calls.append(("text", *args)))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.calls.append(("metrics", metrics, step))

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.calls.append(("hyperparams", params))

    def save(self) -> None:
        self.calls.append(("save",))


def test_the_text_has_every_row_the_reasons_and_the_notes_and_no_markup_of_names() -> None:
    logger = Recorder()
    board = plain(*(card(name, 1.0, 2.0) for name in EVIL), card("a|b", None, None, error="n|o"), broke_off=True)
    board.log(logger)
    kind, tag, text, step = logger.calls[2]
    assert (kind, tag, step) == ("text", "ranking", 0)
    lines = text.splitlines()
    assert all(line.count("|") == len(lines[0].split("|")) - 1 for line in lines[:6])
    assert "<" not in text
    assert lines[5].endswith("| n&#124;o |")
    assert text.endswith(board.notes[-1])


def test_reasons_of_missing_numbers_are_text_and_no_hyperparameters() -> None:
    logger = Recorder()
    scores = {"zico": Score("zico", 1.0), "macs": Score("macs", 1.0), "params": Score("params", None, EVIL[0])}
    board = plain(ScoreCard("a", scores))
    board.log(logger)
    assert logger.calls[1] == ("hyperparams", {"ranking": plain(card("a", 1.0, 1.0)).provenance})
    text = logger.calls[2][2]
    assert text.endswith(html.escape(board.notes[-1]).replace("&lt;", "&#60;").replace("&gt;", "&#62;"))
    assert "<" not in text


def test_where_all_failed_there_are_no_metrics() -> None:
    logger = Recorder()
    plain(card("bad", None, None, error="no")).log(logger)
    assert [call[0] for call in logger.calls] == ["hyperparams", "text", "save"]
    Leaderboard(()).log(logger)
