//! Tasks that have not ended in the store, and that are nowhere: nothing of them lies on the bus, and no worker holds them.
//! Those that a purge removed are cancelled; those that nothing explains are shown. Each poll checks some rows of the store;
//! a walk through all of them is followed by a rest.

use std::collections::BTreeMap;

use millpond::bus::operate::queues::PurgeRecord;
use millpond::bus::read::backlog::{Purges, READ_MAX};
use millpond_api::overview::ProblemKind;

use super::detect::counted;
use super::problems::FoundProblem;
use super::snapshot::{BusSnapshot, Context, PollError, SEEN_AGAIN_AFTER_MS, StreamPositions};
use crate::store::UnendedTask;

/// Rows of one poll.
const ROWS_MAX: u32 = 500;
/// Of those, so many are searched on the bus that no purge explains: most of the time all of them wait, and all is well.
const UNEXPLAINED_MAX: u32 = 50;
/// How long to rest after a walk, in milliseconds.
const REST_MS: i64 = 30_000;
/// For how long after a purge the rests are short, in milliseconds.
const HURRY_MS: i64 = 60_000;
/// How old the last report of a task must be, in milliseconds: what was published with that report is there by then.
const SETTLED_MS: i64 = 5_000;
/// The same where no purge explains why the task is nowhere, in milliseconds.
const LOST_AFTER_MS: i64 = 60_000;
/// An outcome that came so much later than a purge may belong to a retry that was published before the purge, in
/// milliseconds.
const SLACK_MS: i64 = 10_000;

/// A task that was nowhere when it was searched.
struct Suspect {
    task: UnendedTask,
    since_ms: i64,
    positions: StreamPositions,
    walk: u64,
    /// Whether it was nowhere twice, and no purge explains that.
    is_lost: bool,
}

/// Walks through the tasks that have not ended.
#[derive(Default)]
pub(super) struct LostTasks {
    /// Whether the walk has passed the batches, and is at the other tasks.
    others: bool,
    after: i64,
    walk: u64,
    rest_until_ms: i64,
    /// When something was purged last, Unix time in milliseconds.
    purged_ms: i64,
    /// By queue, kind and id.
    suspects: BTreeMap<(String, String, String), Suspect>,
}

/// The purge that explains why a task is nowhere: the task was published before it, and neither reported nor run again since.
fn covering<'a>(purges: &'a Purges, task: &UnendedTask) -> Option<&'a PurgeRecord> {
    let purge = purges.covering(&task.queue, &task.kind)?;
    (task.published_ms <= purge.at_ms && task.changed_ms <= purge.at_ms + SLACK_MS).then_some(purge)
}

impl LostTasks {
    /// After a purge: starts the walk anew, and shortens its rests for a while.
    pub(super) fn hurry(&mut self, now_ms: i64) {
        (self.rest_until_ms, self.purged_ms) = (0, now_ms);
        (self.others, self.after) = (false, 0);
    }

    /// The lost tasks, by queue.
    pub(super) fn found(&self) -> Vec<FoundProblem> {
        let mut queues: BTreeMap<&str, (u64, &Suspect)> = BTreeMap::new();
        for suspect in self.suspects.values().filter(|suspect| suspect.is_lost) {
            let (count, first) = queues.entry(&suspect.task.queue).or_insert((0, suspect));
            *count += 1;
            if suspect.since_ms < first.since_ms {
                *first = suspect;
            }
        }
        let found = queues.into_iter().map(|(queue, (count, first))| {
            let (tasks, id) = (counted(count, "task"), &first.task.id);
            let sentence = format!(
                "{tasks} of queue {queue} should run again, and nothing of them waits or runs, {id} for one; look at nats-server's log for lost data, and publish them again"
            );
            FoundProblem { kind: ProblemKind::LostTask, what: queue.to_owned(), sentence, since_ms: first.since_ms }
        });
        found.collect()
    }

