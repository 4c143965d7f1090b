// Dead letters: what failed for good and waits for a person. Filter, select, run again or throw away.

import { address, mayNotAct } from "../api.js";
import { h } from "../dom.js";
import { compact, filterForm, params } from "../filters.js";
import { many, num } from "../fmt.js";
import { actOn, actOnAll } from "../dead_letters.js";
import { List } from "../list.js";
import { table } from "../table.js";
import { act, badge, button, empty, head, jobLink, link, mono, route, when } from "../ui.js";

const REASONS = [
  "exhausted",
  "fatal",
  "expired",
  "unknown_kind",
  "kills_workers",
  "bad_header",
  "bad_batch",
  "bad_subject",
  "bad_queue",
  "bad_schedule",
  "unique_key_taken",
  "id_taken",
  "undecodable",
  "unsigned",
  "bad_signature",
  "needs_pipe",
  "missing_payload",
  "damaged_payload",
];
const NAMES = ["queue", "kind", "job", "reason", "worker", "error", "range"];
const FIELDS = [
  { name: "queue", label: "Queue", list: "known-queues" },
  { name: "kind", label: "Kind" },
  { name: "job", label: "Job" },
  { name: "reason", label: "Reason", options: [["", "All"], ...REASONS.map((reason) => [reason, reason])] },
  { name: "worker", label: "Worker" },
  { name: "range", label: "Dead-lettered" },
  { name: "error", label: "Text in error", hint: "in type or message", wide: true },
];
const keyOf = (row) => JSON.stringify([row.queue, row.kind, row.id, row.attempt]);

function columns(chosen, rows, changed) {
  const all = rows.length > 0 && rows.every((row) => chosen.has(keyOf(row)));
  const pick = (row) =>
    h("input", {
      type: "checkbox",
      checked: chosen.has(keyOf(row)),
      "aria-label": `Select ${row.id}`,
      onchange: (event) => {
        if (event.currentTarget.checked) chosen.add(keyOf(row));
        else chosen.delete(keyOf(row));
        changed();
      },
    });
  const pickAll = h("input", {
    type: "checkbox",
    checked: all,
    indeterminate: chosen.size > 0 && !all,
    "aria-label": "Select all shown",
    onchange: (event) => {
      rows.forEach((row) => (event.currentTarget.checked ? chosen.add(keyOf(row)) : chosen.delete(keyOf(row))));
      changed();
    },
  });
  return [
    { label: "Select", cls: "pick", head: pickAll, cell: pick },
    {
      label: "Task",
      rowHead: true,
      main: true,
      cls: "id",
      cell: (row) => link(route("/dead_letter", { id: row.id, queue: row.queue, kind: row.kind }), row.id, { class: "mono" }),
    },
    { label: "Reason", cell: (row) => badge("dead", row.reason) },
    {
      label: "Failure",
      cls: "wide",
      cell: (row) =>
        h(
          "span.clip",
          { title: row.failure?.message ?? null },
          h("b.mono", {}, row.failure?.type ?? "–"),
          " ",
          row.failure?.message ?? "",
        ),
    },
    { label: "Queue", cell: (row) => mono(row.queue) },
    { label: "Kind", cell: (row) => mono(row.kind) },
    { label: "Job", cls: "id", cell: (row) => jobLink(row.job) },
    { label: "Attempt", num: true, cell: (row) => num(row.attempt) },
    { label: "Worker", cell: (row) => mono(row.worker) },
    { label: "Dead-lettered", cell: (row) => when(row.dead_lettered_ms) },
  ];
}

/** What can be done: with those that are selected, else with all that fit. */
function tools(view, list, chosen, changed) {
  const done = () => list.window();
  const selected = () => list.rows.filter((row) => chosen.has(keyOf(row)));
  const filter = () => compact(params(view.query, NAMES));
  const what = view.query.size > 0 ? "all that fit" : "all";
  const clear = () => {
    chosen.clear();
    changed();
  };
  const some = [
    h("b", {}, `${many(chosen.size, "dead letter")} selected`),
    act("Retry selected", () => actOn("retry", selected(), done), { class: "primary" }),
    act("Purge selected", () => actOn("purge", selected(), done), { class: "danger-text" }),
    button("Select none", clear, { class: "plain" }),
  ];
  const all = [
    act(`Retry ${what}…`, () => actOnAll("retry", filter(), done)),
    act(`Purge ${what}…`, () => actOnAll("purge", filter(), done), { class: "danger-text" }),
  ];
  return h(
    "div.toolbar.sticky",
    { class: chosen.size ? "active" : "" },
    chosen.size ? some : all,
    mayNotAct() && h("span.muted", {}, "This session only reads: log in with the operator token to act."),
  );
}

function none(filtered) {
  if (filtered) return empty("No dead letter fits", h("p", {}, link("#/dead", "Show all dead letters")));
  return empty(
    "No dead letters",
    "Nothing has failed for good. What does waits here with its evidence, to be run again or thrown away.",
  );
}

export function deadPage(view) {
  const chosen = new Set();
  const list = new List(view, {
    path: "/dead",
    params: params(view.query, NAMES),
    what: "dead letters",
    changed: () => render(),
  });
  const shown = (rows) => {
    const here = new Set(rows.map(keyOf));
    for (const key of chosen) if (!here.has(key)) chosen.delete(key);
    return [
      tools(view, list, chosen, () => render()),
      table({
        caption: "Dead letters, newest first",
        columns: columns(chosen, rows, () => render()),
        rows,
        key: keyOf,
        cls: "picks",
      }),
    ];
  };
  const render = () =>
    view.draw(
      head(
        "Dead letters",
        link(address("/dead.ndjson", params(view.query, NAMES)), "Download", {
          class: "button",
          download: "dead.ndjson",
          title: "all rows that fit, one JSON object a line",
        }),
        list.holdButton(),
      ),
      filterForm("/dead", FIELDS, view.query),
      list.draw(shown, () => none(view.query.size > 0)),
    );
  view.title("Dead letters");
  render();
  list.window();
  view.onChange(["dead"], () => list.refresh());
  return {
    onQuery: (query) => {
      chosen.clear();
      list.reset(params(query, NAMES));
      render();
      list.window();
    },
  };
}
