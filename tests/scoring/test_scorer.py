"""One model's card: what the model does wrong is data, what the caller does wrong is an exception."""

from collections import deque
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_zico import Proxy, ZiCo, score
from lightning_zico.errors import DuplicateNameError, IdenticalBatchesError, TooFewBatchesError, UnknownNameError
from lightning_zico.proxies import resolve_proxies
from lightning_zico.ranking import get_recipe
from tests.modules import Classifier, assert_untouched, make_batches, make_network, twice


def test_same_call_gives_the_same_number() -> None:
    module = Classifier(dropout=0.5)
    torch.manual_seed(1)
    first = score(module, make_batches())["zico"]
    torch.manual_seed(2)
    assert score(module, make_batches())["zico"].value == first.value
    assert score(module, make_batches(), seed=1)["zico"].value != first.value


def test_layers_add_up_to_the_value_and_bear_parameter_names() -> None:
    card = score(Classifier(), make_batches())
    assert sum(card["zico"].layers.values()) == pytest.approx(card["zico"].value, rel=1e-12)
    assert list(card["zico"].layers) == ["network.0.weight", "network.6.weight"]


def test_result_says_how_the_number_came_about() -> None:
    details = score(make_network(), make_batches(), loss_fn=nn.CrossEntropyLoss(), axis="sample")["zico"].details
    assert details["axis"] == "sample"
    assert details["backend"] == "vmap"
    assert details["num_gradients"] == 12
    assert details["batch_norm"] == "statistics of the whole batch, held constant"
    assert details["device"] == "cpu"
    assert details["dtype"] == "float32"


def test_fallback_is_on_record() -> None:
    class Looks(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            loss.item()
            return loss

    looking, plain = twice(Looks)[0], twice(Classifier)[0]
    card = score(looking, make_batches(), axis="sample")
    assert card["zico"].details["backend"] == "loop"
    # 1e-5: both backends sum the same float32 products in another order
    assert card["zico"].value == pytest.approx(score(plain, make_batches(), axis="sample")["zico"].value, rel=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 6, 100, "auto"])
def test_score_does_not_depend_on_chunk_size(chunk_size: Any) -> None:
    module = Classifier()
    whole = score(module, make_batches(), axis="sample")["zico"].value
    chunked = score(module, make_batches(), axis="sample", chunk_size=chunk_size)["zico"].value
    assert chunked == pytest.approx(whole, rel=1e-5)  # float32 sums in another order


class _Nan(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * torch.nan


class _NanGradient(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + torch.sqrt(self.network[0].weight.sum() * 0)


class _Detached(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx).detach()


class _Constant(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.network[0].weight.sum()


class _PerSample(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1], reduction="none")


def _frozen() -> Classifier:
    return Classifier().requires_grad_(False)


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (_Nan, "NonFiniteError", "loss of gradient 0 is nan"),
        (_NanGradient, "NonFiniteError", "gradient of 'network.0.weight'"),
        (_Detached, "NoGradientError", "no scored parameter"),
        (_Constant, "IdenticalBatchesError", "equal"),
        (_PerSample, "UnsupportedModuleError", "(6,)"),
        (_frozen, "NoGradientError", "trainable weight"),
        (lambda: Classifier().to("meta"), "UnsupportedModuleError", "meta device"),
        (lambda: _with(nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(3))), "UnsupportedModuleError", "step fails"),
    ],
)
def test_each_fault_of_a_model_is_its_own_clear_error(build: Any, kind: str, message: str) -> None:
    module = build()
    zico = score(module, make_batches())["zico"]
    assert zico.value is None
    assert zico.error is not None
    assert zico.error.startswith(f"{kind}: ")
    assert message in zico.error


def _with(head: nn.Module) -> Classifier:
    module = Classifier()
    module.network[-1] = head
    return module


def test_one_proxys_failure_leaves_the_others_alone() -> None:
    card = score(_frozen(), make_batches(), proxies="all")
    assert card["zico"].error is not None
    assert card["params"].value == sum(p.numel() for p in Classifier().parameters())
    assert card["num_layers"].value == 0
    assert card.error is None


def test_a_number_that_is_not_finite_becomes_an_error() -> None:
    class Infinite(Proxy):
        name = "infinite"

        def measure(self, probe: Any) -> float:
            return float("inf")

    score_ = score(Classifier(), make_batches(), proxies=[Infinite()])["infinite"]
    assert score_.value is None
    assert "inf" in str(score_.error)


