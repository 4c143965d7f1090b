// The shell: navigation, connection state, theme, log in and out, and which page the address means.

import { loadSession, onSessionEnd, post, session } from "./api.js";
import { draw, h } from "./dom.js";
import { short } from "./fmt.js";
import { live, start, stop, subscribe } from "./live.js";
import { deadPage } from "./pages/dead_letters.js";
import { jobPage } from "./pages/job.js";
import { jobsPage } from "./pages/jobs.js";
import { deadLetterPage } from "./pages/dead_letter.js";
import { loginPage } from "./pages/login.js";
import { overviewPage } from "./pages/overview.js";
import { queuesPage } from "./pages/queues.js";
import { schedulesPage } from "./pages/schedules.js";
import { taskPage } from "./pages/task.js";
import { tasksPage } from "./pages/tasks.js";
import { workersPage } from "./pages/workers.js";
import { alarm, button, countTimes, empty, failed, head, link } from "./ui.js";
import { View } from "./view.js";

/** Between two tries to learn who is logged in. */
const SESSION_AGAIN_MS = 3000;
const FIRST = "#/overview";
const NAV = [
  ["overview", "Overview"],
  ["queues", "Queues"],
  ["jobs", "Jobs"],
  ["tasks", "Tasks"],
  ["workers", "Workers"],
  ["dead", "Dead letters"],
  ["schedules", "Schedules"],
];
/** A page, and the entry of the navigation that it belongs to. */
const PAGES = {
  overview: [overviewPage, "overview"],
  queues: [queuesPage, "queues"],
  jobs: [jobsPage, "jobs"],
  job: [jobPage, "jobs"],
  tasks: [tasksPage, "tasks"],
  task: [taskPage, "tasks"],
  workers: [workersPage, "workers"],
  dead: [deadPage, "dead"],
  dead_letter: [deadLetterPage, "dead"],
  schedules: [schedulesPage, "schedules"],
};

const top = document.getElementById("top");
const main = document.getElementById("main");
const dark = matchMedia("(prefers-color-scheme: dark)");
let view = null;
let page = null;
let unheard = null;

/** `#/jobs/j1?x=1` as `{ path, page, name, query }`. */
function readAddress() {
  const [path, query] = (location.hash.startsWith("#/") ? location.hash : FIRST).slice(1).split("?");
  const [, first, ...rest] = path.split("/");
  let name = rest.join("/");
  try {
    name = decodeURIComponent(name);
  } catch {
    // A name with a stray percent sign is taken as it is.
  }
  const found = first === "jobs" && name ? "job" : first;
  return { path, page: found, name, query: new URLSearchParams(query ?? "") };
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : dark.matches;
}

function toggleTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("millpond-theme", theme);
  } catch {
    // The choice holds until the page is loaded again.
  }
  drawTop();
}

function connection() {
  const [cls, text] = {
    live: ["ok", "Live"],
    lost: ["lost", "Connection lost, retrying"],
    connecting: ["wait", "Connecting"],
  }[live.state];
  return h("p.link-state", { role: "status", class: cls }, h("span.dot", { "aria-hidden": "true" }), text);
}

function count(of) {
  const dead = live.tick?.totals?.dead;
  const troubles = live.tick?.problems?.filter((problem) => !problem.mended).length;
  if (of === "dead" && dead) return h("span.count", {}, short(dead), h("span.sr", {}, " wait"));
  if (of === "overview" && troubles)
    return h("span.count.bad", {}, short(troubles), h("span.sr", {}, troubles === 1 ? " problem" : " problems"));
  return null;
}

function drawTop() {
  const here = PAGES[readAddress().page]?.[1];
  const entry = ([name, text]) =>
    h("li", {}, link(`#/${name}`, [text, count(name)], { "aria-current": here === name ? "page" : null }));
  const brand = h(
    "a.brand",
    { href: FIRST },
    h("img", { src: "logo.svg", alt: "", width: 28, height: 28 }),
    "millpond",
  );
  const theme = button(isDark() ? "☀" : "☾", toggleTheme, {
    class: "plain",
    "aria-label": isDark() ? "Light theme" : "Dark theme",
    title: isDark() ? "Light theme" : "Dark theme",
  });
  const who =
    session.role &&
    h("span.role", { title: session.role === "viewer" ? "May read, not act" : "May read and act" }, session.role);
  draw(
    top,
    brand,
    session.role && h("nav", { "aria-label": "Pages" }, h("ul", {}, NAV.map(entry))),
    h(
      "div.top-right",
      {},
      session.role && connection(),
      who,
      theme,
      session.role && button("Log out", logOut, { class: "plain" }),
    ),
  );
}

function leave() {
  view?.close();
  view = null;
  page = null;
  document.querySelectorAll("dialog").forEach((dialog) => dialog.close());
}

/** Shows what the address means. The same page with another query only hears of it. */
function show() {
  if (!session.role) return;
  const address = readAddress();
  if (view && page?.onQuery && view.path === address.path) {
    view.query = address.query;
    page.onQuery(address.query);
    return;
  }
  const moved = view !== null;
  leave();
  view = new View(main, address);
  const [make] = PAGES[address.page] ?? [];
  if (make) {
    page = make(view) ?? null;
  } else {
    view.title("Not found");
    view.draw(head("Not found"), empty("There is no such page", h("p", {}, link(FIRST, "To the overview"))));
  }
  drawTop();
  const nav = top.querySelector("nav");
  const here = nav?.querySelector("[aria-current]");
  if (here) nav.scrollLeft = here.offsetLeft - (nav.clientWidth - here.offsetWidth) / 2;
  if (moved) {
    window.scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
}

function logIn() {
  leave();
  stop();
  session.role = null;
  drawTop();
  view = new View(main, readAddress());
  loginPage(view, enter);
}

function enter() {
  leave();
  start();
  unheard ??= subscribe(drawTop);
  drawTop();
  show();
}

async function logOut() {
  try {
    await post("/logout");
    logIn();
  } catch (fault) {
    alarm(fault.message);
  }
}

async function begin() {
  try {
    if (await loadSession()) enter();
    else logIn();
  } catch (fault) {
    draw(main, failed(fault, begin));
    setTimeout(() => !session.role && begin(), SESSION_AGAIN_MS);
  }
}

onSessionEnd(() => session.role && logIn());
addEventListener("hashchange", show);
dark.addEventListener("change", drawTop);
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
setInterval(countTimes, 1000);
drawTop();
begin();
