//! Finding, counting over time, forgetting.

use std::time::Duration;

use millpond::outcome::CancelledJob;
use millpond_api::tasks::TaskStatus;

use super::*;
use crate::store::QueueSample;

/// A task that was published, ran and was stored at these times.
fn timed(id: &str, published_ms: i64, stored_ms: i64, end: Result<i32, NotDoneState>) -> OutcomeMessage {
    let mut message = outcome(id, None, 1, &[end]);
    message.stored_ms = stored_ms;
    if let Ok(OutcomeBody::Results(_, pack, _)) = &mut message.body {
        let outcome = &mut pack.outcomes[0];
        (outcome.published_ms, outcome.started_ms, outcome.ended_ms) = (published_ms, published_ms + 1, stored_ms);
        for not_done in &mut outcome.not_done {
            not_done.failure = Some(Failure::new("error", format!("Disk \"{id}\" is 100% full_up")));
        }
    }
    message
}

async fn ids(store: &Store, filter: &TaskQuery, page: Page) -> Vec<String> {
    let (mut found, mut page) = (Vec::new(), page);
    loop {
        let (rows, next) = store.tasks(filter, page).await.unwrap();
        found.extend(rows.into_iter().map(|row| row.id));
        // As it comes back from a client.
        page.after = next.map(|next| next.to_string().parse().unwrap());
        if page.after.is_none() {
            return found;
        }
    }
}

