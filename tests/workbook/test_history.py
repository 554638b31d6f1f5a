"""The history of a folder's runs: one line a run, whoever writes at once, and a page that shows what can be read."""

import errno
import fcntl
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import pytest

from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.contract.lines import folded
from nsa_lib.workbook.decide import decide
from nsa_lib.workbook.history import append, history_line, index_page, publish, read_history, write_index
from nsa_lib.workbook.run import open_run
from tests.made_runs import day, edit, untaught_smoke

HOSTILE = "'\"></script><script>alert(1)</script><img src=http://example.invalid/x onerror=alert(2)>"


@pytest.fixture
def history(tmp_path):
    return tmp_path / "history.jsonl"


def line(run_id="smoke-1", **changes):
    return {
        "schema": 1, "run_id": run_id, "notebook": "smoke", "created": day(1), "profile": "laptop", "custom": [],
        "verdict": "GO", "headline": "all is well", "peak_alloc_mib": 34.0, "peak_reserved_mib": 36.0,
        "tokens_per_s": 5000.0, "machine": "a processor", "torch": "2.13.0", "source_sha256": "a", "report": None,
        **changes,
    }  # fmt: skip


class Links(HTMLParser):
    """Collects what a page's elements lead to or load."""

    def __init__(self):
        super().__init__()
        self.links = []

    def handle_starttag(self, tag, attributes):
        assert tag not in ("iframe", "object", "form"), tag
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag == "img":  # a chart's static twin, drawn by us and held in the page
            assert dict(attributes)["src"].startswith("data:image/svg+xml;")
            return
        self.links += [value for name, value in attributes if name in ("href", "src", "action")]


def shown(html):
    """Return what a reader sees of a page's tables: a list of texts a row."""
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]


def drawn(html):
    """Return the names of the lines of each chart of a page, by title."""
    titles = re.findall(r"<figcaption><strong>(.*?)</strong>", html)
    figures = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', html)]
    return {title: [trace["name"] for trace in one["data"]] for title, one in zip(titles, figures, strict=True)}


# A line


def test_a_run_is_kept_as_one_line(put):
    run = open_run(put(report="/somewhere/smoke.html"))
    kept = history_line(run)
    assert json.loads(json.dumps(kept)) == kept
    assert (kept["run_id"], kept["verdict"], kept["custom"]) == ("smoke-1", "GO", [])
    assert kept["headline"] == run.summary["headline"]
    assert kept["peak_reserved_mib"] == pytest.approx(run.steps["peak_reserved_mib"].max())
    assert kept["tokens_per_s"] == 5120.0
    assert (kept["machine"], kept["torch"], kept["report"]) == ("a processor", "2.13.0", "/somewhere/smoke.html")


def test_a_run_published_twice_is_shown_once_as_it_was_last(put, history):
    folder = put()
    page = publish(open_run(folder))
    edit(folder / "run.json", profile="checklist")
    assert publish(open_run(folder)) == page == history.with_name("index.html")
    assert len(history.read_text().splitlines()) == 2
    lines, problems = read_history(history)
    assert ([one["profile"] for one in lines], problems) == (["checklist"], [])


def test_a_readiness_run_names_the_machines_of_its_runs(put, tmp_path, history):
    put()
    publish(decide({"out_dir": str(tmp_path)}))
    (kept,), _ = read_history(history)
    assert (kept["notebook"], kept["verdict"], kept["machine"]) == ("readiness", "INCOMPLETE", "a processor")
    assert (kept["peak_alloc_mib"], kept["tokens_per_s"]) == (None, None)


def test_after_a_torn_line_the_next_stands_on_its_own(history):
    append(history, line("a"))
    with history.open("a") as file:
        file.write('{"schema": 1, "run_')
    append(history, line("b"))
    lines, (problem,) = read_history(history)
    assert [one["run_id"] for one in lines] == ["a", "b"]
    assert problem.startswith("history.jsonl, line 2, was left out: ")


def test_two_writers_at_once_lose_nothing(history):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: append(history, line(f"run-{number}", headline="x" * 3000)), range(200)))
    lines, problems = read_history(history)
    assert problems == []
    assert {one["run_id"] for one in lines} == {f"run-{number}" for number in range(200)}


