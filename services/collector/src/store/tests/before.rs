//! A store that an earlier revision wrote opens, and all of it reads as it was stored. tests/fixtures/store_before.sh makes
//! the file.

use std::path::Path;

use millpond_api::jobs::JobStatus;
use millpond_api::tasks::TaskStatus;

use super::*;

/// What revision a11880b wrote.
const FILE: &str = "../../tests/fixtures/store_a11880b.sqlite";

/// A copy of it, opened by the code of now.
async fn opened() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("store.sqlite");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE), &copy).unwrap();
    let store = Store::open(&StoreAt::File(copy)).await.unwrap();
    (dir, store)
}

#[tokio::test]
async fn an_earlier_store_is_read() {
    let (_dir, store) = opened().await;
    let (tasks, next) = store.tasks(&TaskQuery::default(), PAGE).await.unwrap();
    assert_eq!((tasks.len(), next), (30, None));
    for (id, status, attempt, result) in [
        ("done", "done", 1, json!(144)),
        ("long", "done", 1, json!("0".repeat(5000))),
        ("retried", "done", 2, json!(2)),
        ("dead", "dead", 1, Value::Null),
        ("thrown", "dead", 1, Value::Null),
        ("cancelled", "cancelled", 1, Value::Null),
        ("again", "done", 2, json!(2)),
        ("moved@slow", "done", 1, json!(1)),
        ("chain", "done", 1, json!(9)),
        ("chain/then", "done", 1, json!(81)),
        ("chain/then/then", "done", 1, json!(81)),
        ("batched.1/5+5", "done", 1, json!([25, 36, 49, 64, 81])),
        ("batched.1/7", "done", 1, json!(49)),
        ("mixed.1/0+3", "partial", 1, json!([1, null, 9])),
        ("mixed.1/0+3/1", "dead", 1, Value::Null),
        ("mixed.1/2", "done", 1, json!(9)),
        ("gone.1/3", "cancelled", 1, Value::Null),
        ("gone.2/1", "done", 1, json!(1)),
    ] {
        let row = task(&store, id).await.remove(0);
        assert_eq!(
            (&row["status"], &row["attempt"], &row["result"]),
            (&json!(status), &json!(attempt), &result),
            "{id}"
        );
        assert_eq!(store.task(id, None, row["kind"].as_str()).await.unwrap().len(), 1, "{id} has its kind");
        let ran = status != "cancelled" && !row["attempts"].as_array().unwrap().is_empty();
        assert!(ran || status == "cancelled", "{id} has its attempts: {row}");
    }
    let digits = serde_json::to_string(&store.task("digits", None, None).await.unwrap()).unwrap();
    assert!(digits.contains(r#""result":123456789012345678901234567890"#), "{digits}");
    let large = &store.task("large", None, None).await.unwrap()[0].row;
    assert_eq!(large.stored_result.as_ref().unwrap().size, 300_002);
    let retrying = task(&store, "retrying").await.remove(0);
    assert_eq!((&retrying["status"], &retrying["dead"]), (&json!("retrying"), &Value::Null));
    assert_eq!(retrying["attempts"][0]["failure"]["message"], "not yet");
    let chain = &store.task("chain", None, None).await.unwrap()[0].row;
    assert_eq!(chain.continuation.as_deref(), Some("default.square"));
}

#[tokio::test]
async fn dead_letters_and_replays_of_an_earlier_store_are_read() {
    let (_dir, store) = opened().await;
    let (waiting, _) = store.dead_letters(&DeadLetterQuery::default(), PAGE).await.unwrap();
    let waiting: Vec<&str> = waiting.iter().map(|letter| letter.id.as_str()).collect();
    assert_eq!(waiting, ["mixed.1/0+3/1", "dead"]);
    let letter = value(&store.dead_letter("dead", None, None).await.unwrap()[0]);
    assert_eq!((&letter["reason"], &letter["failure"]["message"]), (&json!("fatal"), &json!("no route")));
    assert_eq!(letter["payload"], json!({ "how": "fatal", "message": "no route" }));
    assert!(letter["dead_lettered_ms"].as_i64().unwrap() > letter["evidence"]["started_ms"].as_i64().unwrap() - 1);
    let again = task(&store, "again").await.remove(0);
    assert_eq!((&again["replays"][0]["attempt"], &again["replays"][0]["by"]), (&json!(1), &json!("operator")));
    let moved = task(&store, "moved").await.remove(0);
    assert_eq!(
        (&moved["replays"][0]["new_id"], &moved["replays"][0]["arguments"]),
        (&json!("moved@slow"), &json!(true))
    );
    let of = store.task("moved@slow", Some("slow"), None).await.unwrap().remove(0).history.replay_of.unwrap();
    assert_eq!((of.queue.as_str(), of.id.as_str(), of.attempt), ("default", "moved", 1));
    // It can be run again by the code of now.
    let id = millpond_api::dead_letters::DeadLetterId {
        queue: "default".into(),
        kind: Some("fail".into()),
        id: "dead".into(),
        attempt: 1,
    };
    assert_eq!(store.replay_request(&id).await.unwrap().unwrap().evidence.reason, "fatal");
}

#[tokio::test]
async fn jobs_of_an_earlier_store_are_read() {
    let (_dir, store) = opened().await;
    let (jobs, _) = store.jobs(&JobQuery::default(), PAGE).await.unwrap();
    let found: Vec<_> = jobs.iter().map(|j| (j.job.as_str(), j.state, j.done, j.dead, j.cancelled, j.purged)).collect();
    let (finished, cancelled) = (JobStatus::Finished, JobStatus::Cancelled);
    assert_eq!(
        found[..6],
        [
            ("purged", finished, 0, 0, 0, 3),
            ("gone@2", finished, 2, 0, 0, 0),
            ("gone", cancelled, 0, 0, 5, 0),
            ("single", finished, 3, 0, 0, 0),
            ("mixed", finished, 2, 1, 0, 0),
            ("batched", finished, 10, 0, 0, 0),
        ]
    );
    assert_eq!((found.len(), found[6].1), (7, JobStatus::Session));
    assert_eq!(jobs[5].continuation.as_ref().unwrap().kind, "echo");
    assert!(store.is_cancelled("gone", 1) && !store.is_cancelled("gone", 2));
    let (ends, next) = store.job_results("batched", 0, 100, None).await.unwrap();
    let results: Vec<i64> = ends.iter().map(|end| end.result.as_ref().unwrap().get().parse().unwrap()).collect();
    assert_eq!((results, next), ((0..10).map(|n| n * n).collect(), None));
    let (ends, _) = store.job_results("mixed", 0, 100, None).await.unwrap();
    assert_eq!((ends[1].status, ends[1].failure.as_ref().unwrap().kind.as_str()), (TaskStatus::Dead, "bad_arguments"));
    assert!(store.due_continuations().await.unwrap().is_empty(), "the only one is stored");
    let hours = 24 * 365 * 100 * 3_600_000_i64;
    let done: i64 = store.series(hours, None).await.unwrap().1.iter().map(|step| step.done).sum();
    assert_eq!(done, 28, "tasks and items with a result, retries and continuations among them");
}
