"""What is asked of a device: the record of its kind, and never that of another."""

from types import SimpleNamespace

import pytest
import torch

from nsa_lib.contract import case
from nsa_lib.subject.config import ConfigError
from nsa_lib.worker.devices import DEVICES
from nsa_lib.worker.memory import CpuMeter, CudaMeter
from nsa_lib.worker.timing import PhaseClock


def test_every_device_of_the_contract_is_there():
    assert set(DEVICES) == set(case.DEVICES)


def test_an_unknown_kind_is_an_error_and_not_the_cpu():
    with pytest.raises(KeyError, match="xpu"):
        PhaseClock("xpu")


def test_the_meter_of_a_device():
    assert isinstance(DEVICES["cuda"].meter("backend:cudaMallocAsync"), CudaMeter)
    assert isinstance(DEVICES["cpu"].meter("expandable_segments:True"), CpuMeter)
    with pytest.raises(ConfigError, match="backend:cudaMallocAsync"):
        DEVICES["cpu"].meter("backend:cudaMallocAsync")


def test_a_clock_waits_for_its_device(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append("cuda"))
    PhaseClock("cpu").mark("forward")
    assert waited == []
    PhaseClock("cuda").mark("forward")
    assert waited == ["cuda", "cuda"]


@pytest.fixture
def large(monkeypatch):
    """A CUDA device of 140 GiB; return the shares that torch's allocator is told to keep to."""
    told = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=140 * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", told.append)
    return told


def test_on_a_gpu_the_allocator_is_told_the_budget_as_a_share_of_the_device(large):
    DEVICES["cuda"].prepare(80 * 1024)
    assert large == [80 / 140]


def test_without_a_budget_the_allocator_is_told_nothing(large):
    DEVICES["cuda"].prepare(None)
    assert large == []


def test_the_memory_of_a_device_is_its_own_or_that_of_the_one_it_emulates(large):
    assert [DEVICES["cuda"].total_mib(budget) for budget in (None, 80 * 1024)] == [140 * 1024, 80 * 1024]
    assert [DEVICES["cpu"].total_mib(budget) for budget in (None, 80 * 1024)] == [None, 80 * 1024]
