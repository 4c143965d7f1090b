//! What lies in TASKS and DUE, for whoever compares it with what is stored. In the collector's role. Each look tells
//! whether it has seen everything: what was not looked at wholly proves nothing.

use bytes::Bytes;

use super::topology::{STREAM_DUE, TopologyError};
use super::{Bus, subject};
use crate::task::{Arrival, Origin, Task};

/// Messages of one queue that are looked at, at the most.
const LOOKED_AT_MAX: usize = 10_000;

impl Bus {
    /// Whether DUE has a task of exactly this id that was published again: waiting, held, or for its time. None when
    /// more lies there than is looked through.
    ///
    /// # Errors
    /// [`TopologyError`] when the server does not answer.
    pub async fn due_has(&self, queue: &str, id: &str) -> Result<Option<bool>, TopologyError> {
        let waits = format!("sched.{queue}.*.*.{}", subject::key(id));
        if self.last_of_due(&waits).await?.is_some() {
            return Ok(Some(true));
        }
        let mut found = false;
        let all =
            self.each_lying(STREAM_DUE, &format!("due.{queue}.>"), &mut 0, |task| found |= task.id() == id).await?;
        // A retry of what was there a moment ago.
        let found = found || self.last_of_due(&waits).await?.is_some();
        Ok(if found { Some(true) } else { all.then_some(false) })
    }

    /// Reads the messages of a stream on a filter, headers only; false when there are more than are looked at. `seen`
    /// counts over several looks.
    async fn each_lying(
        &self,
        stream: &str,
        filter: &str,
        seen: &mut usize,
        mut each: impl FnMut(Task),
    ) -> Result<bool, TopologyError> {
        let origin = if stream == STREAM_DUE { Origin::Due } else { Origin::Tasks };
        let mut from = 1;
        while *seen < LOOKED_AT_MAX {
            let page = self.page(stream, filter, from).await?;
            let Some((last, _, _)) = page.last() else { return Ok(true) };
            (from, *seen) = (last + 1, *seen + page.len());
            for (seq, subject, headers) in page {
                let arrival = Arrival { origin, epoch: "", seq, stored_ms: 0 };
                each(Task::read(&subject, &headers, Bytes::new(), arrival));
            }
        }
        Ok(false)
    }
}
