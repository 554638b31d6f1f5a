"""Every kind of page in a real browser, without a network: for whoever cannot see it, and on a phone.

axe-core is the judge. It comes with axe-playwright-python, whose wheel carries it; Playwright drives the Chromium that
is installed and gives it a screen of any width, where a window of its own has 500 pixels at least.
"""

import re
import shutil

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from nbclient import NotebookClient
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import sync_playwright

from nsa_lib.report import NsaHTMLExporter
from nsa_lib.runs.environment import notebook_path
from nsa_lib.workbook.comparison import comparison_page
from nsa_lib.workbook.decide import decide
from nsa_lib.workbook.history import write_index
from nsa_lib.workbook.questions import counted
from nsa_lib.workbook.replay import write_report
from nsa_lib.workbook.run import open_run, record
from tests.made import save
from tests.made_runs import Templates, day, untaught_smoke
from tests.workbook.fleet import made as fleets
from tests.workbook.several_gpus import made as several

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

PHONE_PX, SCREEN_PX = 390, 1300
"""Widths of a phone and of a screen."""

PAPER_PX = 703
"""Width of a sheet of A4 within the margins of report.css; one of US Letter is wider."""

SHEETS = {"readiness": 5, "index": 2, "comparison": 3}
"""Sheets that a kind of page may take, where fewer than others: what matters and what was not right."""

KINDS = (*counted(), "smoke NO-GO", "several_gpus", "fleet", "readiness", "explore", "index", "comparison")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The path of a page of each kind, by its name."""
    out_dir = tmp_path_factory.mktemp("out_dir")
    templates = Templates(tmp_path_factory.mktemp("templates"))
    runs = {name: templates.put(out_dir, name) for name in counted()}
    runs["readiness"] = decide({"out_dir": str(out_dir)}).folder
    runs["smoke NO-GO"] = templates.put(out_dir, "smoke", "smoke-2", make=untaught_smoke, created=day(2))
    runs["several_gpus"] = out_dir / "runs" / "several_gpus-1"
    record(save(several.healthy(), runs["several_gpus"]))
    runs["fleet"] = fleets.saved(fleets.fleet(12, m3={"fingerprint": "b" * 64}, m9=None), out_dir / "fleet").folder
    found = {name: write_report(folder) for name, folder in runs.items()}
    found["explore"] = out_dir / "explore.html"
    found["explore"].write_text(explored(runs["smoke"], runs["smoke NO-GO"]))
    found["index"] = write_index(out_dir)
    found["comparison"] = out_dir / "comparison.html"
    found["comparison"].write_text(comparison_page(open_run(runs["smoke"]), open_run(runs["smoke NO-GO"])))
    return found


def explored(run, other):
    """Return the page of an exploration of two runs."""
    notebook = parameterize_notebook(
        load_notebook_node(str(notebook_path("explore"))), {"run": str(run), "other": str(other)}
    )
    (again,) = [place for place, cell in enumerate(notebook.cells) if cell.get("id") == "rerun-why"]
    del notebook.cells[again:]  # a made-up case cannot be run again
    NotebookClient(notebook, timeout=None).execute()
    return NsaHTMLExporter().from_notebook_node(nbformat.from_dict(notebook))[0]


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(chromium, pages):
    """Show a page of a kind at a width, its charts drawn; each is loaded once."""
    loaded = {}

    def show(kind, width, *, scheme="light"):
        if kind not in loaded:
            loaded[kind] = chromium.new_page()
            loaded[kind].goto(pages[kind].as_uri())
        page = loaded[kind]
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(DRAWN, timeout=600_000)
        return page

    return show


DRAWN = """() => [...document.querySelectorAll(".nsa-chart")].filter((one) => one.offsetWidth).every((one) =>
  one.querySelector(".main-svg") && one.querySelector(".main-svg").getBoundingClientRect().right <= innerWidth)"""
"""Every chart that is shown is drawn, and as wide as the page is now."""


def violations(page):
    found = Axe().run(page).response["violations"]
    return [(one["id"], node["html"][:200]) for one in found for node in one["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing(opened, kind, scheme):
    assert violations(opened(kind, SCREEN_PX, scheme=scheme)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_phone_axe_finds_nothing_and_nothing_scrolls_sideways(opened, kind):
    page = opened(kind, PHONE_PX)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Nor does what a verdict is read from within its own frame.
    parts = page.locator(".nsa-banner, .nsa-sorts").evaluate_all(
        "(all) => all.map((one) => one.getBoundingClientRect().right)"
    )
    assert all(right <= PHONE_PX for right in parts)
    assert parts or kind in ("explore", "comparison")


@pytest.mark.parametrize("kind", KINDS)
def test_on_paper_nothing_is_wider_than_the_sheet_and_no_page_is_spent_on_what_was_right(opened, kind):
    page = opened(kind, PAPER_PX)
    try:
        assert printed_beyond(page) == []
        sheets = page.pdf(format="A4", print_background=True)
    finally:
        page.emulate_media(media="screen")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", sheets)) <= SHEETS.get(kind, 8)


def printed_beyond(page):
    """Return what would leave a sheet of A4 at its right: a browser shrinks the whole page to make it fit."""
    page.emulate_media(media="print")
    return page.evaluate(
        """(wide) => [...document.querySelectorAll("main *:not(details:not([open]) *)")]
            .filter((one) => one.getBoundingClientRect().right > wide + 1).map((one) => one.outerHTML.slice(0, 200))""",
        PAPER_PX,
    )


def test_what_is_too_wide_for_paper_is_found(opened):
    page = opened("smoke", PAPER_PX)
    page.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<p id=wide>wide</p>')")
    page.evaluate("document.getElementById('wide').style = 'width: 900px'")
    (found,) = printed_beyond(page)
    assert "wide" in found
    page.evaluate("document.getElementById('wide').remove()")
    page.emulate_media(media="screen")


def test_paper_shows_each_chart_as_its_twin_and_one_without_data_as_words(opened):
    page = opened("preflight", PAPER_PX)
    page.emulate_media(media="print")
    shown = page.locator("figure").evaluate_all("(all) => all.map((one) => one.innerText)")
    drawn = page.locator(".nsa-chart").evaluate_all("(all) => all.map((one) => one.offsetHeight)")
    twins = page.locator("img.nsa-twin").evaluate_all("(all) => all.map((one) => one.offsetHeight)")
    page.emulate_media(media="screen")
    assert any("kept no attention map" in words for words in shown)
    assert set(drawn) <= {0}
    assert all(height > 100 for height in twins)


def test_axe_would_find_what_is_planted(opened):
    page = opened("smoke", SCREEN_PX)
    page.evaluate("document.querySelector('.nsa-headline').style.color = '#eee'")
    page.evaluate(
        "document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=\"data:,\"><button></button>')"
    )
    assert {name for name, _ in violations(page)} == {"color-contrast", "image-alt", "button-name"}
