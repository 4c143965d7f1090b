//! Dead letters that run again. What is to run is planned here before a producer is requested to publish it, and completed
//! once the bus has the next attempt, so that a death in between runs nothing twice. Completed replays are the history of
//! their task.

use millpond::bus::operate::control::ReplayRequest;
use millpond_api::dead_letters::DeadLetterId;
use millpond_api::tasks::{Replay, TaskRow, TaskStatus};

use super::Store;
use super::dead_letters::{DEAD_LETTER_COLUMNS, WAITING, dead_letter_id, remove_payload};
use super::error::Result;
use super::sql::{Row, Sql, Transaction};

/// A dead letter that is to run again, and how.
#[derive(Debug, Clone)]
pub(crate) struct PlannedReplay {
    pub(crate) dead_letter: DeadLetterId,
    pub(crate) reason: String,
    pub(crate) dead_lettered_ms: i64,
    /// Another queue, and the id of the task that it becomes there.
    pub(crate) moved: Option<(String, String)>,
    /// Whether it runs with other arguments.
    pub(crate) new_arguments: bool,
}

impl Store {
    /// What a producer needs to run a dead letter again; none when it does not wait (any more).
    pub(crate) async fn replay_request(&self, id: &DeadLetterId) -> Result<Option<ReplayRequest>> {
        let mut sql = Sql::new(format!("{DEAD_LETTER_COLUMNS}{WAITING}"));
        sql.push(" AND tasks.queue = ?", &id.queue);
        sql.push(" AND tasks.kind = ?", id.kind.as_deref());
        sql.push(" AND tasks.id = ?", &id.id);
        sql.push(" AND dead_letters.attempt = ?", id.attempt);
        let rows = self.db.read(sql).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(ReplayRequest {
            queue: id.queue.clone(),
            kind: row.get("kind")?,
            evidence: row.json("evidence")?,
            headers: row.json("headers")?,
            payload: data_encoding::BASE64.encode(row.get("payload")?),
            to_queue: None,
            arguments: None,
        }))
    }

    /// Plans these replays. Of each: the plan that was made before and is not completed, which stays.
    pub(crate) async fn plan_replays(&self, all: &[PlannedReplay], by: &str) -> Result<Vec<Option<PlannedReplay>>> {
        let mut transaction = self.db.begin().await?;
        let mut plans_before = Vec::with_capacity(all.len());
        for replay in all {
            let before = plan_before(&mut *transaction, replay).await?;
            if before.is_none() {
                plan(&mut *transaction, replay, by).await?;
            }
            plans_before.push(before);
        }
        transaction.commit().await?;
        Ok(plans_before)
    }

    /// Replaces earlier plans for the same dead letters, of which the bus has nothing.
    pub(crate) async fn replan_replays(&self, all: &[PlannedReplay], by: &str) -> Result<()> {
        let mut transaction = self.db.begin().await?;
        for replay in all {
            drop_plan(&mut *transaction, &replay.dead_letter).await?;
            plan(&mut *transaction, replay, by).await?;
        }
        transaction.commit().await
    }

    /// Drops plans that no producer has heard of.
    pub(crate) async fn drop_replay_plans(&self, dead_letters: &[DeadLetterId]) -> Result<()> {
        let mut transaction = self.db.begin().await?;
        for id in dead_letters {
            drop_plan(&mut *transaction, id).await?;
        }
        transaction.commit().await
    }

    /// Completes replays that the bus has. A task that runs again in its queue waits for its next attempt; one that was
    /// moved stays dead, and its dead letter waits no longer. A later dead letter, or an end, stays as it is.
    pub(crate) async fn complete_replays(&self, all: &[PlannedReplay]) -> Result<()> {
        let mut transaction = self.db.begin().await?;
        for replay in all {
            complete(&mut *transaction, replay).await?;
        }
        transaction.commit().await?;
        self.versions.all();
        Ok(())
    }

    /// The dead letters that a task has left behind because it was run again, the oldest first.
    pub(super) async fn replays(&self, task: &TaskRow) -> Result<Vec<Replay>> {
        let replays = Sql::new(
            "SELECT attempt, reason, dead_lettered_ms, by, at_ms, to_queue, new_id, changed FROM replays
             WHERE queue = ? AND kind = ? AND id = ? AND settled_ms IS NOT NULL ORDER BY attempt",
        );
        let shown = |row: &Row| {
            Ok(Replay {
                attempt: row.get("attempt")?,
                reason: row.get("reason")?,
                dead_lettered_ms: row.get("dead_lettered_ms")?,
                by: row.get("by")?,
                at_ms: row.get("at_ms")?,
                arguments: row.get("changed")?,
                to_queue: row.get("to_queue")?,
                new_id: row.get("new_id")?,
            })
        };
        let replays = replays.bind(&task.queue).bind(&task.kind).bind(&task.id);
        self.db.read(replays).await?.iter().map(shown).collect()
    }

    /// The dead letter of another queue that a task was made of.
    pub(super) async fn replay_of(&self, task: &TaskRow) -> Result<Option<DeadLetterId>> {
        let made =
            Sql::new("SELECT queue, kind, id, attempt FROM replays WHERE new_id = ? AND to_queue = ? AND kind = ?");
        let rows = self.db.read(made.bind(&task.id).bind(&task.queue).bind(&task.kind)).await?;
        rows.first().map(dead_letter_id).transpose()
    }
}

