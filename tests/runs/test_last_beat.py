"""The last sign of life of a run: of its newest case, of whole lines alone, and never of what is not there."""

import json

import pytest

from nsa_lib.runs.last_beat import is_over, silence

NOW = 1_000_000.0


@pytest.fixture
def beats(tmp_path):
    """Return what writes the heartbeats of a case, a line each, `(seconds ago, phase, step)`."""

    def write(case, *told, torn=""):
        folder = tmp_path / "cases" / case
        folder.mkdir(parents=True)
        lines = [json.dumps({"ts": NOW - ago_s, "phase": phase, "step": step}) for ago_s, phase, step in told]
        (folder / "heartbeat.jsonl").write_text("".join(f"{line}\n" for line in lines) + torn)

    return write


def test_the_newest_case_tells_its_step_phase_and_age(beats, tmp_path):
    beats("training", (900, "build", None), (800, "warmup", 1), (754, "step", 37), torn='{"ts": 99')
    beats("anomaly", (2000, "step", 99))
    assert silence(tmp_path, now=NOW) == "not finished: last heartbeat 12 min 34 s ago, training, phase step, step 37"


def test_a_phase_without_steps_a_rank_and_a_clock_that_is_behind(beats, tmp_path):
    beats("ddp/rank1", (-30, "build", None))
    assert silence(tmp_path, now=NOW) == "not finished: last heartbeat 0 s ago, ddp, rank1, phase build"


def test_only_the_end_of_a_long_file_is_read(beats, tmp_path):
    beats("training", *[(10_000 - step, "step", step) for step in range(9_000)])
    assert "16 min 41 s ago" in silence(tmp_path, now=NOW)


@pytest.mark.parametrize("text", [None, "", "{torn", "[]\n", '{"phase": "step"}\n', "\xff\n"])
def test_without_a_whole_beat_it_says_so(text, tmp_path):
    (tmp_path / "cases" / "training").mkdir(parents=True)
    if text is not None:
        (tmp_path / "cases" / "training" / "heartbeat.jsonl").write_text(text)
    assert silence(tmp_path, now=NOW) == "not finished: no case of it has given a sign of life"


def test_a_run_is_over_once_its_verdict_is_written(tmp_path):
    assert not is_over(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    assert is_over(tmp_path)
