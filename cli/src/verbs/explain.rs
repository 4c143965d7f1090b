//! `explain`: what a problem is, why it comes about, and what to do: its section of docs/operate.md.

use std::io::Write;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use millpond_api::overview::ProblemKind;

use crate::output::output;

/// The page for operators. A problem has the section under the heading of its code.
const OPERATE: &str = include_str!("../../../docs/operate.md");

/// `explain`.
#[derive(clap::Args, Debug)]
pub struct ExplainArgs {
    /// The code of a problem, as `doctor`, `top` and `/problems` show it. Without one, all codes are listed.
    #[arg(value_parser = PossibleValuesParser::new(ProblemKind::ALL.iter().map(|kind| kind.name())))]
    code: Option<String>,
}

/// Prints the section of a code, or all codes with the first sentence of each.
///
/// # Errors
/// When standard output is closed.
pub fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    match &args.code {
        Some(code) => writeln!(output(), "{}", section(code).unwrap_or_default())?,
        None => {
            for kind in ProblemKind::ALL {
                let text = section(kind.name()).unwrap_or_default();
                let words: Vec<&str> = text.split_whitespace().collect();
                let first = words.split_inclusive(|word| word.ends_with('.')).next().unwrap_or_default();
                writeln!(output(), "{:<15} {}", kind.name(), first.join(" "))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The text below the heading of a code.
fn section(code: &str) -> Option<String> {
    let heading = format!("\n### `{code}`\n");
    let (_, text) = OPERATE.split_once(&heading)?;
    let end = text.find("\n#").unwrap_or(text.len());
    text.get(..end).map(|text| text.trim().replace("**", ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_a_section_and_each_section_a_code() {
        for kind in ProblemKind::ALL {
            let text = section(kind.name()).unwrap_or_else(|| panic!("no section `{kind}` in docs/operate.md"));
            for part in ["Why. ", "What to do. "] {
                assert!(text.contains(part), "`{kind}` has no {part}");
            }
        }
        let headings = OPERATE.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'));
        for heading in headings {
            assert!(ProblemKind::ALL.iter().any(|kind| kind.name() == heading), "no problem has the code {heading}");
        }
    }
}
