//! Ends a lease with what came of it, in the one order that loses nothing: retries and dead letters (awaited), then
//! the outcome (awaited), then the ack. Never the other way round. Knows outcomes, not handlers.

mod continuations;
mod large_results;

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use millpond::bus::Bus;
use millpond::bus::consume::lease::Lease;
use millpond::bus::publish::result_batch::ResultBatcher;
use millpond::bus::publish::{PublishError, RetryDeadline};
use millpond::dead_letter::Evidence;
use millpond::limits::RESULT_BATCH_BYTES_MAX;
use millpond::outcome::{FailedAttempt, Failure, Items, NotDone, NotDoneState, Outcome, id_of};
use millpond::retry::RetryOverrides;
use millpond::task::{Task, schedule_headers};
use millpond::telemetry::TraceContext;
use millpond::wire::headers::{HEADER_DEAD, HEADER_MSG_ID, Headers};
use millpond::{batch, failpoint};
use serde_json::value::RawValue;

use crate::call_end::CallEnd;
use crate::cancellations::{Cancellations, Cancelled};
use crate::report::spans::trace_of;
use crate::retry_policies::RetryPolicies;

/// When the halves of a batch that kills workers may start.
const SPLIT_DELAY: Duration = Duration::from_secs(1);

/// What settling needs.
pub(crate) struct Settler {
    pub(crate) bus: Bus,
    pub(crate) batcher: ResultBatcher,
    pub(crate) worker: String,
    pub(crate) policies: RetryPolicies,
    pub(crate) cancellations: Cancellations,
}

/// One attempt that ended.
pub(crate) struct Attempt {
    pub(crate) started_ms: i64,
    pub(crate) ended_ms: i64,
    /// How long its handler ran.
    pub(crate) busy: Duration,
    /// Its own place, or that of its task when it did not run.
    pub(crate) trace: TraceContext,
    /// One end per covered item.
    pub(crate) ends: Vec<CallEnd>,
    /// Items that were published again while it ran; others are to run them.
    pub(crate) handed_on: Option<Items>,
}

impl Attempt {
    /// One that did not run.
    fn without_run(task: &Task) -> Self {
        let now = millpond::now_ms();
        let trace = trace_of(task);
        Self { started_ms: now, ended_ms: now, busy: Duration::ZERO, trace, ends: Vec::new(), handed_on: None }
    }
}

/// How many items ended how, for the statistics.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Tally {
    pub(crate) done: u64,
    pub(crate) failed: u64,
}

/// A message of DUE or DEAD that must be stored before the outcome.
pub(crate) struct Effect {
    pub(crate) subject: String,
    pub(crate) headers: Headers,
    pub(crate) payload: Bytes,
}

impl Settler {
    /// Settles a lease whose attempt ran.
    pub(crate) async fn settle(&self, lease: Lease, attempt: Attempt) -> Tally {
        failpoint::hit("settle.executed");
        let task = &lease.task;
        let mut plan = Plan::new(task, &attempt, self.worker.clone());
        let arguments = arguments(task);
        let first = task.items.map_or(0, |i| i.from);
        let cancelled = self.cancellations.of(&lease);
        for (item, end) in (first..).zip(attempt.ends) {
            let payload = arguments.get((item - first) as usize).cloned().unwrap_or_default();
            match end {
                CallEnd::Done(value) => plan.done(value),
                _ if cancelled.as_ref().is_some_and(|c| c.covers(item)) => plan.cancelled(item),
                CallEnd::Failed(failure) => self.failed(&mut plan, task, item, failure, payload),
                CallEnd::NotRun if attempt.handed_on.is_some_and(|on| item >= on.from) => plan.left(item),
                CallEnd::NotRun => plan.not_run(item),
            }
        }
        plan.republish_rest(task, &arguments);
        // Cancelled, its chain ends, whatever is done by now.
        plan.goes_on = cancelled != Some(Cancelled::Whole);
        let tally = plan.tally;
        self.finish(lease, plan).await;
        tally
    }

