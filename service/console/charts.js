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
  const picture = document.createElementNS(NAMESPACE, "svg");
  picture.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("role", "img");
  chart.paths = chart.lines.map((_, place) => {
    const path = document.createElementNS(NAMESPACE, "path");
    if (chart.lines.length > 1 && place === 0) path.setAttribute("class", "second");
    picture.append(path);
    return path;
  });
  chart.figure = make("span", "", "–");
  chart.picture = picture;
  picture.setAttribute("aria-label", `${chart.name}: nothing yet`);
  return make("figure", "", make("figcaption", "", make("span", "name", chart.name), chart.figure), picture);
}

function redrawn(chart) {
  const values = chart.lines.map(([, key]) => looks.map((look) => look[key]));
  const most = Math.max(...values.flat().filter((value) => value !== null), 0);
  chart.paths.forEach((path, place) => path.setAttribute("d", line(values[place], most)));
  const newest = chart.lines.map(([label, key]) => [label, looks.at(-1)[key]]);
  const said = newest.map(([label, value]) => {
    const number = value === null ? "–" : short(value);
    return newest.length > 1 ? `${label} ${number}` : number;
  });
  write(chart.figure, `${said.join(" · ")} ${chart.unit}`);
  const text = `${chart.name}: ${said.join(", ")} ${chart.unit}; the most of three minutes ${short(most)} ${chart.unit}`;
  chart.picture.setAttribute("aria-label", text);
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
