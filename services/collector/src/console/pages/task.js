// One task: where it is and why, its arguments, its result, and each attempt with its evidence.

import { post } from "../api.js";
import { askFor } from "../dialog.js";
import { h } from "../dom.js";
import { known, num, took } from "../fmt.js";
import { timeline, trace } from "../timeline.js";
import {
  act,
  badge,
  copyButton,
  empty,
  facts,
  failed,
  head,
  jobLink,
  link,
  loading,
  mono,
  payload,
  route,
  section,
  sentence,
  toast,
  when,
} from "../ui.js";

const ENDED = ["done", "dead", "cancelled"];
const NO_RESULT = { done: "It has none.", dead: "None: it failed for good.", cancelled: "None: it was cancelled." };
/** How often a task that has not ended is fetched. */
const AGAIN_MS = 2000;

function cancel({ id, queue, kind }, done) {
  askFor({
    title: "Cancel this task",
    danger: true,
    text: [
      h("p.mono", {}, id),
      "When it waits it starts no more; when it runs it is ended. This cannot be taken back.",
    ],
    ok: "Cancel the task",
    does: async () => {
      const answer = await post("/task/cancel", { id, ...(queue && { queue }), ...(kind && { kind }) });
      toast(answer?.ended ? "The task is cancelled" : "The task will not start any more");
      done();
    },
  });
}

const steps = (then) => (Array.isArray(then) ? then.join(" → ") : String(then).split(",").join(" → "));

function about(task) {
  const idOf = (text) =>
    known(text) && text !== task.id
      ? link(route("/task", { id: text, queue: task.queue, kind: task.kind }), text, { class: "mono" })
      : null;
  return facts(
    ["Queue", link(route("/tasks", { queue: task.queue }), task.queue, { class: "mono" })],
    ["Kind", link(route("/tasks", { queue: task.queue, kind: task.kind }), task.kind, { class: "mono" })],
    ["Job", known(task.job) ? jobLink(task.job) : null],
    ["Index", known(task.index) ? num(task.index) : null],
    ["Published as", idOf(task.original_id)],
    ["Batch", task.items > 0 ? `${num(task.done)} of ${num(task.items)} items done` : null],
    ["Attempt", num(task.attempt)],
    [
      "Worker",
      known(task.worker) ? link(route("/tasks", { worker: task.worker }), task.worker, { class: "mono" }) : null,
    ],
    ["Published", when(task.published_ms, null)],
    ["Last start", when(task.started_ms, null)],
    ["Ended", when(task.ended_ms, null)],
    ["Stored", when(task.stored_ms, null)],
    ["Took in all", known(task.ended_ms) && known(task.published_ms) ? took(task.ended_ms - task.published_ms) : null],
    ["Trace", trace(task.trace), "long"],
    ["Continuation", known(task.continuation) ? mono(steps(task.continuation)) : null],
  );
}

function end(task) {
  if (task.status === "done")
    return { sign: "is-done", title: "Done, result stored", at: task.ended_ms ?? task.stored_ms };
  if (task.status === "cancelled")
    return { sign: "is-cancelled", title: "Cancelled", at: task.ended_ms ?? task.stored_ms };
  if (task.status !== "dead") return null;
  const deadLetter = link(route("/dead_letter", { id: task.id, queue: task.queue, kind: task.kind }), "Look at it, retry or purge it");
  return {
    sign: "is-failed",
    title: `Dead letter: ${task.dead?.reason ?? "its attempts are used up"}`,
    at: task.dead?.dead_lettered_ms ?? task.ended_ms,
    more: h("p", {}, deadLetter),
  };
}

function given(task) {
  const how = `millpond dead show ${task.id}`;
  const found =
    task.dead && payload(task.dead, { label: "Arguments", value: "payload", how, name: `${task.id}.arguments.json` });
  return (
    found || h("p.muted", {}, "The collector keeps the arguments of what failed for good; of this task it has none.")
  );
}

function outcome(task) {
  const found = payload(task, {
    label: "Result",
    value: "result",
    how: `millpond task result ${task.id}`,
    name: `${task.id}.result.json`,
  });
  return found || h("p.muted", {}, NO_RESULT[task.status] ?? "There is none yet.");
}

/** What is known of a task that has not ended an attempt: only where it is. */
function unseen(id, why) {
  return why && why.state !== "unknown"
    ? empty(
        "Nothing of it has ended yet",
        h("p", {}, "Facts, attempts and results are here once an attempt has ended."),
      )
    : empty(
        "No such task is known",
        h("p", {}, "Look for it by job, queue or time: ", link("#/tasks", "search tasks"), "."),
        h("p.mono", {}, id),
      );
}

export function taskPage(view) {
  const [id, queue, kind] = [view.query.get("id") ?? "", view.query.get("queue"), view.query.get("kind")];
  let [task, why, fault] = [null, null, null];
  const ask = async () => {
    const [found, explained] = await Promise.all([
      view.load(
        () => view.get("/task", { id, queue, kind }, { exact: true }),
        (wrong) => (fault = wrong),
      ),
      view.load(
        () => view.get("/why", { id, queue, kind }),
        () => {},
      ),
    ]);
    if (found) [task, fault] = [found, null];
    why = explained ?? why;
    render();
  };
  const render = () => {
    const state = why?.state ?? task?.status;
    const over = ENDED.includes(state)
      ? `it has ended: it is ${state}`
      : state === "unknown" && !task
        ? "no such task is known"
        : undefined;
    const dead =
      state === "dead" &&
      link(route("/dead_letter", { id, queue: task?.queue ?? queue, kind: task?.kind ?? kind }), "Retry…", { class: "button" });
    const top = [
      head(
        h("span", {}, "Task ", mono(id)),
        copyButton(id, "Copy id"),
        dead,
        act("Cancel", () => cancel({ id, queue: task?.queue ?? queue, kind: task?.kind ?? kind }, ask), {
          class: "danger-text",
          ...(over ? { refused: over } : {}),
        }),
      ),
      why &&
        h(
          "p.why",
          {},
          badge(why.state === "unknown" && task ? task.status : why.state),
          h("span", {}, sentence(why.sentence)),
        ),
    ];
    if (!task)
      return view.draw(
        top,
        fault && fault.status !== 404 ? failed(fault, ask) : fault ? unseen(id, why) : loading("the task"),
      );
    view.draw(
      top,
      h("section.panel", { key: "facts" }, about(task)),
      h(
        "div.columns",
        {},
        section("Arguments", { key: "arguments" }, given(task)),
        section("Result", { key: "result" }, outcome(task)),
      ),
      section("What happened", { key: "timeline" }, timeline(task, end(task))),
    );
  };
  view.title(`Task ${id}`);
  render();
  ask();
  // One that has ended changes no more, but for a dead letter that is run again.
  view.onChange(["dead"], () => (task?.status === "dead" ? ask() : null));
  view.every(AGAIN_MS, () => (ENDED.includes(why?.state) ? null : ask()));
}
