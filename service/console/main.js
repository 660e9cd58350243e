// Entry point: connect the controls to requests, and the service's state to the page.

import { forgetRejectedKeys, keys, readiness, request } from "./api.js";
import { listBundles } from "./bundles.js";
import { drawCharts, updateCharts } from "./charts.js";
import { byId, integer, setText, showMessage } from "./dom.js";
import { currentFilter, showFilters } from "./filters.js";
import { moveFocus } from "./hits.js";
import { isUnanswered, searchSoon } from "./search.js";
import { copy, showSnippets } from "./snippets.js";

const POLL_INTERVAL = 2000; // milliseconds
const EXAMPLE = "cheap running shoes";
let about = null; // facts about the served bundle, from /about
let defaultWeight = true; // the slider was not moved

/** Build the request body from the controls. */
function requestBody() {
  const body = { queries: [byId("query").value.trim() || EXAMPLE], k: Math.round(Number(byId("k").value)) || 10 };
  if (!defaultWeight) body.weight = Number(byId("weight").value);
  const minScore = byId("min-score").value;
  if (minScore !== "") body.min_score = Number(minScore);
  const memoryWeight = byId("memory-weight").value;
  if (memoryWeight !== "") body.memory_weight = Number(memoryWeight);
  const filter = currentFilter();
  if (filter) body.filter = filter;
  return body;
}

function onChange() {
  const hasQuery = byId("query").value.trim() !== "";
  searchSoon(hasQuery ? requestBody() : null);
  if (!hasQuery) showSnippets(requestBody());
}

function showWeight() {
  const weight = Number(byId("weight").value);
  setText(byId("weight-classifier"), weight.toFixed(2));
  setText(byId("weight-dual"), (1 - weight).toFixed(2));
  byId("weight").setAttribute("aria-valuetext", `${weight.toFixed(2)} classifier, ${(1 - weight).toFixed(2)} dual encoder`);
  byId("weight-default").disabled = defaultWeight;
}

/** Hide the slider for a bundle with one head only, which accepts no other weight. */
function showWeightControl() {
  byId("weight-control").hidden = about.fixed_weight;
  if (defaultWeight || about.fixed_weight) resetWeight();
}

function resetWeight() {
  defaultWeight = true;
  byId("weight").value = String(about?.weight ?? 0.5);
  showWeight();
}

/** Offer the weight of the query memory if the bundle has one; a blank field is the bundle's weight. */
function showMemory() {
  const hasMemory = about.memory_weight !== null;
  byId("memory").hidden = !hasMemory;
  byId("memory-weight").placeholder = hasMemory ? String(about.memory_weight) : "";
  if (!hasMemory) byId("memory-weight").value = "";
}

async function loadAbout() {
  about = (await request("about")).json;
  byId("k").max = String(about.max_k);
  byId("query").maxLength = about.max_query_chars;
  showWeightControl();
  showMemory();
  byId("administrator").hidden = !about.administration;
  showFilters(about.attributes, onChange);
}

/** Update the status line; reload facts, charts and bundles. */
async function poll() {
  try {
    const state = await readiness();
    if (state.ready && state.bundle !== about?.bundle) await loadAbout();
    const labels = about && state.ready ? ` · ${integer.format(about.labels)} labels` : "";
    const note = state.detail === "serving" ? "" : ` · ${state.detail}`;
    showStatus(state.ready, state.ready ? `${state.bundle}${labels}${note}` : `Not ready: ${state.detail}.`);
    await updateCharts();
    if (keys.admin) await listBundles(poll);
  } catch (error) {
    showStatus(error.status === 401, error.status === 401 ? "Ready. The service requires a key." : error.message);
  }
}

function showStatus(ready, text) {
  setText(byId("status"), text);
  byId("status").dataset.ready = String(ready);
  if (ready && isUnanswered()) onChange();
}

async function keepPolling() {
  if (!document.hidden) await poll();
  setTimeout(keepPolling, POLL_INTERVAL);
}

async function useKeys(event) {
  event.preventDefault();
  keys.api = byId("api-key").value;
  keys.admin = byId("admin-key").value;
  forgetRejectedKeys();
  about = null;
  showMessage(byId("admin-message"), null);
  if (!(await listBundles(poll))) byId("other").value = "";
  await poll();
  onChange();
}

function onKeyDown(event) {
  const typing = event.target.closest("input:not([type=range], [type=checkbox]), select, dialog");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    byId("query").focus();
    byId("query").select();
  } else if (event.key === "Escape" && event.target.closest("#form, #answers, body") && !event.target.closest("dialog")) {
    byId("query").value = "";
    byId("query").focus();
    onChange();
  } else if (!event.altKey && !event.ctrlKey && !event.metaKey) moveFocus(event);
}

byId("form").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["query", "k", "min-score", "memory-weight"]) byId(id).addEventListener("input", onChange);
byId("other").addEventListener("change", () => {
  byId("other-hits").replaceChildren();
  onChange();
});
byId("weight").addEventListener("input", () => {
  defaultWeight = false;
  showWeight();
  onChange();
});
byId("weight-default").addEventListener("click", () => {
  resetWeight();
  byId("weight").focus();
  onChange();
});
byId("keys-form").addEventListener("submit", useKeys);
for (const button of document.querySelectorAll("[data-copies]")) button.addEventListener("click", () => copy(button.dataset.copies));
document.addEventListener("keydown", onKeyDown);

drawCharts();
showWeight();
onChange();
keepPolling();
