//! What the collector says at one moment, and what follows from two such moments: rates. No terminal.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::{Value, json};

use crate::api::{Api, text};

/// How long one look may take: a collector that hangs counts as away.
const LOOK_WITHIN: Duration = Duration::from_secs(5);
/// The newest jobs that are shown.
const JOBS_SHOWN: usize = 10;

/// One look.
pub struct Seen {
    /// Workers by name, as `worker ls --json` prints them.
    pub workers: Vec<Value>,
    /// Queues by name, as `queue ls --json` prints them.
    pub queues: Vec<Value>,
    /// Jobs, the newest first, as `job ls --json` prints them.
    pub jobs: Vec<Value>,
    /// What is wrong, as the collector sees it: `kind`, `what`, `sentence`, `since_ms`, `mended`.
    pub problems: Vec<Value>,
    at_ms: i64,
}

/// Looks.
///
/// # Errors
/// When the collector does not answer.
pub async fn look(api: &Api) -> anyhow::Result<Seen> {
    let limit = [("limit", JOBS_SHOWN.to_string())];
    let (workers, queues, jobs, problems) = tokio::try_join!(
        page(api, "/api/v1/workers", &[]),
        page(api, "/api/v1/queues", &[]),
        page(api, "/api/v1/jobs", &limit),
        page(api, "/api/v1/problems", &[])
    )?;
    Ok(Seen { workers, queues, jobs, problems, at_ms: millpond::now_ms() })
}

/// Looks after `wait`, and not for long.
///
/// # Errors
/// As [`look`].
pub async fn look_again(api: &Api, wait: Duration) -> anyhow::Result<Seen> {
    tokio::time::sleep(wait).await;
    match tokio::time::timeout(LOOK_WITHIN, look(api)).await {
        Ok(seen) => seen,
        Err(_) => bail!("the collector takes longer than {} s to answer", LOOK_WITHIN.as_secs()),
    }
}

async fn page(api: &Api, path: &str, query: &[(&str, String)]) -> anyhow::Result<Vec<Value>> {
    let mut page = api.get(path, query).await?.unwrap_or_default();
    match page.get_mut("rows").map(Value::take) {
        Some(Value::Array(rows)) => Ok(rows),
        _ => Ok(Vec::new()),
    }
}

/// A worker's counters, and how fast they grew between its last two heartbeats.
struct Counted {
    nonce: String,
    heartbeat_ms: i64,
    done: u64,
    failed: u64,
    /// Done and failed per second; none before a second heartbeat was seen.
    rates: Option<(f64, f64)>,
}

impl Counted {
    fn of(worker: &Value) -> Self {
        let count = |field| worker.get(field).and_then(Value::as_u64).unwrap_or(0);
        Self {
            nonce: text(worker, "nonce"),
            heartbeat_ms: worker.get("heartbeat_ms").and_then(Value::as_i64).unwrap_or(0),
            done: count("done"),
            failed: count("failed"),
            rates: None,
        }
    }

    fn after(mut self, before: &Self) -> Self {
        let ms = self.heartbeat_ms - before.heartbeat_ms;
        if self.nonce != before.nonce || ms < 0 {
            return self;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate for a person")]
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 * 1000.0 / ms as f64;
        self.rates = match ms {
            0 => before.rates,
            _ => Some((rate(self.done, before.done), rate(self.failed, before.failed))),
        };
        self
    }
}

/// All of it together.
#[derive(Debug, Default, PartialEq)]
pub struct Totals {
    /// Workers by state: live, draining, lost.
    pub states: BTreeMap<String, u64>,
    /// Tasks that run.
    pub running: u64,
    /// Items done per second; none while no rate is known.
    pub done_rate: Option<f64>,
    /// Attempts failed per second; none while no rate is known.
    pub failed_rate: Option<f64>,
    /// Messages that wait, are held by workers, and wait for their time.
    pub waiting: u64,
    pub held: u64,
    pub scheduled: u64,
}

/// The last look, and what the looks before it are needed for.
#[derive(Default)]
pub struct History {
    seen: Option<Seen>,
    counted: BTreeMap<String, Counted>,
    /// Since when the collector does not answer, and what was said last.
    away: Option<(Instant, String)>,
}

impl History {
    /// Takes what a look brought.
    pub fn add(&mut self, seen: anyhow::Result<Seen>) {
        match seen {
            Err(error) => {
                let since = self.away.take().map_or_else(Instant::now, |(since, _)| since);
                self.away = Some((since, format!("{error:#}")));
            }
            Ok(seen) => {
                let now = seen.workers.iter().map(|worker| {
                    let (name, counted) = (text(worker, "name"), Counted::of(worker));
                    match self.counted.get(&name) {
                        Some(before) => (name, counted.after(before)),
                        None => (name, counted),
                    }
                });
                self.counted = now.collect();
                (self.seen, self.away) = (Some(seen), None);
            }
        }
    }

