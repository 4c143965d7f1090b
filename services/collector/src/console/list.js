// Lists of the collector, refreshed while they are shown: `List` page by page, a window of some hundred rows over any
// number; `whole` in one piece.

import { h } from "./dom.js";
import { many } from "./fmt.js";
import { button, failed, head, loading } from "./ui.js";

const PAGE_ROWS = 100;
/** Rows in the document at the most: further pages push the first ones out. */
const WINDOW_PAGES = 4;

export class List {
  /** `path` and `params` are the request; `changed` runs whenever there is something to draw. */
  constructor(view, { path, params = {}, what, changed, exact = false }) {
    Object.assign(this, { view, path, params, what, changed, exact });
    this.reset(params);
  }

  /** Begins anew with other filters. */
  reset(params) {
    this.params = params;
    this.asked = (this.asked ?? 0) + 1;
    // `starts[i]` is the cursor of page i; those from `first` on are shown.
    this.starts = [null];
    this.first = 0;
    this.rows = null;
    this.next = null;
    this.fault = null;
    this.held = false;
    this.busy = false;
  }

  get pages() {
    return this.starts.length - this.first;
  }

  async ask(after, limit) {
    const asked = (this.asked += 1);
    const ask = () => this.view.get(this.path, { ...this.params, after, limit }, { exact: this.exact });
    const answer = await this.view.load(ask, (fault) => {
      if (asked !== this.asked) return;
      this.fault = fault;
      this.busy = false;
      this.changed();
    });
    return asked === this.asked ? answer : null;
  }

  /** Fetches the shown window again. */
  async refresh() {
    if (this.held || this.busy) return;
    await this.window();
  }

  async window() {
    const answer = await this.ask(this.starts[this.first], this.pages * PAGE_ROWS);
    if (!answer) return;
    Object.assign(this, { rows: answer.rows, next: answer.next, fault: null });
    this.changed();
  }

  async more() {
    if (!this.next || this.busy) return;
    this.busy = true;
    this.changed();
    this.starts.push(this.next);
    if (this.pages > WINDOW_PAGES) {
      this.first = this.starts.length - WINDOW_PAGES;
      await this.window();
    } else {
      const answer = await this.ask(this.next, PAGE_ROWS);
      if (answer) Object.assign(this, { rows: [...this.rows, ...answer.rows], next: answer.next, fault: null });
      else this.starts.pop();
    }
    this.busy = false;
    this.changed();
  }

  async newer() {
    this.starts.length = Math.max(1, this.starts.length - 1);
    this.first = Math.max(0, this.first - 1);
    await this.window();
  }

  async top() {
    this.starts = [null];
    this.first = 0;
    await this.window();
    window.scrollTo(0, 0);
  }

  hold() {
    this.held = !this.held;
    if (!this.held) this.refresh();
    this.changed();
  }

  /** The whole list; `shown(rows)` draws those that there are, `none()` draws why there are none. */
  draw(shown, none) {
    if (!this.rows) return this.fault ? failed(this.fault, () => this.window()) : loading(this.what);
    const trouble = this.fault && h("p.warn", { role: "alert" }, `Not up to date: ${this.fault.message}`);
    if (!this.rows.length && this.first === 0) return [trouble, none()];
    const before =
      this.first > 0 &&
      h(
        "div.paging",
        {},
        button("Back to the first", () => this.top()),
        button("Rows before these", () => this.newer()),
      );
    const after = h(
      "div.paging",
      {},
      this.next &&
        button(this.busy ? "Loading…" : "More", () => this.more(), { "aria-disabled": this.busy ? "true" : null }),
      h("span.muted", {}, this.tail()),
    );
    return [trouble, before, shown(this.rows), after];
  }

  tail() {
    const from = this.first * PAGE_ROWS;
    const upTo = from + this.rows.length;
    if (this.next) return from ? `rows ${from + 1} to ${upTo}, and more` : `the first ${many(upTo, "row")}, and more`;
    return from ? `rows ${from + 1} to ${upTo}, the last` : `${many(upTo, "row")}, all`;
  }

  /** Stops and starts the updates, for reading. */
  holdButton() {
    return button(this.held ? "Update again" : "Hold updates", () => this.hold(), { "aria-pressed": this.held });
  }
}

/**
 * A page with a list that comes in one piece. `body(list)` answers what is shown of `list.rows`; `list.ask()` asks again,
 * `list.take(rows)` shows rows that were heard, `list.toggle(name)` opens and closes what `list.open` has.
 */
export function whole(view, { title, what, path, exact = false, body }) {
  const list = { rows: null, fault: null, open: new Set() };
  list.toggle = (name) => {
    if (!list.open.delete(name)) list.open.add(name);
    list.render();
  };
  list.take = (rows) => {
    Object.assign(list, { rows, fault: null });
    list.render();
  };
  list.ask = async () => {
    const answer = await view.load(
      () => view.get(path, {}, { exact }),
      (wrong) => (list.fault = wrong),
    );
    if (answer) list.take(answer.rows);
    else list.render();
  };
  list.render = () => {
    if (!list.rows) return view.draw(head(title), list.fault ? failed(list.fault, list.ask) : loading(what));
    const late = list.fault && h("p.warn", { role: "alert" }, `Not up to date: ${list.fault.message}`);
    view.draw(head(title), late, body(list));
  };
  view.title(title);
  list.render();
  return list;
}
