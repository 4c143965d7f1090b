//! Unique tasks: one per key that waits or runs. The server itself refuses a second one in TASKS (a task is published only
//! when its subject holds none); what waits in DUE, a retry or a task with a delay, is searched before.

use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use serde_json::json;

use crate::bus::error::BusError;
use crate::bus::{Bus, to_nats};
use crate::wire::headers::{
    HEADER_EXPECTED_ID, HEADER_EXPECTED_SEQUENCE, HEADER_EXPECTED_SUBJECT, HEADER_MSG_ID, Headers,
};
use crate::wire::streams::STREAM_DUE;
use crate::wire::subject::TaskSubject;

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
    /// Whether the server has stored a message with this id within the dedupe window: that distinguishes
    /// a resend of the caller from another task. The request is a publish that is either a duplicate or refused, never stored.
    pub(crate) async fn has_id(&self, subject: &str, id: &str) -> bool {
        let headers =
            vec![(HEADER_MSG_ID.to_owned(), id.to_owned()), (HEADER_EXPECTED_ID.to_owned(), crate::random_token())];
        let message = PublishMessage::build().headers(to_nats(&headers));
        let Ok(sent) = self.js.send_publish(subject.to_owned(), message).await else { return false };
        sent.await.is_ok_and(|ack| ack.duplicate)
    }

    /// Whether a task of this unique key waits in DUE: for its time, or published again and not done.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer, or this role may not look.
    pub async fn waits_in_due(&self, subject: &TaskSubject) -> Result<bool, BusError> {
        let failed =
            |e: &(dyn std::error::Error + 'static)| BusError::new("the search for tasks of a unique key in DUE", e);
        // Both at once: between two reads it could move from one place to the other.
        let request = json!({ "multi_last": [subject.sched_of_all(), subject.due()] }).to_string();
        let answer = self.client.request(format!("$JS.API.DIRECT.GET.{STREAM_DUE}"), Bytes::from(request)).await;
        let message = answer.map_err(|e| failed(&e))?;
        match message.status {
            None => Ok(true),
            Some(async_nats::StatusCode::NOT_FOUND) => Ok(false),
            Some(status) => {
                let reason = format!("{status} {}", message.description.unwrap_or_default());
                Err(BusError::refused("the search for tasks of a unique key in DUE", reason))
            }
        }
    }
}