    /// The last look that was answered.
    pub fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// For how long the collector has not answered, and what was said last.
    pub fn away(&self) -> Option<(Duration, &str)> {
        self.away.as_ref().map(|(since, error)| (since.elapsed(), error.as_str()))
    }

    /// Whether there are workers whose rates another look would show.
    pub fn counts_workers(&self) -> bool {
        !self.counted.is_empty()
    }

    /// Sums over workers and queues.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        let Some(seen) = &self.seen else { return totals };
        let count = |row: &Value, field| row.get(field).and_then(Value::as_u64).unwrap_or(0);
        for worker in &seen.workers {
            let state = text(worker, "state");
            if state != "lost" {
                totals.running += count(worker, "running");
                if let Some((done, failed)) = self.counted.get(&text(worker, "name")).and_then(|c| c.rates) {
                    *totals.done_rate.get_or_insert(0.0) += done;
                    *totals.failed_rate.get_or_insert(0.0) += failed;
                }
            }
            *totals.states.entry(state).or_default() += 1;
        }
        for queue in &seen.queues {
            totals.waiting += count(queue, "waiting");
            totals.held += count(queue, "held");
            totals.scheduled += count(queue, "scheduled");
        }
        totals
    }

    /// All of it as one object: `{"at_ms", "error", "totals", "problems", "queues", "workers", "jobs"}`; `error` is null when the
    /// collector answers, else the rest is as it was last.
    pub fn json(&self) -> Value {
        let totals = self.totals();
        let totals = json!({
            "workers": totals.states, "running": totals.running, "done_per_s": totals.done_rate,
            "failed_per_s": totals.failed_rate, "waiting": totals.waiting, "held": totals.held,
            "scheduled": totals.scheduled,
        });
        let error = self.away.as_ref().map(|(_, error)| error);
        let rows = |pick: fn(&Seen) -> &Vec<Value>| self.seen.as_ref().map(|seen| json!(pick(seen)));
        json!({
            "at_ms": self.seen.as_ref().map(|seen| seen.at_ms), "error": error, "totals": totals,
            "problems": rows(|s| &s.problems), "queues": rows(|s| &s.queues), "workers": rows(|s| &s.workers), "jobs": rows(|s| &s.jobs),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::top) fn seen(workers: Value, queues: Value, jobs: Value) -> Seen {
        let list = |value: Value| value.as_array().unwrap().clone();
        Seen { workers: list(workers), queues: list(queues), jobs: list(jobs), problems: Vec::new(), at_ms: 0 }
    }

    fn worker(heartbeat_ms: i64, done: u64, nonce: &str) -> Seen {
        let worker = json!({ "name": "w1", "state": "live", "nonce": nonce, "heartbeat_ms": heartbeat_ms,
            "done": done, "failed": 0, "running": 1 });
        seen(json!([worker]), json!([]), json!([]))
    }

    #[test]
    fn rates_follow_the_workers_heartbeats() {
        let mut history = History::default();
        let mut check = |seen: Seen, expected: Option<f64>| {
            history.add(Ok(seen));
            assert_eq!(history.totals().done_rate, expected);
        };
        check(worker(1000, 10, "a"), None);
        check(worker(3000, 30, "a"), Some(10.0));
        // Nothing new was told: the rate stays.
        check(worker(3000, 30, "a"), Some(10.0));
        check(worker(5000, 30, "a"), Some(0.0));
        // Another process of that name counts from the start.
        check(worker(7000, 5, "b"), None);
    }

    #[test]
    fn what_was_seen_stays_while_the_collector_is_away() {
        let mut history = History::default();
        history.add(Ok(worker(1000, 10, "a")));
        history.add(Err(anyhow::anyhow!("gone")));
        let json = history.json();
        assert_eq!((&json["error"], &json["workers"][0]["name"]), (&json!("gone"), &json!("w1")));
        history.add(Ok(worker(2000, 10, "a")));
        assert_eq!(history.json()["error"], Value::Null);
    }
}
