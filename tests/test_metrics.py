"""ZiCo as a metric: whatever the order, the ranks and the device, it is ZiCo of all gradients seen."""

import copy
import math
import os
import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from lightning_zico.engine.moments import Moments
from lightning_zico.errors import IdenticalBatchesError, TooFewBatchesError
from lightning_zico.metrics import ZiCoMetric

Gradients = dict[str, Tensor]


def make_module() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Conv2d(1, 2, 2, bias=False))


def make_gradients(number: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Gradients]:
    """Make gradients of all parameters, with a mean, so that they do not depend on the signs alone."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            name: 1 + torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
            for name, parameter in make_module().named_parameters()
        }
        for _ in range(number)
    ]


def zico_of(gradients: list[Gradients], names: tuple[str, ...] = ("0.weight", "2.weight")) -> float:
    """Compute ZiCo as it is written: all gradients at once, in double precision."""
    total = 0.0
    for name in names:
        stack = torch.stack([one[name] for one in gradients]).double()  # [B, *]
        total += math.log((stack.abs().mean(dim=0) / stack.std(dim=0, correction=0)).sum())
    return total


def updated(gradients: list[Gradients], **kwargs: Any) -> ZiCoMetric:
    metric = ZiCoMetric(make_module(), **kwargs)
    for one in gradients:
        metric.update(one)
    return metric


def stacked(gradients: list[Gradients]) -> dict[str, Moments]:
    return {name: Moments.of(torch.stack([one[name] for one in gradients])) for name in gradients[0]}


@pytest.mark.parametrize("number", [2, 3, 7])
def test_value_is_zico_of_all_gradients(number: int) -> None:
    gradients = make_gradients(number)
    metric = updated(gradients)
    assert metric.compute().item() == pytest.approx(zico_of(gradients), rel=1e-5)  # float32
    assert metric.layers() == pytest.approx({n: zico_of(gradients, (n,)) for n in ("0.weight", "2.weight")}, rel=1e-5)


def test_parameters_are_chosen_by_patterns() -> None:
    gradients = make_gradients(3)
    metric = updated(gradients, parameters=["0.*"])
    assert metric.compute().item() == pytest.approx(zico_of(gradients, ("0.weight", "0.bias")), rel=1e-5)
    with pytest.raises(ValueError, match=r"Sequential has no trainable parameter to score.*`parameters=`"):
        ZiCoMetric(make_module(), ["no such"])
    with pytest.raises(ValueError, match="ReLU has no trainable parameter"):
        ZiCoMetric(nn.ReLU())


def test_moments_and_tensors_may_be_mixed() -> None:
    gradients = make_gradients(6)
    metric = ZiCoMetric(make_module())
    metric.update(gradients[0])
    metric.update(stacked(gradients[1:4]))
    metric.update(stacked(gradients[4:5]))
    metric.update(gradients[5])
    assert metric.compute().item() == pytest.approx(zico_of(gradients), rel=1e-5)


def test_update_leaves_what_it_is_given_alone() -> None:
    gradients = make_gradients(4)
    tensors, moments = gradients[0], stacked(gradients[1:3])
    copies = copy.deepcopy((tensors, moments))
    metric = ZiCoMetric(make_module())
    for given in (tensors, moments, gradients[3]):
        metric.update(given)
    for name in tensors:
        assert torch.equal(tensors[name], copies[0][name])
        assert moments[name].count == 2
        for field in ("mean", "mean_abs", "deviation"):
            assert torch.equal(getattr(moments[name], field), getattr(copies[1][name], field))


def test_gradients_that_require_grad_and_half_precision_are_taken_in() -> None:
    gradients = make_gradients(3)
    metric = ZiCoMetric(make_module())
    for one in gradients:
        metric.update({name: tensor.clone().requires_grad_() for name, tensor in one.items()})
    assert not metric.moments.requires_grad
    assert metric.compute().item() == pytest.approx(zico_of(gradients), rel=1e-5)
    half = [{name: tensor.bfloat16() for name, tensor in one.items()} for one in gradients]
    assert updated(half).compute().item() == pytest.approx(zico_of(half), rel=1e-5)


def test_missing_weight_is_refused_and_changes_nothing() -> None:
    gradients = make_gradients(3)
    metric = updated(gradients[:2])
    with pytest.raises(KeyError, match=r"2\.weight"):
        metric.update({"0.weight": gradients[2]["0.weight"]})
    metric.update(gradients[2])
    assert metric.compute().item() == pytest.approx(zico_of(gradients), rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 3, 1), (3, 4), (4, 2)])
def test_gradient_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    metric = ZiCoMetric(make_module())
    with pytest.raises(ValueError, match=r"'0\.weight' has shape .*expected \(4, 3\)"):
        metric.update(make_gradients(1)[0] | {"0.weight": torch.zeros(shape)})


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric ZiCoMetric was called before the ``update``")
@pytest.mark.parametrize("number", [0, 1])
def test_fewer_than_two_gradients_have_no_score(number: int) -> None:
    metric = updated(make_gradients(number))
    with pytest.raises(TooFewBatchesError, match=f"at least two batches .*; got {number}"):
        metric.compute()
    with pytest.raises(TooFewBatchesError):
        metric.layers()


def test_equal_gradients_have_no_score() -> None:
    with pytest.raises(IdenticalBatchesError, match="The 3 gradients of every scored weight are equal"):
        updated(make_gradients(1) * 3).compute()


def test_reset_forgets() -> None:
    gradients = make_gradients(4)
    metric = updated(gradients[:2])
    first = metric.compute()
    metric.reset()
    with pytest.raises(TooFewBatchesError, match="got 0"):
        metric.layers()
    for one in gradients[2:]:
        metric.update(one)
    assert metric.compute() != first
    assert metric.compute() == updated(gradients[2:]).compute()


def test_value_is_computed_anew_after_an_update() -> None:
    gradients = make_gradients(3)
    metric = updated(gradients[:2])
    before = metric.compute()
    metric.update(gradients[2])
    assert metric.compute() != before
    assert metric.compute() == updated(gradients).compute()


def test_call_returns_the_value_of_the_batch_and_takes_it_in() -> None:
    gradients = make_gradients(5)
    metric = ZiCoMetric(make_module())
    assert metric(stacked(gradients[:2])).item() == pytest.approx(zico_of(gradients[:2]), rel=1e-5)
    assert metric(stacked(gradients[2:])).item() == pytest.approx(zico_of(gradients[2:]), rel=1e-5)
    assert metric.compute().item() == pytest.approx(zico_of(gradients), rel=1e-5)


@pytest.mark.parametrize("split", [0, 1, 2, 5])
def test_merged_metrics_are_one_metric(split: int) -> None:
    gradients = make_gradients(5)
    first, second = updated(gradients[:split]), updated(gradients[split:])
    kept = second.moments.clone()
    first.merge_state(second)
    assert math.fsum(first.layers().values()) == pytest.approx(zico_of(gradients), rel=1e-5)
    assert torch.equal(second.moments, kept)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))])
def test_copies_go_their_own_way(duplicate: Any) -> None:
    gradients = make_gradients(4)
    metric = updated(gradients[:2])
    twin = duplicate(metric)
    assert twin.compute() == metric.compute()
    for one in gradients[2:]:
        twin.update(one)
    assert twin.compute().item() == pytest.approx(zico_of(gradients), rel=1e-5)
    assert metric.compute().item() == pytest.approx(zico_of(gradients[:2]), rel=1e-5)
    twin.reset()
    twin.update(stacked(gradients))
    assert twin.compute().item() == pytest.approx(zico_of(gradients), rel=1e-5)


def test_state_moves_with_the_metric() -> None:
    metric = updated(make_gradients(2)).to("meta")
    assert metric.moments.device.type == "meta"
    metric.reset()
    assert metric.moments.device.type == "meta"
    metric = updated(make_gradients(2)).to("cpu")
    assert metric.compute().device.type == "cpu"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_value_on_a_gpu_is_that_on_the_cpu() -> None:
    gradients = make_gradients(3)
    metric = ZiCoMetric(make_module()).to("cuda")
    for one in gradients:
        metric.update({name: tensor.cuda() for name, tensor in one.items()})
    assert metric.compute().device.type == "cuda"
    assert metric.compute().item() == pytest.approx(zico_of(gradients), rel=1e-5)


def test_double_precision_is_kept() -> None:
    gradients = make_gradients(3, dtype=torch.float64)
    metric = ZiCoMetric(make_module().double())
    for one in gradients:
        metric.update(one)
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == pytest.approx(zico_of(gradients), rel=1e-13)
    metric.reset()
    assert metric.moments.dtype == torch.float64


# --- two processes --------------------------------------------------------------------------------------------------

SPLITS = {"even": 3, "uneven": 5, "one has none": 6, "one each": 1, "first has none": 0}


def merge_on_two_processes(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    values = {}
    for name, split in SPLITS.items():
        gradients = make_gradients(2 if name == "one each" else 6)
        own = gradients[:split] if rank == 0 else gradients[split:]
        metric = updated(own)
        layers = metric.layers()
        assert len(own) == metric.moments[0]  # what was merged is not kept: the next exchange would count it twice
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics: one of them has seen nothing, as is meant here
            values[name] = (math.fsum(layers.values()), metric.compute().item())
    torch.save(values, folder / f"{rank}.pt")
    os._exit(0)  # destroying the group can wait for ever in torch 2.5


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[float, float]]]:
    folder = tmp_path_factory.mktemp("ranks")
    context = spawn(merge_on_two_processes, (folder,), nprocs=2, join=False)
    give_up = time.monotonic() + 240  # twenty times what it takes on an idle machine
    while not context.join(timeout=1):
        if time.monotonic() > give_up:
            for process in context.processes:
                process.kill()
            pytest.fail("Two processes did not finish their exchange.")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", SPLITS)
def test_ranks_merge_to_the_value_of_one_process(ranks: Any, name: str) -> None:
    expected = zico_of(make_gradients(2 if name == "one each" else 6))
    (first, first_computed), (second, second_computed) = ranks[0][name], ranks[1][name]
    assert first == second
    assert first == pytest.approx(expected, rel=1e-5)
    assert first_computed == second_computed == pytest.approx(first, rel=1e-6)
