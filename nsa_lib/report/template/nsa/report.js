"use strict";
// The report's only script: the code toggle, and the charts, whose data lie beside them as JSON.

const nonce = document.currentScript.nonce;
const darkScreen = matchMedia("(prefers-color-scheme: dark)");
const charts = [...document.querySelectorAll(".nsa-chart")];
const PRINTED_WIDTH = 660; // CSS pixels that fit A4 and Letter between their margins

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
  const { data, layout, config } = JSON.parse(chart.nextElementSibling.textContent);
  chart.textContent = "";
  await Plotly.newPlot(chart, data, layout, config);
  await Plotly.relayout(chart, ink(darkScreen.matches));
}

const relayout = (change) => charts.forEach((chart) => Plotly.relayout(chart, change));

async function drawAll() {
  await loadPlotly();
  await Promise.all(charts.map(draw));
  darkScreen.addEventListener("change", () => relayout(ink(darkScreen.matches)));
  addEventListener("beforeprint", () => relayout({ ...ink(false), width: PRINTED_WIDTH }));
  addEventListener("afterprint", () => relayout({ ...ink(darkScreen.matches), width: null, autosize: true }));
}

if (charts.length) drawAll();
