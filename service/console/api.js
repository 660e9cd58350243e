// Requests to the service. Every failure becomes a RequestError with a message for the user.

export const keys = { api: "", admin: "" }; // typed by the user, kept only in this variable
const rejected = new Map(); // kind of key → the key that was rejected with 401, and the error

/** A failed request: message, status (0: no response), error code, and seconds until a retry makes sense. */
export class RequestError extends Error {
  constructor(message, status, code, retryAfter) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** Send a request and return {json, headers}. Throws RequestError, or AbortError if `signal` aborts. */
export async function request(path, { body, signal, admin = false } = {}) {
  const kind = admin ? "admin" : "api";
  const previous = rejected.get(kind);
  if (previous && previous.key === keys[kind]) throw previous.error; // sending it again would count as another guess
  const key = keys[kind];
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (admin) headers["X-Admin-Key"] = headerValue(keys.admin);
  else if (keys.api) headers["X-Api-Key"] = headerValue(keys.api);
  const response = await send(path, { method: body ? "POST" : "GET", body: body && JSON.stringify(body), headers, signal });
  if (response.ok) return { json: await response.json(), headers: response.headers };
  const { error: details } = await response.json().catch(() => ({}));
  const message = details?.message ?? `The service answered ${response.status} without a message.`;
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  const error = new RequestError(message, response.status, details?.code, retryAfter);
  if (key && response.status === 401) rejected.set(kind, { key, error });
  throw error;
}

/** Forget rejected keys, so that they are sent again. */
export const forgetRejectedKeys = () => rejected.clear();

/** Return whether the service answers requests: {ready, bundle, detail}, from a response with 200 or 503. */
export async function readiness() {
  return (await send("readyz")).json();
}

/** Return the service's metrics in Prometheus format. */
export async function metrics() {
  const response = await send("metrics");
  return response.ok ? response.text() : "";
}

async function send(path, options) {
  try {
    return await fetch(path, { cache: "no-store", credentials: "omit", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("The service cannot be reached. The page keeps trying.", 0, "unreachable", 0);
  }
}

function headerValue(key) {
  if (/^[\x20-\x7e]*$/.test(key)) return key;
  throw new RequestError("The key contains a character that cannot be sent. Type it again.", 0, "bad_key", 0);
}
