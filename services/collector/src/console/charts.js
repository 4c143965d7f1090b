// Line charts of our own: axes with round units, a cursor for mouse and keys, values in the legend, and a sentence for
// who cannot see them. A chart is a widget: it draws itself anew when it gets new rows or another width.

import { draw, h, s, widget } from "./dom.js";
import { bytes, clock, percent, rate, short, span } from "./fmt.js";

const HEIGHT = 150;
const LEFT = 70;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 20;
const TICKS = 4;
const SPARK_WIDTH = 84;
const SPARK_HEIGHT = 22;
const S = 1000;
const MIN = 60 * S;
const H = 60 * MIN;
/** Round steps of time, for axes. */
const TIMES = [
  S,
  2 * S,
  5 * S,
  10 * S,
  15 * S,
  30 * S,
  MIN,
  2 * MIN,
  5 * MIN,
  10 * MIN,
  15 * MIN,
  30 * MIN,
  H,
  2 * H,
  3 * H,
  6 * H,
  12 * H,
  24 * H,
];

/** How values of a kind are written, and in which steps their axis goes. */
const UNITS = {
  rate: { text: rate },
  count: { text: short, whole: true },
  time: { text: span, times: true },
  percent: { text: percent },
  bytes: { text: bytes, base: 1024 },
};

function decimalStep(raw) {
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].find((n) => n * power >= raw * 0.9999) * power;
}

function stepOf(max, unit) {
  const raw = max / TICKS;
  if (unit.times && raw >= S) return TIMES.find((step) => step >= raw) ?? Math.ceil(raw / (24 * H)) * 24 * H;
  if (unit.base) {
    const power = unit.base ** Math.max(0, Math.floor(Math.log(raw) / Math.log(unit.base)));
    return decimalStep(Math.max(1, raw / power)) * power;
  }
  const step = decimalStep(raw);
  return unit.whole ? Math.max(1, step) : step;
}

function scale(rows, series, unit) {
  const values = series
    .flatMap((line) => rows.map(line.value))
    .filter((value) => value !== null && value !== undefined);
  const max = Math.max(0, ...values) || (unit.times ? S : 1);
  const step = stepOf(max, unit);
  return { step, top: Math.ceil(max / step - 1e-9) * step };
}