    /// Checks some rows.
    pub(super) async fn poll(
        &mut self,
        context: &Context,
        seen: &BusSnapshot,
        purges: &Purges,
    ) -> Result<(), PollError> {
        if seen.now_ms < self.rest_until_ms {
            return Ok(());
        }
        let rows = context.store.unended(!self.others, self.after, seen.now_ms - SETTLED_MS, ROWS_MAX).await?;
        let mut last = rows.last().map(|row| row.n).filter(|_| rows.len() == ROWS_MAX as usize);
        let (mut queues, mut unexplained): (BTreeMap<String, Vec<UnendedTask>>, u32) = (BTreeMap::new(), 0);
        for task in rows {
            if covering(purges, &task).is_none() {
                if seen.now_ms - task.changed_ms < LOST_AFTER_MS {
                    continue;
                }
                unexplained += 1;
            }
            let n = task.n;
            if task.is_partial() || !context.bus.waits_for_its_time(&task.queue, &task.kind, &task.id).await? {
                queues.entry(task.queue.clone()).or_default().push(task);
            }
            if unexplained == UNEXPLAINED_MAX {
                last = Some(n);
                break;
            }
        }
        for (queue, tasks) in queues {
            self.check_queue(context, seen, purges, &queue, tasks).await?;
        }
        match (last, self.others) {
            (Some(last), _) => self.after = last,
            (None, false) => (self.others, self.after) = (true, 0),
            (None, true) => self.end_walk(seen.now_ms),
        }
        Ok(())
    }

    fn end_walk(&mut self, now_ms: i64) {
        let walk = self.walk;
        // A suspect that this walk has not met again is not missing any more.
        self.suspects.retain(|_, suspect| suspect.walk == walk);
        let is_open = self.suspects.values().any(|suspect| !suspect.is_lost) || now_ms - self.purged_ms < HURRY_MS;
        self.rest_until_ms = now_ms + if is_open { SEEN_AGAIN_AFTER_MS } else { REST_MS };
        (self.others, self.after, self.walk) = (false, 0, walk + 1);
    }

    async fn check_queue(
        &mut self,
        context: &Context,
        seen: &BusSnapshot,
        purges: &Purges,
        queue: &str,
        tasks: Vec<UnendedTask>,
    ) -> Result<(), PollError> {
        // A queue with too many messages to read through proves nothing.
        if seen.waiting_or_held(queue) > READ_MAX {
            return Ok(());
        }
        let Some(stored) = context.bus.stored_ids(queue).await? else { return Ok(()) };
        let positions = StreamPositions::now(&context.bus).await?;
        let mut removed = Vec::new();
        for task in tasks {
            let root = task.root.clone().unwrap_or_else(|| task.id.clone());
            let is_stored = |id: &str| stored.contains(&(task.kind.clone(), id.to_owned()));
            if is_stored(&task.id) || is_stored(&root) || context.bus.is_held(queue, &task.kind, &root, &task.id).await
            {
                continue;
            }
            if !self.is_missing_twice(&task, seen, positions) {
                continue;
            }
            match covering(purges, &task) {
                Some(purge) if !seen.may_come_back(queue) => removed.push((task, purge.clone())),
                Some(_) => {}
                None => {
                    if let Some(suspect) = self.suspects.get_mut(&(task.queue, task.kind, task.id)) {
                        suspect.is_lost = true;
                    }
                }
            }
        }
        if removed.is_empty() {
            return Ok(());
        }
        let ended = context.store.end_purged(&removed).await?;
        for (task, _) in removed {
            self.suspects.remove(&(task.queue, task.kind, task.id));
        }
        let sentence =
            format!("{} of queue {queue} that a purge had removed are cancelled now", counted(ended, "task"));
        context.problems.mended(ProblemKind::LostTask, queue, sentence);
        Ok(())
    }

    /// Remembers that a task is nowhere. True when it was nowhere some time ago too, all that had ended by then is stored,
    /// and nothing was reported of the task since.
    fn is_missing_twice(&mut self, task: &UnendedTask, seen: &BusSnapshot, positions: StreamPositions) -> bool {
        let walk = self.walk;
        let key = (task.queue.clone(), task.kind.clone(), task.id.clone());
        match self.suspects.get_mut(&key) {
            Some(before) if before.task == *task => {
                before.walk = walk;
                seen.now_ms - before.since_ms >= SEEN_AGAIN_AFTER_MS && before.positions.are_stored(seen)
            }
            _ => {
                let suspect = Suspect { task: task.clone(), since_ms: seen.now_ms, positions, walk, is_lost: false };
                self.suspects.insert(key, suspect);
                false
            }
        }
    }
}