@pytest.mark.parametrize("num_batches", [0, 1])
def test_too_few_batches_are_a_wrong_call(num_batches: int) -> None:
    with pytest.raises(TooFewBatchesError, match=f"`zico` needs at least 2 batches; got {num_batches}. Raise"):
        score(Classifier(), make_batches(num_batches))


def test_one_batch_is_enough_per_sample_and_for_sizes() -> None:
    assert score(Classifier(), make_batches(1), axis="sample")["zico"].error is None
    assert score(Classifier(), make_batches(1), proxies=["macs"])["macs"].error is None
    with pytest.raises(TooFewBatchesError, match="at least 2 samples; got 1"):
        score(Classifier(), make_batches(1, num_samples=1), axis="sample")


def test_identical_batches_are_a_wrong_call() -> None:
    with pytest.raises(IdenticalBatchesError, match="All 3 batches are the same"):
        score(Classifier(), make_batches(1) * 3)


def test_wrong_names_axes_and_chunk_sizes_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'zico'"):
        score(Classifier(), make_batches(), proxies=["zicco"])
    with pytest.raises(DuplicateNameError, match=r"ZiCo\(name="):
        score(Classifier(), make_batches(), proxies=["zico", ZiCo(std_of="abs")])
    with pytest.raises(ValueError, match="axis"):
        score(Classifier(), make_batches(), axis="samples")
    with pytest.raises(ValueError, match="chunk_size=0"):
        score(Classifier(), make_batches(), chunk_size=0)


def test_a_loader_or_a_data_module_is_read_as_its_batches_would_be() -> None:
    batches = make_batches(4)
    model = Classifier()

    class Given(LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(batches, batch_size=None)

    def zico(data: Any, **options: Any) -> float | None:
        return score(model, data, **options)["zico"].value

    two, four = zico(batches[:2]), zico(batches)
    assert None is not two != four is not None
    for data in (DataLoader(batches, batch_size=None), Given()):
        assert zico(data) == zico(batches, num_batches=2) == two
        assert zico(data, num_batches=4) == zico(iter(batches)) == four
    assert zico(None, datamodule=Given()) == two
    assert zico(deque(batches)) == zico(dict(enumerate(batches)).values()) == four
    assert zico(batches, batch_size=4) == zico([(images[:4], labels[:4]) for images, labels in batches]) != four
    with pytest.raises(TooFewBatchesError, match="gave 4 batches, but 5 were requested"):
        zico(batches, num_batches=5)


def test_variants_stand_side_by_side_under_their_names() -> None:
    module = Classifier()
    with assert_untouched(module):
        card = score(module, make_batches(3), proxies=["zico", ZiCo(std_of="abs", name="zico_abs"), "params"])
    assert list(card) == ["zico", "zico_abs", "params"]
    assert card["zico"].value != card["zico_abs"].value


@pytest.mark.parametrize("recipe", ["default", "block_free", "size"])
def test_a_recipe_stands_for_its_members_and_those_of_its_fallbacks(recipe: str) -> None:
    module = Classifier()
    with assert_untouched(module):
        card = score(module, make_batches(), proxies=recipe)
    expected, link = [], recipe
    while link is not None:
        expected += get_recipe(link).members
        link = get_recipe(link).fallback
    assert list(card) == list(dict.fromkeys(expected))
    for name in card:
        assert card[name].error is None
        assert card[name].value == score(module, make_batches(), proxies=name)[name].value


def test_the_default_recipe_looks_at_no_loss() -> None:
    plain, nan = twice(Classifier)[0], twice(_Nan)[0]
    card, other = (score(module, make_batches(), proxies="default") for module in (plain, nan))
    assert {name: card[name].value for name in card} == {name: other[name].value for name in other}


def test_score_is_the_same_inside_an_inference_mode() -> None:
    module, batches = Classifier(), make_batches()
    names = [proxy.name for proxy in resolve_proxies("all") if proxy.is_repeatable]
    expected = score(module, batches, proxies=names)
    with torch.inference_mode():
        card = score(module, batches, proxies=names)
    assert {name: card[name].value for name in names} == {name: expected[name].value for name in names}
    assert card["synflow"].error is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_score_is_the_same_on_the_gpu() -> None:
    module = Classifier().double()  # in double precision, since the devices sum in another order
    on_cpu = score(module, make_batches())["zico"].value
    module.cuda()
    with assert_untouched(module):
        card = score(module, make_batches(), proxies="all")
    assert card["zico"].details["device"].startswith("cuda")
    assert card["zico"].value == pytest.approx(on_cpu, rel=1e-6)
