//! How what ended becomes rows. Idempotent, and the same whatever the order: any message may come twice, a dead letter
//! before or after the outcome that names it, an item before its batch. The first of result and cancellation wins; either
//! replaces a dead letter; what comes later changes nothing.

use std::borrow::Cow;

use millpond::bus::read::outcomes::{OutcomeBody, OutcomeMessage, OutcomeStream};
use millpond::dead_letter::Evidence;
use millpond::outcome::ResultBatch;
use millpond::payload::{PayloadRef, digest};
use millpond::wire::headers::HEADER_REF;
use millpond::wire::subject::TaskSubject;
use millpond_api::tasks::TaskStatus;

use super::Store;
use super::batch::{merge_items, read_batch};
use super::cancelled_jobs::cancel_job;
use super::error::{Result, saturated, to_json};
use super::items::item_id;
use super::job_names::stored_job;
use super::pending_rows::{PendingRows, PendingTask, ReceivedOutcome, searchable};
use super::series::EndCounts;
use super::sql::{Row, Sql, Transaction};

/// Outcomes of one message whose faults are told one by one.
const BAD_NAMED_MAX: usize = 5;

impl Store {
    /// Merges what one pull brought, in one transaction.
    pub(crate) async fn merge(&self, from: OutcomeStream, messages: &[OutcomeMessage]) -> Result<()> {
        let mut transaction = self.db.begin().await?;
        self.cancelled.refresh_in(&mut *transaction).await?;
        let mut rows = PendingRows::new(self.cancelled.clone());
        let mut counts = EndCounts::default();
        for message in messages {
            match &message.body {
                Ok(OutcomeBody::Results(subject, pack, bad)) => {
                    if !bad.is_empty() {
                        keep_unreadable(&mut *transaction, from, message, &described(bad)).await?;
                    }
                    merge_pack(&mut *transaction, &mut rows, &mut counts, message, (subject, pack)).await?;
                }
                Ok(OutcomeBody::Dead(subject, evidence)) => {
                    rows.flush(&mut *transaction).await?;
                    merge_dead_letter(&mut *transaction, &mut rows, subject, evidence, message).await?;
                }
                Err(reason) => keep_unreadable(&mut *transaction, from, message, reason).await?,
            }
            rows.flush_many(&mut *transaction).await?;
        }
        rows.flush(&mut *transaction).await?;
        counts.write(&mut *transaction).await?;
        millpond::failpoint::hit("collector.merged");
        transaction.commit().await?;
        counts.publish();
        if !rows.cancelled_now.is_empty() {
            self.cancelled.refresh(&*self.db).await?;
        }
        self.versions.merged(counts.has_dead());
        self.continuations.ends_written();
        Ok(())
    }
}

/// Merges a pack of outcomes, and the cancellation that it may carry.
async fn merge_pack<'a>(
    transaction: &mut dyn Transaction,
    rows: &mut PendingRows<'a>,
    counts: &mut EndCounts,
    message: &'a OutcomeMessage,
    (subject, pack): (&'a TaskSubject, &'a ResultBatch),
) -> Result<()> {
    for outcome in &pack.outcomes {
        let received = ReceivedOutcome { subject, worker: &pack.worker, outcome, stored_ms: message.stored_ms };
        rows.add_attempts(&received)?;
        if !message.again {
            counts.add(&received);
        }
        match outcome.items {
            None => rows.add_task(&received),
            // A batch is read and written at once, because later rows of this pull must see it.
            Some(items) => merge_items(transaction, rows, &received, items).await?,
        }
    }
    if let Some(cancelled) = &pack.cancelled {
        rows.flush(transaction).await?;
        cancel_job(transaction, cancelled, subject).await?;
        rows.cancelled_now.push(cancelled.clone());
    }
    Ok(())
}

