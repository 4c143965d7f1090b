//! Storms of mutated input for each decoder of this crate: none panics, and what is read keeps its bounds, so that the arithmetic
//! behind it, which is checked in tests, never overflows.

use bytes::Bytes;
use jiff::tz::TimeZone;

use crate::bus::operate::cancel::Tombstone;
use crate::bus::operate::control::{ControlReply, JobEnded, ReplayRequest};
use crate::bus::operate::queues::PurgeRecord;
use crate::bus::publish::queue_limits::QueueSettings;
use crate::bus::read::outcomes::{OutcomeBody, read_dead, read_results};
use crate::call::{error_line, read_failure, read_result};
use crate::client::HistoryRequest;
use crate::job::JobRecord;
use crate::outcome::{Items, json_bytes};
use crate::payload::{PayloadRef, json_to_bytes};
use crate::schedule::Schedule;
use crate::storm::storm;
use crate::task::{Arrival, Origin, Task};
use crate::telemetry::TraceContext;
use crate::wire::bounds::{
    COUNT_MAX, DURATION_MAX, TIME_MS_MAX, parse_count, parse_duration, parse_expiry, parse_time,
};
use crate::wire::decode::decode;
use crate::wire::headers::{HEADER_DEAD, Headers};
use crate::wire::subject::{TaskSubject, parse_dead, parse_results};
use crate::worker_record::WorkerRecord;

const PACK: &str = include_str!("../../../tests/corpus/pack.json");
const EVIDENCE: &str = include_str!("../../../tests/corpus/evidence.json");
const REF: &str =
    r#"{"object":"k5","size":3,"sha256":"0000000000000000000000000000000000000000000000000000000000000000"}"#;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Headers as `name: value` lines.
fn headers(bytes: &[u8]) -> Headers {
    let pair = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
    text(bytes).split('\n').filter_map(pair).collect()
}

#[test]
fn fuzz_outcomes() {
    storm("outcomes", &[PACK], |input| {
        let Ok(OutcomeBody::Results(_, batch, bad)) = read_results("results.j1.q.k", input) else { return };
        assert!(bad.iter().all(|reason| reason.len() < 2000));
        for outcome in &batch.outcomes {
            let items = outcome.items.map_or(1, |items| items.len);
            assert_eq!(outcome.ends().count(), items as usize);
            for (item, _) in outcome.ends() {
                let _ = outcome.index.map(|index| i64::try_from(index + u64::from(item)).unwrap());
            }
            let notices: Vec<String> =
                outcome.end_notices("w").map(|notice| serde_json::to_string(&notice).unwrap()).collect();
            assert!(notices.len() <= items as usize && outcome.items_run() <= items as usize);
            assert!(outcome.attempt <= 100 && outcome.started_ms.abs() <= TIME_MS_MAX);
            let _ = outcome.ended_ms - outcome.started_ms + outcome.published_ms;
            outcome.results.iter().for_each(|result| drop(json_to_bytes(result)));
        }
        if let Some(cancelled) = &batch.cancelled {
            assert!(cancelled.at_ms.abs() <= TIME_MS_MAX);
            let _ = cancelled.covers("j1.1/0");
        }
    });
}

#[test]
fn fuzz_evidence() {
    storm("evidence", &[EVIDENCE], |input| {
        let had = vec![(HEADER_DEAD.to_owned(), text(input)), ("Millpond-Attempts-Max".to_owned(), "3".to_owned())];
        let Ok(OutcomeBody::Dead(_, evidence)) = read_dead("dead.q.k", &had) else { return };
        assert!(evidence.items.is_none_or(|items| items.of <= 1000 && items.from < items.of));
        let subject = TaskSubject::new("q", "k", None).unwrap();
        let _ = evidence.replay_headers(&subject, &had);
        let _ = evidence.moved_headers(&subject, "q2", &had);
        let small = serde_json::to_string(&evidence.small("refused")).unwrap();
        assert!(json_bytes(&evidence.failure.clone().bounded().message) < 2100 && small.len() < input.len() * 6 + 4000);
    });
}

