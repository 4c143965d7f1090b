//! Jobs that a purge of their queue keeps from ending: all of a job is published, some of it has no end, and nothing of it
//! is left on the bus or with a worker. What is missing counts as purged then.

use std::collections::{BTreeMap, HashMap, VecDeque};

use millpond::bus::operate::queues::PurgeRecord;
use millpond::bus::read::backlog::Purges;
use millpond::job::JobState;

use super::judge::counted;
use super::problems::Kind;
use super::{LookError, Marks, Reconciler, Seen, TWICE_AFTER_MS, serving};
use crate::records::WorkerState;
use crate::store::Standing;

/// Jobs of one page that a purge may have robbed.
const PAGE_JOBS: u32 = 200;
/// Jobs that are watched at once; more wait for a place.
const WATCHED_MAX: usize = 1000;
/// Jobs that are looked at in one look.
const JOBS_MAX: usize = 20;
/// When a job is looked at again of which more is to come, in milliseconds.
const LATER_MS: i64 = 15_000;

/// One that may miss something.
#[derive(Default)]
struct Watched {
    look_at_ms: i64,
    /// When nothing of it was left, how many had ended, and what else had.
    nothing_left: Option<(i64, u64, Marks)>,
}

/// Watches the jobs of purged queues.
#[derive(Default)]
pub(super) struct RobbedJobs {
    /// When each worker process was last seen without any work, Unix time in milliseconds.
    idle: HashMap<String, i64>,
    /// When each queue and kind was purged last, as far as it was taken up.
    taken: HashMap<(String, Option<String>), i64>,
    /// Purges whose jobs are to be read, and behind which row.
    to_read: VecDeque<(PurgeRecord, i64)>,
    watched: BTreeMap<String, Watched>,
}

impl RobbedJobs {
    /// There are new purges.
    pub(super) fn purged(&mut self, purges: &Purges) {
        for purge in purges.newest() {
            let key = (purge.queue.clone(), purge.kind.clone());
            if self.taken.insert(key, purge.at_ms) != Some(purge.at_ms) {
                self.to_read.push_back((purge.clone(), 0));
            }
        }
    }

    /// Looks at some.
    pub(super) async fn look(&mut self, by: &Reconciler, seen: &Seen, purges: &Purges) -> Result<(), LookError> {
        self.note_idle(seen);
        self.read(by).await?;
        let due = self.watched.iter().filter(|(_, watched)| watched.look_at_ms <= seen.now_ms);
        let mut due: Vec<(i64, String)> = due.map(|(key, watched)| (watched.look_at_ms, key.clone())).collect();
        // Who waits longest goes first.
        due.sort_unstable();
        due.truncate(JOBS_MAX);
        for (_, key) in due {
            let next_ms = match by.store.standing(&key).await? {
                Some(job) if job.may_miss() => self.look_at(by, seen, purges, &job).await?,
                _ => None,
            };
            match next_ms {
                Some(next_ms) => self.watched.entry(key).or_default().look_at_ms = seen.now_ms + next_ms,
                None => drop(self.watched.remove(&key)),
            }
        }
        Ok(())
    }

    fn note_idle(&mut self, seen: &Seen) {
        self.idle.retain(|nonce, _| seen.workers.iter().any(|(worker, _)| worker.nonce == *nonce));
        for (worker, _) in seen.workers.iter().filter(|(worker, _)| worker.held == 0 && worker.running == 0) {
            self.idle.insert(worker.nonce.clone(), worker.heartbeat_ms);
        }
    }

    /// Whether what a purge let run may still run: on a worker that was there then and has had work ever since. All else
    /// workers end by themselves.
    fn may_run(&self, seen: &Seen, purge: &PurgeRecord) -> bool {
        !purge.running
            && serving(&seen.workers, &purge.queue).any(|(worker, state)| {
                let idle_ms = self.idle.get(&worker.nonce).copied().unwrap_or(0);
                *state != WorkerState::Lost && worker.started_ms <= purge.at_ms && idle_ms <= purge.at_ms
            })
    }

    async fn read(&mut self, by: &Reconciler) -> Result<(), LookError> {
        if self.watched.len() >= WATCHED_MAX {
            return Ok(());
        }
        let Some((purge, after)) = self.to_read.front() else { return Ok(()) };
        let (jobs, next) = by.store.jobs_before(&purge.queue, purge.at_ms, *after, PAGE_JOBS).await?;
        let kind = purge.kind.clone();
        let robbed = |job: &Standing| job.may_miss() && kind.as_ref().is_none_or(|kind| *kind == job.record.kind);
        for job in jobs.into_iter().filter(robbed) {
            self.watched.entry(job.key).or_default();
        }
        match (next, self.to_read.front_mut()) {
            (Some(next), Some((_, after))) => *after = next,
            _ => drop(self.to_read.pop_front()),
        }
        Ok(())
    }

    /// Looks at one; after how many milliseconds again, none when there is nothing more to find.
    async fn look_at(
        &mut self,
        by: &Reconciler,
        seen: &Seen,
        purges: &Purges,
        job: &Standing,
    ) -> Result<Option<i64>, LookError> {
        let before = self.watched.entry(job.key.clone()).or_default().nothing_left.take();
        let (record, queue) = (&job.record, &job.record.queue);
        let Some(purge) = purges.covering(queue, &record.kind) else { return Ok(None) };
        let Some(missing) = job.missing().filter(|_| record.state == JobState::Closed) else {
            return Ok(Some(LATER_MS));
        };
        // What is to run again and was removed, too, is ended by itself (`lost`).
        if job.retrying > 0 || seen.may_come_back(queue) || self.may_run(seen, purge) {
            return Ok(Some(TWICE_AFTER_MS));
        }
        if by.bus.job_lies(&record.job).await? {
            return Ok(Some(LATER_MS));
        }
        match before {
            Some((since_ms, ended, marks)) if ended == job.ended => {
                if seen.now_ms - since_ms < TWICE_AFTER_MS || !marks.are_stored(seen) {
                    self.watched.entry(job.key.clone()).or_default().nothing_left = before;
                    return Ok(Some(0));
                }
            }
            _ => {
                let marks = Marks::now(&by.bus).await?;
                let left = Some((seen.now_ms, job.ended, marks));
                self.watched.entry(job.key.clone()).or_default().nothing_left = left;
                return Ok(Some(TWICE_AFTER_MS));
            }
        }
        by.store.set_purged(&job.key, job.purged + missing).await?;
        let tasks = counted(missing, "task");
        let sentence = format!("{tasks} of job {} were removed by a purge of queue {queue}; it has ended", job.key);
        by.problems.mended(Kind::LostTask, &job.key, sentence);
        Ok(None)
    }
}
