// The collector's HTTP API: one way to send a request, one kind of error. The session is a cookie; nothing is kept in storage.

import { withTexts } from "./json_text.js";

/** An answer may take this long. */
const ANSWER_MS_MAX = 120_000;

/** The session of this browser; `role` is null while nobody is logged in. */
export const session = { role: null, expires_ms: null, kibana_url: null };

/** An answer of the collector that is an error; `status` is 0 when the collector cannot be reached. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let ended = () => {};

/** `then` runs whenever an answer shows that the session has ended. */
export function onSessionEnd(then) {
  ended = then;
}

/** The address of a path of the API with a query. Empty values are left out. */
export function address(path, params = {}) {
  const url = new URL(`../api/v1${path}`, document.baseURI);
  for (const [name, value] of Object.entries(params)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url.pathname + url.search;
}

/** An object with these fields added, whose values are JSON that stays the text that it is. */
function withFields(object, texts) {
  const more = Object.entries(texts).map(([name, text]) => `${JSON.stringify(name)}:${text}`);
  if (more.length === 0) return object;
  const fields = object === "{}" ? more : [object.slice(1, -1), ...more];
  return `{${fields.join(",")}}`;
}

async function read(response, exact) {
  const text = await response.text();
  try {
    return text === "" ? null : JSON.parse(exact ? withTexts(text) : text);
  } catch {
    return response.ok ? null : { error: text.slice(0, 500) };
  }
}

async function ask(method, path, { params, body, texts, signal, exact } = {}) {
  const timeout = AbortSignal.timeout(ANSWER_MS_MAX);
  const options = {
    method,
    credentials: "same-origin",
    cache: "no-store",
    headers: { Accept: "application/json" },
    signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
  };
  if (method === "POST") {
    options.headers["X-Millpond"] = "console";
    options.headers["Content-Type"] = "application/json";
    options.body = withFields(JSON.stringify(body ?? {}), texts ?? {});
  }
  let response;
  let answer;
  try {
    response = await fetch(address(path, params), options);
    answer = await read(response, exact);
  } catch (fault) {
    if (signal?.aborted) throw fault;
    throw new ApiError(
      0,
      "the collector cannot be reached; this page tries again by itself, `millpond doctor` tells what is wrong",
    );
  }
  if (response.ok) return answer;
  if (response.status === 401 && path !== "/login") ended();
  throw new ApiError(response.status, answer?.error ?? `the collector answered ${response.status}`);
}

/** Reads. `exact` keeps what users gave as the text that it is: `{ text }`. */
export const get = (path, params, options = {}) => ask("GET", path, { params, ...options });

/** Changes something. `texts` are fields of the body whose values are JSON as somebody typed it. */
export const post = (path, body, options = {}) => ask("POST", path, { body, ...options });

/** Fetches the session; false when nobody is logged in. */
export async function loadSession() {
  try {
    Object.assign(session, await get("/session"));
    return true;
  } catch (fault) {
    if (fault.status === 401) return false;
    throw fault;
  }
}

/** Whether a fault is only the end of a page that was left. */
export const isAbort = (fault) => fault?.name === "AbortError";

/** Why this session may not act; null when it may. */
export const mayNotAct = () =>
  session.role === "operator" ? null : "this session only reads: log in with the operator token to act";
