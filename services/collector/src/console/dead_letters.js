// What can be done with dead letters: the selected ones, all that fit a filter (request after request), or one in
// another way.

import { post } from "./api.js";
import { askFor, openPanel } from "./dialog.js";
import { draw, h } from "./dom.js";
import { many, now, num, span } from "./fmt.js";
import { pretty } from "./json_text.js";
import { badge, button, mono, toast } from "./ui.js";

/** Dead letters of one request at the most. */
const DEAD_LETTERS_MAX = 1000;
/** Dead letters of one request where no rate is given: the run can be stopped between two requests. */
const DEAD_LETTERS_STEP = 200;
/** With a rate a request takes about this long. */
const STEP_S = 2;
/** Refusals that are shown. */
const ERRORS_SHOWN = 50;

const VERBS = {
  retry: {
    does: "Retry",
    doing: "Retrying",
    done: "retried",
    means: "Each runs again as its next attempt, with as many attempts as it first had.",
  },
  purge: {
    does: "Purge",
    doing: "Purging",
    done: "purged",
    means: "Their arguments are thrown away for good; the evidence stays with the task. This cannot be taken back.",
  },
};

const named = ({ queue, kind, id, attempt }) => ({ queue, kind, id, attempt });

/** Reports how it went. */
function report(rows, verb) {
  const bad = rows.filter((row) => !row.ok);
  if (bad.length)
    throw new Error(`${num(rows.length - bad.length)} ${VERBS[verb].done}, ${num(bad.length)} not: ${bad[0].error}`);
  toast(`${many(rows.length, "dead letter")} ${VERBS[verb].done}`);
}

/** Acts on these dead letters, after a question. */
export function actOn(verb, deadLetters, done) {
  const { does, means } = VERBS[verb];
  askFor({
    title: `${does} ${many(deadLetters.length, "dead letter")}`,
    danger: verb === "purge",
    text: [means],
    ok: does,
    does: async () => {
      const rows = [];
      for (let at = 0; at < deadLetters.length; at += DEAD_LETTERS_MAX) {
        const some = deadLetters.slice(at, at + DEAD_LETTERS_MAX).map(named);
        rows.push(...(await post(`/dead/${verb}`, { dead_letters: some })).rows);
      }
      done();
      report(rows, verb);
    },
  });
}

/** Runs one dead letter again: in another queue, or with other arguments. */
export function retryOne(deadLetter, done) {
  const given = deadLetter.payload?.text ?? deadLetter.payload_text ?? (deadLetter.payload === null ? "null" : null);
  const had = given === null ? "" : pretty(given);
  const hint =
    given !== null
      ? "JSON; left as it is, it runs with what it had, byte for byte"
      : "JSON; empty: it runs with what it had, which is not shown here";
  askFor({
    title: "Retry this dead letter",
    text: [h("p.mono", {}, deadLetter.id)],
    fields: [
      {
        name: "queue",
        label: "Queue",
        class: "mono",
        value: deadLetter.queue,
        hint: "in another queue it becomes a new task that points back to this one",
      },
      { name: "arguments", label: "Arguments", type: "textarea", value: had, hint },
    ],
    check: (values) => {
      if (!/^(?!-$)[\w-]{1,64}$/.test(values.queue)) return "A queue is 1 to 64 characters of A-Z a-z 0-9 _ -.";
      if (values.arguments === had.trim() || values.arguments === "") return null;
      try {
        JSON.parse(values.arguments);
        return null;
      } catch (fault) {
        return `The arguments are not JSON: ${fault.message}`;
      }
    },
    ok: "Retry",
    does: async (values) => {
      const body = { dead_letters: [named(deadLetter)] };
      if (values.queue !== deadLetter.queue) body.queue = values.queue;
      // As it was typed: numbers of any length stay as they are.
      const other = values.arguments !== had.trim() && values.arguments !== "";
      const texts = other ? { arguments: values.arguments } : {};
      const { rows } = await post("/dead/retry", body, { texts });
      account(rows, "retry");
      done(rows[0]);
    },
  });
}

/** Acts on all dead letters that fit: counts them, then sends one request after the other, until none is left or the user stops. */
class Run {
  constructor(verb, filter, done) {
    Object.assign(this, { verb, done });
    // What dies after this moment is not part of it: a retry that fails again does not come round for ever.
    this.filter = { ...filter, until: filter.until ?? String(Math.floor(now())) };
    this.count = { ok: 0, bad: 0 };
    this.errors = [];
    this.phase = "looking";
    const { dialog, inside } = openPanel(`${VERBS[verb].does} all that fit`);
    Object.assign(this, { dialog, inside });
    dialog.addEventListener("cancel", (event) => this.phase === "running" && event.preventDefault());
    dialog.addEventListener("close", () => this.leave());
    this.look();
  }

  leave() {
    this.stopped = true;
    if (this.count.ok + this.count.bad) this.done();
  }

  async look() {
    this.render();
    try {
      const answer = await post(`/dead/${this.verb}`, { filter: this.filter, limit: 1, dry_run: true });
      Object.assign(this, { matched: answer.matched ?? answer.rows.length, phase: "asking" });
    } catch (fault) {
      Object.assign(this, { phase: "failed", fault });
    }
    this.render();
  }

