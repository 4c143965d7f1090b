//! The records of jobs: written by compare-and-set, so that a producer that was replaced, or whose job was cancelled,
//! learns of it; and what of a job lies in LATER, TASKS and DUE, for a producer that resumes it.

use async_nats::jetstream::kv;
use bytes::Bytes;

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::read::buckets::encode;
use crate::bus::read::unix_ms;
use crate::job::JobRecord;
use crate::task::{Arrival, Origin, Task};
use crate::wire::decode::decode;
use crate::wire::streams::{BUCKET_JOBS, STREAM_DUE, STREAM_LATER, STREAM_TASKS};
use crate::wire::subject::TaskSubject;

/// A job's record and the revision that it was read at or written as.
#[derive(Debug, Clone)]
pub struct JobEntry {
    /// The record.
    pub record: JobRecord,
    /// What the next write must find.
    pub revision: u64,
    /// When the server stored it, Unix time in milliseconds.
    pub stored_ms: i64,
}

/// How far TASKS, the two parts of DUE, and LATER were read.
#[derive(Debug, Clone, Copy, Default)]
pub struct LookedThrough([u64; 4]);

impl Bus {
    /// Writes a job's record if it still is as it was at `revision` (0: if there is none); the new revision, or none
    /// when somebody else has written it since.
    ///
    /// # Errors
    /// [`BusError`] when the bucket cannot be written.
    pub async fn write_job(&self, record: &JobRecord, revision: u64) -> Result<Option<u64>, BusError> {
        let write = async |store: &kv::Store| match store.update(&record.job, encode(record), revision).await {
            Ok(revision) => Ok(Some(revision)),
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(error),
        };
        self.with_bucket(BUCKET_JOBS, write).await
    }

    /// Reads a job's record.
    ///
    /// # Errors
    /// [`BusError`] when the bucket cannot be read.
    pub async fn job(&self, job: &str) -> Result<Option<JobEntry>, BusError> {
        let entry = self.with_bucket(BUCKET_JOBS, async |store: &kv::Store| store.entry(job).await).await?;
        let entry = entry.filter(|e| e.operation == kv::Operation::Put);
        Ok(entry.and_then(|e| {
            Some(JobEntry { record: decode(&e.value).ok()?, revision: e.revision, stored_ms: unix_ms(e.created) })
        }))
    }

    /// Tells the indexes (from, and one past the last) of all messages of this epoch of the job that lie in LATER, TASKS
    /// or DUE, held by a worker or not, from where an earlier look ended. First LATER and TASKS, then DUE: a task that leaves one
    /// while it is read was stored in the other before. What is in neither has ended, or was never stored.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn look_for_tasks(
        &self,
        record: &JobRecord,
        after: LookedThrough,
        mut note: impl FnMut(u64, u64),
    ) -> Result<LookedThrough, BusError> {
        let subject = TaskSubject {
            queue: record.queue.clone(),
            kind: record.kind.clone(),
            job: Some(record.job.clone()),
            unique: None,
        };
        let (later, tasks, sched, due) = (subject.later(), subject.task(), subject.all_sched(), subject.due());
        let mut after = after;
        // The last one again: what failed meanwhile has gone back there.
        for (place, stream, filter) in [
            (3, STREAM_LATER, &later),
            (0, STREAM_TASKS, &tasks),
            (1, STREAM_DUE, &sched),
            (2, STREAM_DUE, &due),
            (1, STREAM_DUE, &sched),
        ] {
            let origin = if stream == STREAM_DUE { Origin::Due } else { Origin::Tasks };
            let Some(last) = after.0.get_mut(place) else { continue };
            loop {
                let page = self.page(stream, filter, *last + 1).await?;
                let Some((seq, _, _)) = page.last() else { break };
                *last = *seq;
                for (seq, subject, headers) in page {
                    let arrival = Arrival { origin, epoch: "", seq, stored_ms: 0 };
                    let task = Task::parse(&subject, &headers, Bytes::new(), arrival);
                    if let Some(index) = task.index.filter(|_| record.owns(&task.original_id)) {
                        note(index, index.saturating_add(u64::from(task.items_len())));
                    }
                }
            }
        }
        Ok(after)
    }
}