/** A path through the known values; an unknown value leaves a gap. */
function path(points) {
  let text = "";
  let pen = false;
  for (const [x, y] of points) {
    if (y === null) {
      pen = false;
    } else {
      text += `${pen ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
      pen = true;
    }
  }
  return text;
}

/** A point alone, which a path would not show. */
function lonely(points) {
  return points.filter(
    ([, y], i) => y !== null && (points[i - 1]?.[1] ?? null) === null && (points[i + 1]?.[1] ?? null) === null,
  );
}

class Chart {
  constructor(el) {
    this.el = el;
    this.width = 0;
    this.cursor = null;
    new ResizeObserver(() => this.resize()).observe(el);
  }

  resize() {
    const width = Math.floor(this.el.clientWidth);
    if (width === this.width || !this.given) return;
    this.width = width;
    this.render();
  }

  update(given) {
    // The cursor stays at its moment while rows move on.
    const at = this.cursor === null ? null : this.given?.rows[this.cursor]?.at_ms;
    this.given = given;
    this.width = Math.floor(this.el.clientWidth) || 320;
    if (at !== null && at !== undefined) {
      const found = given.rows.findIndex((row) => row.at_ms >= at);
      this.cursor = found < 0 ? null : found;
    }
    this.render();
  }

  x(row) {
    const { rows } = this.given;
    const [from, to] = [rows[0].at_ms, rows[rows.length - 1].at_ms];
    return LEFT + ((row.at_ms - from) / Math.max(1, to - from)) * (this.width - LEFT - RIGHT);
  }

  y(value) {
    return value === null || value === undefined
      ? null
      : HEIGHT - BOTTOM - (value / this.top) * (HEIGHT - TOP - BOTTOM);
  }

  render() {
    const { title, rows, series, note } = this.given;
    this.unit = UNITS[this.given.unit];
    const enough = rows.length > 1;
    const { step, top } = scale(rows, series, this.unit);
    Object.assign(this, { step, top });
    const at = this.cursor ?? rows.length - 1;
    const row = rows[at];
    draw(
      this.el,
      h(
        "figcaption",
        {},
        h("span.chart-title", {}, title),
        note && h("span.muted", {}, note),
        h("span.chart-at", {}, row && this.cursor !== null ? clock(row.at_ms) : "latest"),
      ),
      h(
        "ul.legend",
        {},
        series.map((line, i) => h("li", {}, swatch(i), `${line.name} `, h("b", {}, this.text(line, row)))),
      ),
      enough
        ? this.plot(rows, series, at)
        : h("p.muted.chart-none", {}, "Nothing measured yet: the first points come in a moment."),
      h("p.sr", {}, this.summary()),
    );
  }

  text(line, row) {
    const value = row ? line.value(row) : null;
    return value === null || value === undefined ? "–" : this.unit.text(value);
  }

  plot(rows, series, at) {
    const lines = series.map((line, i) => {
      const points = rows.map((row) => [this.x(row), this.y(line.value(row))]);
      const y = this.cursor === null ? null : this.y(line.value(rows[at]));
      return s(
        "g",
        { class: `line l${i + 1}` },
        s("path", { d: path(points) }),
        lonely(points).map(([cx, cy]) => s("circle", { cx, cy, r: 1.5 })),
        y !== null && s("circle", { cx: this.x(rows[at]), cy: y, r: 3 }),
      );
    });
    const cursor =
      this.cursor === null
        ? null
        : s("line.cursor", { x1: this.x(rows[at]), x2: this.x(rows[at]), y1: TOP, y2: HEIGHT - BOTTOM });
    const drawn = s(
      "svg",
      { width: this.width, height: HEIGHT, viewBox: `0 0 ${this.width} ${HEIGHT}`, "aria-hidden": "true" },
      this.axes(rows),
      cursor,
      lines,
    );
    return h(
      "div.plot",
      {
        tabindex: "0",
        role: "slider",
        "aria-label": `${this.given.title}: arrow keys read the values`,
        "aria-valuemin": "0",
        "aria-valuemax": String(rows.length - 1),
        "aria-valuenow": String(at),
        "aria-valuetext": this.spoken(rows[at]),
        onkeydown: (event) => this.key(event),
        onpointermove: (event) => this.point(event),
        onpointerleave: () => this.move(null),
        onblur: () => this.move(null),
      },
      drawn,
    );
  }

  axes(rows) {
    const parts = [];
    for (let value = 0; value <= this.top * 1.0001; value += this.step) {
      const y = this.y(value);
      parts.push(
        s("line.grid", { x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y }),
        s("text.tick", { x: LEFT - 6, y: y + 3.5, "text-anchor": "end" }, this.unit.text(value)),
      );
    }
    const [from, to] = [rows[0].at_ms, rows[rows.length - 1].at_ms];
    const every = TIMES.find((step) => step >= (to - from) / Math.max(2, Math.floor(this.width / 110))) ?? 24 * H;
    const zone = new Date(from).getTimezoneOffset() * MIN;
    for (let at = Math.ceil((from - zone) / every) * every + zone; at <= to; at += every) {
      const x = this.x({ at_ms: at });
      const anchor = x > this.width - 30 ? "end" : x < LEFT + 20 ? "start" : "middle";
      parts.push(
        s(
          "text.tick",
          { x, y: HEIGHT - 5, "text-anchor": anchor },
          clock(at, every < MIN)
            .slice(-8)
            .trim(),
        ),
      );
    }
    return parts;
  }

  spoken(row) {
    return row
      ? `${clock(row.at_ms)}: ${this.given.series.map((line) => `${line.name} ${this.text(line, row)}`).join(", ")}`
      : "";
  }

  summary() {
    const { title, rows, series } = this.given;
    if (!rows.length) return `${title}: no values yet.`;
    const parts = series.map((line) => {
      const values = rows.map(line.value).filter((value) => value !== null && value !== undefined);
      if (!values.length) return `${line.name}: none`;
      return `${line.name}: from ${this.unit.text(Math.min(...values))} to ${this.unit.text(Math.max(...values))}, last ${this.unit.text(values[values.length - 1])}`;
    });
    return `${title} from ${clock(rows[0].at_ms)} to ${clock(rows[rows.length - 1].at_ms)}. ${parts.join("; ")}.`;
  }

  move(to) {
    if (to === this.cursor) return;
    this.cursor = to;
    this.render();
  }

  point(event) {
    const { rows } = this.given;
    const x = event.clientX - this.el.querySelector("svg").getBoundingClientRect().left;
    let best = 0;
    rows.forEach((row, i) => {
      if (Math.abs(this.x(row) - x) < Math.abs(this.x(rows[best]) - x)) best = i;
    });
    this.move(best);
  }

  key(event) {
    const last = this.given.rows.length - 1;
    const at = this.cursor ?? last;
    const to = {
      ArrowLeft: at - 1,
      ArrowDown: at - 1,
      ArrowRight: at + 1,
      ArrowUp: at + 1,
      PageDown: at - 10,
      PageUp: at + 10,
      Home: 0,
      End: last,
    }[event.key];
    if (event.key === "Escape") this.move(null);
    if (to === undefined) return;
    event.preventDefault();
    this.move(Math.min(last, Math.max(0, to)));
  }
}

const swatch = (i) =>
  s("svg", { width: 18, height: 8, class: `swatch l${i + 1}`, "aria-hidden": "true" }, s("path", { d: "M1 4H17" }));

function makeChart(el) {
  const chart = new Chart(el);
  return (given) => chart.update(given);
}

/**
 * A chart of `{ title, unit, rows, series: [{ name, value(row) }], note }`; rows have `at_ms`. Units: rate, count,
 * time, percent, bytes.
 */
export const chart = (given) => widget("figure.chart", { key: given.title }, makeChart, given);

/** A small line without axes, with its last value beside it. */
export function spark(values, text, label) {
  const known = values.filter((value) => value !== null && value !== undefined);
  const top = Math.max(...known, 1e-9) * 1.1;
  const points = values.map((value, i) => [
    1 + (i / Math.max(1, values.length - 1)) * (SPARK_WIDTH - 2),
    value === null || value === undefined ? null : SPARK_HEIGHT - 2 - (value / top) * (SPARK_HEIGHT - 4),
  ]);
  const low = known.length ? `, from ${text(Math.min(...known))} to ${text(Math.max(...known))}` : "";
  return s(
    "svg.spark",
    { width: SPARK_WIDTH, height: SPARK_HEIGHT, role: "img", "aria-label": `${label} lately${low}` },
    known.length > 1 && s("path", { d: path(points) }),
  );
}
