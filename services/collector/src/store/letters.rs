//! Dead letters: which wait, and what an operator makes of them. What was run again keeps its history in `replays`: noted
//! before a producer is asked, settled once the bus has the next attempt, so that a death in between runs nothing twice.

use millpond::bus::ctl::Replay;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection, QueryBuilder, Row, Sqlite, SqliteConnection};

use super::read::{Page, TaskFilter};
use super::shown::{column, text};
use super::{DEAD, RETRYING, Store};

/// Rows that are read at once where a filter is finished here.
const SCAN_ROWS: u32 = 1000;

/// What to know of a dead letter that waits.
pub(super) const DEAD_COLUMNS: &str =
    "SELECT tasks.n, dead.queue, dead.id, tasks.kind, tasks.job, tasks.idx, dead.attempt,
    dead.reason, dead.evidence, dead.headers, dead.payload, dead.buried_ms";
/// Only what tells which it is, and why.
const LETTER_COLUMNS: &str = "SELECT tasks.n, dead.queue, dead.id, dead.attempt, dead.evidence";
/// Those that wait.
pub(super) const DEAD_WAITING: &str = " FROM dead JOIN tasks ON tasks.queue = dead.queue AND tasks.id = dead.id
    WHERE tasks.status = 2 AND dead.purged_ms IS NULL";

/// Names one dead letter: a later one of the same task is another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Letter {
    pub(crate) queue: String,
    pub(crate) id: String,
    pub(crate) attempt: u32,
}

/// A dead letter that is to run again, and how.
#[derive(Debug, Clone)]
pub(crate) struct Again {
    pub(crate) letter: Letter,
    pub(crate) reason: String,
    pub(crate) buried_ms: i64,
    /// Another queue, and the id of the task that it becomes there.
    pub(crate) moved: Option<(String, String)>,
    /// With other arguments.
    pub(crate) changed: bool,
}

impl Store {
    /// Everything that is needed to run it again; none when it does not wait (any more).
    pub(crate) async fn letter(&self, letter: &Letter) -> anyhow::Result<Option<Replay>> {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(DEAD_COLUMNS);
        query.push(DEAD_WAITING);
        query.push(" AND dead.queue = ").push_bind(&letter.queue);
        query.push(" AND dead.id = ").push_bind(&letter.id);
        query.push(" AND dead.attempt = ").push_bind(i64::from(letter.attempt));
        let Some(row) = query.build().fetch_optional(&self.readers).await? else { return Ok(None) };
        Ok(Some(Replay {
            queue: letter.queue.clone(),
            kind: row.try_get("kind")?,
            evidence: serde_json::from_str(row.try_get("evidence")?)?,
            headers: serde_json::from_str(row.try_get("headers")?)?,
            payload: data_encoding::BASE64.encode(row.try_get("payload")?),
            to_queue: None,
            arguments: None,
        }))
    }

    /// Rows of dead letters that wait, the newest first: a page, and one more where there are more.
    pub(super) async fn letter_rows(
        &self,
        columns: &str,
        filter: &TaskFilter,
        reason: Option<&str>,
        page: Page,
    ) -> anyhow::Result<Vec<SqliteRow>> {
        let filter = self.of_newest_epoch(filter).await?;
        let wanted = page.limit as usize + 1;
        let (mut rows, mut after) = (Vec::new(), page.after);
        let at_once = if filter.error.is_some() { SCAN_ROWS } else { page.limit + 1 };
        loop {
            let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(columns);
            query.push(DEAD_WAITING);
            push_filter(&mut query, &filter, reason);
            if let Some(after) = after {
                query.push(" AND tasks.n < ").push_bind(after);
            }
            query.push(" ORDER BY tasks.n DESC LIMIT ").push_bind(i64::from(at_once));
            let found = query.build().fetch_all(&self.readers).await?;
            let is_last = found.len() < at_once as usize;
            after = found.last().and_then(|row| column(row, "n"));
            rows.extend(found.into_iter().filter(|row| fits(row, &filter)));
            if is_last || rows.len() >= wanted {
                rows.truncate(wanted);
                return Ok(rows);
            }
        }
    }

    /// Dead letters that wait, the newest first, each with its number; and whether there are more behind them.
    pub(crate) async fn letters(
        &self,
        filter: &TaskFilter,
        reason: Option<&str>,
        page: Page,
    ) -> anyhow::Result<(Vec<(i64, Letter)>, bool)> {
        let rows = self.letter_rows(LETTER_COLUMNS, filter, reason, page).await?;
        let letters = rows.iter().take(page.limit as usize).map(|row| {
            let letter = Letter {
                queue: row.try_get("queue")?,
                id: row.try_get("id")?,
                attempt: u32::try_from(row.try_get::<i64, _>("attempt")?)?,
            };
            anyhow::Ok((row.try_get("n")?, letter))
        });
        Ok((letters.collect::<anyhow::Result<_>>()?, rows.len() > page.limit as usize))
    }

