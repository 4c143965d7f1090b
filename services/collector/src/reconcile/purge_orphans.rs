//! Jobs that a purge of their queue keeps from ending: all tasks of the job are published, some have no end, and none of them
//! is left on the bus or with a worker. The missing tasks count as purged then.

use std::collections::{BTreeMap, HashMap, VecDeque};

use millpond::bus::operate::queues::PurgeRecord;
use millpond::bus::read::backlog::Purges;
use millpond::job::JobState;
use millpond_api::overview::ProblemKind;
use millpond_api::workers::WorkerState;

use super::detect::counted;
use super::snapshot::{BusSnapshot, Context, PollError, SEEN_AGAIN_AFTER_MS, StreamPositions};
use crate::store::OpenJob;

/// Jobs that are read from the store at once.
const PAGE_JOBS: u32 = 200;
/// Jobs that are watched at once; more wait for a place.
const WATCHED_MAX: usize = 1000;
/// Jobs that one poll checks.
const JOBS_MAX: usize = 20;
/// How long until a job is checked again of which more is to come, in milliseconds.
const LATER_MS: i64 = 15_000;

/// A job that may miss tasks.
#[derive(Default)]
struct WatchedJob {
    check_at_ms: i64,
    /// When none of its tasks were left, how many had ended by then, and how far the streams had come.
    nothing_left: Option<(i64, u64, StreamPositions)>,
}

/// Watches the jobs of purged queues.
#[derive(Default)]
pub(super) struct PurgeOrphans {
    /// When each worker process was last seen without any work, Unix time in milliseconds.
    idle: HashMap<String, i64>,
    /// When each queue and kind was purged last, as far as its jobs are read or being read.
    taken: HashMap<(String, Option<String>), i64>,
    /// Purges whose jobs are to be read, and the row behind which they are.
    to_read: VecDeque<(PurgeRecord, i64)>,
    watched: BTreeMap<String, WatchedJob>,
}

impl PurgeOrphans {
    /// Queues the jobs of new purges.
    pub(super) fn purged(&mut self, purges: &Purges) {
        for purge in purges.newest() {
            let key = (purge.queue.clone(), purge.kind.clone());
            if self.taken.insert(key, purge.at_ms) != Some(purge.at_ms) {
                self.to_read.push_back((purge.clone(), 0));
            }
        }
    }

    /// Checks some jobs.
    pub(super) async fn poll(
        &mut self,
        context: &Context,
        seen: &BusSnapshot,
        purges: &Purges,
    ) -> Result<(), PollError> {
        self.note_idle(seen);
        self.read(context).await?;
        let due = self.watched.iter().filter(|(_, watched)| watched.check_at_ms <= seen.now_ms);
        let mut due: Vec<(i64, String)> = due.map(|(key, watched)| (watched.check_at_ms, key.clone())).collect();
        // The job that waits longest goes first.
        due.sort_unstable();
        due.truncate(JOBS_MAX);
        for (_, key) in due {
            let next_ms = match context.store.job_progress(&key).await? {
                Some(job) if job.may_miss() => self.check_job(context, seen, purges, &job).await?,
                _ => None,
            };
            match next_ms {
                Some(next_ms) => self.watched.entry(key).or_default().check_at_ms = seen.now_ms + next_ms,
                None => drop(self.watched.remove(&key)),
            }
        }
        Ok(())
    }

    fn note_idle(&mut self, seen: &BusSnapshot) {
        self.idle.retain(|nonce, _| seen.workers.iter().any(|(worker, _)| worker.nonce == *nonce));
        for (worker, _) in seen.workers.iter().filter(|(worker, _)| worker.held == 0 && worker.running == 0) {
            self.idle.insert(worker.nonce.clone(), worker.heartbeat_ms);
        }
    }

    /// Whether tasks that a purge let run may still run: on a worker that was there then and has had work ever since. All
    /// other tasks their workers end by themselves.
    fn may_run(&self, seen: &BusSnapshot, purge: &PurgeRecord) -> bool {
        !purge.running
            && seen.serving(&purge.queue, &[WorkerState::Live, WorkerState::Draining]).any(|worker| {
                let idle_ms = self.idle.get(&worker.nonce).copied().unwrap_or(0);
                worker.started_ms <= purge.at_ms && idle_ms <= purge.at_ms
            })
    }

    async fn read(&mut self, context: &Context) -> Result<(), PollError> {
        if self.watched.len() >= WATCHED_MAX {
            return Ok(());
        }
        let Some((purge, after)) = self.to_read.front() else { return Ok(()) };
        let (jobs, next) = context.store.jobs_before(&purge.queue, purge.at_ms, *after, PAGE_JOBS).await?;
        let kind = purge.kind.clone();
        let is_orphan = |job: &OpenJob| job.may_miss() && kind.as_ref().is_none_or(|kind| *kind == job.record.kind);
        for job in jobs.into_iter().filter(is_orphan) {
            self.watched.entry(job.key).or_default();
        }
        match (next, self.to_read.front_mut()) {
            (Some(next), Some((_, after))) => *after = next,
            _ => drop(self.to_read.pop_front()),
        }
        Ok(())
    }

    /// Checks a job; returns after how many milliseconds to check it again, none when there is nothing more to find.
    async fn check_job(
        &mut self,
        context: &Context,
        seen: &BusSnapshot,
        purges: &Purges,
        job: &OpenJob,
    ) -> Result<Option<i64>, PollError> {
        let before = self.watched.entry(job.key.clone()).or_default().nothing_left.take();
        let (record, queue) = (&job.record, &job.record.queue);
        let Some(purge) = purges.covering(queue, &record.kind) else { return Ok(None) };
        let Some(missing) = job.missing().filter(|_| record.state == JobState::Closed) else {
            return Ok(Some(LATER_MS));
        };
        // Retries of the job that were removed are ended by `lost_tasks`.
        if job.retrying > 0 || seen.may_come_back(queue) || self.may_run(seen, purge) {
            return Ok(Some(SEEN_AGAIN_AFTER_MS));
        }
        if context.bus.first_of_job(&record.job).await?.is_some() {
            return Ok(Some(LATER_MS));
        }
        match before {
            Some((since_ms, ended, positions)) if ended == job.ended => {
                if seen.now_ms - since_ms < SEEN_AGAIN_AFTER_MS || !positions.are_stored(seen) {
                    self.watched.entry(job.key.clone()).or_default().nothing_left = before;
                    return Ok(Some(0));
                }
            }
            _ => {
                let positions = StreamPositions::now(&context.bus).await?;
                let left = Some((seen.now_ms, job.ended, positions));
                self.watched.entry(job.key.clone()).or_default().nothing_left = left;
                return Ok(Some(SEEN_AGAIN_AFTER_MS));
            }
        }
        context.store.set_purged(&job.key, job.purged + missing).await?;
        let tasks = counted(missing, "task");
        let sentence = format!("{tasks} of job {} were removed by a purge of queue {queue}; it has ended", job.key);
        context.problems.mended(ProblemKind::LostTask, &job.key, sentence);
        Ok(None)
    }
}
