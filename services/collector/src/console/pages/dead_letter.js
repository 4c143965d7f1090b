// One dead letter: its evidence, and the ways to run it again or to purge it.

import { h } from "../dom.js";
import { known, num, took } from "../fmt.js";
import { actOn, retryOne } from "../dead_letters.js";
import { timeline, trace } from "../timeline.js";
import {
  act,
  badge,
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
  when,
} from "../ui.js";

/** Reasons of dead letters that a replay must not sign. */
const DISTRUSTED = ["unsigned", "bad_signature"];
const MEANING = {
  exhausted: "its attempts are used up",
  fatal: "the failure says that trying again cannot help",
  expired: "its time to start was over",
  unknown_kind: "no live worker has announced its kind for 60 s: start one that knows it, then retry",
  kills_workers: "three workers died with it: look at what it needs before you retry",
  bad_header: "a header of it cannot be read",
  bad_batch: "it is not an array of as many values as its header says",
  bad_subject: "its subject cannot be read",
  bad_queue: "its queue has a name that is not allowed",
  bad_schedule: "it waited for a time that would never come, or where nobody would find it",
  unique_key_taken: "another task had its unique key when it was to wait for its time",
  id_taken: "its id stood for another task that waits, so it has one of its own",
  undecodable: "its arguments cannot be read",
  unsigned: "it has no signature",
  bad_signature: "it was altered, moved, or signed with another key",
  needs_pipe: "its kind converses, and takes calls only",
  missing_payload: "its large arguments are gone",
  damaged_payload: "its large arguments are damaged",
};

function about(deadLetter) {
  const evidence = deadLetter.evidence ?? {};
  return facts(
    ["Reason", [badge("dead", deadLetter.reason), " ", h("span.muted", {}, MEANING[deadLetter.reason] ?? "")], "long"],
    ["Queue", link(route("/dead", { queue: deadLetter.queue }), deadLetter.queue, { class: "mono" })],
    ["Kind", link(route("/dead", { queue: deadLetter.queue, kind: deadLetter.kind }), deadLetter.kind, { class: "mono" })],
    ["Job", known(deadLetter.job) ? jobLink(deadLetter.job) : null],
    ["Index", known(deadLetter.index) ? num(deadLetter.index) : null],
    ["Attempts", num(deadLetter.attempt)],
    ["Worker", mono(deadLetter.worker)],
    ["Published", when(evidence.published_ms, null)],
    ["Last start", when(evidence.started_ms, null)],
    ["Dead-lettered", when(deadLetter.dead_lettered_ms)],
    ["From start to end", known(evidence.published_ms) ? took(deadLetter.dead_lettered_ms - evidence.published_ms) : null],
    ["Published as", known(evidence.original_id) && evidence.original_id !== deadLetter.id ? mono(evidence.original_id) : null],
    [
      "Items",
      evidence.items
        ? `${num(evidence.items.len)} from ${num(evidence.items.from)}, of ${num(evidence.items.of)}`
        : null,
    ],
    ["Unique key", known(evidence.unique) ? mono(evidence.unique) : null],
    ["Trace", trace(deadLetter.trace), "long"],
  );
}

/** Its attempts as the timeline wants them: those before, and the last one. */
function history(deadLetter) {
  const evidence = deadLetter.evidence ?? {};
  const before = (deadLetter.failures ?? []).map((one) => ({ ...one, status: "failed" }));
  const last =
    deadLetter.attempt > 0 && !before.some((one) => one.attempt === deadLetter.attempt)
      ? [
          {
            attempt: deadLetter.attempt,
            worker: deadLetter.worker,
            child: deadLetter.failure?.child?.name,
            started_ms: evidence.started_ms,
            ended_ms: deadLetter.dead_lettered_ms,
            failure: deadLetter.failure,
            trace: deadLetter.trace,
            status: "failed",
          },
        ]
      : [];
  return { published_ms: evidence.published_ms, attempts: [...before, ...last] };
}

function headers(deadLetter) {
  const pairs = Array.isArray(deadLetter.headers) ? deadLetter.headers : Object.entries(deadLetter.headers ?? {});
  return pairs.length
    ? facts(
        ...pairs.map(([name, value]) => [
          name,
          h("span.mono", {}, typeof value === "string" ? value : JSON.stringify(value)),
          "whole",
        ]),
      )
    : h("p.muted", {}, "It has none.");
}

const settled = (name) =>
  empty(
    "This dead letter waits no more",
    h(
      "p",
      {},
      "It was run again or thrown away. ",
      link(route("/task", name), "Look at its task"),
      " or ",
      link("#/dead", "at the other dead letters"),
      ".",
    ),
  );

function refusal(deadLetter, gone) {
  if (gone) return "it waits no more";
  const distrusted = "its signature was refused: publish the task again with the key, or purge this";
  return DISTRUSTED.includes(deadLetter.reason) ? distrusted : null;
}

/** The whole page of a dead letter; `gone`: it waits no more. */
function whole(title, deadLetter, gone, ask) {
  const { id, queue, kind } = deadLetter;
  const refused = refusal(deadLetter, gone);
  const retried = (row) => {
    if (row?.new_id) location.hash = route("/task", { id: row.new_id }).slice(1);
    else ask();
  };
  const given = payload(deadLetter, {
    label: "Arguments",
    value: "payload",
    how: `millpond dead show ${id}`,
    name: `${id}.arguments.json`,
  });
  const deadLettered = {
    sign: "is-failed",
    title: "Dead-lettered",
    at: deadLetter.dead_lettered_ms,
    more: h("p.muted", {}, MEANING[deadLetter.reason] ?? deadLetter.reason),
  };
  return [
    head(
      title,
      link(route("/task", { id, queue, kind }), "Its task", { class: "button" }),
      act("Retry…", () => retryOne(deadLetter, retried), { class: "primary", ...(refused ? { refused } : {}) }),
      act("Purge…", () => actOn("purge", [deadLetter], ask), { class: "danger-text", ...(gone ? { refused } : {}) }),
    ),
    gone && settled({ id, queue, kind }),
    h("section.panel", { key: "facts" }, about(deadLetter)),
    section("Arguments", { key: "payload" }, given ?? h("p.muted", {}, "They were thrown away.")),
    section("What happened", { key: "timeline" }, timeline(history(deadLetter), deadLettered)),
    section("Headers", { key: "headers" }, headers(deadLetter)),
  ];
}

export function deadLetterPage(view) {
  const [id, queue, kind] = [view.query.get("id") ?? "", view.query.get("queue"), view.query.get("kind")];
  let [deadLetter, fault, gone] = [null, null, false];
  const fails = (wrong) => {
    gone = deadLetter !== null && wrong.status === 404;
    fault = wrong;
  };
  const ask = async () => {
    const answer = await view.load(() => view.get("/dead_letter", { id, queue, kind }, { exact: true }), fails);
    if (answer) [deadLetter, fault, gone] = [answer, null, false];
    render();
  };
  const render = () => {
    const title = h("span", {}, "Dead letter ", mono(id));
    if (deadLetter) return view.draw(whole(title, deadLetter, gone, ask));
    const instead = fault?.status === 404 ? settled({ id, queue, kind }) : fault ? failed(fault, ask) : loading("the dead letter");
    return view.draw(head(title), instead);
  };
  view.title(`Dead letter ${id}`);
  render();
  ask();
  view.onChange(["dead"], () => (gone ? null : ask()));
}
