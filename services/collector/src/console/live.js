// One stream of events for the whole console: ticks, and which lists have changed. Comes back by itself after any
// loss.

import { address, get } from "./api.js";
import { setClock } from "./fmt.js";

/** Without a tick for this long the stream is taken for lost. */
const SILENT_MS_MAX = 6000;
const GRACE_MS = 500;
/** Between two tries to open the stream. */
const AGAIN_MS = 2000;

/** What was heard last. `state` is `connecting`, `live` or `lost`. */
export const live = { tick: null, state: "connecting", lost_ms: null };

const heard = new Set();
let source = null;
let watchdog = null;
let again = null;
let versions = {};

/** Calls `hears({ tick, changed, state })` at each event until the answered function is called. */
export function subscribe(hears) {
  heard.add(hears);
  return () => heard.delete(hears);
}

function tell(what) {
  for (const hears of [...heard]) hears(what);
}

function become(state) {
  if (live.state === state) return;
  live.lost_ms = state === "lost" ? Date.now() : null;
  live.state = state;
  tell({ state });
}

/** A page that was busy hears late: what has arrived is heard first. */
function silent() {
  watchdog = setTimeout(lost, GRACE_MS);
}

function lost() {
  source?.close();
  source = null;
  clearTimeout(watchdog);
  become("lost");
  clearTimeout(again);
  again = setTimeout(reopen, AGAIN_MS);
}

/** A closed stream does not tell why; the session does (an answer 401 leads to the login). */
async function reopen() {
  try {
    await get("/session");
    open();
  } catch (fault) {
    if (fault.status !== 401) again = setTimeout(reopen, AGAIN_MS);
  }
}

function onTick(event) {
  clearTimeout(watchdog);
  watchdog = setTimeout(silent, SILENT_MS_MAX);
  const tick = JSON.parse(event.data);
  live.tick = { ...tick, ...tick.overview };
  setClock(tick.at_ms);
  const back = live.state !== "live";
  const now = tick.versions;
  const changed = Object.keys(now).filter((list) => back || versions[list] !== now[list]);
  versions = now;
  become("live");
  tell({ tick: live.tick, changed });
}

function open() {
  clearTimeout(again);
  source?.close();
  const opened = new EventSource(address("/events"));
  source = opened;
  opened.addEventListener("tick", onTick);
  // The browser would try again itself, but not after every kind of failure.
  opened.onerror = () => source === opened && lost();
  clearTimeout(watchdog);
  watchdog = setTimeout(silent, SILENT_MS_MAX);
}

/** Begins to listen. */
export function start() {
  if (!source) open();
}

/** Ends it, and forgets what was heard. */
export function stop() {
  source?.close();
  source = null;
  clearTimeout(watchdog);
  clearTimeout(again);
  live.tick = null;
  live.state = "connecting";
  versions = {};
}
