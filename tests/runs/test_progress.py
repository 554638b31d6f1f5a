"""Progress: one display that is updated in place, no more than once a second, and a line printed now and then."""

import re
from pathlib import Path

import pytest

from nsa_lib.runs import progress
from nsa_lib.runs.panel import PAGE
from nsa_lib.runs.progress import Progress, sparkline_svg


class Screen:
    """What a front end was told, in order: new displays and updates of them."""

    def __init__(self):
        self.displays = []
        self.updates = []

    def display(self, bundle, *, raw, display_id):
        assert raw
        assert display_id
        self.displays.append(bundle)
        return self

    def update(self, bundle, *, raw):
        assert raw
        self.updates.append(bundle)

    @property
    def html(self):
        return [*self.displays, *self.updates][-1]["text/html"]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def screen(monkeypatch, clock):
    shown = Screen()
    monkeypatch.setattr(progress, "get_ipython", lambda: object())
    monkeypatch.setattr(progress, "display", shown.display)
    return shown


def test_a_display_is_made_once_and_then_updated_at_most_once_a_second(screen, clock):
    run = Progress({"training": 1000})
    for step in range(1, 51):
        run.show("training", step, 0.1, [10.0] * step, phase="step")
        clock[0] += 0.1
    assert len(screen.displays) == 1
    assert len(screen.updates) == 4
    assert "step 41 of 1000" in screen.html


def test_it_tells_which_case_of_how_many_loss_limit_the_workers_last_line_and_where_to_look(screen):
    run = Progress({"training": 100, "anomaly": 10}, where=Path("/runs/<smoke>"), limit_mib=70_000.0)
    run.show("anomaly", 4, 1.0, [10.0], phase="step", loss=6.25, reserved_mib=1762.0, said="warning: <b>")
    for text in ("case 2 of 2, anomaly: step 4 of 10", "loss 6.250", "reserved 1,762 of 70,000 MiB"):
        assert text in screen.html
    assert "<code>warning: &lt;b&gt;</code>" in screen.html
    assert "recorded in /runs/&lt;smoke&gt;" in screen.html


def test_in_jupyter_the_panel_stands_in_the_corner_and_in_the_run_folder_until_the_case_ends(
    screen, clock, tmp_path, monkeypatch
):
    monkeypatch.setenv("JPY_SESSION_NAME", "smoke.ipynb")
    run = Progress({"training": 100}, where=tmp_path, notices=["another run shares its memory"])
    run.show("training", 4, 1.0, [10.0], phase="step")
    page = (tmp_path / PAGE).read_text()
    for shown in (screen.html.partition("<script>")[0], screen.html.partition("<script>")[2], page):
        assert "training: step 4 of 100" in shown
        assert "another run shares its memory" in shown
    clock[0] += 5
    run.end("training", "ok", "", 5.0)
    assert "<script>" not in screen.html, "what stays in the notebook runs nothing"
    monkeypatch.delenv("JPY_SESSION_NAME")
    clock[0] += 5
    run.show("training", 5, 1.0, [10.0], phase="step")
    assert "<script>" not in screen.html, "there is no window to stand in"
    assert (tmp_path / PAGE).read_text() == page


def test_it_tells_the_step_the_pace_what_is_left_and_the_memory(screen):
    Progress({"training": 100}).show("training", 40, 1.5, [1000.0, 1686.4], phase="step")
    bundle = screen.displays[0]
    assert bundle["text/plain"] == "training: step 40 of 100, 1,500 ms a step, 1 min 30 s to go, peak 1,686.4 MiB"
    assert bundle["text/plain"] in bundle["text/html"]
    assert '<progress max="100" value="40"' in bundle["text/html"]
    assert bundle["text/html"].count("<svg") == 1


def test_what_has_taken_its_steps_has_none_to_go_while_they_are_judged(screen):
    Progress({"training": 60}).show("training", 60, 0.18, [], phase="judge", loss=0.08)
    assert screen.displays[0]["text/plain"] == "training: step 60 of 60, now judged, loss 0.080"


def test_a_first_check_that_takes_long_says_how_many_there_are(screen):
    Progress({"own": 11}).show("own", 0, None, [], phase="step")
    assert screen.displays[0]["text/plain"] == "own: step 0 of 11"


