"""Zen on fewer inputs than published ranks networks as on as many as published: what matters is the draw of weights."""

import random

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from lightning_zico import score
from lightning_zico.proxies import zen
from lightning_zico.spaces import get_space

pytestmark = pytest.mark.slow

NUM_NETWORKS, PUBLISHED = 40, 16


@pytest.mark.parametrize(
    "space_name", ["nas_bench_101", "nas_bench_201", "nats_bench_size", "plainnet", "transnas_micro"]
)
def test_networks_are_ranked_by_few_inputs_as_by_as_many_as_published(monkeypatch, space_name):
    assert zen.NUM_INPUTS < PUBLISHED
    space, rng = get_space(space_name), random.Random(0)
    archs = [space.sample(rng) for _ in range(NUM_NETWORKS)]
    batch = torch.randn(PUBLISHED, 3, 32, 32), torch.randint(10, (PUBLISHED,))

    def scored(arch, seed):
        torch.manual_seed(seed)
        return score(space.build(arch), [batch], "zen", nn.CrossEntropyLoss(), seed=seed)["zen"].value

    few, other_weights = ([scored(arch, seed) for arch in archs] for seed in (0, 1))
    monkeypatch.setattr(zen, "NUM_INPUTS", PUBLISHED)
    many = [scored(arch, 0) for arch in archs]
    kept = [idx for idx, value in enumerate(few) if value is not None]  # nothing flows through some
    assert [idx for idx, value in enumerate(many) if value is not None] == kept
    assert len(kept) > 0.9 * NUM_NETWORKS

    def rho(ones, others):
        return spearmanr([ones[idx] for idx in kept], [others[idx] for idx in kept]).statistic

    same, anew = rho(few, many), rho(few, other_weights)
    print(f"{space_name}: Spearman, 8 and 16 inputs, {same:.4f}; two draws of weights, {anew:.4f}")
    assert same >= 0.998
