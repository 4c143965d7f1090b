//! Messages that a worker publishes before it acknowledges one: items of a task again, and dead letters.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use millpond::batch;
use millpond::bus::Bus;
use millpond::bus::publish::{PublishError, RetryDeadline};
use millpond::dead_letter::Evidence;
use millpond::failpoint;
use millpond::outcome::{FailedAttempt, Items, id_of};
use millpond::task::{Task, schedule_headers};
use millpond::wire::headers::{HEADER_DEAD, HEADER_MSG_ID, Headers};

/// A message of DUE or DEAD.
pub(crate) struct OutboxMessage {
    pub(crate) subject: String,
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
}

impl OutboxMessage {
    /// Items of a task (all that it covers, when none) for DUE, as this attempt. `reason` makes the message id: the
    /// same items published again for the same reason add nothing.
    pub(crate) fn again(
        task: &Task,
        items: Option<Items>,
        attempt: u32,
        failures: &[FailedAttempt],
        payload: Bytes,
        reason: &str,
    ) -> Self {
        let message_id = format!("{}/{}/{reason}", task.subject.queue, id_of(&task.original_id, items.or(task.items)));
        let headers = task.republish_headers(items, attempt, failures, message_id);
        Self { subject: task.subject.due(), headers, payload }
    }

    /// A task, or some items of one, as a dead letter.
    pub(crate) fn dead_letter(task: &Task, evidence: &Evidence, payload: Bytes) -> Self {
        let mut headers = task.forwarded.clone();
        let message_id = format!("{}/{}/d{}", task.subject.queue, evidence.id, task.attempt);
        headers.push((HEADER_MSG_ID.to_owned(), message_id));
        headers.push((HEADER_DEAD.to_owned(), serde_json::to_string(evidence).unwrap_or_default()));
        Self { subject: task.subject.dead(), headers, payload }
    }

    /// Has the server keep the message for a while; when it is due, Unix time in milliseconds.
    pub(crate) fn delay(&mut self, task: &Task, id: &str, delay: Duration) -> i64 {
        let due_ms = millpond::now_ms().saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
        self.headers.extend(schedule_headers(due_ms, task.subject.due()).into_iter().flatten());
        self.subject = task.subject.sched(id);
        due_ms
    }
}

/// Items of a batch, the same attempt again. `arguments` are those of all that the task covers.
pub(crate) fn part(task: &Task, items: Items, arguments: &[Bytes], reason: &str) -> OutboxMessage {
    let start = (items.from - task.items.map_or(0, |covered| covered.from)) as usize;
    let payload = match arguments.get(start..start + items.len as usize).unwrap_or_default() {
        [one] if items.of > 1 => one.clone(),
        many => Bytes::from(batch::join(many.iter().map(|argument| &**argument))),
    };
    OutboxMessage::again(task, Some(items), task.attempt, &task.failures, payload, reason)
}

/// These items in two messages, or in one where there is only one item; delivered after `delay`, where there is one.
pub(crate) fn halves(
    task: &Task,
    items: Items,
    arguments: &[Bytes],
    reason: &str,
    delay: Option<Duration>,
) -> Vec<OutboxMessage> {
    let half = items.len.div_ceil(2);
    let halves = [(items.from, half), (items.from + half, items.len - half)];
    let message = |(from, len)| {
        let items = Items { of: items.of, from, len };
        let mut message = part(task, items, arguments, reason);
        if let Some(delay) = delay {
            message.delay(task, &id_of(&task.original_id, Some(items)), delay);
        }
        message
    };
    halves.into_iter().filter(|(_, len)| *len > 0).map(message).collect()
}

/// Publishes all of them together, and waits until each is stored.
///
/// # Errors
/// [`PublishError`] when the server refuses one for good.
pub(crate) async fn publish_all(bus: &Bus, messages: &[OutboxMessage]) -> Result<(), PublishError> {
    let stored = messages.iter().map(|message| async {
        let (subject, headers) = (&message.subject, &message.headers);
        let stored = bus.store(subject, headers, message.payload.clone(), RetryDeadline::Unlimited).await;
        failpoint::hit("settle.one_effect_stored");
        stored
    });
    try_join_all(stored).await.map(drop)
}
