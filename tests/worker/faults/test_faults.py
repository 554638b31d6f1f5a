"""Every fault of the table can be planted, and leaves nothing behind."""

import resource

import pytest

from nsa_lib.contract.faults import FAULTS
from nsa_lib.contract.heartbeat import Heartbeat
from nsa_lib.subject import attention, training
from nsa_lib.subject.attention import module as attention_module
from nsa_lib.subject.attention import selection
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import faults
from tests.worker.faults.planted import planted


def test_every_fault_of_the_table_can_be_planted():
    assert list(faults.PLANTS) == list(FAULTS)


def in_force():
    return (
        TinyLM.hidden, Heartbeat.beat, training.backward_step, training.chunked_cross_entropy, training.grad_norm,
        selection.choose_blocks, attention_module.choose_blocks, attention.NSAttention.project,
        *attention.BACKENDS.values(), resource.getrlimit(resource.RLIMIT_FSIZE),
    )  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_in_force_inside_its_context_alone(fault):
    before = in_force()
    with planted(fault):
        assert (in_force() == before) == (fault == "none")
    assert in_force() == before


def test_an_unknown_fault_is_an_error():
    with pytest.raises(KeyError):
        planted("leak_13").__enter__()
