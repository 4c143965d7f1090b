// Tables: dense rows where there is room, cards where there is not. Rows have keys, so that drawing again keeps what
// is inside.

import { h } from "./dom.js";

function cells(columns, row) {
  return columns.map((column, i) => {
    const classes = [column.num ? "num" : "", column.cls ?? "", (column.main ?? i === 0) ? "main" : ""].join(" ");
    return h(
      column.rowHead ? "th" : "td",
      {
        class: classes,
        scope: column.rowHead ? "row" : null,
        role: column.rowHead ? "rowheader" : "cell",
        "data-label": column.label,
      },
      column.cell(row),
    );
  });
}

/**
 * `columns`: `{ label, cell(row), num, cls, head }`; `key(row)`; `more(row)` answers what is shown below an open row, or null.
 * Roles are named because the cards of narrow screens are no tables to a browser.
 */
export function table({ caption, columns, rows, key, more = () => null, cls = "" }) {
  const heads = columns.map((column) =>
    h(
      "th",
      { scope: "col", role: "columnheader", class: [column.num ? "num" : "", column.cls ?? ""].join(" ") },
      column.head ?? column.label,
    ),
  );
  const body = rows.flatMap((row) => {
    const id = key(row);
    const below = more(row);
    const shown = [h("tr", { key: id, role: "row", class: below ? "opened" : "" }, cells(columns, row))];
    if (below)
      shown.push(
        h("tr.more", { key: `${id} more`, role: "row" }, h("td", { colspan: columns.length, role: "cell" }, below)),
      );
    return shown;
  });
  return h(
    "div.scroll",
    {},
    h(
      "table",
      { class: cls, role: "table" },
      h("caption.sr", {}, caption),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads)),
      h("tbody", { role: "rowgroup" }, body),
    ),
  );
}

/** The button that opens and closes a row. */
export function opener(open, what, toggle) {
  return h(
    "button.opener",
    { type: "button", "aria-expanded": open, "aria-label": `${open ? "Hide" : "Show"} ${what}`, onclick: toggle },
    h("span", { "aria-hidden": "true" }, open ? "▾" : "▸"),
  );
}
