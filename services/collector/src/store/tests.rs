//! The merge rules against a real SQLite file: every order and any repetition of what ended gives the same ends.

use bytes::Bytes;
use millpond::bus::read::outcomes::{OutcomeBody, OutcomeMessage, OutcomeStream};
use millpond::dead_letter::Evidence;
use millpond::outcome::{Failure, Items, NotDone, NotDoneState, Outcome, ResultBatch, id_of};
use millpond::wire::subject::TaskSubject;
use millpond_api::dead_letters::DeadLetterQuery;
use millpond_api::jobs::JobQuery;
use millpond_api::tasks::TaskQuery;
use proptest::prelude::*;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::sql::Sql;
use super::{Page, ResultCursor, Retention, Store, StoreAt};

mod before;
mod cancelled;
mod edges;
mod history;
mod hung;
#[path = "../../../../tests/postgres.rs"]
mod postgres;
mod replays;
mod speed;

/// Environment: the server on which a test makes its database. None: SQLite.
const POSTGRES_URL: &str = "MILLPOND_TEST_POSTGRES_URL";

const PAGE: Page = Page { limit: 1000, after: None };

/// Where a test has its store: a file in a folder of its own, or a database of its own.
struct Home {
    at: StoreAt,
    _dir: TempDir,
}

impl Home {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = match std::env::var(POSTGRES_URL) {
            Ok(server) => StoreAt::Postgres(postgres::database(&server)),
            Err(_) => StoreAt::File(dir.path().join("store.sqlite")),
        };
        Self { at, _dir: dir }
    }

    async fn open(&self) -> Store {
        Store::open(&self.at).await.unwrap()
    }
}

async fn store() -> (Home, Store) {
    let home = Home::new().await;
    let store = home.open().await;
    (home, store)
}

/// A statement of a test's own, and its first column of numbers.
async fn numbers(store: &Store, sql: &str) -> Vec<i64> {
    let rows = store.db.read(Sql::new(sql)).await.unwrap();
    rows.iter().map(|row| row.get("number").unwrap()).collect()
}

/// All of these tests again, on a real Postgres that is started for them.
#[test]
fn the_same_on_postgres() {
    if std::env::var(POSTGRES_URL).is_ok() {
        return;
    }
    let Some(server) = postgres::Server::start() else { return };
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    again.args(["store::tests", "--skip", "the_same_on_postgres"]).env(POSTGRES_URL, server.url());
    let ended = again.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "on Postgres: {said}");
    assert!(said.contains("test result: ok") && !said.contains(" 0 passed"), "{said}");
}

fn subject() -> TaskSubject {
    TaskSubject::new("q", "k", Some("j".into())).unwrap()
}

fn message(body: OutcomeBody, payload: &'static [u8]) -> OutcomeMessage {
    OutcomeMessage {
        seq: 1,
        stored_ms: 9,
        body: Ok(body),
        payload: Bytes::from_static(payload),
        headers: Vec::new(),
        again: false,
    }
}

/// An outcome of `root`: per covered item a result, or how it ended without one.
fn outcome(root: &str, items: Option<Items>, attempt: u32, ends: &[Result<i32, NotDoneState>]) -> OutcomeMessage {
    let first = items.map_or(0, |i| i.from);
    let id = id_of(root, items);
    let not_done = (first..).zip(ends).filter_map(|(item, end)| {
        let end = end.err()?;
        let failure = (end != NotDoneState::Cancelled).then(|| Failure::new("error", format!("attempt {attempt}")));
        Some(NotDone { item, end, failure, due_ms: None })
    });
    let result = |end: &Result<i32, NotDoneState>| {
        let text = end.map_or_else(|_| "null".to_owned(), |n| n.to_string());
        RawValue::from_string(text).unwrap()
    };
    let outcome = Outcome {
        original_id: (id != root).then(|| root.to_owned()),
        id,
        items,
        index: Some(u64::from(first)),
        digest: None,
        attempt,
        published_ms: 1,
        started_ms: i64::from(attempt),
        ended_ms: i64::from(attempt) + 1,
        busy_us: 0,
        trace: None,
        span: None,
        continuation: None,
        results: ends.iter().map(result).collect(),
        bytes: Vec::new(),
        refs: Vec::new(),
        not_done: not_done.collect(),
        failures: Vec::new(),
    };
    message(
        OutcomeBody::Results(
            subject(),
            ResultBatch { v: 1, worker: "w".into(), outcomes: vec![outcome], cancelled: None },
            Vec::new(),
        ),
        b"",
    )
}

fn dead(root: &str, items: Option<Items>, attempt: u32) -> OutcomeMessage {
    let id = id_of(root, items);
    let evidence = Evidence {
        v: 1,
        original_id: (id != root).then(|| root.to_owned()),
        id,
        items,
        job: Some("j".into()),
        unique: None,
        index: Some(items.map_or(0, |i| u64::from(i.from))),
        attempt,
        reason: "exhausted".into(),
        failure: Failure::new("error", format!("attempt {attempt}")),
        failures: Vec::new(),
        worker: "w".into(),
        published_ms: 1,
        started_ms: Some(2),
        dead_lettered_ms: 3,
        trace: None,
        span: None,
    };
    let subject = TaskSubject::new("q", "k", None).unwrap();
    message(OutcomeBody::Dead(subject, Box::new(evidence)), b"[1]")
}