    fn failed(&self, plan: &mut Plan, task: &Task, item: u32, failure: Failure, payload: Bytes) {
        plan.tally.failed += 1;
        let items = task.items.map(|i| Items { of: i.of, from: item, len: 1 });
        // A batch of one keeps its array: it covers the whole root.
        let payload = if items.is_some_and(|i| i.of == 1) { task.payload.clone() } else { payload };
        let of_task = RetryOverrides { attempts_max: task.attempts_max, ..RetryOverrides::default() };
        let policy = self.policies.of(&task.subject.kind).with(of_task);
        if !failure.retry || policy.is_last(task.attempt) {
            plan.bury(task, items, item, if failure.retry { "exhausted" } else { "fatal" }, failure, payload);
        } else {
            let delay = policy.delay(task.attempt, rand::random::<f64>());
            plan.retry(task, items, item, failure, payload, delay);
        }
    }

    /// Buries a message that never ran: one dead letter per item where it can be taken apart, else one for all.
    pub(crate) async fn bury(&self, lease: Lease, reason: &str, message: String) -> Tally {
        let task = &lease.task;
        let attempt = Attempt::without_run(task);
        let mut plan = Plan::new(task, &attempt, self.worker.clone());
        plan.started = None;
        let failure = Failure::fatal(reason, message);
        let arguments = arguments(task);
        match task.items {
            Some(items) if task.is_batch() && arguments.len() == items.len as usize && items.of > 1 => {
                for (item, payload) in (items.from..).zip(arguments) {
                    let one = Some(Items { of: items.of, from: item, len: 1 });
                    plan.bury(task, one, item, reason, failure.clone(), payload);
                }
            }
            Some(items) if items.len == 1 => {
                plan.bury(task, Some(items), items.from, reason, failure, task.payload.clone());
            }
            _ => {
                plan.outcome.items = None;
                plan.bury(task, None, 0, reason, failure, task.payload.clone());
            }
        }
        plan.tally.failed = plan.outcome.results.len() as u64;
        let tally = plan.tally;
        self.finish(lease, plan).await;
        tally
    }

    /// Ends a message that was cancelled before it ran; items that were not are published again.
    pub(crate) async fn cancel(&self, lease: Lease, cancelled: &Cancelled) {
        let task = &lease.task;
        let mut plan = Plan::new(task, &Attempt::without_run(task), self.worker.clone());
        let first = task.items.map_or(0, |i| i.from);
        for item in first..first.saturating_add(task.items_len()) {
            if cancelled.covers(item) { plan.cancelled(item) } else { plan.not_run(item) }
        }
        let arguments = arguments(task);
        plan.republish_rest(task, &arguments);
        self.finish(lease, plan).await;
    }

    /// Publishes a batch that kills workers again, as two halves.
    pub(crate) async fn split(&self, lease: Lease, items: Items) {
        let task = &lease.task;
        let attempt = Attempt::without_run(task);
        let mut plan = Plan::new(task, &attempt, self.worker.clone());
        // As schedules: this message is acknowledged before a half can kill this worker too, and a second split replaces
        // the schedules of the first instead of handing out more and more halves.
        plan.halves(task, items, &format!("s{}", task.attempt), Some(SPLIT_DELAY));
        for item in items.from..items.from + items.len {
            plan.left(item);
        }
        self.finish(lease, plan).await;
    }

    /// Publishes items that have not started again, as two halves; true once they are stored. Else they are still this
    /// message's own, and the settlement tries again.
    pub(crate) async fn hand_on(&self, task: &Task, rest: Items, started_ms: i64) -> bool {
        let mut plan = Plan::new(task, &Attempt::without_run(task), self.worker.clone());
        plan.halves(task, rest, &format!("h{}-{started_ms}", task.attempt), None);
        let stored = self.store(&plan.effects).await;
        failpoint::hit("work.handed_on");
        if let Err(error) = &stored {
            tracing::error!(task_id = %task.id(), %error, "the rest of a batch cannot be handed on");
        }
        stored.is_ok()
    }

