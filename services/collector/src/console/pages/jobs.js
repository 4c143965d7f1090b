// Jobs, newest first: how far they are, and when they may end.

import { h } from "../dom.js";
import { List } from "../list.js";
import { eta, note, progress } from "../progress.js";
import { table } from "../table.js";
import { badge, command, empty, head, jobLink, link, mono, route, when } from "../ui.js";

const STATES = [
  ["", "All states"],
  ["open", "open"],
  ["closed", "closed"],
  ["stalled", "stalled"],
  ["finished", "finished"],
  ["cancelled", "cancelled"],
  ["session", "session"],
];
/** After the last key of a name is typed. */
const TYPED_MS = 250;

const COLUMNS = [
  { label: "Job", rowHead: true, cell: (row) => jobLink(row.job) },
  { label: "State", cell: (row) => badge(row.state) },
  { label: "Queue", cell: (row) => mono(row.queue) },
  { label: "Kind", cell: (row) => mono(row.kind) },
  { label: "Progress", cls: "wide", cell: (row) => progress(row) },
  { label: "Ends in", cell: (row) => eta(row) },
  { label: "Created", cell: (row) => when(row.created_ms) },
];

const asked = (query) => ({ name: query.get("name"), state: query.get("state") });

export function jobsPage(view) {
  let typing = null;
  const list = new List(view, { path: "/jobs", params: asked(view.query), what: "jobs", changed: () => render() });
  // One entry of the history for all that is typed.
  const go = (params) => location.replace(route("/jobs", { ...asked(view.query), ...params }));
  const form = () =>
    h(
      "form.toolbar",
      { role: "search", onsubmit: (event) => event.preventDefault() },
      h("label", { for: "job-name" }, "Name begins with"),
      h("input.mono", {
        id: "job-name",
        type: "search",
        autocomplete: "off",
        spellcheck: "false",
        value: view.query.get("name") ?? "",
        oninput: (event) => {
          const name = event.currentTarget.value.trim();
          clearTimeout(typing);
          typing = setTimeout(() => !view.closed && go({ name }), TYPED_MS);
        },
      }),
      h("label", { for: "job-state" }, "State"),
      h(
        "select",
        {
          id: "job-state",
          value: view.query.get("state") ?? "",
          onchange: (event) => go({ state: event.currentTarget.value }),
        },
        STATES.map(([value, text]) => h("option", { value }, text)),
      ),
      list.holdButton(),
    );
  const none = () =>
    view.query.get("name") || view.query.get("state")
      ? empty("No job fits", h("p", {}, link("#/jobs", "Show all jobs")))
      : empty(
          "There is no job yet",
          h("p", {}, "A job is many tasks submitted together:"),
          command("millpond map is_prime --range 1..=10000"),
        );
  const render = () => {
    note(list.rows ?? []);
    view.draw(
      head("Jobs"),
      form(),
      list.draw(
        (rows) => table({ caption: "Jobs, newest first", columns: COLUMNS, rows, key: (row) => row.job }),
        none,
      ),
    );
  };
  view.title("Jobs");
  render();
  list.window();
  view.onChange(["jobs", "tasks"], () => list.refresh());
  return {
    onQuery: (query) => {
      list.reset(asked(query));
      render();
      list.window();
    },
  };
}
