//! Messages that a worker publishes before it acknowledges one: items of a task again, and dead letters.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use millpond::batch;
use millpond::bus::Bus;
use millpond::bus::publish::payloads::PutError;
use millpond::bus::publish::{PublishError, RetryDeadline};
use millpond::dead_letter::Evidence;
use millpond::failpoint;
use millpond::outcome::{FailedAttempt, Items, id_of};
use millpond::task::{Arrival, Origin, Task, schedule_headers};
use millpond::wire::decode::decode;
use millpond::wire::headers::{
    HEADER_ATTEMPTS_MAX, HEADER_CONTINUATION, HEADER_DEAD, HEADER_MSG_ID, HEADER_REF, HEADER_REPLY_TO,
    HEADER_SCHEDULE_TARGET, HEADER_TIMEOUT, Headers,
};

/// Headers that a dead letter keeps when it has to be small: what its task needs to run again.
const NEEDED: [&str; 6] =
    [HEADER_MSG_ID, HEADER_ATTEMPTS_MAX, HEADER_TIMEOUT, HEADER_REF, HEADER_REPLY_TO, HEADER_CONTINUATION];

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
        let message_id = task.subject.message_id(reason, &id_of(&task.original_id, items.or(task.items)));
        let headers = task.republish_headers(items, attempt, failures, message_id);
        Self { subject: task.subject.due(), headers, payload }
    }

    /// A task, or some items of one, as a dead letter.
    pub(crate) fn dead_letter(task: &Task, evidence: &Evidence, payload: Bytes) -> Self {
        let mut headers = task.forwarded.clone();
        let message_id = task.subject.message_id(&format!("d{}", task.attempt), &evidence.id);
        headers.push((HEADER_MSG_ID.to_owned(), message_id));
        headers.push((HEADER_DEAD.to_owned(), serde_json::to_string(evidence).unwrap_or_default()));
        Self { subject: task.subject.dead(), headers, payload }
    }

    /// Has the server keep the message for a while; when it is due, Unix time in milliseconds.
    pub(crate) fn delay(&mut self, task: &Task, id: &str, delay: Duration) -> i64 {
        let now_ms = millpond::now_ms();
        let due_ms = now_ms.saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
        self.headers.extend(schedule_headers(due_ms, now_ms, task.subject.due()).into_iter().flatten());
        self.subject = task.subject.sched(id);
        due_ms
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The task that a message of DUE is, with the arguments of each item that it covers; none for a dead letter.
    pub(crate) fn as_task(&self) -> Option<(Task, Vec<Bytes>)> {
        if self.subject.starts_with("dead.") {
            return None;
        }
        let target = self.header(HEADER_SCHEDULE_TARGET).unwrap_or(&self.subject);
        let arrival = Arrival { origin: Origin::Due, epoch: "", seq: 0, stored_ms: millpond::now_ms() };
        let task = Task::parse(target, &self.headers, self.payload.clone(), arrival);
        let arguments = match batch::split(&self.payload, task.items_len()) {
            Ok(values) if task.is_batch() => {
                values.into_iter().map(|value| self.payload.slice_ref(value.get().as_bytes())).collect()
            }
            _ => vec![self.payload.clone()],
        };
        Some((task, arguments))
    }

    fn evidence(&self) -> Option<Evidence> {
        decode(self.header(HEADER_DEAD)?.as_bytes()).ok()
    }

    /// A dead letter with the least evidence, for a server that has refused the whole with these words. Of the headers only
    /// those that its task needs stay.
    fn smaller(&self, refused: &str) -> Option<Self> {
        let evidence = serde_json::to_string(&self.evidence()?.small(refused)).ok()?;
        let needed = |(name, _): &&(String, String)| NEEDED.contains(&name.as_str());
        let mut headers: Headers = self.headers.iter().filter(needed).cloned().collect();
        headers.push((HEADER_DEAD.to_owned(), evidence));
        Some(Self { subject: self.subject.clone(), headers, payload: self.payload.clone() })
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

/// These items in two messages, or in one where there is only one item.
pub(crate) fn halves(task: &Task, items: Items, arguments: &[Bytes], reason: &str) -> Vec<OutboxMessage> {
    let half = items.len.div_ceil(2);
    let halves = [(items.from, half), (items.from + half, items.len - half)];
    let message = |(from, len)| part(task, Items { of: items.of, from, len }, arguments, reason);
    halves.into_iter().filter(|(_, len)| *len > 0).map(message).collect()
}

async fn publish(bus: &Bus, message: &OutboxMessage) -> Result<(), PublishError> {
    let (subject, headers) = (&message.subject, &message.headers);
    bus.store(subject, headers, message.payload.clone(), RetryDeadline::Unlimited).await.map(drop)
}

/// Publishes all of them together, and waits until each is stored. Returns those that the server refuses for good, with why.
///
/// # Errors
/// [`PublishError`] that says that nothing can be stored at all.
pub(crate) async fn publish_all(
    bus: &Bus,
    messages: Vec<OutboxMessage>,
) -> Result<Vec<(OutboxMessage, PublishError)>, PublishError> {
    let stored = join_all(messages.iter().map(|message| async {
        let stored = publish(bus, message).await;
        failpoint::hit("settle.one_effect_stored");
        stored
    }));
    let mut refused = Vec::new();
    for (stored, message) in stored.await.into_iter().zip(messages) {
        match stored {
            Ok(()) => {}
            Err(error) if error.is_permanent() => refused.push((message, error)),
            Err(error) => return Err(error),
        }
    }
    Ok(refused)
}

/// Publishes a dead letter in the place of one that the server has refused: with less evidence, then with its arguments in the
/// store of payloads.
///
/// # Errors
/// [`PublishError`] when the server refuses that too.
pub(crate) async fn publish_smaller(
    bus: &Bus,
    letter: &OutboxMessage,
    error: PublishError,
) -> Result<(), PublishError> {
    tracing::warn!(subject = letter.subject, %error, "a dead letter is refused; a smaller one takes its place");
    let Some(mut letter) = letter.smaller(&error.to_string()) else { return Err(error) };
    match publish(bus, &letter).await {
        Err(error) if error.is_permanent() && !letter.payload.is_empty() => {}
        stored => return stored,
    }
    let stored =
        bus.put_payload(&mut &*letter.payload, RetryDeadline::Unlimited).await.map_err(PutError::into_publish)?;
    letter.headers.push((HEADER_REF.to_owned(), stored.at.to_json()));
    letter.payload = Bytes::new();
    publish(bus, &letter).await
}