    /// The order of effects.
    async fn finish(&self, lease: Lease, mut plan: Plan) {
        let kept = match plan.outcome.results.iter().any(|result| large_results::is_large(result)) {
            true => Box::pin(large_results::store(&self.bus, &mut plan.outcome)).await,
            false => Ok(()),
        };
        // Behind the large results: the next step refers to them.
        plan.add_next_steps(&lease.task);
        let told: Vec<Bytes> = match lease.task.reply_to {
            Some(_) => {
                // Of a chain the last step is told, and what ends it early.
                let last = lease.task.then.is_empty();
                let told = plan.outcome.end_notices(&self.worker).filter(|told| last || told.status != "done");
                told.filter_map(|t| serde_json::to_vec(&t).ok()).map(Bytes::from).collect()
            }
            None => Vec::new(),
        };
        let published_whole = plan.published_whole;
        let published = match kept {
            Ok(()) => self.publish(&lease, plan).await,
            Err(error) => Err(error),
        };
        if let Err(error) = published {
            // Nothing is acknowledged: the lease runs out and the task comes again.
            tracing::error!(task_id = %lease.task.id(), %error, "what came of a task cannot be stored; it will run again");
            tokio::time::sleep(Duration::from_secs(1)).await;
            Box::pin(lease.abandon()).await;
            return;
        }
        // What was published again as it was is not settled: it may come to this very worker.
        if !published_whole {
            lease.mark_settled();
        }
        failpoint::hit("settle.outcome_stored");
        // Before the ack: a death in between tells it twice rather than never.
        for (subject, text) in std::iter::repeat(lease.task.reply_to.as_deref()).zip(told) {
            self.bus.publish_core(subject.unwrap_or_default(), text).await;
        }
        lease.complete().await;
        failpoint::hit("settle.complete");
    }

    async fn store(&self, effects: &[Effect]) -> Result<(), PublishError> {
        let stored = effects.iter().map(|effect| async {
            let (subject, headers) = (&effect.subject, &effect.headers);
            let stored = self.bus.store(subject, headers, effect.payload.clone(), RetryDeadline::Unlimited).await;
            failpoint::hit("settle.one_effect_stored");
            stored
        });
        try_join_all(stored).await.map(drop)
    }

    async fn publish(&self, lease: &Lease, plan: Plan) -> Result<(), PublishError> {
        if !plan.effects.is_empty() {
            Box::pin(self.store(&plan.effects)).await?;
        }
        failpoint::hit("settle.effects_stored");
        let subject = lease.task.subject.results();
        for outcome in plan.into_outcomes() {
            self.batcher.store(subject.clone(), &outcome).await?;
        }
        Ok(())
    }
}

/// The argument of each covered item; empty when a batch cannot be taken apart.
pub(crate) fn arguments(task: &Task) -> Vec<Bytes> {
    match task.items {
        Some(items) if task.is_batch() => batch::split(&task.payload, items.len).map_or_else(
            |_| Vec::new(),
            |values| values.iter().map(|v| task.payload.slice_ref(v.get().as_bytes())).collect(),
        ),
        _ => vec![task.payload.clone()],
    }
}

/// Makes it wait for its time; when that is, Unix time in milliseconds.
fn schedule(effect: &mut Effect, task: &Task, id: &str, delay: Duration) -> i64 {
    let due_ms = millpond::now_ms().saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
    effect.headers.extend(schedule_headers(due_ms, task.subject.due()).into_iter().flatten());
    effect.subject = task.subject.sched(id);
    due_ms
}

/// Everything that one settlement will store, collected before anything is sent.
struct Plan {
    worker: String,
    started: Option<i64>,
    trace: TraceContext,
    effects: Vec<Effect>,
    outcome: Outcome,
    rest: Vec<u32>,
    /// The same attempt of the same id was published again.
    published_whole: bool,
    /// It ran: what is done of it goes on to the next step of its chain.
    goes_on: bool,
    tally: Tally,
}

impl Plan {
    fn new(task: &Task, attempt: &Attempt, worker: String) -> Self {
        let id = task.id();
        let outcome = Outcome {
            original_id: (id != task.original_id).then(|| task.original_id.clone()),
            id,
            items: task.items,
            index: task.index,
            attempt: task.attempt,
            published_ms: task.published_ms,
            started_ms: attempt.started_ms,
            ended_ms: attempt.ended_ms,
            busy_us: u64::try_from(attempt.busy.as_micros()).unwrap_or(u64::MAX),
            trace: Some(attempt.trace.trace_id()),
            span: attempt.trace.span_id(),
            then: None,
            results: Vec::with_capacity(attempt.ends.len()),
            refs: Vec::new(),
            not_done: Vec::new(),
            failures: task.failures.clone(),
        };
        let started = Some(attempt.started_ms);
        Self {
            worker,
            started,
            trace: attempt.trace,
            effects: Vec::new(),
            outcome,
            rest: Vec::new(),
            published_whole: false,
            goes_on: false,
            tally: Tally::default(),
        }
    }

