//! `ctl.>`: what an operator asks of the services, as requests that are not stored.

use std::time::Duration;

use async_nats::client::{RequestError, RequestErrorKind};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Bus;
use super::topology::TopologyError;
use crate::dead_letter::Evidence;
use crate::task::Headers;

/// Asked of a producer service: publish the next attempt of a dead letter.
pub const CTL_REPLAY: &str = "ctl.replay";

/// Asked of a collector by a client: what it has kept of a job.
pub const CTL_RESULTS: &str = "ctl.request.results";

/// Asked of one worker: drain.
#[must_use]
pub fn drain_subject(worker: &str) -> String {
    format!("ctl.drain.{worker}")
}

/// A dead letter whose task is to run again.
#[derive(Debug, Serialize, Deserialize)]
pub struct Replay {
    /// The queue that it died in.
    pub queue: String,
    /// Its kind.
    pub kind: String,
    /// Why it died.
    pub evidence: Evidence,
    /// Its headers as they were on DEAD.
    pub headers: Headers,
    /// Its payload, base64.
    pub payload: String,
}

/// What a service answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done, and stored.
    Ok(Box<RawValue>),
    /// It is not, for this reason.
    Error(String),
}

/// Why nothing was heard of a request.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No service listens.
    #[error("no service listens on {0}")]
    Nobody(String),
    /// The answer did not come, or cannot be read.
    #[error("no answer on {0}: {1}")]
    NoAnswer(String, String),
}

/// One request and where its answer goes.
pub struct Asked {
    bus: Bus,
    reply: Option<String>,
    /// What is asked.
    pub payload: Bytes,
}

impl Asked {
    /// Answers it.
    pub async fn answer(self, answer: &Answer) {
        if let Some(reply) = &self.reply {
            self.bus.tell(reply, Bytes::from(serde_json::to_vec(answer).unwrap_or_default())).await;
        }
    }
}

/// The requests on a subject; of several services in a group one gets each.
pub struct Requests {
    bus: Bus,
    messages: async_nats::Subscriber,
}

impl Requests {
    /// The next request; none when the connection is closed for good.
    pub async fn next(&mut self) -> Option<Asked> {
        let message = self.messages.next().await?;
        let reply = message.reply.map(|r| r.to_string());
        Some(Asked { bus: self.bus.clone(), reply, payload: message.payload })
    }
}

impl Bus {
    /// Listens for requests on `subject` in a group of services.
    ///
    /// # Errors
    /// [`TopologyError`] when the connection is closed.
    pub async fn serve(&self, subject: &str, group: &str) -> Result<Requests, TopologyError> {
        let messages = self.client.queue_subscribe(subject.to_owned(), group.to_owned()).await;
        Ok(Requests { bus: self.clone(), messages: messages.map_err(|e| TopologyError::new(subject, &e))? })
    }

    /// Asks a service, and waits for its answer.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask<T: Serialize>(&self, subject: &str, what: &T, within: Duration) -> Result<Answer, AskError> {
        let payload = Bytes::from(serde_json::to_vec(what).unwrap_or_default());
        let no_answer = |why: String| AskError::NoAnswer(subject.to_owned(), why);
        let asked = tokio::time::timeout(within, self.client.request(subject.to_owned(), payload)).await;
        let message = asked.map_err(|_| no_answer("it took too long".to_owned()))?.map_err(|e: RequestError| {
            if e.kind() == RequestErrorKind::NoResponders {
                AskError::Nobody(subject.to_owned())
            } else {
                no_answer(e.to_string())
            }
        })?;
        serde_json::from_slice(&message.payload).map_err(|e| no_answer(e.to_string()))
    }
}
