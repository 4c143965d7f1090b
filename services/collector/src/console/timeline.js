// What happened to a task, in order: published, waited, each attempt with its evidence, and its end.

import { session } from "./api.js";
import { h } from "./dom.js";
import { bytes, clock, exact, known, span, took } from "./fmt.js";
import { badge, facts, mono, when } from "./ui.js";

/** A wait shorter than this is not worth a line. */
const WAIT_MS_MIN = 1;
/** The shortest attempt is still seen, in percent of the whole. */
const LANE_PERCENT_MIN = 0.6;
const SIGNALS = {
  1: "SIGHUP",
  2: "SIGINT",
  3: "SIGQUIT",
  4: "SIGILL",
  6: "SIGABRT",
  7: "SIGBUS",
  8: "SIGFPE",
  9: "SIGKILL",
  11: "SIGSEGV",
  13: "SIGPIPE",
  14: "SIGALRM",
  15: "SIGTERM",
};

/** A trace id; a link where the collector knows a Kibana. */
export function trace(id) {
  if (!known(id)) return null;
  const url = session.kibana_url;
  if (!url) return mono(id);
  return h(
    "a.mono",
    { href: url.replace("{trace}", encodeURIComponent(id)), rel: "noopener noreferrer", target: "_blank" },
    id,
    h("span.sr", {}, " (opens Kibana)"),
  );
}

/** Why an attempt failed, with all that is known of the process that ran it. */
export function failure(of) {
  if (!of) return null;
  const child = of.child;
  return h(
    "div.failure",
    {},
    h("p", {}, h("b.mono", {}, of.type), " ", h("span.message", {}, of.message)),
    of.retry === false && h("p.muted", {}, "Trying again cannot help, says the handler."),
    child &&
      facts(
        ["Child", mono(child.name)],
        ["Exit code", known(child.exit_code) ? String(child.exit_code) : null],
        [
          "Signal",
          known(child.signal) ? `${child.signal}${SIGNALS[child.signal] ? ` (${SIGNALS[child.signal]})` : ""}` : null,
        ],
        ["Out of memory", child.oom ? badge("dead", "killed for its memory") : null],
        ["Memory when last seen", child.rss_bytes ? bytes(child.rss_bytes) : null],
      ),
    of.traceback &&
      h(
        "details",
        { open: true },
        h("summary", {}, "Traceback"),
        h("pre", { tabindex: "0", role: "group", "aria-label": "Traceback" }, of.traceback),
      ),
    child?.log?.length > 0 &&
      h(
        "details",
        { open: true },
        h("summary", {}, child.log.length === 1 ? "Last line of its log" : `Last ${child.log.length} lines of its log`),
        h("pre", { tabindex: "0", role: "group", "aria-label": "Last log lines" }, child.log.join("\n")),
      ),
  );
}

function moment(ms) {
  return known(ms) ? h("time", { datetime: new Date(ms).toISOString(), title: exact(ms) }, clock(ms)) : null;
}

function step(key, sign, title, at, ...more) {
  return h("li.step", { key, class: sign }, h("div.step-head", {}, h("b", {}, title), moment(at)), ...more);
}

/** Where the attempt lies in the task's whole time. */
function lane(attempt, from, to) {
  if (!known(attempt.started_ms) || !known(attempt.ended_ms) || to <= from) return null;
  const share = (ms) => (ms / (to - from)) * 100;
  const width = Math.max(LANE_PERCENT_MIN, share(attempt.ended_ms - attempt.started_ms));
  const left = Math.min(100 - width, Math.max(0, share(attempt.started_ms - from)));
  return h(
    "div.lane",
    { "aria-hidden": "true" },
    h("span", { class: `part-${attempt.failure ? "dead" : "done"}`, css: { left: `${left}%`, width: `${width}%` } }),
  );
}

function wait(i, ms, what) {
  return ms >= WAIT_MS_MIN ? h("li.step.wait", { key: `wait ${i}` }, h("p.muted", {}, `${what} ${span(ms)}`)) : null;
}

function attemptStep(attempt, from, to) {
  const ended = known(attempt.ended_ms);
  const status = attempt.status ?? (attempt.failure ? "failed" : ended ? "done" : "running");
  return step(
    `attempt ${attempt.attempt} ${attempt.started_ms}`,
    attempt.failure ? "is-failed" : "is-done",
    [`Attempt ${attempt.attempt} `, badge(status)],
    attempt.started_ms,
    facts(
      ["Worker", mono(attempt.worker)],
      ["Child", attempt.child && !attempt.failure?.child ? mono(attempt.child) : null],
      ["Ended", moment(attempt.ended_ms)],
      ["Ran for", ended && known(attempt.started_ms) ? took(attempt.ended_ms - attempt.started_ms) : null],
      ["Trace", trace(attempt.trace), "long"],
    ),
    lane(attempt, from, to),
    failure(attempt.failure),
  );
}

/** `task` has `published_ms`, `attempts`, and how it ended; `end` is the last entry: `[title, ms, more]`, or null. */
export function timeline(task, end) {
  const attempts = [...(task.attempts ?? [])].sort(
    (a, b) => (a.started_ms ?? 0) - (b.started_ms ?? 0) || a.attempt - b.attempt,
  );
  const from = task.published_ms ?? attempts[0]?.started_ms;
  const to = attempts.reduce((last, one) => Math.max(last, one.ended_ms ?? 0), from ?? 0);
  let before = from;
  const steps = [];
  attempts.forEach((attempt, i) => {
    if (known(before) && known(attempt.started_ms))
      steps.push(wait(i, attempt.started_ms - before, i ? "Waited for the next attempt" : "Waited"));
    steps.push(attemptStep(attempt, from, to));
    before = attempt.ended_ms ?? attempt.started_ms;
  });
  const replays = (task.replays ?? []).map((replay, i) =>
    step(`replay ${i}`, "is-open", "Run again by an operator", replay.at_ms, replayed(replay)),
  );
  return h(
    "ol.timeline",
    {},
    known(from) && step("published", "is-open", ["Published ", h("span.muted", {}, when(from))], from),
    steps,
    replays,
    end && step("end", end.sign, end.title, end.at, end.more),
  );
}

function replayed(replay) {
  return facts(
    ["By", replay.by],
    ["As", known(replay.new_id) ? mono(replay.new_id) : null],
    ["Queue", replay.to_queue],
    ["After attempt", replay.attempt],
  );
}