async fn merge(store: &Store, messages: &[OutcomeMessage]) {
    for one in messages {
        store.merge(OutcomeStream::Results, std::slice::from_ref(one)).await.unwrap();
    }
}

/// A row as a client parses it.
fn value(row: &impl serde::Serialize) -> Value {
    serde_json::to_value(row).unwrap()
}

async fn task(store: &Store, id: &str) -> Vec<Value> {
    store.task(id, None, None).await.unwrap().iter().map(value).collect()
}

async fn job(store: &Store) -> Value {
    value(&store.job("j").await.unwrap().unwrap())
}

/// All ends of the job, page by page.
async fn ends(store: &Store, limit: u32) -> Vec<Value> {
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let (rows, next) = store.job_results("j", 0, limit, after).await.unwrap();
        assert!(rows.len() <= limit as usize);
        seen.extend(rows.iter().map(value));
        after = next.map(|at| ResultCursor::parse(&at.text()).unwrap());
        if after.is_none() {
            return seen;
        }
    }
}

async fn status(store: &Store, id: &str) -> Value {
    let found = task(store, id).await;
    found.first().map_or(Value::Null, |task| task["status"].clone())
}

const fn item(of: u32, from: u32) -> Option<Items> {
    Some(Items { of, from, len: 1 })
}

async fn check(messages: &[OutcomeMessage], id: &str, expected: &str) {
    let (_dir, store) = store().await;
    merge(&store, messages).await;
    assert_eq!(status(&store, id).await, expected);
    merge(&store, messages).await;
    assert_eq!(status(&store, id).await, expected, "a second delivery changes nothing");
}

#[tokio::test]
async fn which_end_wins() {
    let done = || outcome("t", None, 1, &[Ok(1)]);
    let cancelled = || outcome("t", None, 1, &[Err(NotDoneState::Cancelled)]);
    let retry = || outcome("t", None, 1, &[Err(NotDoneState::Retry)]);
    check(&[retry(), done()], "t", "done").await;
    check(&[done(), retry()], "t", "done").await;
    check(&[dead("t", None, 3), done()], "t", "done").await;
    check(&[done(), dead("t", None, 3)], "t", "done").await;
    check(&[dead("t", None, 3), retry()], "t", "dead").await;
    check(&[cancelled(), done()], "t", "cancelled").await;
    check(&[done(), cancelled()], "t", "done").await;
    check(&[dead("t", None, 3), cancelled()], "t", "cancelled").await;
}

#[tokio::test]
async fn a_batch_is_one_row_until_an_item_fails() {
    let (_dir, store) = store().await;
    merge(&store, &[outcome("b", Some(Items::whole(3)), 1, &[Ok(0), Ok(1), Ok(2)])]).await;
    let (rows, _) = store.tasks(&TaskQuery::default(), PAGE).await.unwrap();
    let row = value(&rows[0]);
    assert_eq!((rows.len(), &row["result"], &row["status"]), (1, &json!([0, 1, 2]), &json!("done")));
    assert_eq!(task(&store, "b/2").await[0]["result"], 2);
    assert!(task(&store, "b/3").await.is_empty());
}

#[tokio::test]
async fn an_item_may_come_before_its_batch() {
    let retried = || outcome("b", item(3, 1), 2, &[Ok(11)]);
    let batch = || outcome("b", Some(Items::whole(3)), 1, &[Ok(0), Err(NotDoneState::Retry), Ok(2)]);
    check(&[batch(), retried()], "b", "done").await;
    check(&[retried(), batch()], "b", "done").await;
    check(&[batch(), retried()], "b/1", "done").await;
    check(&[retried(), batch()], "b/1", "done").await;
    check(&[retried(), dead("b", item(3, 1), 3)], "b/1", "done").await;
    check(&[dead("b", item(3, 1), 3), retried()], "b/1", "done").await;
    check(&[batch(), dead("b", item(3, 1), 2)], "b/1", "dead").await;
    check(&[dead("b", item(3, 1), 2), batch()], "b/1", "dead").await;
}

#[tokio::test]
async fn a_later_dead_letter_replaces_an_earlier_one() {
    for order in [[2, 5], [5, 2]] {
        let (_dir, store) = store().await;
        merge(&store, &order.map(|attempt| dead("t", None, attempt))).await;
        let letter = value(&store.dead_letter("t", None, None).await.unwrap()[0]);
        assert_eq!((&letter["attempt"], &letter["failure"]["message"]), (&json!(5), &json!("attempt 5")));
        assert_eq!(letter["job"], "j");
    }
}

