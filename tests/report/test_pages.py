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
from tests.workbook.several_gpus import made as several

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

PHONE_PX, SCREEN_PX = 390, 1300
"""Widths of a phone and of a screen."""

KINDS = (*counted(), "smoke NO-GO", "several_gpus", "readiness", "explore", "index", "comparison")


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


def test_a_page_is_printed_whole(opened, tmp_path):
    page = opened("smoke", SCREEN_PX)
    pdf = page.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    assert 5 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 14


def test_axe_would_find_what_is_planted(opened):
    page = opened("smoke", SCREEN_PX)
    page.evaluate("document.querySelector('.nsa-headline').style.color = '#eee'")
    page.evaluate(
        "document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=\"data:,\"><button></button>')"
    )
    assert {name for name, _ in violations(page)} == {"color-contrast", "image-alt", "button-name"}
