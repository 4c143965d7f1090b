//! Dead letters: which wait, and what an operator makes of them. What was run again keeps its history in `replays`: noted
//! before a producer is asked, settled once the bus has the next attempt, so that a death in between runs nothing twice.

use millpond::bus::operate::control::Replay;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::read::{Page, TaskFilter};
use super::sql::{Row, Sql, Transaction};
use super::{DEAD, RETRYING, Store};

/// What to know of a dead letter that waits.
pub(super) const DEAD_COLUMNS: &str =
    "SELECT tasks.n, dead.queue, dead.id, tasks.kind, tasks.job, tasks.idx, dead.attempt,
    dead.reason, dead.evidence, dead.headers, dead.payload, dead.dead_ms";
/// Only what tells which it is, and why.
const LETTER_COLUMNS: &str = "SELECT tasks.n, dead.queue, dead.id, dead.attempt";
/// Those that wait.
pub(super) const DEAD_WAITING: &str = " FROM dead JOIN tasks ON tasks.queue = dead.queue AND tasks.id = dead.id
    WHERE tasks.status = 2 AND tasks.status <> 3 AND dead.purged_ms IS NULL";

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
        let mut sql = Sql::new(format!("{DEAD_COLUMNS}{DEAD_WAITING}"));
        sql.push(" AND dead.queue = ?", &letter.queue);
        sql.push(" AND dead.id = ?", &letter.id);
        sql.push(" AND dead.attempt = ?", letter.attempt);
        let rows = self.db.read(sql).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(Replay {
            queue: letter.queue.clone(),
            kind: row.string("kind"),
            evidence: serde_json::from_str(row.text("evidence").unwrap_or_default())?,
            headers: serde_json::from_str(row.text("headers").unwrap_or_default())?,
            payload: data_encoding::BASE64.encode(row.blob("payload")),
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
    ) -> anyhow::Result<Vec<Row>> {
        let mut sql = Sql::new(format!("{columns}{DEAD_WAITING}"));
        self.push_filter(&mut sql, filter, reason).await?;
        if let Some(after) = page.after {
            sql.push(" AND tasks.n < ?", after.n);
        }
        sql.push(" ORDER BY tasks.n DESC LIMIT ?", i64::from(page.limit) + 1);
        Ok(self.db.read(sql).await?)
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
            let attempt = u32::try_from(row.count("attempt")).unwrap_or(u32::MAX);
            (row.int("n").unwrap_or(0), Letter { queue: row.string("queue"), id: row.string("id"), attempt })
        });
        Ok((letters.collect(), rows.len() > page.limit as usize))
    }

    /// How many wait that a filter has.
    pub(crate) async fn count_letters(&self, filter: &TaskFilter, reason: Option<&str>) -> anyhow::Result<u64> {
        let mut sql = Sql::new(format!("SELECT count(*) AS number{DEAD_WAITING}"));
        self.push_filter(&mut sql, filter, reason).await?;
        Ok(self.db.read(sql).await?.first().map_or(0, |row| row.count("number")))
    }

    /// The conditions of a filter.
    async fn push_filter(&self, sql: &mut Sql<'_>, filter: &TaskFilter, reason: Option<&str>) -> anyhow::Result<()> {
        let job = self.job_of(filter).await?;
        for (condition, value) in [
            (" AND tasks.job = ?", job.as_deref()),
            (" AND dead.queue = ?", filter.queue.as_deref()),
            (" AND tasks.kind = ?", filter.kind.as_deref()),
            (" AND dead.reason = ?", reason),
            (" AND tasks.worker = ?", filter.worker.as_deref()),
        ] {
            if let Some(value) = value {
                sql.push(condition, value.to_owned());
            }
        }
        for (condition, ms) in [(" AND dead.dead_ms >= ?", filter.since_ms), (" AND dead.dead_ms < ?", filter.until_ms)]
        {
            if let Some(ms) = ms {
                sql.push(condition, ms);
            }
        }
        if let Some(text) = &filter.error {
            self.db.error_contains(sql, text);
        }
        Ok(())
    }

    /// Notes that these are to run again, before anybody is asked. Of each: how it was to run where that was noted before
    /// and its end is not known.
    pub(crate) async fn note_replays(&self, all: &[Again], by: &str) -> anyhow::Result<Vec<Option<Again>>> {
        let mut transaction = self.db.begin().await?;
        let mut before = Vec::with_capacity(all.len());
        for again in all {
            let noted = noted(&mut *transaction, again).await?;
            if noted.is_none() {
                note(&mut *transaction, again, by).await?;
            }
            before.push(noted);
        }
        transaction.commit().await?;
        Ok(before)
    }

    /// Notes these instead of what was noted of the same letters before: the bus has nothing of that.
    pub(crate) async fn note_replays_anew(&self, all: &[Again], by: &str) -> anyhow::Result<()> {
        let mut transaction = self.db.begin().await?;
        for again in all {
            forget(&mut *transaction, &again.letter).await?;
            note(&mut *transaction, again, by).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Nobody was asked: as if these had never been noted.
    pub(crate) async fn forget_replays(&self, letters: &[Letter]) -> anyhow::Result<()> {
        let mut transaction = self.db.begin().await?;
        for letter in letters {
            forget(&mut *transaction, letter).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// The bus has these: a task whose next attempt that is waits again; one that was moved stays dead, and its letter no
    /// longer waits. A later letter, or an end, stays as it is.
    pub(crate) async fn settle_replays(&self, all: &[Again]) -> anyhow::Result<()> {
        let mut transaction = self.db.begin().await?;
        for again in all {
            settle(&mut *transaction, again).await?;
        }
        transaction.commit().await?;
        self.versions.all();
        Ok(())
    }

    /// Throws letters away; of each whether it waited. The tasks stay dead, with their attempts.
    pub(crate) async fn purge_letters(&self, letters: &[Letter]) -> anyhow::Result<Vec<bool>> {
        let mut transaction = self.db.begin().await?;
        let mut purged = Vec::with_capacity(letters.len());
        for letter in letters {
            purged.push(take_away(&mut *transaction, letter).await?);
        }
        transaction.commit().await?;
        self.versions.all();
        Ok(purged)
    }

    /// The dead letters that a task has left behind because it was run again, the oldest first.
    pub(super) async fn replays(&self, queue: &str, id: &str) -> sqlx::Result<Vec<Value>> {
        let replays = Sql::new(
            "SELECT attempt, reason, buried_ms, by, at_ms, to_queue, new_id, changed FROM replays
             WHERE queue = ? AND id = ? AND settled_ms IS NOT NULL ORDER BY attempt",
        );
        let rows = self.db.read(replays.bind(queue).bind(id)).await?;
        let shown = rows.iter().map(|row| {
            let mut replay = json!({
                "attempt": row.int("attempt"), "reason": row.text("reason"), "buried_ms": row.int("buried_ms"),
                "by": row.text("by"), "at_ms": row.int("at_ms"), "arguments": row.int("changed") == Some(1),
            });
            if let (Some(fields), Some(to), Some(id)) =
                (replay.as_object_mut(), row.text("to_queue"), row.text("new_id"))
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
        let made = Sql::new("SELECT queue, id, attempt FROM replays WHERE new_id = ? AND to_queue = ?");
        let rows = self.db.read(made.bind(id).bind(queue)).await?;
        Ok(rows.first().map_or(
            Value::Null,
            |row| json!({ "queue": row.text("queue"), "id": row.text("id"), "attempt": row.int("attempt") }),
        ))
    }
}

/// How it was to run, where that was noted and its end is not known.
async fn noted(transaction: &mut dyn Transaction, again: &Again) -> anyhow::Result<Option<Again>> {
    let noted = Sql::new(
        "SELECT to_queue, new_id, changed FROM replays
         WHERE queue = ? AND id = ? AND attempt = ? AND settled_ms IS NULL",
    );
    let Letter { queue, id, attempt } = &again.letter;
    let rows = transaction.rows(noted.bind(queue).bind(id).bind(*attempt)).await?;
    Ok(rows.first().map(|row| Again {
        moved: row.text("to_queue").map(str::to_owned).zip(row.text("new_id").map(str::to_owned)),
        changed: row.int("changed") == Some(1),
        ..again.clone()
    }))
}

async fn note(transaction: &mut dyn Transaction, again: &Again, by: &str) -> sqlx::Result<()> {
    let note = Sql::new(
        "INSERT INTO replays (queue, id, attempt, reason, buried_ms, by, at_ms, to_queue, new_id, changed)
         VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (queue, id, attempt) DO NOTHING",
    );
    let Letter { queue, id, attempt } = &again.letter;
    let note = note.bind(queue).bind(id).bind(*attempt).bind(&again.reason).bind(again.buried_ms).bind(by);
    let note = note.bind(millpond::now_ms()).bind(again.moved.as_ref().map(|(queue, _)| queue.as_str()));
    let note = note.bind(again.moved.as_ref().map(|(_, id)| id.as_str())).bind(again.changed);
    transaction.run(note).await?;
    Ok(())
}

async fn forget(transaction: &mut dyn Transaction, letter: &Letter) -> sqlx::Result<()> {
    let gone = Sql::new("DELETE FROM replays WHERE queue = ? AND id = ? AND attempt = ? AND settled_ms IS NULL");
    transaction.run(gone.bind(&letter.queue).bind(&letter.id).bind(letter.attempt)).await?;
    Ok(())
}

async fn settle(transaction: &mut dyn Transaction, again: &Again) -> sqlx::Result<()> {
    let Again { letter, moved, .. } = again;
    let settled = Sql::new("UPDATE replays SET settled_ms = ? WHERE queue = ? AND id = ? AND attempt = ?");
    let settled = settled.bind(millpond::now_ms()).bind(&letter.queue).bind(&letter.id).bind(letter.attempt);
    transaction.run(settled).await?;
    if moved.is_some() {
        take_away(transaction, letter).await?;
        return Ok(());
    }
    let waits =
        Sql::new("UPDATE tasks SET status = ?, attempt = ? WHERE queue = ? AND id = ? AND status = ? AND attempt <= ?");
    let waits = waits.bind(RETRYING).bind(i64::from(letter.attempt.max(1)) + 1);
    transaction.run(waits.bind(&letter.queue).bind(&letter.id).bind(DEAD).bind(letter.attempt)).await?;
    Ok(())
}

/// It waits no longer, and its payload is gone; false when it did not wait.
async fn take_away(transaction: &mut dyn Transaction, letter: &Letter) -> sqlx::Result<bool> {
    let take = Sql::new(
        "UPDATE dead SET purged_ms = ?, payload = ?, headers = '[]'
         WHERE queue = ? AND id = ? AND attempt = ? AND purged_ms IS NULL AND EXISTS
            (SELECT 1 FROM tasks WHERE tasks.queue = dead.queue AND tasks.id = dead.id AND tasks.status = ?)",
    );
    let take = take.bind(millpond::now_ms()).bind(Vec::new()).bind(&letter.queue).bind(&letter.id);
    Ok(transaction.run(take.bind(letter.attempt).bind(DEAD)).await? > 0)
}
