"""The tables of a report."""

import re
from types import SimpleNamespace

import pytest

from nsa_lib.report.facts import environment_table, machine_table
from nsa_lib.report.tables import (
    advice_table,
    cases_table,
    format_value,
    gate_row,
    gates_table,
    parameters_table,
)
from tests.samples import (
    CASES,
    ENVIRONMENT,
    GATES,
    PARAMETERS,
    PAYLOAD,
)


def test_gates_are_sorted_by_what_decides():
    wanted = [("FAIL", True), ("NOT_RUN", True), ("WARN", True), ("PASS", True), ("FAIL", False), ("PASS", False)]
    gates = [{**GATES[0], "outcome": o, "required": r, "name": f"{o} {r}"} for o, r in reversed(wanted)]
    assert [row[1].text for row in gates_table(gates).rows] == [f"{o} {r}" for o, r in wanted]


def test_a_gate_row_shows_word_units_separators_and_signed_margin():
    passed, failed = GATES[1], {**GATES[1], "outcome": "FAIL", "measured": 76_210.0, "margin": -6_210.0}
    text = repr(gates_table([{**gate, "name": "peak", "detail": ""} for gate in (passed, failed)]))
    assert re.search(r"✘ FAIL +peak +76,210 MiB +70,000 MiB +-8\.9 %", text)
    assert re.search(r"✔ PASS +peak +1,762 MiB +70,000 MiB +\+97\.5 %", text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (float("nan"), "–"), (float("inf"), "inf"), (True, "True"), (0, "0"), (3e-4, "0.0003"),
        (2048, "2,048"), (1762.4, "1,762"), (-6210.5, "-6,210"), (0.12345, "0.1235"), ("bfloat16", "bfloat16"),
        ([1, 2], "[1, 2]"),
    ],
)  # fmt: skip
def test_values_are_written_for_reading(value, text):
    assert format_value(value) == text


def test_tables_show_origins_differences_and_nested_facts():
    assert re.search(r"lr +0\.0003 +given +0\.0001 +▲ differs", repr(parameters_table(PARAMETERS)))
    assert re.search(r"gpu\.name +NVIDIA H200", repr(environment_table(ENVIRONMENT)))
    failed = CASES.assign(status=["ok", "oom", "ok"], reason=["", "out of memory at step 3", ""])
    assert re.search(r"anomaly +✘ oom +10 +9\.8 s +out of memory at step 3", repr(cases_table(failed)))


def test_advice_is_listed_and_its_absence_said():
    assert repr(advice_table(["restart before step 900"])).endswith("\nrestart before step 900")
    assert repr(advice_table([])) == "Advice, which decides nothing: none"
    assert advice_table([])._repr_html_() == '<p class="nsa-note">Advice, which decides nothing: none</p>'
    assert "<script" not in advice_table([PAYLOAD])._repr_html_()


def test_of_a_table_without_rows_its_caption_stays():
    for table in (gates_table([]), parameters_table([]), cases_table(CASES[:0])):
        assert table._repr_html_() == f'<p class="nsa-note">{table.caption}</p>'


def test_parameters_that_were_given_or_differ_are_shown_and_the_others_folded():
    table = parameters_table(PARAMETERS)
    assert [row[0].text for row in table.rows] == ["lr"]
    shown, folded = table._repr_html_().split("<details>")
    assert "lr" in shown
    assert "Effective parameters: 4 more" in folded
    assert "dim" in folded
    assert "as decided for you" in parameters_table(PARAMETERS[:4])._repr_html_()


def test_a_table_as_text_fits_80_columns_and_loses_no_word():
    long = "expandable_segments:True,max_split_size_mb:256"
    rows = [{**PARAMETERS[0], "name": "alloc_conf", "value": long, "checklist": long}, *PARAMETERS]
    text = repr(parameters_table(rows))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("expandable_segm") == 2
    assert "words " * 3 in repr(advice_table(["words " * 40])).replace("\n", " ")


def test_a_short_text_stays_on_its_line_where_a_long_setting_makes_the_table_narrow():
    setting = "expandable_segments:True,max_split_size_mb:256"
    rows = [{**PARAMETERS[0], "name": "reserved_limit_mib", "value": setting, "checklist": setting, "differs": True}]
    lines = repr(parameters_table(rows)).splitlines()
    assert sum("▲ differs" in line for line in lines) == 1
    assert max(map(len, lines)) <= 80


def test_rows_can_be_led_to():
    assert '<tr id="gate-loss falls" tabindex="-1">' in gates_table(GATES)._repr_html_()
    assert "id=" not in cases_table(CASES)._repr_html_()


def test_the_machine_of_a_run_is_told_with_its_folder_and_the_command_that_repeats_it(tmp_path):
    run = SimpleNamespace(
        info={"environment": ENVIRONMENT, "run_id": "smoke-1", "reproduce": "papermill -p steps 3"}, folder=tmp_path
    )
    said = machine_table(run)._repr_html_()
    for fact in ("NVIDIA H200", "smoke-1", str(tmp_path), "papermill -p steps 3"):
        assert fact in said


def test_a_margin_of_many_times_a_tiny_limit_is_said_without_its_digits():
    gate = {**GATES[0], "measured": 0.122, "limit": 8.71e-12, "margin": -0.122}
    assert gate_row(gate)[4].text == "beyond -9,999 %"
    assert gate_row({**gate, "limit": 1.0})[4].text == "-12.2 %"