def test_a_step_that_takes_longer_than_all_that_is_left_is_told_by_its_own_time(screen, clock):
    run = Progress({"own_copying": 2})
    told = []
    for _ in range(3):
        run.show("own_copying", 1, 1.2, [], phase="step")
        told.append((screen.updates or screen.displays)[-1]["text/plain"].rpartition(", ")[2])
        clock[0] += 60
    assert told == ["1 s to go", "the next for 1 min 0 s", "the next for 2 min 0 s"]


def test_before_the_first_step_it_tells_the_phase(screen):
    Progress({"training": 100}).show("training", 0, None, [], phase="build")
    assert screen.displays[0]["text/plain"] == "training: build"
    assert "<svg" not in screen.html


def test_the_end_of_a_case_is_printed_and_clears_the_display(screen, clock, capsys):
    run = Progress({"training": 100, "anomaly": 10})
    run.show("training", 99, 0.1, [10.0, 10.0], phase="step")
    run.end("training", "oom", "out of memory", 61.2)
    assert capsys.readouterr().out == "training: oom after 1 min 1 s (out of memory)\n"
    assert screen.updates[-1]["text/plain"] == ""
    assert "<progress" not in screen.html
    clock[0] += 1
    run.show("anomaly", 1, 0.1, [10.0], phase="warmup")
    assert screen.updates[-1]["text/plain"].startswith("case 2 of 2, anomaly: step 1 of 10")
    assert len(screen.displays) == 1


def test_what_a_case_says_cannot_become_markup(screen):
    run = Progress({"<b>": 10})
    run.show("<b>", 0, None, [], phase="<script>alert(1)</script>")
    assert "&lt;script&gt;" in screen.html
    assert not re.search(r"<(script|img|b)\b", screen.html)


def test_a_line_is_printed_now_and_then(screen, clock, capsys):
    run = Progress({"training": 100})
    for step in range(100):
        run.show("training", step, 0.5, [10.0] * step, phase="step")
        clock[0] += 0.5
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in printed] == ["training: step 40 of 100", "training: step 80 of 100"]


def test_without_ipython_only_lines_are_printed(monkeypatch, clock, capsys):
    monkeypatch.setattr(progress, "get_ipython", lambda: None)
    monkeypatch.setattr(progress, "display", lambda *args, **kwargs: pytest.fail("displayed"))
    run = Progress({"training": 100})
    for step in (1, 2, 25):
        clock[0] += 8
        run.show("training", step, 0.1, [10.0] * step, phase="step")
    run.end("training", "ok", "", 3.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("training: step 25 of 100, 100 ms a step, 8 s to go")
    assert lines[1] == "training: ok after 3 s"


def points(svg):
    text = re.search(r'points="([^"]*)"', svg)[1]
    return [tuple(map(float, point.split(","))) for point in text.split()]


def test_the_sparkline_runs_through_its_values():
    drawn = points(sparkline_svg([10.0, 30.0, 20.0], width=100, height=44))
    assert drawn == [(0, 42), (50, 2), (100, 22)]
    assert "10.0 to 30.0 MiB" in sparkline_svg([10.0, 30.0, 20.0])


def test_the_sparkline_of_a_constant_is_a_level_line_inside_the_drawing():
    drawn = points(sparkline_svg([1686.0] * 5, width=100, height=40))
    assert [x for x, _ in drawn] == [0, 25, 50, 75, 100]
    assert {y for _, y in drawn} == {38}


def test_a_long_run_draws_a_point_a_pixel():
    assert 160 <= len(points(sparkline_svg([10.0, 20.0] * 17_500))) <= 320


@pytest.mark.parametrize("at", [0, 1, 7_777, 19_998, 19_999])
def test_a_spike_of_one_step_in_a_long_run_is_drawn_where_it_was(at):
    values = [10.0] * 20_000
    values[at] = 30.0
    (spike,) = [x for x, y in points(sparkline_svg(values, width=320, height=40)) if y == 2]
    assert spike == pytest.approx(at * 320 / 19_999, abs=0.1)


@pytest.mark.parametrize("values", [[], [10.0]])
def test_a_line_needs_two_values(values):
    assert sparkline_svg(values) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599.7, "1 h 0 min"), (5400, "1 h 30 min")],
)
def test_a_duration_is_told_in_the_units_that_matter(capsys, seconds, words):
    Progress({"training": 1}).end("training", "ok", "", seconds)
    assert capsys.readouterr().out == f"training: ok after {words}\n"
