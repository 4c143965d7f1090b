//! What ended when, and how the queues stood: counts in fine steps of ten seconds for two hours, and in coarse steps of five
//! minutes for as long as tasks are kept. Written in the transaction that merges, so that a crash loses and doubles nothing.

use std::collections::BTreeMap;

use millpond::outcome::NotDoneState;
use millpond_api::overview::SeriesStep;

use super::Store;
use super::error::Result;
use super::latency::Latencies;
use super::pending_rows::ReceivedOutcome;
use super::sql::{Row, Sql, Transaction};

/// Length of a fine step, in milliseconds.
pub(crate) const STEP_MS: i64 = 10_000;
/// Length of a coarse step, in milliseconds.
const COARSE_STEP_MS: i64 = 300_000;
/// How long fine steps are retained, in milliseconds.
pub(super) const FINE_RETAINED_MS: i64 = 2 * 3_600_000;
/// How far back a window with fine steps goes at the most, in milliseconds.
const FINE_BACK_MS: i64 = 3_600_000;
const _: () = assert!(FINE_BACK_MS < FINE_RETAINED_MS);

/// What ended in one queue and fine step.
#[derive(Default)]
struct StepCount {
    done: i64,
    failed: i64,
    dead: i64,
    cancelled: i64,
    latencies: Latencies,
}

/// What one merge adds to the series, by fine step and queue.
#[derive(Default)]
pub(super) struct EndCounts(BTreeMap<(i64, String), StepCount>);

/// Done, failed and dead of all queues, by the start of the fine step.
pub(crate) type EndedPerStep = BTreeMap<i64, [u64; 3]>;

/// How a queue stood at the end of a fine step.
#[derive(Debug, Clone)]
pub(crate) struct QueueSample {
    pub(crate) queue: String,
    /// Messages that TASKS took for it in that step.
    pub(crate) published: i64,
    pub(crate) waiting: i64,
    pub(crate) oldest_age_ms: i64,
}

/// The start of the step of this length that a time lies in.
fn step_start(at_ms: i64, step_ms: i64) -> i64 {
    at_ms - at_ms.rem_euclid(step_ms)
}

impl EndCounts {
    pub(super) fn add(&mut self, received: &ReceivedOutcome<'_>) {
        let outcome = received.outcome;
        let key = (step_start(received.stored_ms, STEP_MS), received.subject.queue.clone());
        let count = self.0.entry(key).or_default();
        let mut done = i64::try_from(outcome.results.len()).unwrap_or(0);
        for not_done in &outcome.not_done {
            done -= 1;
            match not_done.end {
                NotDoneState::Retry => count.failed += 1,
                NotDoneState::Dead => count.dead += 1,
                NotDoneState::Cancelled => count.cancelled += 1,
                NotDoneState::Remainder => {}
            }
        }
        if done > 0 {
            count.done += done;
            count.latencies.add(outcome.ended_ms - outcome.published_ms, done.unsigned_abs());
        }
    }

    /// Whether anything died.
    pub(super) fn has_dead(&self) -> bool {
        self.0.values().any(|count| count.dead > 0)
    }

    /// Adds them to the metrics, once they are committed. No label is a queue or a kind: anybody may publish under any name.
    pub(super) fn publish(&self) {
        let sum = |of: fn(&StepCount) -> i64| self.0.values().map(of).sum::<i64>().unsigned_abs();
        for (status, count) in [
            ("done", sum(|count| count.done)),
            ("retrying", sum(|count| count.failed)),
            ("dead", sum(|count| count.dead)),
            ("cancelled", sum(|count| count.cancelled)),
        ] {
            metrics::counter!("millpond_tasks_ended_total", "status" => status).increment(count);
        }
    }

    pub(super) async fn write(&self, transaction: &mut dyn Transaction) -> Result<()> {
        for ((at_ms, queue), count) in &self.0 {
            for step_ms in [STEP_MS, COARSE_STEP_MS] {
                let at_ms = step_start(*at_ms, step_ms);
                let before = Sql::new("SELECT latencies FROM series WHERE step_ms = ? AND at_ms = ? AND queue = ?");
                let before = transaction.rows(before.bind(step_ms).bind(at_ms).bind(queue)).await?;
                let mut latencies = before.first().map(latencies_of).transpose()?.unwrap_or_default();
                latencies.merge(&count.latencies);
                let add = Sql::new(
                    "INSERT INTO series (step_ms, at_ms, queue, done, failed, dead, cancelled, latencies)
                     VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (step_ms, at_ms, queue) DO UPDATE SET
                        done = series.done + excluded.done, failed = series.failed + excluded.failed,
                        dead = series.dead + excluded.dead, cancelled = series.cancelled + excluded.cancelled,
                        latencies = excluded.latencies",
                );
                let add = add.bind(step_ms).bind(at_ms).bind(queue).bind(count.done).bind(count.failed);
                transaction.run(add.bind(count.dead).bind(count.cancelled).bind(latencies.text())).await?;
            }
        }
        Ok(())
    }
}

