"""The size of a storage that is emptied and filled again is followed, and tensors made of tensors are looked into."""

import torch

from nsa_lib.worker.memory import CpuMeter

MIB = 2**20


def test_a_storage_that_is_emptied_and_filled_again_counts_with_its_size_of_the_moment():
    resize = torch.UntypedStorage.resize_
    with CpuMeter("") as meter:
        tensor = torch.empty(2 * MIB, dtype=torch.uint8)
        meter.begin_step()
        assert meter.read()["alloc_mib"] == 2
        tensor.untyped_storage().resize_(0)
        assert meter.read()["alloc_mib"] == 0
        tensor.untyped_storage().resize_(3 * MIB)
        assert meter.read()["alloc_mib"] == 3
        del tensor
        assert meter.read()["alloc_mib"] == 0
    assert torch.UntypedStorage.resize_ is resize


def test_a_storage_that_was_empty_when_it_was_made_counts_once_it_is_filled():
    with CpuMeter("") as meter:
        tensor = torch.empty(0, dtype=torch.uint8)
        tensor.untyped_storage().resize_(MIB)
        assert meter.read()["alloc_mib"] == 1
        del tensor
        assert meter.read()["alloc_mib"] == 0
