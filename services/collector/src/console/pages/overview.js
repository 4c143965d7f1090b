// How the cluster does, now and over time; what is wrong comes first, with what to do.

import { chart } from "../charts.js";
import { h } from "../dom.js";
import { bytes, known, many, num, rate, short, span } from "../fmt.js";
import { badge, empty, failed, head, lasting, link, loading, route, section, sentence, when } from "../ui.js";

const WINDOWS = [
  ["15m", "15 min"],
  ["1h", "1 hour"],
  ["6h", "6 hours"],
  ["24h", "24 hours"],
];
/** The charts are fetched again after this long at the earliest. */
const SERIES_MS_MIN = 5000;
/** A step that is not over is shown when it has run for this long. */
const STEP_MS_MIN = 10_000;
/** A lag of the collector from which it is shown as a problem. */
const LAG_MS_SHOWN = 5000;
/** The page that shows a problem of a kind. */
const PLACES = {
  no_worker: ["#/workers", "Workers"],
  paused: ["#/queues", "Queues"],
  orphaned_lease: ["#/workers", "Workers"],
  stuck_consumer: ["#/queues", "Queues"],
  broken_kind: ["#/workers", "Workers"],
  no_producer: ["#/queues", "Queues"],
  stalled_job: ["#/jobs?state=stalled", "Stalled jobs"],
  continuation: ["#/jobs", "Jobs"],
  lost_task: ["#/tasks", "Tasks"],
  worker_lost: ["#/workers", "Workers"],
  clock: ["#/workers", "Workers"],
};

function problem(row) {
  const place = PLACES[row.kind];
  return h(
    "li.problem",
    { key: `${row.kind} ${row.what}`, class: row.mended ? "mended" : "" },
    h(
      "div.problem-head",
      {},
      badge(row.mended ? "done" : "stalled", row.kind.replace(/_/g, " ")),
      row.what && h("b.mono", {}, row.what),
      h(
        "span.muted",
        {},
        row.mended
          ? ["mended by itself ", when(row.since_ms, "")]
          : known(row.since_ms) && ["for ", lasting(row.since_ms)],
      ),
      place && link(place[0], place[1]),
    ),
    h("p", {}, sentence(row.sentence)),
  );
}

function problemsOf(now) {
  const found = [...(now.problems ?? [])].sort((a, b) => Number(Boolean(a.mended)) - Number(Boolean(b.mended)));
  if (now.store?.complaint && !found.some((row) => row.kind === "store")) {
    found.unshift({
      kind: "store",
      what: now.store.kind,
      sentence: now.store.complaint,
      since_ms: null,
      mended: false,
    });
  }
  if (now.lag_ms >= LAG_MS_SHOWN) {
    const sentence =
      `what is shown here is ${span(now.lag_ms)} old: the collector is behind, and nothing is lost; ` +
      "it catches up by itself unless its disk or CPU is full";
    found.unshift({ kind: "collector_lag", what: "", sentence, since_ms: null, mended: false });
  }
  return found;
}

function problems(now) {
  const found = problemsOf(now);
  const open = found.filter((row) => !row.mended).length;
  if (!found.length)
    return h(
      "p.all-well",
      { key: "problems" },
      badge("done", "All is well"),
      h("span.muted", {}, "no problem is known"),
    );
  return h(
    "section.panel.problems",
    { key: "problems", "aria-label": "Problems", class: open ? "open" : "" },
    h("h2", {}, open ? many(open, "problem") : "No problem now"),
    h("ul", {}, found.map(problem)),
  );
}

const tile = (name, value, more, href, cls = "") => {
  const inside = [h("span.tile-name", {}, name), h("span.tile-value", {}, value), h("span.tile-more", {}, more)];
  return href ? h("a.tile", { href, key: name, class: cls }, inside) : h("div.tile", { key: name, class: cls }, inside);
};

function tiles(now) {
  const { totals = {}, rates = {} } = now;
  const workers = totals.workers ?? {};
  const lost = [workers.draining && `${num(workers.draining)} draining`, workers.lost && `${num(workers.lost)} lost`]
    .filter(Boolean)
    .join(", ");
  return h(
    "div.tiles",
    { key: "tiles" },
    tile("Coming in", rate(rates.published_per_s), "messages"),
    tile("Done", rate(rates.done_per_s), "tasks", "#/tasks?status=done"),
    tile(
      "Failed attempts",
      rate(rates.failed_per_s),
      `${short(totals.retrying)} retrying`,
      "#/tasks?status=retrying",
      rates.failed_per_s > 0 ? "amber" : "",
    ),
    tile(
      "Dead letters",
      short(totals.dead),
      rates.dead_per_s > 0 ? `${rate(rates.dead_per_s)} come in` : "none comes in now",
      "#/dead",
      totals.dead > 0 ? "red" : "",
    ),
    tile(
      "Waiting",
      short(totals.waiting),
      totals.oldest_ms ? ["oldest ", lasting(totals.oldest_ms)] : totals.waiting ? "–" : "nothing waits",
      "#/queues",
    ),
    tile("Running", short(totals.running), `${short(totals.held)} held`, "#/workers"),
    tile("Scheduled", short(totals.scheduled), "wait for their time", "#/queues"),
    tile(
      "Workers",
      num(workers.live),
      lost || (workers.live ? "all live" : "none is here"),
      "#/workers",
      workers.live === 0 ? "red" : workers.lost ? "amber" : "",
    ),
  );
}

