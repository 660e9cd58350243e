// The hits of one query: rank, text, score, and its contributions as bars on a scale from 0 to 1.

import { byId, displayName, make } from "./dom.js";

const STEPS = new Map([["ArrowDown", 1], ["ArrowUp", -1]]);

/** Show hits in a list. `reference` are the hits of another bundle, to which ranks are compared. */
export function showHits(list, hits, reference) {
  const focused = [...list.children].indexOf(document.activeElement);
  const ranks = reference && new Map(reference.map((hit, rank) => [hit.id, rank]));
  list.replaceChildren(...hits.map((hit, rank) => listItem(hit, rank, ranks)));
  if (list.children.length) list.children[0].tabIndex = 0;
  if (focused >= 0) (list.children[Math.min(focused, hits.length - 1)] ?? byId("query")).focus();
}

function listItem(hit, rank, ranks) {
  const text = make("span", "text", hit.text);
  if (ranks) text.append(make("span", "rank-change", rankChange(rank, ranks.get(hit.id))));
  const memory = hit.memory > 0;
  const bars = make("div", "bars", bar("dual", hit.dual_encoder), bar("classifier", hit.classifier));
  if (memory) bars.append(bar("memory", hit.memory));
  bars.setAttribute("aria-hidden", "true"); // the numbers below have the same content
  const contributions = make(
    "span", "shares",
    make("span", "dual", `dual encoder ${hit.dual_encoder.toFixed(3)}`),
    make("span", "classifier", `classifier ${hit.classifier.toFixed(3)}`),
  );
  if (memory) contributions.append(make("span", "memory", `memory ${hit.memory.toFixed(3)}`));
  const details = make("span", "details", detailsOf(hit));
  const score = make("span", "score", hit.score.toFixed(3));
  const item = make("li", "", make("span", "rank", rank + 1), text, score, bars, contributions, details);
  item.tabIndex = -1;
  return item;
}

function bar(part, contribution) {
  const element = make("div", `bar ${part}`);
  element.style.width = `${Math.max(contribution, 0) * 100}%`;
  return element;
}

function rankChange(rank, otherRank) {
  if (otherRank === undefined) return "only here";
  if (otherRank === rank) return "same rank";
  return otherRank > rank ? `↑ ${otherRank - rank}` : `↓ ${rank - otherRank}`;
}

function detailsOf(hit) {
  const attributes = Object.entries(hit.attributes).filter(([, value]) => value !== null);
  const id = hit.id === hit.text ? [] : [hit.id];
  return [...id, ...attributes.map(([name, value]) => `${displayName(name)} ${[value].flat().join(", ")}`)].join(" · ");
}

/** Move the focus with the arrow keys: from the query through the hits, and across to the compared ones. */
export function moveFocus(event) {
  const step = STEPS.get(event.key);
  const list = document.activeElement.closest?.("ol");
  if (list && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    const otherList = byId(event.key === "ArrowRight" ? "other-hits" : "hits");
    focusOn(otherList.children[[...list.children].indexOf(document.activeElement)], event);
  } else if (step && document.activeElement === byId("query")) {
    if (step > 0) focusOn(byId("hits").firstElementChild, event);
  } else if (step && list) {
    const items = [...list.children];
    const next = items.indexOf(document.activeElement) + step;
    focusOn(next < 0 ? byId("query") : items[next], event);
  }
}

function focusOn(element, event) {
  if (!element) return;
  event.preventDefault();
  if (element.localName === "li") {
    for (const item of element.parentElement.children) item.tabIndex = item === element ? 0 : -1;
  }
  element.focus();
}
