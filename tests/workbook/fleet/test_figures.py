"""The charts and tables of a fleet show every member, name the faulty ones, and stay small for thousands."""

from dataclasses import replace

import pytest

from nsa_lib.report.page import Section, page
from nsa_lib.workbook.fleet import figures
from tests.workbook.fleet.made import fleet, saved

PAGE_BYTES = 10e6

BROKEN = {"m3": {"fingerprint": "b" * 64}, "m7": {"step_ms": 150.0}, "m9": None}


@pytest.fixture
def run(tmp_path):
    return saved(fleet(12, **BROKEN), tmp_path)


def test_a_row_of_the_map_is_a_member_and_the_worst_is_on_top(run):
    chart = figures.gate_map(run)
    assert len(chart.data[0].z) == 11
    assert chart.layout.yaxis.ticktext[:2] == ("node0 00000003 (member 3)", "node0 00000007 (member 7)")


def test_who_is_to_be_taken_out_is_marked_by_name_beside_the_healthy(run):
    healthy, marked, *_ = figures.pace_and_memory(run).data
    assert len(healthy.x) + len(marked.x) == 11
    assert set(marked.customdata) == {"node0 00000003 (member 3)", "node0 00000007 (member 7)"}


def test_a_row_of_the_table_leads_to_the_members_own_report(tmp_path):
    made = fleet(3, m1={"report": str(tmp_path / "fleets" / "x" / "members" / "1.html")})
    table = figures.members_table(saved(made, tmp_path))
    assert [row[1].link for row in table.rows] == ["", "fleets/x/members/1.html", ""]


def test_the_quarantine_lists_the_missing_too(run):
    assert [row[1].text for row in figures.quarantine_table(run).rows][1] == "member 9"


def test_a_quarantine_of_nobody_says_so_and_is_no_table(tmp_path):
    table = figures.quarantine_table(saved(fleet(6), tmp_path))
    assert (table.caption, list(table.rows)) == ("Quarantine: nobody", [])


def test_without_members_there_is_nothing_to_draw(tmp_path):
    run = saved(fleet(0), tmp_path)
    assert "no member" in figures.gate_map(run).layout.title.subtitle.text
    assert "no member" in figures.pace_and_memory(run).layout.title.subtitle.text


def test_a_page_of_five_thousand_members_is_small(tmp_path):
    made = fleet(5000, m3={"fingerprint": "b" * 64}, m1007={"step_ms": 150.0})
    gates = {f"gate_{number}": "PASS" for number in range(27)}
    members = [replace(one, gates=gates, report=f"/shared/members/{one.rank:05}.html") for one in made.members]
    run = saved(replace(made, members=members), tmp_path)
    charts = [figures.gate_map(run), figures.pace_and_memory(run)]
    html = page("fleet", [Section("Members", tables=[figures.members_table(run)], charts=charts)])
    assert len(html.encode()) < PAGE_BYTES
