//! What is to be published before a message is acknowledged, collected first and then published in the one order that
//! loses nothing: large results; then retries, dead letters, remainders and continuations, together; then the outcome.
//! Knows outcomes, neither handlers nor leases.

mod continuations;
pub(crate) mod large_results;
pub(crate) mod message;
pub(crate) mod result_batches;

use std::time::Duration;

use bytes::Bytes;
use millpond::bus::publish::PublishError;
use millpond::dead_letter::Evidence;
use millpond::failpoint;
use millpond::limits::RESULT_BATCH_BYTES_MAX;
use millpond::outcome::{FailedAttempt, Failure, Items, NotDone, NotDoneState, Outcome, id_of};
use millpond::retry::{RetryOverrides, RetryPolicy};
use millpond::task::Task;
use millpond::telemetry::TraceContext;
use millpond::wire::headers::HEADER_STARTS;
use serde_json::value::RawValue;

use crate::attempt::AttemptTime;
use crate::context::WorkerContext;
use crate::report::failure_log::{Consequence, FailedItem};
use crate::report::spans;
use crate::report::stats::Tally;

use continuations::continuations;
use large_results::{is_large, store_large_results};
use message::{OutboxMessage, part, publish_all, publish_smaller};

/// All that one message leads to.
pub(crate) struct Outbox<'a> {
    task: &'a Task,
    worker: &'a str,
    trace: TraceContext,
    /// None when the task did not run.
    started_ms: Option<i64>,
    messages: Vec<OutboxMessage>,
    outcome: Outcome,
    /// For the log.
    failed: Vec<FailedItem>,
    /// Items that are published again, because they were not run.
    not_run: Vec<u32>,
    /// The same attempt of the same id is published again.
    same_again: bool,
    /// What is done goes on to the next step of its chain.
    continues: bool,
    tally: Tally,
}

/// What is left to do once all is stored.
pub(crate) struct Settlement {
    /// The same attempt of the same id was published again: it may come to this very worker, and is not settled.
    pub(crate) same_again: bool,
    /// The notices of items that have ended, for the subject of `Millpond-Reply-To`.
    pub(crate) notifications: Vec<Bytes>,
}

impl<'a> Outbox<'a> {
    /// For an attempt that ran.
    pub(crate) fn of_attempt(task: &'a Task, worker: &'a str, time: &AttemptTime, trace: TraceContext) -> Self {
        let id = task.id();
        let outcome = Outcome {
            original_id: (id != task.original_id).then(|| task.original_id.clone()),
            id,
            items: task.items,
            index: task.index,
            digest: task.digest(),
            attempt: task.attempt,
            published_ms: task.published_ms,
            started_ms: time.started_ms,
            ended_ms: time.ended_ms,
            busy_us: u64::try_from(time.busy.as_micros()).unwrap_or(u64::MAX),
            trace: Some(trace.trace_id()),
            span: trace.span_id(),
            continuation: None,
            results: Vec::with_capacity(task.items_len() as usize),
            bytes: Vec::new(),
            refs: Vec::new(),
            not_done: Vec::new(),
            failures: task.failures.clone(),
        };
        Self {
            task,
            worker,
            trace,
            started_ms: Some(time.started_ms),
            messages: Vec::new(),
            outcome,
            failed: Vec::new(),
            not_run: Vec::new(),
            same_again: false,
            continues: false,
            tally: Tally::default(),
        }
    }

    /// For an outcome that is all that its task leads to, and that the server has refused.
    pub(crate) fn of_outcome(task: &'a Task, worker: &'a str, trace: TraceContext, outcome: Outcome) -> Self {
        let (started_ms, ended_ms) = (outcome.started_ms, outcome.ended_ms);
        let time = AttemptTime { started_ms, ended_ms, busy: Duration::ZERO };
        Self { outcome, ..Self::of_attempt(task, worker, &time, trace) }
    }

    /// For a task that was not run.
    pub(crate) fn without_run(task: &'a Task, worker: &'a str) -> Self {
        let now_ms = millpond::now_ms();
        let time = AttemptTime { started_ms: now_ms, ended_ms: now_ms, busy: Duration::ZERO };
        Self { started_ms: None, ..Self::of_attempt(task, worker, &time, spans::trace_of(task)) }
    }

