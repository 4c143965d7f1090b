//! One record ends a whole job: what has a result before it in the stream keeps it, all else is cancelled, in every
//! order of the two streams and over a restart; a later epoch of the same name is another job.

use super::*;
use millpond::job::{JobRecord, JobState};
use millpond::outcome::CancelledJob;
use millpond_api::jobs::JobStatus;

fn cancelled(epoch: u32) -> OutcomeMessage {
    let cancelled = Some(CancelledJob { job: "j".into(), epoch, by: "o".into(), at_ms: 5 });
    message(OutcomeBody::Results(subject(), ResultBatch { cancelled, ..pack() }, Vec::new()), b"")
}

fn record(epoch: u32, state: JobState) -> JobRecord {
    JobRecord {
        job: "j".into(),
        queue: "q".into(),
        kind: "k".into(),
        epoch,
        state,
        total: None,
        continuation: None,
        continuation_signature: None,
        published: 10,
        fingerprint: None,
        results_after: 0,
        producer: "p".into(),
        created_ms: 1,
        heartbeat_ms: 1,
    }
}

#[tokio::test]
async fn first_of_result_and_cancellation_wins() {
    let whole = Some(Items::whole(3));
    let story = |cancelled_at: usize| {
        let mut story = vec![
            outcome("j.1/0", None, 1, &[Ok(1)]),
            outcome("j.1/1", None, 1, &[Err(NotDoneState::Retry)]),
            outcome("j.1/2+3", whole, 1, &[Ok(2), Err(NotDoneState::Retry), Err(NotDoneState::Remainder)]),
            outcome("j.1/1", None, 2, &[Ok(3)]),
            outcome("j.1/2+3", item(3, 1), 2, &[Ok(4)]),
            dead("j.1/9", None, 1),
        ];
        story.insert(cancelled_at, cancelled(1));
        story
    };
    let statuses = async |store: &Store| {
        let mut all = Vec::new();
        for id in ["j.1/0", "j.1/1", "j.1/2+3/0", "j.1/2+3/1", "j.1/2+3/2", "j.1/9", "j.1/8"] {
            all.push(status(store, id).await.as_str().unwrap_or("none").to_owned());
        }
        all
    };
    for (at, expected) in [
        (0, ["cancelled"; 7]),
        (3, ["done", "cancelled", "done", "cancelled", "cancelled", "cancelled", "cancelled"]),
        (6, ["done", "done", "done", "done", "cancelled", "cancelled", "cancelled"]),
    ] {
        let (home, store) = store().await;
        store.put_job(&record(1, JobState::Open), 1).await.unwrap();
        store.merge(OutcomeStream::Results, &story(at)).await.unwrap();
        let mut seen = statuses(&store).await;
        if at == 0 {
            // A batch that never had a row is known by its job's indexes only.
            seen[2..5].fill("cancelled".to_owned());
        }
        assert_eq!(seen, expected, "cancelled before message {at}");
        let job = job(&store).await;
        let done = expected.iter().filter(|s| **s == "done").count();
        assert_eq!(
            (&job["state"], &job["done"], &job["cancelled"]),
            (&json!("cancelled"), &json!(done), &json!(10 - done))
        );
        assert!(store.dead_letter("j.1/9", None, None).await.unwrap().is_empty());
        // Another process on the same file knows it too, and all of it again changes nothing.
        store.close().await;
        let store = home.open().await;
        merge(&store, &story(at)).await;
        merge(&store, &[outcome("j.1/7", None, 1, &[Ok(1)])]).await;
        assert_eq!(status(&store, "j.1/7").await, "cancelled");
    }
}

#[tokio::test]
async fn a_later_epoch_is_another_job_under_the_same_name() {
    let (_dir, store) = store().await;
    store.put_job(&record(1, JobState::Open), 1).await.unwrap();
    merge(&store, &[outcome("j.1/0", None, 1, &[Ok(1)]), cancelled(1)]).await;
    store.put_job(&JobRecord { total: Some(2), ..record(2, JobState::Closed) }, 1).await.unwrap();
    merge(&store, &[outcome("j.2/0", None, 1, &[Ok(5)]), outcome("j.1/1", None, 1, &[Ok(6)])]).await;
    merge(&store, &[outcome("j.2/1", None, 1, &[Ok(7)])]).await;
    let newest = job(&store).await;
    assert_eq!((&newest["state"], &newest["done"], &newest["epoch"]), (&json!("finished"), &json!(2), &json!(2)));
    let results: Vec<Value> = ends(&store, 10).await.iter().map(|e| e["result"].clone()).collect();
    assert_eq!(results, [json!(5), json!(7)], "{results:?}");
    assert_eq!(status(&store, "j.1/1").await, "cancelled");
    assert!(store.job("j@1").await.unwrap().is_none(), "the first epoch has no suffix");
    let jobs = store.jobs(&JobQuery::default(), PAGE).await.unwrap().0;
    let names: Vec<&str> = jobs.iter().map(|job| job.job.as_str()).collect();
    assert_eq!(names, ["j@2", "j"]);
}