fn latencies_of(row: &Row) -> Result<Latencies> {
    row.get("latencies").map(Latencies::parse)
}

impl Store {
    /// Stores how the queues stood at the end of the fine step that `at_ms` is in. Of several collectors the first one
    /// counts.
    pub(crate) async fn sample(&self, at_ms: i64, samples: &[QueueSample]) -> Result<()> {
        let mut transaction = self.db.begin().await?;
        for sample in samples {
            for step_ms in [STEP_MS, COARSE_STEP_MS] {
                let put = Sql::new(
                    "INSERT INTO series (step_ms, at_ms, queue, published, waiting, oldest_age_ms) VALUES (?,?,?,?,?,?)
                     ON CONFLICT (step_ms, at_ms, queue) DO UPDATE SET
                        published = coalesce(series.published, 0) + excluded.published,
                        waiting = CASE WHEN series.waiting > excluded.waiting THEN series.waiting ELSE excluded.waiting END,
                        oldest_age_ms = CASE WHEN series.oldest_age_ms > excluded.oldest_age_ms
                            THEN series.oldest_age_ms ELSE excluded.oldest_age_ms END
                     WHERE series.published IS NULL OR series.step_ms <> ?",
                );
                let put = put.bind(step_ms).bind(step_start(at_ms, step_ms)).bind(&sample.queue).bind(sample.published);
                let put = put.bind(sample.waiting).bind(sample.oldest_age_ms).bind(STEP_MS);
                // Another collector has sampled this fine step: the coarse one has counted it too.
                if transaction.run(put).await? == 0 {
                    break;
                }
            }
        }
        transaction.commit().await
    }

    /// What ended in the fine steps from then on.
    pub(crate) async fn ended_since(&self, since_ms: i64) -> Result<EndedPerStep> {
        let sums = Sql::new(
            "SELECT at_ms, CAST(sum(done) AS BIGINT) AS done, CAST(sum(failed) AS BIGINT) AS failed,
                CAST(sum(dead) AS BIGINT) AS dead FROM series WHERE step_ms = ? AND at_ms >= ? GROUP BY at_ms",
        );
        let sums = self.db.read(sums.bind(STEP_MS).bind(since_ms)).await?;
        let step = |row: &Row| Ok((row.get("at_ms")?, [row.get("done")?, row.get("failed")?, row.get("dead")?]));
        sums.iter().map(step).collect()
    }

    /// The steps of a window that ends now, oldest first, without those in which nothing was seen; and their length in
    /// milliseconds.
    pub(crate) async fn series(&self, back_ms: i64, queue: Option<&str>) -> Result<(i64, Vec<SeriesStep>)> {
        let step_ms = if back_ms > FINE_BACK_MS { COARSE_STEP_MS } else { STEP_MS };
        let mut sql = Sql::new(
            "SELECT at_ms, published, done, failed, dead, cancelled, latencies, waiting, oldest_age_ms FROM series
             WHERE step_ms = ? AND at_ms > ?",
        );
        sql = sql.bind(step_ms).bind(step_start(millpond::now_ms() - back_ms, step_ms));
        if let Some(queue) = queue {
            sql.push(" AND queue = ?", queue);
        }
        let mut steps: BTreeMap<i64, (SeriesStep, Latencies)> = BTreeMap::new();
        for row in self.db.read(sql).await? {
            let (step, latencies) = steps.entry(row.get("at_ms")?).or_default();
            let sum = |a: Option<i64>, b: Option<i64>| match (a, b) {
                (None, None) => None,
                _ => Some(a.unwrap_or(0) + b.unwrap_or(0)),
            };
            step.published = sum(step.published, row.get("published")?);
            step.waiting = sum(step.waiting, row.get("waiting")?);
            step.oldest_age_ms = step.oldest_age_ms.max(row.get("oldest_age_ms")?);
            step.done += row.get::<i64>("done")?;
            step.failed += row.get::<i64>("failed")?;
            step.dead += row.get::<i64>("dead")?;
            step.cancelled += row.get::<i64>("cancelled")?;
            latencies.merge(&latencies_of(&row)?);
        }
        let steps = steps.into_iter().map(|(at_ms, (step, latencies))| SeriesStep {
            at_ms,
            p50_ms: latencies.percentile(0.5),
            p99_ms: latencies.percentile(0.99),
            ..step
        });
        Ok((step_ms, steps.collect()))
    }
}
