//! What ended when, and how the queues stood: counts in steps of ten seconds for two hours, and of five minutes for as
//! long as tasks are kept. Written in the transaction that merges, so that a crash loses and doubles nothing.

use std::collections::BTreeMap;

use millpond::outcome::NotDoneState;
use serde::Serialize;
use utoipa::ToSchema;

use super::Store;
use super::latency::Latencies;
use super::merge::Ending;
use super::sql::{Row, Sql, Transaction};

/// Length of a fine step, in milliseconds.
pub(crate) const STEP_MS: i64 = 10_000;
/// The steps, in milliseconds: the fine one, and the one that is kept.
const STEPS_MS: [i64; 2] = [STEP_MS, 300_000];
/// How long fine steps are kept, in milliseconds.
pub(super) const FINE_KEPT_MS: i64 = 2 * 3_600_000;
/// How far back a window with fine steps goes at the most, in milliseconds.
const FINE_BACK_MS: i64 = 3_600_000;
const _: () = assert!(FINE_BACK_MS < FINE_KEPT_MS);

#[derive(Default)]
struct Count {
    done: i64,
    failed: i64,
    dead: i64,
    cancelled: i64,
    latencies: Latencies,
}

/// What one merge adds, by queue and fine step.
#[derive(Default)]
pub(super) struct Counts(BTreeMap<(i64, String), Count>);

/// One step, all queues or one.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Step {
    /// Its start, Unix time in milliseconds.
    pub(crate) at_ms: i64,
    /// Messages that TASKS took; none when nobody counted.
    pub(crate) published: Option<i64>,
    /// Tasks that got a result.
    pub(crate) done: i64,
    /// Attempts that failed and are tried again.
    pub(crate) failed: i64,
    /// Tasks that died.
    pub(crate) dead: i64,
    /// Tasks that were cancelled one by one.
    pub(crate) cancelled: i64,
    /// Messages that waited, the most that were seen.
    pub(crate) waiting: Option<i64>,
    /// Age of the oldest that waited, in milliseconds, the most that was seen.
    pub(crate) oldest_age_ms: Option<i64>,
    /// Median from published to ended of what got a result in this step, in milliseconds.
    pub(crate) p50_ms: Option<u64>,
    /// The same, 99 of 100.
    pub(crate) p99_ms: Option<u64>,
}

/// Done, failed and dead of all queues, by the start of the fine step.
pub(crate) type Ended = BTreeMap<i64, [u64; 3]>;

/// How a queue stood.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) queue: String,
    /// Messages that TASKS took for it in the step that has ended.
    pub(crate) published: i64,
    pub(crate) waiting: i64,
    pub(crate) oldest_age_ms: i64,
}

fn start(at_ms: i64, step: usize) -> i64 {
    let step = STEPS_MS.get(step).copied().unwrap_or(1);
    at_ms - at_ms.rem_euclid(step)
}

