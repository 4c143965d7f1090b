//! The interface that programs depend on is listed in `interface.txt` of the crates `millpond` and `millpond-worker`: whoever
//! changes it sees that in the list. It is read from the sources as rustfmt writes them; a line that says `pub` and is not
//! understood fails, so that no item is left out in silence. What is for the services alone (hidden from the documentation
//! where the feature `services` is off) is not listed.

use std::fs;
use std::path::Path;

use crate::tidy::{root, sources};

/// Set to write the lists instead of comparing them.
const WRITE: &str = "WRITE_INTERFACE";

/// What may stand behind `pub`.
const ITEMS: [&str; 13] = [
    "async fn ",
    "const ",
    "enum ",
    "fn ",
    "mod ",
    "static ",
    "struct ",
    "trait ",
    "type ",
    "unsafe ",
    "use ",
    "const fn ",
    "union ",
];

/// The text from a line on, up to where the signature of its item ends, on one line.
fn signature(lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines {
        let line = line.trim();
        if !text.is_empty() && !text.ends_with(['(', '<', '[', '{']) && !line.starts_with([')', '>', ']', '}']) {
            text.push(' ');
        }
        text.push_str(line);
        let depth = |open: &str, close: &str| text.matches(open).count() == text.matches(close).count();
        if (text.ends_with(['{', ';', ',']) || text.ends_with("{}") || text.ends_with('}'))
            && depth("(", ")")
            && depth("[", "]")
        {
            break;
        }
    }
    let text = text.trim_end_matches([',', ';']).trim_end_matches("{}").trim_end_matches('{').trim_end();
    // The value of a constant is no part of it.
    match text.split_once(" = ") {
        Some((declared, _)) if declared.contains("const ") || declared.contains("static ") => declared.to_owned(),
        _ => text.to_owned(),
    }
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The items of one file: each with the item that it belongs to, its conditions and its signature.
fn items(module: &str, code: &str, found: &mut Vec<String>) {
    let lines: Vec<&str> =
        code.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line }).collect();
    // The innermost `enum`, `trait` or `impl … for` that is public, and the indent of its lines.
    let mut within: Option<(String, usize)> = None;
    let (mut implements, mut conditions) = (String::new(), Vec::new());
    for (at, line) in lines.iter().enumerate() {
        let text = line.trim();
        if text.is_empty() {
            continue;
        }
        if let Some((_, depth)) = &within
            && indent(line) < *depth
        {
            within = None;
        }
        if indent(line) == 0 && text.starts_with("impl") {
            implements = signature(&lines[at..]);
            if implements.contains(" for ") {
                found.push(format!("{module} {implements}"));
            }
        } else if indent(line) == 0 && text == "}" {
            implements.clear();
        }
        if ["#[cfg(", "#[derive(", "#[deprecated", "#[non_exhaustive"].iter().any(|start| text.starts_with(start)) {
            conditions.push(text.to_owned());
            continue;
        }
        if text.starts_with("#[") || text.starts_with("#![") {
            continue;
        }
        let of = |name: &str| if implements.is_empty() { name.to_owned() } else { format!("{implements} :: {name}") };
        if let Some(public) = text.strip_prefix("pub ") {
            let signed = signature(&lines[at..]);
            let is_item = ITEMS.iter().any(|item| public.starts_with(item));
            let is_field =
                public.split_once(": ").is_some_and(|(name, _)| name.chars().all(|c| c == '_' || c.is_alphanumeric()));
            assert!(is_item || is_field || public.starts_with("r#"), "{module}: not understood: {text}");
            found.push(format!("{module} {}{}", conditions.concat(), of(&signed)));
            if public.starts_with("enum ") || public.starts_with("trait ") {
                let name = public.split(|c: char| !c.is_alphanumeric() && c != '_').nth(1).unwrap_or_default();
                within = Some((name.to_owned(), indent(line) + 4));
            }
        } else if let Some((owner, depth)) = &within
            && indent(line) == *depth
            && !text.starts_with(['}', ')', ']', '/'])
        {
            found.push(format!("{module} {}{owner} :: {}", conditions.concat(), signature(&lines[at..])));
        }
        conditions.clear();
    }
}

/// Modules that programs do not see.
fn hidden(lib: &str) -> Vec<String> {
    let lines: Vec<&str> = lib.lines().collect();
    let hides = |line: &&str| line.contains("doc(hidden)") || line.contains("cfg(feature = \"services\")");
    let next = lines.iter().enumerate().filter(|(_, line)| hides(line)).filter_map(|(at, _)| lines.get(at + 1));
    next.filter_map(|line| Some(line.trim().strip_prefix("pub mod ")?.trim_end_matches(';').to_owned())).collect()
}