def test_two_pages_written_at_once_are_both_whole(history, tmp_path):
    def both(number):
        append(history, line(f"run-{number}"))
        write_index(tmp_path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(both, range(4)))
    html = (tmp_path / "index.html").read_text()
    assert html.rstrip().endswith("</html>")
    assert "4 runs, newest first" in html
    assert {path.name for path in tmp_path.iterdir()} == {"history.jsonl", "index.html"}


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_has_its_page_which_says_so(history, tmp_path, monkeypatch, capsys, code):
    def no_locks(*_):
        raise OSError(code, "No locks available")

    append(history, line("run-1"))
    monkeypatch.setattr(fcntl, "flock", no_locks)
    html = write_index(tmp_path).read_text()
    said = "history.jsonl cannot be locked (No locks available): of two runs that end at once one may be missing"
    assert capsys.readouterr().out == f"{folded(said)}\n"
    assert said in html
    assert "1 run, newest first" in html


def test_a_lock_that_cannot_be_had_for_another_reason_is_an_error(history, tmp_path, monkeypatch):
    def torn(*_):
        raise OSError(errno.EIO, "Input/output error")

    append(history, line("run-1"))
    monkeypatch.setattr(fcntl, "flock", torn)
    with pytest.raises(OSError, match="Input/output error"):
        write_index(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "Expecting value"),
        ("[1]", "it has no schema"),
        (json.dumps(line(schema="1")), "it has no schema"),
        (json.dumps(line(schema=2)), "its schema 2 is newer than this library reads (1)"),
        (json.dumps(line(verdict="FINE")), "its verdict is none of GO"),
        (json.dumps(line(headline=None, custom="no")), "headline, custom: missing or of another type"),
        (json.dumps(line(peak_alloc_mib="34")), "peak_alloc_mib: missing or of another type"),
        (json.dumps(line(created="yesterday")), "Invalid isoformat string"),
        (b'{"\xff"}', "'utf-8' codec can't decode"),
    ],
)
def test_a_line_that_cannot_be_read_is_reported_and_the_others_are_shown(history, tmp_path, text, said):
    append(history, line("a"))
    with history.open("ab") as file:
        file.write((text if isinstance(text, bytes) else text.encode()) + b"\n\n")
    append(history, line("b"))
    lines, (problem,) = read_history(history)
    assert [one["run_id"] for one in lines] == ["a", "b"]
    assert problem.startswith("history.jsonl, line 2, was left out: ")
    assert said in problem
    html = write_index(tmp_path).read_text()
    assert "What could not be read" in html
    assert any(row[0].startswith("history.jsonl, line 2") for row in shown(html) if row)


def test_no_history_is_no_problem(history, tmp_path):
    assert read_history(history) == ([], [])
    html = write_index(tmp_path).read_text()
    assert "0 runs" in html
    assert "What could not be read" not in html


# The page


def test_the_page_lists_the_newest_first_with_verdict_figures_and_links(tmp_path, history):
    (tmp_path / "a report.html").write_text("page")
    append(history, line("old", report=str(tmp_path / "a report.html"), created=day(1)))
    append(history, line("new", report="/else/where.html", created=day(2), verdict="NO-GO", peak_reserved_mib=1762.0))
    html = write_index(tmp_path, promised="/else/where.html").read_text()
    new, old = (row for row in shown(html) if row)
    assert new[0].endswith("NO-GO")
    assert old[0].endswith("GO")
    assert any("1,762 MiB" in cell for cell in new)
    assert any("2025-03-02 10:15" in cell for cell in new)
    assert 'href="a%20report.html"' in html
    assert 'href="file:///else/where.html"' in html
    assert "/else/where.html" not in write_index(tmp_path).read_text(), "a page that never came"
    made = tmp_path / "runs" / "new" / "report.html"
    made.parent.mkdir(parents=True)
    made.write_text("page")
    assert 'href="runs/new/report.html"' in write_index(tmp_path).read_text()


