"""Rates of false alarms: written by the count, shown beside the gates that were counted, and nothing beside others."""

import json

import pytest

from nsa_lib.contract.source import package_sha256
from nsa_lib.judgement import false_alarms
from nsa_lib.judgement.false_alarms import Count, Rate, counted, gate_kind, write_count
from nsa_lib.report.tables import gates_table
from tests import bench_false_alarms
from tests.samples import GATES

RATES = {"finite": Rate(0, 200), "memory": Rate(1, 199)}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The file, in a folder of its own."""
    monkeypatch.setattr(false_alarms, "COUNTED", tmp_path / "false_alarms.json")
    counted.cache_clear()
    yield tmp_path / "false_alarms.json"
    counted.cache_clear()


def gates(*names):
    return [{**GATES[0], "name": name} for name in names]


def test_without_a_count_nothing_is_said(kept):
    table = gates_table(gates("finite"))
    assert (counted().rates, table.caption) == ({}, "Gates")
    assert "false alarms" not in table.header


def test_a_rate_stands_beside_its_gates_of_every_backend_and_length(kept):
    write_count(Count(RATES, package_sha256(), "2026-11-28", "EPYC"))
    table = gates_table(gates("finite", "memory_masked", "memory_2048", "never counted"))
    assert table.header[-1] == "false alarms"
    assert [row[-1].text for row in table.rows] == ["0 of 200", "1 of 199", "1 of 199", ""]
    said = f"Gates. False alarms are of honest laptop runs, 2026-11-28, EPYC, source {package_sha256()[:12]}."
    assert table.caption == said


def test_a_count_of_another_source_says_so(kept):
    write_count(Count(RATES, 64 * "0", "2026-11-28", "EPYC"))
    assert "source 000000000000: not the source that runs now" in gates_table(gates("finite")).caption


def test_a_table_of_gates_that_were_not_counted_says_nothing(kept):
    write_count(Count(RATES, package_sha256(), "2026-11-28", "EPYC"))
    assert gates_table(gates("another")).header[-1] == "detail"


def test_the_kind_of_a_gate_is_its_name_without_what_it_judges():
    names = ("error_packed", "backward_64", "peak_reserved")
    assert [gate_kind(name) for name in names] == ["error", "backward", "peak_reserved"]


def test_lines_of_a_count_made_elsewhere_fill_the_file(kept, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_false_alarms, "TABLE", tmp_path / "false_alarms.md")
    judged = [{"name": "finite", "outcome": "PASS", "detail": ""}]
    false, unrun = ([*judged, {"name": "memory_64", "outcome": word, "detail": word}] for word in ("FAIL", "NOT_RUN"))
    told = {"date": "2026-11-28", "machine": "EPYC", "notebook": "smoke", "number": 7}
    runs = [("old", false), ("new", judged), ("new", false), ("new", unrun)]
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({**told, "source": source, "gates": gates}) + "\n" for source, gates in runs))
    assert bench_false_alarms.main(["--lines", str(lines)]) == 1
    counted.cache_clear()
    assert (counted().source_sha256, counted().rates) == ("new", {"finite": Rate(0, 3), "memory": Rate(2, 2)})
    assert "above 1 in 200: memory" in capsys.readouterr().out
    table = (tmp_path / "false_alarms.md").read_text()
    assert all(said in table for said in ("| memory | 2 | 2 |", "3 of smoke", "smoke 7: memory_64 FAIL: FAIL"))


def test_of_all_runs_two_in_five_are_smokes_and_none_comes_twice():
    runs = list(bench_false_alarms.in_turn(200))
    assert len(set(runs)) == 200
    made = {notebook: sum(own == notebook for own, _ in runs) for notebook in bench_false_alarms.OF_NOTEBOOK}
    assert made == {"smoke": 80, "backend_contrast": 40, "backward_scaling": 40, "preflight": 40}


def test_when_the_time_is_over_no_run_is_begun():
    assert bench_false_alarms.attempt("smoke", 0, until=0) is None
