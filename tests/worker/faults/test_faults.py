"""Every fault of the table can be planted, and leaves nothing behind."""

import resource

import pytest

from nsa_lib.contract.faults import FAULTS, FAULTS_AT, MEMBER_FAULTS, MOMENTS, NO_MOMENT, RANK_FAULTS, moment_of
from nsa_lib.contract.heartbeat import Heartbeat
from nsa_lib.subject import attention, training
from nsa_lib.subject.attention import module as attention_module
from nsa_lib.subject.attention import selection
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import faults
from tests.worker.faults.planted import planted


def test_every_fault_of_the_table_can_be_planted():
    assert list(faults.PLANTS) == [*FAULTS, *RANK_FAULTS, *MEMBER_FAULTS]


ORIGINAL_INIT, FIGURES = TinyLM.__init__, {"loss": 1.0, "step_ms": 1.0}


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


@pytest.mark.parametrize("fault", ["leak_13", "sigkill@dawn"])
def test_an_unknown_fault_or_moment_is_an_error(fault):
    with pytest.raises(KeyError):
        planted(fault).__enter__()


def test_every_fault_strikes_at_every_moment_that_it_can():
    assert {fault.partition("@")[0] for fault in FAULTS_AT} == set(FAULTS) - {"none", *NO_MOMENT}
    assert {moment for fault in FAULTS_AT if (moment := moment_of(fault))} == set(MOMENTS)


@pytest.mark.parametrize("fault", FAULTS_AT)
def test_a_fault_comes_into_force_at_its_moment_and_leaves_nothing(tmp_path, fault):
    before, heartbeat, found = in_force(), Heartbeat(tmp_path / "heartbeat.jsonl"), {}
    with planted(fault, steps=3):
        start = (TinyLM.__init__, *in_force())
        for moment in ("build", "warmup", 1, 2):
            if moment_of(fault) != "build":  # its beats are what is faulty
                step = moment if isinstance(moment, int) else None
                heartbeat.beat("step" if step else moment, step, **FIGURES)
            found[moment] = (TinyLM.__init__, *in_force()) != start
            if any(found.values()):
                break
        at_once = start[0] is not ORIGINAL_INIT or Heartbeat.beat is not before[1]
    expected = {"build": set(), "first": {"warmup"}, "last": {2}}[moment_of(fault)]
    assert {moment for moment, changed in found.items() if changed} == expected
    assert at_once
    assert in_force() == before