impl Counts {
    pub(super) fn add(&mut self, ending: &Ending<'_>) {
        let outcome = ending.outcome;
        let key = (start(ending.stored_ms, 0), ending.subject.queue.clone());
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
            count.latencies.add(outcome.ended_ms - outcome.published_ms, u64::try_from(done).unwrap_or(0));
        }
    }

    /// Whether anything died.
    pub(super) fn died(&self) -> bool {
        self.0.values().any(|count| count.dead > 0)
    }

    /// Counts them for the metrics, once they are committed. Not by queue or kind: anybody may publish under any name.
    pub(super) fn tell(&self) {
        let sum = |of: fn(&Count) -> i64| self.0.values().map(of).sum::<i64>().unsigned_abs();
        for (status, count) in [
            ("done", sum(|count| count.done)),
            ("retrying", sum(|count| count.failed)),
            ("dead", sum(|count| count.dead)),
            ("cancelled", sum(|count| count.cancelled)),
        ] {
            metrics::counter!("millpond_tasks_ended_total", "status" => status).increment(count);
        }
    }

    pub(super) async fn write(&self, transaction: &mut dyn Transaction) -> sqlx::Result<()> {
        for ((at_ms, queue), count) in &self.0 {
            for (step, step_ms) in STEPS_MS.into_iter().enumerate() {
                let at_ms = start(*at_ms, step);
                let had = Sql::new("SELECT latencies FROM series WHERE step_ms = ? AND at_ms = ? AND queue = ?");
                let had = transaction.rows(had.bind(step_ms).bind(at_ms).bind(queue)).await?;
                let mut latencies = Latencies::parse(had.first().and_then(|row| row.text("latencies")).unwrap_or(""));
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

impl Store {
    /// How the queues stood at the end of the fine step that `at_ms` is in. Of several collectors the first one counts.
    pub(crate) async fn sample(&self, at_ms: i64, samples: &[Sample]) -> anyhow::Result<()> {
        let mut transaction = self.db.begin().await?;
        for sample in samples {
            let mut first = true;
            for (step, step_ms) in STEPS_MS.into_iter().enumerate() {
                let put = Sql::new(
                    "INSERT INTO series (step_ms, at_ms, queue, published, waiting, oldest_age_ms) VALUES (?,?,?,?,?,?)
                     ON CONFLICT (step_ms, at_ms, queue) DO UPDATE SET
                        published = coalesce(series.published, 0) + excluded.published,
                        waiting = CASE WHEN series.waiting > excluded.waiting THEN series.waiting ELSE excluded.waiting END,
                        oldest_age_ms = CASE WHEN series.oldest_age_ms > excluded.oldest_age_ms
                            THEN series.oldest_age_ms ELSE excluded.oldest_age_ms END
                     WHERE series.published IS NULL OR series.step_ms <> ?",
                );
                let put = put.bind(step_ms).bind(start(at_ms, step)).bind(&sample.queue).bind(sample.published);
                let put = put.bind(sample.waiting).bind(sample.oldest_age_ms).bind(STEP_MS);
                first = first && transaction.run(put).await? > 0;
                if !first {
                    break;
                }
            }
        }
        transaction.commit().await?;
        Ok(())
    }

    /// What ended in the fine steps from then on.
    pub(crate) async fn ended_since(&self, since_ms: i64) -> anyhow::Result<Ended> {
        let sums = Sql::new(
            "SELECT at_ms, CAST(sum(done) AS BIGINT) AS done, CAST(sum(failed) AS BIGINT) AS failed,
                CAST(sum(dead) AS BIGINT) AS dead FROM series WHERE step_ms = ? AND at_ms >= ? GROUP BY at_ms",
        );
        let sums = self.db.read(sums.bind(STEP_MS).bind(since_ms)).await?;
        let step = |row: &Row| (row.int("at_ms").unwrap_or(0), ["done", "failed", "dead"].map(|name| row.count(name)));
        Ok(sums.iter().map(step).collect())
    }

    /// The steps of a window that ends now, oldest first, without those in which nothing was seen; and their length in
    /// milliseconds.
    pub(crate) async fn series(&self, back_ms: i64, queue: Option<&str>) -> anyhow::Result<(i64, Vec<Step>)> {
        let step = usize::from(back_ms > FINE_BACK_MS);
        let step_ms = STEPS_MS.get(step).copied().unwrap_or(1);
        let mut sql = Sql::new(
            "SELECT at_ms, published, done, failed, dead, cancelled, latencies, waiting, oldest_age_ms FROM series
             WHERE step_ms = ? AND at_ms > ?",
        );
        sql = sql.bind(step_ms).bind(start(millpond::now_ms() - back_ms, step));
        if let Some(queue) = queue {
            sql.push(" AND queue = ?", queue);
        }
        let mut steps: BTreeMap<i64, (Step, Latencies)> = BTreeMap::new();
        for row in self.db.read(sql).await? {
            let int = |name: &str| row.int(name).unwrap_or(0);
            let at_ms = int("at_ms");
            let (step, latencies) = steps.entry(at_ms).or_default();
            let sum = |a: Option<i64>, b: Option<i64>| {
                if a.is_some() || b.is_some() { Some(a.unwrap_or(0) + b.unwrap_or(0)) } else { None }
            };
            step.at_ms = at_ms;
            step.published = sum(step.published, row.int("published"));
            step.waiting = sum(step.waiting, row.int("waiting"));
            step.oldest_age_ms = step.oldest_age_ms.max(row.int("oldest_age_ms"));
            step.done += int("done");
            step.failed += int("failed");
            step.dead += int("dead");
            step.cancelled += int("cancelled");
            latencies.merge(&Latencies::parse(row.text("latencies").unwrap_or("")));
        }
        let steps = steps.into_values().map(|(step, latencies)| Step {
            p50_ms: latencies.percentile(0.5),
            p99_ms: latencies.percentile(0.99),
            ..step
        });
        Ok((step_ms, steps.collect()))
    }
}
