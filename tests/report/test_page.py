"""Pages over several runs: self-contained, every text escaped, charts drawn from data; the page that compares two."""

import json
import re
from dataclasses import replace
from html import escape

import pandas as pd
import pytest

from nsa_lib.report.charts import overlay
from nsa_lib.report.charts.overlay import over_runs
from nsa_lib.report.page import Section, figure_html, page
from nsa_lib.report.table import Cell, Table
from nsa_lib.workbook.comparison import comparison_page, figures_table
from nsa_lib.workbook.run import open_run
from tests.made_runs import Templates, day, edit, preflight, smoke, untaught_smoke

HOSTILE = "'\"></script><script>alert(1)</script><img src=http://example.invalid/x onerror=alert(2)>"

EXTERNAL = re.compile(r"""(?:src|href|srcset|action|poster)\s*=\s*["']?\s*(?:https?:)?//|@import|url\(\s*["']?http""")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A GO smoke, the same with a loss that stays, and a preflight."""
    out_dir = tmp_path_factory.mktemp("runs")
    templates = Templates(out_dir / "templates")
    put = {"a": ("smoke", None), "b": ("smoke", untaught_smoke), "p": ("preflight", None)}
    return {name: open_run(templates.put(out_dir, kind, name, make=make)) for name, (kind, make) in put.items()}


def figures(html):
    found = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    return [json.loads(text) for text in found]


def without_plotly(html):
    return re.sub(r'<script type="text/plain" id="nsa-plotly">.*?</script>', "", html, flags=re.DOTALL)


# A page


def test_a_page_shows_its_sections_in_order_and_loads_nothing(runs):
    chart = overlay(runs["a"], runs["b"], "peak_alloc_mib", "Peak", "MiB")
    table = Table("A table", ("name",), [(Cell("value"),)])
    html = page("All of it", [Section("One", ["Some words."], [table]), Section("Two", charts=[chart])])
    assert html.startswith("<!DOCTYPE html>")
    places = [html.index(text) for text in ("<h1>All of it", ">One</h2>", "Some words.", "A table", ">Two</h2>")]
    assert places == sorted(places)
    assert EXTERNAL.search(html) is None
    assert "default-src 'none'" in html
    (figure,) = figures(html)
    assert len(figure["data"]) == 2


def test_plotly_is_there_once_with_charts_and_not_without(runs):
    chart = overlay(runs["a"], runs["b"], "loss", "Loss", "nats")
    assert page("x", [Section("s", charts=[chart, chart])]).count('id="nsa-plotly">') == 1
    without = page("x", [Section("s", ["words"])])
    assert 'id="nsa-plotly">' not in without
    assert len(without) < 100_000


def test_only_a_script_with_the_nonce_may_run():
    html = page("x", [Section("s", ["words"])])
    (nonce,) = re.findall(r'<script nonce="([0-9a-f]{64})">', html)
    assert f"'nonce-{nonce}'" in html
    assert f'nonce="{nonce}"' not in page("y", [Section("s", ["words"])])


def test_no_text_becomes_markup():
    table = Table(HOSTILE, (HOSTILE,), [(Cell(HOSTILE, link=f"#{HOSTILE}", folded=HOSTILE),)])
    chart = over_runs([{"created": day(1), "run_id": HOSTILE, "notebook": HOSTILE, "profile": HOSTILE,
                        "machine": HOSTILE, "mib": 1.0}], "mib", HOSTILE, HOSTILE)  # fmt: skip
    html = page(HOSTILE, [Section(HOSTILE, [HOSTILE], [table], [chart])])
    assert "<script>alert" not in html
    assert "<img src=http" not in html
    (figure,) = figures(html)
    assert figure["layout"]["yaxis"]["title"]["text"] == HOSTILE  # as data, and Plotly draws only a few tags of its own
    assert f"<strong>{escape(HOSTILE)}</strong>" in html


def test_a_chart_describes_itself_and_one_without_words_has_a_number():
    assert 'aria-label="Chart 3"' in figure_html({"data": [], "layout": {}}, "", 3)
    assert 'aria-label="a &lt;b&gt;"' in figure_html({"layout": {"meta": {"description": "a <b>"}}}, "", 1)
    assert 'aria-label="Chart 1"' in figure_html({"layout": {"meta": "words"}}, "", 1)


def test_a_chart_stands_as_an_image_until_it_is_drawn_and_says_what_it_needs_without_one():
    html = figure_html({"layout": {"meta": {"description": "a <b>"}}}, "<svg/>", 1)
    assert '<img class="nsa-twin" src="data:image/svg+xml;base64,PHN2Zy8+" alt="a &lt;b&gt;">' in html
    assert "needs JavaScript" not in html
    assert "needs JavaScript" in figure_html({"layout": {}}, "", 1)


def test_title_and_facts_are_text_above_the_chart_and_the_chart_is_as_much_lower():
    layout = json.loads(over_runs([], "mib", "a < b", "MiB").to_json())["layout"]
    bare = figure_html({"layout": layout}, "", 1)
    assert bare.startswith('<figure class="nsa-nothing" id="chart-1"><figcaption>'), "words alone"
    html = figure_html({"data": [{"y": [1]}], "layout": layout}, "", 1)
    assert "<figcaption><strong>a &lt; b</strong>no run with this figure yet</figcaption>" in html
    (drawn,) = figures(html)
    assert "title" not in drawn["layout"]
    assert layout["height"] - drawn["layout"]["height"] == layout["margin"]["t"] - drawn["layout"]["margin"]["t"] > 0
    foreign = {"title": {"text": "its own"}, "height": 300}
    (drawn,) = figures(figure_html({"layout": foreign}, "", 1))
    assert drawn["layout"] == foreign


def test_the_same_page_is_the_same_bytes(runs):
    assert comparison_page(runs["a"], runs["b"]) == comparison_page(runs["a"], runs["b"])


# The comparison


def test_the_comparison_shows_verdicts_figures_charts_and_what_differs(runs):
    html = comparison_page(runs["a"], runs["b"])
    assert EXTERNAL.search(html) is None
    said = without_plotly(html)
    assert "<h1>a against b</h1>" in said
    assert [heading in said for heading in (">Runs</h2>", ">Figures</h2>", ">What differs</h2>")] == [True] * 3
    assert "✘ NO-GO" in said
    assert "loss_falls" in said
    titles = re.findall(r"<figcaption><strong>(.*?)</strong>", html)
    assert titles == ["Peak allocated memory", "Peak reserved memory", "Step time"]
    assert all(len(figure["data"]) == 2 for figure in figures(html))


def test_a_run_against_itself_differs_in_nothing(runs):
    assert "nothing differs" in comparison_page(runs["a"], runs["a"])


@pytest.mark.parametrize("pair", ["ap", "pa", "pp"])
def test_runs_of_two_notebooks_or_without_a_step_are_compared_too(runs, pair):
    html = comparison_page(*(runs[name] for name in pair))
    assert len(figures(html)) + html.count('<figure class="nsa-nothing"') == 3
    assert "–" in without_plotly(html)


def test_what_stands_in_a_run_stays_text(tmp_path, runs):
    folder = Templates(tmp_path / "templates").put(tmp_path, "smoke")
    info = json.loads((folder / "run.json").read_text())
    environment = {**info["environment"], "cpu": HOSTILE, HOSTILE: HOSTILE}
    edit(folder / "run.json", run_id=HOSTILE, profile="laptop", custom=[HOSTILE], environment=environment)
    html = comparison_page(runs["a"], open_run(folder))
    assert "<script>alert" not in html
    assert "<img src=http" not in html


def test_figures_are_told_with_how_much_they_changed(runs):
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in figures_table(runs["a"], runs["b"]).rows}
    assert rows["peak allocated"] == ["34 MiB", "34 MiB", "+0.0 %"]
    loss = runs["a"].of("training")["loss"].iloc[-1]
    assert rows["loss of the last step"][2] == f"{100 * (6.0 / loss - 1):+.1f} %"
    assert set(map(tuple, [row[1:] for row in rows.values()])) == {("34 MiB", "+0.0 %"), *[
        tuple(row[1:]) for name, row in rows.items() if name != "peak allocated"]}  # fmt: skip
    bare = replace(runs["p"], steps=runs["p"].steps[:0])
    gone = {row[0].text: [cell.text for cell in row[1:]] for row in figures_table(runs["a"], bare).rows}
    assert gone["peak allocated"][1:] == ["–", "–"]


# Charts over several runs


def names(figure):
    return [trace.name for trace in figure.data]


def test_two_runs_are_laid_over_each_other_case_by_case(runs):
    figure = overlay(runs["a"], runs["b"], "loss", "Loss", "nats")
    assert names(figure) == ["A: a", "B: b"]
    assert [trace.line.dash for trace in figure.data] == ["solid", "dash"]
    assert [len(trace.y) for trace in figure.data] == [100, 100]
    assert (list(figure.data[1].y) == [6.0] * 100, figure.layout.yaxis.title.text) == (True, "nats")
    assert figure.layout.meta["description"] == "Loss: case training"


def test_of_two_runs_cut_short_what_is_there_is_drawn():
    run = smoke()
    short = replace(run, steps=run.steps[run.steps["step"] <= 3])
    holes = run.steps.assign(loss=run.steps["loss"].where(run.steps["step"] % 2 == 0))
    figure = overlay(short, replace(run, steps=holes), "loss", "Loss", "nats")
    assert [len(trace.y) for trace in figure.data] == [3, 100]
    assert pd.Series(figure.data[1].y).count() == 50
    one = replace(run, steps=run.steps[(run.steps["case_id"] == "anomaly") & (run.steps["step"] == 1)])
    assert [trace.mode for trace in overlay(one, one, "loss", "Loss", "nats").data] == ["markers", "markers"]


def test_runs_without_a_case_in_common_show_each_its_own():
    run = smoke()
    anomaly, training = (
        replace(run, steps=run.steps[run.steps["case_id"] == name]) for name in ("anomaly", "training")
    )
    figure = overlay(anomaly, training, "loss", "Loss", "nats")
    assert [len(trace.y) for trace in figure.data] == [10, 100]
    assert "A: case anomaly, B: case training" in figure.layout.title.subtitle.text


def test_without_a_figure_the_overlay_says_so_and_with_one_run_it_draws_that():
    run, nothing = smoke(), replace(preflight(), steps=smoke().steps[:0])
    assert not overlay(nothing, nothing, "loss", "Loss", "nats").data
    empty = replace(run, steps=run.steps.assign(loss=float("nan")))
    assert overlay(empty, empty, "loss", "Loss", "nats").layout.title.subtitle.text == "no steps recorded"
    figure = overlay(run, nothing, "loss", "Loss", "nats")
    assert [pd.Series(trace.y, dtype=float).count() for trace in figure.data] == [100, 0]


def made(run_id, number, mib, **changes):
    return {"created": day(number), "run_id": run_id, "notebook": "smoke", "profile": "laptop", "machine": "box",
            "mib": mib, **changes}  # fmt: skip


def test_a_figure_is_drawn_over_the_time_of_the_runs():
    runs = [made("b", 2, 36.0), made("a", 1, 34.0), made("c", 3, None), made("d", 1, 9.0, machine=None)]
    figure = over_runs(runs, "mib", "Memory", "MiB")
    assert names(figure) == ["smoke, laptop, box", "smoke, laptop"]
    assert (list(figure.data[0].x), list(figure.data[0].y)) == ([day(1), day(2)], [34.0, 36.0])
    assert list(figure.data[0].text) == ["a", "b"]
    assert figure.layout.title.subtitle.text == "3 runs"
    assert over_runs(runs[:1], "mib", "Memory", "MiB").layout.title.subtitle.text == "1 run"


@pytest.mark.parametrize("runs", [[], [made("a", 1, None)], [made("a", 1, float("nan"))]])
def test_no_run_with_a_figure_is_said(runs):
    figure = over_runs(runs, "mib", "Memory", "MiB")
    assert (figure.data, figure.layout.title.subtitle.text) == ((), "no run with this figure yet")


def test_many_lines_are_told_apart_by_colour_and_sign():
    figure = over_runs([made("a", 1, 1.0, machine=f"box {number:02}") for number in range(20)], "mib", "M", "MiB")
    assert len({(trace.line.color, trace.marker.symbol) for trace in figure.data}) == 20
