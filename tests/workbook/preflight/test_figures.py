"""The charts and tables of a preflight."""

from dataclasses import replace

import pytest

from nsa_lib.contract.agenda import check_names
from nsa_lib.judgement.gate import PASS, GateResult
from nsa_lib.subject.config import BACKEND_NAMES
from nsa_lib.workbook.preflight.cases import FULL
from nsa_lib.workbook.preflight.figures import checks_table, preflight_figures
from nsa_lib.workbook.preflight.gates import preflight_gates
from tests.made import add_backend
from tests.workbook.preflight.made import WITH_FUSED, preflight


@pytest.mark.parametrize("facts", [{}, WITH_FUSED])
def test_every_gate_is_in_one_table(facts):
    gates = [vars(gate) for gate in preflight_gates(preflight(facts=facts))]
    tables = [checks_table(gates, part) for part in ("machine", *check_names(), FULL)]
    named = [row[1].text for table in tables for row in (*table.rows, *table.folded)]
    assert sorted(named) == sorted(gate["name"] for gate in gates)


def test_charts_draw_what_is_there_and_say_what_is_not():
    drawn = preflight_figures(preflight())
    assert {name: len(figure.data) for name, figure in drawn.items()} == {"selection": 1, "gates": 3, "mass": 3}
    run = preflight()
    bare = preflight_figures(replace(run, cases=run.cases[:0]))
    assert all(len(figure.data) == 0 for figure in bare.values())


def test_a_fifth_backends_checks_stand_in_the_table_of_their_group(monkeypatch):
    add_backend(monkeypatch, "fifth")
    names = check_names((*BACKEND_NAMES, "fifth"))
    for group, own in names.items():
        gates = [vars(GateResult(name, True, PASS)) for name in own]
        assert {row[1].text for row in checks_table(gates, group).folded} == set(own)
