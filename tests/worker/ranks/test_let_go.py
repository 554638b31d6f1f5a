"""A collective that returns before its threads let go, as gloo's do: here by a thread of ours, released by an event."""

import threading

import pytest
import torch
from torch import distributed

from nsa_lib.worker.ranks import let_go
from nsa_lib.worker.ranks.let_go import COLLECTIVES, let_go_by_gloo

PATIENCE_S = 60


class Late:
    """A collective whose thread holds a view of its tensor until it is told to let go."""

    def __init__(self, work=None):
        self.told, self.work = threading.Event(), work

    def __call__(self, tensor, *, group=None):
        held = [tensor[:1]]

        def hold():
            self.told.wait(PATIENCE_S)
            held.clear()

        self.thread = threading.Thread(target=hold)
        self.thread.start()
        return self.work


@pytest.fixture
def late(monkeypatch):
    def made(**how):
        collective = Late(**how)
        monkeypatch.setattr(distributed, "reduce_scatter_tensor", collective)
        return collective

    return made


def test_it_returns_once_the_threads_hold_nothing_any_more(late):
    collective, tensor, returned = late(), torch.zeros(4), threading.Event()

    def call():
        with let_go_by_gloo():
            distributed.reduce_scatter_tensor(tensor)
        returned.set()

    caller = threading.Thread(target=call)
    caller.start()
    assert not returned.wait(0.2), "it must not return while a view is held"
    collective.told.set()
    assert returned.wait(PATIENCE_S)
    for thread in (caller, collective.thread):
        thread.join(PATIENCE_S)


def test_what_is_held_for_good_is_not_waited_for_without_end(late, monkeypatch):
    monkeypatch.setattr(let_go, "PATIENCE_S", 0.05)
    collective = late()
    with let_go_by_gloo():
        distributed.reduce_scatter_tensor(torch.zeros(4))
    assert collective.thread.is_alive()
    collective.told.set()
    collective.thread.join(PATIENCE_S)


def test_a_collective_under_way_is_not_waited_for(late):
    collective = late(work="under way")
    with let_go_by_gloo():
        assert distributed.reduce_scatter_tensor(torch.zeros(4)) == "under way"
    collective.told.set()
    collective.thread.join(PATIENCE_S)


def test_afterwards_torch_has_its_own_collectives_again():
    names = [name for name in COLLECTIVES if hasattr(distributed, name)]
    before = [getattr(distributed, name) for name in names]
    with let_go_by_gloo():
        assert all(getattr(distributed, name) is not old for name, old in zip(names, before, strict=True))
    assert [getattr(distributed, name) for name in names] == before
    assert {"all_gather_into_tensor", "reduce_scatter_tensor"} <= set(names)