    fn add_next_steps(&mut self, task: &Task) {
        let next = if self.goes_on { continuations::next_steps(task, &self.outcome, self.trace) } else { Vec::new() };
        if !next.is_empty() {
            self.outcome.then = task.next_step().map(|step| format!("{}.{}", step.queue, step.kind));
            self.effects.extend(next);
        }
    }

    fn done(&mut self, value: Box<RawValue>) {
        self.tally.done += 1;
        self.outcome.results.push(value);
    }

    fn without(&mut self, not_done: NotDone) {
        self.outcome.results.push(RawValue::NULL.to_owned());
        self.outcome.not_done.push(not_done);
    }

    fn cancelled(&mut self, item: u32) {
        self.without(NotDone { item, end: NotDoneState::Cancelled, failure: None, due_ms: None });
    }

    fn not_run(&mut self, item: u32) {
        self.rest.push(item);
        self.left(item);
    }

    /// Another message has this item now.
    fn left(&mut self, item: u32) {
        self.without(NotDone { item, end: NotDoneState::Remainder, failure: None, due_ms: None });
    }

    fn retry(
        &mut self,
        task: &Task,
        items: Option<Items>,
        item: u32,
        failure: Failure,
        payload: Bytes,
        delay: Duration,
    ) {
        let id = id_of(&task.original_id, items);
        let attempt = task.attempt + 1;
        let mut failures = task.failures.clone();
        failures.push(FailedAttempt {
            attempt: task.attempt,
            worker: self.worker.clone(),
            started_ms: self.outcome.started_ms,
            ended_ms: self.outcome.ended_ms,
            failure: failure.carried(),
        });
        let message_id = format!("{}/{id}/r{attempt}", task.subject.queue);
        let headers = task.republish_headers(items, attempt, &failures, message_id);
        let mut effect = Effect { subject: task.subject.due(), headers, payload };
        let due_ms = schedule(&mut effect, task, &id, delay);
        self.effects.push(effect);
        self.without(NotDone { item, end: NotDoneState::Retry, failure: Some(failure), due_ms: Some(due_ms) });
    }

    fn bury(&mut self, task: &Task, items: Option<Items>, item: u32, reason: &str, failure: Failure, payload: Bytes) {
        let id = id_of(&task.original_id, items);
        let evidence = Evidence {
            v: 1,
            original_id: (id != task.original_id).then(|| task.original_id.clone()),
            id: id.clone(),
            items,
            job: task.subject.job.clone(),
            unique: task.subject.unique.clone(),
            index: task.index_of(item),
            attempt: task.attempt,
            reason: reason.to_owned(),
            failure: failure.clone(),
            failures: task.failures.clone(),
            worker: self.worker.clone(),
            published_ms: task.published_ms,
            started_ms: self.started,
            dead_ms: millpond::now_ms(),
            trace: self.outcome.trace.clone(),
            span: self.outcome.span.clone(),
        };
        let mut headers = task.forwarded.clone();
        let message_id = format!("{}/{id}/d{}", task.subject.queue, task.attempt);
        headers.push((HEADER_MSG_ID.to_owned(), message_id));
        headers.push((HEADER_DEAD.to_owned(), serde_json::to_string(&evidence).unwrap_or_default()));
        self.effects.push(Effect { subject: task.subject.dead(), headers, payload });
        self.without(NotDone { item, end: NotDoneState::Dead, failure: Some(failure), due_ms: None });
    }

