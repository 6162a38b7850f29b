"""Loggers get the ranking, whatever they are called."""

import csv
import html
import inspect
import json
import posixpath
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import MethodType, ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_zico import Leaderboard, Score, ScoreCard
from tests.report.boards import CARDS, EVIL, card, plain, repeated, with_finals


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


class MLflow:
    """Stands in for MLflow's client. It has the documented rules for keys, batches and the artifact of a table."""

    def __init__(self) -> None:
        self.params: dict[str, str] = {}
        self.metrics: dict[str, float] = {}
        self.tables: dict[str, dict[str, list[Any]]] = {}
        self.texts: dict[str, str] = {}

    def log_batch(self, run_id: str, metrics: Sequence[Any] = (), params: Sequence[Any] = ()) -> None:
        assert run_id == "run"
        assert len(metrics) <= 1000
        assert len(params) <= 100
        for entry in (*metrics, *params):
            assert re.fullmatch(r"[/\w.\- ]+", entry.key), entry.key
            assert len(entry.key) <= 250
            assert posixpath.normpath(entry.key) == entry.key
        for param in params:
            assert self.params.setdefault(param.key, param.value) == param.value, "a parameter cannot change"
        self.metrics.update({metric.key: metric.value for metric in metrics})

    def log_table(self, run_id: str, data: dict[str, list[Any]], artifact_file: str) -> None:
        assert run_id == "run"
        assert artifact_file.endswith((".json", ".parquet"))
        assert len({len(column) for column in data.values()}) == 1
        json.dumps(data, allow_nan=False)
        known = self.tables.get(artifact_file, {})
        self.tables[artifact_file] = {name: [*known.get(name, []), *column] for name, column in data.items()}

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        assert run_id == "run"
        if artifact_file in self.tables:
            table = json.loads(text)
            columns = zip(*table["data"], strict=True)
            self.tables[artifact_file] = dict(zip(table["columns"], map(list, columns), strict=True))
        self.texts[artifact_file] = text

    def list_artifacts(self, run_id: str) -> list[SimpleNamespace]:
        assert run_id == "run"
        return [SimpleNamespace(path=path) for path in {*self.tables, *self.texts}]

    def get_run(self, run_id: str) -> SimpleNamespace:
        assert run_id == "run"
        return SimpleNamespace(data=SimpleNamespace(params=dict(self.params)))


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> MLFlowLogger:
    modules = {name: ModuleType(name) for name in ("mlflow", "mlflow.entities", "mlflow.tracking")}
    vars(modules["mlflow.entities"]).update(Param=SimpleNamespace, Metric=SimpleNamespace)
    vars(modules["mlflow.tracking"]).update(MlflowClient=lambda tracking_uri: None)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", True)
    monkeypatch.setattr(MLFlowLogger, "run_id", "run")
    monkeypatch.setattr(MLFlowLogger, "experiment", MLflow())
    return MLFlowLogger(tracking_uri="http://127.0.0.1:9")


ODD_NAMES = ["|nor_conv_3x3~0|+|none~0|", "Mlp(width=32, depth=1)", "../../etc", "timm//resnet18", "日本", "a" * 400]


def test_mlflow_gets_a_table_and_every_key_is_one_that_it_accepts(mlflow: MLFlowLogger) -> None:
    cards = [card(name, float(idx), 1.0) for idx, name in enumerate([*ODD_NAMES, *EVIL])]
    taus = {"zico+naswot": 0.5, "zico|naswot": 0.25}
    board = plain(*cards, card("bad", None, None, error="no"), kendall_with=taus, process_changes={"a" * 400: ["x"]})
    board.log(mlflow)
    client = mlflow.experiment
    assert client.metrics == {}
    table = client.tables["ranking.json"]
    assert list(table) == ["rank", "name", "score", "zico", "macs", "params", "error"]
    rows = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    assert rows == [{column: row[column] for column in table} for row in board]
    assert board.notes[0].split(":")[0] in client.texts["ranking.md"]
    assert client.params["ranking/kendall_with/zico_naswot"] == "0.5"
    assert client.params["ranking/kendall_with/zico_naswot_2"] == "0.25"


