//! What is to be published before a message is acknowledged, collected first and then published in the one order that
//! loses nothing: large results; then retries, dead letters, remainders and continuations, together; then the outcome.
//! Knows outcomes, neither handlers nor leases.

mod continuations;
pub(crate) mod large_results;
pub(crate) mod message;

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
use serde_json::value::RawValue;

use crate::attempt::AttemptTime;
use crate::context::WorkerContext;
use crate::report::spans;
use crate::report::stats::Tally;

use continuations::continuations;
use large_results::{is_large, store_large_results};
use message::{OutboxMessage, halves, part, publish_all};

/// All that one message leads to.
pub(crate) struct Outbox<'a> {
    task: &'a Task,
    worker: &'a str,
    trace: TraceContext,
    /// None when the task did not run.
    started_ms: Option<i64>,
    messages: Vec<OutboxMessage>,
    outcome: Outcome,
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
            attempt: task.attempt,
            published_ms: task.published_ms,
            started_ms: time.started_ms,
            ended_ms: time.ended_ms,
            busy_us: u64::try_from(time.busy.as_micros()).unwrap_or(u64::MAX),
            trace: Some(trace.trace_id()),
            span: trace.span_id(),
            continuation: None,
            results: Vec::with_capacity(task.items_len() as usize),
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
            not_run: Vec::new(),
            same_again: false,
            continues: false,
            tally: Tally::default(),
        }
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
            failure: failure.carried(),
        });
        let mut message = OutboxMessage::again(task, items, attempt, &failures, payload, &format!("r{attempt}"));
        let due_ms = message.delay(task, &id_of(&task.original_id, items), delay);
        self.messages.push(message);
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
    }

    /// Ends the items that are cancelled, and publishes the others again.
    pub(crate) fn cancel(&mut self, is_cancelled: impl Fn(u32) -> bool, arguments: &[Bytes]) {
        let first = self.outcome.first_item();
        for item in first..first.saturating_add(self.task.items_len()) {
            if is_cancelled(item) { self.cancelled(item) } else { self.not_run(item) }
        }
        self.republish_not_run(arguments);
    }

    /// Publishes all items again later, as two halves.
    pub(crate) fn split(&mut self, items: Items, arguments: &[Bytes], delay: Duration) {
        let reason = format!("s{}", self.task.attempt);
        self.messages.extend(halves(self.task, items, arguments, &reason, Some(delay)));
        (items.from..items.from + items.len).for_each(|item| self.left_to_others(item));
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

    /// Publishes all of it, each step awaited before the next.
    ///
    /// # Errors
    /// [`PublishError`] when the server refuses something for good. Nothing may be acknowledged then.
    pub(crate) async fn publish(&mut self, context: &WorkerContext) -> Result<Settlement, PublishError> {
        // Boxed, as all that is rare: each task moves its whole future.
        if self.outcome.results.iter().any(|result| is_large(result)) {
            Box::pin(store_large_results(&context.bus, &mut self.outcome)).await?;
        }
        // Behind the large results, which a continuation refers to.
        self.add_continuations();
        if !self.messages.is_empty() {
            Box::pin(publish_all(&context.bus, &self.messages)).await?;
        }
        failpoint::hit("settle.effects_stored");
        // Made before the outcome is stored, because `publish_parts` empties the outcome.
        let published = Settlement { same_again: self.same_again, notifications: self.notifications() };
        let subject = self.task.subject.results();
        if self.outcome.items.is_some() && bytes(&self.outcome) > RESULT_BATCH_BYTES_MAX {
            Box::pin(publish_parts(context, subject, &mut self.outcome)).await?;
        } else {
            context.batcher.store(subject, &self.outcome).await?;
        }
        Ok(published)
    }

    fn add_continuations(&mut self) {
        if !self.continues {
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

/// Bytes of an outcome's results.
fn bytes(outcome: &Outcome) -> usize {
    outcome.results.iter().map(|result| result.get().len()).sum()
}

async fn publish_parts(context: &WorkerContext, subject: String, outcome: &mut Outcome) -> Result<(), PublishError> {
    for part in parts(outcome) {
        context.batcher.store(subject.clone(), &part).await?;
    }
    Ok(())
}

/// The results of an outcome, moved into several outcomes of some items each, so that none is larger than a result batch may
/// be (but one item's result may be).
fn parts(outcome: &mut Outcome) -> Vec<Outcome> {
    let (first, of) = (outcome.first_item(), outcome.items.map_or(1, |items| items.of));
    let results = std::mem::take(&mut outcome.results);
    let (mut refs, mut not_done) = (std::mem::take(&mut outcome.refs), std::mem::take(&mut outcome.not_done));
    let mut grouped: Vec<(Vec<Box<RawValue>>, usize)> = Vec::new();
    for result in results {
        let bytes = result.get().len();
        match grouped.last_mut() {
            Some((group, size)) if *size + bytes <= RESULT_BATCH_BYTES_MAX => {
                group.push(result);
                *size += bytes;
            }
            _ => grouped.push((vec![result], bytes)),
        }
    }
    let (original_id, mut from) = (outcome.original_id().to_owned(), first);
    let outcome_of = |(results, _): (Vec<Box<RawValue>>, usize)| {
        let len = u32::try_from(results.len()).unwrap_or(u32::MAX);
        let (items, next) = (Items { of, from, len }, from + len);
        let id = id_of(&original_id, Some(items));
        let part = Outcome {
            original_id: (id != original_id).then(|| original_id.clone()),
            id,
            items: Some(items),
            index: outcome.index.map(|index| index + u64::from(from - first)),
            refs: refs.drain(..refs.partition_point(|at| at.item < next)).collect(),
            not_done: not_done.drain(..not_done.partition_point(|n| n.item < next)).collect(),
            results,
            ..outcome.clone()
        };
        from = next;
        part
    };
    grouped.into_iter().map(outcome_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_outcome_is_published_in_parts_that_cover_all_items() {
        let text = |n: u32| format!("\"{}\"", "x".repeat(RESULT_BATCH_BYTES_MAX / 2 - 100 * n as usize));
        let value = |n: u32| RawValue::from_string(if n == 3 { "null".into() } else { text(n) }).unwrap();
        let outcome: Outcome = serde_json::from_str(
            r#"{"id":"b","items":{"of":9,"from":2,"len":5},"original_id":"b","index":40,"attempt":1,"published_ms":1,"started_ms":2,"ended_ms":3,"results":[],"not_done":[{"item":5,"end":"cancelled"}]}"#,
        )
        .unwrap();
        let parts = parts(&mut Outcome { results: (0..5).map(value).collect(), ..outcome });
        let seen: Vec<_> = parts.iter().map(|p| (p.id.as_str(), p.index, p.results.len(), p.not_done.len())).collect();
        assert_eq!(seen, [("b/2+2", Some(40), 2, 0), ("b/4+3", Some(42), 3, 1)]);
        assert!(parts.iter().all(|part| bytes(part) <= RESULT_BATCH_BYTES_MAX));
    }
}
