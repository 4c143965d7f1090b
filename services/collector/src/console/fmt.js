// Numbers, sizes and times as text. The clock is the collector's: each tick sets it by `setClock`.

const NUMBER = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
/** A difference to the collector's clock below this is not one. */
const SKEW_MS_MIN = 2000;

let skew = 0;

/** Sets the clock: the collector's time is `at` now. */
export function setClock(at) {
  const found = at - Date.now();
  skew = Math.abs(found) < SKEW_MS_MIN ? 0 : found;
}

/** Now, by the collector's clock, in Unix milliseconds. */
export const now = () => Date.now() + skew;

export const known = (value) => value !== null && value !== undefined && value !== "";
export const num = (n) => (known(n) ? NUMBER.format(n) : "–");
export const short = (n) =>
  known(n) ? (Math.abs(n) < 10_000 ? NUMBER.format(Math.round(n * 10) / 10) : SHORT.format(n)) : "–";
export const percent = (n) => (known(n) ? `${n < 10 ? Math.round(n * 10) / 10 : Math.round(n)} %` : "–");

export function rate(n) {
  if (!known(n)) return "–";
  return `${n === 0 ? "0" : n < 0.01 ? "< 0.01" : n < 0.1 ? n.toFixed(2) : n < 100 ? NUMBER.format(Math.round(n * 10) / 10) : short(Math.round(n))}/s`;
}

export function bytes(n) {
  if (!known(n)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${unit === 0 || n >= 100 ? Math.round(n) : Math.round(n * 10) / 10} ${units[unit]}`;
}

function two(n, big, bigUnit, small, smallUnit) {
  const rest = Math.floor((n % big) / small);
  return `${Math.floor(n / big)} ${bigUnit}${rest ? ` ${rest} ${smallUnit}` : ""}`;
}

/** A length of time, given in milliseconds. */
export function span(ms) {
  if (!known(ms)) return "–";
  const n = Math.max(0, ms);
  if (n < 1) return n === 0 ? "0 ms" : "< 1 ms";
  if (n < SECOND) return `${Math.round(n)} ms`;
  if (n < 10 * SECOND) return `${(Math.floor(n / 100) / 10).toString()} s`;
  if (n < MINUTE) return `${Math.floor(n / SECOND)} s`;
  if (n < HOUR) return two(n, MINUTE, "min", SECOND, "s");
  if (n < DAY) return two(n, HOUR, "h", MINUTE, "min");
  return two(n, DAY, "d", HOUR, "h");
}

/** How long something took: moments are whole milliseconds, so nothing took none. */
export const took = (ms) => (ms < 1 ? "< 1 ms" : span(ms));

/** `12 s ago` or `in 3 min`. */
export function relative(ms) {
  const away = ms - now();
  if (Math.abs(away) < SECOND) return "now";
  const whole = Math.floor(Math.abs(away) / SECOND) * SECOND;
  return away < 0 ? `${span(whole)} ago` : `in ${span(whole)}`;
}

const pad = (n, digits = 2) => String(n).padStart(digits, "0");

/** `14:03:07`, with the day where it is not today's. */
export function clock(ms, seconds = true) {
  const d = new Date(ms);
  const time = `${pad(d.getHours())}:${pad(d.getMinutes())}${seconds ? `:${pad(d.getSeconds())}` : ""}`;
  const today = new Date(now()).toDateString() === d.toDateString();
  return today ? time : `${d.getFullYear()}-${pad(d.getMonth() + 1)}-${pad(d.getDate())} ${time}`;
}

/** The exact local time, with milliseconds and the offset. */
export function exact(ms) {
  const d = new Date(ms);
  const offset = -d.getTimezoneOffset();
  const zone = `${offset < 0 ? "-" : "+"}${pad(Math.floor(Math.abs(offset) / 60))}:${pad(Math.abs(offset) % 60)}`;
  const day = `${d.getFullYear()}-${pad(d.getMonth() + 1)}-${pad(d.getDate())}`;
  return `${day} ${pad(d.getHours())}:${pad(d.getMinutes())}:${pad(d.getSeconds())}.${pad(d.getMilliseconds(), 3)} ${zone}`;
}

/** `one task`, `1,200 tasks`. */
export const many = (n, one, several = `${one}s`) => `${num(n)} ${n === 1 ? one : several}`;

/** Milliseconds of `90`, `30s`, `10m`, `2h`, `1d` (a bare number: minutes); null when it cannot be read. */
export function readSpan(text) {
  const found = /^\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|d)?\s*$/.exec(text);
  if (!found) return null;
  const unit = { s: SECOND, m: MINUTE, min: MINUTE, h: HOUR, d: DAY }[found[2] ?? "m"];
  return Math.round(Number(found[1]) * unit);
}