#[tokio::test]
async fn a_record_may_name_an_epoch_far_away() {
    let (_dir, store) = store().await;
    let retried = |id: &str| outcome(id, None, 1, &[Err(NotDoneState::Retry)]);
    merge(&store, &[retried("j.1/0"), retried("j.2/0"), retried("j.30/0"), of("ja", retried("ja.1/0"))]).await;
    merge(&store, &[cancelled(u32::MAX)]).await;
    for (id, wanted) in
        [("j.1/0", "cancelled"), ("j.2/0", "cancelled"), ("j.30/0", "cancelled"), ("ja.1/0", "retrying")]
    {
        assert_eq!(status(&store, id).await, wanted, "{id}");
    }
}

/// A message of another job than `j`.
fn of(job: &str, mut message: OutcomeMessage) -> OutcomeMessage {
    if let Ok(OutcomeBody::Results(subject, pack, _)) = &mut message.body {
        *subject = TaskSubject::new("q", "k", Some(job.to_owned())).unwrap();
        pack.cancelled.iter_mut().for_each(|cancelled| job.clone_into(&mut cancelled.job));
    }
    message
}

/// Each job with the state that it is shown with; each is found under it, and under no other.
async fn states(store: &Store) -> Vec<String> {
    let all = store.jobs(&JobQuery::default(), PAGE).await.unwrap().0;
    let (mut shown, mut found) = (Vec::new(), Vec::new());
    for job in &all {
        shown.push(format!("{} {}", job.job, job.state));
    }
    for state in JobStatus::ALL {
        let filter = JobQuery { state: Some(*state), ..JobQuery::default() };
        for job in store.jobs(&filter, PAGE).await.unwrap().0 {
            found.push(format!("{} {state}", job.job));
        }
    }
    shown.sort();
    found.sort();
    assert_eq!(found, shown);
    shown
}

#[tokio::test]
async fn each_job_is_found_under_its_state() {
    let (_home, store) = store().await;
    let now = millpond::now_ms();
    let named = |job: &str, state, total| JobRecord { job: job.into(), total, heartbeat_ms: now, ..record(1, state) };
    let put = async |record: JobRecord, recorded_ms: i64| store.put_job(&record, recorded_ms).await.unwrap();
    // A record before its tasks, tasks before their record, and tasks alone.
    put(named("a", JobState::Open, None), 1).await;
    put(JobRecord { heartbeat_ms: 1, ..named("silent", JobState::Open, None) }, 1).await;
    for job in ["a", "b", "alone", "over"] {
        merge(&store, &[of(job, outcome(&format!("{job}.1/0"), None, 1, &[Ok(1)]))]).await;
    }
    put(named("b", JobState::Closed, Some(2)), 1).await;
    // Cancelled before anything else is known of it, in a later epoch and after its end.
    merge(&store, &[of("early", cancelled(2))]).await;
    put(named("early", JobState::Open, None), 1).await;
    put(JobRecord { epoch: 2, ..named("early", JobState::Open, None) }, 1).await;
    put(JobRecord { epoch: 3, ..named("early", JobState::Open, None) }, 1).await;
    put(named("told", JobState::Cancelled, None), 1).await;
    merge(&store, &[of("over", cancelled(0))]).await;
    let rest = ["early cancelled", "early@2 cancelled", "early@3 open", "over cancelled"];
    let with = |more: &[&str]| {
        let mut all: Vec<String> = [&rest[..], more].concat().iter().map(|job| (*job).to_owned()).collect();
        all.sort();
        all
    };
    let before = with(&["a open", "alone session", "b closed", "silent stalled", "told cancelled"]);
    assert_eq!(states(&store).await, before);
    // An older record changes nothing; a task that dies ends its job as well as one that is done.
    put(named("a", JobState::Cancelled, None), 0).await;
    assert_eq!(states(&store).await, before);
    let mut letter = dead("b.1/1", None, 3);
    let Ok(OutcomeBody::Dead(_, evidence)) = &mut letter.body else { unreachable!() };
    evidence.job = Some("b".into());
    merge(&store, &[of("b", outcome("b.1/1", None, 3, &[Err(NotDoneState::Dead)])), letter]).await;
    put(named("a", JobState::Closed, Some(1)), 2).await;
    put(JobRecord { heartbeat_ms: now, ..named("silent", JobState::Open, None) }, 2).await;
    let after = with(&["a finished", "alone session", "b finished", "silent open", "told cancelled"]);
    assert_eq!(states(&store).await, after);
    // A later cancellation covers the later epoch too.
    merge(&store, &[of("early", cancelled(3))]).await;
    let again: Vec<String> = after.iter().map(|job| job.replace("early@3 open", "early@3 cancelled")).collect();
    assert_eq!(states(&store).await, again);
    // A name and a state, and pages.
    let filter = JobQuery { name: Some("early".into()), state: Some(JobStatus::Cancelled) };
    let (first, next) = store.jobs(&filter, Page { limit: 2, after: None }).await.unwrap();
    let (second, end) = store.jobs(&filter, Page { limit: 2, after: next }).await.unwrap();
    let names: Vec<&str> = first.iter().chain(&second).map(|job| job.job.as_str()).collect();
    assert_eq!((names, end), (vec!["early@3", "early@2", "early"], None));
}
