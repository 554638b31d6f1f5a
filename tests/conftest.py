"""Settings that every test shares."""

import pytest
import torch

from tests.stand_in import plain_kernels  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # The tensors of the tests are tiny: on a busy machine, threads that wait for each other take ten times as long.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers_each_time():
    torch.manual_seed(0)
