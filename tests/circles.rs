//! The rule on circles: files do not import each other in a loop. A part that names its whole (a file that imports the module
//! above it) is no circle. Imports are read as text: `use` with its groups, and paths in the code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::tidy::{root, sources};

/// A module's place below its crate: `["bus", "consume"]`; the crate itself is empty.
type ModulePath = Vec<String>;

/// The modules of one crate, and the file of each.
type Modules = BTreeMap<ModulePath, PathBuf>;

fn module_of(below_src: &Path) -> ModulePath {
    let mut path: ModulePath =
        below_src.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if path.last().is_some_and(|name| ["mod", "lib", "main"].contains(&name.as_str())) {
        path.pop();
    }
    path
}

/// Without comments, and without the unit tests at the end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The paths that a `use` names: `a::{b, c::{d, e}}` is `a::b`, `a::c::d` and `a::c::e`.
fn expand(tree: &str, before: &[String], paths: &mut Vec<Vec<String>>) {
    let (head, group) = match tree.split_once('{') {
        Some((head, group)) => (head, Some(group.trim_end().trim_end_matches('}'))),
        None => (tree.split(" as ").next().unwrap_or_default(), None),
    };
    let mut path = before.to_vec();
    path.extend(head.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()));
    let Some(group) = group else {
        paths.push(path);
        return;
    };
    let (mut depth, mut start) = (0, 0);
    for (at, sign) in group.char_indices() {
        match sign {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&group[start..at], &path, paths);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !group[start..].trim().is_empty() {
        expand(&group[start..], &path, paths);
    }
}

/// All paths that a file's code names.
fn paths(code: &str) -> Vec<Vec<String>> {
    let (mut found, mut rest) = (Vec::new(), String::new());
    for (number, part) in code.split("use ").enumerate() {
        let is_use = number > 0 && part.contains(';');
        let (tree, after) = if is_use { part.split_once(';').unwrap() } else { ("", part) };
        expand(tree, &[], &mut found);
        rest.push_str(after);
        rest.push(' ');
    }
    let words = rest.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    found.extend(words.filter(|word| word.contains("::")).map(|word| word.split("::").map(str::to_owned).collect()));
    found
}

/// The module that a path leads to, as far as modules go.
fn resolve(path: &[String], from: &ModulePath, modules: &Modules) -> Option<ModulePath> {
    let mut full = match path.first()?.as_str() {
        "crate" => path[1..].to_vec(),
        "self" => [from, &path[1..]].concat(),
        "super" => {
            let ups = path.iter().take_while(|part| *part == "super").count();
            [from.get(..from.len().checked_sub(ups)?)?, &path[ups..]].concat()
        }
        first if modules.contains_key(&[from.as_slice(), &[first.to_owned()]].concat()) => [from, path].concat(),
        _ => return None,
    };
    while !modules.contains_key(&full) {
        full.pop()?;
    }
    Some(full)
}

/// Which files of a crate a file imports, but for those of the modules above it.
fn imports(modules: &Modules, texts: &BTreeMap<PathBuf, String>) -> BTreeMap<PathBuf, BTreeSet<PathBuf>> {
    let of = |(module, file): (&ModulePath, &PathBuf)| {
        let targets = paths(&code(&texts[file])).into_iter().filter_map(|path| resolve(&path, module, modules));
        let targets = targets.filter(|target| !module.starts_with(target)).map(|target| modules[&target].clone());
        (file.clone(), targets.collect())
    };
    modules.iter().map(of).collect()
}

/// All files that can be reached from one by imports.
fn reached(from: &Path, imports: &BTreeMap<PathBuf, BTreeSet<PathBuf>>) -> BTreeSet<PathBuf> {
    let (mut found, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(file) = open.pop() {
        open.extend(imports[&file].iter().filter(|next| found.insert((*next).clone())).cloned());
    }
    found
}

#[test]
fn files_do_not_import_each_other_in_a_loop() {
    let mut crates: BTreeMap<PathBuf, Modules> = BTreeMap::new();
    let texts: BTreeMap<PathBuf, String> = sources().into_iter().collect();
    for file in texts.keys() {
        let parts: Vec<_> = file.iter().collect();
        if let Some(at) = parts.iter().position(|part| *part == "src") {
            let (package, below) = (parts[..at].iter().collect(), parts[at + 1..].iter().collect::<PathBuf>());
            crates.entry(package).or_default().insert(module_of(&below), file.clone());
        }
    }
    assert!(crates.len() > 5, "the crates of {} are found", root().display());
    let mut circles = Vec::new();
    for modules in crates.values() {
        let imports = imports(modules, &texts);
        for file in imports.keys().filter(|file| reached(file, &imports).contains(*file)) {
            let loops = imports[file].iter().filter(|next| reached(next, &imports).contains(file));
            circles.extend(loops.map(|next| format!("{} -> {}", file.display(), next.display())));
        }
    }
    assert!(circles.is_empty(), "imports in a loop; a third thing wants a name:\n{}", circles.join("\n"));
}

#[test]
fn a_use_is_read_with_its_groups() {
    let joined = |code: &str| paths(code).iter().map(|path| path.join("::")).collect::<Vec<_>>();
    let read = joined("use crate::a::{self, b::{c, d as e}};\nlet x = super::f::g(crate::h);");
    for path in ["crate::a::self", "crate::a::b::c", "crate::a::b::d", "super::f::g", "crate::h"] {
        assert!(read.iter().any(|found| found == path), "{path} is not among {read:?}");
    }
}
