// One dead letter: its evidence, and the ways to run it again or be rid of it.

import { h } from "../dom.js";
import { known, num, took } from "../fmt.js";
import { actOn, retryOne } from "../letters.js";
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

/** Reasons of letters that must not be signed by a replay. */
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
  undecodable: "its arguments cannot be read",
  unsigned: "it has no signature",
  bad_signature: "it was altered, moved, or signed with another key",
  needs_pipe: "its kind converses, and takes calls only",
  missing_payload: "its large arguments are gone",
  damaged_payload: "its large arguments are damaged",
};

function about(letter) {
  const evidence = letter.evidence ?? {};
  return facts(
    ["Reason", [badge("dead", letter.reason), " ", h("span.muted", {}, MEANING[letter.reason] ?? "")], "long"],
    ["Queue", link(route("/dead", { queue: letter.queue }), letter.queue, { class: "mono" })],
    ["Kind", link(route("/dead", { queue: letter.queue, kind: letter.kind }), letter.kind, { class: "mono" })],
    ["Job", known(letter.job) ? jobLink(letter.job) : null],
    ["Index", known(letter.index) ? num(letter.index) : null],
    ["Attempts", num(letter.attempt)],
    ["Worker", mono(letter.worker)],
    ["Published", when(evidence.published_ms, null)],
    ["Last start", when(evidence.started_ms, null)],
    ["Dead-lettered", when(letter.dead_lettered_ms)],
    ["From start to end", known(evidence.published_ms) ? took(letter.dead_lettered_ms - evidence.published_ms) : null],
    ["Published as", known(evidence.root) && evidence.root !== letter.id ? mono(evidence.root) : null],
    [
      "Items",
      evidence.items
        ? `${num(evidence.items.len)} from ${num(evidence.items.from)}, of ${num(evidence.items.of)}`
        : null,
    ],
    ["Unique key", known(evidence.unique) ? mono(evidence.unique) : null],
    ["Trace", trace(letter.trace), "long"],
  );
}

/** Its attempts as the timeline wants them: those before, and the last one. */
function history(letter) {
  const evidence = letter.evidence ?? {};
  const before = (letter.failures ?? []).map((one) => ({ ...one, status: "failed" }));
  const last =
    letter.attempt > 0 && !before.some((one) => one.attempt === letter.attempt)
      ? [
          {
            attempt: letter.attempt,
            worker: letter.worker,
            child: letter.failure?.child?.name,
            started_ms: evidence.started_ms,
            ended_ms: letter.dead_lettered_ms,
            failure: letter.failure,
            trace: letter.trace,
            status: "failed",
          },
        ]
      : [];
  return { published_ms: evidence.published_ms, attempts: [...before, ...last] };
}

function headers(letter) {
  const pairs = Array.isArray(letter.headers) ? letter.headers : Object.entries(letter.headers ?? {});
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

const settled = (id, queue) =>
  empty(
    "This letter waits no more",
    h(
      "p",
      {},
      "It was run again or thrown away. ",
      link(route("/task", { id, queue }), "Look at its task"),
      " or ",
      link("#/dead", "at the other letters"),
      ".",
    ),
  );

function refusal(letter, gone) {
  if (gone) return "it waits no more";
  const distrusted = "its signature was refused: publish the task again with the key, or purge this";
  return DISTRUSTED.includes(letter.reason) ? distrusted : null;
}

/** The whole page of a letter; `gone` says that it waits no more. */
function whole(title, letter, gone, ask) {
  const { id, queue } = letter;
  const refused = refusal(letter, gone);
  const retried = (row) => {
    if (row?.new_id) location.hash = route("/task", { id: row.new_id }).slice(1);
    else ask();
  };
  const given = payload(letter, {
    label: "Arguments",
    value: "payload",
    how: `millpond dead show ${id}`,
    name: `${id}.arguments.json`,
  });
  const buried = {
    sign: "is-failed",
    title: "Dead-lettered",
    at: letter.dead_lettered_ms,
    more: h("p.muted", {}, MEANING[letter.reason] ?? letter.reason),
  };
  return [
    head(
      title,
      link(route("/task", { id, queue }), "Its task", { class: "button" }),
      act("Retry…", () => retryOne(letter, retried), { class: "primary", ...(refused ? { refused } : {}) }),
      act("Purge…", () => actOn("purge", [letter], ask), { class: "danger-text", ...(gone ? { refused } : {}) }),
    ),
    gone && settled(id, queue),
    h("section.panel", { key: "facts" }, about(letter)),
    section("Arguments", { key: "payload" }, given ?? h("p.muted", {}, "They were thrown away.")),
    section("What happened", { key: "timeline" }, timeline(history(letter), buried)),
    section("Headers", { key: "headers" }, headers(letter)),
  ];
}

export function letterPage(view) {
  const [id, queue] = [view.query.get("id") ?? "", view.query.get("queue")];
  let [letter, fault, gone] = [null, null, false];
  const fails = (wrong) => {
    gone = letter !== null && wrong.status === 404;
    fault = wrong;
  };
  const ask = async () => {
    const answer = await view.load(() => view.get("/dead_letter", { id, queue }, { exact: true }), fails);
    if (answer) [letter, fault, gone] = [answer, null, false];
    render();
  };
  const render = () => {
    const title = h("span", {}, "Dead letter ", mono(id));
    if (letter) return view.draw(whole(title, letter, gone, ask));
    const instead = fault?.status === 404 ? settled(id, queue) : fault ? failed(fault, ask) : loading("the letter");
    return view.draw(head(title), instead);
  };
  view.title(`Dead letter ${id}`);
  render();
  ask();
  view.onChange(["dead"], () => (gone ? null : ask()));
}
