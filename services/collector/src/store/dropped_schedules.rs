//! Schedules that the server has dropped, and when each was stored: it takes none of them up again by itself, and does not tell. It
//! outlives the collector.

use std::collections::BTreeMap;

use super::Store;
use super::error::Result;
use super::sql::Sql;

impl Store {
    /// All of them, with Unix times in milliseconds.
    pub(crate) async fn dropped_schedules(&self) -> Result<BTreeMap<String, i64>> {
        let rows = self.db.read(Sql::new("SELECT name, stored_ms FROM dropped_schedules")).await?;
        rows.iter().map(|row| Ok((row.get("name")?, row.get("stored_ms")?))).collect()
    }

    /// Notes these in the place of those that are noted.
    pub(crate) async fn note_dropped_schedules(&self, dropped: &BTreeMap<String, i64>) -> Result<()> {
        let mut transaction = self.db.begin().await?;
        transaction.run(Sql::new("DELETE FROM dropped_schedules")).await?;
        for (name, stored_ms) in dropped {
            let note = Sql::new("INSERT INTO dropped_schedules (name, stored_ms) VALUES (?, ?)");
            transaction.run(note.bind(name.as_str()).bind(*stored_ms)).await?;
        }
        transaction.commit().await
    }
}
