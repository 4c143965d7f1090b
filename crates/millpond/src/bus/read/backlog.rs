//! What lies in TASKS and DUE, for the reconciler, which compares it with what is stored. In the collector's role. Each
//! read reports whether it has seen everything: a read that has not proves nothing.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use serde_json::json;

use crate::bus::consume::ownership;
use crate::bus::consume::ownership::OwnershipQuery;
use crate::bus::error::BusError;
use crate::bus::operate::queues::{PurgeRecord, QueueState};
use crate::bus::read::raw::RawMessage;
use crate::bus::topology::stream_state;
use crate::bus::{Bus, from_nats};
use crate::task::{Arrival, Origin, Task};
use crate::wire::decode::decode;
use crate::wire::streams::{BUCKET_PURGES, STREAM_DUE, STREAM_LATER, STREAM_TASKS};
use crate::wire::subject;

/// Messages of one queue that are read at the most: their payloads come along.
pub const READ_MAX: u64 = 5_000;

/// The newest finished purge of each queue and kind (none: of all kinds), as far as it was read.
#[derive(Debug, Default)]
pub struct Purges {
    /// The bucket's last sequence when it was read.
    read_up_to: u64,
    /// Under way when they were read, or not read yet.
    open: HashSet<String>,
    known: HashSet<String>,
    newest: BTreeMap<(String, Option<String>), PurgeRecord>,
}

impl Purges {
    /// The newest of each queue and kind.
    pub fn newest(&self) -> impl Iterator<Item = &PurgeRecord> {
        self.newest.values()
    }

    /// The newest that covers tasks of this queue and kind.
    #[must_use]
    pub fn covering(&self, queue: &str, kind: &str) -> Option<&PurgeRecord> {
        let all = self.newest.get(&(queue.to_owned(), None));
        let one = self.newest.get(&(queue.to_owned(), Some(kind.to_owned())));
        all.into_iter().chain(one).max_by_key(|purge| purge.at_ms)
    }

    fn add(&mut self, purge: PurgeRecord) {
        let key = (purge.queue.clone(), purge.kind.clone());
        if self.newest.get(&key).is_none_or(|known| known.at_ms < purge.at_ms) {
            self.newest.insert(key, purge);
        }
    }
}