#[tokio::test]
async fn tasks_are_found_by_what_their_errors_say() {
    let (_home, store) = store().await;
    let mut story: Vec<OutcomeMessage> =
        (0..5).map(|n| timed(&format!("t{n}"), n, n, Err(NotDoneState::Retry))).collect();
    story.push(timed("well", 9, 9, Ok(1)));
    // What is done later is found by what went wrong before.
    let mut done = timed("t1", 1, 8, Ok(1));
    if let Ok(OutcomeBody::Results(_, pack, _)) = &mut done.body {
        pack.outcomes[0].attempt = 2;
    }
    story.push(done);
    merge(&store, &story).await;
    let find = async |error: &str, status: Option<TaskStatus>| {
        let filter = TaskQuery { error: Some(error.into()), status, ..TaskQuery::default() };
        ids(&store, &filter, Page { limit: 2, after: None }).await
    };
    assert_eq!(find("disk", None).await, ["t4", "t3", "t2", "t1", "t0"]);
    assert_eq!(find("k \"T3\" is", None).await, ["t3"]);
    assert_eq!(find("100%", None).await.len(), 5);
    assert_eq!(find("100%x", None).await.len(), 0);
    assert_eq!(find("full_u", None).await.len(), 5);
    assert_eq!(find("full.u", None).await.len(), 0);
    assert_eq!(find("%", None).await.len(), 5, "shorter than the index knows");
    assert_eq!(find("error: disk", Some(TaskStatus::Done)).await, ["t1"]);
    merge(&store, &[dead("t2", None, 3)]).await;
    assert_eq!(find("attempt 3", Some(TaskStatus::Dead)).await, ["t2"]);
    let filter = DeadLetterQuery { error: Some("ATTEMPT".into()), ..DeadLetterQuery::default() };
    assert_eq!(store.dead_letters(&filter, PAGE).await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn tasks_are_listed_by_time() {
    let (_home, store) = store().await;
    let times = [50, 10, 40, 20, 30, 30];
    let story = times.iter().enumerate().map(|(n, at)| timed(&format!("t{n}"), *at, 99, Ok(1)));
    merge(&store, &story.collect::<Vec<_>>()).await;
    let of = |since, until, kind: Option<&str>| TaskQuery {
        since,
        until,
        kind: kind.map(str::to_owned),
        ..TaskQuery::default()
    };
    for (filter, expected) in [
        (of(Some(20), Some(50), None), &["t2", "t5", "t4", "t3"][..]),
        (of(Some(30), None, Some("k")), &["t0", "t2", "t5", "t4"]),
        (of(None, None, None), &["t0", "t2", "t5", "t4", "t3", "t1"]),
        (of(None, None, Some("k")), &["t0", "t2", "t5", "t4", "t3", "t1"]),
    ] {
        for limit in 1..6 {
            let found = ids(&store, &filter, Page { limit, after: None }).await;
            assert_eq!(found, expected, "pages of {limit}: {filter:?}");
        }
    }
}

#[tokio::test]
async fn each_filter_finds_its_own() {
    let (_home, store) = store().await;
    merge(
        &store,
        &[
            timed("a", 1, 1, Ok(1)),
            timed("b", 2, 2, Err(NotDoneState::Dead)),
            dead("b", None, 1),
            timed("c", 3, 3, Err(NotDoneState::Cancelled)),
        ],
    )
    .await;
    let none = TaskQuery::default;
    let named = |name: &str| Some(name.to_owned());
    for (filter, expected) in [
        (TaskQuery { job: named("j"), ..none() }, 3),
        (TaskQuery { job: named("other"), ..none() }, 0),
        (TaskQuery { queue: named("q"), kind: named("k"), worker: named("w"), ..none() }, 3),
        (TaskQuery { worker: named("other"), ..none() }, 0),
        (TaskQuery { status: Some(TaskStatus::Done), ..none() }, 1),
        (TaskQuery { status: Some(TaskStatus::Dead), kind: named("k"), ..none() }, 1),
        (TaskQuery { status: Some(TaskStatus::Cancelled), ..none() }, 1),
        (TaskQuery { status: Some(TaskStatus::Retrying), ..none() }, 0),
    ] {
        assert_eq!(ids(&store, &filter, PAGE).await.len(), expected, "{filter:?}");
    }
}

#[tokio::test]
async fn the_series_counts_each_end_once() {
    let (_home, store) = store().await;
    let now = millpond::now_ms();
    let mut again = timed("a", now - 500, now, Ok(1));
    again.again = true;
    merge(
        &store,
        &[
            timed("a", now - 500, now, Ok(1)),
            again,
            timed("b", now - 4000, now, Ok(2)),
            timed("c", now, now, Err(NotDoneState::Dead)),
        ],
    )
    .await;
    let sample = |published| QueueSample { queue: "q".into(), published, waiting: 7, oldest_age_ms: 90 };
    store.sample(now, &[sample(5)]).await.unwrap();
    // Another collector counts the same step.
    store.sample(now, &[sample(6)]).await.unwrap();
    for (window, length) in [(60_000, 10_000), (6 * 3_600_000, 300_000)] {
        let (step_ms, steps) = store.series(window, Some("q")).await.unwrap();
        assert_eq!(step_ms, length);
        assert_eq!(steps.len(), 1, "{steps:?}");
        let step = &steps[0];
        assert_eq!((step.done, step.dead, step.published, step.waiting), (2, 1, Some(5), Some(7)), "{step:?}");
        assert!(step.p50_ms.unwrap().abs_diff(500) < 40 && step.p99_ms.unwrap().abs_diff(4000) < 300, "{step:?}");
    }
    assert!(store.series(60_000, Some("other")).await.unwrap().1.is_empty());
}

fn retention() -> Retention {
    Retention { ended: Duration::from_secs(100), dead: Duration::from_secs(1000), bytes_max: None }
}

#[tokio::test]
async fn what_is_old_is_forgotten_and_what_waits_is_not() {
    let (_home, store) = store().await;
    let now = millpond::now_ms();
    let old = now - 200_000;
    let mut story = vec![
        timed("old", old, old, Ok(1)),
        timed("new", old, now, Ok(1)),
        timed("waits", old, old, Err(NotDoneState::Dead)),
    ];
    let mut batch = outcome("b", Some(Items::whole(3)), 1, &[Ok(1), Err(NotDoneState::Cancelled), Ok(3)]);
    batch.stored_ms = old;
    story.push(batch);
    let mut rest = outcome(
        "b",
        Some(Items { of: 3, from: 1, len: 2 }),
        1,
        &[Err(NotDoneState::Remainder), Err(NotDoneState::Remainder)],
    );
    rest.stored_ms = old;
    story.push(rest);
    let mut letter = dead("waits", None, 1);
    letter.stored_ms = old;
    let Ok(OutcomeBody::Dead(_, evidence)) = &mut letter.body else { unreachable!() };
    evidence.dead_lettered_ms = old;
    story.push(letter);
    merge(&store, &story).await;
    assert_eq!(
        store.delete_expired(&retention()).await.unwrap(),
        2,
        "the old one, and the cancelled item of the batch"
    );
    assert!(task(&store, "old").await.is_empty());
    assert_eq!(status(&store, "waits").await, "dead");
    assert_eq!(status(&store, "new").await, "done");
    // What was done is still told of its job.
    assert_eq!(job(&store).await["done"], 4);
    assert_eq!(store.delete_expired(&retention()).await.unwrap(), 0);
    let all = Retention { dead: Duration::from_secs(100), ..retention() };
    assert_eq!(store.delete_expired(&all).await.unwrap(), 2, "the dead one, and the batch that never ended");
    let left =
        numbers(&store, "SELECT count(*) AS number FROM attempts UNION ALL SELECT count(*) FROM dead_letters").await;
    assert_eq!(left, [1, 0], "nothing is left of what is gone");
}

fn cancelled(job: &str) -> OutcomeMessage {
    let cancelled = Some(CancelledJob { job: job.into(), epoch: 1, by: "o".into(), at_ms: 5 });
    message(OutcomeBody::Results(subject(), ResultBatch { cancelled, ..pack() }, Vec::new()), b"")
}

#[tokio::test]
async fn what_is_cancelled_after_all_before_is_forgotten_is_known_everywhere() {
    let (home, store) = store().await;
    merge(&store, &[cancelled("first"), cancelled("second")]).await;
    assert!(store.is_cancelled("second", 1));
    store.delete_expired(&retention()).await.unwrap();
    merge(&store, &[cancelled("third")]).await;
    assert!(store.is_cancelled("third", 1), "by the one that forgot");
    assert!(!home.open().await.is_cancelled("second", 1), "it is forgotten");
}

#[tokio::test]
async fn a_store_that_is_too_large_forgets_the_oldest() {
    let (_home, store) = store().await;
    let now = millpond::now_ms();
    // Text that no database makes much smaller.
    let mut noise = 1_u64;
    let mut text = || -> String {
        let next = |_| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'0' + u8::try_from(noise >> 58).unwrap())
        };
        (0..2000).map(next).filter(|c| *c != '\\').collect()
    };
    for some in 0..10 {
        let mut messages: Vec<OutcomeMessage> =
            (0..200).map(|n| timed(&format!("t{some}-{n}"), now + some * 200 + n, now, Ok(1))).collect();
        for message in &mut messages {
            if let Ok(OutcomeBody::Results(_, pack, _)) = &mut message.body {
                pack.outcomes[0].results = vec![RawValue::from_string(format!("\"{}\"", text())).unwrap()];
            }
        }
        store.merge(OutcomeStream::Results, &messages).await.unwrap();
    }
    if store.kind() == "postgres" {
        store.db.vacuum().await.unwrap();
    }
    let before = store.bytes().await.unwrap();
    assert!(before > 2_000_000, "{before}");
    let limited = Retention { bytes_max: Some(before / 2), ..retention() };
    let gone = store.delete_expired(&limited).await.unwrap();
    assert!((900..1600).contains(&gone), "{gone} of 2000 tasks");
    assert!(task(&store, "t0-0").await.is_empty(), "the oldest goes first");
    assert_eq!(status(&store, "t9-199").await, "done");
    if store.kind() == "sqlite" {
        let after = store.bytes().await.unwrap();
        assert!(after <= before * 6 / 10, "{after} of {before} bytes");
        let free = numbers(&store, "SELECT freelist_count AS number FROM pragma_freelist_count").await;
        assert_eq!(free, [0], "the file itself is smaller");
    }
}
