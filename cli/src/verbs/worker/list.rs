//! Workers with their child processes as a table, for `worker ls` and `top`.

use millpond::worker_record::{ChildRecord, WorkerRecord};
use millpond_api::workers::WorkerRow;

use crate::api::Api;
use crate::output::{Table, milliseconds, short};

/// How many characters of a task's id are shown.
const TASK_CHARS_MAX: usize = 40;
/// How many characters of a reason or a note are shown.
const NOTE_CHARS_MAX: usize = 80;

/// The headings of [`rows`]. The last column is left out when no row has a note.
const HEADINGS: [&str; 12] =
    ["WORKER", "STATE", "HOST", "PID", "QUEUES", "RUNNING", "DONE", "FAILED", "CPU", "RSS", "UP", "NOTE"];

/// All workers that the collector knows, by name.
///
/// # Errors
/// When the collector does not answer.
pub(in crate::verbs) async fn list(api: &Api) -> anyhow::Result<Vec<WorkerRow>> {
    api.all("/api/v1/workers", &()).await
}

/// Workers as a table, each followed by its child processes.
pub(in crate::verbs) fn table(workers: &[WorkerRow]) -> Table {
    let rows: Vec<Vec<String>> = workers.iter().flat_map(rows).collect();
    let noted = rows.iter().any(|row| row.last().is_some_and(|note| !note.is_empty()));
    let headings = HEADINGS.get(..HEADINGS.len() - usize::from(!noted)).unwrap_or(&HEADINGS);
    let mut table = Table::new(headings);
    rows.into_iter().for_each(|row| table.row(row));
    table
}

/// The cells of a worker under [`HEADINGS`], then those of its child processes, whose names are indented.
fn rows(worker: &WorkerRow) -> Vec<Vec<String>> {
    let record = &worker.record;
    let of_worker = vec![
        record.name.clone(),
        worker.state.to_string(),
        record.host.clone(),
        record.pid.to_string(),
        some(&record.queues, 0),
        format!("{}/{}+{}", record.running, record.slots, record.io_slots),
        record.done.to_string(),
        record.failed.to_string(),
        percent(record.cpu_percent),
        mebibytes(record.rss_bytes),
        milliseconds(record.heartbeat_ms - record.started_ms),
        note(record),
    ];
    let children = record.children.iter().map(|child| child_row(child, record.heartbeat_ms));
    std::iter::once(of_worker).chain(children).collect()
}

/// A child process: its kind stands under QUEUES, and the task that it works on under RUNNING.
fn child_row(child: &ChildRecord, now_ms: i64) -> Vec<String> {
    let mut task = child.task.as_deref().map_or_else(String::new, |task| short(task, TASK_CHARS_MAX));
    if let Some(age_ms) = child.task_ms {
        task = format!("{task} {}", milliseconds(i64::try_from(age_ms).unwrap_or(i64::MAX)));
    }
    if let Some(progress) = child.progress {
        task = format!("{task} {:.0}%", progress * 100.0);
    }
    let restarts = (child.restarts > 0).then(|| format!("restarts {}", child.restarts));
    let note = child.note.as_deref().map(|note| short(note, NOTE_CHARS_MAX));
    vec![
        format!("  {}", child.name),
        child.state.name().to_owned(),
        String::new(),
        child.pid.to_string(),
        child.kind.clone(),
        task,
        child.done.to_string(),
        String::new(),
        percent(child.cpu_percent),
        mebibytes(child.rss_bytes),
        milliseconds(now_ms - child.started_ms),
        restarts.into_iter().chain(note).collect::<Vec<_>>().join("; "),
    ]
}

/// What a person should know of a worker: kinds whose child processes cannot start, and kinds that it does not know.
fn note(record: &WorkerRecord) -> String {
    let cannot_start =
        |(kind, reason): (&String, &String)| format!("{kind} cannot start: {}", short(reason, NOTE_CHARS_MAX));
    let mut notes: Vec<String> = record.troubles.iter().map(cannot_start).collect();
    if !record.unknown_kinds.is_empty() {
        notes.push(format!("unknown kinds: {}", some(&record.unknown_kinds, record.unknown_kinds_more)));
    }
    notes.join("; ")
}

/// The first of these names, and how many there are beyond them; `more` are not among the names.
fn some(names: &[String], more: u64) -> String {
    let mut chars = 0;
    let fits = names.iter().take_while(|name| {
        chars += name.chars().count() + 1;
        chars <= NOTE_CHARS_MAX
    });
    let shown = fits.count().max(1).min(names.len());
    let more = (names.len() - shown) as u64 + more;
    let listed = names.get(..shown).unwrap_or_default().join(",");
    if more == 0 { listed } else { format!("{listed} and {more} more") }
}

fn percent(percent: f64) -> String {
    format!("{percent:.1}%")
}

#[expect(clippy::cast_precision_loss, reason = "a size for a person")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
pub(in crate::verbs) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A live worker whose record has these fields.
    pub(in crate::verbs) fn worker(fields: Value) -> WorkerRow {
        let mut row = json!({
            "name": "w1", "state": "live", "nonce": "n", "host": "h", "pid": 7, "queues": ["a", "b"], "kinds": [],
            "running": 1, "held": 1, "slots": 2, "io_slots": 64, "draining": false, "done": 3, "failed": 1,
            "started_ms": 1000, "heartbeat_ms": 2500, "unknown_kinds": [], "history": [],
        });
        row.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(row).unwrap()
    }

    #[test]
    fn children_stand_below_their_worker() {
        let worker = worker(json!({
            "cpu_percent": 12.34, "rss_bytes": 3 << 19, "children": [{
                "name": "w1/convert-2", "kind": "convert", "pid": 8, "state": "busy", "task": "j.1/4", "task_ms": 1250,
                "progress": 0.4, "done": 2, "restarts": 1, "cpu_percent": 99.0, "rss_bytes": 0, "started_ms": 1500,
            }],
        }));
        let rows = rows(&worker);
        assert_eq!(rows[0].join("|"), "w1|live|h|7|a,b|1/2+64|3|1|12.3%|1.5 MiB|1.50s|");
        assert_eq!(
            rows[1].join("|"),
            "  w1/convert-2|busy||8|convert|j.1/4 1.25s 40%|2||99.0%|0.0 MiB|1.00s|restarts 1"
        );
        let heading = |workers: &[WorkerRow]| table(workers).lines()[0].clone();
        assert!(heading(std::slice::from_ref(&worker)).ends_with("NOTE"));
        let mut alone = worker;
        alone.record.children.clear();
        assert!(heading(&[alone]).ends_with("UP"));
    }

    #[test]
    fn troubles_and_unknown_kinds_are_noted() {
        let worker = worker(json!({ "troubles": { "convert": "no such\nfile" }, "unknown_kinds": ["default.x"] }));
        assert_eq!(rows(&worker)[0][11], "convert cannot start: no such file; unknown kinds: default.x");
        let made_up: Vec<String> = (0..20).map(|n| format!("default.{}{n}", "x".repeat(30))).collect();
        let said = some(&made_up, 29_980);
        assert!(said.starts_with(&made_up[0]) && said.ends_with(" and 29998 more"), "{said}");
        assert_eq!(some(&[], 0), "");
    }
}
