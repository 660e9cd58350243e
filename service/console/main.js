// Wires the page: what the controls say becomes a request, and what the service says becomes the status.

import { moveByKeys } from "./answers.js";
import { ask, forgetRefusals, keys, readiness } from "./api.js";
import { askSoon, isUnanswered } from "./asking.js";
import { drawCharts, lookAgain } from "./charts.js";
import { copy, showPrograms } from "./copy.js";
import { chosenFilter, offerFilters } from "./filters.js";
import { listBundles } from "./generations.js";
import { byId, say, whole, write } from "./page.js";

const LOOK = 2000; // milliseconds
const EXAMPLE = "cheap running shoes";
let about = null; // of the bundle that is served
let ownWeight = true;

/** The request that the controls describe. */
function request() {
  const body = { queries: [byId("query").value.trim() || EXAMPLE], k: Math.round(Number(byId("k").value)) || 10 };
  if (!ownWeight) body.weight = Number(byId("weight").value);
  const least = byId("min-score").value;
  if (least !== "") body.min_score = Number(least);
  const filter = chosenFilter();
  if (filter) body.filter = filter;
  return body;
}

function changed() {
  const asked = byId("query").value.trim() !== "";
  askSoon(asked ? request() : null);
  if (!asked) showPrograms(request());
}

function showWeight() {
  const weight = Number(byId("weight").value);
  write(byId("weight-classifier"), weight.toFixed(2));
  write(byId("weight-dual"), (1 - weight).toFixed(2));
  byId("weight").setAttribute("aria-valuetext", `${weight.toFixed(2)} classifier, ${(1 - weight).toFixed(2)} dual encoder`);
  byId("weight-own").disabled = ownWeight;
}

function takeOwnWeight() {
  ownWeight = true;
  byId("weight").value = String(about?.weight ?? 0.5);
  showWeight();
}

async function learnAbout() {
  about = (await ask("about")).json;
  byId("k").max = String(about.max_k);
  byId("query").maxLength = about.max_query_chars;
  if (ownWeight) takeOwnWeight();
  byId("administrator").hidden = !about.administration;
  offerFilters(about.attributes, changed);
}

/** The status line, and what follows from a service that has come, gone or changed its bundle. */
async function look() {
  try {
    const now = await readiness();
    if (now.ready && now.bundle !== about?.bundle) await learnAbout();
    const labels = about && now.ready ? ` · ${whole.format(about.labels)} labels` : "";
    const note = now.detail === "serving" ? "" : ` · ${now.detail}`;
    showStatus(now.ready, now.ready ? `${now.bundle}${labels}${note}` : `Not ready: ${now.detail}.`);
    await lookAgain();
    if (keys.admin) await listBundles(look);
  } catch (trouble) {
    showStatus(trouble.status === 401, trouble.status === 401 ? "Ready; it wants a key before it answers." : trouble.message);
  }
}

function showStatus(ready, text) {
  write(byId("status"), text);
  byId("status").dataset.ready = String(ready);
  if (ready && isUnanswered()) changed();
}

async function keepLooking() {
  if (!document.hidden) await look();
  setTimeout(keepLooking, LOOK);
}

async function useKeys(event) {
  event.preventDefault();
  keys.api = byId("api-key").value;
  keys.admin = byId("admin-key").value;
  forgetRefusals();
  about = null;
  say(byId("admin-said"), null);
  if (!(await listBundles(look))) byId("other").value = "";
  await look();
  changed();
}

function pressed(event) {
  const typing = event.target.closest("input:not([type=range], [type=checkbox]), select, dialog");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    byId("query").focus();
    byId("query").select();
  } else if (event.key === "Escape" && event.target.closest("#form, #answers, body") && !event.target.closest("dialog")) {
    byId("query").value = "";
    byId("query").focus();
    changed();
  } else if (!event.altKey && !event.ctrlKey && !event.metaKey) moveByKeys(event);
}

byId("form").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["query", "k", "min-score"]) byId(id).addEventListener("input", changed);
byId("other").addEventListener("change", () => {
  byId("other-hits").replaceChildren();
  changed();
});
byId("weight").addEventListener("input", () => {
  ownWeight = false;
  showWeight();
  changed();
});
byId("weight-own").addEventListener("click", () => {
  takeOwnWeight();
  byId("weight").focus();
  changed();
});
byId("keys-form").addEventListener("submit", useKeys);
for (const button of document.querySelectorAll("[data-copies]")) button.addEventListener("click", () => copy(button.dataset.copies));
document.addEventListener("keydown", pressed);

drawCharts();
showWeight();
changed();
keepLooking();