    /// How many items ended how.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// What is done goes on to the next step of its chain.
    pub(crate) fn continue_chain(&mut self) {
        self.continues = true;
    }

    pub(crate) fn done(&mut self, value: Box<RawValue>) {
        self.tally.done += 1;
        self.outcome.results.push(value);
    }

    /// The item is done, and its result is bytes that are no JSON.
    pub(crate) fn done_bytes(&mut self, item: u32, value: Box<RawValue>) {
        self.outcome.bytes.push(item);
        self.done(value);
    }

    fn without_result(&mut self, item: u32, end: NotDoneState, failure: Option<Failure>, due_ms: Option<i64>) {
        self.outcome.results.push(RawValue::NULL.to_owned());
        self.outcome.not_done.push(NotDone { item, end, failure, due_ms });
    }

    pub(crate) fn cancelled(&mut self, item: u32) {
        self.without_result(item, NotDoneState::Cancelled, None, None);
    }

    /// The item was not run: it is published again, the same attempt.
    pub(crate) fn not_run(&mut self, item: u32) {
        self.not_run.push(item);
        self.left_to_others(item);
    }

    /// Another message has this item now.
    pub(crate) fn left_to_others(&mut self, item: u32) {
        self.without_result(item, NotDoneState::Remainder, None, None);
    }

    /// The item failed: it is tried again, or dead-lettered when that cannot help or it has had all of its attempts.
    pub(crate) fn failed(&mut self, item: u32, failure: Failure, argument: Bytes, policy: RetryPolicy) {
        self.tally.failed += 1;
        let task = self.task;
        let items = task.items.map(|items| Items { of: items.of, from: item, len: 1 });
        // A batch that was published with one item keeps its payload, an array of one: the item is all of it.
        let payload = if items.is_some_and(|items| items.of == 1) { task.payload.clone() } else { argument };
        let overrides = RetryOverrides { attempts_max: task.attempts_max, ..RetryOverrides::default() };
        let policy = policy.with(overrides);
        if !failure.retry {
            self.dead_letter(items, item, "fatal", failure, payload);
        } else if policy.is_last(task.attempt) {
            self.dead_letter(items, item, "exhausted", failure, payload);
        } else {
            self.retry(items, item, failure, payload, policy.delay(task.attempt, rand::random::<f64>()));
        }
    }

    fn retry(&mut self, items: Option<Items>, item: u32, failure: Failure, payload: Bytes, delay: Duration) {
        let (task, attempt) = (self.task, self.task.attempt + 1);
        let mut failures = task.failures.clone();
        failures.push(FailedAttempt {
            attempt: task.attempt,
            worker: self.worker.to_owned(),
            started_ms: self.outcome.started_ms,
            ended_ms: self.outcome.ended_ms,
            span: self.outcome.span.clone(),
            failure: failure.carried(),
        });
        let mut message = OutboxMessage::again(task, items, attempt, &failures, payload, &format!("r{attempt}"));
        let id = id_of(&task.original_id, items);
        let due_ms = message.delay(task, &id, delay);
        self.messages.push(message);
        self.tally.retried += 1;
        self.failed.push(FailedItem { id, failure: failure.clone(), consequence: Consequence::Retry(delay) });
        self.without_result(item, NotDoneState::Retry, Some(failure), Some(due_ms));
    }

