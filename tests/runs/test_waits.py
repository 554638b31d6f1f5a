"""Who waits for whom while a case runs: asked, told, and ended when it is in vain; never while a rank compiles."""

import json
import time

import pytest

from nsa_lib.runs import waits
from nsa_lib.runs.waits import Waits
from nsa_lib.runs.watch import Limits
from tests.runs.test_flights import entry


class Ranks:
    """Two ranks that began a step 100 s ago; rank 0 came to its collective after `took_s`."""

    def __init__(self, folder, took_s=5.0):
        self.now = time.time()
        self.folders = [folder / f"rank{rank}" for rank in range(2)]
        for path in self.folders:
            path.mkdir()
        self.beats_at = {0: self.now - 100.0, 1: self.now - 100.0}
        self.silences_s = {0: 100.0, 1: 100.0}
        self.entered_at = self.beats_at[0] + took_s

    def tell(self, rank, count, waited_s, **changes):
        """Let a rank tell that it entered `count` collectives, when rank 0 has waited for some time."""
        at = self.entered_at + waited_s
        entries = [{**entry(number), "time_created_ns": int(1e9 * self.entered_at)} for number in range(1, count + 1)]
        told = {"at": at, "doing": "forward, model.py:7", "compiles": False, "entries": entries, **changes}
        (self.folders[rank] / "flight.json").write_text(json.dumps(told))


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.setattr(waits, "children", lambda pid: set())
    return Ranks(tmp_path)


def seen(pair):
    watch = Waits(pair.folders, 1)
    watch.look(pair.beats_at)
    return watch


def ending(watch, ranks, limits=None):
    return watch.overdue(limits or Limits(), ranks.beats_at, ranks.silences_s)


def test_a_rank_that_waits_is_told_early_and_ended_by_how_long_its_own_way_took(pair):
    for waited_s, is_told, status in ((15, False, None), (25, True, None), (46, True, "stalled")):
        pair.tell(0, 3, waited_s)
        pair.tell(1, 2, waited_s)
        watch = seen(pair)
        assert bool(watch.notice) == is_told
        assert (ending(watch, pair) or (None,))[0] == status
    assert ending(watch, pair)[1] == "rank 0 has waited 46 s for rank 1 (limit 45 s)"
    assert "rank 1 has not entered it" in watch.notice
    assert watch.notice.endswith("rank 1 is in forward, model.py:7")


def test_a_long_way_to_the_collective_gives_the_others_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(waits, "children", lambda pid: set())
    slow = Ranks(tmp_path, took_s=20.0)
    slow.tell(0, 3, 55)
    slow.tell(1, 2, 55)
    assert ending(seen(slow), slow) is None
    slow.tell(0, 3, 61)
    assert ending(seen(slow), slow)[0] == "stalled"
    assert ending(seen(slow), slow, Limits(given_s=70)) is None, "the user's own limit replaces ours"


def test_a_wait_through_which_the_machine_slept_or_a_clock_was_set_forward_is_no_hang(pair):
    pair.tell(0, 3, 3600)
    pair.tell(1, 2, 3600)
    pair.silences_s = {0: 12.0, 1: 12.0}
    assert ending(seen(pair), pair) is None
    pair.silences_s = {0: 46.0, 1: 46.0}
    assert ending(seen(pair), pair)[0] == "stalled"


def test_a_rank_that_compiles_is_told_and_given_the_time_of_its_phase(pair):
    pair.tell(0, 3, 90)
    pair.tell(1, 2, 90, compiles=True)
    watch = seen(pair)
    assert ending(watch, pair) is None
    assert watch.notice.endswith("rank 1 compiles in forward, model.py:7")


def test_a_rank_that_does_not_answer_is_told_and_nobody_is_known_to_wait(pair):
    pair.tell(0, 3, 90)
    watch = seen(pair)
    watch.asked_at -= waits.ASK_EVERY_S
    assert watch.notice.startswith("rank 1: no answer")
    assert ending(watch, pair) is None


def test_nothing_is_asked_or_told_while_all_beat_and_old_answers_do_not_count(pair):
    pair.tell(0, 3, 90)
    pair.tell(1, 2, 90)
    pair.beats_at = dict.fromkeys(pair.beats_at, pair.now)
    watch = seen(pair)
    assert (watch.asked_at, watch.notice) == (0.0, "")
    pair.beats_at = dict.fromkeys(pair.beats_at, pair.now - 11)
    pair.tell(0, 3, -50)
    pair.tell(1, 2, -50)
    assert seen(pair).flights == {}


def test_without_a_record_nobody_is_known_to_wait(pair):
    for rank in range(2):
        pair.tell(rank, 0, 90, entries=[], reason="this torch has none")
    watch = seen(pair)
    assert (watch.notice, ending(watch, pair)) == ("", None)
