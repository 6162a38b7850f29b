import math

import pytest
import torch
from torch import nn

from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NoGradientError
from lightning_zico.proxies import BASELINES, Macs, NumLayers, Params, SumLogNumel
from lightning_zico.proxies.size import sum_log_numel
from tests.engine.models import Tied, batches_of, cnn, step


def test_baselines_of_a_network_are_those_of_the_closed_form():
    probe = Probe(cnn(), step, batches_of(2, 5, 5))
    weights = {"0.weight": 4 * 2 * 9, "3.weight": 4 * 4 * 9, "7.weight": 100 * 3}
    assert Params().measure(probe) == sum(weights.values()) + 4 + 4 + 3 + 2 * 4 + 2 * 4
    assert NumLayers().measure(probe).value == 3
    macs = Macs().measure(probe)
    assert macs.value == 25 * (weights["0.weight"] + weights["3.weight"]) + weights["7.weight"]
    assert macs.details == {"counted_on": "meta", "uncounted_operators": []}
    logs = SumLogNumel().measure(probe)
    assert logs.layers == pytest.approx({name: math.log(numel) for name, numel in weights.items()})
    assert logs.value == pytest.approx(sum(map(math.log, weights.values())))


def test_baselines_count_a_tied_weight_once():
    probe = Probe(Tied(), step, batches_of(4))
    assert NumLayers().measure(probe).value == 2
    assert SumLogNumel().measure(probe).value == pytest.approx(math.log(16) + math.log(12))


def test_a_network_without_layers_has_none_to_sum():
    probe = Probe(nn.LayerNorm(4), step, batches_of(4))
    assert NumLayers().measure(probe).value == 0
    with pytest.raises(NoGradientError, match="no layer with a trainable weight"):
        SumLogNumel().measure(probe)


def test_empty_weights_add_nothing():
    assert sum_log_numel({"a": torch.zeros(0, 3), "b": torch.zeros(2, 3)}) == {"b": math.log(6)}


def test_baselines_need_no_labels_and_no_gradients():
    proxies = [Params(), Macs(), NumLayers(), SumLogNumel()]
    assert {proxy.name for proxy in proxies} == set(BASELINES)
    assert not any(proxy.needs_labels or proxy.min_gradients for proxy in proxies)
