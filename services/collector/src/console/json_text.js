// JSON of users as the text that it is: parsed and printed again, long numbers would be rounded, 1.0 would be 1, keys would change
// their order, and double ones would go. The collector writes JSON without blanks between its own tokens.

/** Fields of answers whose values are what users gave. */
const AS_TEXT = new Set(["result", "payload", "args"]);

/** Behind the string that begins at `at`. */
function behindString(text, at) {
  let end = at + 1;
  while (end < text.length && text[end] !== '"') end += text[end] === "\\" ? 2 : 1;
  return end + 1;
}

/** Behind the value that begins at `at`: at the comma or the bracket after it. */
function behindValue(text, at) {
  let depth = 0;
  let end = at;
  while (end < text.length) {
    const c = text[end];
    if (c === '"') {
      end = behindString(text, end);
      continue;
    }
    if (depth === 0 && (c === "," || c === "}" || c === "]")) break;
    if (c === "{" || c === "[") depth += 1;
    else if (c === "}" || c === "]") depth -= 1;
    end += 1;
  }
  return end;
}

/** An answer in which each value of a user is an object `{"text": …}` with the JSON as it stood there. */
export function withTexts(answer) {
  const parts = [];
  let taken = 0;
  let at = 0;
  while (at < answer.length) {
    if (answer[at] !== '"') {
      at += 1;
      continue;
    }
    const end = behindString(answer, at);
    const isField = answer[end] === ":" && AS_TEXT.has(answer.slice(at + 1, end - 1));
    at = end;
    if (!isField) continue;
    at = behindValue(answer, end + 1);
    const text = answer.slice(end + 1, at);
    if (text !== "null") parts.push(answer.slice(taken, end + 1), JSON.stringify({ text }));
    else parts.push(answer.slice(taken, at));
    taken = at;
  }
  return parts.join("") + answer.slice(taken);
}

/** JSON on several lines, indented; nothing but blanks between tokens changes. */
export function pretty(text) {
  const parts = [];
  let depth = 0;
  let at = 0;
  const line = () => parts.push("\n", "  ".repeat(Math.min(depth, 40)));
  while (at < text.length) {
    const c = text[at];
    if (c === '"') {
      const end = behindString(text, at);
      parts.push(text.slice(at, end));
      at = end;
      continue;
    }
    at += 1;
    if (/\s/.test(c)) continue;
    if (c === "{" || c === "[") {
      const next = /\S/.exec(text.slice(at, at + 80))?.[0];
      if (next === "}" || next === "]") {
        parts.push(c, next);
        at = text.indexOf(next, at) + 1;
        continue;
      }
      depth += 1;
      parts.push(c);
      line();
    } else if (c === "}" || c === "]") {
      depth -= 1;
      line();
      parts.push(c);
    } else if (c === ",") {
      parts.push(c);
      line();
    } else if (c === ":") parts.push(": ");
    else parts.push(c);
  }
  return parts.join("");
}
