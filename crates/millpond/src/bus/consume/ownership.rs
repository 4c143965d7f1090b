//! `lease.who`: asking the other workers whether one of them holds a task, and answering them.
//! Who asks listens first; who holds something for longer than an extension listens too (bus/consume/lease.rs decides when).
//! A worker's connection does not echo, so that "no responders" comes at once when nobody else listens.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::task::{AbortHandle, JoinSet};

use crate::bus::Bus;
use crate::bus::consume::lease::LeaseTable;
use crate::outcome::Items;
use crate::wire::headers::HEADER_WORKER;
use crate::wire::subject;

/// How long an ownership query waits when another worker listens and does not answer.
const OWNERSHIP_QUERY_TIMEOUT: Duration = Duration::from_millis(500);

/// Which message an asker was given.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::bus) struct OwnershipQuery {
    pub(in crate::bus) queue: String,
    #[serde(rename = "root")]
    pub(in crate::bus) original_id: String,
    pub(in crate::bus) id: String,
    pub(in crate::bus) items: Option<Items>,
    pub(in crate::bus) attempt: u32,
}

/// What the others say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::bus) enum OwnershipReply {
    /// Somebody holds it, or an item of it, and lives.
    Held,
    /// Somebody has settled this attempt of it, and waits for its ack to be heard.
    Settled,
    /// Nobody knows it.
    Silence,
}

/// The subjects that this worker listens on, one per root.
#[derive(Default)]
pub(in crate::bus) struct OwnershipListeners {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    by_subject: HashMap<String, AbortHandle>,
    tasks: JoinSet<()>,
}

impl OwnershipListeners {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens for questions about `original_id`; what is published after this returns is asked of us too.
    pub(in crate::bus) async fn listen(&self, shared: &std::sync::Arc<LeaseTable>, queue: &str, original_id: &str) {
        let subject = subject::lease_who(queue, original_id);
        if self.inner().by_subject.contains_key(&subject) {
            return;
        }
        let Ok(mut questions) = shared.bus.client.subscribe(subject.clone()).await else { return };
        let weak = std::sync::Arc::downgrade(shared);
        let mut inner = self.inner();
        while inner.tasks.try_join_next().is_some() {}
        let handle = inner.tasks.spawn(async move {
            while let Some(message) = questions.next().await {
                answer(&weak, &message).await;
            }
        });
        if let Some(other) = inner.by_subject.insert(subject, handle) {
            other.abort();
        }
    }

    /// Stops to listen on every subject that `keep` does not name.
    pub(in crate::bus) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.inner().by_subject.retain(|subject, handle| {
            let kept = keep(subject);
            if !kept {
                handle.abort();
            }
            kept
        });
    }

    /// How many subjects it listens on.
    pub(in crate::bus) fn len(&self) -> usize {
        self.inner().by_subject.len()
    }
}

async fn answer(shared: &Weak<LeaseTable>, message: &async_nats::Message) {
    let (Some(shared), Some(reply)) = (shared.upgrade(), message.reply.clone()) else { return };
    let Ok(question) = serde_json::from_slice::<OwnershipQuery>(&message.payload) else { return };
    let answer = shared.answer_for(&question, None);
    let text = serde_json::to_vec(&answer).unwrap_or_default();
    // Who it is, for a person who asks.
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(HEADER_WORKER, shared.worker());
    let _ = shared.bus.client.publish_with_headers(reply, headers, Bytes::from(text)).await;
}

/// Who holds it: the worker's name. Not how a worker asks: this one does not listen.
pub(in crate::bus) async fn find_owner(bus: &Bus, question: &OwnershipQuery) -> Option<String> {
    let subject = subject::lease_who(&question.queue, &question.original_id);
    let text = Bytes::from(serde_json::to_vec(question).unwrap_or_default());
    let asked = tokio::time::timeout(OWNERSHIP_QUERY_TIMEOUT, bus.client.request(subject, text)).await;
    let message = asked.ok()?.ok()?;
    let held = matches!(serde_json::from_slice(&message.payload), Ok(OwnershipReply::Held));
    message.headers.as_ref()?.get(HEADER_WORKER).map(ToString::to_string).filter(|_| held)
}

/// Asks everybody else. The caller listens already.
pub(in crate::bus) async fn query_others(bus: &Bus, question: &OwnershipQuery) -> OwnershipReply {
    let subject = subject::lease_who(&question.queue, &question.original_id);
    let inbox = bus.client.new_inbox();
    let Ok(mut answers) = bus.client.subscribe(inbox.clone()).await else { return OwnershipReply::Silence };
    let text = Bytes::from(serde_json::to_vec(question).unwrap_or_default());
    if bus.client.publish_with_reply(subject, inbox, text).await.is_err() {
        return OwnershipReply::Silence;
    }
    let deadline = Instant::now() + OWNERSHIP_QUERY_TIMEOUT;
    let mut heard = OwnershipReply::Silence;
    while let Ok(Some(message)) = tokio::time::timeout_at(deadline.into(), answers.next()).await {
        if message.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
            break;
        }
        match serde_json::from_slice(&message.payload) {
            Ok(OwnershipReply::Held) => return OwnershipReply::Held,
            Ok(OwnershipReply::Settled) => heard = OwnershipReply::Settled,
            // Somebody holds another item of the same batch: others may still speak.
            Ok(OwnershipReply::Silence) | Err(_) => {}
        }
    }
    heard
}
