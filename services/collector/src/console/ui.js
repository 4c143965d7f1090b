// Small parts that all pages use: links, times, badges, buttons that act, states of a list, facts, text and JSON
// blocks.

import { mayNotAct } from "./api.js";
import { draw, h, widget } from "./dom.js";
import { bytes, exact, known, now, num, relative, span } from "./fmt.js";
import { pretty } from "./json_text.js";

/** JSON of up to this many characters is shown at once. */
const SHOWN_CHARS_MAX = 20_000;
/** Toasts stay this long. */
const TOAST_MS = 6000;
const ALERT_MS = 15_000;

/** A hash route: `route("/tasks", { job: "j1" })`. Empty values are left out. */
export function route(path, params = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) if (known(value) && value !== false) query.set(name, value);
  const text = query.toString();
  return `#${path}${text ? `?${text}` : ""}`;
}

export const jobRoute = (job) => `#/jobs/${encodeURIComponent(job)}`;
export const link = (href, text, props = {}) => h("a", { href, ...props }, text);
export const mono = (text) => (known(text) ? h("span.mono", {}, text) : "–");
export const taskLink = (row) => link(route("/task", { id: row.id, queue: row.queue, kind: row.kind }), row.id, { class: "mono" });
export const jobLink = (job) => (known(job) ? link(jobRoute(job), job, { class: "mono" }) : "–");

/** A moment, counted along each second; its exact time on hover. */
export function when(ms, missing = "–") {
  if (!known(ms)) return missing;
  const at = new Date(ms);
  if (Number.isNaN(at.getTime())) return missing;
  return h("time", { datetime: at.toISOString(), title: exact(ms), "data-ms": ms }, relative(ms));
}

/** For how long something lasts since a moment, counted along. */
export function lasting(ms, missing = "–") {
  if (!known(ms)) return missing;
  return h(
    "time",
    { datetime: new Date(ms).toISOString(), title: `since ${exact(ms)}`, "data-ms": ms, "data-lasting": true },
    lastingText(ms),
  );
}

const lastingText = (ms) => span(Math.max(0, Math.floor((now() - ms) / 1000) * 1000));

/** Counts all shown moments along; called once a second. */
export function countTimes() {
  for (const el of document.querySelectorAll("time[data-ms]")) {
    const ms = Number(el.dataset.ms);
    const text = "lasting" in el.dataset ? lastingText(ms) : relative(ms);
    if (el.firstChild?.data !== text) el.firstChild.data = text;
  }
}

const SIGNS = {
  done: "✓",
  finished: "✓",
  live: "●",
  dead: "✕",
  failed: "✕",
  lost: "✕",
  retrying: "↻",
  cancelled: "⊘",
  partial: "◐",
  partly_done: "◐",
  released: "↩",
  running: "▶",
  busy: "▶",
  open: "▶",
  closed: "◑",
  session: "◌",
  stalled: "!",
  paused: "‖",
  draining: "⤓",
  idle: "○",
  starting: "…",
  stopping: "⤓",
  waiting: "…",
  scheduled: "◷",
  no_worker: "!",
  unknown: "?",
};

/** A state, with a sign of its own beside its colour. */
export function badge(state, text = state) {
  const name = String(state ?? "unknown");
  return h(
    "span.badge",
    { class: `is-${name.replace(/[^a-z_]/g, "-")}` },
    h("span", { "aria-hidden": "true" }, SIGNS[name] ?? "·"),
    text ?? "unknown",
  );
}

/** A button that changes something: for a viewer it stays reachable, and shows why it does nothing. */
export function act(label, does, props = {}) {
  const { refused = null, class: cls, ...others } = props;
  const why = refused ?? mayNotAct();
  return h(
    "button",
    {
      type: "button",
      ...others,
      class: `button ${cls ?? ""}`,
      "aria-disabled": why ? "true" : null,
      title: why ?? others.title,
      "aria-description": why,
      onclick: (event) => (why ? toast(why) : does(event)),
    },
    label,
  );
}

export const button = (label, does, props = {}) =>
  h("button", { type: "button", ...props, class: `button ${props.class ?? ""}`, onclick: does }, label);

function show(holder, kind, text, ms) {
  const note = h(
    "div.toast",
    { class: kind },
    h("p", {}, text),
    h("button", { type: "button", "aria-label": "Dismiss", onclick: () => note.remove() }, "✕"),
  );
  document.getElementById(holder).append(note);
  setTimeout(() => note.remove(), ms);
}

/** Shows a short message. */
export const toast = (text) => show("toasts", "good", text, TOAST_MS);

/** Shows that something failed. */
export const alarm = (text) => show("alerts", "bad", text, ALERT_MS);

/** Runs an action of the user and shows how it ended. */
export async function attempt(does, said) {
  try {
    const answer = await does();
    toast(typeof said === "function" ? said(answer) : said);
    return answer;
  } catch (fault) {
    alarm(fault.message);
    return null;
  }
}

