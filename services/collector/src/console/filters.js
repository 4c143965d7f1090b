// Filters of a list as a form whose state is the address, so that it can be shared. Times are local in the form, UTC
// in the address.

import { h } from "./dom.js";
import { known, now } from "./fmt.js";
import { live } from "./live.js";
import { link, route } from "./ui.js";

/** What `range` stands for, in milliseconds. */
const RANGES = { "15m": 900_000, "1h": 3_600_000, "24h": 86_400_000, "7d": 604_800_000 };
const RANGE_OPTIONS = [
  ["", "Any time"],
  ["15m", "Last 15 minutes"],
  ["1h", "Last hour"],
  ["24h", "Last 24 hours"],
  ["7d", "Last 7 days"],
  ["own", "From … to …"],
];
/** Below this width the form is closed at first. */
const WIDE = "(min-width: 700px)";

/** The query of the API for an address: `range` becomes `since`. */
export function params(query, names) {
  const asked = {};
  for (const name of names) {
    if (name !== "range" && name !== "since" && name !== "until") asked[name] = query.get(name);
  }
  if (names.includes("range")) {
    const range = query.get("range");
    if (RANGES[range]) asked.since = String(Math.floor(now() - RANGES[range]));
    asked.since ??= query.get("since");
    asked.until = query.get("until");
  }
  return asked;
}

function local(text) {
  if (!text) return "";
  const date = /^\d+$/.test(text) ? new Date(Number(text)) : new Date(text);
  if (Number.isNaN(date.getTime())) return "";
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}

function utc(text) {
  const date = new Date(text);
  return text && !Number.isNaN(date.getTime()) ? date.toISOString() : "";
}

function input(field, query) {
  const shared = { id: `filter-${field.name}`, name: field.name, autocomplete: "off", spellcheck: "false" };
  const value = query.get(field.name) ?? "";
  if (field.options) {
    return h(
      "select",
      { ...shared, value },
      field.options.map(([of, text]) => h("option", { value: of }, text)),
    );
  }
  if (field.type === "datetime-local")
    return h("input", { ...shared, type: field.type, step: "1", value: local(value) });
  return h("input", { ...shared, type: "text", value, placeholder: field.hint ?? null, list: field.list ?? null });
}

function fields(given, query) {
  const own = query.get("range") === "own" || query.has("since") || query.has("until");
  return given.flatMap((field) => {
    if (field.name !== "range") return [field];
    const times = [
      { name: "since", label: "From", type: "datetime-local" },
      { name: "until", label: "To", type: "datetime-local" },
    ];
    return [{ ...field, options: RANGE_OPTIONS }, ...(own ? times : [])];
  });
}

function values(form) {
  const found = {};
  for (const el of form.elements) {
    if (el.name) found[el.name] = el.type === "datetime-local" ? utc(el.value) : el.value.trim();
  }
  if (found.range !== "own") {
    delete found.since;
    delete found.until;
  }
  return found;
}

/**
 * The form. `given`: `{ name, label, options, list, hint, wide }`; a `range` has times of its own. Selects act at
 * once.
 */
export function filterForm(path, given, query) {
  const shown = query.has("since") || query.has("until") ? new URLSearchParams([...query, ["range", "own"]]) : query;
  const active = [...new Set([...query.keys()].map((name) => (name === "until" ? "since" : name)))].length;
  const go = (form) => {
    location.hash = route(path, values(form)).slice(1);
  };
  const form = h(
    "form.filters",
    {
      role: "search",
      onsubmit: (event) => {
        event.preventDefault();
        go(event.currentTarget);
      },
      onchange: (event) => event.target.tagName === "SELECT" && go(event.currentTarget),
    },
    fields(given, shown).map((field) =>
      h(
        "div.field",
        { key: field.name, class: field.wide ? "wide" : "" },
        h("label", { for: `filter-${field.name}` }, field.label),
        input(field, shown),
      ),
    ),
    h(
      "div.buttons",
      { key: "buttons" },
      h("button.button.primary", { type: "submit" }, "Search"),
      active > 0 && link(route(path), "Clear", { class: "button" }),
    ),
    queueList(),
  );
  return h(
    "details.filter-box",
    { open: active > 0 || matchMedia(WIDE).matches },
    h("summary", {}, active ? `Filters (${active})` : "Filters"),
    form,
  );
}

/** The queues that are known, for who types one. */
function queueList() {
  return h(
    "datalist",
    { id: "known-queues", key: "queues" },
    (live.tick?.queues ?? []).map((row) => h("option", { value: row.queue })),
  );
}

/** Filters without empty ones, for the body of a request. */
export const compact = (filter) => Object.fromEntries(Object.entries(filter).filter(([, value]) => known(value)));
