// Three small charts of the last minutes, each with its newest figures in words.

import { figures } from "./api.js";
import { between, parsed } from "./figures.js";
import { byId, make, short, write } from "./page.js";

const KEPT = 90; // looks
const [WIDTH, HEIGHT] = [300, 44];
const NAMESPACE = "http://www.w3.org/2000/svg";
const CHARTS = [
  { name: "Throughput", unit: "/s", lines: [["answers", "throughput"]] },
  { name: "Latency", unit: "ms", lines: [["p50", "p50"], ["p99", "p99"]] },
  { name: "Batch size", unit: "texts", lines: [["mean", "batch"]] },
];

const looks = [];
let last = null;

/** Draw the empty charts. */
export function drawCharts() {
  byId("charts").replaceChildren(...CHARTS.map(drawn));
}

/** Look at the figures once more and draw what is new. Throws Trouble. */
export async function lookAgain() {
  const now = { at: performance.now(), figures: parsed(await figures()) };
  if (last) {
    looks.push(between(last.figures, now.figures, (now.at - last.at) / 1000));
    looks.splice(0, looks.length - KEPT);
    CHARTS.forEach(redrawn);
  }
  last = now;
}

function drawn(chart) {
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  picture.setAttribute("aria-label", `${chart.name}: nothing yet`);
  chart.paths = chart.lines.map((_, place) => svg("path", { class: place < chart.lines.length - 1 ? "lesser" : "main" }));
  picture.append(...chart.paths);
  chart.figure = make("span", "", "–");
  chart.most = make("span", "most");
  chart.picture = picture;
  const name = make("span", "name", chart.name, " ", chart.most);
  return make("figure", "", make("figcaption", "", name, chart.figure), picture);
}

function redrawn(chart) {
  const values = chart.lines.map(([, key]) => looks.map((look) => look[key]));
  const most = Math.max(...values.flat().filter((value) => value !== null), 0);
  chart.paths.forEach((path, place) => path.setAttribute("d", line(values[place], most)));
  const said = inWords(chart, looks.at(-1));
  write(chart.figure, said);
  write(chart.most, most ? `up to ${short(most)}` : "");
  chart.picture.setAttribute("aria-label", `${chart.name}: ${said}; the most of three minutes ${short(most)} ${chart.unit}`);
}

function inWords(chart, look) {
  const known = chart.lines.filter(([, key]) => look[key] !== null);
  if (!known.length) return "no request";
  const numbers = known.map(([label, key]) => (chart.lines.length > 1 ? `${label} ${short(look[key])}` : short(look[key])));
  return `${numbers.join(" · ")} ${chart.unit}`;
}

function svg(tag, attributes) {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** An SVG path through values, the newest at the right; a gap where nothing is known. */
export function line(values, most) {
  let pen = "M";
  const parts = [];
  values.forEach((value, place) => {
    if (value === null) {
      pen = "M";
      return;
    }
    const x = WIDTH - ((values.length - 1 - place) * WIDTH) / (KEPT - 1);
    const y = HEIGHT - 1 - (most ? (value / most) * (HEIGHT - 4) : 0);
    parts.push(`${pen}${x.toFixed(1)} ${y.toFixed(1)}`);
    if (pen === "M" && (values[place + 1] ?? null) === null) parts.push("h0.01"); // one alone is a dot
    pen = "L";
  });
  return parts.join("");
}
