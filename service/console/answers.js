// The hits of one query: rank, text, score and its two shares as bars on a scale from 0 to 1.

import { byId, make, nameOf } from "./page.js";

const STEPS = new Map([["ArrowDown", 1], ["ArrowUp", -1]]);

/** Show one result's hits in a list; `before` are another bundle's, to which ranks are compared. */
export function showHits(list, hits, before) {
  const focused = [...list.children].indexOf(document.activeElement);
  const ranks = before && new Map(before.map((hit, place) => [hit.id, place]));
  list.replaceChildren(...hits.map((hit, place) => row(hit, place, ranks)));
  if (list.children.length) list.children[0].tabIndex = 0;
  if (focused >= 0) (list.children[Math.min(focused, hits.length - 1)] ?? byId("query")).focus();
}

function row(hit, place, ranks) {
  const text = make("span", "text", hit.text);
  if (ranks) text.append(make("span", "moved", moved(place, ranks.get(hit.id))));
  const bars = make("div", "bars", bar("dual", hit.dual_encoder), bar("classifier", hit.classifier));
  bars.setAttribute("aria-hidden", "true"); // the numbers below say the same
  const shares = make(
    "span", "shares",
    make("span", "dual", `dual encoder ${hit.dual_encoder.toFixed(3)}`),
    make("span", "classifier", `classifier ${hit.classifier.toFixed(3)}`),
  );
  const about = make("span", "about", described(hit));
  const item = make("li", "", make("span", "rank", place + 1), text, make("span", "score", hit.score.toFixed(3)), bars, shares, about);
  item.tabIndex = -1;
  return item;
}

function bar(half, share) {
  const element = make("div", `bar ${half}`);
  element.style.width = `${Math.max(share, 0) * 100}%`;
  return element;
}

function moved(place, before) {
  if (before === undefined) return "only here";
  if (before === place) return "same place";
  return before > place ? `↑ ${before - place}` : `↓ ${place - before}`;
}

function described(hit) {
  const attributes = Object.entries(hit.attributes).filter(([, value]) => value !== null);
  const id = hit.id === hit.text ? [] : [hit.id];
  return [...id, ...attributes.map(([name, value]) => `${nameOf(name)} ${[value].flat().join(", ")}`)].join(" · ");
}

/** Let the arrow keys move from the query through the answers, and across to the compared ones. */
export function moveByKeys(event) {
  const step = STEPS.get(event.key);
  const list = document.activeElement.closest?.("ol");
  if (list && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    const across = byId(event.key === "ArrowRight" ? "other-hits" : "hits");
    focusOn(across.children[[...list.children].indexOf(document.activeElement)], event);
  } else if (step && document.activeElement === byId("query")) {
    if (step > 0) focusOn(byId("hits").firstElementChild, event);
  } else if (step && list) {
    const rows = [...list.children];
    const next = rows.indexOf(document.activeElement) + step;
    focusOn(next < 0 ? byId("query") : rows[next], event);
  }
}

function focusOn(element, event) {
  if (!element) return;
  event.preventDefault();
  if (element.localName === "li") {
    for (const row of element.parentElement.children) row.tabIndex = row === element ? 0 : -1;
  }
  element.focus();
}
