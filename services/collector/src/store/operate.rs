//! What an operator changes in the store: dead letters that run again, or are thrown away.

use millpond::bus::ctl::Replay;
use serde::{Deserialize, Serialize};

use super::sql::Sql;
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
        let found = Sql::new(
            "SELECT tasks.kind, dead.evidence, dead.headers, dead.payload FROM dead
             JOIN tasks ON tasks.queue = dead.queue AND tasks.id = dead.id
             WHERE dead.queue = ? AND dead.id = ? AND dead.attempt = ? AND dead.purged_ms IS NULL AND tasks.status = ?",
        );
        let found = found.bind(&letter.queue).bind(&letter.id).bind(letter.attempt).bind(DEAD);
        let rows = self.db.read(found).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(Replay {
            queue: letter.queue.clone(),
            kind: row.string("kind"),
            evidence: serde_json::from_str(row.text("evidence").unwrap_or_default())?,
            headers: serde_json::from_str(row.text("headers").unwrap_or_default())?,
            payload: data_encoding::BASE64.encode(row.blob("payload")),
        }))
    }

    /// Its next attempt is stored on the bus: the task waits again. A later letter, or an end, stays as it is.
    pub(crate) async fn replayed(&self, letter: &Letter) -> anyhow::Result<()> {
        let mut transaction = self.db.begin().await?;
        let waits = Sql::new(
            "UPDATE tasks SET status = ?, attempt = ? WHERE queue = ? AND id = ? AND status = ? AND attempt <= ?",
        );
        let waits = waits.bind(RETRYING).bind(i64::from(letter.attempt.max(1)) + 1);
        let waits = waits.bind(&letter.queue).bind(&letter.id).bind(DEAD).bind(letter.attempt);
        transaction.run(waits).await?;
        transaction.commit().await?;
        self.versions.all();
        Ok(())
    }

    /// Throws it away; false when it does not wait (any more). The task stays dead, with its evidence.
    pub(crate) async fn purge_letter(&self, letter: &Letter) -> anyhow::Result<bool> {
        let mut transaction = self.db.begin().await?;
        let purge = Sql::new(
            "UPDATE dead SET purged_ms = ?, payload = ?, headers = '[]'
             WHERE queue = ? AND id = ? AND attempt = ? AND purged_ms IS NULL AND EXISTS
                (SELECT 1 FROM tasks WHERE tasks.queue = dead.queue AND tasks.id = dead.id AND tasks.status = ?)",
        );
        let purge = purge.bind(millpond::now_ms()).bind(Vec::new()).bind(&letter.queue).bind(&letter.id);
        let purged = transaction.run(purge.bind(letter.attempt).bind(DEAD)).await?;
        transaction.commit().await?;
        self.versions.all();
        Ok(purged > 0)
    }
}