    /// How many wait that a filter has.
    pub(crate) async fn count_letters(&self, filter: &TaskFilter, reason: Option<&str>) -> anyhow::Result<u64> {
        if filter.error.is_some() {
            let (mut count, mut after) = (0, None);
            loop {
                let (letters, more) = self.letters(filter, reason, Page { limit: SCAN_ROWS, after }).await?;
                count += letters.len() as u64;
                after = letters.last().map(|(n, _)| *n);
                if !more {
                    return Ok(count);
                }
            }
        }
        let filter = self.of_newest_epoch(filter).await?;
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new("SELECT count(*)");
        query.push(DEAD_WAITING);
        push_filter(&mut query, &filter, reason);
        let count: i64 = query.build_query_scalar().fetch_one(&self.readers).await?;
        Ok(u64::try_from(count)?)
    }

    /// Notes that these are to run again, before anybody is asked. Of each: how it was to run where that was noted before
    /// and its end is not known.
    pub(crate) async fn note_replays(&self, all: &[Again], by: &str) -> anyhow::Result<Vec<Option<Again>>> {
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin().await?;
        let mut before = Vec::with_capacity(all.len());
        for again in all {
            let noted = noted(&mut transaction, again).await?;
            if noted.is_none() {
                note(&mut transaction, again, by).await?;
            }
            before.push(noted);
        }
        transaction.commit().await?;
        Ok(before)
    }

