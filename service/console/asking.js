// One question at a time, as it is typed: wait a moment, drop what is outdated, ask, show; try again when that may help.

import { ask, keys, Trouble } from "./api.js";
import { showHits } from "./answers.js";
import { showPrograms } from "./copy.js";
import { byId, say, write } from "./page.js";
import { showTiming } from "./timing.js";

const LISTS = ["hits", "other-hits"];
const PAUSE = 100; // milliseconds without a key before it is asked
let waiting = 0;
let running = null;
let unanswered = false; // what is shown is not what was asked, and asking again may help

/** Ask once nothing has been typed for a moment. */
export function askSoon(body) {
  clearTimeout(waiting);
  running?.abort();
  for (const id of LISTS) byId(id).classList.toggle("outdated", Boolean(body));
  if (body) {
    showPrograms(body);
    waiting = setTimeout(() => askNow(body), PAUSE);
  } else clear();
}

/** Whether it is worth asking again once the service is ready. */
export const isUnanswered = () => unanswered;

async function askNow(body) {
  clearTimeout(waiting);
  running?.abort();
  const mine = (running = new AbortController());
  unanswered = false;
  try {
    const { json, headers } = await ask("predict", { body, signal: mine.signal });
    const hits = json.results[0].hits;
    show(json.bundle, hits);
    showTiming(headers.get("Server-Timing"));
    say(byId("notice"), null);
    await compared(body, hits, mine.signal);
  } catch (trouble) {
    if (trouble.name === "AbortError") return;
    if (!(trouble instanceof Trouble)) throw trouble;
    failed(trouble, body);
  } finally {
    if (running === mine && !mine.signal.aborted) LISTS.forEach(fresh);
  }
}

const fresh = (list) => byId(list).classList.remove("outdated");

function show(bundle, hits) {
  showHits(byId("hits"), hits);
  fresh("hits"); // another bundle's may take long, if it has to be opened beside traffic
  write(byId("bundle-name"), `Bundle ${bundle}`);
  say(byId("empty"), hits.length ? null : "No label fits.");
  const best = hits.length ? `, the best is ${hits[0].text}` : "";
  write(byId("heard"), `${hits.length} answer${hits.length === 1 ? "" : "s"}${best}.`);
}

async function compared(body, hits, signal) {
  const bundle = keys.admin && byId("other").value;
  byId("second").hidden = !bundle;
  if (!bundle) return;
  write(byId("other-name"), `Bundle ${bundle}`);
  if (!byId("other-hits").children.length) say(byId("other-empty"), "Being opened beside the one that is served; where many ask, that can take a minute or more …");
  try {
    const { json } = await ask("admin/compare", { body: { bundle, ...body }, signal, admin: true });
    const others = json.results[0].hits;
    showHits(byId("other-hits"), others, hits);
    say(byId("other-empty"), others.length ? null : "No label fits.");
  } catch (trouble) {
    if (!(trouble instanceof Trouble)) throw trouble;
    byId("other-hits").replaceChildren();
    say(byId("other-empty"), trouble.message);
  }
}

function failed(trouble, body) {
  say(byId("notice"), sentence(trouble));
  if (![0, 429, 503].includes(trouble.status)) clearAnswers(); // they answer another question, and none will follow
  unanswered = trouble.code !== "bad_key" && [0, 503].includes(trouble.status);
  if (trouble.status === 429) waiting = setTimeout(() => askNow(body), Math.max(trouble.retryAfter, 1) * 1000);
}

function sentence(trouble) {
  if (trouble.status === 401) return keys.api ? "The service does not know this key." : "The service wants a key before it answers; type it under Keys.";
  return trouble.message;
}

function clearAnswers() {
  for (const id of LISTS) byId(id).replaceChildren();
  byId("second").hidden = byId("timing").hidden = true;
  write(byId("bundle-name"), "Answers");
  write(byId("heard"), "");
}

function clear() {
  unanswered = false;
  clearAnswers();
  say(byId("notice"), null);
  say(byId("empty"), "The best labels appear as you type, each with the two shares of its score.");
}
