// The queues: what waits in them, and pause, resume, purge and the limit of each.

import { post } from "../api.js";
import { askFor } from "../dialog.js";
import { h } from "../dom.js";
import { many, num, readSpan, span } from "../fmt.js";
import { whole } from "../list.js";
import { live } from "../live.js";
import { table } from "../table.js";
import { act, badge, command, empty, link, route, toast, when } from "../ui.js";

const PAUSES = [
  ["", "until it is resumed"],
  ["10m", "for 10 minutes"],
  ["1h", "for 1 hour"],
  ["8h", "for 8 hours"],
  ["own", "for another time…"],
];
/** A pause that lasts longer has no end that anybody chose, in milliseconds: ten years. */
const FOR_EVER_MS = 10 * 365 * 24 * 3_600_000;
const at = (queue, verb) => `/queues/${encodeURIComponent(queue)}/${verb}`;

function pause(queue, done) {
  askFor({
    title: `Pause ${queue}`,
    text: ["Workers take nothing more from it. What runs goes on, and publishers may go on publishing."],
    fields: [
      { name: "time", label: "Pause it", type: "select", options: PAUSES },
      { name: "own", label: "Another time", hint: "such as 30s, 45m or 2h; used when “for another time” is chosen" },
    ],
    check: ({ time, own }) => (time === "own" && !readSpan(own) ? "Give a time such as 30s, 45m or 2h." : null),
    ok: "Pause",
    does: async ({ time, own }) => {
      const text = time === "own" ? own : time;
      await post(at(queue, "pause"), text ? { for_ms: readSpan(text) } : {});
      toast(`Queue ${queue} is paused${text ? ` for ${span(readSpan(text))}` : ""}`);
      done();
    },
  });
}

function resume(queue, done) {
  askFor({
    title: `Resume ${queue}`,
    text: ["Workers take from it again at once."],
    ok: "Resume",
    does: async () => {
      await post(at(queue, "resume"));
      toast(`Queue ${queue} goes on`);
      done();
    },
  });
}

function limit(row, done) {
  askFor({
    title: `Limit of ${row.queue}`,
    text: [
      "Publishers wait while this many tasks are in the queue, those that workers hold included. Retries and delayed tasks do not count.",
    ],
    fields: [
      {
        name: "max",
        label: "Tasks at the most",
        inputmode: "numeric",
        value: row.max_waiting ?? "",
        hint: "a whole number from 1; empty for no limit",
      },
    ],
    check: ({ max }) =>
      max === "" || /^[1-9]\d*$/.test(max) ? null : "Give a whole number from 1, or nothing for no limit.",
    ok: "Set the limit",
    does: async ({ max }) => {
      await post(at(row.queue, "set"), { max_waiting: max === "" ? null : Number(max) });
      toast(
        max === ""
          ? `Queue ${row.queue} has no limit`
          : `Queue ${row.queue} takes ${many(Number(max), "task")} at the most`,
      );
      done();
    },
  });
}

function purge(row, done) {
  const all = (row.waiting ?? 0) + (row.scheduled ?? 0);
  askFor({
    title: `Purge ${row.queue}`,
    danger: true,
    typed: row.queue,
    text: [
      h(
        "p",
        {},
        h("b", {}, `${many(all, "task that waits is", "tasks that wait are")} removed for good`),
        `: ${num(row.waiting)} now in the queue and ${num(row.scheduled)} that wait for their time. They have no result and are no dead letters. This cannot be taken back.`,
      ),
      "Jobs count what they lose as purged, and finish without it.",
    ],
    fields: [
      { name: "kind", label: "Only of this kind", class: "mono", hint: "empty for all kinds" },
      {
        name: "keep",
        label: "Let what runs go on",
        type: "checkbox",
        hint: `otherwise the ${num(row.held)} that workers hold are ended as cancelled`,
      },
    ],
    ok: "Purge",
    does: async ({ kind, keep }) => {
      const record = await post(at(row.queue, "purge"), { ...(kind ? { kind } : {}), keep_running: keep });
      toast(
        record?.count === null || record?.count === undefined
          ? `Queue ${row.queue} is purged`
          : `${many(record.count, "message")} of queue ${row.queue} removed`,
      );
      done();
    },
  });
}

function state(row) {
  if (row.paused) {
    const ends = row.paused_for_ms && row.paused_for_ms < FOR_EVER_MS;
    return [badge("paused"), ends ? h("span.muted", {}, ` for ${span(row.paused_for_ms)} more`) : null];
  }
  if (row.workers === 0 && row.waiting > 0) return badge("no_worker", "no worker");
  if (row.max_waiting && row.waiting + row.held >= row.max_waiting) return badge("waiting", "full");
  return badge("live", "open");
}

function columns(done) {
  return [
    {
      label: "Queue",
      rowHead: true,
      cell: (row) => link(route("/tasks", { queue: row.queue }), row.queue, { class: "mono" }),
    },
    { label: "State", cell: state },
    { label: "Waiting", num: true, cell: (row) => num(row.waiting) },
    { label: "Held", num: true, cell: (row) => num(row.held) },
    { label: "Scheduled", num: true, cell: (row) => num(row.scheduled) },
    { label: "Oldest", cell: (row) => when(row.oldest_ms) },
    { label: "Workers", num: true, cell: (row) => (row.workers === 0 ? h("b.amber-text", {}, "0") : num(row.workers)) },
    {
      label: "Max waiting",
      num: true,
      cell: (row) => (row.max_waiting ? num(row.max_waiting) : h("span.muted", {}, "no limit")),
    },
    {
      label: "Over time",
      cell: (row) =>
        link(route("/overview", { queue: row.queue }), "Charts", { "aria-label": `Charts of queue ${row.queue}` }),
    },
    {
      label: "Actions",
      cls: "acts",
      cell: (row) =>
        h(
          "div.buttons",
          {},
          row.paused
            ? act("Resume", () => resume(row.queue, done), {
                class: "small",
                "aria-label": `Resume queue ${row.queue}`,
              })
            : act("Pause", () => pause(row.queue, done), { class: "small", "aria-label": `Pause queue ${row.queue}` }),
          act("Limit", () => limit(row, done), { class: "small", "aria-label": `Set the limit of queue ${row.queue}` }),
          act("Purge", () => purge(row, done), {
            class: "small danger-text",
            "aria-label": `Purge queue ${row.queue}`,
          }),
        ),
    },
  ];
}

/** What is not listed, as one line. */
function others() {
  const { queues = 0, waiting = 0 } = live.tick?.overview?.totals?.unlisted ?? {};
  if (!queues) return null;
  return h(
    "p.muted",
    {},
    `And ${many(queues, "more queue")} that no worker has ever served, with ${many(waiting, "message")}. A program that publishes may be making up names.`,
  );
}

export function queuesPage(view) {
  const body = ({ rows, ask }) =>
    rows.length
      ? h("div", {}, table({ caption: "Queues", columns: columns(ask), rows, key: (row) => row.queue }), others())
      : empty(
          "There is no queue yet",
          h("p", {}, "A queue is there once something was published to it, or a worker serves it."),
          command("millpond submit square 12 --wait"),
        );
  const list = whole(view, { title: "Queues", what: "the queues", path: "/queues", body });
  view.onTick((tick) => list.take(tick.queues));
  if (!list.rows) list.ask();
}
