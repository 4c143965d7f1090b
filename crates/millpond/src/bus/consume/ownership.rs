//! Ownership queries (`lease.owner`): one worker asks the others whether one of them holds a task. The worker that asks
//! listens first, so that of two that ask at once each hears of the other. A worker's connection does not echo, so that
//! "no responders" comes at once when no other worker listens.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{Client, Subject};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::task::{AbortHandle, JoinSet};

use crate::bus::{Bus, Subscription};
use crate::outcome::Items;
use crate::wire::bounds::{self, Bounded};
use crate::wire::decode::decode;
use crate::wire::headers::{HEADER_KINDS, HEADER_WORKER};
use crate::wire::subject;

/// How long a query waits when a worker listens but does not reply.
const REPLY_WITHIN: Duration = Duration::from_millis(500);

/// The message that a worker was given.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::bus) struct OwnershipQuery {
    pub(in crate::bus) queue: String,
    /// None: of any kind, where a person looks for a task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::bus) kind: Option<String>,
    pub(in crate::bus) original_id: String,
    pub(in crate::bus) id: String,
    pub(in crate::bus) items: Option<Items>,
    pub(in crate::bus) attempt: u32,
}

impl Bounded for OwnershipQuery {
    fn check(&self) -> Result<(), String> {
        self.items.map_or(Ok(()), |items| items.check())?;
        bounds::attempt(self.attempt)
    }
}

/// What another worker knows of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OwnershipReply {
    /// The worker holds the task, or an item of it.
    Held,
    /// The worker has settled this attempt, and the server has not confirmed its ack.
    Settled,
    /// The worker knows nothing of it.
    #[serde(rename = "silence")]
    Unknown,
}

impl Bounded for OwnershipReply {}

/// The subjects that this worker listens on, one per original id.
#[derive(Default)]
pub(super) struct OwnershipListeners {
    inner: Mutex<Listening>,
}

#[derive(Default)]
struct Listening {
    by_subject: HashMap<String, AbortHandle>,
    tasks: JoinSet<()>,
}

impl OwnershipListeners {
    fn inner(&self) -> MutexGuard<'_, Listening> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens for queries about a task of a queue, and replies by `reply` as `worker`, with the kinds that it holds. What is
    /// published after this returns reaches this worker too.
    pub(super) async fn listen(
        &self,
        bus: &Bus,
        worker: &str,
        (queue, original_id): (&str, &str),
        reply: impl Fn(&OwnershipQuery) -> Option<(OwnershipReply, String)> + Send + 'static,
    ) {
        let subject = subject::lease_who(queue, original_id);
        if self.inner().by_subject.contains_key(&subject) {
            return;
        }
        let Ok(mut queries) = bus.listen(subject.clone()).await else { return };
        let (client, worker) = (bus.client.clone(), worker.to_owned());
        let mut inner = self.inner();
        while inner.tasks.try_join_next().is_some() {}
        let handle = inner.tasks.spawn(async move {
            while let Some(message) = queries.next().await {
                let (Some(to), Ok(query)) = (message.reply, decode(&message.payload)) else { continue };
                let Some(reply) = reply(&query) else { return };
                send_reply(&client, to, &worker, reply).await;
            }
        });
        if let Some(other) = inner.by_subject.insert(subject, handle) {
            other.abort();
        }
    }

    /// Stops listening on every subject that `is_wanted` does not name.
    pub(super) fn retain(&self, is_wanted: impl Fn(&str) -> bool) {
        self.inner().by_subject.retain(|subject, handle| {
            let wanted = is_wanted(subject);
            if !wanted {
                handle.abort();
            }
            wanted
        });
    }

    /// How many subjects this worker listens on.
    pub(super) fn len(&self) -> usize {
        self.inner().by_subject.len()
    }
}

/// The tasks of this id that are held: kind, and the name of the worker; for a person who looks for one. Workers use
/// [`query_others`].
pub(in crate::bus) async fn find_owners(bus: &Bus, query: &OwnershipQuery) -> Vec<(String, String)> {
    let mut owners = Vec::new();
    let subject = subject::lease_who(&query.queue, &query.original_id);
    ask(bus, subject, query, |reply, headers| {
        let get = |name| headers.and_then(|headers| headers.get(name)).map(ToString::to_string).unwrap_or_default();
        let kinds = get(HEADER_KINDS);
        let kinds = kinds.split(',').filter(|kind| reply == OwnershipReply::Held && !kind.is_empty());
        owners.extend(kinds.map(|kind| (kind.to_owned(), get(HEADER_WORKER))));
        query.kind.is_some() && !owners.is_empty()
    })
    .await;
    owners
}

/// Asks all other workers that listen for the task. The caller must listen already.
pub(super) async fn query_others(bus: &Bus, query: &OwnershipQuery) -> OwnershipReply {
    query_at(bus, subject::lease_who(&query.queue, &query.original_id), query).await
}

/// Asks all other workers, also those that were given the task a moment ago and do not listen for it yet. Who knows nothing of it does
/// not reply.
pub(super) async fn query_all_others(bus: &Bus, query: &OwnershipQuery) -> OwnershipReply {
    query_at(bus, subject::lease_new(&query.queue), query).await
}

/// Replies, until the connection is closed, to queries about tasks that this worker was given a moment ago, or has settled since.
pub(super) async fn reply_to_all(
    bus: Bus,
    worker: String,
    mut queries: Subscription,
    reply: impl Fn(&OwnershipQuery) -> (OwnershipReply, String),
) {
    while let Some(message) = queries.next().await {
        let (Some(to), Ok(query)) = (message.reply, decode(&message.payload)) else { continue };
        let reply = reply(&query);
        if reply.0 != OwnershipReply::Unknown {
            send_reply(&bus.client, to, &worker, reply).await;
        }
    }
}

/// Replies as a worker that holds tasks of these kinds. Its name and the kinds are for a person who looks for a task.
async fn send_reply(client: &Client, to: Subject, worker: &str, (reply, kinds): (OwnershipReply, String)) {
    let text = serde_json::to_vec(&reply).unwrap_or_default();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(HEADER_WORKER, worker);
    headers.insert(HEADER_KINDS, kinds.as_str());
    let _ = client.publish_with_headers(to, headers, Bytes::from(text)).await;
}

async fn query_at(bus: &Bus, subject: String, query: &OwnershipQuery) -> OwnershipReply {
    let mut known = OwnershipReply::Unknown;
    ask(bus, subject, query, |reply, _| {
        // One that holds another item of the same batch, or a task of another kind, knows nothing: others may still reply.
        if reply != OwnershipReply::Unknown {
            known = reply;
        }
        reply == OwnershipReply::Held
    })
    .await;
    known
}

/// Asks all who listen, until one of their replies is enough.
async fn ask(
    bus: &Bus,
    subject: String,
    query: &OwnershipQuery,
    mut enough: impl FnMut(OwnershipReply, Option<&async_nats::HeaderMap>) -> bool,
) {
    let inbox = bus.client.new_inbox();
    let Ok(mut replies) = bus.client.subscribe(inbox.clone()).await else { return };
    let text = Bytes::from(serde_json::to_vec(query).unwrap_or_default());
    if bus.client.publish_with_reply(subject, inbox, text).await.is_err() {
        return;
    }
    let deadline = Instant::now() + REPLY_WITHIN;
    while let Ok(Some(message)) = tokio::time::timeout_at(deadline.into(), replies.next()).await {
        if message.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
            return;
        }
        let Ok(reply) = decode(&message.payload) else { continue };
        if enough(reply, message.headers.as_ref()) {
            return;
        }
    }
}
