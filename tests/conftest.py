"""What every test starts from: one thread, one seed; and workers that start at once, for those that want them."""

import random
import signal

import numpy as np
import pytest
import torch
from hypothesis import settings

from lightning_zico.proxies.base import _PROXIES as PROXIES
from lightning_zico.ranking.recipes import RECIPES
from lightning_zico.spaces.base import _SPACES as SPACES
from tests.processes import FORKED

# Machines under test are shared, so that time per example says nothing.
settings.register_profile("shared", deadline=None, max_examples=40)
settings.load_profile("shared")


def pytest_configure() -> None:
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background jobs and all they start inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def _forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_zico.scoring.executors.pool._CONTEXT", FORKED)


@pytest.fixture
def _own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register proxies, recipes and spaces that the other tests do not see."""
    for registry in (PROXIES, RECIPES, SPACES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
