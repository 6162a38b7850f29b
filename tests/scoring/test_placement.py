"""Candidates are scored where and in the precision that was asked for, and what the user offered stays as it is."""

import copy
import gc
import os
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from torch import Tensor, nn

from lightning_zico import Candidate, ScoreCard, ZeroShotSelector, score
from lightning_zico.bridge import Reading
from lightning_zico.candidates import Built
from lightning_zico.proxies import BASELINES, Proxy, list_proxies, resolve_proxies
from lightning_zico.scoring import MemoryCache
from lightning_zico.scoring.cached_scorer import with_cache
from lightning_zico.scoring.executors.pool import Limits, outcomes, worker_idx
from lightning_zico.scoring.placement import Placement, placement_of
from lightning_zico.scoring.scorer import Scorer
from tests.modules import NUM_CLASSES, BusyClassifier, Classifier, assert_untouched, make_batches, make_network, twice

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PRECISIONS: list[Any] = ["32-true", "64-true", "bf16-true", "bf16-mixed"]
DTYPES = {"32-true": "float32", "64-true": "float64", "bf16-true": "bfloat16", "bf16-mixed": "float32"}


class Seen(Proxy):
    """Notes what its probe is made of."""

    name = "seen"

    def measure(self, probe: Any) -> float:
        NOTES.append((probe.module, probe.first_batch[0], probe.module.training_step))
        return 0.0


NOTES: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    NOTES.clear()


def selector(**options: Any) -> ZeroShotSelector:
    return ZeroShotSelector(proxies=["zico", Seen()], **options)


def zico_by_hand(gradients: dict[str, list[np.ndarray[Any, Any]]]) -> float:
    total = 0.0
    for of_layer in gradients.values():
        stacked = np.array(of_layer, dtype=np.float64)
        mean, deviation = np.abs(stacked).mean(axis=0), stacked.std(axis=0)
        total += np.log((mean[deviation > 0] / deviation[deviation > 0]).sum())
    return float(total)


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_mixed_precision_is_autocast_around_the_forward_pass_and_nothing_else(axis: Any) -> None:
    def build() -> nn.Module:
        # Without batch normalisation, which per sample is another function.
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, NUM_CLASSES))

    offered, own = twice(build)
    batches = make_batches(num_batches=3)
    card = Scorer(
        Reading.of(batches),
        resolve_proxies(["zico"]),
        loss_fn=nn.functional.cross_entropy,
        axis=axis,
        placement=Placement(precision="bf16-mixed"),
    ).score(Candidate("mixed", Built(offered)))
    units = batches if axis == "batch" else [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))]
    gradients: dict[str, list[Any]] = {"0": [], "3": []}
    for images, labels in units:
        own.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = own(images)
            loss = nn.functional.cross_entropy(outputs, labels)
        assert outputs.dtype == torch.bfloat16
        loss.backward()
        for name, of_layer in gradients.items():
            gradient = own.get_submodule(name).weight.grad
            assert gradient.dtype == torch.float32
            of_layer.append(gradient.numpy().copy())
    # Per sample, vmap rounds to bfloat16 (8 bits) at other places than a batch of one does.
    tolerance = 1e-6 if axis == "batch" else 0.02
    assert card["zico"].value == pytest.approx(zico_by_hand(gradients), rel=tolerance)
    in_float32 = score(own, batches, loss_fn=nn.functional.cross_entropy, axis=axis)["zico"].value
    assert card["zico"].value != pytest.approx(in_float32, rel=1e-6)
    assert (card["zico"].details["dtype"], card["zico"].details["precision"]) == ("float32", "bf16-mixed")