    /// What was not run is published again, the same attempt, each run of neighbours as one message.
    fn republish_rest(&mut self, task: &Task, arguments: &[Bytes]) {
        let rest = std::mem::take(&mut self.rest);
        self.published_whole = rest.len() == self.outcome.results.len();
        let Some(of) = task.items.map(|i| i.of) else {
            if !rest.is_empty() {
                let message_id = format!("{}/{}/x{}", task.subject.queue, task.original_id, self.outcome.started_ms);
                let headers = task.republish_headers(None, task.attempt, &task.failures, message_id);
                self.effects.push(Effect { subject: task.subject.due(), headers, payload: task.payload.clone() });
            }
            return;
        };
        for run in rest.chunk_by(|a, b| a + 1 == *b) {
            if let Some(&from) = run.first() {
                let len = u32::try_from(run.len()).unwrap_or(u32::MAX);
                let why = format!("x{}-{}", task.attempt, self.outcome.started_ms);
                self.republish(task, Items { of, from, len }, arguments, &why);
            }
        }
    }

    /// These items in two messages, in one when there is only one.
    fn halves(&mut self, task: &Task, items: Items, why: &str, delay: Option<Duration>) {
        let arguments = arguments(task);
        let half = items.len.div_ceil(2);
        for (from, len) in [(items.from, half), (items.from + half, items.len - half)] {
            if len > 0 {
                self.republish(task, Items { of: items.of, from, len }, &arguments, why);
                if let (Some(delay), Some(effect)) = (delay, self.effects.last_mut()) {
                    schedule(effect, task, &id_of(&task.original_id, Some(Items { of: items.of, from, len })), delay);
                }
            }
        }
    }

    fn republish(&mut self, task: &Task, items: Items, arguments: &[Bytes], why: &str) {
        let first = task.items.map_or(0, |i| i.from);
        let range = (items.from - first) as usize..(items.from - first + items.len) as usize;
        let values = arguments.get(range).unwrap_or_default();
        let payload = match values {
            [one] if items.of > 1 => one.clone(),
            many => Bytes::from(batch::join(many.iter().map(|v| &**v))),
        };
        let id = id_of(&task.original_id, Some(items));
        let message_id = format!("{}/{id}/{why}", task.subject.queue);
        let headers = task.republish_headers(Some(items), task.attempt, &task.failures, message_id);
        self.effects.push(Effect { subject: task.subject.due(), headers, payload });
    }

    /// The outcome, or several of some items each, so that none is larger than a pack may be.
    fn into_outcomes(self) -> Vec<Outcome> {
        let bytes: usize = self.outcome.results.iter().map(|r| r.get().len()).sum();
        let Some(items) = self.outcome.items.filter(|_| bytes > RESULT_BATCH_BYTES_MAX) else {
            return vec![self.outcome];
        };
        let original_id = self.outcome.original_id().to_owned();
        let (mut parts, mut part, mut part_bytes, mut from) = (Vec::new(), Vec::new(), 0, items.from);
        let whole = Outcome { results: Vec::new(), refs: Vec::new(), not_done: Vec::new(), ..self.outcome.clone() };
        let cut = |from: u32, results: Vec<Box<RawValue>>| {
            let len = u32::try_from(results.len()).unwrap_or(u32::MAX);
            let items = Items { of: items.of, from, len };
            let covers = |n: &&NotDone| n.item >= from && n.item < from + len;
            let id = id_of(&original_id, Some(items));
            Outcome {
                original_id: (id != original_id).then(|| original_id.clone()),
                id,
                items: Some(items),
                index: whole.index.map(|i| i + u64::from(from - whole.first_item())),
                refs: self.outcome.refs.iter().filter(|r| r.item >= from && r.item < from + len).cloned().collect(),
                not_done: self.outcome.not_done.iter().filter(covers).cloned().collect(),
                results,
                ..whole.clone()
            }
        };
        for result in self.outcome.results.iter().cloned() {
            if !part.is_empty() && part_bytes + result.get().len() > RESULT_BATCH_BYTES_MAX {
                let results: Vec<_> = std::mem::take(&mut part);
                let next = from + u32::try_from(results.len()).unwrap_or(u32::MAX);
                parts.push(cut(from, results));
                (from, part_bytes) = (next, 0);
            }
            part_bytes += result.get().len();
            part.push(result);
        }
        parts.push(cut(from, part));
        parts
    }
}