    /// Notes these instead of what was noted of the same letters before: the bus has nothing of that.
    pub(crate) async fn note_replays_anew(&self, all: &[Again], by: &str) -> anyhow::Result<()> {
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin().await?;
        for again in all {
            forget(&mut transaction, &again.letter).await?;
            note(&mut transaction, again, by).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Nobody was asked: as if these had never been noted.
    pub(crate) async fn forget_replays(&self, letters: &[Letter]) -> anyhow::Result<()> {
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin().await?;
        for letter in letters {
            forget(&mut transaction, letter).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// The bus has these: a task whose next attempt that is waits again; one that was moved stays dead, and its letter no
    /// longer waits. A later letter, or an end, stays as it is.
    pub(crate) async fn settle_replays(&self, all: &[Again]) -> anyhow::Result<()> {
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin().await?;
        for again in all {
            settle(&mut transaction, again).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Throws letters away; of each whether it waited. The tasks stay dead, with their attempts.
    pub(crate) async fn purge_letters(&self, letters: &[Letter]) -> anyhow::Result<Vec<bool>> {
        let mut writer = self.writer.lock().await;
        let mut transaction = writer.begin().await?;
        let mut purged = Vec::with_capacity(letters.len());
        for letter in letters {
            purged.push(take_away(&mut transaction, letter).await?);
        }
        transaction.commit().await?;
        Ok(purged)
    }

    /// The dead letters that a task has left behind because it was run again, the oldest first.
    pub(super) async fn replays(&self, queue: &str, id: &str) -> sqlx::Result<Vec<Value>> {
        let rows = sqlx::query(
            "SELECT attempt, reason, buried_ms, by, at_ms, to_queue, new_id, changed FROM replays
             WHERE queue = ? AND id = ? AND settled_ms IS NOT NULL ORDER BY attempt",
        )
        .bind(queue)
        .bind(id)
        .fetch_all(&self.readers)
        .await?;
        let shown = rows.iter().map(|row| {
            let mut replay = json!({
                "attempt": column::<i64>(row, "attempt"), "reason": text(row, "reason"),
                "buried_ms": column::<i64>(row, "buried_ms"), "by": text(row, "by"),
                "at_ms": column::<i64>(row, "at_ms"), "arguments": column::<i64>(row, "changed") == Some(1),
            });
            if let (Some(fields), Some(to), Some(id)) =
                (replay.as_object_mut(), text(row, "to_queue"), text(row, "new_id"))
            {
                fields.insert("to_queue".to_owned(), json!(to));
                fields.insert("new_id".to_owned(), json!(id));
            }
            replay
        });
        Ok(shown.collect())
    }

    /// The dead letter of another queue that a task was made of.
    pub(super) async fn replay_of(&self, queue: &str, id: &str) -> sqlx::Result<Value> {
        let row = sqlx::query("SELECT queue, id, attempt FROM replays WHERE new_id = ? AND to_queue = ?")
            .bind(id)
            .bind(queue)
            .fetch_optional(&self.readers)
            .await?;
        Ok(row.map_or(Value::Null, |row| {
            json!({ "queue": text(&row, "queue"), "id": text(&row, "id"), "attempt": column::<i64>(&row, "attempt") })
        }))
    }
}

/// The conditions of a filter, each with its value bound.
fn push_filter(query: &mut QueryBuilder<Sqlite>, filter: &TaskFilter, reason: Option<&str>) {
    for (condition, value) in [
        (" AND tasks.job = ", filter.job.as_deref()),
        (" AND dead.queue = ", filter.queue.as_deref()),
        (" AND tasks.kind = ", filter.kind.as_deref()),
        (" AND dead.reason = ", reason),
        (" AND tasks.worker = ", filter.worker.as_deref()),
    ] {
        if let Some(value) = value {
            query.push(condition).push_bind(value.to_owned());
        }
    }
    for (condition, ms) in [(" AND dead.buried_ms >= ", filter.since_ms), (" AND dead.buried_ms < ", filter.until_ms)] {
        if let Some(ms) = ms {
            query.push(condition).push_bind(ms);
        }
    }
    // Somewhere in the evidence; whether that is in the failure is looked at with the row.
    if let Some(error) = &filter.error {
        let quoted = serde_json::to_string(error).unwrap_or_default();
        let inside = quoted.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or_default();
        let escaped = inside.replace('!', "!!").replace('%', "!%").replace('_', "!_");
        query.push(" AND lower(dead.evidence) LIKE lower(").push_bind(format!("%{escaped}%")).push(") ESCAPE '!'");
    }
}

/// Whether the text is in the type or the message of the failure, whatever the case of its ASCII letters.
fn fits(row: &SqliteRow, filter: &TaskFilter) -> bool {
    let Some(error) = &filter.error else { return true };
    let evidence = text(row, "evidence").and_then(|e| serde_json::from_str::<Value>(&e).ok()).unwrap_or_default();
    let wanted = error.to_ascii_lowercase();
    ["type", "message"].iter().any(|field| {
        let said = evidence.get("failure").and_then(|failure| failure.get(*field)).and_then(Value::as_str);
        said.is_some_and(|said| said.to_ascii_lowercase().contains(&wanted))
    })
}

/// How it was to run, where that was noted and its end is not known.
async fn noted(connection: &mut SqliteConnection, again: &Again) -> anyhow::Result<Option<Again>> {
    let found = sqlx::query(
        "SELECT to_queue, new_id, changed FROM replays
         WHERE queue = ? AND id = ? AND attempt = ? AND settled_ms IS NULL",
    )
    .bind(&again.letter.queue)
    .bind(&again.letter.id)
    .bind(i64::from(again.letter.attempt))
    .fetch_optional(connection)
    .await?;
    Ok(found.map(|row| Again {
        moved: text(&row, "to_queue").zip(text(&row, "new_id")),
        changed: column::<i64>(&row, "changed") == Some(1),
        ..again.clone()
    }))
}

async fn note(connection: &mut SqliteConnection, again: &Again, by: &str) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO replays (queue, id, attempt, reason, buried_ms, by, at_ms, to_queue, new_id, changed)
         VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
    )
    .bind(&again.letter.queue)
    .bind(&again.letter.id)
    .bind(i64::from(again.letter.attempt))
    .bind(&again.reason)
    .bind(again.buried_ms)
    .bind(by)
    .bind(millpond::now_ms())
    .bind(again.moved.as_ref().map(|(queue, _)| queue))
    .bind(again.moved.as_ref().map(|(_, id)| id))
    .bind(i64::from(again.changed))
    .execute(connection)
    .await?;
    Ok(())
}

async fn forget(connection: &mut SqliteConnection, letter: &Letter) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM replays WHERE queue = ? AND id = ? AND attempt = ? AND settled_ms IS NULL")
        .bind(&letter.queue)
        .bind(&letter.id)
        .bind(i64::from(letter.attempt))
        .execute(connection)
        .await?;
    Ok(())
}

async fn settle(connection: &mut SqliteConnection, again: &Again) -> sqlx::Result<()> {
    let Again { letter, moved, .. } = again;
    sqlx::query("UPDATE replays SET settled_ms = ? WHERE queue = ? AND id = ? AND attempt = ?")
        .bind(millpond::now_ms())
        .bind(&letter.queue)
        .bind(&letter.id)
        .bind(i64::from(letter.attempt))
        .execute(&mut *connection)
        .await?;
    if moved.is_some() {
        take_away(connection, letter).await?;
        return Ok(());
    }
    sqlx::query("UPDATE tasks SET status = ?, attempt = ? WHERE queue = ? AND id = ? AND status = ? AND attempt <= ?")
        .bind(RETRYING)
        .bind(i64::from(letter.attempt.max(1)) + 1)
        .bind(&letter.queue)
        .bind(&letter.id)
        .bind(DEAD)
        .bind(i64::from(letter.attempt))
        .execute(connection)
        .await?;
    Ok(())
}

/// It waits no longer, and its payload is gone; false when it did not wait.
async fn take_away(connection: &mut SqliteConnection, letter: &Letter) -> sqlx::Result<bool> {
    let taken = sqlx::query(
        "UPDATE dead SET purged_ms = ?, payload = ?, headers = '[]'
         WHERE queue = ? AND id = ? AND attempt = ? AND purged_ms IS NULL AND EXISTS
            (SELECT 1 FROM tasks WHERE tasks.queue = dead.queue AND tasks.id = dead.id AND tasks.status = ?)",
    )
    .bind(millpond::now_ms())
    .bind(Vec::new())
    .bind(&letter.queue)
    .bind(&letter.id)
    .bind(i64::from(letter.attempt))
    .bind(DEAD)
    .execute(connection)
    .await?;
    Ok(taken.rows_affected() > 0)
}
