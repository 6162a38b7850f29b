"""The benchmarks of speed and of the cost of proxies: ratios, the passes that are compared with, and a small run."""

import statistics
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import proxies
import speed

from lightning_zico.proxies import list_proxies, resolve_proxies


def test_every_function_runs_once_a_round_in_changing_order() -> None:
    calls: list[int] = []
    table = speed.rounds_of([lambda idx=idx: calls.append(idx) for idx in range(3)], rounds=6)  # type: ignore[misc]
    orders = [tuple(calls[start : start + 3]) for start in range(0, 18, 3)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len({*orders}) > 1
    assert [len(row) for row in table] == [3] * 6
    assert all(seconds >= 0 for row in table for seconds in row)


def test_a_ratio_is_the_median_of_those_within_a_round() -> None:
    fast, slow = [1.0, 10.0, 2.0], [2.0, 30.0, 2.0]
    text, _, interval = speed.ratio_text(slow, fast).partition(" ")
    assert float(text) == statistics.median([2.0, 3.0, 1.0])
    assert interval == "[1.00, 3.00]"


@pytest.mark.parametrize("network", speed.NETWORKS)
def test_the_published_way_and_ours_give_the_same_score(network: str) -> None:
    # Of two batches the published code loses digits that matter; of eight it does not.
    model, batches = speed.built(network), speed.random_batches(8, 2)
    assert speed.ours(model, batches) == pytest.approx(speed.published(model, batches), rel=1e-5)


def test_all_samples_of_given_batches_are_scored() -> None:
    """Batches above the default batch size are not cut, or the table of larger batches would be that of small ones."""
    model, batches = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)), speed.random_batches(2, 64)
    whole, first = speed.ours(model, batches), speed.ours(model, [(x[:16], y[:16]) for x, y in batches])
    assert whole == pytest.approx(speed.published(model, batches), rel=1e-4)
    assert whole != pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize(
    ("proxy", "num_calls"), [("zico", 2), ("naswot", 1), ("az_trainability", 1), ("zen", 2), ("synflow", 0)]
)
def test_the_plain_passes_of_a_proxy_are_as_many_as_it_needs(proxy: str, num_calls: int) -> None:
    model, calls = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)), []
    in_float64 = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)).double()
    model.register_forward_hook(lambda *_: calls.append("own"))
    in_float64.register_forward_hook(lambda *_: calls.append("float64"))
    proxies.plain_passes(proxy, model, in_float64, speed.random_batches(2, 4))
    assert calls == (["own"] * num_calls or ["float64"])


def test_a_small_run_measures_every_proxy_and_compares_the_default_recipe_with_zico(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = (torch.nn.Flatten(), torch.nn.Linear(3072, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    monkeypatch.setattr(proxies, "wide", lambda: torch.nn.Sequential(*layers))
    monkeypatch.setattr(proxies, "LARGE", 1e9)
    proxies.main(["--quick"])
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()]
    measured = [row[0] for row in rows if len(row) == 4 and row[1].isdigit()]
    of_features = {proxy.name for proxy in resolve_proxies(list_proxies()) if proxy.needs_features}
    assert {*measured[:-2]} == {*list_proxies()} - of_features - proxies.OF_TRANSFORMERS
    assert [row[0] for row in rows if len(row) == 5 and row[1] == "16"] == [
        "nas_bench_201",
        *(f"wide, 0.2 M, {name}" for name in ("zico", "naswot", "az_trainability", "zen", "synflow")),
    ]
    assert "batch 16: the default recipe over `zico`, at most 0.9: nas_bench_201 " in printed
