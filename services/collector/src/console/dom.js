// Elements from plain calls, and `draw`, which makes what is shown equal to what was built anew: focus, selection,
// scroll, typed text and open details stay. Only text nodes and attributes are ever set; nothing is parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";
/** Set as properties; attributes of these names are only defaults. */
const PROPERTIES = new Set([
  "value",
  "checked",
  "indeterminate",
  "disabled",
  "selected",
  "hidden",
  "required",
  "readOnly",
]);

function hear(event) {
  event.currentTarget.heard?.[event.type]?.(event);
}

function listen(el, type, handler) {
  el.heard ??= {};
  if (!(type in el.heard)) el.addEventListener(type, hear);
  el.heard[type] = handler;
}

function set(el, name, value) {
  if (name.startsWith("on")) {
    if (value) listen(el, name.slice(2), value);
  } else if (name === "key") {
    el.key = String(value);
  } else if (name === "css") {
    for (const [property, of] of Object.entries(value)) el.style.setProperty(property, of);
  } else if (name === "class") {
    if (value) el.classList.add(...String(value).split(" ").filter(Boolean));
  } else if (PROPERTIES.has(name) && name in el) {
    el.given ??= {};
    el.given[name] = value ?? "";
    el[name] = value ?? "";
  } else if (value === null || value === undefined || (value === false && !name.startsWith("aria-"))) {
    // Not there.
  } else if (name === "href" && !/^(#|\.{0,2}\/|https?:\/\/)/i.test(value)) {
    // No scheme but these: a link must not run anything.
  } else {
    el.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : String(value));
  }
}

/** What a browser would not show as it is: control characters but tab and line feed, and marks of direction. */
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

function visible(text) {
  return String(text).replace(HIDDEN, (hidden) => `\\u{${hidden.codePointAt(0).toString(16)}}`);
}

function append(el, child) {
  if (child === null || child === undefined || child === false || child === "") return;
  if (Array.isArray(child)) child.forEach((one) => append(el, one));
  else el.append(child instanceof Node ? child : document.createTextNode(visible(child)));
}

function fill(el, classes, props, children) {
  if (classes.length) el.classList.add(...classes);
  const { value, ...others } = props ?? {};
  for (const [name, of] of Object.entries(others)) set(el, name, of);
  children.forEach((child) => append(el, child));
  // A select has its value once it has its options.
  if (value !== undefined) set(el, "value", value);
  return el;
}

/** An HTML element: `h("p.note", { title: "…" }, "text", child)`. */
export function h(tag, props, ...children) {
  const [name, ...classes] = tag.split(".");
  return fill(document.createElement(name), classes, props, children);
}

/** An SVG element. */
export function s(tag, props, ...children) {
  const [name, ...classes] = tag.split(".");
  return fill(document.createElementNS(SVG, name), classes, props, children);
}

/** An element that draws its own inside: `make(el)` runs once it is shown and answers what to call with new `given`. */
export function widget(tag, props, make, given) {
  const el = h(tag, props);
  el.make = make;
  el.wants = given;
  return el;
}

function mount(node) {
  if (node.nodeType !== Node.ELEMENT_NODE) return;
  if (node.make && !node.update) {
    node.update = node.make(node);
    node.update(node.wants);
  }
  for (const child of node.children) mount(child);
}

function sameAttributes(old, next) {
  for (const { name } of [...old.attributes]) {
    if (name !== "style" && name !== "open" && !next.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (name !== "style" && name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (old.style.cssText !== next.style.cssText) old.style.cssText = next.style.cssText;
}

function sameProperties(old, next) {
  for (const type of Object.keys(old.heard ?? {})) if (!next.heard?.[type]) old.heard[type] = undefined;
  for (const [type, handler] of Object.entries(next.heard ?? {})) listen(old, type, handler);
  for (const [name, value] of Object.entries(next.given ?? {})) {
    // What a person has typed stays, unless the page itself has another value now.
    const typed = name === "value" && old.given?.value === value;
    if (!typed && old[name] !== value) old[name] = value;
  }
  old.given = next.given;
}

function morph(old, next) {
  if (old.nodeName !== next.nodeName || old.key !== next.key || old.make !== next.make) {
    old.replaceWith(next);
    mount(next);
    return next;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return old;
  }
  if (old.update) {
    old.update(next.wants);
    return old;
  }
  sameAttributes(old, next);
  morphChildren(old, [...next.childNodes]);
  sameProperties(old, next);
  return old;
}

function morphChildren(parent, wanted) {
  const keyed = new Map();
  const stays = new Set(wanted.map((node) => node.key));
  for (const child of [...parent.childNodes]) {
    if (child.key === undefined) continue;
    if (stays.has(child.key)) keyed.set(child.key, child);
    else child.remove();
  }
  let at = parent.firstChild;
  for (const node of wanted) {
    let match = node.key === undefined ? at : keyed.get(node.key);
    if (node.key === undefined && (at?.key !== undefined || at?.nodeName !== node.nodeName)) match = undefined;
    if (match) {
      if (match !== at) parent.insertBefore(match, at);
      at = morph(match, node).nextSibling;
    } else {
      parent.insertBefore(node, at);
      mount(node);
    }
  }
  while (at) {
    const after = at.nextSibling;
    at.remove();
    at = after;
  }
}

/** Makes the children of `root` equal to these nodes. */
export function draw(root, ...nodes) {
  const holder = document.createDocumentFragment();
  nodes.forEach((node) => append(holder, node));
  const focused = document.activeElement;
  morphChildren(root, [...holder.childNodes]);
  if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}
