//! `task ls|export`: tasks by what is known of them, in the words of the collector's API.

use anyhow::Context;
use clap::Args;
use serde_json::Value;

use crate::api::{Api, text};
use crate::output::{Table, json_line, time, took};

/// Which tasks.
#[derive(Args, Debug, Clone)]
pub struct Filter {
    /// Of this job only.
    #[arg(long)]
    job: Option<String>,
    /// Of this queue only.
    #[arg(long)]
    queue: Option<String>,
    /// Of this kind only.
    #[arg(long)]
    kind: Option<String>,
    /// That stand so only.
    #[arg(long, value_parser = ["partial", "retrying", "dead", "done", "cancelled"])]
    status: Option<String>,
    /// Whose last attempt ran on this worker only.
    #[arg(long)]
    worker: Option<String>,
    /// Published since then only: an RFC 3339 time, Unix time in milliseconds, or so long ago, such as 2h.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Published before then only: likewise.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// With this text in the type or the message of a failure only.
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
}

impl Filter {
    fn query(&self) -> anyhow::Result<Vec<(&'static str, String)>> {
        let (since, until) = (time_ms(self.since.as_deref())?, time_ms(self.until.as_deref())?);
        let fields = [
            ("job", &self.job),
            ("queue", &self.queue),
            ("kind", &self.kind),
            ("status", &self.status),
            ("worker", &self.worker),
            ("since", &since),
            ("until", &until),
            ("error", &self.error),
        ];
        Ok(fields.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect())
    }
}

/// A time as typed, as Unix time in milliseconds.
///
/// # Errors
/// When it is none.
pub fn time_ms(typed: Option<&str>) -> anyhow::Result<Option<String>> {
    let Some(typed) = typed else { return Ok(None) };
    let ago = humantime::parse_duration(typed).ok().and_then(|ago| i64::try_from(ago.as_millis()).ok());
    let at = typed.parse().ok().or_else(|| ago.map(|ago| millpond::now_ms().saturating_sub(ago)));
    let at = at.or_else(|| Some(typed.parse::<jiff::Timestamp>().ok()?.as_millisecond()));
    let at = at.with_context(|| {
        format!("{typed:?} is no time: type 2026-01-31T12:00:00Z, Unix milliseconds, or so long ago, such as 2h")
    })?;
    Ok(Some(at.to_string()))
}

/// Lists the newest.
///
/// # Errors
/// When the collector does not answer, or a time cannot be read.
pub async fn ls(api: &Api, filter: &Filter, limit: u32, json: bool) -> anyhow::Result<()> {
    let mut query = filter.query()?;
    query.push(("limit", limit.to_string()));
    let page = api.get("/api/v1/tasks", &query).await?.unwrap_or_default();
    let mut table = Table::new(&["ID", "QUEUE", "KIND", "JOB", "STATUS", "ATTEMPT", "WORKER", "PUBLISHED", "TOOK"]);
    for task in page.get("rows").and_then(Value::as_array).into_iter().flatten() {
        if json {
            json_line(task)?;
            continue;
        }
        let fields = ["id", "queue", "kind", "job", "status", "attempt", "worker"];
        let mut cells: Vec<String> = fields.iter().map(|f| text(task, f)).collect();
        cells.extend([time(task, "published_ms"), took(task, "started_ms", "ended_ms")]);
        table.row(cells);
    }
    if !json {
        table.print("no such tasks")?;
    }
    if page.get("next").is_some_and(|next| !next.is_null()) {
        eprintln!("there are more than these {limit}: --limit shows more, `millpond task export` prints all");
    }
    Ok(())
}

/// Prints all of them.
///
/// # Errors
/// As [`ls`], when the collector is cut off on the way, and when standard output is closed.
pub async fn export(api: &Api, filter: &Filter) -> anyhow::Result<()> {
    api.download("/api/v1/tasks.ndjson", &filter.query()?, &mut std::io::stdout().lock()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let read = |typed| time_ms(Some(typed)).unwrap().unwrap().parse::<i64>().unwrap();
        assert_eq!(read("2020-01-01T01:00:00+01:00"), 1_577_836_800_000);
        assert_eq!(read("1577836800000"), 1_577_836_800_000);
        let late = millpond::now_ms() - 3_600_000 - read("1h");
        assert!((0..60_000).contains(&late), "{late}");
        assert!(time_ms(Some("noon")).is_err() && time_ms(None).unwrap().is_none());
    }
}