/// The plan for a dead letter that was made before and is not completed.
async fn plan_before(transaction: &mut dyn Transaction, replay: &PlannedReplay) -> Result<Option<PlannedReplay>> {
    let planned = Sql::new(
        "SELECT to_queue, new_id, changed FROM replays
         WHERE queue = ? AND kind = ? AND id = ? AND attempt = ? AND settled_ms IS NULL",
    );
    let rows = transaction.rows(bind_name(planned, &replay.dead_letter)).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (to_queue, new_id): (Option<String>, Option<String>) = (row.get("to_queue")?, row.get("new_id")?);
    Ok(Some(PlannedReplay { moved: to_queue.zip(new_id), new_arguments: row.get("changed")?, ..replay.clone() }))
}

async fn plan(transaction: &mut dyn Transaction, replay: &PlannedReplay, by: &str) -> Result<()> {
    let plan = Sql::new(
        "INSERT INTO replays (queue, kind, id, attempt, reason, dead_lettered_ms, by, at_ms, to_queue, new_id, changed)
         VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (queue, id, kind, attempt) DO NOTHING",
    );
    let plan = bind_name(plan, &replay.dead_letter).bind(&replay.reason).bind(replay.dead_lettered_ms).bind(by);
    let plan = plan.bind(millpond::now_ms()).bind(replay.moved.as_ref().map(|(queue, _)| queue.as_str()));
    let plan = plan.bind(replay.moved.as_ref().map(|(_, id)| id.as_str())).bind(replay.new_arguments);
    transaction.run(plan).await?;
    Ok(())
}

async fn drop_plan(transaction: &mut dyn Transaction, id: &DeadLetterId) -> Result<()> {
    let gone =
        Sql::new("DELETE FROM replays WHERE queue = ? AND kind = ? AND id = ? AND attempt = ? AND settled_ms IS NULL");
    transaction.run(bind_name(gone, id)).await?;
    Ok(())
}

async fn complete(transaction: &mut dyn Transaction, replay: &PlannedReplay) -> Result<()> {
    let completed =
        Sql::new("UPDATE replays SET settled_ms = ? WHERE queue = ? AND kind = ? AND id = ? AND attempt = ?");
    transaction.run(bind_name(completed.bind(millpond::now_ms()), &replay.dead_letter)).await?;
    if replay.moved.is_some() {
        remove_payload(transaction, &replay.dead_letter).await?;
        return Ok(());
    }
    let waits = Sql::new(
        "UPDATE tasks SET status = ?, attempt = ?
         WHERE queue = ? AND kind = ? AND id = ? AND attempt <= ? AND status = ?",
    );
    let next = i64::from(replay.dead_letter.attempt.max(1)) + 1;
    let waits = bind_name(waits.bind(TaskStatus::Retrying).bind(next), &replay.dead_letter);
    transaction.run(waits.bind(TaskStatus::Dead)).await?;
    Ok(())
}

/// Binds what names a dead letter: queue, kind, id and attempt.
fn bind_name<'a>(sql: Sql<'a>, name: &'a DeadLetterId) -> Sql<'a> {
    sql.bind(&name.queue).bind(name.kind.as_deref()).bind(&name.id).bind(name.attempt)
}