/** Nothing to show: why, and what to do. */
export const empty = (title, ...more) =>
  h(
    "div.state",
    {},
    h("p.state-title", {}, title),
    ...more.map((one) => (one instanceof Node ? one : h("p", {}, one))),
  );

export const loading = (what) =>
  h("div.state", { "aria-busy": "true" }, h("span.spinner", { "aria-hidden": "true" }), h("p", {}, `Loading ${what}…`));

export const failed = (fault, again) =>
  h(
    "div.state.bad",
    { role: "alert" },
    h("p.state-title", {}, fault.status === 404 ? "Not found" : "That did not work"),
    h("p", {}, fault.message),
    again && h("p", {}, button("Try again", again)),
  );

/** A command to copy. */
export const command = (text) => h("p.command", {}, h("code", {}, text), copyButton(text));

export function copyButton(text, label = "Copy") {
  return h(
    "button.button.small",
    {
      type: "button",
      onclick: async () => {
        try {
          await navigator.clipboard.writeText(text);
          toast("Copied");
        } catch {
          alarm("the browser does not let this page copy; select the text and copy it by hand");
        }
      },
    },
    label,
  );
}

/** Names and values (and a class); an unknown value is left out. */
export function facts(...rows) {
  const shown = rows.filter((row) => row && known(row[1]));
  return h(
    "dl.facts",
    {},
    shown.map(([name, value, cls]) => h("div", { class: cls }, h("dt", {}, name), h("dd", {}, value))),
  );
}

function makeBlock(el) {
  let before = null;
  return ({ label, whole, name }) => {
    // The same text again: what was opened stays open.
    if (before === whole) return;
    before = whole;
    const cut = whole.length > SHOWN_CHARS_MAX;
    const shown = (text, ...tools) =>
      draw(
        el,
        h(
          "div.block-bar",
          {},
          h("span.muted", {}, bytes(new Blob([whole]).size)),
          ...tools,
          copyButton(whole),
          button("Save", () => save(whole, name), { class: "small" }),
        ),
        h("pre", { tabindex: "0", role: "group", "aria-label": label }, text),
      );
    if (cut)
      shown(
        `${whole.slice(0, SHOWN_CHARS_MAX)}…`,
        button("Show all", () => shown(whole), { class: "small" }),
      );
    else shown(whole);
  };
}

/** JSON or text, with what is needed to take it along. A large one is cut until asked for. */
export function block(label, value, { name = "value.json", text = null } = {}) {
  const given = value?.text !== undefined && pretty(value.text);
  return widget("div.block", {}, makeBlock, { label, name, whole: text ?? (given || (JSON.stringify(value, null, 2) ?? "null")) });
}

function save(text, name) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/octet-stream" }));
  const a = document.createElement("a");
  a.href = url;
  a.download = name.replace(/[^\w.-]+/g, "_");
  a.click();
  URL.revokeObjectURL(url);
}

/** Where a large payload lies, and how to get it. */
export function elsewhere(what, ref, how) {
  return h(
    "div.note",
    {},
    h("p", {}, `${what} of ${bytes(ref.size)}: kept in the store of payloads for seven days.`),
    command(how),
    facts(["Object", mono(ref.object)], ["SHA-256", mono(ref.sha256)]),
  );
}

/** Arguments or a result, in whatever form the collector has them. */
export function payload(row, { label, value, how, name }) {
  if (row.ref && !known(row[value])) return elsewhere(label, row.ref, how);
  if (value === "result" && row.result_is_bytes) {
    const base64 = JSON.parse(row.result.text).base64;
    return h("div", {}, h("p.muted", {}, "Bytes that are not JSON; in base64."), block(label, null, { text: base64, name }));
  }
  if (value in row && row[value] !== undefined) {
    const refs =
      row.refs &&
      h("p.muted", {}, `${num(Object.keys(row.refs).length)} large ones of this batch lie in the store of payloads.`);
    return h("div", {}, block(label, row[value], { name }), refs);
  }
  const text = value === "result" ? row.result_text : row.payload_text;
  if (known(text)) {
    return h(
      "div",
      {},
      h("p.muted", {}, "Not JSON that every program can read; shown as it came."),
      block(label, null, { text, name }),
    );
  }
  if (known(row.payload_base64)) {
    return h(
      "div",
      {},
      h("p.muted", {}, "Not JSON; in base64."),
      block(label, null, { text: row.payload_base64, name }),
    );
  }
  return null;
}

/** A sentence of the collector: what stands between backticks is a command. */
export const sentence = (text) =>
  String(text)
    .split("`")
    .map((part, i) => (i % 2 ? h("code.said", {}, part) : part));

/** A heading of a page, with what can be done on its right. */
export const head = (title, ...actions) => h("div.head", {}, h("h1", {}, title), h("div.actions", {}, ...actions));

/** A part of a page under a heading of its own. */
export const section = (title, props, ...children) => h("section.panel", props, h("h2", {}, title), ...children);
