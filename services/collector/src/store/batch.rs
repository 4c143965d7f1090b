//! The row of a root batch: a bitmap of the items that have a result, and the results. Merged under the store's one
//! writer. A bit that is set wins over anything that is said of its item later, unless it was cancelled before.

use std::collections::{BTreeMap, HashMap};

use millpond::outcome::{ItemResult, Items, id_of};
use millpond::payload::PayloadRef;
use serde_json::value::RawValue;

use super::cancels::stored_job;
use super::merge::{Ending, How, Rows, status_of};
use super::sql::{Sql, Transaction};
use super::{CANCELLED, DONE, PARTIAL};

/// The id of an item: of a batch of one too, where [`id_of`] means the batch itself.
pub(super) fn id_of_item(root: &str, items: Items, item: u32) -> String {
    match id_of(root, Some(Items { of: items.of, from: item, len: 1 })) {
        id if id == root => format!("{root}/{item}"),
        id => id,
    }
}

/// The row of a root batch.
#[derive(Default)]
pub(super) struct Batch {
    bitmap: Vec<u8>,
    results: Vec<Box<RawValue>>,
    /// Where results lie that are not among these, by item.
    refs: BTreeMap<u32, PayloadRef>,
}

impl Batch {
    pub(super) fn has(&self, item: u32) -> bool {
        self.bitmap.get(item as usize / 8).is_some_and(|byte| byte & (1 << (item % 8)) != 0)
    }

    fn set(&mut self, item: u32, kept: ItemResult<'_>) {
        if let (Some(byte), Some(place)) = (self.bitmap.get_mut(item as usize / 8), self.results.get_mut(item as usize))
        {
            *byte |= 1 << (item % 8);
            match kept {
                ItemResult::Inline(result) => *place = result.to_owned(),
                ItemResult::Stored(at) => drop(self.refs.insert(item, at.clone())),
            }
        }
    }

    fn done(&self) -> u32 {
        self.bitmap.iter().map(|byte| byte.count_ones()).sum()
    }
}

/// The batch as stored so far. None when its id stands for something else that may not change any more: a task that
/// has ended, or a batch of another size (somebody published two things under one id; the first stays).
pub(super) async fn read_batch(
    transaction: &mut dyn Transaction,
    queue: &str,
    root: &str,
    of: u32,
) -> anyhow::Result<Option<Batch>> {
    let known = Sql::new("SELECT items, bitmap, result, ref, status FROM tasks WHERE queue = ? AND id = ?");
    let found = transaction.rows(known.bind(queue).bind(root)).await?;
    let mut batch = Batch::default();
    if let Some(row) = found.first() {
        match row.int("items") {
            Some(items) if items == i64::from(of) => {
                batch.bitmap = row.blob("bitmap").to_vec();
                batch.results = serde_json::from_str(row.text("result").unwrap_or("[]"))?;
                if let Some(refs) = row.text("ref") {
                    batch.refs = serde_json::from_str(refs)?;
                }
            }
            None if row.int("status").is_some_and(|status| status < DONE) => {}
            _ => return Ok(None),
        }
    }
    batch.bitmap.resize((of as usize).div_ceil(8), 0);
    batch.results.resize_with(of as usize, || RawValue::NULL.to_owned());
    Ok(Some(batch))
}

