// Tasks that have started or ended, newest first, by whatever is known of them.

import { address } from "../api.js";
import { h } from "../dom.js";
import { filterForm, params } from "../filters.js";
import { known, num, took } from "../fmt.js";
import { List } from "../list.js";
import { table } from "../table.js";
import { badge, command, empty, failed, head, jobLink, link, loading, mono, route, taskLink, when } from "../ui.js";

const STATUSES = [
  ["", "All"],
  ["done", "done"],
  ["retrying", "retrying"],
  ["dead", "dead"],
  ["cancelled", "cancelled"],
  ["partial", "partial"],
];
const NAMES = ["job", "queue", "kind", "status", "worker", "error", "range"];
const FIELDS = [
  { name: "id", label: "Id", hint: "the whole id", wide: true },
  { name: "job", label: "Job" },
  { name: "queue", label: "Queue", list: "known-queues" },
  { name: "kind", label: "Kind" },
  { name: "status", label: "Status", options: STATUSES },
  { name: "worker", label: "Worker" },
  { name: "range", label: "Published" },
  { name: "error", label: "Text in error", hint: "in type or message" },
];

/** From when it was published to when it ended. */
const lasted = (row) => (known(row.ended_ms) && known(row.published_ms) ? took(row.ended_ms - row.published_ms) : "–");

const COLUMNS = [
  {
    label: "Task",
    rowHead: true,
    cls: "id",
    cell: (row) => [
      taskLink(row),
      row.items > 0 && h("span.muted", {}, ` batch, ${num(row.done)} of ${num(row.items)} done`),
    ],
  },
  { label: "Status", cell: (row) => badge(row.status) },
  { label: "Queue", cell: (row) => mono(row.queue) },
  { label: "Kind", cell: (row) => mono(row.kind) },
  { label: "Job", cls: "id", cell: (row) => jobLink(row.job) },
  { label: "Attempt", num: true, cell: (row) => num(row.attempt) },
  { label: "Worker", cell: (row) => mono(row.worker) },
  { label: "Published", cell: (row) => when(row.published_ms) },
  { label: "Took", num: true, cell: lasted },
];

/** An id alone: that task, of whichever queue and kind. */
function one(view, changed) {
  let found = null;
  let fault = null;
  const ask = async () => {
    found = fault = null;
    const answer = await view.load(
      () => view.get("/task", { id: view.query.get("id"), queue: view.query.get("queue"), kind: view.query.get("kind") }),
      (wrong) => (fault = wrong),
    );
    found = answer;
    changed();
  };
  const shown = () => {
    const id = view.query.get("id");
    if (found)
      return [
        h("p.muted", {}, "Searched by id: the other filters do not count."),
        table({ caption: "The task", columns: COLUMNS, rows: [found], key: (row) => `${row.queue} ${row.kind} ${row.id}` }),
      ];
    if (fault?.status === 404) {
      return empty(
        "Nothing of this id has ended an attempt",
        h(
          "p",
          {},
          "It may still wait or run: ",
          link(
            route("/task", { id, queue: view.query.get("queue"), kind: view.query.get("kind") }),
            "where is it?",
          ),
        ),
      );
    }
    if (fault?.status === 409) {
      const places = fault.message.split(": ").pop().split(", ");
      const place = (text) => {
        const [queue, kind] = text.split(".");
        return h("li", {}, link(route("/task", { id, queue, kind }), text, { class: "mono" }));
      };
      return empty("Tasks of several queues or kinds have this id", h("ul", {}, places.map(place)));
    }
    return fault ? failed(fault, ask) : loading("the task");
  };
  return { ask, shown };
}

export function tasksPage(view) {
  const list = new List(view, {
    path: "/tasks",
    params: params(view.query, NAMES),
    what: "tasks",
    changed: () => render(),
  });
  const single = one(view, () => render());
  const byId = () => view.query.has("id");
  const none = () =>
    NAMES.some((name) => view.query.has(name))
      ? empty(
          "No task fits",
          h("p", {}, "A task is listed once it has ended an attempt. ", link("#/tasks", "Show all tasks")),
        )
      : empty(
          "No task has ended an attempt yet",
          h("p", {}, "Give the cluster one:"),
          command("millpond submit square 12 --wait"),
        );
  const render = () => {
    const asked = params(view.query, NAMES);
    const download =
      !byId() &&
      link(address("/tasks.ndjson", asked), "Download", {
        class: "button",
        download: "tasks.ndjson",
        title: "all rows that fit, one JSON object a line",
      });
    view.draw(
      head("Tasks", download, !byId() && list.holdButton()),
      filterForm("/tasks", FIELDS, view.query),
      byId()
        ? single.shown()
        : list.draw(
            (rows) =>
              table({ caption: "Tasks, newest first", columns: COLUMNS, rows, key: (row) => `${row.queue} ${row.kind} ${row.id}` }),
            none,
          ),
    );
  };
  const ask = () => {
    // A range such as the last hour moves along.
    list.params = params(view.query, NAMES);
    return byId() ? single.ask() : list.window();
  };
  view.title("Tasks");
  render();
  ask();
  view.onChange(["tasks"], () => (byId() ? null : list.refresh()));
  return {
    onQuery: (query) => {
      list.reset(params(query, NAMES));
      render();
      ask();
    },
  };
}