/** The steps of which enough is over, with their length so far; a step that nobody observed is empty and leaves a gap. */
function steps({ step_ms, to_ms, rows }) {
  const found = [];
  for (const row of rows) {
    const over_ms = Math.min(step_ms, to_ms - row.at_ms);
    if (over_ms < STEP_MS_MIN) continue;
    const last = found[found.length - 1];
    if (last && row.at_ms - last.at_ms > step_ms) found.push({ at_ms: last.at_ms + step_ms });
    found.push({ ...row, over_ms });
  }
  return found;
}

function charts(series) {
  const rows = steps(series);
  const per = (name) => (row) => (known(row[name]) ? row[name] / (row.over_ms / 1000) : null);
  const plain = (name) => (row) => row[name];
  return h(
    "div.charts",
    {},
    chart({
      title: "Throughput",
      unit: "rate",
      rows,
      note: "tasks, and messages published",
      series: [
        { name: "published", value: per("published") },
        { name: "done", value: per("done") },
        { name: "failed", value: per("failed") },
        { name: "dead", value: per("dead") },
      ],
    }),
    chart({
      title: "Latency",
      unit: "time",
      rows,
      note: "published to ended",
      series: [
        { name: "p50", value: plain("p50_ms") },
        { name: "p99", value: plain("p99_ms") },
      ],
    }),
    chart({
      title: "Waiting",
      unit: "count",
      rows,
      note: "messages in queues",
      series: [{ name: "waiting", value: plain("waiting") }],
    }),
    chart({
      title: "Oldest that waits",
      unit: "time",
      rows,
      note: "its age",
      series: [{ name: "age", value: plain("oldest_age_ms") }],
    }),
  );
}

function choices(view, now) {
  const chosen = view.query.get("window") ?? "15m";
  const queue = view.query.get("queue") ?? "";
  const names = [...new Set([...(now?.queues ?? []).map((row) => row.queue), ...(queue ? [queue] : [])])].sort();
  const go = (params) => {
    location.hash = route("/overview", { window: chosen, queue, ...params }).slice(1);
  };
  return h(
    "div.choices",
    {},
    h("label", { for: "series-queue" }, "Queue"),
    h(
      "select",
      { id: "series-queue", value: queue, onchange: (event) => go({ queue: event.currentTarget.value }) },
      h("option", { value: "" }, "All queues"),
      names.map((name) => h("option", { value: name }, name)),
    ),
    h(
      "div.segments",
      { role: "group", "aria-label": "Window of time" },
      WINDOWS.map(([value, text]) =>
        link(route("/overview", { window: value, queue }), text, { "aria-current": value === chosen ? "true" : null }),
      ),
    ),
  );
}

function state(now) {
  const { store = {} } = now;
  return h(
    "p.foot",
    { key: "foot" },
    badge(store.complaint ? "stalled" : "done", `Store: ${store.kind ?? "unknown"}`),
    h("span", {}, bytes(store.bytes)),
    badge(
      now.lag_ms >= LAG_MS_SHOWN ? "stalled" : "done",
      now.lag_ms ? `Collector is ${span(now.lag_ms)} behind` : "Collector is up to date",
    ),
    h("span.muted", {}, `version ${now.version ?? "–"}`),
  );
}

export function overviewPage(view) {
  let now = null;
  let series = null;
  let fault = null;
  let asked = 0;
  const render = () => {
    if (!now) return view.draw(head("Overview"), fault ? failed(fault, first) : loading("the overview"));
    const inside = series?.fault ? failed(series.fault, ask) : series ? charts(series) : loading("the charts");
    const nothing = now.totals && !now.totals.workers?.live && !now.totals.waiting && !now.problems?.length;
    view.draw(
      head("Overview"),
      problems(now),
      tiles(now),
      nothing &&
        empty(
          "No worker is here, and nothing waits",
          h(
            "p",
            {},
            "Start one with ",
            h("code", {}, "millpond worker run --name w1"),
            ", and give it a task: ",
            h("code", {}, "millpond submit square 12 --wait"),
          ),
        ),
      section("Over time", { key: "series" }, choices(view, now), inside),
      state(now),
    );
  };
  const ask = async () => {
    const mine = (asked += 1);
    const params = { window: view.query.get("window") ?? "15m", queue: view.query.get("queue") };
    const answer = await view.load(
      () => view.get("/series", params),
      (wrong) => {
        if (mine === asked && !series?.rows) series = { fault: wrong };
      },
    );
    if (mine !== asked) return;
    if (answer) series = { ...answer, asked_ms: Date.now() };
    render();
  };
  const first = async () => {
    const answer = await view.load(
      () => view.get("/overview"),
      (wrong) => (fault = wrong),
    );
    if (answer) now = { ...answer, ...(now ?? {}) };
    render();
  };
  view.title("Overview");
  render();
  view.onTick((tick) => {
    now = tick;
    render();
  });
  if (!now) first();
  ask();
  view.every(SERIES_MS_MIN, () =>
    Date.now() - (series?.asked_ms ?? 0) >= Math.max(SERIES_MS_MIN, series?.step_ms ?? 0) ? ask() : null,
  );
  return {
    onQuery: () => {
      series = null;
      render();
      ask();
    },
  };
}
