// Workers and their children: what they do, what they use, and the way to let one go.

import { post } from "../api.js";
import { chart, spark } from "../charts.js";
import { askFor } from "../dialog.js";
import { h } from "../dom.js";
import { bytes, known, many, num, percent, span } from "../fmt.js";
import { whole } from "../list.js";
import { opener, table } from "../table.js";
import { act, badge, command, facts, lasting, link, mono, route, section, toast, when } from "../ui.js";

const total = (row, field) =>
  (row[field] ?? 0) + (row.children ?? []).reduce((sum, child) => sum + (child[field] ?? 0), 0);
const last = (row, field) => row.history?.[row.history.length - 1]?.[field] ?? total(row, field);
const series = (row, field) => (row.history ?? []).map((point) => point[field]);

function drain(row, done) {
  askFor({
    title: `Drain ${row.name}`,
    text: [
      `It takes nothing more, finishes what runs (${many(row.running, "task")}), and leaves. Nothing is lost.`,
      row.queues?.length ? `It serves ${row.queues.join(", ")}.` : "",
    ],
    ok: "Drain",
    danger: true,
    does: async () => {
      await post(`/workers/${encodeURIComponent(row.name)}/drain`);
      toast(`Worker ${row.name} drains`);
      done();
    },
  });
}

function meter(used, of) {
  const share = of ? Math.min(1, used / of) : 0;
  return h(
    "div.meter",
    {},
    h("span", {}, `${num(used)} / ${num(of)}`),
    h("span.meter-bar", { "aria-hidden": "true" }, h("span", { css: { width: `${share * 100}%` } })),
  );
}

function refusal(row) {
  if (row.state === "draining") return { refused: "it drains already" };
  return row.state === "lost" ? { refused: "it is lost: it cannot hear" } : {};
}

function columns(open, toggle, done) {
  return [
    {
      label: "Worker",
      rowHead: true,
      cell: (row) =>
        h(
          "span.with-opener",
          {},
          opener(open.has(row.name), `more of ${row.name}`, () => toggle(row.name)),
          mono(row.name),
        ),
    },
    {
      label: "State",
      cell: (row) => [badge(row.state), Object.keys(row.troubles ?? {}).length > 0 && badge("stalled", "trouble")],
    },
    { label: "Queues", cell: (row) => mono((row.queues ?? []).join(", ")) },
    { label: "Running", cell: (row) => meter(row.running, row.slots + (row.io_slots ?? 0)) },
    { label: "Held", num: true, cell: (row) => num(row.held) },
    { label: "Done", num: true, cell: (row) => num(row.done) },
    { label: "Failed", num: true, cell: (row) => num(row.failed) },
    {
      label: "CPU",
      cls: "sparked",
      cell: (row) =>
        h("span.with-spark", {}, spark(series(row, "cpu_percent"), percent, "CPU"), percent(last(row, "cpu_percent"))),
    },
    {
      label: "Memory",
      cls: "sparked",
      cell: (row) =>
        h("span.with-spark", {}, spark(series(row, "rss_bytes"), bytes, "Memory"), bytes(last(row, "rss_bytes"))),
    },
    { label: "Children", num: true, cell: (row) => num(row.children?.length ?? 0) },
    {
      label: "Actions",
      cls: "acts",
      cell: (row) =>
        act("Drain", () => drain(row, done), {
          class: "small",
          "aria-label": `Drain worker ${row.name}`,
          ...refusal(row),
        }),
    },
  ];
}

const childProgress = (child) =>
  known(child.progress)
    ? h(
        "div.progress",
        {},
        h(
          "div.bar",
          { role: "img", "aria-label": `${Math.round(child.progress * 100)} percent` },
          h("span.part-done", { css: { width: `${child.progress * 100}%` } }),
        ),
        h("p.bar-text", {}, percent(child.progress * 100)),
      )
    : null;

