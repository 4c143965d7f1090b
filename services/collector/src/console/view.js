// What a page has while it is shown: where it draws, which events it gets, how it fetches. Ends with the page, and all it fetched
// for with it.

import { get, isAbort } from "./api.js";
import { draw } from "./dom.js";
import { live, subscribe } from "./live.js";

/** A list that changes all the time is fetched this often at the most. */
export const REFRESH_MS_MIN = 1000;

export class View {
  constructor(root, { path, name, query }) {
    this.root = root;
    this.path = path;
    this.name = name;
    this.query = query;
    this.abort = new AbortController();
    this.ends = [() => this.abort.abort()];
  }

  get closed() {
    return this.abort.signal.aborted;
  }

  /** Shows these nodes instead of those before. */
  draw(...nodes) {
    if (!this.closed) draw(this.root, ...nodes);
  }

  title(text) {
    document.title = `${text} · millpond`;
  }

  get(path, params, options = {}) {
    return get(path, params, { signal: this.abort.signal, ...options });
  }

  /** Runs at each tick, and at once when there was one. */
  onTick(hears) {
    this.ends.push(subscribe(({ tick }) => tick && hears(tick)));
    if (live.tick) hears(live.tick);
  }

  /**
   * Runs when one of these lists has changed: not more than once a second, one after the other, and not while nobody
   * looks.
   */
  onChange(lists, does) {
    const run = this.throttled(does);
    this.ends.push(subscribe(({ changed }) => changed?.some((list) => lists.includes(list)) && run()));
  }

  throttled(does, ms = REFRESH_MS_MIN) {
    let last = 0;
    let busy = false;
    let asked = false;
    const run = async () => {
      asked = true;
      if (busy || this.closed || document.hidden) return;
      busy = true;
      await new Promise((go) => setTimeout(go, Math.max(0, last + ms - Date.now())));
      asked = false;
      last = Date.now();
      if (!this.closed) await does();
      busy = false;
      if (asked) run();
    };
    const seen = () => asked && run();
    document.addEventListener("visibilitychange", seen);
    this.ends.push(() => document.removeEventListener("visibilitychange", seen));
    return run;
  }

  every(ms, does) {
    const run = this.throttled(does, 0);
    const timer = setInterval(run, ms);
    this.ends.push(() => clearInterval(timer));
  }

  /** Waits for an answer; null when the page was left. A fault goes to `fails`. */
  async load(asks, fails) {
    try {
      const answer = await asks();
      return this.closed ? null : answer;
    } catch (fault) {
      if (!this.closed && !isAbort(fault)) fails(fault);
      return null;
    }
  }

  close() {
    this.ends.forEach((end) => end());
  }
}
