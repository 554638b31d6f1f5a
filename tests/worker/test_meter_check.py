"""A meter that does not see all that is held, or not all calls, is found."""

from collections import Counter

import pytest
import torch

from nsa_lib.worker import memory
from nsa_lib.worker.memory import CpuMeter
from nsa_lib.worker.meter_check import CALLS_CHECK, meter_check
from nsa_lib.worker.storages import StorageTracker


def checked():
    """What an entered meter of the CPU says of what it is held against."""
    with CpuMeter("") as meter:
        return meter_check(meter, "cpu")


def test_an_honest_meter_reads_what_is_held_and_counts_every_call():
    found = checked()
    assert found["read_mib"] == found["held_mib"]
    assert found["counted"] == found["calls"] == CALLS_CHECK


@pytest.mark.parametrize(
    "is_unseen",
    [
        lambda nbytes: not torch.is_grad_enabled(),  # what backward and update make
        lambda nbytes: 2**20 < nbytes < 2**23,
    ],
)
def test_a_meter_that_does_not_see_some_storages_is_found(monkeypatch, is_unseen):
    follow = StorageTracker._follow
    monkeypatch.setattr(
        StorageTracker, "_follow", lambda self, storage: is_unseen(storage.nbytes()) or follow(self, storage)
    )
    found = checked()
    assert found["read_mib"] < 0.9 * found["held_mib"]


@pytest.mark.parametrize("most", [0, 30])
def test_a_meter_that_does_not_count_some_calls_is_found(monkeypatch, most):
    class Lossy(Counter):
        def __setitem__(self, name, count):
            super().__setitem__(name, count if torch.is_grad_enabled() else min(count, most))

    monkeypatch.setattr(memory, "Counter", Lossy)
    found = checked()
    assert (found["calls"], found["counted"]) == (CALLS_CHECK, most)