    /// Sets aside what no worker may run again until a person decides.
    pub(crate) fn dead_letter(
        &mut self,
        items: Option<Items>,
        item: u32,
        reason: &str,
        failure: Failure,
        payload: Bytes,
    ) {
        let task = self.task;
        let id = id_of(&task.original_id, items);
        let consequence = Consequence::DeadLetter(reason.to_owned());
        self.tally.dead += 1;
        self.failed.push(FailedItem { id: id.clone(), failure: failure.clone(), consequence });
        let evidence = Evidence {
            v: 1,
            original_id: (id != task.original_id).then(|| task.original_id.clone()),
            id,
            items,
            job: task.subject.job.clone(),
            unique: task.subject.unique.clone(),
            index: task.index_of(item),
            attempt: task.attempt,
            reason: reason.to_owned(),
            failure: failure.clone(),
            failures: task.failures.clone(),
            worker: self.worker.to_owned(),
            published_ms: task.published_ms,
            started_ms: self.started_ms,
            dead_lettered_ms: millpond::now_ms(),
            trace: self.outcome.trace.clone(),
            span: self.outcome.span.clone(),
        };
        self.messages.push(OutboxMessage::dead_letter(task, &evidence, payload));
        self.without_result(item, NotDoneState::Dead, Some(failure), None);
    }

    /// Dead-letters all that the task covers: each item by itself where the batch can be taken apart, else as one.
    pub(crate) fn dead_letter_all(&mut self, reason: &str, message: String, arguments: Option<&[Bytes]>) {
        let (task, failure) = (self.task, Failure::fatal(reason, message));
        match (task.items, arguments) {
            (Some(items), Some(arguments)) if task.is_batch() && items.of > 1 => {
                for (item, argument) in (items.from..).zip(arguments) {
                    let one = Some(Items { of: items.of, from: item, len: 1 });
                    self.dead_letter(one, item, reason, failure.clone(), argument.clone());
                }
            }
            (Some(items), _) if items.len == 1 => {
                self.dead_letter(Some(items), items.from, reason, failure, task.payload.clone());
            }
            _ => {
                self.outcome.items = None;
                self.dead_letter(None, 0, reason, failure, task.payload.clone());
            }
        }
        self.tally.failed = self.outcome.results.len() as u64;
        self.tally.dead = self.tally.failed;
    }

    /// Ends the items that are cancelled, and publishes the others again.
    pub(crate) fn cancel(&mut self, is_cancelled: impl Fn(u32) -> bool, arguments: &[Bytes]) {
        let first = self.outcome.first_item();
        for item in first..first.saturating_add(self.task.items_len()) {
            if is_cancelled(item) { self.cancelled(item) } else { self.not_run(item) }
        }
        self.republish_not_run(arguments);
    }

    /// Publishes all items again later, each by itself; `starts` of their batch were recorded and had no end.
    pub(crate) fn split(&mut self, arguments: &[Bytes], starts: usize, delay: Duration) {
        let Some(Items { of, from, len }) = self.task.items else { return };
        let reason = format!("s{}", self.task.attempt);
        for item in from..from.saturating_add(len) {
            let one = Items { of, from: item, len: 1 };
            let mut message = part(self.task, one, arguments, &reason);
            message.headers.push((HEADER_STARTS.to_owned(), starts.to_string()));
            message.delay(self.task, &id_of(&self.task.original_id, Some(one)), delay);
            self.messages.push(message);
            self.left_to_others(item);
        }
    }

    /// Publishes again what was not run, as the same attempt, with one message for each group of adjacent items.
    pub(crate) fn republish_not_run(&mut self, arguments: &[Bytes]) {
        let (task, started_ms) = (self.task, self.outcome.started_ms);
        let not_run = std::mem::take(&mut self.not_run);
        self.same_again = not_run.len() == self.outcome.results.len();
        let Some(of) = task.items.map(|items| items.of) else {
            if !not_run.is_empty() {
                let (payload, reason) = (task.payload.clone(), format!("x{started_ms}"));
                self.messages.push(OutboxMessage::again(task, None, task.attempt, &task.failures, payload, &reason));
            }
            return;
        };
        let reason = format!("x{}-{started_ms}", task.attempt);
        for adjacent in not_run.chunk_by(|a, b| a + 1 == *b) {
            if let Some(&from) = adjacent.first() {
                let len = u32::try_from(adjacent.len()).unwrap_or(u32::MAX);
                self.messages.push(part(task, Items { of, from, len }, arguments, &reason));
            }
        }
    }