/// Merges an outcome of some items into the row of their batch, and those that did not succeed into rows of their own.
pub(super) async fn merge_items<'a>(
    transaction: &mut dyn Transaction,
    rows: &mut Rows<'a>,
    ending: &Ending<'a>,
    items: Items,
) -> anyhow::Result<()> {
    // Rows of items that wait to be written must be seen by the look at those apart.
    rows.flush(transaction).await?;
    let (queue, root) = (ending.subject.queue.as_str(), ending.outcome.original_id());
    // One record has ended all of its job: no row is made or changed any more.
    if rows.is_cancelled(ending.subject.job.as_deref(), root, ending.outcome.published_ms) {
        return Ok(());
    }
    let Some(mut batch) = read_batch(transaction, queue, root, items.of).await? else {
        tracing::warn!(task_id = root, queue, "an id was used for two tasks or batches; the later one changes nothing");
        return Ok(());
    };
    // Most batches have none: then no id is asked for.
    let apart = items_apart(transaction, queue, root).await?;
    let mut finished: Vec<String> = Vec::new();
    for (item, end) in ending.outcome.ends() {
        match end {
            Ok(kept) if !batch.has(item) => {
                let id = (!apart.is_empty()).then(|| id_of_item(root, items, item));
                let known = id.as_ref().and_then(|id| apart.get(id)).copied();
                if known != Some(CANCELLED) {
                    batch.set(item, kept);
                    finished.extend(id.filter(|_| known.is_some_and(|status| status < DONE)));
                }
            }
            Err(not_done) if !batch.has(item) => {
                if let Some(status) = status_of(not_done.end) {
                    let id = id_of_item(root, items, item);
                    let index = ending.outcome.index.map(|i| i + u64::from(item - items.from));
                    let how = How { status, kept: None, failure: not_done.failure.as_ref() };
                    rows.push(ending, id, index, Some(root), how);
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
    write_batch(transaction, ending, items, &batch).await?;
    finish_items(transaction, ending, &finished, &batch).await?;
    rows.flush(transaction).await?;
    Ok(())
}

/// The items that have a row of their own, because they did not succeed at first, and its status.
async fn items_apart(transaction: &mut dyn Transaction, queue: &str, root: &str) -> sqlx::Result<HashMap<String, i64>> {
    let items = Sql::new("SELECT id, status FROM tasks WHERE queue = ? AND root = ?");
    let rows = transaction.rows(items.bind(queue).bind(root)).await?;
    Ok(rows.iter().map(|row| (row.string("id"), row.int("status").unwrap_or(0))).collect())
}

async fn write_batch(
    transaction: &mut dyn Transaction,
    ending: &Ending<'_>,
    items: Items,
    batch: &Batch,
) -> anyhow::Result<()> {
    let outcome = ending.outcome;
    let done = batch.done();
    let status = if done == items.of { DONE } else { PARTIAL };
    let first_index = outcome.index.and_then(|i| i64::try_from(i).ok()).map(|i| i - i64::from(items.from));
    let refs = (!batch.refs.is_empty()).then(|| serde_json::to_string(&batch.refs)).transpose()?;
    let write = Sql::new(
        "INSERT INTO tasks (queue, id, kind, job, idx, items, done, bitmap, status, attempt, result, ref,
            worker, published_ms, started_ms, ended_ms, stored_ms, trace, next) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)
         ON CONFLICT (queue, id) DO UPDATE SET
            items = excluded.items, done = excluded.done, bitmap = excluded.bitmap, status = excluded.status,
            attempt = CASE WHEN tasks.attempt > excluded.attempt THEN tasks.attempt ELSE excluded.attempt END,
            result = excluded.result, ref = excluded.ref, worker = excluded.worker,
            started_ms = CASE WHEN tasks.started_ms < excluded.started_ms THEN tasks.started_ms ELSE excluded.started_ms END,
            ended_ms = excluded.ended_ms, stored_ms = excluded.stored_ms, trace = coalesce(tasks.trace, excluded.trace),
            next = coalesce(tasks.next, excluded.next)
         WHERE tasks.done < excluded.done OR tasks.items IS NULL",
    )
    .bind(&ending.subject.queue)
    .bind(outcome.original_id())
    .bind(&ending.subject.kind)
    .bind(ending.subject.job.as_deref().map(|job| stored_job(job, outcome.original_id())))
    .bind(first_index)
    .bind(items.of)
    .bind(done)
    .bind(batch.bitmap.as_slice())
    .bind(status)
    .bind(outcome.attempt)
    .bind(serde_json::to_string(&batch.results)?)
    .bind(refs)
    .bind(ending.worker)
    .bind(outcome.published_ms)
    .bind(outcome.started_ms)
    .bind(outcome.ended_ms)
    .bind(ending.stored_ms)
    .bind(outcome.trace.as_deref())
    .bind(outcome.then.as_deref());
    transaction.run(write).await?;
    Ok(())
}

/// Items that had a row of their own and now have a result.
async fn finish_items(
    transaction: &mut dyn Transaction,
    ending: &Ending<'_>,
    finished: &[String],
    batch: &Batch,
) -> sqlx::Result<()> {
    let queue = &ending.subject.queue;
    for id in finished {
        let item = id.rsplit('/').next().and_then(|i| i.parse::<u32>().ok());
        let stored = item.and_then(|i| batch.refs.get(&i)).map(PayloadRef::to_json);
        let result = item.and_then(|i| batch.results.get(i as usize)).map(|r| r.get()).filter(|_| stored.is_none());
        let finish = Sql::new(
            "UPDATE tasks SET status = ?, done = 1, result = ?, ref = ?,
                attempt = CASE WHEN attempt > ? THEN attempt ELSE ? END, worker = ?, started_ms = ?, ended_ms = ?,
                stored_ms = ? WHERE queue = ? AND id = ? AND status < 3",
        );
        let attempt = ending.outcome.attempt;
        let finish = finish.bind(DONE).bind(result).bind(stored).bind(attempt).bind(attempt).bind(ending.worker);
        let finish = finish.bind(ending.outcome.started_ms).bind(ending.outcome.ended_ms).bind(ending.stored_ms);
        transaction.run(finish.bind(queue).bind(id)).await?;
    }
    Ok(())
}
