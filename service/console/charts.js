// Three small charts of the last minutes, each with its latest values as text.

import { metrics } from "./api.js";
import { byId, make, setText, short } from "./dom.js";
import { between, parse } from "./prometheus.js";

const MAX_SAMPLES = 90;
const [WIDTH, HEIGHT] = [300, 44];
const NAMESPACE = "http://www.w3.org/2000/svg";
const CHARTS = [
  { name: "Throughput", unit: "/s", lines: [["answers", "throughput"]] },
  { name: "Latency", unit: "ms", lines: [["p50", "p50"], ["p99", "p99"]] },
  { name: "Batch size", unit: "texts", lines: [["mean", "batch"]] },
];

const samples = [];
let previous = null;

/** Draw the empty charts. */
export function drawCharts() {
  byId("charts").replaceChildren(...CHARTS.map(draw));
}

/** Read the metrics and redraw the charts. Throws RequestError. */
export async function updateCharts() {
  const current = { time: performance.now(), values: parse(await metrics()) };
  if (previous) {
    samples.push(between(previous.values, current.values, (current.time - previous.time) / 1000));
    samples.splice(0, samples.length - MAX_SAMPLES);
    CHARTS.forEach(redraw);
  }
  previous = current;
}

function draw(chart) {
  const image = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  image.setAttribute("aria-label", `${chart.name}: no data yet`);
  chart.paths = chart.lines.map((_, index) => svg("path", { class: index < chart.lines.length - 1 ? "secondary" : "main" }));
  image.append(...chart.paths);
  chart.latest = make("span", "", "–");
  chart.maximum = make("span", "maximum");
  chart.image = image;
  const name = make("span", "name", chart.name, " ", chart.maximum);
  return make("figure", "", make("figcaption", "", name, chart.latest), image);
}

function redraw(chart) {
  const values = chart.lines.map(([, key]) => samples.map((sample) => sample[key]));
  const maximum = Math.max(...values.flat().filter((value) => value !== null), 0);
  chart.paths.forEach((path, index) => path.setAttribute("d", pathOf(values[index], maximum)));
  const latest = asText(chart, samples.at(-1));
  setText(chart.latest, latest);
  setText(chart.maximum, maximum ? `up to ${short(maximum)}` : "");
  chart.image.setAttribute("aria-label", `${chart.name}: ${latest}; maximum of three minutes ${short(maximum)} ${chart.unit}`);
}

function asText(chart, sample) {
  const known = chart.lines.filter(([, key]) => sample[key] !== null);
  if (!known.length) return "no requests";
  const numbers = known.map(([label, key]) => (chart.lines.length > 1 ? `${label} ${short(sample[key])}` : short(sample[key])));
  return `${numbers.join(" · ")} ${chart.unit}`;
}

function svg(tag, attributes) {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Return an SVG path through values, the newest at the right, with gaps for null. */
function pathOf(values, maximum) {
  let command = "M";
  const parts = [];
  values.forEach((value, index) => {
    if (value === null) {
      command = "M";
      return;
    }
    const x = WIDTH - ((values.length - 1 - index) * WIDTH) / (MAX_SAMPLES - 1);
    const y = HEIGHT - 1 - (maximum ? (value / maximum) * (HEIGHT - 4) : 0);
    parts.push(`${command}${x.toFixed(1)} ${y.toFixed(1)}`);
    if (command === "M" && (values[index + 1] ?? null) === null) parts.push("h0.01"); // a single value is a dot
    command = "L";
  });
  return parts.join("");
}
