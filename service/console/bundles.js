// The store's bundles, for administrators: which one is served, activate another one, roll back.

import { keys, request } from "./api.js";
import { byId, integer, make, setText, showMessage } from "./dom.js";

const message = byId("admin-message");
let shown = ""; // the shown state as JSON
let changing = false;

/** Show the bundles and their states, or nothing without a key. Return whether the key is accepted. */
export async function listBundles(onChange) {
  byId("administration").hidden = !keys.admin;
  byId("compare-with").hidden = true;
  if (!keys.admin) return false;
  try {
    const { json } = await request("admin/bundles", { admin: true });
    show(json, onChange);
    return true;
  } catch (error) {
    shown = "";
    byId("bundle-list").replaceChildren();
    byId("rollback").disabled = true;
    showMessage(message, error.message);
    return false;
  }
}

function show(answer, onChange) {
  byId("compare-with").hidden = false;
  const generations = answer.generations.map(({ bundle, state }) => [bundle, state]);
  const state = JSON.stringify([answer.bundles, generations, answer.preparing, changing]);
  if (state === shown) return; // redrawing would remove the focus from a button
  shown = state;
  const states = new Map(generations);
  if (answer.preparing) states.set(answer.preparing, "being prepared");
  const newestFirst = [...answer.bundles].reverse();
  byId("bundle-list").replaceChildren(...newestFirst.map((bundle) => listItem(bundle, states.get(bundle.name), onChange)));
  byId("rollback").disabled = changing;
  byId("rollback").onclick = () =>
    change({ question: "Roll back to the previous bundle?", action: "Roll back", path: "admin/rollback", body: {} }, onChange);
  showComparable(newestFirst.filter((bundle) => states.get(bundle.name) !== "serving" && bundle.labels !== null));
}

function listItem(bundle, state, onChange) {
  const facts = [state, bundle.labels !== null && `${integer.format(bundle.labels)} labels`, bundle.trouble].filter(Boolean);
  const item = make("li", "", make("span", "name", bundle.name), make("span", "details", facts.join(" · ")));
  if (state === "serving") return item;
  const button = make("button", "quiet", "Activate");
  button.type = "button";
  button.disabled = changing;
  button.setAttribute("aria-label", `Activate ${bundle.name}`);
  const activation = { question: `Activate ${bundle.name}?`, action: "Activate", path: "admin/activate", body: { bundle: bundle.name } };
  button.onclick = () => change(activation, onChange);
  item.append(button);
  return item;
}

/** Offer bundles for comparison, and keep the selected one if it is still available. */
function showComparable(bundles) {
  const select = byId("other");
  const selected = select.value;
  const options = [["", "none"], ...bundles.map(({ name }) => [name, name])].map(([value, text]) => {
    const option = make("option", "", text);
    option.value = value;
    return option;
  });
  select.replaceChildren(...options);
  if (bundles.some(({ name }) => name === selected)) select.value = selected;
  else if (selected) select.dispatchEvent(new Event("change", { bubbles: true }));
}

async function change({ question, action, path, body }, onChange) {
  if (!(await confirmed(question, action))) return;
  changing = true;
  showMessage(message, "Preparing the bundle. The current one keeps answering until it is ready.");
  await listBundles(onChange);
  try {
    const { json } = await request(path, { body, admin: true });
    showMessage(message, `Bundle ${json.bundle} is served, after ${json.seconds} s.`);
    onChange(json.bundle);
  } catch (error) {
    showMessage(message, error.message);
  } finally {
    changing = false;
    shown = "";
    if (!(await listBundles(onChange))) byId("admin-key").focus();
  }
}

function confirmed(question, action) {
  const dialog = byId("confirm");
  setText(byId("confirm-question"), question);
  setText(byId("confirm-yes"), action);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}
