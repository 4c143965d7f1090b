// One job: how far it is, its results page by page, and the way out of it.

import { address, post } from "../api.js";
import { askFor } from "../dialog.js";
import { h } from "../dom.js";
import { known, many, num, rate } from "../fmt.js";
import { List } from "../list.js";
import { eta, isOver, note, progress, speed } from "../progress.js";
import { table } from "../table.js";
import {
  act,
  badge,
  empty,
  facts,
  failed,
  head,
  link,
  loading,
  mono,
  payload,
  route,
  section,
  taskLink,
  toast,
  when,
} from "../ui.js";

/** Results of up to this many characters stand in the table. */
const INLINE_CHARS_MAX = 160;

const MEANING = {
  open: "its producer still adds tasks",
  closed: "all its tasks are published",
  finished: "all its tasks have ended",
  cancelled: "an operator has cancelled it",
  stalled:
    "its producer is gone before the end of its input: start it again with the same name and input to go on, or cancel it",
  session: "tasks that were published one by one under this name; nobody closes it",
};

function cancel(job, done) {
  askFor({
    title: `Cancel ${job.job}`,
    danger: true,
    text: [
      "What waits of it is removed, and what runs is ended. Results that are there stay. This cannot be taken back; its producer may start it again under the same name.",
    ],
    ok: "Cancel the job",
    does: async () => {
      await post(`/jobs/${encodeURIComponent(job.job)}/cancel`);
      toast(`Job ${job.job} is cancelled`);
      done();
    },
  });
}

function result(row) {
  if (row.failure) return h("span", {}, h("b", {}, row.failure.type), ` ${row.failure.message}`);
  const shown = payload(row, {
    label: `Result of ${row.id}`,
    value: "result",
    how: `millpond task result ${row.id}`,
    name: `${row.id}.json`,
  });
  if (!shown)
    return known(row.result_bytes)
      ? link(route("/task", { id: row.id, queue: row.queue, kind: row.kind }), `${num(row.result_bytes)} bytes`)
      : "–";
  const text = "result" in row && !row.ref ? (row.result?.text ?? "null") : null;
  if (text !== null && text.length <= INLINE_CHARS_MAX) return h("code.value", {}, text);
  return h("details", {}, h("summary", {}, text ? `${text.slice(0, 80)}…` : "Show"), shown);
}

const RESULTS = [
  { label: "Index", num: true, main: false, cell: (row) => num(row.index) },
  { label: "Task", main: true, cell: taskLink },
  { label: "Status", cell: (row) => badge(row.status) },
  { label: "Result", cls: "wide", cell: result },
];

function about(job) {
  const { per_s, seen } = speed(job);
  return facts(
    ["State", [badge(job.state), " ", h("span.muted", {}, MEANING[job.state] ?? "")], "long"],
    ["Ends in", eta(job)],
    ["Speed", isOver(job) ? null : `${rate(per_s)} ${seen ? "of late" : "over its whole time"}`],
    ["Queue", link(route("/tasks", { queue: job.queue }), job.queue, { class: "mono" })],
    ["Kind", mono(job.kind)],
    ["Total", known(job.total) ? num(job.total) : job.state === "session" ? null : "not known yet"],
    ["Published", known(job.published) ? num(job.published) : null],
    ["Done", num(job.done)],
    ["Retrying", num(job.retrying)],
    ["Dead", num(job.dead)],
    ["Cancelled", num(job.cancelled)],
    ["Purged", num(job.purged)],
    ["Created", when(job.created_ms)],
    ["Producer heard", when(job.heartbeat_ms)],
    ["Epoch", num(job.epoch)],
    ["Continuation", job.continuation ? mono(`${job.continuation.queue}.${job.continuation.kind}`) : null],
  );
}

export function jobPage(view) {
  const { name } = view;
  const path = `/jobs/${encodeURIComponent(name)}`;
  let job = null;
  let fault = null;
  const list = new List(view, { path: `${path}/results`, what: "results", exact: true, changed: () => render() });
  const ask = async () => {
    const answer = await view.load(
      () => view.get(path),
      (wrong) => (fault = wrong),
    );
    if (answer) [job, fault] = [answer, null];
    if (job) note([job]);
    render();
  };
  // A job that had ended before it was fetched again changes no more, but for dead letters that are run again.
  let rests = false;
  const both = async () => {
    const over = job !== null && isOver(job);
    await Promise.all([ask(), list.refresh()]);
    rests = over;
  };
  const render = () => {
    if (!job)
      return view.draw(head(h("span", {}, "Job ", mono(name))), fault ? failed(fault, ask) : loading("the job"));
    const over = isOver(job) ? `it has ended: it is ${job.state}` : undefined;
    view.draw(
      head(
        h("span", {}, "Job ", mono(name)),
        link(route("/tasks", { job: name }), "Its tasks", { class: "button" }),
        link(route("/dead", { job: name }), job.dead ? `${many(job.dead, "dead letter")}` : "Dead letters", {
          class: "button",
        }),
        link(address(`${path}/results.ndjson`), "Download results", { class: "button", download: `${name}.ndjson` }),
        act("Cancel", () => cancel(job, both), { class: "danger-text", ...(over ? { refused: over } : {}) }),
      ),
      h("section.panel", { key: "job" }, progress(job, "large"), about(job)),
      section(
        "Results",
        { key: "results" },
        h("div.toolbar", {}, list.holdButton()),
        list.draw(
          (rows) =>
            table({ caption: "Results by index", columns: RESULTS, rows, key: (row) => `${row.index} ${row.id}` }),
          () =>
            empty("No task of it has ended yet", h("p", {}, link(route("/tasks", { job: name }), "Look at its tasks"))),
        ),
      ),
    );
  };
  view.title(`Job ${name}`);
  render();
  ask();
  list.window();
  view.onChange(["jobs", "tasks"], () => (rests ? null : both()));
  view.onChange(["dead"], both);
}
