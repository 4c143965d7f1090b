//! The dashboard as lines of text: the same on a screen and in a pipe. No terminal, no I/O.

use millpond_api::jobs::JobRow;

use super::super::{queue, worker};
use super::snapshot::{ClusterSnapshot, Dashboard};
use crate::output::Table;

/// Cells of a progress bar.
const BAR_CELLS: u64 = 20;

/// The sums, on one line.
pub(super) fn header(dashboard: &Dashboard) -> String {
    let totals = dashboard.totals();
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

/// A line that the collector is away, when it is.
pub(super) fn away(dashboard: &Dashboard) -> Option<String> {
    let (how_long, error) = dashboard.away()?;
    Some(format!("no answer for {} s, trying again: {error}", how_long.as_secs()))
}

/// A line for each problem that is not mended.
pub(super) fn problems(dashboard: &Dashboard) -> Vec<String> {
    let all = dashboard.snapshot().into_iter().flat_map(|snapshot| &snapshot.problems);
    let open = all.filter(|problem| !problem.mended);
    open.map(|problem| format!("! {}: {}", problem.kind, problem.sentence)).collect()
}

/// The queues as a table.
pub(super) fn queues(dashboard: &Dashboard) -> Vec<String> {
    let mut table = Table::new(&["QUEUE", "WAITING", "IN FLIGHT", "SCHEDULED", "STATE"]);
    for row in dashboard.snapshot().into_iter().flat_map(|snapshot| &snapshot.queues) {
        let counts = [row.waiting, row.held, row.scheduled].map(|count| count.to_string());
        let cells = std::iter::once(row.queue.clone()).chain(counts).chain([queue::state(row)]);
        table.row(cells.collect());
    }
    table.lines()
}

/// The workers as a table, each followed by its child processes.
pub(super) fn workers(dashboard: &Dashboard) -> Vec<String> {
    worker::list::table(dashboard.snapshot().map_or(&[], |ClusterSnapshot { workers, .. }| workers)).lines()
}

/// The newest jobs as a table.
pub(super) fn jobs(dashboard: &Dashboard) -> Vec<String> {
    let mut table = Table::new(&["JOB", "STATE", "QUEUE", "KIND", "PROGRESS", "DONE", "RETRYING", "DEAD", "CANCELLED"]);
    for job in dashboard.snapshot().into_iter().flat_map(|snapshot| &snapshot.jobs) {
        let names = [job.job.clone(), job.state.to_string(), job.queue.clone(), job.kind.clone(), progress(job)];
        let counts = [job.done, job.retrying, job.dead, job.cancelled].map(|count| count.to_string());
        table.row(names.into_iter().chain(counts).collect());
    }
    table.lines()
}

/// All of it, for a pipe or a file.
pub(super) fn text(dashboard: &Dashboard) -> Vec<String> {
    let mut lines: Vec<String> = away(dashboard).into_iter().collect();
    lines.push(header(dashboard));
    lines.extend(problems(dashboard));
    for part in [queues(dashboard), workers(dashboard), jobs(dashboard)] {
        lines.push(String::new());
        lines.extend(part);
    }
    lines
}

/// A bar and a percentage when the total is known, else how many tasks have ended.
fn progress(job: &JobRow) -> String {
    let ended = job.done + job.dead + job.cancelled;
    let total = match job.total {
        None => return format!("{ended} of ?"),
        Some(0) => return "nothing to do".to_owned(),
        Some(total) => total,
    };
    let bar = |cells: u64, text: &str| text.repeat(usize::try_from(cells).unwrap_or(0));
    let full = ended.min(total).saturating_mul(BAR_CELLS) / total;
    let percent = ended.min(total).saturating_mul(100) / total;
    format!("{}{} {percent:>3}% of {total}", bar(full, "█"), bar(BAR_CELLS - full, "░"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::worker::list::tests::worker;
    use super::super::snapshot::tests::snapshot;
    use super::*;

    #[test]
    fn a_picture_holds_everything() {
        let child = json!({ "name": "w1/x-1", "kind": "x", "pid": 1, "state": "busy", "task": "t1", "task_ms": 5, "done": 0,
            "restarts": 0, "cpu_percent": 0.0, "rss_bytes": 0, "started_ms": 0 });
        let mut snapshot = snapshot(
            vec![worker(json!({ "running": 2, "heartbeat_ms": 0, "started_ms": 0, "children": [child] }))],
            json!([{ "queue": "default", "waiting": 4, "held": 2, "scheduled": 0, "paused": true, "paused_for_ms": 60_000,
                "max_waiting": null, "oldest_ms": null, "workers": 1 }]),
            json!([{ "job": "j1", "state": "open", "queue": "default", "kind": "x", "total": 8, "done": 2, "retrying": 0,
                "dead": 0, "cancelled": 0, "purged": 0, "created_ms": 0, "continuation": null }]),
        );
        let problem = |sentence, mended| {
            let row = json!({ "kind": "paused", "what": "low", "sentence": sentence, "since_ms": 0, "mended": mended });
            serde_json::from_value(row).unwrap()
        };
        snapshot.problems = vec![problem("go on", false), problem("it was", true)];
        let mut dashboard = Dashboard::default();
        dashboard.add(Ok(snapshot));
        let text = text(&dashboard);
        assert_eq!(text[1..3], ["! paused: go on", ""], "what is mended is no problem");
        assert_eq!(text[0], "workers 1 live | running 2 | done - | failed - | waiting 4, in flight 2, scheduled 0");
        let line = |with: &str| text.iter().find(|l| l.contains(with)).unwrap();
        assert!(line("default  4").ends_with("paused for 60.00s"), "{text:?}");
        assert!(line("w1/x-1").starts_with("  w1/x-1") && line("w1/x-1").contains("t1 5ms"), "{text:?}");
        assert!(line("j1").contains("█████░░░░░░░░░░░░░░░  25% of 8"), "{text:?}");
    }
}