    /// The outcome as JSON, where it is all that is to be published.
    pub(crate) fn sole_outcome(&self) -> Option<Vec<u8>> {
        let is_sole = self.messages.is_empty()
            && self.outcome.not_done.is_empty()
            && self.task.reply_to.is_none()
            && (!self.continues || self.task.continuation.is_empty())
            && !self.outcome.results.iter().any(|result| is_large(result))
            && (self.outcome.items.is_none() || bytes(&self.outcome) <= RESULT_BATCH_BYTES_MAX);
        if !is_sole {
            return None;
        }
        result_batches::json_of(&self.outcome).ok()
    }

    pub(crate) fn into_outcome(self) -> Outcome {
        self.outcome
    }

    /// Publishes all of it, each step awaited before the next. What the server refuses for good is published as a smaller dead
    /// letter, or in a smaller outcome. It may be called again after an error: what is stored is not published twice.
    ///
    /// # Errors
    /// [`PublishError`] when even that is refused. Nothing may be acknowledged then.
    pub(crate) async fn publish(&mut self, context: &WorkerContext) -> Result<Settlement, PublishError> {
        // Boxed, as all that is rare: each task moves its whole future.
        let passes_bytes = self.continues && !self.task.continuation.is_empty() && !self.outcome.bytes.is_empty();
        if passes_bytes || self.outcome.results.iter().any(|result| is_large(result)) {
            let bytes = if passes_bytes { self.outcome.bytes.clone() } else { Vec::new() };
            let is_stored = move |item: u32, result: &RawValue| is_large(result) || bytes.contains(&item);
            Box::pin(store_large_results(&context.bus, &mut self.outcome, is_stored)).await?;
        }
        // Behind the large results, which a continuation refers to.
        self.add_continuations();
        if !self.messages.is_empty() {
            let messages = std::mem::take(&mut self.messages);
            let mut refused = Box::pin(publish_all(&context.bus, messages)).await?;
            while let Some((message, error)) = refused.pop() {
                if let Err(error) = Box::pin(self.publish_instead(context, &message, error)).await {
                    self.messages.push(message);
                    self.messages.extend(refused.into_iter().map(|(message, _)| message));
                    return Err(error);
                }
            }
        }
        failpoint::hit("settle.effects_stored");
        let published = Settlement { same_again: self.same_again, notifications: self.notifications() };
        let subject = self.task.subject.results();
        if self.outcome.items.is_some() && bytes(&self.outcome) > RESULT_BATCH_BYTES_MAX {
            Box::pin(publish_parts(context, subject, &self.outcome)).await?;
        } else {
            match context.batches.store(subject, &self.outcome).await {
                Err(error) if error.is_permanent() => {
                    Box::pin(publish_reduced(context, self.task.subject.results(), &self.outcome, error)).await?;
                }
                stored => stored?,
            }
        }
        context.failures.write(self.task, self.trace, std::mem::take(&mut self.failed));
        Ok(published)
    }

    /// Publishes a smaller dead letter for one that the server has refused; for a message of DUE a dead letter of each item that
    /// it covers, because none of them can run again. Never the same message again and again.
    async fn publish_instead(
        &mut self,
        context: &WorkerContext,
        message: &OutboxMessage,
        error: PublishError,
    ) -> Result<(), PublishError> {
        let Some((task, arguments)) = message.as_task() else {
            return publish_smaller(&context.bus, message, error).await;
        };
        let failure = Failure::fatal("refused", format!("it cannot be published again: {error}"));
        let mut dead = Outbox::without_run(&task, self.worker);
        dead.dead_letter_all("refused", failure.message.clone(), Some(&arguments));
        for (letter, error) in publish_all(&context.bus, std::mem::take(&mut dead.messages)).await? {
            publish_smaller(&context.bus, &letter, error).await?;
        }
        // The next step of a chain has an id of its own, and this task is done.
        if task.original_id == self.task.original_id {
            let first = task.items.map_or(0, |items| items.from);
            let covered = first..first.saturating_add(task.items_len());
            for not_done in self.outcome.not_done.iter_mut().filter(|not_done| covered.contains(&not_done.item)) {
                (not_done.end, not_done.failure, not_done.due_ms) = (NotDoneState::Dead, Some(failure.clone()), None);
            }
            self.same_again = false;
        }
        Ok(())
    }

