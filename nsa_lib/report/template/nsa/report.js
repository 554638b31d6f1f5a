"use strict";
// The report's only script: keys, search, sorting, the code toggle, and the charts, whose data lie beside them as JSON.

const nonce = document.currentScript.nonce;
const darkScreen = matchMedia("(prefers-color-scheme: dark)");
const charts = [...document.querySelectorAll(".nsa-chart")];

document.getElementById("nsa-code")?.addEventListener("click", (event) => {
  event.currentTarget.setAttribute("aria-pressed", document.body.classList.toggle("show-code"));
});

// Tables: sorting, names of the columns for narrow screens

// A number, and perhaps its unit: a date, 2026-11-29, is none.
const NUMBER = /^[+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?(?=\s|$)/i;

function sortBy(table, column, heading) {
  const down = heading.getAttribute("aria-sort") === "ascending";
  const order = (row) => {
    const text = row.cells[column].textContent.trim();
    return NUMBER.test(text) ? parseFloat(text.replaceAll(",", "")) : text;
  };
  const compare = (a, b) => (typeof a === typeof b ? (a > b) - (a < b) : typeof a === "number" ? -1 : 1);
  const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? -1 : 1) * compare(order(a), order(b)));
  table.tBodies[0].append(...rows);
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
}

// What a row is of stands in its first cells; a figure always needs its heading.
const isLabelled = (headings, i) => headings[i].textContent && (i > 1 || (i && headings[i].style.textAlign === "right"));

for (const table of document.querySelectorAll(".nsa-table")) {
  const headings = [...table.tHead.rows[0].cells];
  for (const row of table.tBodies[0].rows)
    [...row.cells].forEach((cell, i) => isLabelled(headings, i) && (cell.dataset.label = headings[i].textContent));
  if (!table.classList.contains("nsa-sorts")) continue;
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    button.addEventListener("click", () => sortBy(table, column, heading));
    heading.replaceChildren(button);
  });
}

// What is wider than the page scrolls by itself, and so must be reached without a mouse

const outputs = document.querySelectorAll(".jp-OutputArea-output");
const markScrolling = () => outputs.forEach((output) =>
  output.scrollWidth > output.clientWidth ? output.setAttribute("tabindex", "0") : output.removeAttribute("tabindex"));
addEventListener("resize", markScrolling);
markScrolling();

// Search: rows, figures and paragraphs without the words are hidden

const search = document.getElementById("nsa-search");
const said = document.getElementById("nsa-said");
const searched = [...document.querySelectorAll("main :is(tbody tr, figure, p, li, pre)")].filter(
  (part) => !part.closest(".nsa-banner, .nsa-contents") && !part.parentElement.closest("figure"));
const wordsOf = (part) => (part.textContent + (part.querySelector("[aria-label]")?.getAttribute("aria-label") ?? "")).toLowerCase();

search?.addEventListener("input", () => {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const part of searched) {
    const hit = words.every((word) => wordsOf(part).includes(word));
    part.classList.toggle("nsa-missed", !hit);
    found += hit;
    if (words.length && hit) part.closest("details")?.setAttribute("open", "");
  }
  said.textContent = words.length ? `${found} found` : "";
});

// Keys

const failures = [...document.querySelectorAll('tr[id^="gate-"]')].filter((row) => /FAIL|NOT RUN|WARN/.test(row.cells[0].textContent));
let here = null;

function goTo(row) {
  here?.classList.remove("nsa-here");
  here = row;
  row.classList.add("nsa-here");
  row.focus({ preventScroll: true });
  row.scrollIntoView({ block: "center" });
}

function copy(row) {
  if (!row) return;
  const text = [...row.cells].map((cell) => cell.textContent.trim()).filter(Boolean).join(" | ");
  addEventListener("copy", (event) => { event.clipboardData.setData("text/plain", text); event.preventDefault(); }, { once: true });
  said.textContent = document.execCommand("copy") ? "copied" : "";
}

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target === search) {
    search.value = "";
    search.dispatchEvent(new Event("input"));
    search.blur();
  }
  if (event.target.matches?.("input") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "n" && failures.length) goTo(failures[(failures.indexOf(here) + 1) % failures.length]);
  else if (event.key === "n") said.textContent = "no gate fails";
  else if (event.key === "c") copy(event.target.closest?.('tr[id^="gate-"]') ?? here ?? document.querySelector('tr[id^="gate-"]:target') ?? failures[0]);
  else if (event.key === "/") { event.preventDefault(); search.focus(); }
});

// Charts

const ink = (dark) => ({ "font.color": dark ? "#d1d7e0" : "#1f2328" });

async function loadPlotly() {
  const packed = Uint8Array.from(atob(document.getElementById("nsa-plotly").textContent), (c) => c.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.nonce = nonce;
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
}

async function draw(chart) {
  const figure = chart.closest("figure");
  const { data, layout, config } = JSON.parse(figure.querySelector("script").textContent);
  figure.classList.add("nsa-drawn"); // before it is drawn: what is not displayed has no width
  await Plotly.newPlot(chart, data, layout, config);
  await Plotly.relayout(chart, ink(darkScreen.matches));
}

// Charts against the steps show the same steps: zooming one zooms all.
const againstSteps = () => charts.filter((chart) => chart.layout.xaxis?.title?.text === "step");
let following = false;

async function zoomTogether(event, source) {
  const [from, to, all] = ["xaxis.range[0]", "xaxis.range[1]", "xaxis.autorange"].map((key) => event[key]);
  if (following || (from === undefined && !all)) return;
  const change = all ? { "xaxis.autorange": true } : { "xaxis.range[0]": from, "xaxis.range[1]": to };
  following = true;
  await Promise.all(againstSteps().filter((chart) => chart !== source).map((chart) => Plotly.relayout(chart, change)));
  following = false;
}

async function drawAll() {
  await loadPlotly();
  await Promise.all(charts.map(draw));
  darkScreen.addEventListener("change", () => charts.forEach((chart) => Plotly.relayout(chart, ink(darkScreen.matches))));
  againstSteps().forEach((chart) => chart.on("plotly_relayout", (event) => zoomTogether(event, chart)));
}

if (charts.length) drawAll();
