//! What the collector reports at one moment, and what follows from two such moments: rates. No terminal.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use millpond::bus::operate::queues::UnlistedQueues;
use millpond_api::jobs::JobRow;
use millpond_api::list::List;
use millpond_api::overview::Problem;
use millpond_api::queues::{QueueList, QueueRow};
use millpond_api::workers::{WorkerRow, WorkerState};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::Api;

/// How long one poll may take; a collector that hangs counts as away.
const POLL_WITHIN: Duration = Duration::from_secs(5);
/// How many of the newest jobs are shown.
const JOBS_MAX: u32 = 10;

/// The cluster at one moment.
pub(super) struct ClusterSnapshot {
    /// Workers by name.
    pub(super) workers: Vec<WorkerRow>,
    /// Queues by name.
    pub(super) queues: Vec<QueueRow>,
    /// Queues beyond these.
    pub(super) unlisted: UnlistedQueues,
    /// Jobs, the newest first.
    pub(super) jobs: Vec<JobRow>,
    /// Problems, as the collector sees them.
    pub(super) problems: Vec<Problem>,
    at_ms: i64,
}

/// Polls the collector.
///
/// # Errors
/// When the collector does not answer.
pub(super) async fn poll(api: &Api) -> anyhow::Result<ClusterSnapshot> {
    let (workers, queues, jobs, problems) = tokio::try_join!(
        page(api, "/api/v1/workers", &()),
        api.get::<QueueList>("/api/v1/queues", &()),
        page(api, "/api/v1/jobs", &[("limit", JOBS_MAX)]),
        page(api, "/api/v1/problems", &())
    )?;
    let QueueList { rows: queues, unlisted, .. } = queues;
    Ok(ClusterSnapshot { workers, queues, unlisted, jobs, problems, at_ms: millpond::now_ms() })
}

/// Polls after `wait`, and not for long.
///
/// # Errors
/// As [`poll`], and when the collector takes too long.
pub(super) async fn poll_after(api: &Api, wait: Duration) -> anyhow::Result<ClusterSnapshot> {
    tokio::time::sleep(wait).await;
    match tokio::time::timeout(POLL_WITHIN, poll(api)).await {
        Ok(polled) => polled,
        Err(_) => {
            api.addresses().prefer_next();
            bail!("the collector takes longer than {} s to answer", POLL_WITHIN.as_secs())
        }
    }
}

async fn page<T: DeserializeOwned>(api: &Api, path: &str, query: &impl Serialize) -> anyhow::Result<Vec<T>> {
    Ok(api.get::<List<T>>(path, query).await?.rows)
}

/// A worker's counters, and how fast they grew between its last two heartbeats.
struct WorkerCounters {
    nonce: String,
    heartbeat_ms: i64,
    done: u64,
    failed: u64,
    /// Done and failed per second; none before a second heartbeat was seen.
    rates: Option<(f64, f64)>,
}

impl WorkerCounters {
    fn of(worker: &WorkerRow) -> Self {
        let record = &worker.record;
        Self {
            nonce: record.nonce.clone(),
            heartbeat_ms: record.heartbeat_ms,
            done: record.done,
            failed: record.failed,
            rates: None,
        }
    }

    fn after(mut self, before: &Self) -> Self {
        let ms = self.heartbeat_ms - before.heartbeat_ms;
        // Another process of the same name counts from the start.
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

/// Sums over workers and queues.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(super) struct ClusterTotals {
    /// Workers by state.
    #[serde(rename = "workers")]
    pub(super) states: BTreeMap<WorkerState, u64>,
    /// Tasks that run.
    pub(super) running: u64,
    /// Items done per second; none while no rate is known.
    #[serde(rename = "done_per_s")]
    pub(super) done_rate: Option<f64>,
    /// Attempts failed per second; none while no rate is known.
    #[serde(rename = "failed_per_s")]
    pub(super) failed_rate: Option<f64>,
    /// Messages that wait.
    pub(super) waiting: u64,
    /// Messages that workers hold.
    pub(super) held: u64,
    /// Messages that are scheduled for later.
    pub(super) scheduled: u64,
}

/// All of it as one JSON object. Without an answer of the collector the rest is as it was last.
#[derive(Serialize)]
pub(super) struct DashboardRow<'a> {
    at_ms: Option<i64>,
    /// Why the collector does not answer; null when it does.
    error: Option<&'a str>,
    totals: ClusterTotals,
    problems: Option<&'a [Problem]>,
    queues: Option<&'a [QueueRow]>,
    workers: Option<&'a [WorkerRow]>,
    jobs: Option<&'a [JobRow]>,
}

/// The last snapshot, and what earlier ones are needed for.
#[derive(Default)]
pub(super) struct Dashboard {
    snapshot: Option<ClusterSnapshot>,
    counters: BTreeMap<String, WorkerCounters>,
    /// Since when the collector does not answer, and its last error.
    away: Option<(Instant, String)>,
}