def test_mlflow_takes_a_ranking_before_and_after_finals_and_one_that_differs(mlflow: MLFlowLogger) -> None:
    client = mlflow.experiment
    before, after = repeated(), with_finals()
    for board in (before, before, after):
        board.log(mlflow)
        table = client.tables["ranking.json"]
        assert [list(cells) for cells in zip(*table.values(), strict=True)] == [
            [row[column] for column in table] for row in board
        ]
        assert client.texts["ranking.md"].endswith(board.notes[-1])
        assert ("final" in table) == (board is after)
    best = {name: cells[0] for name, cells in client.tables["ranking.json"].items()}
    assert (best["name"], best["final"], best["final_rank"], best["final_epochs"]) == ("good", 0.25, 1, 2)
    assert client.texts["ranking.md"].startswith("| rank | name | score | final | final_rank | final_epochs |")
    assert client.params["ranking/finals/monitor"] == "val_loss"
    assert json.loads(client.texts["ranking_provenance.json"])["finals"]["finalists"] == 3
    other = plain(repeats=7, num_instances=1)
    other.log(mlflow)
    assert client.params["ranking/repeats"] == str(before.provenance["repeats"]) != "7"
    assert json.loads(client.texts["ranking_provenance.json"])["repeats"] == 7


def test_other_loggers_get_the_names_as_they_are_whatever_the_ranks(tmp_path: Path) -> None:
    names = [*ODD_NAMES, "a(1", "a)1", "b" * 300 + "1", "b" * 300 + "2"]
    for run, order in enumerate((names, names[::-1])):
        logger = CSVLogger(tmp_path, version=run)
        plain(*(card(name, float(idx), 1.0) for idx, name in enumerate(order))).log(logger)
        with Path(logger.log_dir, "metrics.csv").open(encoding="utf-8") as file:
            (line,) = csv.DictReader(file)
        assert [float(line[f"ranking/{name}/score"]) for name in order] == list(range(len(names)))


def test_mlflows_keys_belong_to_the_same_names_in_any_order(mlflow: MLFlowLogger) -> None:
    taus = {"zico+naswot": 0.5, "zico|naswot": 0.25, "zico_naswot": 0.75, "日本": 1.0, "本": 0.0}
    for order in (sorted(taus), sorted(taus, reverse=True)):
        plain(kendall_with={name: taus[name] for name in order}).log(mlflow)  # the client refuses changes
    names = {key.removeprefix("ranking/kendall_with/") for key in mlflow.experiment.params if "kendall" in key}
    assert names == {"zico_naswot", "zico_naswot_2", "zico_naswot_3", "_", "__2"}


@pytest.mark.parametrize("board", [plain(*CARDS, kendall_with={"zico+naswot": 0.5}), with_finals()])
def test_wandb_gets_a_table(board: Leaderboard, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = ModuleType("wandb")
    wandb.Table = lambda columns, data, dataframe: (columns, data)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    calls: list[Any] = []
    logger = SimpleNamespace(
        experiment=None,
        log_metrics=lambda *args: calls.append(args),
        log_hyperparams=lambda params: calls.append(params),
        save=lambda: None,
    )
    logger.log_table = MethodType(inspect.unwrap(WandbLogger.log_table), logger)
    board.log(logger)
    (metrics, _), hyperparams = calls
    columns, data = metrics["ranking"]
    assert [dict(zip(columns, line, strict=True)) for line in data] == [
        {column: row[column] for column in columns} for row in board
    ]
    assert set(columns) >= {"final", "final_rank", "final_epochs"}.intersection(board.columns)
    assert hyperparams["ranking"].get("kendall_with") == board.provenance.get("kendall_with")


def test_where_all_failed_there_are_no_metrics() -> None:
    logger = Recorder()
    plain(card("bad", None, None, error="no")).log(logger)
    assert [call[0] for call in logger.calls] == ["hyperparams", "text", "save"]
    Leaderboard(()).log(logger)