@pytest.mark.parametrize("axis", ["batch", "sample"])
@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_a_true_precision_is_that_of_a_model_and_batches_that_were_converted_by_hand(
    precision: Any, dtype: torch.dtype, axis: Any
) -> None:
    offered, own = twice(Classifier)
    zico = selector(precision=precision, axis=axis)
    zico.rank([offered], make_batches())
    converted = [(images.to(dtype), labels) for images, labels in make_batches()]
    expected = score(own.to(dtype), converted, axis=axis)["zico"]
    got = zico.cards_["Classifier"]["zico"]
    assert got.value == expected.value
    assert got.layers == expected.layers


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_precision_stands_in_details_and_provenance(precision: Any) -> None:
    ranking = selector(accelerator="cpu", devices=2, precision=precision)
    provenance = ranking.rank([Classifier], make_batches()).provenance
    wanted = {"accelerator": "cpu", "devices": ["cpu"], "precision": precision, "channels_last": False}
    assert {key: provenance[key] for key in wanted} == wanted
    for name in ("zico", *BASELINES):
        details = ranking.cards_["Classifier"][name].details
        assert (details["device"], details["dtype"], details["precision"]) == ("cpu", DTYPES[precision], precision)


def test_without_a_wish_all_is_as_it_is_built() -> None:
    ranking = selector()
    provenance = ranking.rank({"single": Classifier(), "double": Classifier().double()}, make_batches()).provenance
    wanted = {"accelerator": None, "devices": [], "precision": None, "channels_last": False}
    assert {key: provenance[key] for key in wanted} == wanted
    assert [card["zico"].details["dtype"] for card in ranking.cards_.values()] == ["float32", "float64"]
    assert "precision" not in ranking.cards_["single"]["zico"].details


@pytest.mark.parametrize("cache", [None, MemoryCache()], ids=["no cache", "cache"])
@pytest.mark.parametrize("options", [*({"precision": p} for p in PRECISIONS), {"channels_last": True}], ids=str)
def test_a_module_that_is_offered_built_is_never_written_to_and_wins_itself(
    options: dict[str, Any], cache: Any
) -> None:
    model = BusyClassifier()
    ranking = selector(cache=cache, **options)
    with assert_untouched(model):
        ranking.rank([model], make_batches())
    assert ranking.best_model_ is model
    assert ranking.leaderboard_.errors == {}
    ((scored, *_),) = NOTES
    assert (scored is model) == (options == {"precision": "32-true"} or options == {"precision": "bf16-mixed"})


def test_what_a_factory_makes_is_converted_itself_and_the_winner_is_as_it_was_built() -> None:
    built: list[nn.Module] = []

    def build() -> nn.Module:
        built.append(Classifier())
        return built[-1]

    ranking = selector(precision="64-true")
    ranking.rank([build], make_batches())
    ((scored, *_),) = NOTES
    assert scored is built[0]
    assert ranking.best_model_ is built[1]
    assert {parameter.dtype for parameter in built[1].parameters()} == {torch.float32}


class Late(Classifier):
    """Makes its network in `configure_model`."""

    def __init__(self) -> None:
        super().__init__()
        self.network = None

    def configure_model(self) -> None:
        if self.network is None:
            self.network = make_network()


def test_layers_that_configure_model_makes_are_converted_as_well() -> None:
    offered = Late()
    ranking = selector(precision="64-true")
    ranking.rank({"instance": offered, "factory": Late}, make_batches())
    assert ranking.leaderboard_.errors == {}
    assert {card["zico"].details["dtype"] for card in ranking.cards_.values()} == {"float64"}
    assert offered.network is None


