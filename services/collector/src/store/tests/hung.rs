//! A collector that hangs in the midst of a write, beside another one on the same Postgres.

use std::time::{Duration, Instant};

use super::super::sql::Transaction;
use super::*;

/// What docs/http.md promises.
const STOPPED_FOR_AT_MOST: Duration = Duration::from_secs(10);
/// More than one: each writer of a collector that hangs might have its turn.
const WRITERS: usize = 4;

/// Makes a row that its own collector knows by its queue.
async fn note(transaction: &mut dyn Transaction, queue: &str) -> super::super::Result<u64> {
    let sql = "INSERT INTO unused_queues (queue, since_ms) VALUES (?, 1)";
    transaction.run(Sql::new(sql).bind(queue)).await
}

#[tokio::test]
async fn one_that_hangs_with_the_lock_stops_the_other_for_ten_seconds_at_most_and_writes_nothing_more() {
    let (home, hung) = store().await;
    if hung.kind() != "postgres" {
        return;
    }
    let other = home.open().await;
    let mut held = hung.db.begin().await.unwrap();
    note(&mut *held, "of the hung one").await.unwrap();
    // Its other writers wait for the lock. They hang too: once they have it, they do nothing with it.
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let hung = hung.clone();
        waiting.spawn(async move {
            let _kept = hung.db.begin().await;
            std::future::pending::<()>().await;
        });
    }
    // Were they in line at Postgres, they would be there before the other one.
    let in_line = "SELECT count(*) AS number FROM pg_locks JOIN pg_database ON pg_database.oid = database
        WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted";
    for _ in 0..25 {
        if numbers(&other, in_line).await == [i64::try_from(WRITERS).unwrap()] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let started = Instant::now();
    let mut transaction = tokio::time::timeout(STOPPED_FOR_AT_MOST, other.db.begin()).await.expect("the lock").unwrap();
    let waited = started.elapsed();
    note(&mut *transaction, "of the other one").await.unwrap();
    transaction.commit().await.unwrap();
    println!("the other one waited for {waited:?}");

    // It goes on, and Postgres refuses its next statement: the lock is no longer its own.
    assert!(note(&mut *held, "too late").await.is_err());
    assert!(held.commit().await.is_err());
    waiting.shutdown().await;
    let noted = "SELECT count(*) AS number FROM unused_queues WHERE queue";
    assert_eq!(numbers(&other, &format!("{noted} = 'of the other one'")).await, [1]);
    assert_eq!(numbers(&other, &format!("{noted} <> 'of the other one'")).await, [0]);
    // With a connection of its own again, it writes as before.
    let mut again = hung.db.begin().await.unwrap();
    note(&mut *again, "later").await.unwrap();
    again.commit().await.unwrap();
    assert_eq!(numbers(&other, &format!("{noted} = 'later'")).await, [1]);
}