impl Dashboard {
    /// Takes the outcome of a poll.
    pub(super) fn add(&mut self, polled: anyhow::Result<ClusterSnapshot>) {
        match polled {
            Err(error) => {
                let since = self.away.take().map_or_else(Instant::now, |(since, _)| since);
                self.away = Some((since, format!("{error:#}")));
            }
            Ok(snapshot) => {
                let now = snapshot.workers.iter().map(|worker| {
                    let (name, counters) = (worker.record.name.clone(), WorkerCounters::of(worker));
                    match self.counters.get(&name) {
                        Some(before) => (name, counters.after(before)),
                        None => (name, counters),
                    }
                });
                self.counters = now.collect();
                (self.snapshot, self.away) = (Some(snapshot), None);
            }
        }
    }

    /// The last snapshot.
    pub(super) fn snapshot(&self) -> Option<&ClusterSnapshot> {
        self.snapshot.as_ref()
    }

    /// For how long the collector has not answered, and its last error.
    pub(super) fn away(&self) -> Option<(Duration, &str)> {
        self.away.as_ref().map(|(since, error)| (since.elapsed(), error.as_str()))
    }

    /// Whether there are workers whose rates another poll would show.
    pub(super) fn counts_workers(&self) -> bool {
        !self.counters.is_empty()
    }

    /// Sums over workers and queues.
    pub(super) fn totals(&self) -> ClusterTotals {
        let mut totals = ClusterTotals::default();
        let Some(snapshot) = &self.snapshot else { return totals };
        for worker in &snapshot.workers {
            if worker.state != WorkerState::Lost {
                totals.running += u64::from(worker.record.running);
                if let Some((done, failed)) = self.counters.get(&worker.record.name).and_then(|c| c.rates) {
                    *totals.done_rate.get_or_insert(0.0) += done;
                    *totals.failed_rate.get_or_insert(0.0) += failed;
                }
            }
            *totals.states.entry(worker.state).or_default() += 1;
        }
        totals.waiting += snapshot.unlisted.waiting;
        for queue in &snapshot.queues {
            totals.waiting += queue.waiting;
            totals.held += queue.held;
            totals.scheduled += queue.scheduled;
        }
        totals
    }

    /// All of it as one JSON object.
    pub(super) fn row(&self) -> DashboardRow<'_> {
        let snapshot = self.snapshot.as_ref();
        DashboardRow {
            at_ms: snapshot.map(|snapshot| snapshot.at_ms),
            error: self.away().map(|(_, error)| error),
            totals: self.totals(),
            problems: snapshot.map(|snapshot| snapshot.problems.as_slice()),
            queues: snapshot.map(|snapshot| snapshot.queues.as_slice()),
            workers: snapshot.map(|snapshot| snapshot.workers.as_slice()),
            jobs: snapshot.map(|snapshot| snapshot.jobs.as_slice()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::super::super::worker::list::tests::worker;
    use super::*;

    pub(in crate::verbs::top) fn snapshot(workers: Vec<WorkerRow>, queues: Value, jobs: Value) -> ClusterSnapshot {
        let (queues, jobs) = (serde_json::from_value(queues).unwrap(), serde_json::from_value(jobs).unwrap());
        let unlisted = UnlistedQueues::default();
        ClusterSnapshot { workers, queues, unlisted, jobs, problems: Vec::new(), at_ms: 0 }
    }

    fn counted(heartbeat_ms: i64, done: u64, nonce: &str) -> ClusterSnapshot {
        let fields = json!({ "nonce": nonce, "heartbeat_ms": heartbeat_ms, "done": done });
        snapshot(vec![worker(fields)], json!([]), json!([]))
    }

    #[test]
    fn rates_follow_the_workers_heartbeats() {
        let mut dashboard = Dashboard::default();
        let mut check = |snapshot: ClusterSnapshot, expected: Option<f64>| {
            dashboard.add(Ok(snapshot));
            assert_eq!(dashboard.totals().done_rate, expected);
        };
        check(counted(1000, 10, "a"), None);
        check(counted(3000, 30, "a"), Some(10.0));
        // Without a new heartbeat the rate stays.
        check(counted(3000, 30, "a"), Some(10.0));
        check(counted(5000, 30, "a"), Some(0.0));
        // Another process of that name counts from the start.
        check(counted(7000, 5, "b"), None);
    }

    #[test]
    fn the_last_snapshot_stays_while_the_collector_is_away() {
        let mut dashboard = Dashboard::default();
        dashboard.add(Ok(counted(1000, 10, "a")));
        dashboard.add(Err(anyhow::anyhow!("gone")));
        let row = serde_json::to_value(dashboard.row()).unwrap();
        assert_eq!((&row["error"], &row["workers"][0]["name"]), (&json!("gone"), &json!("w1")));
        dashboard.add(Ok(counted(2000, 10, "a")));
        assert_eq!(serde_json::to_value(dashboard.row()).unwrap()["error"], Value::Null);
    }
}
