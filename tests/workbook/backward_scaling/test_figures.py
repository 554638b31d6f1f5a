"""The charts of a backward scaling."""

from nsa_lib.contract.allocator import ALLOCATOR_SETTINGS
from nsa_lib.workbook.backward_scaling import measures
from nsa_lib.workbook.backward_scaling.figures import allocator_table, peak_against_layers, scaling_figures
from tests.workbook.backward_scaling.made import healthy, without


def test_a_run_cut_short_draws_what_is_there():
    run = without(healthy(), "s2048", "train_5", "smoke_both", "smoke_default")
    figures = scaling_figures(run)
    assert list(figures["time"].data[0].x) == [128, 512, 1024]
    assert len(figures["allocator"].data[0].y) == 5
    assert [t.name for t in figures["layers"].data] == ["highest phase, extrapolated", "train steps"]


def test_the_charts_say_units_and_exponents():
    figures = scaling_figures(healthy(exponent=1.0))
    assert figures["memory"].layout.yaxis.title.text == "MiB"
    assert figures["time"].layout.yaxis.title.text == "ms"
    assert figures["memory"].layout.xaxis.title.text == "sequence length S in tokens"
    assert "exponent 1.00 (1.00 to 1.00, 95 %)" in figures["memory"].layout.title.subtitle.text
    beside = peak_against_layers(measures.layer_rows(healthy()), 12, 1600.0)
    assert "predicted for 12 layers: 1,520 MiB; measured 1,600 MiB, -5.0 % off" in beside.layout.title.subtitle.text
    assert beside.data[-1].name == "the smoke"


def test_a_fifth_allocator_setting_stands_in_chart_and_table(monkeypatch):
    monkeypatch.setitem(ALLOCATOR_SETTINGS, "fifth", "expandable_segments:False")
    run = healthy()
    assert {"backward_fifth", "smoke_fifth"} <= set(run.cases["case_id"])
    assert {"backward, fifth", "smoke, fifth"} <= set(scaling_figures(run)["allocator"].data[0].y)
    rows = allocator_table(measures.allocator_rows(run)).rows
    assert [row[0].text for row in rows if row[1].text == "fifth"] == ["backward", "smoke"]