class Asking(Classifier):
    """Looks where and in what it runs."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.asked = (self.dtype, batch[0].dtype, torch.zeros(()).dtype, self.trainer.precision)
        ASKED.append(self.asked)
        return super().training_step(batch, batch_idx)


ASKED: list[Any] = []


def test_a_step_finds_what_a_trainer_of_that_precision_gives_it() -> None:
    ASKED.clear()
    for precision in ("64-true", "bf16-true"):
        selector(precision=precision).rank([Asking], make_batches())
    double, half = (torch.float64,) * 3, (torch.bfloat16,) * 3
    assert set(ASKED) == {(*double, "64-true"), (*half, "bf16-true")}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_channels_last_is_a_layout_of_weights_and_images_and_the_same_score(axis: Any) -> None:
    offered, own = twice(Classifier)
    ranking = selector(channels_last=True, axis=axis)
    ranking.rank([offered], make_batches())
    ((scored, images, _),) = NOTES
    for tensor in (scored.network[0].weight, images):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()
    # Another layout sums in another order, and ZiCo divides by differences of gradients.
    assert ranking.cards_["Classifier"]["zico"].value == pytest.approx(
        score(own, make_batches(), axis=axis)["zico"].value, rel=1e-2
    )


@pytest.mark.parametrize(
    "placement",
    [Placement(precision=precision) for precision in PRECISIONS] + [Placement(channels_last=True)],
    ids=lambda placement: f"{placement.precision}, {placement.channels_last}",
)
def test_every_proxy_that_has_a_score_has_one_in_every_precision(placement: Placement) -> None:
    names = [name for name in list_proxies() if name not in ("latency", "seen")]

    def card_in(placement: Placement) -> ScoreCard:
        scorer = Scorer(Reading.of(make_batches()), resolve_proxies(names), placement=placement)
        return scorer.score(Candidate("any", partial(Classifier, width=8)))

    plain, placed = card_in(Placement()), card_in(placement)
    assert {name for name in names if placed[name].error} == {name for name in names if plain[name].error}


def test_a_second_precision_misses_the_cache_and_another_device_of_a_kind_does_not() -> None:
    cache = MemoryCache()

    def card_in(precision: Any) -> ScoreCard:
        ranking = ZeroShotSelector(proxies="zico", precision=precision, cache=cache)
        ranking.rank([Classifier], make_batches())
        return ranking.cards_["Classifier"]

    precisions = [None, *PRECISIONS]
    cards = [card_in(precision) for precision in precisions]
    assert [card["zico"].details.get("precision") for card in cards] == precisions
    assert [repr(card_in(precision).to_dict()) for precision in precisions] == [
        repr(c.to_dict()) for c in cards
    ]  # seconds as well
    first, second = (
        with_cache(
            Scorer(
                Reading.of(make_batches()), resolve_proxies(["zico"]), placement=Placement((torch.device("cuda", k),))
            ),
            cache,
        )
        for k in range(2)
    )
    here = with_cache(Scorer(Reading.of(make_batches()), resolve_proxies(["zico"])), cache)
    assert first.context == second.context != here.context


def test_a_copy_is_made_only_if_something_is_to_be_done_and_shares_nothing() -> None:
    model = Classifier()
    for placement in (Placement(), Placement((torch.device("cpu"),), "32-true"), Placement(precision="bf16-mixed")):
        assert placement.own(model) is model
    away = Placement((torch.device("meta"),))
    before = copy.deepcopy(model.state_dict())
    moved = away.own(model)
    assert moved is not model
    away.place(moved)
    assert {parameter.device.type for parameter in moved.parameters()} == {"meta"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Uncopyable(Classifier):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("holds a camera")


def test_a_module_that_cannot_be_copied_is_a_row_with_its_reason_and_its_factory_is_scored() -> None:
    leaderboard = selector(precision="64-true").rank({"built": Uncopyable(), "made": Uncopyable}, make_batches())
    assert "offer a factory" in leaderboard.errors["built"]
    assert "holds a camera" in leaderboard.errors["built"]
    assert leaderboard.best == "made"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"accelerator": "tpu"}, "Invalid accelerator='tpu'"),
        ({"precision": "transformer-engine"}, "Invalid precision='transformer-engine'"),
        ({"precision": "8"}, "Invalid precision='8'"),
        ({"precision": "16-mixed"}, "only on GPUs"),
        ({"precision": "16-mixed", "accelerator": "cpu"}, "only on GPUs"),
        ({"precision": "64-true", "accelerator": "mps"}, "`mps` does not support it"),
        ({"devices": 2}, "`devices=2` needs an accelerator"),
        ({"accelerator": "cpu", "devices": 0}, "Invalid devices=0"),
        ({"channels_last": "yes"}, "Invalid channels_last='yes'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_at_once(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ZeroShotSelector(**options)


def test_an_accelerator_that_is_not_there_is_one_error_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for accelerator in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(accelerator, "is_available", staticmethod(lambda: False))
    for name in ("gpu", "cuda", "mps"):
        with pytest.raises(RuntimeError, match=f"Invalid accelerator='{name}': .* available: cpu"):
            selector(accelerator=name).rank([lambda: pytest.fail("was built")], make_batches())
    assert placement_of("auto", "auto", None, channels_last=False).devices == (torch.device("cpu"),)
    with pytest.raises(ValueError, match="only on GPUs"):
        selector(accelerator="auto", precision="16-mixed").rank([Classifier], make_batches())


def test_devices_are_those_that_lightning_means(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lightning.fabric.accelerators.cuda", "lightning.pytorch.accelerators.cuda"):
        monkeypatch.setattr(f"{module}.num_cuda_devices", lambda: 4)
    monkeypatch.setattr("lightning.fabric.accelerators.cuda._get_all_visible_cuda_devices", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: False))
    given: list[tuple[Any, list[int]]] = [
        ("auto", [0, 1, 2, 3]),
        (-1, [0, 1, 2, 3]),
        (2, [0, 1]),
        ([3, 1], [3, 1]),
        ("1,", [1]),
    ]
    for devices, indices in given:
        for accelerator in ("gpu", "cuda", "auto"):
            placement = placement_of(accelerator, devices, "16-mixed", channels_last=False)  # type: ignore[arg-type]
            assert placement.devices == tuple(torch.device("cuda", idx) for idx in indices)
    with pytest.raises(Exception, match="You requested gpu"):
        placement_of("gpu", [7], None, channels_last=False)


def test_workers_take_the_devices_in_turn() -> None:
    placement = Placement((torch.device("cuda", 0), torch.device("cuda", 3)))
    assert [placement.of_worker(idx).devices[0].index for idx in range(4)] == [0, 3, 0, 3]
    assert Placement().of_worker(3) == Placement()


def _numbered(item: int) -> int:
    if item == 0:
        os._exit(1)
    return worker_idx()


@pytest.mark.usefixtures("_forked_workers")
@pytest.mark.parametrize("share_process", [True, False])
def test_a_worker_has_a_number_of_its_own_and_one_that_takes_its_place_the_same(share_process: bool) -> None:
    coming = outcomes(_numbered, range(6), 2, Limits(), share_process=share_process)
    found = {item: outcome.result for item, outcome in coming}
    assert (found[0], found[1]) == (None, 1)
    assert {found[item] for item in range(2, 6)} <= {0, 1}
    assert worker_idx() == 0


def _num_frozen(item: int) -> int:
    return gc.get_freeze_count()


@pytest.mark.usefixtures("_forked_workers")
def test_a_worker_does_not_look_through_what_is_imported_for_garbage() -> None:
    ((_, outcome),) = outcomes(_num_frozen, [0], 1, Limits())
    assert outcome.result is not None
    assert outcome.result > len(sys.modules)  # a module is an object
    assert gc.get_freeze_count() == 0


@pytest.mark.slow
def test_worker_processes_score_in_the_precision_that_was_asked_for() -> None:
    model, options = Classifier(), {"accelerator": "cpu", "devices": 2, "precision": "bf16-mixed"}
    here = ZeroShotSelector(proxies="zico", **options).rank({"a": model, "b": Classifier}, make_batches())
    with assert_untouched(model):
        there = ZeroShotSelector(proxies="zico", executor="processes", **options)
        there.rank({"a": model, "b": Classifier}, make_batches())
    assert [row["score"] for row in there.leaderboard_] == [row["score"] for row in here]
    assert {card["zico"].details["precision"] for card in there.cards_.values()} == {"bf16-mixed"}


@needs_cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_on_a_gpu_instances_stay_where_they_are_and_the_score_is_that_of_a_model_that_was_moved(
    precision: Any, axis: Any
) -> None:
    offered, own = twice(Classifier)
    ranking = selector(accelerator="gpu", devices=1, precision=precision, axis=axis)
    with assert_untouched(offered):
        ranking.rank({"instance": offered, "factory": Classifier}, make_batches())
    assert ranking.leaderboard_.errors == {}
    details = ranking.cards_["instance"]["zico"].details
    assert (details["device"], details["dtype"], details["precision"]) == ("cuda:0", "float32", precision)
    assert {parameter.device.type for parameter in ranking.best_model_.parameters()} == {"cpu"}
    if precision == "32-true":
        moved = score(own.to("cuda"), make_batches(), axis=axis)["zico"].value
        assert ranking.cards_["instance"]["zico"].value == pytest.approx(moved, rel=1e-3)  # sums in no fixed order