#[test]
fn fuzz_tasks() {
    let corpus = [
        format!(
            "Nats-Msg-Id: a1\nMillpond-Timeout: 30s\nMillpond-Attempts-Max: 3\nMillpond-Expires: 2030-01-01T00:00:00Z\nMillpond-Index: 7\nMillpond-Reply-To: reply.x\nMillpond-Continuation: a,q2.b\nMillpond-Ref: {REF}\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        ),
        "Millpond-Id: x/3\nMillpond-Original-Id: x\nMillpond-Attempt: 2\nMillpond-Items: 3+1/5\nMillpond-Published: 1700000000000\nMillpond-Index: 8\nMillpond-Failures: [{\"attempt\":1,\"worker\":\"w\",\"started_ms\":1,\"ended_ms\":2,\"failure\":{\"type\":\"e\",\"message\":\"m\"}}]".to_owned(),
        "Millpond-Batch: 5\nMillpond-Schedule: nightly\nMillpond-Unique: k\nMillpond-Dead: {}\nMillpond-Signature: v1:3eb1bd43:c57c47d4".to_owned(),
    ];
    let corpus: Vec<&str> = corpus.iter().map(String::as_str).collect();
    storm("tasks", &corpus, |input| {
        let headers = headers(input);
        for (subject, origin) in
            [("due.q.k.j-j", Origin::Due), ("tasks.q.k", Origin::Tasks), (&text(input), Origin::Tasks)]
        {
            let arrival = Arrival { origin, epoch: "e", seq: 7, stored_ms: 5 };
            let mut task = Task::parse(subject, &headers, Bytes::from_static(b"[1,2,3,4,5]"), arrival);
            assert!(task.items_len() >= 1 && task.items_len() <= 1000 && (1..=100).contains(&task.attempt));
            assert!(task.timeout.is_none_or(|timeout| timeout <= DURATION_MAX && !timeout.is_zero()));
            assert!(task.id().len() <= 300 && task.published_ms.abs() <= TIME_MS_MAX);
            let _ = task.index_of(999).map(|index| i64::try_from(index).unwrap());
            let again = task.republish_headers(task.items, task.attempt + 1, &task.failures, "m".into());
            let bytes: usize = again.iter().map(|(name, value)| name.len() + value.len()).sum();
            assert!(bytes < 32 * 1024, "what is published again fits");
            let _ = task.next_headers(task.items, 7, "00-u".into());
            let _ = (task.next_step(), task.traceparent().map(TraceContext::parse));
            task.distrust(crate::signature::Distrust::BadSignature, arrival);
            assert!(task.defect.is_some());
        }
    });
}

#[test]
fn fuzz_records() {
    let corpus = [
        r#"{"job":"j1","queue":"default","kind":"square","epoch":1,"state":"closed","total":100,"continuation":{"queue":"q","kind":"k"},"published":100,"fingerprint":"0","results_after":0,"producer":"p","created_ms":1,"heartbeat_ms":2}"#,
        r#"{"name":"w9","nonce":"n","wire":2,"host":"h","pid":1,"queues":["default"],"kinds":["square"],"slots":2,"io_slots":3,"running":0,"held":0,"draining":false,"done":1,"failed":0,"by_kind":{"square":{"done":1,"failed":0}},"cpu_percent":1.5,"rss_bytes":1,"children":[{"name":"c","kind":"k","pid":1,"state":"idle","progress":0.5,"task_ms":7,"done":1,"restarts":0,"cpu_percent":0.1,"rss_bytes":1,"started_ms":1}],"unknown_kinds":[],"started_ms":1,"heartbeat_ms":2}"#,
        r#"{"job":"j1","epoch":1,"by":"operator"}"#,
        r#"{"queue":"q","id":"a1","by":"operator"}"#,
        r#"{"queue":"q","kind":"k","running":true,"tasks_up_to":1,"due_up_to":1,"count":1,"by":"x","at_ms":1}"#,
        r#"{"max_waiting":10}"#,
    ];
    storm("records", &corpus, |input| {
        if let Ok(job) = decode::<JobRecord>(input) {
            let _ = (
                job.is_stalled(1_700_000_000_000),
                i64::try_from(job.published + 1000).unwrap(),
                job.task_id(7, Some(3)),
            );
        }
        if let Ok(worker) = decode::<WorkerRecord>(input) {
            let _ = (worker.is_lost(1_700_000_000_000), worker.done + worker.failed, worker.cpu_percent as u32);
        }
        let _ = (decode::<Tombstone>(input), decode::<PurgeRecord>(input), decode::<QueueSettings>(input));
    });
}

#[test]
fn fuzz_requests() {
    let replay = format!(
        r#"{{"queue":"q","kind":"k","evidence":{EVIDENCE},"headers":[["Millpond-Timeout","5s"]],"payload":"MQ==","to_queue":"q2","arguments":{{"a":1.0,"a":1e400}}}}"#
    );
    let corpus = [
        replay.as_str(),
        r#"{"job":"j1","epoch":1,"queue":"default","kind":"report","total":3,"done":2,"dead":1,"cancelled":0,"purged":0}"#,
        r#"{"job":"j1","epoch":1,"from":7}"#,
        r#"{"ok":{"id":"a"}}"#,
        r#"{"error":"no"}"#,
        r#"{"refused":"no"}"#,
    ];
    storm("requests", &corpus, |input| {
        if let Ok(replay) = decode::<ReplayRequest>(input) {
            let subject = TaskSubject::new("q", "k", None).unwrap();
            let _ = replay.evidence.replay_headers(&subject, &replay.headers);
        }
        if let Ok(ended) = decode::<JobEnded>(input) {
            let _ = (ended.id(), ended.arguments(), ended.done + ended.dead + ended.cancelled + ended.purged);
        }
        if let Ok(request) = decode::<HistoryRequest>(input) {
            let _ = i64::try_from(request.from).unwrap() + 1000;
        }
        let _ = decode::<ControlReply>(input);
    });
}

#[test]
fn fuzz_calls() {
    let corpus = [
        r#"{"type":"error","message":"no","traceback":"at\nb","retry":false,"child":{"name":"w/k-1","exit_code":1,"signal":9,"oom":true,"rss_bytes":536870912,"log":["loading"]}}"#,
        r#"{"base64":"6Q=="}"#,
        r#"{"a":1.0,"a":1e400,"b":[20000000000000000000,"\ud800"]}"#,
        "9007199254740992",
    ];
    storm("calls", &corpus, |input| {
        if let Ok(failure) = read_failure(input) {
            let bytes = serde_json::to_vec(&failure).unwrap().len();
            assert!(bytes < 24 * 1024 && !error_line(&failure).contains('\n'), "{bytes}");
            assert!(failure.child.is_none_or(|child| child.rss_bytes <= COUNT_MAX));
        }
        if let Ok(value) = read_result(input, false) {
            assert!(text(input).contains(value.get()));
        }
        if let Ok(value) = read_result(input, true) {
            assert!(json_to_bytes(&value).is_some());
        }
        assert!(parse_count(&text(input)).is_none_or(|count| count <= COUNT_MAX));
    });
}

#[test]
fn fuzz_schedules() {
    let corpus = [
        "Nats-Schedule: @every 10s\nNats-Schedule-Target: due.q.k\nMillpond-Schedule: n\nMillpond-Schedule-By: me\nMillpond-Timeout: 30s\nMillpond-Attempts-Max: 3",
        "Nats-Schedule: 0 30 9 * * 1-5\nNats-Schedule-Time-Zone: Europe/Berlin\nNats-Schedule-Target: due.q.k\nMillpond-Schedule: n",
        "Nats-Schedule: @at 2200-01-01T00:00:00Z\nMillpond-Schedule-Paused: @every 90s\nNats-Schedule-Target: due.q.k\nMillpond-Schedule: n",
    ];
    storm("schedules", &corpus, |input| {
        let Ok(schedule) = Schedule::parse(&headers(input), Bytes::copy_from_slice(input), 1_700_000_000_000) else {
            return;
        };
        assert!(schedule.timeout.is_none_or(|timeout| timeout <= DURATION_MAX));
        let _ = (
            schedule.check(),
            schedule.next_ms(1_800_000_000_000, &TimeZone::UTC),
            schedule.headers(),
            schedule.when.text(),
        );
    });
}

#[test]
fn fuzz_texts() {
    let corpus = [
        "0+1/5",
        "a,q2.b",
        REF,
        "1h30m",
        "2030-01-31T12:00:00+01:00",
        "9999-12-31T23:59:59.9Z",
        "tasks.q.k.j-j1",
        "results.-.q.k",
        "dead.q.k",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "reply.x.y",
        "j1.1/7+3",
        "256KiB",
        "0.5",
        "*/5 9-17 * * 1-5",
        r#"{"base64":"6Q=="}"#,
        "[1,[2],{\"a\":1e400}]",
    ];
    storm("texts", &corpus, |input| {
        let text = text(input);
        if let Some(items) = Items::parse(&text) {
            assert!(items.of <= 1000 && items.from + items.len <= items.of);
            assert_eq!(Items::parse(&items.to_string()), Some(items));
        }
        assert!(parse_duration(&text).is_ok_and(|long| long > DURATION_MAX).then_some(()).is_none());
        assert!(parse_time(&text).is_ok_and(|ms| ms.abs() > TIME_MS_MAX).then_some(()).is_none());
        let _ = (
            parse_expiry(&text),
            crate::chain::parse(&text),
            PayloadRef::parse(&text),
            crate::cron::Cron::parse(&text),
        );
        let _ = (TaskSubject::parse(&text), TaskSubject::parse_sched(&text), parse_results(&text), parse_dead(&text));
        let _ = (TraceContext::parse(&text), crate::task::is_reply_subject(&text), crate::job::epoch_of("j1", &text));
        let _ =
            (crate::config::bytes(&text), crate::retry::parse_jitter(&text), crate::retry::parse_attempts_max(&text));
        let _ = crate::batch::split(input, 3);
        let _ = crate::outcome::cut(text, 20);
    });
}
