//! A command with replacement strings, and the command that it becomes for a line, as in GNU parallel. No I/O.

/// The replacement strings. When one is the beginning of another, the longer one stands first.
const STRINGS: [(&str, WordPart); 6] = [
    ("{}", WordPart::Line),
    ("{.}", WordPart::NoExtension),
    ("{/}", WordPart::Name),
    ("{//}", WordPart::Folder),
    ("{/.}", WordPart::NameNoExtension),
    ("{#}", WordPart::Number),
];

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
enum WordPart {
    Text(String),
    Line,
    NoExtension,
    Name,
    Folder,
    NameNoExtension,
    Number,
}

/// A command with replacement strings.
#[derive(Debug, Clone)]
pub struct Template {
    words: Vec<Vec<WordPart>>,
}

impl Template {
    /// Parses a command. The line is appended when the command has no replacement string.
    pub fn new(command: &[String]) -> Self {
        let mut words: Vec<Vec<WordPart>> = command.iter().map(|word| parts(word)).collect();
        if words.iter().flatten().all(|part| matches!(part, WordPart::Text(_))) {
            words.push(vec![WordPart::Line]);
        }
        Self { words }
    }

    /// The command for these lines, whose number counts from 1. A word with a line in it is repeated for each of them.
    pub fn argv(&self, lines: &[String], number: u64) -> Vec<String> {
        let mut argv = Vec::with_capacity(self.words.len());
        for word in &self.words {
            match word.iter().any(|part| !matches!(part, WordPart::Text(_) | WordPart::Number)) {
                true => argv.extend(lines.iter().map(|line| replaced(word, line, number))),
                false => argv.push(replaced(word, "", number)),
            }
        }
        argv
    }
}

fn parts(word: &str) -> Vec<WordPart> {
    let (mut parts, mut text, mut rest) = (Vec::new(), String::new(), word);
    while let Some(first) = rest.chars().next() {
        let found = STRINGS.iter().find_map(|(string, part)| Some((part, rest.strip_prefix(string)?)));
        if let Some((part, behind)) = found {
            if !text.is_empty() {
                parts.push(WordPart::Text(std::mem::take(&mut text)));
            }
            parts.push(part.clone());
            rest = behind;
        } else {
            text.push(first);
            rest = rest.get(first.len_utf8()..).unwrap_or_default();
        }
    }
    if !text.is_empty() || parts.is_empty() {
        parts.push(WordPart::Text(text));
    }
    parts
}

fn replaced(word: &[WordPart], line: &str, number: u64) -> String {
    let piece = |part: &WordPart| match part {
        WordPart::Text(text) => text.clone(),
        WordPart::Line => line.to_owned(),
        WordPart::NoExtension => no_extension(line).to_owned(),
        WordPart::Name => name(line).to_owned(),
        WordPart::Folder => folder(line).to_owned(),
        WordPart::NameNoExtension => no_extension(name(line)).to_owned(),
        WordPart::Number => number.to_string(),
    };
    word.iter().map(piece).collect()
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn no_extension(path: &str) -> &str {
    let name_at = path.len() - name(path).len();
    match path.rfind('.').filter(|dot| *dot >= name_at) {
        Some(dot) => path.get(..dot).unwrap_or(path),
        None => path,
    }
}

/// The folder of a path, as dirname(1) has it.
fn folder(path: &str) -> &str {
    let bare = path.trim_end_matches('/');
    match bare.rsplit_once('/').map(|(folder, _)| folder.trim_end_matches('/')) {
        Some("") => "/",
        None if bare.is_empty() && !path.is_empty() => "/",
        None => ".",
        Some(folder) => folder,
    }
}

/// A command as a shell reads it.
pub fn quoted(argv: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    let word = |word: &String| match !word.is_empty() && word.chars().all(plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    };
    argv.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn check(command: &str, lines: &str, expected: &str) {
        let argv = Template::new(&words(command)).argv(&words(lines), 7);
        assert_eq!(argv.join(" "), expected, "{command} of {lines}");
    }

    #[test]
    fn lines_replace_strings() {
        check("convert {} {.}.webp", "a/b.c.png", "convert a/b.c.png a/b.c.webp");
        check("x {/} {//} {/.} {#}", "a/b.png", "x b.png a b 7");
        check("x {.} {/.}", "a.d/b", "x a.d/b b");
        check("x {.} {/.}", ".bashrc", "x  ");
        check("x {//} {/}", "b", "x . b");
        check("x {//}", "/b", "x /");
        check("x {//}", "/", "x /");
        check("x {//}", "a//b/", "x a");
        check("x --in={} {}{}", "é", "x --in=é éé");
        check("x {unknown} {", "a", "x {unknown} { a");
        check("{} -v", "a", "a -v");
    }

    #[test]
    fn the_line_is_appended_where_nothing_replaces() {
        check("gzip -9", "a", "gzip -9 a");
        check("echo {#}", "a", "echo 7");
    }

    #[test]
    fn several_lines_of_one_command_repeat_their_word() {
        check("cat", "a b", "cat a b");
        check("x -i{} {#} end", "a b", "x -ia -ib 7 end");
    }

    #[test]
    fn spaces_and_quotes_reach_the_command_as_they_are() {
        let argv = Template::new(&words("x {}")).argv(&["it's a; $b".to_owned()], 1);
        assert_eq!(argv, ["x", "it's a; $b"]);
        assert_eq!(quoted(&argv), r"x 'it'\''s a; $b'");
        assert_eq!(quoted(&[String::new()]), "''");
    }
}
