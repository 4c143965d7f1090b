//! Messages that the NATS client cannot read (`wire/header_block.rs`): it drops its connection at each, so whoever is given one
//! settles neither it nor what came with it, and it comes again. They are looked for raw among what was given out, kept as dead
//! letters, and removed. In the collector's role.

use std::collections::BTreeMap;

use bytes::Bytes;
use data_encoding::BASE64;

use crate::bus::error::BusError;
use crate::bus::operate::queues::{QueueInStream, QueueState};
use crate::bus::publish::{PublishError, RetryDeadline};
use crate::bus::read::raw::RawMessage;
use crate::bus::topology::stream_state;
use crate::bus::{Bus, Subscription};
use crate::dead_letter::Evidence;
use crate::outcome::Failure;
use crate::task::{Arrival, Origin, Task};
use crate::wire::header_block::UnreadableMessage;
use crate::wire::headers::{HEADER_DEAD, HEADER_EXPECTED_SEQUENCE, HEADER_MSG_ID, HEADER_RAW_HEADERS, Headers};
use crate::wire::streams::{STREAM_DUE, STREAM_TASKS};
use crate::wire::subject::{EVENTS_RECONNECTED, SCHEDULES};

/// Messages of a queue that one search looks at, at the most; the next one goes on behind them.
const LOOKED_AT_MAX: usize = 5_000;
/// How many messages behind one that cannot be read are looked at before they are given out: such messages come in groups.
const LOOK_AHEAD: usize = 256;
/// Records of a bucket that one sweep looks at, at the most; the next one goes on behind them.
const SWEPT_MAX: usize = 20_000;
/// Who writes the dead letters of what nobody can read.
pub(super) const COLLECTOR: &str = "collector";
/// How long a dead letter may take to be stored; the next search tries again.
const STORE_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);
/// Bytes of a header block that its dead letter carries; the server allows 64 KiB of headers.
const RAW_HEADERS_BYTES_MAX: usize = 16 * 1024;

/// Why a search did not end.
#[derive(Debug, thiserror::Error)]
pub enum PoisonError {
    /// The server did not answer.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The dead letter was not stored.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// What was looked at so far. A stored message never changes, so each is looked at once.
#[derive(Default)]
pub struct PoisonSearch {
    /// By place (TASKS, DUE) and queue: all up to this sequence can be read.
    looked_at: BTreeMap<(usize, String), u64>,
    /// The same of what the collector reads for itself, by stream.
    swept: BTreeMap<&'static str, u64>,
}

/// What a collector follows or lists, and clients or workers write: one message that cannot be read would cost it its connection
/// whenever it reads the place.
const FOLLOWED: [(&str, &str); 4] =
    [("KV_millpond_jobs", ">"), (WORKER_RECORDS, ">"), ("KV_millpond_queues", ">"), (STREAM_DUE, SCHEDULES)];
/// The records of workers among them.
const WORKER_RECORDS: &str = "KV_millpond_workers";

/// Reconnects of workers, as they happen: one of them may have been given a message that it cannot read.
pub struct Reconnects(Subscription);

impl Reconnects {
    /// Returns when a worker was connected again.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) {
        if self.0.next().await.is_none() {
            // The connection is closed for good: this program is about to end.
            std::future::pending::<()>().await;
        }
    }
}

impl Bus {
    /// Listens for reconnects of workers.
    ///
    /// # Errors
    /// [`BusError`] when the connection is closed.
    pub async fn reconnects(&self) -> Result<Reconnects, BusError> {
        Ok(Reconnects(self.listen(format!("{EVENTS_RECONNECTED}.*")).await?))
    }
}

impl PoisonSearch {
    /// Looks at what was given out and is not settled; of all queues when `of_all`, else of those where something was given out
    /// again. Returns how many messages became dead letters.
    ///
    /// # Errors
    /// [`PoisonError`]; what was found before it is removed.
    pub async fn search(&mut self, bus: &Bus, queues: &[QueueState], of_all: bool) -> Result<usize, PoisonError> {
        let mut found = 0;
        for queue in queues {
            for (at, place) in queue.places.iter().enumerate() {
                if place.held > 0 && (of_all || place.redelivered > 0) {
                    found += self.search_queue(bus, &queue.queue, at, *place).await?;
                }
            }
        }
        Ok(found)
    }

    /// Looks at what the collector reads for itself: schedules and records. A schedule that cannot be read becomes a dead letter, a
    /// record is only removed.
    ///
    /// # Errors
    /// [`PoisonError`]; what was found before it is removed.
    pub async fn sweep(&mut self, bus: &Bus) -> Result<usize, PoisonError> {
        let mut found = 0;
        for (stream, filter) in FOLLOWED {
            let looked_at = self.swept.entry(stream).or_default();
            for _ in 0..SWEPT_MAX {
                let Some(message) = bus.next_raw_message(stream, *looked_at + 1, filter).await? else { break };
                if let Err(why) = message.headers() {
                    if stream == STREAM_DUE {
                        unreadable(bus, stream, &message, why, COLLECTOR).await?;
                        bus.remove_message(stream, message.seq).await?;
                    } else {
                        tracing::warn!(stream, key = message.subject, %why, "a record that cannot be read is removed");
                        remove_record(bus, stream, &message).await?;
                    }
                    found += 1;
                }
                *looked_at = message.seq;
            }
        }
        Ok(found)
    }

