"""What the selection of each layer is worth, as chart and table."""

from nsa_lib.judgement.selection import SHARES
from nsa_lib.report.charts import selection_chart, selection_table
from nsa_lib.report.charts.selection_health import WORDS
from tests.judgement.test_selection import SHUT, found, run
from tests.workbook.smoke.made import healthy


def test_the_chart_has_a_line_for_each_share_and_the_first_step_dotted():
    figure = selection_chart(run([found(overlap=0.2), found()], [found(), found(near_ties=None)]))
    assert [(line.name, line.line.dash, line.showlegend) for line in figure.data] == [
        (word, dash, dash == "solid") for word in map(WORDS.get, SHARES) for dash in ("dot", "solid")
    ]
    overlap = [line for line in figure.data if line.name == WORDS["overlap"]]
    assert [list(line.y) for line in overlap] == [[0.2, 0.8], [0.8, 0.8]]
    assert list(overlap[0].x) == [1, 2]
    assert figure.layout.xaxis.title.text == "layer"
    assert "step 100; dotted: step 1" in figure.layout.title.subtitle.text


def test_one_step_is_drawn_solid():
    assert {line.line.dash for line in selection_chart(run([], [found()])).data} == {"solid"}


def test_what_is_not_known_is_said():
    nothing = selection_chart(healthy("laptop"))
    assert not nothing.data
    assert "has no select(x)" in nothing.layout.title.subtitle.text
    assert "has no select(x)" in selection_table(healthy("laptop"))._repr_html_()
    nobody = found(choosing=0, overlap=None, forced=None, in_window=None, never_picked=None, near_ties=None)
    assert "no query has more blocks" in selection_chart(run([], [nobody])).layout.title.subtitle.text


def test_the_table_has_a_row_for_each_layer_and_step_in_percent():
    table = selection_table(run([found(), found()], [found(overlap=0.305), found(in_window=1, shut=SHUT)]))
    texts = [[cell.text for cell in row] for row in table.rows]
    assert [row[:3] for row in texts] == [
        ["1", "1", "80.0"],
        ["1", "100", "30.5"],
        ["2", "1", "80.0"],
        ["2", "100", "80.0"],
    ]
    assert texts[0][3:] == ["75.0", "10.0", "2.0", "0.0", "0.5", "none", "✔ something"]
    assert texts[3][-2:] == ["selected 4 of 4 at 0", "▲ nothing: its gate is shut in every head"]
    assert [row[-1].colour for row in table.rows] == ["", "", "", "warn"]


def test_an_attention_that_shows_no_gates_has_a_dash():
    (row,) = selection_table(run([], [found(gates={}, shut={}, wide_open={}, heads=None)])).rows
    assert [cell.text for cell in row[-3:]] == ["–", "–", "✔ something"]


def test_tiles_over_a_union_have_a_column_where_kernels_decide():
    assert "tiles whose dq goes over a union, %" not in selection_table(run([], [found()])).header
    table = selection_table(run([], [found(by_union=0.25)]))
    (row,) = table.rows
    assert row[table.header.index("tiles whose dq goes over a union, %")].text == "25.0"
