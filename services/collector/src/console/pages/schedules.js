// Schedules: what is published again and again, and when next. They are kept at the server and written by the command
// line.

import { h } from "../dom.js";
import { known, now, num, span } from "../fmt.js";
import { whole } from "../list.js";
import { opener, table } from "../table.js";
import { badge, block, command, empty, facts, link, mono, route, when } from "../ui.js";

/** How often the page checks whether the time of a schedule has come. */
const DUE_MS = 2000;

function details(row) {
  return h(
    "div.details",
    {},
    facts(
      ["Made by", row.by],
      ["Since", when(row.since_ms)],
      ["Timeout of an attempt", known(row.timeout_ms) ? span(row.timeout_ms) : "of its kind"],
      ["Attempts at the most", known(row.attempts_max) ? num(row.attempts_max) : "of its kind"],
    ),
    h("h2", {}, "Arguments"),
    row.args_base64 !== undefined && h("p.muted", {}, "Not JSON; in base64."),
    block(`Arguments of ${row.name}`, row.args, {
      name: `${row.name}.json`,
      text: row.args_text ?? row.args_base64 ?? null,
    }),
    h("h2", {}, row.paused ? "Go on, or remove it" : "Pause or remove it"),
    command(`millpond schedule ${row.paused ? "resume" : "pause"} ${row.name}`),
    command(`millpond schedule rm ${row.name}`),
  );
}

function columns(open, toggle) {
  return [
    {
      label: "Schedule",
      rowHead: true,
      cell: (row) =>
        h(
          "span.with-opener",
          {},
          opener(open.has(row.name), `more of ${row.name}`, () => toggle(row.name)),
          mono(row.name),
        ),
    },
    { label: "State", cell: (row) => (row.paused ? badge("paused") : badge("live", "active")) },
    { label: "Next", cell: (row) => (row.paused ? h("span.muted", {}, "not while it is paused") : when(row.next_ms)) },
    {
      label: "When",
      cell: (row) => [
        mono(row.schedule),
        row.defect ? h("div", {}, row.defect) : null,
        (row.remarks ?? []).map((remark) => h("div.muted", {}, remark)),
      ],
    },
    {
      label: "Zone",
      cell: (row) => row.zone ?? (row.schedule.startsWith("@every") ? h("span.muted", {}, "–") : "UTC"),
    },
    {
      label: "Queue",
      cell: (row) => link(route("/tasks", { queue: row.queue, kind: row.kind }), row.queue, { class: "mono" }),
    },
    { label: "Kind", cell: (row) => mono(row.kind) },
  ];
}

export function schedulesPage(view) {
  const body = ({ rows, open, toggle }) =>
    rows.length
      ? table({
          caption: "Schedules",
          columns: columns(open, toggle),
          rows,
          key: (row) => row.name,
          more: (row) => (open.has(row.name) ? details(row) : null),
        })
      : empty(
          "There is no schedule",
          h("p", {}, "A schedule is a task that the server publishes again and again:"),
          command("millpond schedule add report square 12 --every 10s"),
        );
  const list = whole(view, { title: "Schedules", what: "the schedules", path: "/schedules", exact: true, body });
  // When the time of a schedule has come, the list is fetched for its next one.
  const due = () => list.rows?.some((row) => !row.paused && row.next_ms && row.next_ms < now()) && list.ask();
  list.ask();
  view.onChange(["schedules"], list.ask);
  view.every(DUE_MS, due);
}