def test_a_run_without_a_line_is_shown_without_a_verdict_and_a_broken_one_is_reported(put, tmp_path):
    publish(open_run(put("smoke", "told")))
    (put("preflight", "untold", created=day(2)) / "summary.json").unlink()
    edit(put("smoke", "newer") / "run.json", schema=SCHEMA + 1)
    (tmp_path / "runs" / "just-made").mkdir()
    html = write_index(tmp_path).read_text()
    rows = [row for row in shown(html) if len(row) > 1]
    assert [row[0].split()[-1] for row in rows] == ["INCOMPLETE", "GO"]
    assert "no verdict recorded" in rows[0]
    problems = [row[0] for row in shown(html) if len(row) == 1]
    assert len(problems) == 2
    assert any(f"schema {SCHEMA + 1} is newer" in problem for problem in problems)
    assert any("just-made" in problem for problem in problems)


def test_a_run_whose_user_may_not_write_the_history_is_shown_as_it_was_judged(put, history, tmp_path, monkeypatch):
    publish(open_run(put("smoke", "first")))
    run = open_run(put("smoke", "second", make=untaught_smoke, created=day(2)))

    def of_another_user(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as refused:
        refused.setattr(os, "open", of_another_user)
        with pytest.raises(PermissionError, match=r"Permission denied: .*history\.jsonl"):
            publish(run)
    (second, first) = (row for row in shown(write_index(tmp_path).read_text()) if row)
    assert (second[0].split()[-1], first[0].split()[-1]) == ("NO-GO", "GO")
    assert run.summary["headline"] in second
    assert any("36" in cell for cell in second), "its figures too"
    (tmp_path / "runs" / "second" / "summary.json").write_text('{"schema')
    assert "summary.json: not JSON" in write_index(tmp_path).read_text()


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_who_may_write_the_history_is_the_umasks_say(history, umask):
    before = os.umask(umask)
    try:
        append(history, line("a"))
    finally:
        os.umask(before)
    assert history.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_folder_whose_run_is_torn_stops_no_page(put, tmp_path):
    (put() / "run.json").write_text('{"schema": 1, "run_')
    assert "not JSON" in write_index(tmp_path).read_text()


def test_custom_runs_are_listed_but_no_part_of_the_trend(tmp_path):
    lines = [line("a"), line("b", created=day(2)), line("c", custom=["dim=64"], profile="mine", created=day(3))]
    html = index_page(tmp_path, lines, [])
    assert [len(row) > 1 for row in shown(html) if row] == [True] * 3
    assert "mine (custom)" in html
    names = drawn(html)
    assert set(names) == {"Peak allocated memory", "Peak reserved memory", "Tokens per second"}
    assert all(name == ["smoke, laptop, a processor"] for name in names.values())
    alone = index_page(tmp_path, lines[2:], [])
    assert "application/json" not in alone, "nothing is drawn"
    assert len(re.findall(r'<figure class="nsa-nothing"', alone)) == len(names)


def test_the_trend_has_a_line_for_each_notebook_profile_and_machine(tmp_path):
    lines = [line("a"), line("b", machine="another"), line("c", notebook="preflight", tokens_per_s=None)]
    names = drawn(index_page(tmp_path, lines, []))
    assert len(names["Peak reserved memory"]) == 3
    assert len(names["Tokens per second"]) == 2


def test_hostile_text_stays_text(tmp_path, history):
    texts = dict.fromkeys(("run_id", "notebook", "profile", "headline", "machine", "report", "torch"), HOSTILE)
    append(history, line(**texts))
    append(history, line("b", report="javascript:alert(1)", created=day(2)))
    append(history, line("c", report='/a"><script>alert(3)</script>.html', created=day(3)))
    with history.open("a") as file:
        file.write(json.dumps(line(verdict=HOSTILE)) + "\n" + HOSTILE + "\n")
    html = write_index(tmp_path).read_text()
    assert "<script>alert" not in html
    assert "<img src=http" not in html
    assert "javascript:" not in html
    reader = Links()
    reader.feed(re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL))
    assert reader.links
    assert all(link.startswith(("#", "file:///")) for link in reader.links)


@pytest.mark.parametrize("changes", [{"headline": "\ud800"}, {"peak_alloc_mib": 10**400}, {"tokens_per_s": 1e999}])
def test_what_no_page_can_hold_stops_none(tmp_path, history, changes):
    append(history, line("odd", **changes))
    append(history, line("b", created=day(2)))
    assert "all is well" in write_index(tmp_path).read_text()


def test_a_no_go_is_a_line_too(put, history):
    publish(open_run(put("smoke", make=untaught_smoke)))
    (kept,), _ = read_history(history)
    assert kept["verdict"] == "NO-GO"