    async fn search_queue(
        &mut self,
        bus: &Bus,
        queue: &str,
        at: usize,
        place: QueueInStream,
    ) -> Result<usize, PoisonError> {
        let (stream, filter) = match at {
            0 => (STREAM_TASKS, format!("tasks.{queue}.>")),
            _ => (STREAM_DUE, format!("due.{queue}.>")),
        };
        let looked_at = self.looked_at.entry((at, queue.to_owned())).or_default();
        if *looked_at > place.delivered {
            // What lies ahead was looked at, or the stream was made anew.
            *looked_at = place.ack_floor;
        }
        *looked_at = place.ack_floor.max(*looked_at);
        let (mut found, mut ahead) = (0, 0);
        for _ in 0..LOOKED_AT_MAX {
            let Some(message) = bus.next_raw_message(stream, *looked_at + 1, &filter).await? else { break };
            if message.seq > place.delivered {
                ahead += 1;
                if found == 0 || ahead > LOOK_AHEAD {
                    break;
                }
            }
            if let Err(why) = message.headers() {
                unreadable(bus, stream, &message, why, COLLECTOR).await?;
                bus.remove_message(stream, message.seq).await?;
                (found, ahead) = (found + 1, 0);
            }
            *looked_at = message.seq;
        }
        Ok(found)
    }
}

/// Removes a record that cannot be read. A key that is no text has no name: only a wildcard fits it, and with it a purge removes all
/// that fits and was written before. So those are written once more, and lie behind it.
async fn remove_record(bus: &Bus, stream: &str, message: &RawMessage) -> Result<(), PoisonError> {
    let token =
        |token: &str| if token.contains(char::REPLACEMENT_CHARACTER) { "*".to_owned() } else { token.to_owned() };
    let filter = message.subject.split('.').map(token).collect::<Vec<_>>().join(".");
    // A live worker writes its record every 2 s.
    if filter != message.subject && stream != WORKER_RECORDS {
        write_again(bus, stream, &filter, message.seq).await?;
    }
    Ok(bus.purge_up_to(stream, &filter, message.seq).await?)
}

/// Writes the records of these keys once more that were written before a sequence. One that changes meanwhile lies behind it.
async fn write_again(bus: &Bus, stream: &str, filter: &str, before: u64) -> Result<(), PoisonError> {
    let mut from = 1;
    while let Some(record) = bus.next_raw_message(stream, from, filter).await?.filter(|record| record.seq < before) {
        from = record.seq + 1;
        let Ok(mut headers) = record.headers() else { continue };
        if record.is_removal() {
            continue;
        }
        // The conditions under which it was written.
        headers.retain(|(name, _)| !name.starts_with("Nats-Expected-") && name != HEADER_MSG_ID);
        headers.push((HEADER_EXPECTED_SEQUENCE.to_owned(), record.seq.to_string()));
        match bus.store(&record.subject, &headers, record.payload, RetryDeadline::Within(STORE_WITHIN)).await {
            Ok(_) | Err(PublishError::NotLast { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Keeps a message that cannot be read as a dead letter. Nothing of its headers is believed: it gets an id of its own, as what is
/// not signed does.
pub(super) async fn unreadable(
    bus: &Bus,
    stream: &str,
    message: &RawMessage,
    why: UnreadableMessage,
    by: &str,
) -> Result<(), PoisonError> {
    let origin = if stream == STREAM_DUE { Origin::Due } else { Origin::Tasks };
    let epoch = stream_state(bus, stream).await?.epoch;
    let arrival = Arrival { origin, epoch: &epoch, seq: message.seq, stored_ms: message.stored_ms };
    let mut task = Task::parse(&message.subject, &Vec::new(), Bytes::new(), arrival);
    (task.subject.job, task.subject.unique) = (None, None);
    let raw = message.header_block.get(..RAW_HEADERS_BYTES_MAX).unwrap_or(&message.header_block);
    let raw = vec![(HEADER_RAW_HEADERS.to_owned(), BASE64.encode(raw))];
    dead_letter(bus, &task, message, ("bad_header", format!("the message cannot be read: {why}")), raw, by).await
}

/// Stores the dead letter of a message that no worker can settle, as `task`, for a reason and its text.
pub(super) async fn dead_letter(
    bus: &Bus,
    task: &Task,
    message: &RawMessage,
    (reason, text): (&'static str, String),
    more: Headers,
    by: &str,
) -> Result<(), PoisonError> {
    let id = task.original_id.clone();
    tracing::warn!(
        subject = message.subject,
        seq = message.seq,
        task_id = id,
        reason = text,
        "it becomes a dead letter and is removed"
    );
    let evidence = Evidence {
        v: 1,
        original_id: None,
        items: task.items,
        job: task.subject.job.clone(),
        unique: task.subject.unique.clone(),
        index: task.index,
        attempt: 1,
        reason: reason.to_owned(),
        failure: Failure::fatal(reason, text),
        failures: Vec::new(),
        worker: by.to_owned(),
        published_ms: message.stored_ms,
        started_ms: None,
        dead_lettered_ms: crate::now_ms(),
        trace: None,
        span: None,
        id: id.clone(),
    };
    let mut headers = task.forwarded.clone();
    headers.extend(more);
    // Each message has its own: of two with one id, both are kept aside.
    headers.push((HEADER_MSG_ID.to_owned(), task.subject.message_id(&format!("d1-{}", message.seq), &id)));
    headers.push((HEADER_DEAD.to_owned(), serde_json::to_string(&evidence).unwrap_or_default()));
    let deadline = RetryDeadline::Within(STORE_WITHIN);
    bus.store(&task.subject.dead(), &headers, message.payload.clone(), deadline).await?;
    Ok(())
}