#[tokio::test]
async fn a_task_counts_as_dead_once_its_dead_letter_is_stored() {
    let (_dir, store) = store().await;
    let counts = async || {
        let (job, letters) =
            (job(&store).await, store.dead_letters(&DeadLetterQuery::default(), PAGE).await.unwrap().0);
        (job["dead"].as_u64().unwrap(), letters.len() as u64)
    };
    let items = Some(Items::whole(2));
    let died = [
        outcome("t", None, 1, &[Err(NotDoneState::Retry)]),
        outcome("t", None, 2, &[Err(NotDoneState::Dead)]),
        outcome("b", items, 1, &[Ok(1), Err(NotDoneState::Dead)]),
    ];
    merge(&store, &died).await;
    assert_eq!(counts().await, (0, 0));
    merge(&store, &[dead("t", None, 2)]).await;
    assert_eq!(counts().await, (1, 1));
    merge(&store, &[dead("b", item(2, 1), 1)]).await;
    assert_eq!(counts().await, (2, 2));
    merge(&store, &died).await;
    assert_eq!(counts().await, (2, 2));
    let found = task(&store, "b/1").await.remove(0);
    assert_eq!((&found["status"], &found["job"], &found["index"]), (&json!("dead"), &json!("j"), &json!(1)));
}

#[tokio::test]
async fn what_cannot_be_read_is_kept() {
    let (_dir, store) = store().await;
    let unreadable = OutcomeMessage {
        body: Err("no".into()),
        ..message(OutcomeBody::Results(subject(), pack(), Vec::new()), b"\xff")
    };
    merge(&store, &[unreadable]).await;
    let kept = store.db.read(Sql::new("SELECT payload FROM unreadable")).await.unwrap();
    assert_eq!(kept[0].get::<&[u8]>("payload").unwrap(), b"\xff");
}

fn pack() -> ResultBatch {
    ResultBatch { v: 1, worker: "w".into(), outcomes: Vec::new(), cancelled: None }
}

#[tokio::test]
async fn results_come_page_by_page_in_order() {
    let (_dir, store) = store().await;
    merge(
        &store,
        &[
            outcome("b", Some(Items::whole(4)), 1, &[Ok(0), Err(NotDoneState::Dead), Ok(2), Err(NotDoneState::Retry)]),
            dead("b", item(4, 1), 1),
        ],
    )
    .await;
    let seen = ends(&store, 2).await;
    let seen: Vec<_> =
        seen.iter().map(|r| (r["index"].as_u64().unwrap(), r["status"].as_str().unwrap().to_owned())).collect();
    let expected = [(0, "done"), (1, "dead"), (2, "done"), (3, "retrying")].map(|(i, s)| (i, s.to_owned()));
    assert_eq!(seen, expected);
    let job = job(&store).await;
    assert_eq!((&job["done"], &job["dead"], &job["retrying"]), (&json!(2), &json!(1), &json!(1)));
}

/// A history of one task and of one batch of three, as workers can produce it.
fn history() -> Vec<fn() -> OutcomeMessage> {
    vec![
        || outcome("t", None, 1, &[Err(NotDoneState::Retry)]),
        || dead("t", None, 2),
        || outcome("t", None, 2, &[Err(NotDoneState::Dead)]),
        || outcome("t", None, 3, &[Ok(7)]),
        || outcome("b", Some(Items::whole(3)), 1, &[Ok(0), Err(NotDoneState::Retry), Err(NotDoneState::Dead)]),
        || dead("b", item(3, 2), 1),
        || outcome("b", item(3, 1), 2, &[Ok(1)]),
        || {
            outcome(
                "b",
                Some(Items { of: 3, from: 1, len: 2 }),
                1,
                &[Err(NotDoneState::Remainder), Err(NotDoneState::Remainder)],
            )
        },
    ]
}

proptest! {
    // A database for each takes its time.
    #![proptest_config(ProptestConfig::with_cases(if std::env::var(POSTGRES_URL).is_ok() { 8 } else { 48 }))]
    #[test]
    fn any_order_and_any_repetition_give_the_same_ends(
        order in Just((0..8usize).collect::<Vec<_>>()).prop_shuffle(),
        again in prop::collection::vec(0..8usize, 0..8),
        together in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_dir, store) = store().await;
            let messages: Vec<OutcomeMessage> = order.iter().chain(&again).map(|i| history()[*i]()).collect();
            if together {
                store.merge(OutcomeStream::Results, &messages).await.unwrap();
            } else {
                merge(&store, &messages).await;
            }
            for (id, expected) in [("t", "done"), ("b", "partial"), ("b/0", "done"), ("b/1", "done"), ("b/2", "dead")] {
                assert_eq!(status(&store, id).await, expected, "{id} after {order:?} {again:?}");
            }
            let job = job(&store).await;
            assert_eq!((&job["done"], &job["dead"], &job["retrying"]), (&json!(3), &json!(1), &json!(0)));
            let counted = numbers(
                &store,
                "SELECT CAST(sum(CASE WHEN root IS NULL THEN done ELSE 0 END) AS BIGINT) AS number FROM tasks WHERE job = 'j'
                 UNION ALL SELECT count(*) FROM tasks WHERE status = 2 UNION ALL SELECT count(*) FROM tasks WHERE status = 1",
            );
            let counted = counted.await;
            assert_eq!(counted, [3, 1, 0], "the kept counts are the counts");
        });
    }
}
