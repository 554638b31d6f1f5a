"""The report in a real browser, without a network: what a reader sees, and what the page tries to load."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

from nsa_lib.report.page import Section, page
from nsa_lib.report.table import Cell, Table
from nsa_lib.report.tables import gate_row, ranked
from tests.samples import GATES, code_cell, concluded, export, notebook, sample_notebook, shown

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

PATIENCE_S = 600
"""Far above a slow day; what the pages wait for passes in the browser's virtual time."""

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--window-size=1200,900",
    "--virtual-time-budget=30000", "--dump-dom",
]  # fmt: skip

# Runs in the page before anything else and leaves what it saw in the page's root element.
PROBE = """<script nonce="NONCE">
const seen = { errors: [], blocked: [] };
addEventListener("error", (event) => seen.errors.push(event.message || event.target.outerHTML), true);
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => seen.blocked.push(event.blockedURI));
addEventListener("load", () => setTimeout(() => {
  const code = document.querySelector(".jp-CodeCell .highlight");
  const button = document.getElementById("nsa-code");
  const banner = document.querySelector(".nsa-banner").getBoundingClientRect();
  const shown = () => code.offsetHeight > 0;
  seen.banner = [banner.top, banner.width, banner.height];
  seen.code = [shown(), (button.click(), shown()), (button.click(), shown())];
  seen.charts = [...document.querySelectorAll(".nsa-chart")].map((chart) => chart.querySelectorAll(".main-svg").length);
  seen.buttons = [...document.querySelectorAll(".modebar-btn")].map((each) => each.dataset.title);
  seen.ink = [...document.querySelectorAll(".ytitle")].map((title) => title.style.fill);
  const ends = (element) => element.getBoundingClientRect();
  seen.captions = [...document.querySelectorAll("figcaption")].map(
    (caption) => ends(caption).right <= innerWidth && ends(caption).bottom <= ends(caption.nextElementSibling).top);
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const type = (words) => {
    document.getElementById("nsa-search").value = words;
    document.getElementById("nsa-search").dispatchEvent(new Event("input"));
    return [...document.querySelectorAll("tbody tr")].filter((row) => !row.classList.contains("nsa-missed")).length;
  };
  seen.found = [type("reserved memory"), type("no such words"), type("")];
  const gates = document.querySelector(".nsa-sorts");
  const names = () => [...gates.tBodies[0].rows].map((row) => row.cells[1].textContent);
  const heading = gates?.tHead.rows[0].cells[1];
  seen.sorted = gates && [(heading.firstChild.click(), names()), (heading.firstChild.click(), names())];
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "n", bubbles: true }));
  seen.here = document.querySelector(".nsa-here")?.id;
  seen.labels = gates?.tBodies[0].rows[0].cells[2].dataset.label;
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  document.documentElement.dataset.seen = JSON.stringify(seen);
}, 10000));
</script>"""


def in_chromium(html, script, folder, *flags):
    """Open a page in Chromium with a script of ours before all others; its output, the page's DOM among it."""
    nonce = re.search(r"'nonce-(\w+)'", html)[1]
    path = folder / "page.html"
    path.write_text(html.replace("<title>", script.replace("NONCE", nonce) + "<title>", 1))
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


def open_report(html, folder, *flags):
    """Open a report in Chromium; return what the probe saw in it, the console's lines among it."""
    browser = in_chromium(html, PROBE, folder, *flags)
    dom = re.search(r'data-seen="([^"]*)"', browser.stdout)
    assert dom, browser.stderr[-3000:]
    console = [line for line in browser.stderr.splitlines() if ":CONSOLE" in line]
    return {**json.loads(dom[1].replace("&quot;", '"').replace("&amp;", "&")), "console": console}


def test_a_report_is_drawn_offline_without_an_error(tmp_path):
    seen = open_report(export(sample_notebook()), tmp_path)
    assert len(seen["charts"]) == 4
    assert min(seen["charts"]) > 0
    assert (seen["errors"], seen["console"], seen["blocked"], seen["requests"]) == ([], [], [], [])
    top, width, height = seen["banner"]
    assert 0 <= top < 100
    assert width > 600
    assert height > 50
    assert seen["code"] == [False, True, False]
    assert seen["overflow"] == 0
    assert seen["buttons"]
    assert not [title for title in seen["buttons"] if re.search("share|cloud|logo|plotly", title, re.IGNORECASE)]


def test_keys_search_and_sorting_find_what_failed(tmp_path):
    gates = [GATES[0], {**GATES[1], "outcome": "FAIL"}, *GATES[2:]]
    seen = open_report(export(sample_notebook("NO-GO", gates=gates)), tmp_path)
    assert seen["errors"] == []
    found, none, every = seen["found"]
    assert (found, none) == (1, 0)
    assert every > 10
    up, down = seen["sorted"]
    assert up == sorted(up)
    assert down == up[::-1]
    assert seen["here"] == "gate-peak reserved memory"
    assert seen["labels"] == "measured"


