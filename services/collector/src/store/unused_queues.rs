//! Queues that have nothing and that nobody uses, and since when that was seen. It outlives the collector, which may be started
//! again more often than such a queue is removed.

use std::collections::HashMap;

use super::Store;
use super::error::Result;
use super::sql::Sql;

impl Store {
    /// All of them, with Unix times in milliseconds.
    pub(crate) async fn unused_queues(&self) -> Result<HashMap<String, i64>> {
        let rows = self.db.read(Sql::new("SELECT queue, since_ms FROM unused_queues")).await?;
        rows.iter().map(|row| Ok((row.get("queue")?, row.get("since_ms")?))).collect()
    }

    /// Notes queues that are unused from now on, and forgets others, which are used again or gone.
    pub(crate) async fn note_unused_queues(&self, unused: &[&str], others: &[&str], now_ms: i64) -> Result<()> {
        if unused.is_empty() && others.is_empty() {
            return Ok(());
        }
        let mut transaction = self.db.begin().await?;
        for queue in unused {
            let note =
                Sql::new("INSERT INTO unused_queues (queue, since_ms) VALUES (?, ?) ON CONFLICT (queue) DO NOTHING");
            transaction.run(note.bind(*queue).bind(now_ms)).await?;
        }
        for queue in others {
            transaction.run(Sql::new("DELETE FROM unused_queues WHERE queue = ?").bind(*queue)).await?;
        }
        transaction.commit().await
    }
}