impl Bus {
    /// When the oldest message was stored that waits in a queue and was not given out, Unix time in milliseconds; of a
    /// task that was published again: when it was due.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn oldest_waiting(&self, queue: &QueueState) -> Result<Option<i64>, BusError> {
        let mut oldest: Option<i64> = None;
        for (place, stream, prefix) in [(0, STREAM_TASKS, "tasks"), (1, STREAM_DUE, "due")] {
            let Some(place) = queue.places.get(place).filter(|place| place.waiting > 0) else { continue };
            let filter = format!("{prefix}.{}.>", queue.queue);
            let request = json!({ "seq": place.delivered + 1, "next_by_subj": filter }).to_string();
            let answer = self.client.request(format!("$JS.API.DIRECT.GET.{stream}"), Bytes::from(request)).await;
            let message = answer.map_err(|e| BusError::new("the read of what waits longest", &e))?;
            let headers = from_nats(message.headers.as_ref());
            let at = headers.iter().find(|(name, _)| name == "Nats-Time-Stamp");
            let at = at.and_then(|(_, at)| at.parse::<jiff::Timestamp>().ok()).map(jiff::Timestamp::as_millisecond);
            oldest = oldest.into_iter().chain(at).min();
        }
        Ok(oldest)
    }

    /// Whether DUE has a task of exactly this id that was published again: waiting, held, or for its time. None when
    /// more lies there than is read.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn due_has(&self, queue: &str, kind: &str, id: &str) -> Result<Option<bool>, BusError> {
        if self.waits_for_its_time(queue, kind, id).await? {
            return Ok(Some(true));
        }
        let mut found = false;
        // Whatever its job or unique key.
        let due = format!("due.{queue}.>");
        let all = self
            .each_stored(STREAM_DUE, "", &due, &mut 0, |task| found |= task.subject.kind == kind && task.id() == id)
            .await?;
        // A retry of what was there a moment ago.
        let found = found || self.waits_for_its_time(queue, kind, id).await?;
        Ok(if found { Some(true) } else { all.then_some(false) })
    }

    /// Whether a retry of the task, or the task itself, waits for its time.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn waits_for_its_time(&self, queue: &str, kind: &str, id: &str) -> Result<bool, BusError> {
        Ok(self.last_of_due(&format!("sched.{queue}.{kind}.*.{}", subject::key(id))).await?.is_some())
    }

    /// The kinds, with ids and original ids, of all that lies in LATER, TASKS and DUE of a queue: waiting, held, or for its time. None when
    /// there is more than is read. First LATER and TASKS, then DUE: a task that leaves one while it is read was stored
    /// in the other before.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn stored_ids(&self, queue: &str) -> Result<Option<HashSet<(String, String)>>, BusError> {
        let (tasks, due) = (stream_state(self, STREAM_TASKS).await?.epoch, stream_state(self, STREAM_DUE).await?.epoch);
        let (mut stored, mut seen) = (HashSet::new(), 0);
        let (later, all) = self.in_later(&format!("later.{queue}.>")).await?;
        if !all {
            return Ok(None);
        }
        for task in later.into_iter().map(|waiting| waiting.task) {
            stored.insert((task.subject.kind.clone(), task.id()));
            stored.insert((task.subject.kind, task.original_id));
        }
        let waits = format!("sched.{queue}.>");
        for (stream, epoch, filter) in [
            (STREAM_TASKS, &tasks, &format!("tasks.{queue}.>")),
            (STREAM_DUE, &due, &waits),
            (STREAM_DUE, &due, &format!("due.{queue}.>")),
            // What failed meanwhile has gone back there.
            (STREAM_DUE, &due, &waits),
        ] {
            let note = |task: Task| {
                stored.insert((task.subject.kind.clone(), task.id()));
                stored.insert((task.subject.kind, task.original_id));
            };
            if !self.each_stored(stream, epoch, filter, &mut seen, note).await? {
                return Ok(None);
            }
        }
        Ok(Some(stored))
    }

    /// The first message of a job that lies in LATER, TASKS or DUE: waiting, held, or for its time. First LATER and TASKS, then DUE: a
    /// task that leaves one while it is read was stored in the other before. None means that all of it has ended.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn first_of_job(&self, job: &str) -> Result<Option<RawMessage>, BusError> {
        let waits = format!("sched.*.*.{job}.*");
        for (stream, filter) in [
            (STREAM_LATER, &format!("later.*.*.j-{job}")),
            (STREAM_TASKS, &format!("tasks.*.*.j-{job}")),
            (STREAM_DUE, &waits),
            (STREAM_DUE, &format!("due.*.*.j-{job}")),
            // What failed meanwhile has gone back there.
            (STREAM_DUE, &waits),
        ] {
            if let Some(message) = self.next_raw_message(stream, 1, filter).await? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Whether a worker replies that it holds the task, or an item of this original message.
    pub async fn is_held(&self, queue: &str, kind: &str, original_id: &str, id: &str) -> bool {
        for original_id in [original_id, id] {
            let query = OwnershipQuery {
                queue: queue.to_owned(),
                kind: Some(kind.to_owned()),
                original_id: original_id.to_owned(),
                id: id.to_owned(),
                items: None,
                attempt: 1,
            };
            if !ownership::find_owners(self, &query).await.is_empty() {
                return true;
            }
        }
        false
    }

    /// Reads the records of purges that came since; whether a finished one is new.
    ///
    /// # Errors
    /// [`BusError`] when the bucket cannot be read.
    pub async fn read_purges(&self, purges: &mut Purges) -> Result<bool, BusError> {
        let stream = format!("KV_{BUCKET_PURGES}");
        let last = stream_state(self, &stream).await?.last_seq;
        if last == purges.read_up_to && purges.open.is_empty() {
            return Ok(false);
        }
        let mut offset = 0;
        loop {
            let page = self.subjects(&stream, &format!("$KV.{BUCKET_PURGES}.>"), offset).await?;
            let subjects = page.state.subjects.unwrap_or_default();
            offset += subjects.len();
            let is_last = subjects.is_empty() || offset >= page.total;
            let fresh = subjects.into_keys().filter(|subject| !purges.known.contains(subject));
            purges.open.extend(fresh.collect::<Vec<_>>());
            if is_last {
                break;
            }
        }
        let (open, mut any) = (std::mem::take(&mut purges.open), false);
        for subject in open {
            let answer = self.client.request(format!("$JS.API.DIRECT.GET.{stream}.{subject}"), Bytes::new()).await;
            let message = answer.map_err(|e| BusError::new(BUCKET_PURGES, &e))?;
            match decode::<PurgeRecord>(&message.payload).ok() {
                Some(purge) if purge.count.is_none() => drop(purges.open.insert(subject)),
                Some(purge) => {
                    purges.add(purge);
                    purges.known.insert(subject);
                    any = true;
                }
                None => drop(purges.known.insert(subject)),
            }
        }
        purges.read_up_to = last;
        Ok(any)
    }

    /// Reads the messages of a stream on a filter, without their payloads; false when there are more than are read.
    /// `seen` counts over several reads.
    async fn each_stored(
        &self,
        stream: &str,
        epoch: &str,
        filter: &str,
        seen: &mut u64,
        mut each: impl FnMut(Task),
    ) -> Result<bool, BusError> {
        let origin = if stream == STREAM_DUE { Origin::Due } else { Origin::Tasks };
        let mut from = 1;
        while *seen < READ_MAX {
            let page = self.page(stream, filter, from).await?;
            let Some((last, _, _)) = page.last() else { return Ok(true) };
            (from, *seen) = (last + 1, *seen + page.len() as u64);
            for (seq, subject, headers) in page {
                each(Task::parse(&subject, &headers, Bytes::new(), Arrival { origin, epoch, seq, stored_ms: 0 }));
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purge(kind: Option<&str>, at_ms: i64) -> PurgeRecord {
        PurgeRecord {
            queue: "q".into(),
            kind: kind.map(str::to_owned),
            running: true,
            later_up_to: 0,
            tasks_up_to: 0,
            due_up_to: 0,
            count: Some(1),
            by: "o".into(),
            at_ms,
        }
    }

    #[test]
    fn the_newest_purge_covers() {
        let mut purges = Purges::default();
        for one in [purge(Some("a"), 5), purge(None, 3), purge(Some("a"), 2)] {
            purges.add(one);
        }
        let at = |queue: &str, kind: &str| purges.covering(queue, kind).map(|purge| purge.at_ms);
        assert_eq!((at("q", "a"), at("q", "b"), at("other", "a")), (Some(5), Some(3), None));
    }
}