    fn add_continuations(&mut self) {
        if !std::mem::take(&mut self.continues) {
            return;
        }
        let next = continuations(self.task, &self.outcome, self.trace);
        if !next.is_empty() {
            self.outcome.continuation = self.task.next_step().map(|step| format!("{}.{}", step.queue, step.kind));
            self.messages.extend(next);
        }
    }

    /// Notices of what ended. Within a chain, only the last step has one, or an end that stops the chain early.
    fn notifications(&self) -> Vec<Bytes> {
        if self.task.reply_to.is_none() {
            return Vec::new();
        }
        let last = self.task.continuation.is_empty();
        let notices = self.outcome.end_notices(self.worker).filter(|notice| last || notice.status != "done");
        notices.filter_map(|notice| serde_json::to_vec(&notice).ok()).map(Bytes::from).collect()
    }
}

/// Bytes of what an outcome says of its items, as JSON: their results, and why others have none.
fn bytes(outcome: &Outcome) -> usize {
    let results: usize = outcome.results.iter().map(|result| result.get().len()).sum();
    results + outcome.not_done.iter().map(bytes_of_failed).sum::<usize>()
}

fn bytes_of_failed(not_done: &NotDone) -> usize {
    serde_json::to_vec(not_done).map_or(0, |json| json.len())
}

async fn publish_parts(context: &WorkerContext, subject: String, outcome: &Outcome) -> Result<(), PublishError> {
    for part in parts(outcome, RESULT_BATCH_BYTES_MAX) {
        match context.batches.store(subject.clone(), &part).await {
            Err(error) if error.is_permanent() => {
                Box::pin(publish_reduced(context, subject.clone(), &part, error)).await?;
            }
            stored => stored?,
        }
    }
    Ok(())
}

/// Publishes an outcome that the server has refused item by item, with small failures, and with results in the store of payloads.
async fn publish_reduced(
    context: &WorkerContext,
    subject: String,
    outcome: &Outcome,
    error: PublishError,
) -> Result<(), PublishError> {
    tracing::warn!(task_id = outcome.id, %error, "an outcome is refused; a smaller one takes its place");
    let refused = error.to_string();
    let whole = outcome.items.is_none().then(|| outcome.clone());
    let alone = outcome.items.map(|_| parts(outcome, 0)).into_iter().flatten();
    for mut one in whole.into_iter().chain(alone) {
        let not_done: Vec<u32> = one.not_done.iter().map(|not_done| not_done.item).collect();
        let is_stored = move |item: u32, _: &RawValue| !not_done.contains(&item);
        if one.refs.is_empty() {
            store_large_results(&context.bus, &mut one, is_stored).await?;
        }
        for not_done in &mut one.not_done {
            not_done.failure = not_done.failure.as_ref().map(|failure| failure.small(&refused));
        }
        one.failures = Vec::new();
        context.batches.store(subject.clone(), &one).await?;
    }
    Ok(())
}

/// An outcome as several of some items each, so that none is larger than `bytes_max` (but one item alone may be).
fn parts(outcome: &Outcome, bytes_max: usize) -> impl Iterator<Item = Outcome> {
    let (first, of) = (outcome.first_item(), outcome.items.map_or(1, |items| items.of));
    // The first item and the number of items of each part.
    let mut grouped: Vec<(u32, u32)> = Vec::new();
    let (mut size, mut not_done) = (0, outcome.not_done.iter().peekable());
    for (item, result) in (first..).zip(&outcome.results) {
        let failed = not_done.next_if(|not_done| not_done.item == item).map_or(0, bytes_of_failed);
        let bytes = result.get().len() + failed;
        size += bytes;
        match grouped.last_mut() {
            Some((_, len)) if size <= bytes_max => *len += 1,
            _ => {
                grouped.push((item, 1));
                size = bytes;
            }
        }
    }
    let original_id = outcome.original_id();
    let part = move |(from, len): (u32, u32)| {
        let (items, covered) = (Items { of, from, len }, from..from + len);
        let id = id_of(original_id, Some(items));
        let start = (from - first) as usize;
        Outcome {
            original_id: (id != original_id).then(|| original_id.to_owned()),
            id,
            items: Some(items),
            index: outcome.index.map(|index| index + u64::from(from - first)),
            digest: None,
            results: outcome.results.iter().skip(start).take(len as usize).cloned().collect(),
            bytes: outcome.bytes.iter().copied().filter(|item| covered.contains(item)).collect(),
            refs: outcome.refs.iter().filter(|at| covered.contains(&at.item)).cloned().collect(),
            not_done: outcome.not_done.iter().filter(|n| covered.contains(&n.item)).cloned().collect(),
            failures: outcome.failures.clone(),
            trace: outcome.trace.clone(),
            span: outcome.span.clone(),
            continuation: outcome.continuation.clone(),
            ..*outcome
        }
    };
    grouped.into_iter().map(part)
}

