//! The row of a batch: a bitmap of the items that have a result, and the results. Merged under the store's one writer. An
//! item whose bit is set keeps its result, whatever is reported of it later; a cancelled item never gets one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use millpond::outcome::{ItemResult, Items};
use millpond::payload::PayloadRef;
use millpond::wire::subject::TaskSubject;
use millpond_api::tasks::TaskStatus;
use serde_json::value::RawValue;

use super::error::{Result, to_json};
use super::items::{has_bit, item_id};
use super::job_names::stored_job;
use super::pending_rows::{ItemEnd, OF_ONE, PendingRows, ReceivedOutcome, status_of};
use super::sql::{Row, Sql, Transaction};

/// The row of a batch as it is stored; without a row where nothing of the batch is stored yet.
pub(super) struct StoredBatch {
    row: Option<Row>,
    bitmap: Vec<u8>,
}

impl StoredBatch {
    /// Whether an item has a result.
    pub(super) fn has(&self, item: u32) -> bool {
        has_bit(&self.bitmap, item)
    }
}

/// A batch to which an outcome adds results.
struct OpenBatch<'b> {
    bitmap: Vec<u8>,
    /// Null where an item has none, or it lies in the store of payloads.
    results: Vec<&'b RawValue>,
    /// Where results lie that are not among these, by item.
    refs: BTreeMap<u32, PayloadRef>,
    /// Items whose result is bytes that are no JSON.
    base64: BTreeSet<u32>,
}

impl<'b> OpenBatch<'b> {
    fn new(stored: &'b StoredBatch, of: u32) -> Result<Self> {
        let (mut results, mut refs, mut base64) = (Vec::new(), None, BTreeSet::new());
        if let Some(row) = &stored.row {
            results = row.optional_json("result")?.unwrap_or_default();
            refs = row.optional_json("ref")?;
            base64 = row.optional_json("base64")?.unwrap_or_default();
        }
        results.resize(of as usize, RawValue::NULL);
        Ok(Self { bitmap: stored.bitmap.clone(), results, refs: refs.unwrap_or_default(), base64 })
    }

    fn set(&mut self, item: u32, kept: ItemResult<'b>) {
        if let (Some(byte), Some(place)) = (self.bitmap.get_mut(item as usize / 8), self.results.get_mut(item as usize))
        {
            *byte |= 1 << (item % 8);
            match kept {
                ItemResult::Inline(result) => *place = result,
                ItemResult::Bytes(result) => {
                    *place = result;
                    self.base64.insert(item);
                }
                ItemResult::Stored(at) => drop(self.refs.insert(item, at.clone())),
            }
        }
    }
}

fn count(bitmap: &[u8]) -> u32 {
    bitmap.iter().map(|byte| byte.count_ones()).sum()
}

/// The batch as stored so far. None when its id stands for something else that may not change any more: a task that
/// has ended, or a batch of another size (somebody published two things under one id; the first stays).
pub(super) async fn read_batch(
    transaction: &mut dyn Transaction,
    subject: &TaskSubject,
    root: &str,
    of: u32,
) -> Result<Option<StoredBatch>> {
    let known = Sql::new(
        "SELECT items, bitmap, result, ref, base64, status FROM tasks WHERE queue = ? AND kind = ? AND id = ?",
    );
    let mut row = transaction.rows(known.bind(&subject.queue).bind(&subject.kind).bind(root)).await?.pop();
    let mut bitmap = Vec::new();
    if let Some(found) = &row {
        match found.get::<Option<u32>>("items")? {
            Some(items) if items == of => bitmap = found.get::<&[u8]>("bitmap")?.to_vec(),
            // An item came first, or a dead letter of the batch as a whole: the batch takes the row's place.
            None if found.get::<TaskStatus>("status")? < TaskStatus::Done => row = None,
            _ => return Ok(None),
        }
    }
    bitmap.resize((of as usize).div_ceil(8), 0);
    Ok(Some(StoredBatch { row, bitmap }))
}

/// Merges an outcome of some items into the row of their batch, and those that did not succeed into rows of their own.
pub(super) async fn merge_items<'a>(
    transaction: &mut dyn Transaction,
    rows: &mut PendingRows<'a>,
    received: &ReceivedOutcome<'a>,
    items: Items,
) -> Result<()> {
    // Items that have rows of their own are read below: rows that wait to be written must be among them.
    rows.flush(transaction).await?;
    let (subject, root) = (received.subject, received.outcome.original_id());
    // One record has cancelled all of its job: no row is made or changed any more.
    if rows.is_cancelled(received.subject.job.as_deref(), root, received.outcome.published_ms) {
        return Ok(());
    }
    let Some(stored) = read_batch(transaction, subject, root, items.of).await? else {
        let (queue, kind) = (&subject.queue, &subject.kind);
        tracing::warn!(
            task_id = root,
            queue,
            kind,
            "an id was used for two tasks or batches; the later one changes nothing"
        );
        return Ok(());
    };
    let mut batch = OpenBatch::new(&stored, items.of)?;
    // Most batches have none: then no item's id is made.
    let apart = items_apart(transaction, subject, root).await?;
    let mut finished: Vec<(u32, String)> = Vec::new();
    for (item, end) in received.outcome.ends().filter(|(item, _)| !stored.has(*item)) {
        match end {
            Ok(kept) => {
                let id = (!apart.is_empty()).then(|| item_id(root, items, item));
                let known = id.as_ref().and_then(|id| apart.get(id)).copied();
                if known != Some(TaskStatus::Cancelled) {
                    batch.set(item, kept);
                    finished.extend(
                        id.filter(|_| known.is_some_and(|status| status < TaskStatus::Done)).map(|id| (item, id)),
                    );
                }
            }
            Err(not_done) => {
                if let Some(status) = status_of(not_done.end) {
                    let id = item_id(root, items, item);
                    let index = received.outcome.index.map(|i| i + u64::from(item - items.from));
                    let end = ItemEnd { status, result: None, failure: not_done.failure.as_ref() };
                    rows.add_end(received, id, index, Some(root), end);
                }
            }
        }
    }
    // A row with as many results as before stays as it is: its results are not written again.
    if stored.row.is_none() || count(&batch.bitmap) > count(&stored.bitmap) {
        write_batch(transaction, received, items, &batch).await?;
    }
    finish_items(transaction, received, &finished, &batch).await?;
    rows.flush(transaction).await
}

