//! What waits in LATER: tasks with a time that no producer service has moved to DUE yet. It is looked at before DUE, because a
//! task leaves it only when it is stored there.

use bytes::Bytes;

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::topology::stream_state;
use crate::later::{due_ms, of_the_task};
use crate::task::{Arrival, Origin, Task};
use crate::wire::streams::STREAM_LATER;

/// Messages that are read at the most; there are few while a producer service runs.
const READ_MAX: usize = 10_000;

/// Messages that are looked at for what is late, the oldest first.
const LATE_LOOKED_AT_MAX: usize = 100;

/// What lies in LATER.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StandingInLater {
    /// Messages that lie there.
    pub messages: u64,
    /// When the oldest of them was stored, Unix time in milliseconds.
    pub oldest_ms: i64,
    /// Of how many it was looked when they are due, the oldest first.
    pub looked_at: u64,
    /// How many of these should have started.
    pub late: u64,
    /// When the first of these should have started, Unix time in milliseconds.
    pub late_since_ms: Option<i64>,
}

/// A task in LATER, without its payload.
pub(crate) struct InLater {
    /// Sequence of its message.
    pub(crate) seq: u64,
    /// What it is.
    pub(crate) task: Task,
    /// When it is due, Unix time in milliseconds; none when it says nothing that can be read.
    pub(crate) due_ms: Option<i64>,
}

impl Bus {
    /// The tasks of LATER on a filter, and whether these are all.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub(crate) async fn in_later(&self, filter: &str) -> Result<(Vec<InLater>, bool), BusError> {
        let epoch = stream_state(self, STREAM_LATER).await?.epoch;
        let (mut waiting, mut from) = (Vec::new(), 1);
        while waiting.len() < READ_MAX {
            let page = self.page(STREAM_LATER, filter, from).await?;
            let Some((last, ..)) = page.last() else { return Ok((waiting, true)) };
            from = last + 1;
            waiting.extend(page.into_iter().map(|(seq, subject, headers)| {
                let stored = headers.iter().find(|(name, _)| name == "Nats-Time-Stamp");
                let stored = stored.and_then(|(_, at)| at.parse::<jiff::Timestamp>().ok());
                let stored_ms = stored.map_or(0, jiff::Timestamp::as_millisecond);
                let arrival = Arrival { origin: Origin::Tasks, epoch: &epoch, seq, stored_ms };
                let task = Task::parse(&subject, &of_the_task(&headers), Bytes::new(), arrival);
                InLater { seq, task, due_ms: due_ms(&headers, stored_ms).ok() }
            }));
        }
        Ok((waiting, false))
    }

    /// What lies in LATER at a time (Unix milliseconds); none where nothing does. Only when the oldest has lain there for `after_ms` it is
    /// looked at what is late: that costs nothing while a producer service runs. It is read raw: no message there can cost a connection.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn standing_in_later(&self, now_ms: i64, after_ms: i64) -> Result<Option<StandingInLater>, BusError> {
        let messages = stream_state(self, STREAM_LATER).await?.messages;
        if messages == 0 {
            return Ok(None);
        }
        let (mut standing, mut from) = (None, 1);
        for _ in 0..LATE_LOOKED_AT_MAX {
            let Some(message) = self.next_raw_message(STREAM_LATER, from, ">").await? else { break };
            let first = StandingInLater { messages, oldest_ms: message.stored_ms, ..StandingInLater::default() };
            let standing = standing.get_or_insert(first);
            if now_ms - standing.oldest_ms < after_ms {
                break;
            }
            from = message.seq + 1;
            standing.looked_at += 1;
            // What says no time that can be read is a dead letter as soon as a producer comes.
            let due_ms = due_ms(&message.headers().unwrap_or_default(), message.stored_ms).ok();
            if let Some(due_ms) = due_ms.filter(|due_ms| *due_ms < now_ms) {
                standing.late += 1;
                standing.late_since_ms = Some(standing.late_since_ms.map_or(due_ms, |first| first.min(due_ms)));
            }
        }
        Ok(standing)
    }
}
