"use strict";
// The report's only script: the code toggle, and the charts, whose data lie beside them as JSON.

const nonce = document.currentScript.nonce;
const darkScreen = matchMedia("(prefers-color-scheme: dark)");
const charts = [...document.querySelectorAll(".nsa-chart")];

document.getElementById("nsa-code")?.addEventListener("click", (event) => {
  event.currentTarget.setAttribute("aria-pressed", document.body.classList.toggle("show-code"));
});

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
