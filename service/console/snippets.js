// The current request as code that sends the same request.

import { keys } from "./api.js";
import { byId, setText } from "./dom.js";

/** Show the curl command and the Python program for a request to /predict. */
export function showSnippets(body) {
  const url = new URL("predict", document.baseURI).href;
  setText(byId("curl"), asCurl(url, body));
  setText(byId("python"), asPython(url, body));
}

export function asCurl(url, body) {
  const key = keys.api ? ' \\\n  -H "X-Api-Key: $DIPTYCH_PREDICT_KEY"' : "";
  return `curl -s ${shellQuote(url)} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${shellQuote(JSON.stringify(body))}`;
}

/** Quote a text for a POSIX shell. */
const shellQuote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function asPython(url, body) {
  const key = keys.api ? ', "X-Api-Key": os.environ["DIPTYCH_PREDICT_KEY"]' : "";
  return [
    `import json${keys.api ? ", os" : ""}`,
    "from urllib.request import Request, urlopen",
    "",
    `body = ${pythonLiteral(body)}`,
    `headers = {"Content-Type": "application/json"${key}}`,
    `request = Request(${JSON.stringify(url)}, json.dumps(body).encode(), headers)`,
    "with urlopen(request) as response:",
    '    for hit in json.load(response)["results"][0]["hits"]:',
    '        print(f"{hit[\'score\']:.3f}  {hit[\'text\']}")',
  ].join("\n");
}

/** Format a JSON value as Python code. */
function pythonLiteral(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(pythonLiteral).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${pythonLiteral(item)}`).join(", ")}}`;
}

/** Copy a snippet to the clipboard; if the browser forbids that, select it. */
export async function copy(id) {
  const source = byId(id);
  try {
    await navigator.clipboard.writeText(source.textContent);
    setText(byId("copied"), "Copied.");
  } catch {
    getSelection().selectAllChildren(source);
    setText(byId("copied"), "The browser does not allow copying. The text is selected; press Ctrl-C.");
  }
}