def test_the_key_c_copies_as_text_the_gate_that_n_went_to(tmp_path):
    press = """<script nonce="NONCE">addEventListener("load", () => setTimeout(() => {
      const copied = [];
      document.execCommand = (command) => {  // headless, without a hand on the keys, there is no clipboard to read
        const told = { clipboardData: new DataTransfer(), bubbles: true, cancelable: true };
        const event = new ClipboardEvent(command, told);
        copied.push([document.dispatchEvent(event), event.clipboardData.getData("text/plain")]);
        return true;
      };
      const key = (name) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
      for (const name of ["n", "n", "c", "x"]) key(name);
      document.documentElement.dataset.copied = JSON.stringify(copied);
    }, 3000));</script>"""
    gates = [GATES[0], *({**gate, "outcome": "FAIL"} for gate in GATES[1:3]), *GATES[3:]]
    html = export(sample_notebook("NO-GO", gates=gates))
    browser = in_chromium(html, press, tmp_path)
    ((dispatched, text),) = json.loads(unescape(re.search(r'data-copied="([^"]*)"', browser.stdout)[1]))
    assert not dispatched, "the page puts its own text there, instead of the selection"
    second = [gate["name"] for gate in ranked(gates) if gate["outcome"] == "FAIL" and gate["required"]][1]
    assert text.split(" | ")[:2] == ["✘ FAIL", second]
    assert text.split(" | ")[2:] == [cell.text for cell in gate_row(gates_by_name(gates)[second])[2:] if cell.text]


def gates_by_name(gates):
    return {gate["name"]: gate for gate in gates}


def test_a_table_is_sorted_by_dates_numbers_and_words_and_a_figure_keeps_its_heading_on_a_narrow_screen(tmp_path):
    sort = """<script nonce="NONCE">addEventListener("load", () => setTimeout(() => {
      const table = document.querySelector(".nsa-sorts");
      const heading = (column) => table.tHead.rows[0].cells[column];
      const sorted = [0, 1, 2].map((column) => {
        heading(column).firstChild.click();
        return [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
      });
      const labels = [...table.tBodies[0].rows[0].cells].map((cell) => cell.dataset.label ?? "");
      document.documentElement.dataset.sorted = JSON.stringify([...sorted, labels]);
    }, 3000));</script>"""
    columns = {
        "made": ["2026-11-29 17:17", "2025-01-02 10:00", "2026-03-01 09:00"],
        "size": ["1,200 MiB", "9.5 MiB", "–"],
        "word": ["b", "c", "a"],
    }
    rows = [
        (Cell(day), Cell(size, numeric=True), Cell(word)) for day, size, word in zip(*columns.values(), strict=True)
    ]
    html = page("All", [Section("All", tables=[Table("All", tuple(columns), rows, sorts=True)])])
    browser = in_chromium(html, sort, tmp_path)
    dates, sizes, words, labels = json.loads(unescape(re.search(r'data-sorted="([^"]*)"', browser.stdout)[1]))
    assert dates == sorted(columns["made"])
    assert sizes == ["9.5 MiB", "1,200 MiB", "–"]
    assert words == ["a", "b", "c"]
    assert labels == ["", "size", "word"]


def test_zooming_one_chart_of_steps_zooms_the_others(tmp_path):
    zoom = """<script nonce="NONCE">addEventListener("load", () => setTimeout(async () => {
      const ends = (chart) => chart.layout.xaxis.range;
      const [memory, phases, loss] = document.querySelectorAll(".nsa-chart");
      const before = ends(phases).join();
      await Plotly.relayout(memory, { "xaxis.range[0]": 20, "xaxis.range[1]": 40 });
      await new Promise((done) => setTimeout(done, 1000));
      document.title = JSON.stringify([ends(loss), before === ends(phases).join()]);
    }, 5000));</script>"""
    html = export(sample_notebook())
    browser = in_chromium(html, zoom, tmp_path)
    assert re.search(r"<title>\[\[20,40\],true\]</title>", browser.stdout)


def test_on_a_narrow_screen_nothing_leaves_the_page_and_captions_stand_above_their_charts(tmp_path):
    seen = open_report(export(sample_notebook()), tmp_path, "--window-size=500,900")
    assert seen["banner"][1] < 500
    assert seen["overflow"] == 0
    assert seen["captions"] == [True] * 4


def test_charts_are_repainted_for_a_dark_screen(tmp_path):
    html = export(sample_notebook())
    (light,) = set(open_report(html, tmp_path, "--blink-settings=preferredColorScheme=1")["ink"])
    (dark,) = set(open_report(html, tmp_path, "--blink-settings=preferredColorScheme=0")["ink"])
    assert light == "rgb(31, 35, 40)"
    assert dark == "rgb(209, 215, 224)"


def test_what_a_notebook_brings_along_neither_runs_nor_loads(tmp_path):
    hostile = '<script>throw "ran"</script><img src="https://example.invalid/x.png" onerror="throw 1" alt="">'
    html = export(notebook(code_cell(outputs=[shown(text_html=hostile)]), code_cell(count=2, outputs=concluded())))
    seen = open_report(html, tmp_path)
    assert "https://example.invalid/x.png" in seen["blocked"]
    assert "inline" in seen["blocked"]
    assert seen["console"]
    assert not [message for message in seen["errors"] if "ran" in message]
