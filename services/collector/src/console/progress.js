// How far a job is: segments with a text, and when it may end, from what was seen to change.

import { h } from "./dom.js";
import { many, now, num, span } from "./fmt.js";

/** Samples of a job reach back this far. */
const SEEN_MS = 60_000;
/** What was seen counts from this length on. */
const SEEN_MS_MIN = 3000;
/** Jobs that are remembered. */
const JOBS_MAX = 500;
const PARTS = [
  ["done", "done"],
  ["dead", "dead"],
  ["cancelled", "cancelled"],
  ["purged", "purged"],
  ["retrying", "retrying"],
];

const seen = new Map();

export const endedOf = (job) => (job.done ?? 0) + (job.dead ?? 0) + (job.cancelled ?? 0) + (job.purged ?? 0);
export const isOver = (job) => job.state === "finished" || job.state === "cancelled";
const wholeOf = (job) => Math.max(job.total ?? job.published ?? 0, endedOf(job) + (job.retrying ?? 0));

/** Remembers how far these jobs are now. */
export function note(jobs) {
  const at = now();
  for (const job of jobs) {
    if (isOver(job)) continue;
    const samples = (seen.get(job.job) ?? []).filter(
      (sample) => at - sample.at < SEEN_MS && sample.ended <= endedOf(job),
    );
    samples.push({ at, ended: endedOf(job) });
    seen.delete(job.job);
    seen.set(job.job, samples);
  }
  for (const name of seen.keys()) {
    if (seen.size <= JOBS_MAX) break;
    seen.delete(name);
  }
}

/** Items that end in a second: as observed, else on average since the job was made. */
export function speed(job) {
  const samples = seen.get(job.job) ?? [];
  const [first, last] = [samples[0], samples[samples.length - 1]];
  if (first && last.at - first.at >= SEEN_MS_MIN)
    return { per_s: ((last.ended - first.ended) / (last.at - first.at)) * 1000, seen: true };
  const age = now() - job.created_ms;
  return { per_s: age > 0 ? (endedOf(job) / age) * 1000 : 0, seen: false };
}

/** When the job may end, in words. */
export function eta(job) {
  if (isOver(job) || job.state === "session") return "–";
  if (job.state === "stalled")
    return h("span.muted", { title: "its producer is gone before the end of its input" }, "not by itself");
  const rest = wholeOf(job) - endedOf(job);
  if (rest <= 0 && job.state === "closed") return "any moment";
  if (job.total === null || job.total === undefined)
    return h("span.muted", { title: "its producer still adds tasks" }, "not known yet");
  const { per_s, seen: bySight } = speed(job);
  if (per_s <= 0) return h("span.muted", { title: "nothing of it has ended lately" }, "does not move");
  const how = bySight ? "from what was seen of late" : "from its whole time";
  return h(
    "span",
    { title: `${how}: ${num(Math.round(per_s * 10) / 10)} a second` },
    `about ${span(Math.max(1000, (rest / per_s) * 1000))}`,
  );
}

/** Its progress in words. */
export function progressText(job) {
  const whole = wholeOf(job);
  const ended = endedOf(job);
  const share = whole
    ? `${ended === whole ? 100 : Math.min(99.9, Math.floor((ended / whole) * 1000) / 10)} %`
    : "nothing yet";
  const others = PARTS.slice(1)
    .filter(([name]) => job[name])
    .map(([name, text]) => `${num(job[name])} ${text}`);
  if (job.state === "session") return [`${num(ended)} ended`, ...others].join(" · ");
  return [
    `${num(ended)} of ${job.total === null || job.total === undefined ? `${num(job.published ?? whole)} so far` : num(job.total)}`,
    share,
    ...others,
  ].join(" · ");
}

/** The bar, and its text. */
export function progress(job, cls = "") {
  const whole = Math.max(1, wholeOf(job));
  const parts = PARTS.filter(([name]) => job[name] > 0).map(([name]) =>
    h("span", { key: name, class: `part-${name}`, css: { width: `${(job[name] / whole) * 100}%` } }),
  );
  return h(
    "div.progress",
    { class: cls },
    h("div.bar", { role: "img", "aria-label": `${progressText(job)} of ${many(whole, "task")}` }, parts),
    h("p.bar-text", {}, progressText(job)),
  );
}
