//! What an operator and the reconciler change: dead letters that run again, once, with their history; tasks that a purge
//! removed end, once.

use millpond::bus::operate::queues::PurgeRecord;

use millpond_api::dead_letters::DeadLetterId;

use super::*;
use crate::store::PlannedReplay;

fn planned(id: &str, attempt: u32, moved: Option<(&str, &str)>) -> PlannedReplay {
    PlannedReplay {
        dead_letter: DeadLetterId { queue: "q".into(), kind: Some("k".into()), id: id.into(), attempt },
        reason: "exhausted".into(),
        dead_lettered_ms: 3,
        moved: moved.map(|(queue, id)| (queue.into(), id.into())),
        new_arguments: false,
    }
}

async fn waiting(store: &Store) -> Vec<String> {
    let (letters, _) = store.dead_letter_ids(&DeadLetterQuery::default(), PAGE).await.unwrap();
    letters.into_iter().map(|(_, letter)| letter.id).collect()
}

#[tokio::test]
async fn a_replay_is_noted_before_and_settled_after() {
    let (_dir, store) = store().await;
    merge(&store, &[dead("a", None, 2), dead("b", None, 1)]).await;
    let both = [planned("a", 2, None), planned("b", 1, Some(("q2", "b@q2")))];
    assert!(store.plan_replays(&both, "o").await.unwrap().iter().all(Option::is_none));
    // Whoever comes after a death in between finds what was asked for then.
    let other = [planned("a", 2, Some(("q3", "a@q3"))), planned("b", 1, None)];
    let before = store.plan_replays(&other, "o").await.unwrap();
    let moved: Vec<_> = before.iter().map(|b| b.as_ref().unwrap().moved.clone()).collect();
    assert_eq!(moved, [None, Some(("q2".into(), "b@q2".into()))]);
    assert_eq!((waiting(&store).await.len(), task(&store, "a").await[0]["replays"].clone()), (2, json!([])));
    store.complete_replays(&both).await.unwrap();
    store.complete_replays(&both).await.unwrap();
    assert!(waiting(&store).await.is_empty());
    let (a, b) = (task(&store, "a").await.remove(0), task(&store, "b").await.remove(0));
    assert_eq!((&a["status"], &a["attempt"], &a["replays"][0]["attempt"]), (&json!("retrying"), &json!(3), &json!(2)));
    assert_eq!((&b["status"], &b["replays"][0]["new_id"]), (&json!("dead"), &json!("b@q2")));
    // It dies again: another letter, and the first one stays in its history.
    merge(&store, &[dead("a", None, 3)]).await;
    assert_eq!(waiting(&store).await, ["a"]);
    store.plan_replays(&[planned("a", 3, None)], "o").await.unwrap();
    store.drop_replay_plans(&[planned("a", 3, None).dead_letter]).await.unwrap();
    assert_eq!(store.plan_replays(&[planned("a", 3, None)], "o").await.unwrap()[0].as_ref().map(|_| ()), None);
    assert_eq!(task(&store, "a").await[0]["replays"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn letters_are_found_by_the_text_of_their_failure() {
    let (_dir, store) = store().await;
    merge(&store, &[dead("a", None, 1), dead("b", None, 2), dead("c", None, 12)]).await;
    let found = async |error: &str, limit: u32| {
        let filter = DeadLetterQuery { error: Some(error.into()), ..DeadLetterQuery::default() };
        let count = store.count_dead_letters(&filter).await.unwrap();
        let (letters, more) = store.dead_letter_ids(&filter, Page { limit, after: None }).await.unwrap();
        (letters.into_iter().map(|(_, letter)| letter.id).collect::<Vec<_>>().join(""), more, count)
    };
    assert_eq!(found("ATTEMPT 1", 10).await, ("ca".into(), false, 2));
    assert_eq!(found("attempt", 2).await, ("cb".into(), true, 3));
    assert_eq!(found("error", 10).await.2, 3, "the type counts");
    // Elsewhere in the evidence, and what LIKE would take for anything.
    for none in ["exhausted", "w", "attempt_1", "%", "attempt \\"] {
        assert_eq!(found(none, 10).await.2, 0, "{none}");
    }
    let until = DeadLetterQuery { until: Some(3), ..DeadLetterQuery::default() };
    let since = DeadLetterQuery { since: Some(3), ..DeadLetterQuery::default() };
    let count = async |filter: &DeadLetterQuery| store.count_dead_letters(filter).await.unwrap();
    assert_eq!((count(&until).await, count(&since).await), (0, 3));
}

#[tokio::test]
async fn what_a_purge_removed_ends_once() {
    let (_dir, store) = store().await;
    let whole = Some(Items::whole(4));
    let open = [Ok(1), Err(NotDoneState::Remainder), Err(NotDoneState::Remainder), Err(NotDoneState::Dead)];
    merge(&store, &[outcome("t", None, 1, &[Err(NotDoneState::Retry)]), outcome("b", whole, 1, &open)]).await;
    // All of it has an end.
    merge(&store, &[outcome("e", Some(Items::whole(2)), 1, &[Ok(1), Err(NotDoneState::Dead)])]).await;
    merge(&store, &[dead("b", item(4, 3), 1), dead("e", item(2, 1), 1)]).await;
    let purge = PurgeRecord {
        queue: "q".into(),
        kind: None,
        running: true,
        later_up_to: 0,
        tasks_up_to: 9,
        due_up_to: 9,
        count: Some(1),
        by: "o".into(),
        at_ms: 20,
    };
    let mut unended = store.unended(true, 0, i64::MAX, 10).await.unwrap();
    unended.extend(store.unended(false, 0, i64::MAX, 10).await.unwrap());
    assert_eq!(unended.iter().map(|task| task.id.as_str()).collect::<Vec<_>>(), ["b", "t"]);
    let all: Vec<_> = unended.into_iter().map(|task| (task, purge.clone())).collect();
    assert_eq!((store.end_purged(&all).await.unwrap(), store.end_purged(&all).await.unwrap()), (3, 0));
    for id in ["t", "b/1", "b/2"] {
        let ended = task(&store, id).await.remove(0);
        let last = ended["attempts"].as_array().unwrap().last().unwrap().clone();
        assert_eq!((&ended["status"], &last["failure"]["type"]), (&json!("cancelled"), &json!("purged")), "{ended}");
    }
    let job = job(&store).await;
    assert_eq!((&job["cancelled"], &job["dead"], &job["done"]), (&json!(3), &json!(2), &json!(2)));
    assert!(store.unended(true, 0, i64::MAX, 10).await.unwrap().is_empty());
    // A result that comes after all changes nothing.
    merge(
        &store,
        &[outcome("t", None, 2, &[Ok(5)]), outcome("b", Some(Items { of: 4, from: 1, len: 1 }), 1, &[Ok(5)])],
    )
    .await;
    assert_eq!((status(&store, "t").await, status(&store, "b/1").await), (json!("cancelled"), json!("cancelled")));
}
