// The store's bundles for who has the administrator's key: which is served, serve another one, go back.

import { ask, keys } from "./api.js";
import { byId, make, say, whole, write } from "./page.js";

const said = byId("admin-said");
let shown = "";
let changing = false;

/** List the bundles and what is open of them; nothing without a key. Returns whether the key is right. */
export async function listBundles(chosen) {
  byId("administration").hidden = !keys.admin;
  byId("compare-with").hidden = true;
  if (!keys.admin) return false;
  try {
    const { json } = await ask("admin/bundles", { admin: true });
    show(json, chosen);
    return true;
  } catch (trouble) {
    shown = "";
    byId("bundle-list").replaceChildren();
    byId("rollback").disabled = true;
    say(said, trouble.message);
    return false;
  }
}

function show(answer, chosen) {
  byId("compare-with").hidden = false;
  const now = JSON.stringify([answer.bundles, answer.generations.map(({ bundle, state }) => [bundle, state]), answer.preparing, changing]);
  if (now === shown) return; // else a focused button would vanish
  shown = now;
  const states = new Map(answer.generations.map((one) => [one.bundle, one.state]));
  if (answer.preparing) states.set(answer.preparing, "being prepared");
  const newestFirst = [...answer.bundles].reverse();
  byId("bundle-list").replaceChildren(...newestFirst.map((one) => item(one, states.get(one.name), chosen)));
  byId("rollback").disabled = changing;
  byId("rollback").onclick = () => change("Go back to the bundle that was active before?", "admin/rollback", {}, chosen);
  offer(newestFirst.filter((one) => states.get(one.name) !== "serving" && one.labels !== null));
}

function item(bundle, state, chosen) {
  const facts = [state, bundle.labels !== null && `${whole.format(bundle.labels)} labels`, bundle.trouble].filter(Boolean);
  const line = make("li", "", make("span", "name", bundle.name), make("span", "about", facts.join(" · ")));
  if (state === "serving") return line;
  const button = make("button", "quiet", "Activate");
  button.type = "button";
  button.disabled = changing;
  button.setAttribute("aria-label", `Activate ${bundle.name}`);
  button.onclick = () => change(`Serve bundle ${bundle.name} from now on?`, "admin/activate", { bundle: bundle.name }, chosen);
  line.append(button);
  return line;
}

/** Offer bundles for comparison, and keep what is chosen if it can be. */
function offer(bundles) {
  const select = byId("other");
  const before = select.value;
  const options = [["", "nothing"], ...bundles.map(({ name }) => [name, name])].map(([value, text]) => {
    const option = make("option", "", text);
    option.value = value;
    return option;
  });
  select.replaceChildren(...options);
  if (bundles.some(({ name }) => name === before)) select.value = before;
  else if (before) select.dispatchEvent(new Event("change", { bubbles: true }));
}

async function change(question, path, body, chosen) {
  if (!(await sure(question))) return;
  changing = true;
  say(said, "The bundle is being prepared; the present one answers until it is ready.");
  await listBundles(chosen);
  try {
    const { json } = await ask(path, { body, admin: true });
    say(said, `Bundle ${json.bundle} is served, after ${json.seconds} s.`);
    chosen(json.bundle);
  } catch (trouble) {
    say(said, trouble.message);
  } finally {
    changing = false;
    shown = "";
    if (!(await listBundles(chosen))) byId("admin-key").focus();
  }
}

function sure(question) {
  const dialog = byId("sure");
  write(byId("sure-question"), question);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((answer) => dialog.addEventListener("close", () => answer(dialog.returnValue === "yes"), { once: true }));
}
