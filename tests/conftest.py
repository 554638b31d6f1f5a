"""Settings that every test shares."""

import os

import pytest
import torch

from tests.stand_in import plain_fused  # noqa: F401

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: its kernels then run on the CPU


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # The tensors of the tests are tiny: on a busy machine, threads that wait for each other take ten times as long.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers_each_time():
    torch.manual_seed(0)
