//! Dead letters that wait for a person: their lists, and how one is thrown away.

use millpond_api::dead_letters::{DeadLetterDetails, DeadLetterId, DeadLetterQuery, DeadLetterRow};
use millpond_api::tasks::TaskStatus;

use super::Store;
use super::error::Result;
use super::list::{ListCursor, Page, paged};
use super::rows::{listed_dead_letter, whole_dead_letter};
use super::sql::{Row, Sql, Transaction};
use super::tasks::push_place;

/// What is shown of a dead letter.
pub(super) const DEAD_LETTER_COLUMNS: &str =
    "SELECT tasks.n, dead_letters.queue, dead_letters.id, tasks.kind, tasks.job, tasks.idx, dead_letters.attempt,
    dead_letters.reason, dead_letters.evidence, dead_letters.headers, dead_letters.payload, dead_letters.dead_lettered_ms";
/// What names a dead letter.
const ID_COLUMNS: &str = "SELECT tasks.n, dead_letters.queue, dead_letters.kind, dead_letters.id, dead_letters.attempt";
/// Those that wait.
pub(super) const WAITING: &str = " FROM dead_letters JOIN tasks
        ON tasks.queue = dead_letters.queue AND tasks.id = dead_letters.id AND tasks.kind = dead_letters.kind
    WHERE tasks.status = 2 AND tasks.status <> 3 AND dead_letters.purged_ms IS NULL";

impl Store {
    /// Dead letters that wait, the newest first.
    pub(crate) async fn dead_letters(
        &self,
        query: &DeadLetterQuery,
        page: Page,
    ) -> Result<(Vec<DeadLetterRow>, Option<ListCursor>)> {
        paged(&self.dead_letter_rows(DEAD_LETTER_COLUMNS, query, page).await?, page.limit, listed_dead_letter)
    }

    /// The dead letters with this id, with their evidence: none, one, or one of each queue and kind that has it.
    pub(crate) async fn dead_letter(
        &self,
        id: &str,
        queue: Option<&str>,
        kind: Option<&str>,
    ) -> Result<Vec<DeadLetterDetails>> {
        let mut sql = Sql::new(format!("{DEAD_LETTER_COLUMNS}{WAITING}"));
        sql.push(" AND tasks.id = ?", id);
        push_place(&mut sql, queue, kind);
        sql.push_text(" ORDER BY tasks.queue, tasks.kind");
        self.db.read(sql).await?.iter().map(whole_dead_letter).collect()
    }

    /// The kinds of which a dead letter of this queue, id and attempt waits.
    pub(crate) async fn kinds_of_dead_letter(&self, id: &DeadLetterId) -> Result<Vec<String>> {
        let mut sql = Sql::new(format!("{ID_COLUMNS}{WAITING}"));
        sql.push(" AND tasks.queue = ?", &id.queue);
        sql.push(" AND tasks.id = ?", &id.id);
        sql.push(" AND dead_letters.attempt = ? ORDER BY tasks.kind", id.attempt);
        self.db.read(sql).await?.iter().map(|row| row.get("kind")).collect()
    }

    /// The names of dead letters that wait, the newest first, each with the cursor behind it; and whether there are more.
    pub(crate) async fn dead_letter_ids(
        &self,
        query: &DeadLetterQuery,
        page: Page,
    ) -> Result<(Vec<(ListCursor, DeadLetterId)>, bool)> {
        let rows = self.dead_letter_rows(ID_COLUMNS, query, page).await?;
        let ids = rows
            .iter()
            .take(page.limit as usize)
            .map(|row| Ok((ListCursor { n: row.get("n")?, at_ms: None }, dead_letter_id(row)?)));
        Ok((ids.collect::<Result<_>>()?, rows.len() > page.limit as usize))
    }

    /// How many dead letters wait that a query finds.
    pub(crate) async fn count_dead_letters(&self, query: &DeadLetterQuery) -> Result<u64> {
        let mut sql = Sql::new(format!("SELECT count(*) AS number{WAITING}"));
        self.push_conditions(&mut sql, query).await?;
        self.db.read(sql).await?.first().map_or(Ok(0), |row| row.get("number"))
    }

    /// Rows of dead letters that wait, the newest first: a page, and one more where there are more.
    async fn dead_letter_rows(&self, columns: &str, query: &DeadLetterQuery, page: Page) -> Result<Vec<Row>> {
        let mut sql = Sql::new(format!("{columns}{WAITING}"));
        self.push_conditions(&mut sql, query).await?;
        if let Some(after) = page.after {
            sql.push(" AND tasks.n < ?", after.n);
        }
        sql.push(" ORDER BY tasks.n DESC LIMIT ?", i64::from(page.limit) + 1);
        self.db.read(sql).await
    }

    async fn push_conditions(&self, sql: &mut Sql<'_>, query: &DeadLetterQuery) -> Result<()> {
        let job = self.newest_epoch_of(query.job.as_deref()).await?;
        for (condition, value) in [
            (" AND tasks.job = ?", &job),
            (" AND dead_letters.queue = ?", &query.queue),
            (" AND tasks.kind = ?", &query.kind),
            (" AND dead_letters.reason = ?", &query.reason),
            (" AND tasks.worker = ?", &query.worker),
        ] {
            if let Some(value) = value {
                sql.push(condition, value.to_owned());
            }
        }
        for (condition, ms) in [
            (" AND dead_letters.dead_lettered_ms >= ?", query.since),
            (" AND dead_letters.dead_lettered_ms < ?", query.until),
        ] {
            if let Some(ms) = ms {
                sql.push(condition, ms);
            }
        }
        if let Some(text) = query.error.as_ref().filter(|text| !text.is_empty()) {
            self.db.error_contains(sql, text);
        }
        Ok(())
    }

    /// Throws dead letters away; of each whether it waited. The tasks stay dead, with their attempts.
    pub(crate) async fn purge_dead_letters(&self, ids: &[DeadLetterId]) -> Result<Vec<bool>> {
        let mut transaction = self.db.begin().await?;
        let mut purged = Vec::with_capacity(ids.len());
        for id in ids {
            purged.push(remove_payload(&mut *transaction, id).await?);
        }
        transaction.commit().await?;
        self.versions.all();
        Ok(purged)
    }
}

/// Removes the arguments of a dead letter, which waits no longer then; false when it did not wait.
pub(super) async fn remove_payload(transaction: &mut dyn Transaction, id: &DeadLetterId) -> Result<bool> {
    let remove = Sql::new(
        "UPDATE dead_letters SET purged_ms = ?, payload = ?, headers = '[]'
         WHERE queue = ? AND kind = ? AND id = ? AND attempt = ? AND purged_ms IS NULL AND EXISTS
            (SELECT 1 FROM tasks WHERE tasks.queue = dead_letters.queue AND tasks.id = dead_letters.id
                AND tasks.kind = dead_letters.kind AND tasks.status = ?)",
    );
    let remove = remove.bind(millpond::now_ms()).bind(Vec::new());
    let remove = remove.bind(&id.queue).bind(id.kind.as_deref()).bind(&id.id);
    Ok(transaction.run(remove.bind(id.attempt).bind(TaskStatus::Dead)).await? > 0)
}

/// What names the dead letter of a row.
pub(super) fn dead_letter_id(row: &Row) -> Result<DeadLetterId> {
    Ok(DeadLetterId {
        queue: row.get("queue")?,
        kind: Some(row.get("kind")?),
        id: row.get("id")?,
        attempt: row.get("attempt")?,
    })
}
