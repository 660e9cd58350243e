// What the page asks of the service, and every way that can go wrong as one sentence.

export const keys = { api: "", admin: "" }; // typed by the person, kept here alone
const refusals = new Map(); // kind of key → the key that was refused with 401, and the error

/** Something that kept an answer from coming: a sentence, the status (0: none), and seconds until it is worth asking again. */
export class Trouble extends Error {
  constructor(sentence, status, code, retryAfter) {
    super(sentence);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** The answer to a request, {json, headers}. Throws Trouble, and AbortError when `signal` says that nobody waits. */
export async function ask(path, { body, signal, admin = false } = {}) {
  const kind = admin ? "admin" : "api";
  const refused = refusals.get(kind);
  if (refused && refused.key === keys[kind]) throw refused.trouble; // sending it again would count as another guess
  const key = keys[kind];
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (admin) headers["X-Admin-Key"] = header(keys.admin);
  else if (keys.api) headers["X-Api-Key"] = header(keys.api);
  const response = await sent(path, { method: body ? "POST" : "GET", body: body && JSON.stringify(body), headers, signal });
  if (response.ok) return { json: await response.json(), headers: response.headers };
  const { error } = await response.json().catch(() => ({}));
  const sentence = error?.message ?? `The service answered ${response.status} without saying why.`;
  const trouble = new Trouble(sentence, response.status, error?.code, Number(response.headers.get("Retry-After")) || 0);
  if (key && response.status === 401) refusals.set(kind, { key, trouble });
  throw trouble;
}

/** Forget refused keys, so that they are sent again. */
export const forgetRefusals = () => refusals.clear();

/** Whether the service answers requests: {ready, bundle, detail}; it says so with 200 and with 503. */
export async function readiness() {
  return (await sent("readyz")).json();
}

/** The service's figures as Prometheus reads them. */
export async function figures() {
  const response = await sent("metrics");
  return response.ok ? response.text() : "";
}

async function sent(path, options) {
  try {
    return await fetch(path, { cache: "no-store", credentials: "omit", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The service cannot be reached; the page goes on trying.", 0, "unreachable", 0);
  }
}

function header(key) {
  if (/^[\x20-\x7e]*$/.test(key)) return key;
  throw new Trouble("A key has a character that cannot be sent; type it anew.", 0, "bad_key", 0);
}
