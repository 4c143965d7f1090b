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

    /// When the oldest message of LATER was stored, Unix time in milliseconds; none when there is none.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn oldest_in_later(&self) -> Result<Option<i64>, BusError> {
        if stream_state(self, STREAM_LATER).await?.messages == 0 {
            return Ok(None);
        }
        Ok(self.next_raw_message(STREAM_LATER, 1, ">").await?.map(|message| message.stored_ms))
    }
}
