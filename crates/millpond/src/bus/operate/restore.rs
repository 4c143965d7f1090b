//! The way back of a TASKS that stands still: what lies there is read, the stream is made anew, and what was read is published
//! again under the same ids. docs/operate.md has the steps; `setup --tasks-anew` and `task restore` are the two programs.

use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::bus::error::BusError;
use crate::bus::publish::{PublishError, RetryDeadline, Stored};
use crate::bus::topology::{StreamLimits, make_tasks, stream_state};
use crate::bus::{Bus, from_nats};
use crate::task::{Arrival, Origin, Task};
use crate::wire::bounds::Bounded;
use crate::wire::headers::{HEADER_ID, HEADER_MSG_ID, Headers};
use crate::wire::streams::STREAM_TASKS;

/// How long one read may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How often it is asked for a message that is not there: each replica answers of its own, and one may lag behind.
const LOOKS: usize = 20;
/// What the server adds to a message that is read from a stream.
const ADDED_BY_THE_SERVER: [&str; 6] =
    ["Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Last-Sequence", "Nats-Num-Pending"];

/// A message of TASKS as it is written down: one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTask {
    /// The epoch of the stream that it lay in.
    pub epoch: String,
    /// Its sequence there.
    pub seq: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: Headers,
    /// Its payload, base64.
    pub payload: String,
}

impl Bounded for SavedTask {}

impl SavedTask {
    fn payload(&self) -> Bytes {
        BASE64.decode(self.payload.as_bytes()).unwrap_or_default().into()
    }

    /// The task that it is.
    #[must_use]
    pub fn task(&self) -> Task {
        let arrival = Arrival { origin: Origin::Tasks, epoch: &self.epoch, seq: self.seq, stored_ms: 0 };
        Task::parse(&self.subject, &self.headers, self.payload(), arrival)
    }
}

impl Bus {
    /// The epoch of TASKS.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn tasks_epoch(&self) -> Result<String, BusError> {
        Ok(stream_state(self, STREAM_TASKS).await?.epoch)
    }

    /// The first message of TASKS from a sequence on, as a program of this role reads it from any replica; none when there is none.
    ///
    /// # Errors
    /// [`BusError`] when no replica answers.
    pub async fn saved_task(&self, epoch: &str, from: u64) -> Result<Option<SavedTask>, BusError> {
        let what = "the read of TASKS";
        let request = Bytes::from(json!({ "seq": from, "next_by_subj": ">" }).to_string());
        for _ in 0..LOOKS {
            let answer = self.client.request(format!("$JS.API.DIRECT.GET.{STREAM_TASKS}"), request.clone());
            let answer = tokio::time::timeout(ANSWER_WITHIN, answer).await.map_err(|e| BusError::new(what, &e))?;
            let message = answer.map_err(|e| BusError::new(what, &e))?;
            if message.status.is_some() {
                continue;
            }
            let mut headers = from_nats(message.headers.as_ref());
            let get = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
            let Some((subject, seq)) = get("Nats-Subject").zip(get("Nats-Sequence").and_then(|seq| seq.parse().ok()))
            else {
                return Err(BusError::refused(what, "an answer without a sequence"));
            };
            headers.retain(|(name, _)| !ADDED_BY_THE_SERVER.contains(&name.as_str()));
            let payload = BASE64.encode(&message.payload);
            return Ok(Some(SavedTask { epoch: epoch.to_owned(), seq, subject, headers, payload }));
        }
        Ok(None)
    }

    /// Removes TASKS with all that it holds, and makes it anew, with a new epoch.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn make_tasks_anew(&self, limits: &StreamLimits) -> Result<(), BusError> {
        self.js.delete_stream(STREAM_TASKS).await.map_err(|e| BusError::new("the removal of TASKS", &e))?;
        make_tasks(self, limits).await
    }

    /// Publishes a saved task again under its id. It keeps its signature; one that had no id gets the one that it had by its place,
    /// and is signed again where its signature was right.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn store_again(&self, saved: &SavedTask, deadline: RetryDeadline) -> Result<Stored, PublishError> {
        let (task, payload) = (saved.task(), saved.payload());
        let mut headers = saved.headers.clone();
        // What they expected was of the stream before.
        headers.retain(|(name, _)| !name.starts_with("Nats-Expected-"));
        let unsigned = self.clone().with_signer(None);
        if task.is_named {
            return unsigned.store(&saved.subject, &headers, payload, deadline).await;
        }
        let verified = |signer: &crate::signature::Signer| signer.verify(&saved.subject, &headers, &payload).is_ok();
        let bus = if self.signer.as_ref().is_some_and(verified) { self } else { &unsigned };
        headers.retain(|(name, _)| name != HEADER_MSG_ID);
        headers.push((HEADER_MSG_ID.to_owned(), task.subject.message_id("task", &task.original_id)));
        headers.push((HEADER_ID.to_owned(), task.original_id));
        bus.store(&saved.subject, &headers, payload, deadline).await
    }
}