/// The list of a crate: every item of a module that programs may see, or that is private and may be published elsewhere.
fn interface(of: &str) -> String {
    let folder = Path::new(of).join("src");
    let hidden = hidden(&fs::read_to_string(root().join(&folder).join("lib.rs")).unwrap());
    let mut found = Vec::new();
    for (path, text) in sources() {
        let Ok(below) = path.strip_prefix(&folder) else { continue };
        let below = below.with_extension("");
        let parts: Vec<String> = below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if parts.first().is_some_and(|first| hidden.contains(first)) {
            continue;
        }
        let module = parts
            .iter()
            .filter(|part| !["lib", "mod"].contains(&part.as_str()))
            .cloned()
            .collect::<Vec<_>>()
            .join("::");
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        items(if module.is_empty() { "crate" } else { &module }, code, &mut found);
    }
    found.sort();
    found.dedup();
    found.join("\n") + "\n"
}

fn check(of: &str) {
    let (now, file) = (interface(of), root().join(of).join("interface.txt"));
    if std::env::var_os(WRITE).is_some() {
        fs::write(&file, now).unwrap();
        return;
    }
    let listed = fs::read_to_string(&file).unwrap_or_default();
    let missing = |of: &str, other: &str, sign: &str| -> Vec<String> {
        let other: Vec<&str> = other.lines().collect();
        of.lines().filter(|line| !other.contains(line)).map(|line| format!("{sign} {line}")).collect()
    };
    let changed = [missing(&listed, &now, "-"), missing(&now, &listed, "+")].concat();
    assert!(
        changed.is_empty(),
        "the interface of {of} is another; say so in CHANGELOG.md and write the list: {WRITE}=1 cargo test --workspace --test it -- \
         interface\n{}",
        changed.join("\n")
    );
}

#[test]
fn the_interface_of_the_client_crate_is_listed() {
    check("crates/millpond");
}

#[test]
fn the_interface_of_the_worker_crate_is_listed() {
    check("services/worker");
}

#[test]
fn no_kind_of_item_is_left_out() {
    let code = "impl Shown for Thing {\n    fn fmt(&self) {\n    }\n}\n\n#[derive(Clone)]\npub enum Way {\n    Up,\n    Down {\n        far: u8,\n    },\n}\n\n\
                impl Thing {\n    #[cfg(feature = \"x\")]\n    pub async fn go(\n        &self,\n        to: &str,\n    ) -> Result<(), Error> {\n    }\n\n    \
                fn own() {}\n}\n\npub struct Point {\n    pub x: u8,\n    y: u8,\n}\n\npub trait Walk {\n    /// How.\n    fn step(&self);\n}\n\
                pub const MAX: usize = 3;\npub use a::{B, C};\n";
    let mut found = Vec::new();
    items("m", code, &mut found);
    assert_eq!(
        found,
        [
            "m impl Shown for Thing",
            "m #[derive(Clone)]pub enum Way",
            "m Way :: Up",
            "m Way :: Down",
            "m #[cfg(feature = \"x\")]impl Thing :: pub async fn go(&self, to: &str,) -> Result<(), Error>",
            "m pub struct Point",
            "m pub x: u8",
            "m pub trait Walk",
            "m Walk :: fn step(&self)",
            "m pub const MAX: usize",
            "m pub use a::{B, C}",
        ]
    );
}

#[test]
#[should_panic(expected = "not understood")]
fn what_is_not_understood_fails() {
    items("m", "pub gen fn f() {}\n", &mut Vec::new());
}

/// The two crates say what every public item is for: the compiler looks.
#[test]
fn every_public_item_is_documented() {
    for of in ["crates/millpond", "services/worker"] {
        let lib = fs::read_to_string(root().join(of).join("src/lib.rs")).unwrap();
        assert!(lib.contains("#![warn(missing_docs)]"), "{of}");
    }
}

/// Whatever is awaited may be dropped: what that means is said.
#[test]
fn every_async_function_for_programs_says_what_dropping_it_means() {
    let mut seen = 0;
    for (path, text) in sources() {
        let of_programs = ["client/", "bus/shared_state.rs"]
            .iter()
            .any(|part| path.starts_with(Path::new("crates/millpond/src").join(part)));
        if !of_programs {
            continue;
        }
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let lines: Vec<&str> = code.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.trim().starts_with("pub async fn ")) {
            let before = lines[..at].iter().rev().map(|line| line.trim());
            let said = before
                .take_while(|line| line.starts_with("///") || line.starts_with("#["))
                .any(|line| line == "/// # Cancel safety");
            assert!(said, "{}: {}", path.display(), line.trim());
            seen += 1;
        }
    }
    assert!(seen > 30, "the functions are found");
}
