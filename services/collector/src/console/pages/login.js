// The token is sent once, for a cookie that scripts cannot read. Nothing is kept.

import { loadSession, post } from "../api.js";
import { draw, h } from "../dom.js";

/** The form for a token; `enters` runs when the token was right. The address stays, so that the page comes back after. */
export function loginPage(view, enters) {
  view.title("Log in");
  const wrong = h("p.wrong", { role: "alert" });
  const token = h("input", {
    id: "token",
    name: "token",
    type: "password",
    autocomplete: "current-password",
    required: true,
    spellcheck: "false",
  });
  // Who keeps tokens for a person wants a name beside each.
  const name = h("input", { name: "username", autocomplete: "username", value: "millpond", hidden: true });
  const go = h("button.button.primary", { type: "submit" }, "Log in");
  const form = h(
    "form.login",
    { key: "login" },
    h("img", { src: "logo.svg", alt: "", width: 56, height: 56 }),
    h("h1", {}, "millpond"),
    name,
    h(
      "div.field",
      {},
      h("label", { for: "token" }, "Token"),
      token,
      h(
        "p.hint",
        {},
        "The operator or the viewer token of this collector. ",
        h("code", {}, "millpond up"),
        " writes the operator's as ",
        h("code", {}, "MILLPOND_TOKEN"),
        " to ",
        h("code", {}, ".millpond/env"),
        ".",
      ),
    ),
    wrong,
    go,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    go.disabled = true;
    draw(wrong);
    try {
      await post("/login", { token: token.value });
      if (!(await loadSession()))
        throw new Error("the browser did not keep the session's cookie; allow cookies for this address");
      enters();
    } catch (fault) {
      draw(wrong, fault.status === 401 ? "The collector does not know this token." : fault.message);
      go.disabled = false;
      token.select();
    }
  });
  view.root.replaceChildren(form);
  token.focus();
}