/// The items that have a row of their own, because they did not succeed at first, with its status.
async fn items_apart(
    transaction: &mut dyn Transaction,
    subject: &TaskSubject,
    root: &str,
) -> Result<HashMap<String, TaskStatus>> {
    let items = Sql::new("SELECT id, status FROM tasks WHERE queue = ? AND root = ? AND kind = ?");
    let rows = transaction.rows(items.bind(&subject.queue).bind(root).bind(&subject.kind)).await?;
    rows.iter().map(|row| Ok((row.get("id")?, row.get("status")?))).collect()
}

async fn write_batch(
    transaction: &mut dyn Transaction,
    received: &ReceivedOutcome<'_>,
    items: Items,
    batch: &OpenBatch<'_>,
) -> Result<()> {
    let outcome = received.outcome;
    let done = count(&batch.bitmap);
    let first_index = outcome.index.and_then(|i| i64::try_from(i).ok()).map(|i| i - i64::from(items.from));
    let refs = (!batch.refs.is_empty()).then(|| to_json("ref", &batch.refs)).transpose()?;
    let base64 = (!batch.base64.is_empty()).then(|| to_json("base64", &batch.base64)).transpose()?;
    let write = Sql::new(
        "INSERT INTO tasks (queue, id, kind, job, idx, items, done, bitmap, status, attempt, result, ref, base64,
            worker, published_ms, started_ms, ended_ms, stored_ms, trace, continuation) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)
         ON CONFLICT (id, queue, kind) DO UPDATE SET
            items = excluded.items, done = excluded.done, bitmap = excluded.bitmap, status = excluded.status,
            attempt = CASE WHEN tasks.attempt > excluded.attempt THEN tasks.attempt ELSE excluded.attempt END,
            result = excluded.result, ref = excluded.ref, base64 = excluded.base64, worker = excluded.worker,
            started_ms = CASE WHEN tasks.started_ms < excluded.started_ms THEN tasks.started_ms ELSE excluded.started_ms END,
            ended_ms = excluded.ended_ms, stored_ms = excluded.stored_ms, trace = coalesce(tasks.trace, excluded.trace),
            continuation = coalesce(tasks.continuation, excluded.continuation)
         WHERE tasks.done < excluded.done OR tasks.items IS NULL",
    )
    .bind(&received.subject.queue)
    .bind(outcome.original_id())
    .bind(&received.subject.kind)
    .bind(received.subject.job.as_deref().map(|job| stored_job(job, outcome.original_id())))
    .bind(first_index)
    .bind(items.of)
    .bind(done)
    .bind(batch.bitmap.as_slice())
    .bind(if done == items.of { TaskStatus::Done } else { TaskStatus::Partial })
    .bind(outcome.attempt)
    .bind(to_json("result", &batch.results)?)
    .bind(refs)
    .bind(base64)
    .bind(received.worker)
    .bind(outcome.published_ms)
    .bind(outcome.started_ms)
    .bind(outcome.ended_ms)
    .bind(received.stored_ms)
    .bind(outcome.trace.as_deref())
    .bind(outcome.continuation.as_deref());
    transaction.run(write).await?;
    Ok(())
}

/// Marks items that had a row of their own, and that have a result now.
async fn finish_items(
    transaction: &mut dyn Transaction,
    received: &ReceivedOutcome<'_>,
    finished: &[(u32, String)],
    batch: &OpenBatch<'_>,
) -> Result<()> {
    for (item, id) in finished {
        let stored = batch.refs.get(item).map(PayloadRef::to_json);
        let result = batch.results.get(*item as usize).map(|result| result.get()).filter(|_| stored.is_none());
        let finish = Sql::new(
            "UPDATE tasks SET status = ?, done = 1, result = ?, ref = ?, base64 = ?,
                attempt = CASE WHEN attempt > ? THEN attempt ELSE ? END, worker = ?, started_ms = ?, ended_ms = ?,
                stored_ms = ? WHERE queue = ? AND kind = ? AND id = ? AND status < 3",
        );
        let attempt = received.outcome.attempt;
        let finish = finish.bind(TaskStatus::Done).bind(result).bind(stored);
        let finish = finish.bind(batch.base64.contains(item).then_some(OF_ONE));
        let finish = finish.bind(attempt).bind(attempt).bind(received.worker);
        let finish = finish.bind(received.outcome.started_ms).bind(received.outcome.ended_ms).bind(received.stored_ms);
        let TaskSubject { queue, kind, .. } = received.subject;
        transaction.run(finish.bind(queue).bind(kind).bind(id)).await?;
    }
    Ok(())
}
