"""What every registered proxy keeps to."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_zico import list_proxies, score
from lightning_zico.proxies import resolve_proxies
from tests.modules import BusyClassifier, Classifier, assert_untouched, make_batches, twice


@pytest.fixture(params=list_proxies())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


class TestProxy:
    def test_is_named_as_registered_and_documented(self, name: str) -> None:
        (proxy,) = resolve_proxies(name)
        assert proxy.name == name
        assert type(proxy).__doc__
        assert type(proxy).measure.__doc__

    def test_gives_a_finite_number_or_a_reason(self, name: str) -> None:
        result = score(Classifier(), make_batches(), proxies=name)[name]
        assert (result.value is None) != (result.error is None)
        assert result.value is None or math.isfinite(result.value)

    def test_gives_the_same_number_twice(self, name: str) -> None:
        module = Classifier(dropout=0.3)
        first = score(module, make_batches(), proxies=name)[name]
        torch.manual_seed(99)
        second = score(module, make_batches(), proxies=name)[name]
        assert first.value == second.value
        assert first.layers == second.layers

    @pytest.mark.parametrize("axis", ["batch", "sample"])
    @pytest.mark.parametrize("fail", [False, True])
    def test_leaves_everything_bit_identical(self, name: str, axis: Any, fail: bool) -> None:
        module = BusyClassifier(fail=fail)
        with assert_untouched(module):
            score(module, make_batches(), proxies=name, axis=axis)

    @pytest.mark.parametrize("chunk_size", [1, 4, "auto"])
    def test_does_not_depend_on_chunk_size(self, name: str, chunk_size: Any) -> None:
        module = Classifier()
        whole = score(module, make_batches(), proxies=name, axis="sample")[name].value
        chunked = score(module, make_batches(), proxies=name, axis="sample", chunk_size=chunk_size)[name].value
        assert chunked == pytest.approx(whole, rel=1e-5)  # float32 sums in another order

    def test_does_not_depend_on_the_order_of_the_batches(self, name: str) -> None:
        module = Classifier()
        batches = make_batches(4)
        forward = score(module, batches, proxies=name)[name].value
        backward = score(module, batches[::-1], proxies=name)[name].value
        assert backward == pytest.approx(forward, rel=1e-5)  # float32 moments merged in another order

    def test_needs_labels_only_if_it_says_so(self, name: str) -> None:
        class OtherLabels(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                return nn.functional.cross_entropy(self(batch[0]), (batch[1] + 1) % 3)

        (proxy,) = resolve_proxies(name)
        plain, other = twice(Classifier)[0], twice(OtherLabels)[0]
        same = (
            score(plain, make_batches(), proxies=name)[name].value
            == score(other, make_batches(), proxies=name)[name].value
        )
        assert same == (not proxy.needs_labels)

    def test_wider_networks_score_better_in_the_documented_direction(self, name: str) -> None:
        (proxy,) = resolve_proxies(name)
        narrow, wide = (score(Classifier(width), make_batches(4), proxies=name)[name].value for width in (4, 64))
        if name != "num_layers":  # which both have alike
            assert (wide > narrow) == proxy.higher_is_better
