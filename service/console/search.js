// Search as the user types: wait briefly, abort the outdated request, send the new one, retry if that can help.

import { keys, request, RequestError } from "./api.js";
import { byId, setText, showMessage } from "./dom.js";
import { showHits } from "./hits.js";
import { showSnippets } from "./snippets.js";
import { showTiming } from "./timing.js";

const LISTS = ["hits", "other-hits"];
const DEBOUNCE = 100; // milliseconds
let timer = 0;
let controller = null;
let unanswered = false; // the shown hits do not answer the current query, and a retry may help

/** Search after a short pause in typing; without a body, clear the page. */
export function searchSoon(body) {
  clearTimeout(timer);
  controller?.abort();
  for (const id of LISTS) byId(id).classList.toggle("outdated", Boolean(body));
  if (body) {
    showSnippets(body);
    timer = setTimeout(() => searchNow(body), DEBOUNCE);
  } else clear();
}

/** Return whether to search again once the service is ready. */
export const isUnanswered = () => unanswered;

async function searchNow(body) {
  clearTimeout(timer);
  controller?.abort();
  const current = (controller = new AbortController());
  unanswered = false;
  try {
    const { json, headers } = await request("predict", { body, signal: current.signal });
    const hits = json.results[0].hits;
    show(json.bundle, hits);
    showTiming(headers.get("Server-Timing"));
    showMessage(byId("notice"), null);
    await compare(body, hits, current.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof RequestError)) throw error;
    showError(error, body);
  } finally {
    if (controller === current && !current.signal.aborted) LISTS.forEach(markCurrent);
  }
}

const markCurrent = (list) => byId(list).classList.remove("outdated");

function show(bundle, hits) {
  showHits(byId("hits"), hits);
  markCurrent("hits"); // the other bundle's hits may take longer
  setText(byId("bundle-name"), `Bundle ${bundle}`);
  showMessage(byId("empty"), hits.length ? null : "No label matches.");
  const best = hits.length ? `, the best is ${hits[0].text}` : "";
  setText(byId("announcement"), `${hits.length} answer${hits.length === 1 ? "" : "s"}${best}.`);
}

async function compare(body, hits, signal) {
  const bundle = keys.admin && byId("other").value;
  byId("second").hidden = !bundle;
  if (!bundle) return;
  setText(byId("other-name"), `Bundle ${bundle}`);
  if (!byId("other-hits").children.length) showMessage(byId("other-empty"), "Opening this bundle. Under load, this can take a minute or more.");
  try {
    const { json } = await request("admin/compare", { body: { bundle, ...body }, signal, admin: true });
    const otherHits = json.results[0].hits;
    showHits(byId("other-hits"), otherHits, hits);
    showMessage(byId("other-empty"), otherHits.length ? null : "No label matches.");
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    byId("other-hits").replaceChildren();
    showMessage(byId("other-empty"), error.message);
  }
}

function showError(error, body) {
  showMessage(byId("notice"), messageOf(error));
  if (![0, 429, 503].includes(error.status)) clearHits(); // they belong to another query, and no retry follows
  unanswered = error.code !== "bad_key" && [0, 503].includes(error.status);
  if (error.status === 429) timer = setTimeout(() => searchNow(body), Math.max(error.retryAfter, 1) * 1000);
}

function messageOf(error) {
  if (error.status !== 401) return error.message;
  return keys.api ? "The service does not accept this key." : "The service requires a key. Enter it under Keys.";
}

function clearHits() {
  for (const id of LISTS) byId(id).replaceChildren();
  byId("second").hidden = byId("timing").hidden = true;
  setText(byId("bundle-name"), "Answers");
  setText(byId("announcement"), "");
}

function clear() {
  unanswered = false;
  clearHits();
  showMessage(byId("notice"), null);
  showMessage(byId("empty"), "The best labels appear as you type, with the contributions to their scores.");
}