const CHILDREN = [
  { label: "Child", rowHead: true, cell: (child) => mono(child.name) },
  { label: "State", cell: (child) => badge(child.state) },
  { label: "Kind", cell: (child) => mono(child.kind) },
  {
    label: "Task",
    cls: "id wide",
    cell: (child) =>
      known(child.task)
        ? [
            link(route("/task", { id: child.task }), child.task, { class: "mono" }),
            child.note && h("span.note-line", {}, child.note),
          ]
        : "–",
  },
  { label: "For", num: true, cell: (child) => (known(child.task_ms) ? span(child.task_ms) : "–") },
  { label: "Progress", cell: (child) => childProgress(child) ?? "–" },
  { label: "CPU", num: true, cell: (child) => percent(child.cpu_percent) },
  { label: "Memory", num: true, cell: (child) => bytes(child.rss_bytes) },
  { label: "Done", num: true, cell: (child) => num(child.done) },
  {
    label: "Restarts",
    num: true,
    cell: (child) => (child.restarts ? h("b.amber-text", {}, num(child.restarts)) : "0"),
  },
  { label: "Process", num: true, cell: (child) => num(child.pid).replace(/,/g, "") },
  { label: "Started", cell: (child) => when(child.started_ms) },
];

function details(row) {
  const troubles = Object.entries(row.troubles ?? {});
  const rows = row.history ?? [];
  const kinds = Object.entries(row.by_kind ?? {}).map(
    ([kind, of]) => `${kind}: ${num(of.done)} done${of.failed ? `, ${num(of.failed)} failed` : ""}`,
  );
  return h(
    "div.details",
    {},
    troubles.map(([kind, why]) => h("p.warn", { key: kind }, h("b.mono", {}, kind), ` cannot start: ${why}`)),
    facts(
      ["Host", mono(row.host)],
      ["Process", String(row.pid)],
      ["Slots", `${num(row.slots)} that compute, ${num(row.io_slots)} that wait`],
      ["Up for", lasting(row.started_ms)],
      ["Last heard", when(row.heartbeat_ms)],
      ["Kinds", mono((row.kinds ?? []).join(", "))],
      ["By kind", kinds.length ? kinds.join(" · ") : null],
      ["Its tasks", link(route("/tasks", { worker: row.name }), "Tasks that ran here")],
    ),
    h(
      "div.charts.three",
      {},
      chart({
        title: "CPU",
        unit: "percent",
        rows,
        note: "of one core, with children",
        series: [{ name: "CPU", value: (point) => point.cpu_percent }],
      }),
      chart({
        title: "Memory",
        unit: "bytes",
        rows,
        note: "resident, with children",
        series: [{ name: "memory", value: (point) => point.rss_bytes }],
      }),
      chart({
        title: "Running",
        unit: "count",
        rows,
        note: "tasks",
        series: [{ name: "running", value: (point) => point.running }],
      }),
    ),
    row.children?.length
      ? table({
          caption: `Children of ${row.name}`,
          columns: CHILDREN,
          rows: row.children,
          key: (child) => child.name,
          cls: "inner",
        })
      : h(
          "p.muted",
          {},
          "It has no child processes now: kinds of its own run inside it, and others start with their first task.",
        ),
  );
}

function summary(rows) {
  const of = (state) => rows.filter((row) => row.state === state).length;
  const busy = rows.reduce((sum, row) => sum + (row.state === "lost" ? 0 : row.running), 0);
  return h(
    "p.muted.summary",
    {},
    [
      `${num(of("live"))} live`,
      of("draining") && `${num(of("draining"))} draining`,
      of("lost") && `${num(of("lost"))} lost`,
      `${many(busy, "task")} running`,
    ]
      .filter(Boolean)
      .join(" · "),
  );
}

export function workersPage(view) {
  const body = ({ rows, open, toggle, ask }) =>
    rows.length
      ? [
          summary(rows),
          table({
            caption: "Workers",
            columns: columns(open, toggle, ask),
            rows,
            key: (row) => row.name,
            more: (row) => (open.has(row.name) ? details(row) : null),
          }),
        ]
      : section(
          "No worker is here",
          {},
          h("p", {}, "Nothing runs until one joins. On this machine:"),
          command("millpond worker run --name w1"),
          h("p.muted", {}, "On another machine give it the address of NATS in MILLPOND_WORKER_NATS_URL."),
        );
  const list = whole(view, { title: "Workers", what: "the workers", path: "/workers", body });
  list.ask();
  view.onChange(["workers"], list.ask);
}
