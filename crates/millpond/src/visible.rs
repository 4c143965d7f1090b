//! Texts that others wrote, as a person reads them: a character that a terminal obeys instead of showing it is escaped, and
//! so is one that changes the order of its neighbours. No I/O.

use std::borrow::Cow;
use std::fmt::Write;

/// How parsers name a type of ours, and what it is in JSON. The longer ones come first.
const OF_TYPES: [(&str, &str); 12] = [
    ("expected struct variant ", "expected an object"),
    ("expected tuple variant ", "expected an array"),
    ("expected newtype variant ", "expected a value"),
    ("expected unit variant ", "expected a name"),
    ("expected tuple struct ", "expected an array"),
    ("expected newtype struct ", "expected a value"),
    ("expected unit struct ", "expected null"),
    ("expected internally tagged enum ", "expected an object"),
    ("expected adjacently tagged enum ", "expected an object"),
    ("expected struct ", "expected an object"),
    ("expected enum ", "expected a name"),
    ("did not match any variant of untagged enum ", "is of no form that is known"),
];

/// Whether a person would not see this character for what it is: C0, DEL, C1, line separators, and marks of direction.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text on one line, with hidden characters escaped.
///
/// ```
/// use millpond::visible::visible;
///
/// assert_eq!(visible("caf\u{e9}"), "caf\u{e9}");
/// assert_eq!(visible("\u{1b}[2J a\r\nb\u{202e}"), r"\u{1b}[2J a\r\nb\u{202e}");
/// ```
#[must_use]
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// What a JSON parser expected, in words of JSON where it names a type of ours.
///
/// ```
/// use millpond::visible::without_type_names;
///
/// let error = "invalid type: integer `1`, expected struct Range at line 1 column 1";
/// assert_eq!(without_type_names(error), "invalid type: integer `1`, expected an object at line 1 column 1");
/// ```
#[must_use]
pub fn without_type_names(error: &str) -> Cow<'_, str> {
    for (of_type, of_json) in OF_TYPES {
        let Some((before, behind)) = error.split_once(of_type) else { continue };
        let end = behind.find(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | ':')).unwrap_or(behind.len());
        return Cow::Owned(format!("{before}{of_json}{}", behind.get(end..).unwrap_or_default()));
    }
    Cow::Borrowed(error)
}

/// JSON with hidden characters in its strings escaped as JSON escapes them: the value stays the same. JSON itself forbids
/// those of C0 in strings; between its tokens they are left.
///
/// ```
/// use millpond::visible::visible_json;
///
/// assert_eq!(visible_json("\"a\u{9b}\""), r#""a\u009b""#);
/// assert_eq!(visible_json("{\n}"), "{\n}");
/// ```
#[must_use]
pub fn visible_json(json: &str) -> Cow<'_, str> {
    let escaped = |c: char| is_hidden(c) && !c.is_ascii_control() || c == '\u{7f}';
    if !json.contains(escaped) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if escaped(c) {
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}
