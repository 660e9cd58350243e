// The request of this moment as a program that asks the same.

import { keys } from "./api.js";
import { byId, write } from "./page.js";

/** Show both programs for a request to /predict. */
export function showPrograms(body) {
  const url = new URL("predict", document.baseURI).href;
  write(byId("curl"), asCurl(url, body));
  write(byId("python"), asPython(url, body));
}

export function asCurl(url, body) {
  const key = keys.api ? ' \\\n  -H "X-Api-Key: $DIPTYCH_PREDICT_KEY"' : "";
  return `curl -s ${quoted(url)} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${quoted(JSON.stringify(body))}`;
}

/** Quote a text for a POSIX shell. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function asPython(url, body) {
  const key = keys.api ? ', "X-Api-Key": os.environ["DIPTYCH_PREDICT_KEY"]' : "";
  return [
    `import json${keys.api ? ", os" : ""}`,
    "from urllib.request import Request, urlopen",
    "",
    `body = ${literal(body)}`,
    `headers = {"Content-Type": "application/json"${key}}`,
    `request = Request(${JSON.stringify(url)}, json.dumps(body).encode(), headers)`,
    "with urlopen(request) as response:",
    '    for hit in json.load(response)["results"][0]["hits"]:',
    '        print(f"{hit[\'score\']:.3f}  {hit[\'text\']}")',
  ].join("\n");
}

/** A value of JSON as Python writes it. */
function literal(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one)}`).join(", ")}}`;
}

/** Put a program into the clipboard; where the browser forbids that, mark it. */
export async function copy(id) {
  const source = byId(id);
  try {
    await navigator.clipboard.writeText(source.textContent);
    write(byId("copied"), "Copied.");
  } catch {
    getSelection().selectAllChildren(source);
    write(byId("copied"), "The browser does not let the page copy; the text is marked, so Ctrl-C does.");
  }
}
