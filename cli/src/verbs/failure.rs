//! The evidence of a failure, for a person.

use std::io::Write;

use millpond::outcome::{ChildEvidence, Failure};
use millpond::visible::visible;

/// Prints a failure, indented.
///
/// # Errors
/// When the output is closed.
pub(super) fn print_failure(out: &mut impl Write, failure: &Failure) -> std::io::Result<()> {
    writeln!(out, "           {}: {}", visible(&failure.kind), visible(&failure.message))?;
    for line in failure.traceback.iter().flat_map(|text| text.lines()) {
        writeln!(out, "           {}", visible(line))?;
    }
    failure.child.as_ref().map_or(Ok(()), |child| print_child(out, child))
}

/// Prints what is known of the child process that a task failed in, and the last lines of its log.
fn print_child(out: &mut impl Write, child: &ChildEvidence) -> std::io::Result<()> {
    let mut known = vec![format!("child {}", visible(&child.name))];
    known.extend(child.exit_code.map(|code| format!("exit code {code}")));
    known.extend(child.signal.map(|signal| format!("signal {signal}")));
    known.extend(child.oom.then(|| "out of memory".to_owned()));
    known.extend((child.rss_bytes > 0).then(|| format!("{} MiB resident", child.rss_bytes >> 20)));
    writeln!(out, "           {}", known.join(", "))?;
    child.log.iter().try_for_each(|line| writeln!(out, "           | {}", visible(line)))
}
