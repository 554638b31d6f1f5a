"""Silence is judged by steps of the same kind, and the watcher's own absence is not silence of the case."""

import time
from types import SimpleNamespace

import pytest

from nsa_lib.runs import watch
from nsa_lib.runs.watch import Limits, Watch


class Clock:
    """Time that a test moves, and beats that come when it says."""

    def __init__(self, monkeypatch):
        self.now, self.beats = 1000.0, []
        monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: self.now))

    def read(self):
        read, self.beats = self.beats, []
        return read

    def beat(self, step, step_s):
        self.beats.append({"phase": "step", "ts": self.now, "step": step, "step_ms": 1000 * step_s})


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def watching(clock, kinds):
    times = {"began": clock.now, "beat_at": clock.now, "looked_at": clock.now}
    return Watch(clock, kinds, **times)


def pass_by(clock, seen, seconds):
    """Let time pass while the watcher looks ten times a second."""
    for _ in range(round(10 * seconds)):
        clock.now += 0.1
        seen.look()


def test_a_pause_of_everything_is_no_stall_and_a_silence_that_was_watched_is(clock):
    seen = watching(clock, ["train"] * 100)
    for step in range(1, 11):
        clock.beat(step, 0.1)
        pass_by(clock, seen, 0.1)
    clock.now += 3600  # the container was paused
    seen.look()
    assert seen.overdue(Limits()) is None
    pass_by(clock, seen, 29)
    assert seen.overdue(Limits()) is None
    pass_by(clock, seen, 2)
    assert seen.overdue(Limits())[0] == "stalled"


def test_a_step_that_tells_no_time_took_as_long_as_lies_between_two_beats(clock):
    seen = watching(clock, ["train"] * 100)
    for step in range(1, 11):
        clock.beat(step, float("nan"))
        pass_by(clock, seen, 0.5)
    assert seen.steps_s == pytest.approx([0.0] + 9 * [0.5])
    pass_by(clock, seen, 31)
    assert seen.overdue(Limits())[0] == "stalled"


def test_a_pause_does_not_count_to_the_total_time(clock):
    seen = watching(clock, ["train"])
    clock.now += 7200
    seen.look()
    assert seen.overdue(Limits(total_s=3600)) is None


def test_a_step_of_another_kind_sets_no_limit(clock):
    """A check that takes minutes after ten that took milliseconds is slow, not hung."""
    seen = watching(clock, range(20))
    for step in range(1, 11):
        clock.beat(step, 0.001)
        pass_by(clock, seen, 0.1)
    pass_by(clock, seen, 600)
    assert seen.overdue(Limits()) is None
    pass_by(clock, seen, 400)
    assert seen.overdue(Limits())[0] == "stalled"


def test_a_contestant_is_held_to_its_own_earlier_turns(clock):
    seen = watching(clock, ["fast", "slow"] * 10)
    for step, seconds in enumerate((0.01, 20.0, 0.01, 20.0, 0.01), start=1):
        clock.beat(step, seconds)
        pass_by(clock, seen, 0.1)
    pass_by(clock, seen, 150)  # the slow one's turn: 10 times 20 s
    assert seen.overdue(Limits()) is None
    pass_by(clock, seen, 60)
    assert seen.overdue(Limits())[0] == "stalled"


def test_the_users_limit_covers_the_build(clock):
    seen = watching(clock, ["train"])
    clock.beats = [{"phase": "build", "ts": 0.0, "step": None}]
    pass_by(clock, seen, 8)
    assert seen.overdue(Limits(given_s=7))[0] == "stalled"
    assert seen.overdue(Limits()) is None


def test_real_time_moves():
    assert Watch(SimpleNamespace(read=list), []).looked_at <= time.monotonic()
