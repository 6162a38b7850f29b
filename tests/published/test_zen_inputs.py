"""Zen on fewer inputs than published ranks networks as on as many as published."""

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
LEAST_RHO = 0.998  # ten pairs of neighbours among forty networks change places


@pytest.mark.parametrize(
    "space_name", ["nas_bench_101", "nas_bench_201", "nats_bench_size", "plainnet", "transnas_micro"]
)
def test_networks_are_ranked_by_few_inputs_as_by_as_many_as_published(monkeypatch, space_name):
    assert zen.NUM_INPUTS < PUBLISHED
    space, rng = get_space(space_name), random.Random(0)
    archs = [space.sample(rng) for _ in range(NUM_NETWORKS)]
    batch = torch.randn(PUBLISHED, 3, 32, 32), torch.randint(10, (PUBLISHED,))

    def scored(arch):
        return score(space.build(arch), [batch], "zen", nn.CrossEntropyLoss())["zen"].value

    few = [scored(arch) for arch in archs]
    monkeypatch.setattr(zen, "NUM_INPUTS", PUBLISHED)
    many = [scored(arch) for arch in archs]
    kept = [idx for idx, value in enumerate(few) if value is not None]  # nothing flows through some
    assert [idx for idx, value in enumerate(many) if value is not None] == kept
    assert len(kept) > 0.9 * NUM_NETWORKS

    rho = spearmanr([few[idx] for idx in kept], [many[idx] for idx in kept]).statistic
    print(f"{space_name}: Spearman {rho:.4f}, needed {LEAST_RHO}")
    assert rho >= LEAST_RHO
