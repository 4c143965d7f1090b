//! What no well-behaved worker sends often, and must not hurt: results of any JSON, ids used twice, packs that lie.

use millpond::bus::operate::queues::PurgeRecord;
use millpond::outcome::StoredResult;
use millpond::payload::PayloadRef;
use millpond::wire::decode::decode;
use millpond_api::dead_letters::DeadLetterId;

use super::*;

/// An outcome of `root` whose results are these JSON texts.
fn texts(root: &str, items: Option<Items>, results: &[&str]) -> OutcomeMessage {
    let ends: Vec<Result<i32, NotDoneState>> = results.iter().map(|_| Ok(0)).collect();
    let mut message = outcome(root, items, 1, &ends);
    if let Ok(OutcomeBody::Results(_, pack, _)) = &mut message.body {
        pack.outcomes[0].results = results.iter().map(|r| RawValue::from_string((*r).to_owned()).unwrap()).collect();
    }
    message
}

/// As a client reads it: the text of the API's answer.
fn shown(rows: &[impl serde::Serialize]) -> String {
    serde_json::to_string(rows).unwrap()
}

#[tokio::test]
async fn results_are_shown_as_they_came() {
    let results = [
        ("123456789012345678901234567890", r#""result":123456789012345678901234567890"#),
        (r#"{"b":1,"a":2,"b":3}"#, r#""result":{"b":1,"a":2,"b":3}"#),
        ("1.10", r#""result":1.10"#),
        // What common parsers refuse must not make the rest of the page unreadable.
        ("1.0", r#""result":1.0"#),
        ("18446744073709551617", r#""result":18446744073709551617"#),
        (r#"{"a":1,"a":2}"#, r#""result":{"a":1,"a":2}"#),
        ("1e999", r#""result_text":"1e999""#),
        (r#""\ud800""#, r#""result_text":"\"\\ud800\"""#),
    ];
    for (at, (result, wanted)) in results.into_iter().enumerate() {
        let (_dir, store) = store().await;
        let batch = Some(Items::whole(2));
        merge(&store, &[texts("t", None, &[result]), texts("b", batch, &["null", result])]).await;
        assert!(shown(&store.task("t", None, None).await.unwrap()).contains(wanted), "task {at}");
        assert!(shown(&store.task("b/1", None, None).await.unwrap()).contains(wanted), "item {at}");
        assert!(shown(&store.tasks(&TaskQuery::default(), PAGE).await.unwrap().0).contains(wanted), "list {at}");
        assert!(shown(&store.job_results("j", 0, 1000, None).await.unwrap().0).contains(wanted), "job {at}");
    }
}

#[tokio::test]
async fn bytes_are_shown_as_base64_and_marked_and_the_same_json_is_not() {
    let shown_as = r#"{"base64":"6Q=="}"#;
    let (_dir, store) = store().await;
    let (mut lone, mut batch) =
        (texts("t", None, &[shown_as]), texts("b", Some(Items::whole(3)), &[shown_as, "1", shown_as]));
    for (message, items) in [(&mut lone, vec![0]), (&mut batch, vec![2])] {
        let Ok(OutcomeBody::Results(_, pack, _)) = &mut message.body else { unreachable!() };
        pack.outcomes[0].bytes = items;
    }
    merge(&store, &[lone, batch, texts("json", None, &[shown_as])]).await;
    let mark = r#""result":{"base64":"6Q=="},"result_is_bytes":true"#;
    for (id, marked) in [("t", true), ("b/2", true), ("b/0", false), ("json", false)] {
        let found = shown(&store.task(id, None, None).await.unwrap());
        assert!(found.contains(r#""result":{"base64":"6Q=="}"#) && found.contains(mark) == marked, "{id}: {found}");
    }
    assert!(shown(&store.task("b", None, None).await.unwrap()).contains(r#""bytes_items":[2]"#));
    let ends = shown(&store.job_results("j", 0, 1000, None).await.unwrap().0);
    assert_eq!((ends.matches(mark).count(), ends.matches("base64").count()), (2, 4), "{ends}");
}

#[tokio::test]
async fn arguments_of_a_dead_letter_are_shown_as_they_came() {
    for (payload, wanted) in [
        (&b"12345678901234567890123"[..], r#""payload":12345678901234567890123"#),
        (b"1.0", r#""payload":1.0"#),
        (br#"{"a":1,"a":2}"#, r#""payload":{"a":1,"a":2}"#),
        (b"1e400", r#""payload_text":"1e400""#),
        (b"null", r#""payload":null"#),
        (b"twelve", r#""payload_base64":"dHdlbHZl""#),
        (b"\"\xff\"", r#""payload_base64":"Iv8i""#),
    ] {
        let (_dir, store) = store().await;
        merge(&store, &[OutcomeMessage { payload: Bytes::from_static(payload), ..dead("t", None, 1) }]).await;
        let found = shown(&store.dead_letter("t", None, None).await.unwrap());
        assert!(found.contains(wanted), "{wanted}: {found}");
    }
}

#[test]
fn fuzz_merges() {
    const CORPUS: [&str; 2] = [
        include_str!("../../../../../tests/corpus/pack.json"),
        include_str!("../../../../../tests/corpus/evidence.json"),
    ];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_dir, store) = runtime.block_on(store());
    crate::storm::storm("merges", &CORPUS, |input| {
        let body = match (decode::<Evidence>(input), decode::<ResultBatch>(input)) {
            (Ok(evidence), _) => OutcomeBody::Dead(subject(), Box::new(evidence)),
            (_, Ok(mut pack)) => {
                let bad = pack.take_bad();
                OutcomeBody::Results(subject(), pack, bad)
            }
            _ => return,
        };
        runtime.block_on(async {
            store.merge(OutcomeStream::Results, &[message(body, b"1")]).await.unwrap();
            store.job_results("j", 0, 100, None).await.unwrap();
            store.tasks(&TaskQuery::default(), PAGE).await.unwrap();
            store.dead_letters(&DeadLetterQuery::default(), PAGE).await.unwrap();
        });
    });
}

#[tokio::test]
async fn a_result_that_is_null_is_a_result() {
    let mut half = texts("b", Some(Items::whole(2)), &["null", "null"]);
    if let Ok(OutcomeBody::Results(_, pack, _)) = &mut half.body {
        pack.outcomes[0].not_done =
            vec![NotDone { item: 1, end: NotDoneState::Remainder, failure: None, due_ms: None }];
    }
    check(std::slice::from_ref(&half), "b/0", "done").await;
    check(&[half], "b/1", "partial").await;
}

#[tokio::test]
async fn an_id_used_again_in_another_form_changes_nothing() {
    let (_dir, store) = store().await;
    merge(&store, &[outcome("t", None, 1, &[Ok(7)]), outcome("t", Some(Items::whole(2)), 1, &[Ok(1), Ok(2)])]).await;
    assert_eq!(task(&store, "t").await[0]["result"], 7);
    merge(&store, &[outcome("b", Some(Items::whole(3)), 1, &[Ok(1), Ok(2), Err(NotDoneState::Retry)])]).await;
    merge(&store, &[outcome("b", Some(Items::whole(2)), 1, &[Ok(8), Ok(9)])]).await;
    assert_eq!(task(&store, "b").await[0]["result"], json!([1, 2, null]));
    assert_eq!(status(&store, "b").await, "partial");
}

#[tokio::test]
async fn an_outcome_that_does_not_fit_is_kept_aside() {
    for (items, results) in [
        (Items { of: u32::MAX, from: 0, len: 1 }, 1),
        (Items { of: 3, from: 2, len: 2 }, 2),
        (Items { of: 3, from: u32::MAX, len: 1 }, 1),
        (Items { of: 3, from: 0, len: 3 }, 2),
        (Items { of: 0, from: 0, len: 0 }, 0),
    ] {
        let (_dir, store) = store().await;
        let mut bad = outcome("x", None, 1, &[]);
        if let Ok(OutcomeBody::Results(_, pack, refused)) = &mut bad.body {
            pack.outcomes[0].items = Some(items);
            pack.outcomes[0].results = vec![RawValue::NULL.to_owned(); results];
            let Ok(OutcomeBody::Results(_, good, _)) = outcome("good", None, 1, &[Ok(1)]).body else { unreachable!() };
            pack.outcomes.extend(good.outcomes);
            *refused = pack.take_bad();
        }
        merge(&store, &[bad]).await;
        assert_eq!(status(&store, "good").await, "done", "{items:?}");
        let kept = numbers(&store, "SELECT count(*) AS number FROM unreadable").await;
        assert_eq!(kept, [1], "{items:?}");
    }
}

#[tokio::test]
async fn tasks_of_a_job_without_a_place_in_it_come_last() {
    let (_dir, store) = store().await;
    let mut messages: Vec<OutcomeMessage> = (0..3).map(|n| outcome(&format!("bare-{n}"), None, 1, &[Ok(n)])).collect();
    for message in &mut messages {
        if let Ok(OutcomeBody::Results(_, pack, _)) = &mut message.body {
            pack.outcomes[0].index = None;
        }
    }
    messages.push(outcome("placed", None, 1, &[Ok(9)]));
    // Two tasks may claim one place: both are shown, whatever the size of the page.
    messages.push(outcome("placed-too", None, 1, &[Ok(9)]));
    merge(&store, &messages).await;
    for limit in 1..6 {
        let seen = ends(&store, limit).await;
        let seen: Vec<&str> = seen.iter().map(|r| r["id"].as_str().unwrap()).collect();
        assert_eq!(seen, ["placed", "placed-too", "bare-0", "bare-1", "bare-2"], "pages of {limit}");
    }
}

#[tokio::test]
async fn a_column_that_is_missing_or_of_another_type_is_an_error() {
    let (_dir, store) = store().await;
    let sql = "SELECT 'text' AS a, CAST(NULL AS BIGINT) AS b, CAST(-1 AS BIGINT) AS c";
    let row = store.db.read(Sql::new(sql)).await.unwrap().remove(0);
    assert_eq!((row.get::<&str>("a").unwrap(), row.get::<Option<i64>>("b").unwrap()), ("text", None));
    let wrong = |column| row.get::<u64>(column).unwrap_err().to_string();
    assert_eq!(wrong("a"), "column a of the store holds text, not a count");
    assert_eq!(wrong("b"), "column b of the store holds null, not a count");
    assert_eq!(wrong("c"), "column c of the store holds another number, not a count");
    assert_eq!(wrong("d"), "column d of the store holds nothing, not a count");
}

#[tokio::test]
async fn a_session_is_listed_with_the_jobs() {
    let (_dir, store) = store().await;
    merge(&store, &[outcome("t", None, 1, &[Ok(1)])]).await;
    let (rows, _) = store.jobs(&JobQuery::default(), PAGE).await.unwrap();
    let row = value(&rows[0]);
    assert_eq!((rows.len(), &row["state"], &row["done"]), (1, &json!("session"), &json!(1)));
}

#[tokio::test]
async fn counts_of_jobs_are_made_for_a_store_of_before() {
    let (home, store) = store().await;
    if store.kind() != "sqlite" {
        return;
    }
    merge(&store, &[outcome("b", Some(Items::whole(3)), 1, &[Ok(1), Ok(2), Err(NotDoneState::Retry)])]).await;
    let after = job(&store).await;
    let mut transaction = store.db.begin().await.unwrap();
    for undo in [
        "DROP TABLE job_counts",
        "DROP TRIGGER tasks_count_new",
        "DROP TRIGGER tasks_count_changed",
        "DELETE FROM _sqlx_migrations WHERE version IN (2, 41)",
    ] {
        transaction.run(Sql::new(undo)).await.unwrap();
    }
    transaction.commit().await.unwrap();
    store.close().await;
    assert_eq!(job(&home.open().await).await, after);
}

#[tokio::test]
async fn large_results_are_kept_as_references() {
    let (_dir, store) = store().await;
    let at = |object: &str| PayloadRef { object: object.into(), size: 9, sha256: "0".repeat(64) };
    let with_ref = |mut message: OutcomeMessage, item: u32, object: &str| {
        if let Ok(OutcomeBody::Results(_, pack, _)) = &mut message.body {
            pack.outcomes[0].refs = vec![StoredResult { item, at: at(object) }];
        }
        message
    };
    // Item 1 fails first, so that it has a row of its own; then its result is large.
    let parts = [
        with_ref(outcome("b", Some(Items::whole(3)), 1, &[Ok(1), Err(NotDoneState::Retry), Ok(0)]), 2, "two"),
        with_ref(outcome("b", Some(Items { of: 3, from: 1, len: 1 }), 2, &[Ok(0)]), 1, "one"),
        with_ref(outcome("t", None, 1, &[Ok(0)]), 0, "task"),
    ];
    for part in parts.iter().chain(&parts) {
        store.merge(OutcomeStream::Results, std::slice::from_ref(part)).await.unwrap();
    }
    let shown = async |id: &str| serde_json::to_value(&store.task(id, None, None).await.unwrap()[0]).unwrap();
    for (id, object) in [("t", "task"), ("b/1", "one"), ("b/2", "two")] {
        let task = shown(id).await;
        assert_eq!(
            (&task["ref"], &task["status"], task.get("result")),
            (&json!(at(object)), &json!("done"), None),
            "{id}"
        );
    }
    assert_eq!(shown("b/0").await["result"], 1);
    let batch = shown("b").await;
    assert_eq!((&batch["result"], &batch["refs"]["1"]), (&json!([1, null, null]), &json!(at("one"))));
    let (ends, _) = store.job_results("j", 0, 10, None).await.unwrap();
    let objects: Vec<Value> = ends.iter().map(|e| serde_json::to_value(e).unwrap()["ref"]["object"].take()).collect();
    assert_eq!(objects.iter().filter_map(Value::as_str).collect::<Vec<_>>(), ["task", "one", "two"]);
}

fn of_kind(mut message: OutcomeMessage, kind: &str) -> OutcomeMessage {
    let (OutcomeBody::Results(subject, ..) | OutcomeBody::Dead(subject, _)) = message.body.as_mut().unwrap();
    subject.kind = kind.to_owned();
    message
}

/// The task of this id and kind in queue q.
async fn of_id(store: &Store, id: &str, kind: &str) -> Value {
    let found = store.task(id, Some("q"), Some(kind)).await.unwrap();
    assert_eq!(found.len(), 1, "{id} of {kind}");
    value(&found[0])
}

/// A task and a batch of kinds k and l, which have the same ids.
async fn of_two_kinds() -> (Home, Store) {
    let (home, store) = store().await;
    let batch = [Ok(0), Err(NotDoneState::Retry), Ok(2)];
    let messages = [
        outcome("x", None, 1, &[Ok(1)]),
        of_kind(outcome("x", None, 1, &[Err(NotDoneState::Retry)]), "l"),
        of_kind(dead("x", None, 2), "l"),
        outcome("b", Some(Items::whole(3)), 1, &batch),
        of_kind(outcome("b", Some(Items::whole(3)), 1, &batch), "l"),
        of_kind(outcome("b", item(3, 1), 2, &[Ok(11)]), "l"),
        of_kind(outcome("b", None, 1, &[Ok(5)]), "m"),
    ];
    for message in messages.iter().chain(&messages) {
        store.merge(OutcomeStream::Results, std::slice::from_ref(message)).await.unwrap();
    }
    (home, store)
}

#[tokio::test]
async fn tasks_of_two_kinds_may_have_one_id() {
    let (_dir, store) = of_two_kinds().await;
    let shown = async |id: &str, kind: &str| of_id(&store, id, kind).await;
    let (done, died) = (shown("x", "k").await, shown("x", "l").await);
    assert_eq!(
        (&done["result"], &done["dead"], done["attempts"].as_array().unwrap().len()),
        (&json!(1), &Value::Null, 1)
    );
    assert_eq!(
        (&died["status"], &died["dead"]["kind"], &died["attempts"][0]["status"]),
        (&json!("dead"), &json!("l"), &json!("failed"))
    );
    assert_eq!(store.task("x", None, None).await.unwrap().len(), 2);
    assert_eq!(
        (&shown("b", "k").await["status"], &shown("b", "l").await["status"]),
        (&json!("partial"), &json!("done"))
    );
    assert_eq!(
        (&shown("b/1", "k").await["status"], &shown("b/1", "l").await["result"]),
        (&json!("retrying"), &json!(11))
    );
    assert_eq!(shown("b", "m").await["result"], 5);
}

#[tokio::test]
async fn what_is_purged_or_forgotten_of_one_kind_is_left_of_the_other() {
    let (_dir, store) = of_two_kinds().await;
    let shown = async |id: &str, kind: &str| of_id(&store, id, kind).await;
    let unended = store.unended(false, 0, i64::MAX, 10).await.unwrap();
    let purge = PurgeRecord {
        queue: "q".into(),
        kind: None,
        running: true,
        later_up_to: 0,
        tasks_up_to: 1,
        due_up_to: 1,
        count: Some(1),
        by: "o".into(),
        at_ms: 1,
    };
    let removed: Vec<_> = unended.into_iter().map(|task| (task, purge.clone())).collect();
    assert_eq!(
        removed.iter().map(|(task, _)| (task.id.as_str(), task.kind.as_str())).collect::<Vec<_>>(),
        [("b/1", "k")]
    );
    assert_eq!(store.end_purged(&removed).await.unwrap(), 1);
    assert_eq!(
        (&shown("b/1", "k").await["status"], &shown("b/1", "l").await["status"]),
        (&json!("cancelled"), &json!("done"))
    );
    let counted = store.count_dead_letters(&DeadLetterQuery::default()).await.unwrap();
    let letter = store.dead_letter_ids(&DeadLetterQuery::default(), PAGE).await.unwrap().0.remove(0).1;
    let other = DeadLetterId { kind: Some("k".into()), ..letter.clone() };
    assert_eq!((counted, store.purge_dead_letters(&[other, letter]).await.unwrap()), (1, vec![false, true]));
    let forgotten = Retention { ended: std::time::Duration::ZERO, dead: std::time::Duration::MAX, bytes_max: None };
    store.delete_expired(&forgotten).await.unwrap();
    assert!(
        store.task("x", None, Some("k")).await.unwrap().is_empty()
            && store.task("b", None, Some("l")).await.unwrap().is_empty()
    );
    assert_eq!(
        (&shown("x", "l").await["status"], &shown("b", "k").await["status"]),
        (&json!("dead"), &json!("partial"))
    );
    assert_eq!(shown("x", "l").await["attempts"].as_array().unwrap().len(), 1);
}