  async run(rate) {
    Object.assign(this, { phase: "running", stopped: false, started: Date.now() });
    const limit = rate ? Math.min(DEAD_LETTERS_MAX, Math.max(1, rate * STEP_S)) : DEAD_LETTERS_STEP;
    let after = this.after ?? null;
    this.render();
    try {
      do {
        const answer = await post(`/dead/${this.verb}`, {
          filter: this.filter,
          limit,
          ...(after ? { after } : {}),
          ...(rate ? { rate } : {}),
        });
        for (const row of answer.rows) this.take(row);
        after = answer.next;
        this.after = after;
        this.render();
      } while (after && !this.stopped);
      this.phase = after ? "stopped" : "ended";
    } catch (fault) {
      Object.assign(this, { phase: "stopped", fault });
    }
    this.rate = rate;
    if (this.dialog.isConnected) this.render();
    else toast(`${VERBS[this.verb].doing} ended: ${this.summary()}`);
  }

  take(row) {
    this.count[row.ok ? "ok" : "bad"] += 1;
    if (!row.ok && this.errors.length < ERRORS_SHOWN) this.errors.push(row);
  }

  summary() {
    const { ok, bad } = this.count;
    return `${num(ok)} ${VERBS[this.verb].done}${bad ? `, ${num(bad)} not` : ""} of ${num(this.matched)}`;
  }

  filterText() {
    const parts = Object.entries(this.filter)
      .filter(([name]) => name !== "until")
      .map(
        ([name, value]) =>
          `${name} ${name === "since" ? new Date(/^\d+$/.test(value) ? Number(value) : value).toLocaleString("en") : value}`,
      );
    return parts.length ? parts.join(", ") : "no filter: all dead letters";
  }

  question() {
    const { does, means } = VERBS[this.verb];
    if (!this.matched)
      return [h("p", {}, "No dead letter fits (any more)."), this.buttons(button("Close", () => this.dialog.close()))];
    return h(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          const rate = event.currentTarget.elements.rate.value.trim();
          this.run(rate === "" ? null : Number(rate));
        },
      },
      h("p.big", {}, h("b", {}, many(this.matched, "dead letter")), this.matched === 1 ? " fits" : " fit"),
      h("p.muted", {}, this.filterText()),
      h("p", {}, means),
      h(
        "div.field",
        {},
        h("label", { for: "run-rate" }, "Dead letters a second, at the most"),
        h("input", {
          id: "run-rate",
          name: "rate",
          type: "number",
          min: "1",
          max: "100000",
          step: "1",
          "aria-describedby": "run-rate-hint",
        }),
        h("p.hint", { id: "run-rate-hint" }, "empty: as fast as it goes"),
      ),
      this.buttons(
        button("Leave it", () => this.dialog.close()),
        h(
          "button.button",
          { type: "submit", class: this.verb === "purge" ? "danger" : "primary" },
          `${does} ${num(this.matched)}`,
        ),
      ),
    );
  }

  buttons(...these) {
    return h("div.buttons", {}, ...these);
  }

  course() {
    const { ok, bad } = this.count;
    const whole = Math.max(1, this.matched, ok + bad);
    const running = this.phase === "running";
    const per_ms = (ok + bad) / Math.max(1, Date.now() - this.started);
    const rest = running && per_ms > 0 ? ` · about ${span(Math.max(1000, (whole - ok - bad) / per_ms))} to go` : "";
    const bar = h(
      "div.progress.large",
      {},
      h(
        "div.bar",
        {
          role: "progressbar",
          "aria-label": VERBS[this.verb].doing,
          "aria-valuemin": "0",
          "aria-valuemax": String(whole),
          "aria-valuenow": String(ok + bad),
        },
        h("span.part-done", { css: { width: `${(ok / whole) * 100}%` } }),
        h("span.part-dead", { css: { width: `${(bad / whole) * 100}%` } }),
      ),
      h("p.bar-text", { role: "status" }, `${this.summary()}${rest}`),
    );
    const title = {
      running: VERBS[this.verb].doing,
      ended: "Finished",
      stopped: this.fault ? "It stopped" : "Stopped",
    }[this.phase];
    return [
      h("p", {}, badge(running ? "running" : this.fault ? "failed" : "done", title)),
      bar,
      this.fault && h("p.wrong", { role: "alert" }, this.fault.message),
      this.errors.length > 0 &&
        h(
          "details",
          {},
          h("summary", {}, `${many(bad, "refusal")}`),
          h(
            "ul.refusals",
            {},
            this.errors.map((row) => h("li", { key: `${row.queue} ${row.kind} ${row.id}` }, mono(row.id), ` ${row.error}`)),
          ),
        ),
      running
        ? this.buttons(button(this.stopped ? "Stopping…" : "Stop", () => this.stop(), { class: "danger" }))
        : this.buttons(
            button("Close", () => this.dialog.close()),
            this.phase === "stopped" && button("Go on", () => this.goOn(), { class: "primary" }),
          ),
    ];
  }

  stop() {
    this.stopped = true;
    this.render();
  }

  goOn() {
    this.fault = null;
    this.run(this.rate);
  }

  render() {
    const inside = {
      looking: () => h("p.muted", {}, "Counting what fits…"),
      failed: () => [
        h("p.wrong", { role: "alert" }, this.fault.message),
        this.buttons(button("Close", () => this.dialog.close())),
      ],
      asking: () => this.question(),
    }[this.phase];
    draw(this.inside, (inside ?? (() => this.course()))());
  }
}

/** Retries or purges all dead letters that fit. */
export const actOnAll = (verb, filter, done) => new Run(verb, filter, done);
