//! Unique tasks: one per key that waits or runs. The server itself refuses a second one in TASKS (a task is published only
//! when its subject holds none); what waits in DUE, a retry or a task with a delay, is searched before, and what is on its way there, in LATER.

use bytes::Bytes;
use serde_json::json;

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::wire::headers::{HEADER_EXPECTED_SEQUENCE, HEADER_EXPECTED_SUBJECT, Headers};
use crate::wire::streams::{STREAM_DUE, STREAM_LATER};
use crate::wire::subject::TaskSubject;

/// What is requested of the server, for its errors.
const SEARCH: &str = "the search for tasks of a unique key that wait for their time";

/// The headers with which the server takes a task only when no other of its key lies in the same place.
#[must_use]
pub(crate) fn only_when_alone(subject: &TaskSubject, scheduled: bool) -> Headers {
    let mut headers = vec![(HEADER_EXPECTED_SEQUENCE.to_owned(), "0".to_owned())];
    if scheduled {
        headers.push((HEADER_EXPECTED_SUBJECT.to_owned(), subject.sched_of_all()));
    }
    headers
}

impl Bus {
    /// Whether a task of this unique key waits for its time, or was published again and is not done. First LATER: what leaves it
    /// while this is read was stored in DUE before.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer, or this role may not look.
    pub async fn key_waits(&self, subject: &TaskSubject) -> Result<bool, BusError> {
        let failed = |e: &(dyn std::error::Error + 'static)| BusError::new(SEARCH, e);
        // Both of DUE at once: between two reads it could move from one place to the other.
        for (stream, places) in
            [(STREAM_LATER, vec![subject.later()]), (STREAM_DUE, vec![subject.sched_of_all(), subject.due()])]
        {
            let request = json!({ "multi_last": places }).to_string();
            let answer = self.client.request(format!("$JS.API.DIRECT.GET.{stream}"), Bytes::from(request)).await;
            let message = answer.map_err(|e| failed(&e))?;
            match message.status {
                None => return Ok(true),
                Some(async_nats::StatusCode::NOT_FOUND) => {}
                Some(status) => {
                    let reason = format!("{status} {}", message.description.unwrap_or_default());
                    return Err(BusError::refused(SEARCH, reason));
                }
            }
        }
        Ok(false)
    }
}
