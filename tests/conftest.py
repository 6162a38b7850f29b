"""What every test starts from: one thread, one seed."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

# Machines under test are shared, so that time per example says nothing.
settings.register_profile("shared", deadline=None, max_examples=40)
settings.load_profile("shared")


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
