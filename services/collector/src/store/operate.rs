//! What an operator changes in the store: dead letters that run again, or are thrown away.

use millpond::bus::ctl::Replay;
use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::{DEAD, RETRYING, Store};

/// Names one dead letter: a later one of the same task is another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Letter {
    pub(crate) queue: String,
    pub(crate) id: String,
    pub(crate) attempt: u32,
}

impl Store {
    /// Everything that is needed to run it again; none when it does not wait (any more).
    pub(crate) async fn letter(&self, letter: &Letter) -> anyhow::Result<Option<Replay>> {
        let found = sqlx::query(
            "SELECT tasks.kind, dead.evidence, dead.headers, dead.payload FROM dead
             JOIN tasks ON tasks.queue = dead.queue AND tasks.id = dead.id
             WHERE dead.queue = ? AND dead.id = ? AND dead.attempt = ? AND dead.purged_ms IS NULL AND tasks.status = ?",
        )
        .bind(&letter.queue)
        .bind(&letter.id)
        .bind(i64::from(letter.attempt))
        .bind(DEAD)
        .fetch_optional(&self.readers)
        .await?;
        let Some(row) = found else { return Ok(None) };
        Ok(Some(Replay {
            queue: letter.queue.clone(),
            kind: row.try_get("kind")?,
            evidence: serde_json::from_str(row.try_get("evidence")?)?,
            headers: serde_json::from_str(row.try_get("headers")?)?,
            payload: data_encoding::BASE64.encode(row.try_get("payload")?),
        }))
    }

    /// Its next attempt is stored on the bus: the task waits again. A later letter, or an end, stays as it is.
    pub(crate) async fn replayed(&self, letter: &Letter) -> anyhow::Result<()> {
        let mut writer = self.writer.lock().await;
        sqlx::query(
            "UPDATE tasks SET status = ?, attempt = ? WHERE queue = ? AND id = ? AND status = ? AND attempt <= ?",
        )
        .bind(RETRYING)
        .bind(i64::from(letter.attempt.max(1)) + 1)
        .bind(&letter.queue)
        .bind(&letter.id)
        .bind(DEAD)
        .bind(i64::from(letter.attempt))
        .execute(&mut *writer)
        .await?;
        Ok(())
    }

    /// Throws it away; false when it does not wait (any more). The task stays dead, with its evidence.
    pub(crate) async fn purge_letter(&self, letter: &Letter) -> anyhow::Result<bool> {
        let mut writer = self.writer.lock().await;
        let purged = sqlx::query(
            "UPDATE dead SET purged_ms = ?, payload = x'', headers = '[]'
             WHERE queue = ? AND id = ? AND attempt = ? AND purged_ms IS NULL AND EXISTS
                (SELECT 1 FROM tasks WHERE tasks.queue = dead.queue AND tasks.id = dead.id AND tasks.status = ?)",
        )
        .bind(millpond::now_ms())
        .bind(&letter.queue)
        .bind(&letter.id)
        .bind(i64::from(letter.attempt))
        .bind(DEAD)
        .execute(&mut *writer)
        .await?;
        Ok(purged.rows_affected() > 0)
    }
}