#[cfg(test)]
mod tests {
    use millpond::limits::SERVER_PAYLOAD_BYTES_MAX;
    use millpond::wire::bounds::Bounded;

    use super::*;

    #[test]
    fn a_large_outcome_is_published_in_parts_that_cover_all_items() {
        let text = |n: u32| format!("\"{}\"", "x".repeat(RESULT_BATCH_BYTES_MAX / 2 - 100 * n as usize));
        let value = |n: u32| RawValue::from_string(if n == 3 { "null".into() } else { text(n) }).unwrap();
        let outcome: Outcome = serde_json::from_str(
            r#"{"id":"b","items":{"of":9,"from":2,"len":5},"original_id":"b","index":40,"attempt":1,"published_ms":1,"started_ms":2,"ended_ms":3,"results":[],"not_done":[{"item":5,"end":"cancelled"}]}"#,
        )
        .unwrap();
        let outcome = Outcome { results: (0..5).map(value).collect(), ..outcome };
        let parts: Vec<Outcome> = parts(&outcome, RESULT_BATCH_BYTES_MAX).collect();
        let seen: Vec<_> = parts.iter().map(|p| (p.id.as_str(), p.index, p.results.len(), p.not_done.len())).collect();
        assert_eq!(seen, [("b/2+2", Some(40), 2, 0), ("b/4+3", Some(42), 3, 1)]);
        assert!(parts.iter().all(|part| bytes(part) <= RESULT_BATCH_BYTES_MAX));
    }

    #[test]
    fn failures_count_in_the_size_of_an_outcome_and_each_item_stays() {
        let failure = Failure { traceback: Some("\0".repeat(90_000)), ..Failure::new("E", "x".repeat(900)) }.bounded();
        let not_done: Vec<NotDone> = (0..256)
            .filter(|item| item % 20 != 0)
            .map(|item| NotDone { item, end: NotDoneState::Dead, failure: Some(failure.clone()), due_ms: None })
            .collect();
        let outcome = Outcome {
            results: (0..256).map(|_| RawValue::NULL.to_owned()).collect(),
            bytes: vec![0, 255],
            not_done,
            ..serde_json::from_str(
                r#"{"id":"b","items":{"of":256,"from":0,"len":256},"attempt":1,"published_ms":1,"started_ms":2,"ended_ms":3,"results":[]}"#,
            )
            .unwrap()
        };
        let parts: Vec<Outcome> = parts(&outcome, RESULT_BATCH_BYTES_MAX).collect();
        assert!(parts.len() > 3 && parts.iter().all(|part| part.check().is_ok()), "{}", parts.len());
        assert!(parts.iter().all(|part| serde_json::to_vec(part).unwrap().len() < SERVER_PAYLOAD_BYTES_MAX / 2));
        let all: Vec<u32> = parts.iter().flat_map(|part| part.ends().map(|(item, _)| item)).collect();
        assert_eq!(all, (0..256).collect::<Vec<u32>>());
        assert_eq!(parts.iter().map(|part| part.not_done.len()).sum::<usize>(), outcome.not_done.len());
        assert_eq!((&parts[0].bytes, &parts[parts.len() - 1].bytes), (&vec![0], &vec![255]));
        assert_eq!(super::parts(&outcome, 0).count(), 256);
    }
}