/// What is wrong with the outcomes of one message, in a bounded text.
fn described(bad: &[String]) -> String {
    let first = bad.iter().take(BAD_NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join("; ");
    let more = bad.len().saturating_sub(BAD_NAMED_MAX);
    if more == 0 { first } else { format!("{first}; and {more} more") }
}

/// Keeps a dead letter with its evidence; its task becomes dead unless it has ended otherwise.
async fn merge_dead_letter<'a>(
    transaction: &mut dyn Transaction,
    rows: &mut PendingRows<'a>,
    subject: &'a TaskSubject,
    evidence: &'a Evidence,
    message: &'a OutcomeMessage,
) -> Result<()> {
    let item = evidence.items.filter(|i| i.len == 1);
    let batch = evidence.original_id.as_deref().unwrap_or(&evidence.id);
    let id = item.map_or_else(|| evidence.id.clone(), |i| item_id(batch, i, i.from));
    let keep = Sql::new(
        "INSERT INTO dead_letters (queue, kind, id, attempt, reason, evidence, headers, payload, dead_lettered_ms)
         VALUES (?,?,?,?,?,?,?,?,?)
         ON CONFLICT (queue, id, kind) DO UPDATE SET attempt = excluded.attempt, reason = excluded.reason,
            evidence = excluded.evidence, headers = excluded.headers, payload = excluded.payload,
            dead_lettered_ms = excluded.dead_lettered_ms, purged_ms = NULL
         WHERE excluded.attempt > dead_letters.attempt",
    );
    let keep = keep.bind(&subject.queue).bind(&subject.kind).bind(&id);
    let keep = keep.bind(evidence.attempt).bind(&evidence.reason);
    let keep = keep.bind(to_json("evidence", evidence)?).bind(to_json("headers", &message.headers)?);
    transaction.run(keep.bind(message.payload.as_ref()).bind(evidence.dead_lettered_ms)).await?;
    rows.add_failures(subject, &id, &evidence.failures)?;
    if let Some(items) = item
        && let Some(stored) = read_batch(transaction, subject, batch, items.of).await?
        && stored.has(items.from)
    {
        return Ok(());
    }
    rows.add_row(PendingTask {
        subject,
        id: id.clone(),
        index: evidence.index,
        digest: digest_of(evidence, message).map(Cow::Owned),
        root: item.map(|_| batch),
        status: match rows.is_cancelled(evidence.job.as_deref(), &id, evidence.published_ms) {
            true => TaskStatus::Cancelled,
            false => TaskStatus::Dead,
        },
        attempt: evidence.attempt,
        result: None,
        is_bytes: false,
        reference: None,
        worker: &evidence.worker,
        published_ms: evidence.published_ms,
        started_ms: evidence.started_ms,
        ended_ms: Some(evidence.dead_lettered_ms),
        stored_ms: message.stored_ms,
        trace: evidence.trace.as_deref(),
        continuation: None,
        error: Some(searchable(&evidence.failure)),
    });
    rows.flush(transaction).await?;
    // Subjects of TaskStatus::Dead name no job; the evidence does.
    let named = Sql::new("UPDATE tasks SET job = ? WHERE queue = ? AND kind = ? AND id = ? AND job IS NULL");
    let named = named.bind(evidence.job.as_deref().map(|job| stored_job(job, &id)));
    transaction.run(named.bind(&subject.queue).bind(&subject.kind).bind(&id)).await?;
    Ok(())
}

/// The digest of the arguments that a dead letter brings along: those of its publisher, where it has died in its first attempt.
fn digest_of(evidence: &Evidence, message: &OutcomeMessage) -> Option<String> {
    if evidence.items.is_some() || evidence.index.is_some() || evidence.attempt > 1 {
        return None;
    }
    let reference = message.headers.iter().find(|(name, _)| name == HEADER_REF);
    let reference = reference.and_then(|(_, at)| PayloadRef::parse(at).ok());
    Some(reference.map_or_else(|| digest(&message.payload), |at| at.digest()))
}

/// Messages of a stream that nobody could read.
pub(crate) struct UnreadableMessages {
    /// The stream.
    pub(crate) stream: String,
    /// How many.
    pub(crate) count: i64,
    /// What is wrong with the newest.
    pub(crate) reason: String,
    /// When the first was stored, Unix time in milliseconds.
    pub(crate) since_ms: i64,
}

impl Store {
    /// Messages that nobody could read, stored since then, by stream.
    pub(crate) async fn unreadable_since(&self, since_ms: i64) -> Result<Vec<UnreadableMessages>> {
        let kept = Sql::new(
            "SELECT stream, count(*) AS count, min(stored_ms) AS since_ms,
                (SELECT reason FROM unreadable AS newest WHERE newest.stream = unreadable.stream
                    ORDER BY stored_ms DESC, seq DESC LIMIT 1) AS reason
             FROM unreadable WHERE stored_ms >= ? GROUP BY stream ORDER BY stream",
        );
        let rows = self.db.read(kept.bind(since_ms)).await?;
        let read = |row: &Row| {
            Ok(UnreadableMessages {
                stream: row.get("stream")?,
                count: row.get("count")?,
                reason: row.get("reason")?,
                since_ms: row.get("since_ms")?,
            })
        };
        rows.iter().map(read).collect()
    }
}

async fn keep_unreadable(
    transaction: &mut dyn Transaction,
    from: OutcomeStream,
    message: &OutcomeMessage,
    reason: &str,
) -> Result<()> {
    let stream = from.stream();
    let keep = Sql::new(
        "INSERT INTO unreadable (stream, seq, stored_ms, reason, headers, payload) VALUES (?,?,?,?,?,?)
         ON CONFLICT (stream, seq, stored_ms) DO NOTHING",
    );
    let keep = keep.bind(stream).bind(saturated(message.seq)).bind(message.stored_ms).bind(reason);
    let keep = keep.bind(to_json("headers", &message.headers)?).bind(message.payload.as_ref());
    // A message that is delivered again is neither logged nor counted again.
    if transaction.run(keep).await? > 0 {
        tracing::warn!(stream, seq = message.seq, reason, "a message cannot be read; it is kept as it is");
        metrics::counter!("millpond_messages_unreadable_total", "stream" => stream).increment(1);
    }
    Ok(())
}
