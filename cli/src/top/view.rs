//! What was seen as lines of text: the same on a screen and in a pipe. No terminal, no I/O.

use serde_json::Value;

use super::sample::History;
use crate::api::text as field;
use crate::worker;

/// Cells of a progress bar.
const BAR_CELLS: usize = 20;

/// Aligned lines, the heading first.
pub type Lines = Vec<String>;

/// The sums, on one line.
pub fn header(history: &History) -> String {
    let totals = history.totals();
    let states: Vec<String> = totals.states.iter().map(|(state, n)| format!("{n} {state}")).collect();
    let states = if states.is_empty() { "none".to_owned() } else { states.join(", ") };
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}/s"));
    format!(
        "workers {states} | running {} | done {} | failed {} | waiting {}, in flight {}, scheduled {}",
        totals.running,
        rate(totals.done_rate),
        rate(totals.failed_rate),
        totals.waiting,
        totals.held,
        totals.scheduled
    )
}

/// That the collector is away, when it is.
pub fn trouble(history: &History) -> Option<String> {
    let (how_long, error) = history.away()?;
    Some(format!("no answer for {} s, trying again: {error}", how_long.as_secs()))
}

/// What is wrong and not mended, a sentence each; nothing when all is well.
pub fn problems(history: &History) -> Lines {
    let all = history.seen().into_iter().flat_map(|seen| &seen.problems);
    let open = all.filter(|problem| problem.get("mended") != Some(&Value::Bool(true)));
    open.map(|problem| format!("! {}: {}", field(problem, "kind"), field(problem, "sentence"))).collect()
}

/// Queues; only the heading when there are none.
pub fn queues(history: &History) -> Lines {
    let mut rows = vec![heading(&["QUEUE", "WAITING", "IN FLIGHT", "SCHEDULED", "STATE"])];
    for queue in history.seen().into_iter().flat_map(|seen| &seen.queues) {
        let mut cells: Vec<String> =
            ["queue", "waiting", "held", "scheduled"].iter().map(|f| field(queue, f)).collect();
        cells.push(crate::queue::state(queue));
        rows.push(cells);
    }
    aligned(&rows)
}

/// Workers, each followed by its children; only the heading when there are none.
pub fn workers(history: &History) -> Lines {
    let rows: Vec<_> = history.seen().into_iter().flat_map(|seen| &seen.workers).flat_map(worker::rows).collect();
    let heading = heading(worker::headings(&rows));
    aligned(&std::iter::once(heading).chain(rows).collect::<Vec<_>>())
}

/// The newest jobs; only the heading when there are none.
pub fn jobs(history: &History) -> Lines {
    let mut rows =
        vec![heading(&["JOB", "STATE", "QUEUE", "KIND", "PROGRESS", "DONE", "RETRYING", "DEAD", "CANCELLED"])];
    for job in history.seen().into_iter().flat_map(|seen| &seen.jobs) {
        let mut cells: Vec<String> = ["job", "state", "queue", "kind"].iter().map(|f| field(job, f)).collect();
        cells.push(progress(job));
        cells.extend(["done", "retrying", "dead", "cancelled"].iter().map(|f| field(job, f)));
        rows.push(cells);
    }
    aligned(&rows)
}

/// All of it, as a picture for a pipe or a file.
pub fn text(history: &History) -> Lines {
    let mut lines: Lines = trouble(history).into_iter().collect();
    lines.push(header(history));
    lines.extend(problems(history));
    for part in [queues(history), workers(history), jobs(history)] {
        lines.push(String::new());
        lines.extend(part);
    }
    lines
}

/// A bar and a percentage where the total is known, else how many have ended.
fn progress(job: &Value) -> String {
    let count = |name| job.get(name).and_then(Value::as_u64).unwrap_or(0);
    let ended = count("done") + count("dead") + count("cancelled");
    let total = match job.get("total").and_then(Value::as_u64) {
        None => return format!("{ended} of ?"),
        Some(0) => return "nothing to do".to_owned(),
        Some(total) => total,
    };
    let cells = u64::try_from(BAR_CELLS).unwrap_or(0);
    let full = usize::try_from(ended.min(total).saturating_mul(cells) / total).unwrap_or(0);
    let percent = ended.min(total).saturating_mul(100) / total;
    format!("{}{} {percent:>3}% of {total}", "█".repeat(full), "░".repeat(BAR_CELLS.saturating_sub(full)))
}

fn heading(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Columns as wide as their longest cell; cells without a heading are left out.
fn aligned(rows: &[Vec<String>]) -> Lines {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::sample::tests::seen;
    use super::*;

    #[test]
    fn a_picture_holds_everything() {
        let mut history = History::default();
        let mut seen = seen(
            json!([{ "name": "w1", "state": "live", "running": 2, "slots": 2, "heartbeat_ms": 0, "started_ms": 0,
                "children": [{ "name": "w1/x-1", "kind": "x", "state": "busy", "task": "t1", "task_ms": 5 }] }]),
            json!([{ "queue": "default", "waiting": 4, "held": 2, "scheduled": 0, "paused_for_ms": 60_000 }]),
            json!([{ "job": "j1", "state": "open", "queue": "default", "kind": "x", "total": 8, "done": 2 }]),
        );
        let problem =
            |sentence, mended| json!({ "kind": "paused", "what": "low", "sentence": sentence, "mended": mended });
        seen.problems = vec![problem("go on", false), problem("it was", true)];
        history.add(Ok(seen));
        let text = text(&history);
        assert_eq!(text[1..3], ["! paused: go on", ""], "what is mended is no problem");
        assert_eq!(text[0], "workers 1 live | running 2 | done - | failed - | waiting 4, in flight 2, scheduled 0");
        let line = |with: &str| text.iter().find(|l| l.contains(with)).unwrap();
        assert!(line("default  4").ends_with("paused for 60.00s"), "{text:?}");
        assert!(line("w1/x-1").starts_with("  w1/x-1") && line("w1/x-1").contains("t1 5ms"), "{text:?}");
        assert!(line("j1").contains("█████░░░░░░░░░░░░░░░  25% of 8"), "{text:?}");
    }
}
