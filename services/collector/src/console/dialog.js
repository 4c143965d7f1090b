// Dialogs: a question with fields, answered or left; the focus goes back to where it came from.

import { draw, h } from "./dom.js";

let count = 0;

/** What a field of a form holds. */
function read(field) {
  const input = field.input;
  return input.type === "checkbox" ? input.checked : input.value.trim();
}

function fieldOf({ name, label, type = "text", options, hint, value, ...props }) {
  const id = `field-${(count += 1)}`;
  const described = hint ? `${id}-hint` : null;
  const shared = { id, name, "aria-describedby": described, autocomplete: "off", spellcheck: "false", ...props };
  let input;
  if (type === "select") {
    input = h(
      "select",
      { ...shared, value: value ?? "" },
      options.map(([of, text]) => h("option", { value: of }, text)),
    );
  } else if (type === "textarea") {
    input = h("textarea.mono", { ...shared, rows: 10, value: value ?? "" });
  } else if (type === "checkbox") {
    input = h("input", { ...shared, type, checked: value === true });
  } else {
    input = h("input", { ...shared, type, value: value ?? "" });
  }
  const text = h("label", { for: id }, label);
  const el = h(
    "div.field",
    { class: type === "checkbox" ? "check" : "" },
    type === "checkbox" ? [input, text] : [text, input],
    hint && h("p.hint", { id: described }, hint),
  );
  return { name, input, el };
}

function shell(title, inside) {
  const id = `dialog-${(count += 1)}`;
  const opener = document.activeElement;
  const dialog = h("dialog", { "aria-labelledby": id }, h("h2", { id }, title), inside);
  dialog.addEventListener("close", () => {
    dialog.remove();
    const back = opener?.isConnected && opener !== document.body ? opener : document.getElementById("main");
    back.focus({ preventScroll: true });
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * Opens a question. `does(values)` runs on the answer; when it throws, its message is shown and the dialog stays. `typed` is a text that must be
 * typed first. `check(values)` returns what is wrong, or null.
 */
export function askFor({ title, text = [], fields = [], ok, danger = false, typed = null, check = null, does }) {
  const made = fields.map(fieldOf);
  const confirm = typed === null ? null : fieldOf({ name: "typed", label: `Type ${typed} to confirm`, class: "mono" });
  const wrong = h("p.wrong", { role: "alert" });
  const go = h("button.button", { type: "submit", class: danger ? "danger" : "primary" }, ok);
  const leave = h("button.button", { type: "button" }, "Leave it");
  const form = h(
    "form",
    { method: "dialog" },
    text.map((line) => (line instanceof Node ? line : h("p", {}, line))),
    made.map((field) => field.el),
    confirm?.el,
    wrong,
    h("div.buttons", {}, leave, go),
  );
  const dialog = shell(title, form);
  const ready = () => {
    go.disabled = confirm !== null && read(confirm) !== typed;
  };
  ready();
  form.addEventListener("input", ready);
  leave.addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (go.disabled) return;
    const values = Object.fromEntries(made.map((field) => [field.name, read(field)]));
    const complaint = check?.(values);
    if (complaint) {
      draw(wrong, complaint);
      return;
    }
    go.disabled = true;
    draw(wrong);
    try {
      await does(values);
      dialog.close();
    } catch (fault) {
      draw(wrong, fault.message);
      ready();
    }
  });
  (confirm ?? made[0])?.input.focus();
  return dialog;
}

/** A dialog that draws its own inside; answers the dialog, and where to draw. */
export function openPanel(title) {
  const inside = h("div.dialog-body");
  return { dialog: shell(title, inside), inside };
}
