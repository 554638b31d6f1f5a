"""The panel of a run: what stands in the corner of JupyterLab, and the page in the run folder."""

import json
import re

from nsa_lib.runs.panel import PAGE, in_corner, write_page


def said(script):
    """Return what a script puts into the corner, and for how long, as a browser reads them."""
    text, seconds = re.fullmatch(r"<script>.*\}\)\((\".*\"), ([\d.]+)\);</script>", script, re.DOTALL).groups()
    return json.loads(text), float(seconds)


def test_what_stands_in_the_corner_is_the_panel_and_cannot_end_the_script():
    hostile = '</script><script>alert(1)</script><!-- "quoted" \\ </div>'
    script = in_corner(hostile, seconds=7)
    assert said(script) == (hostile, 7)
    assert script.count("</script>") == script.count("<script>") == 1
    assert "<!--" not in script


def test_the_page_loads_itself_again_until_the_run_has_ended(tmp_path):
    write_page(tmp_path, "<div>step 3</div>")
    going_on = (tmp_path / PAGE).read_text()
    write_page(tmp_path, "<div>GO</div>", ended=True)
    ended = (tmp_path / PAGE).read_text()
    assert ('http-equiv="refresh"' in going_on, 'http-equiv="refresh"' in ended) == (True, False)
    assert "<div>step 3</div>" in going_on
    assert "<div>GO</div>" in ended


def test_a_page_that_cannot_be_written_stops_nothing(tmp_path):
    write_page(tmp_path / "gone", "<div>step 3</div>")
    assert not (tmp_path / "gone").exists()
