//! One story per task: every span and every log line of it under one trace, counts exact; and telemetry that cannot be
//! exported, which is in nobody's way and is counted.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use millpond::telemetry::{TELEMETRY_QUEUE_MAX, TraceContext};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Cluster, PATIENCE, Process, free_port, task, text, until};
use crate::otlp_sink::{Mode, SeenLog, SeenSpan, Sink};

/// A folder with `handlers.toml`: the kind `story`, by a warm child, and `once`, by a process for each task.
fn handlers() -> TempDir {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/handlers/story.py").canonicalize().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let once = r#"command = ["sh", "-c", "echo one line >&2; echo $TRACEPARENT"]"#;
    let text = format!("[story]\ncommand = [\"python3\", {script:?}]\nslots = 2\n[once]\nmode = \"once\"\n{once}\n");
    std::fs::write(dir.path().join("handlers.toml"), text).unwrap();
    dir
}

/// Runs a command line with its telemetry exported, and waits for it.
async fn command(cluster: &Cluster, sink: &Sink, arguments: &[&str]) {
    let mut command = cluster.command(arguments);
    command.envs(sink.environment()).stdout(Stdio::null());
    let status = tokio::task::spawn_blocking(move || command.status().unwrap()).await.unwrap();
    assert!(status.success(), "{arguments:?}");
}

/// What was exported of one trace.
struct Story {
    spans: Vec<SeenSpan>,
    /// Of children.
    lines: Vec<SeenLog>,
    /// Of the worker: failed attempts and dead letters.
    failures: Vec<SeenLog>,
}

impl Story {
    fn of(sink: &Sink, trace: &str) -> Self {
        let spans = sink.spans().into_iter().filter(|span| span.trace == trace).collect();
        let logs = sink.logs().into_iter().filter(|line| line.trace == trace);
        let (lines, failures) = logs.partition(|line| line.event == "millpond.child.line");
        Self { spans, lines, failures }
    }

    /// Its spans of one operation.
    fn named(&self, operation: &str) -> Vec<&SeenSpan> {
        self.spans.iter().filter(|span| span.name.split(' ').next() == Some(operation)).collect()
    }

    fn counts(&self) -> [usize; 4] {
        [self.named("publish").len(), self.named("wait").len(), self.named("process").len(), self.lines.len()]
    }
}

/// The trace of a task, as the store has it.
async fn trace_of(cluster: &Cluster, id: &str) -> String {
    text(&cluster.ended(id).await, "trace")
}

/// The same counts of publishes, waits, attempts and lines once there are so many, and no more.
async fn story(cluster: &Cluster, sink: &Sink, id: &str, expected: [usize; 4]) -> Story {
    let trace = trace_of(cluster, id).await;
    let started = Instant::now();
    let story = until(&format!("story of {id}"), PATIENCE, async || {
        let story = Story::of(sink, &trace);
        (story.counts() == expected || started.elapsed() > Duration::from_secs(20)).then_some(story)
    })
    .await;
    assert_eq!(story.counts(), expected, "{id}: {:#?} {:#?}", story.spans, story.lines);
    assert_eq!(story.spans.len(), expected[..3].iter().sum::<usize>(), "{id}: no other spans");
    story
}

/// Every span and every line says what it is about.
fn check_fields(story: &Story, kind: &str) {
    for span in &story.spans {
        assert_eq!(span.fields["messaging.system"], "nats", "{span:?}");
        assert_eq!(span.fields["messaging.destination.name"], format!("tasks.default.{kind}"), "{span:?}");
        let is_publish = span.name.starts_with("publish ");
        let service = if is_publish { "millpond" } else { "millpond-worker" };
        assert_eq!(span.resource["service.name"], service);
        if !is_publish {
            assert_eq!(span.resource["service.instance.id"], "w1");
            assert_eq!(span.resource["k8s.pod.name"], "pod-7", "from the downward API");
            assert_eq!(span.resource["deployment.environment"], "test", "from OTEL_RESOURCE_ATTRIBUTES");
        }
    }
    let attempts = story.named("process");
    for line in &story.lines {
        let span = attempts.iter().find(|span| span.span == line.span).expect("a line is of an attempt");
        assert_eq!(
            (line.fields["kind"].as_str(), line.resource["service.instance.id"].as_str()),
            (kind, "w1"),
            "{line:?}"
        );
        assert_eq!(line.fields["attempt"], span.fields["attempt"], "{line:?}");
        assert_eq!((line.fields["worker"].as_str(), line.level.as_str()), ("w1", "WARN"), "{line:?}");
        assert!(line.fields["child"].starts_with("w1/story-") && line.message.starts_with("line "), "{line:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_one_story() {
    let sink = Sink::start(Mode::Takes).await;
    let mut cluster = Cluster::start().await;
    cluster.restart_collector_with(&sink.environment());
    let handlers = handlers();
    let path = handlers.path().join("handlers.toml");
    let more = [("POD_NAME", "pod-7"), ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")];
    let environment = [&sink.environment()[..], &more].concat();
    let mut worker = cluster.worker_with("w1", &["--handlers", path.to_str().unwrap()], &environment);
    let (_producer, _) = cluster.producer().await;
    let large = handlers.path().join("large.json");
    std::fs::write(&large, format!("{{\"x\":\"{}\"}}", "x".repeat(600_000))).unwrap();
    let submits: [(&str, &[&str]); 5] = [
        ("retried", &[r#"{"until":3}"#]),
        ("dead", &[r#"{"fatal":true}"#]),
        ("chained", &["{}", "--continuation", "story"]),
        ("delayed", &["{}", "--delay", "300ms"]),
        ("claimed", &["--file", large.to_str().unwrap()]),
    ];
    for (id, arguments) in submits {
        command(&cluster, &sink, &[&["submit", "story", "--id", id][..], arguments].concat()).await;
    }
    let input = handlers.path().join("input");
    std::fs::write(&input, "{}\n{}\n{}\n").unwrap();
    let mut map = cluster.command(&["map", "story", "-", "--batch", "3", "--job", "batched"]);
    map.envs(sink.environment()).stdin(std::fs::File::open(&input).unwrap()).stdout(Stdio::null());
    let map = tokio::task::spawn_blocking(move || map.status().unwrap()).await.unwrap();
    assert!(map.success());

    let retried = story(&cluster, &sink, "retried", [1, 3, 3, 6]).await;
    check_fields(&retried, "story");
    let mut attempts: Vec<(&str, bool)> =
        retried.named("process").iter().map(|span| (span.fields["attempt"].as_str(), span.failed)).collect();
    attempts.sort_unstable();
    assert_eq!(attempts, [("1", true), ("2", true), ("3", false)]);
    let failures: Vec<_> = retried.failures.iter().map(|line| (line.event.as_str(), line.level.as_str())).collect();
    assert_eq!(failures, [("millpond.attempt.failed", "WARN"); 2]);
    assert_eq!(retried.failures[0].fields["exception.message"], "not yet");
    let publish = retried.named("publish")[0];
    assert_eq!(publish.parent, "", "a trace begins with its publish");
    for span in retried.named("wait").into_iter().chain(retried.named("process")) {
        assert_eq!(span.parent, publish.span, "attempts stand side by side");
        assert_eq!(span.scope, ("millpond".to_owned(), "https://opentelemetry.io/schemas/1.45.0".to_owned()));
        assert!(span.name.starts_with("process") || span.links.is_empty(), "{span:?}");
    }
    // An attempt is linked with the publish, and with the attempt that it follows.
    let mut before = None;
    for attempt in ["1", "2", "3"] {
        let span = retried.named("process").into_iter().find(|span| span.fields["attempt"] == attempt).unwrap();
        let linked = [&publish.span].into_iter().chain(before.replace(&span.span));
        assert_eq!(span.links, linked.map(|to| (publish.trace.clone(), to.clone())).collect::<Vec<_>>());
    }

    let dead = story(&cluster, &sink, "dead", [1, 1, 1, 2]).await;
    check_fields(&dead, "story");
    let attempt = dead.named("process")[0];
    assert_eq!(
        (attempt.fields["error.type"].as_str(), attempt.events.as_slice()),
        ("ValueError", &["exception".to_owned()][..])
    );

    let [letter] = dead.failures.as_slice() else { panic!("{:?}", dead.failures) };
    assert_eq!((letter.event.as_str(), letter.level.as_str()), ("millpond.task.dead_letter", "ERROR"));
    assert_eq!((letter.fields["task_id"].as_str(), letter.fields["reason"].as_str()), ("dead", "fatal"));
    assert_eq!((&letter.span, letter.fields["exception.type"].as_str()), (&attempt.span, "ValueError"));

    let chained = story(&cluster, &sink, "chained", [1, 2, 2, 4]).await;
    let step = chained
        .named("process")
        .into_iter()
        .find(|span| span.fields["task_id"] == "chained/default.story/then")
        .unwrap();
    let first = chained.named("process").into_iter().find(|span| span.fields["task_id"] == "chained").unwrap();
    assert_eq!(step.parent, first.span, "a step is below the attempt that it follows");

    let delayed = story(&cluster, &sink, "delayed", [1, 1, 1, 2]).await;
    let waited = delayed.named("wait")[0].took_ns;
    assert!(waited < 60_000_000_000, "it waits since it is due: {waited}");
    story(&cluster, &sink, "claimed", [1, 1, 1, 2]).await;

    let batched = story(&cluster, &sink, "batched.1/0+3", [1, 1, 1, 6]).await;
    let attempt = batched.named("process")[0];
    assert_eq!(attempt.fields["messaging.batch.message_count"], "3");
    let mut items: Vec<&str> = batched.lines.iter().map(|line| line.fields["task_id"].as_str()).collect();
    items.dedup();
    assert_eq!(items.len(), 3, "each line names its item: {items:?}");

    // What a handler answers with is the span that its own spans would be below.
    let result = cluster.ended("chained/default.story/then").await;
    assert_eq!(text(&result["result"], "traceparent"), format!("00-{}-{}-01", step.trace, step.span));
    stored_once(&sink).await;
    bare_and_once(&cluster, &sink).await;

    // Nothing more comes of any of them, also when all is sent.
    worker.signal(Signal::SIGTERM);
    assert!(worker.end(PATIENCE).await.success());
    for story in [retried, dead, chained, delayed, batched] {
        assert_eq!(Story::of(&sink, &story.spans[0].trace).counts(), story.counts());
    }
    let attempts = sink.spans().into_iter().filter(|span| span.name.starts_with("process ")).count();
    assert_eq!(attempts, 10, "3 of the retried, 1 dead, 2 of the chain, delayed, claimed, batch, bare");
}

const LOGGING: &str = r#"
import json, sys

def say(text):
    print(text, file=sys.stderr, flush=True)

for line in sys.stdin:
    stack = 'Traceback (most recent call last):\n  File "pay.py", line 7, in pay\nValueError: no such account'
    say(json.dumps({"level": "error", "event": "paying failed", "user": 7, "cart": {"items": [1]}, "exception": stack}))
    say("WARNING:root:disk is nearly full")
    say("\x1b[31mred\x1b[0m")
    say("Traceback (most recent call last):\n  File \"x.py\", line 1\nKeyError: 'a'")
    print(json.dumps({"ok": 1}), flush=True)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_logs_keeps_its_level_fields_and_exceptions_and_a_cancelled_attempt_says_so() {
    let (sink, cluster, dir) = (Sink::start(Mode::Takes).await, Cluster::start().await, tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("logging.py"), LOGGING).unwrap();
    let path = dir.path().join("handlers.toml");
    std::fs::write(&path, "[logs]\ncommand = [\"python3\", \"logging.py\"]\n").unwrap();
    let flags = ["--handlers", path.to_str().unwrap(), "--log-json"];
    let mut worker = cluster.worker_with("w1", &flags, &sink.environment());
    let within = RetryDeadline::Within(PATIENCE);
    let logged = cluster.client.submit(&task("logs", "1"), within).await.unwrap().id;
    assert_eq!(cluster.ended(&logged).await["status"], "done");
    let hangs = cluster.client.submit(&task("fail", r#"{"how": "hang"}"#), within).await.unwrap().id;
    until("its start", PATIENCE, async || {
        let why = cluster.command(&["why", &hangs]).output().unwrap();
        String::from_utf8_lossy(&why.stdout).contains("w1").then_some(())
    })
    .await;
    command(&cluster, &sink, &["task", "cancel", &hangs]).await;
    assert_eq!(cluster.ended(&hangs).await["status"], "cancelled");
    worker.signal(Signal::SIGTERM);
    assert!(worker.end(PATIENCE).await.success());

    let attempt = |id: &str| {
        let of = |span: &SeenSpan| span.name.starts_with("process ") && span.fields["task_id"] == id;
        sink.spans().into_iter().find(of).unwrap()
    };
    let cancelled = attempt(&hangs);
    assert!(cancelled.failed && cancelled.events.is_empty(), "no exception: {cancelled:?}");
    assert_eq!(cancelled.fields["error.type"], "cancelled");
    let lines: Vec<_> = sink.logs().into_iter().filter(|line| line.trace == attempt(&logged).trace).collect();
    let said: Vec<_> = lines.iter().map(|line| (line.level.as_str(), line.message.as_str())).collect();
    let expected = [
        ("ERROR", "paying failed"),
        ("WARN", "WARNING:root:disk is nearly full"),
        ("INFO", "red"),
        ("ERROR", "KeyError: 'a'"),
    ];
    assert_eq!(said, expected);
    for line in &lines {
        assert_eq!((line.event.as_str(), line.fields["task_id"].as_str()), ("millpond.child.line", logged.as_str()));
    }
    assert!(lines[0].fields["fields"].contains("user") && lines[0].fields["fields"].contains("cart"), "{:?}", lines[0]);
    assert_eq!(
        (&lines[0].fields["exception.type"], &lines[3].fields["exception.type"]),
        (&"ValueError".into(), &"KeyError".into())
    );
    assert!(lines[0].fields["exception.stacktrace"].contains("pay.py"), "{:?}", lines[0]);
    // The same on standard error.
    let log: Vec<Value> = cluster.log("w1").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = log.iter().find(|line| line["message"] == "paying failed").unwrap();
    assert_eq!((&line["fields"]["user"], &line["fields"]["cart"]["items"]), (&7.into(), &vec![1].into()));
    assert_eq!((&line["error.type"], &line["event.action"]), (&"ValueError".into(), &"millpond.child.line".into()));
    assert!(line["error.stack_trace"].as_str().unwrap().contains("pay.py"), "{line}");
    assert!(log.iter().all(|line| line["event.action"].as_str().is_none_or(|name| name.starts_with("millpond."))));
}

/// Each attempt is referred to by the span of one commit of RESULTS.
async fn stored_once(sink: &Sink) {
    let all = sink.spans();
    for attempt in all.iter().filter(|span| span.name.starts_with("process tasks.")) {
        let place = (attempt.trace.clone(), attempt.span.clone());
        until("the span of a commit", PATIENCE, async || {
            let spans = sink.spans();
            let commits = spans.iter().filter(|span| span.name == "store RESULTS" && span.links.contains(&place));
            (commits.count() == 1).then_some(())
        })
        .await;
    }
    let spans = sink.spans();
    let commit = spans.iter().find(|span| span.name == "store RESULTS").unwrap();
    assert_eq!((commit.parent.as_str(), commit.resource["service.name"].as_str()), ("", "millpond-collector"));
    assert!(spans.iter().any(|span| span.name == "store DEAD" && span.links.len() == 1));
}

/// A task that brings no trace has one that begins with its wait; a process for one task finds it in its environment.
async fn bare_and_once(cluster: &Cluster, sink: &Sink) {
    let bare = cluster.client.submit(&task("once", "1"), RetryDeadline::Unlimited).await.unwrap().id;
    let told = story(cluster, sink, &bare, [0, 1, 1, 1]).await;
    let (wait, attempt) = (told.named("wait")[0], told.named("process")[0]);
    assert_eq!((wait.parent.as_str(), &attempt.parent), ("", &wait.span));
    assert_eq!(told.lines[0].message, "one line");
    let result = text(&cluster.ended(&bare).await, "result");
    assert_eq!(result, format!("00-{}-{}-01", attempt.trace, attempt.span));
}

/// A figure of a `/metrics` page.
fn figure(page: &str, name: &str) -> Option<u64> {
    page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

struct Watched {
    process: Process,
    url: String,
}

impl Watched {
    fn start(cluster: &Cluster, environment: &[(&str, &str)]) -> Self {
        let listen = format!("127.0.0.1:{}", free_port());
        let process = cluster.worker_with("w1", &["--listen", &listen], environment);
        Self { process, url: format!("http://{listen}/metrics") }
    }

    async fn page(&self) -> Option<String> {
        reqwest::get(&self.url).await.ok()?.text().await.ok()
    }

    /// Waiting, sent and dropped spans.
    async fn spans(&self) -> Option<[u64; 3]> {
        let page = self.page().await?;
        let of = |name: &str| figure(&page, &format!("millpond_telemetry_{name}{{signal=\"traces\"}}"));
        Some([of("waiting")?, of("sent_total")?, of("dropped_total")?])
    }
}

/// Publishes tasks that bring no trace, and waits for their ends, each at its first attempt.
async fn run_tasks(cluster: &Cluster, job: &str, count: u64) {
    let sent = (0..count).map(|n| {
        let task = NewTask { job: Some(job.to_owned()), index: Some(n), ..task("square", &n.to_string()) };
        async move { cluster.client.submit(&task, RetryDeadline::Unlimited).await.unwrap() }
    });
    futures_util::future::join_all(sent).await;
    let path = format!("/api/v1/jobs/{job}");
    until("end of all tasks", PATIENCE, async || {
        let found: Value = cluster.get(&path, &[]).await?;
        (found["done"].as_u64() == Some(count)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_refuses_or_is_away_is_in_nobodys_way() {
    let refusing = Sink::start(Mode::Refuses).await;
    let away = format!("http://127.0.0.1:{}", free_port());
    let cluster = Cluster::start().await;
    for (job, url) in [("refused", refusing.url.as_str()), ("away", away.as_str())] {
        let mut worker = Watched::start(&cluster, &[("OTEL_EXPORTER_OTLP_ENDPOINT", url)]);
        run_tasks(&cluster, job, 300).await;
        // A wait and an attempt of each.
        until("count of what was dropped", PATIENCE, async || (worker.spans().await? == [0, 0, 600]).then_some(()))
            .await;
        let said = cluster.log("w1");
        assert!(said.contains("telemetry cannot be exported"), "{said}");
        worker.process.signal(Signal::SIGTERM);
        assert!(worker.process.end(Duration::from_secs(15)).await.success());
        assert!(cluster.log("w1").contains("not all telemetry could be exported"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_costs_what_does_not_fit_the_queue() {
    let sink = Sink::start(Mode::Hangs).await;
    let cluster = Cluster::start().await;
    let mut worker = Watched::start(&cluster, &sink.environment());
    let tasks = TELEMETRY_QUEUE_MAX as u64 / 2 + 500;
    run_tasks(&cluster, "hung", tasks).await;
    assert!(sink.was_asked());
    let spans =
        until("spans", PATIENCE, async || worker.spans().await.filter(|s| s.iter().sum::<u64>() == tasks * 2)).await;
    assert!(spans[0] <= TELEMETRY_QUEUE_MAX as u64 && spans[1] == 0 && spans[2] >= 1000, "{spans:?}");
    worker.process.signal(Signal::SIGTERM);
    let started = Instant::now();
    assert!(worker.process.end(Duration::from_secs(15)).await.success());
    assert!(started.elapsed() < Duration::from_secs(8), "the last flush is bounded: {:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_and_lines_arrive_before_the_end() {
    let sink = Sink::start(Mode::Takes).await;
    let cluster = Cluster::start().await;
    let mut worker = cluster.worker_with("w1", &[], &sink.environment());
    let id = cluster.client.submit(&task("square", "3"), RetryDeadline::Unlimited).await.unwrap().id;
    let trace = trace_of(&cluster, &id).await;
    worker.signal(Signal::SIGTERM);
    assert!(worker.end(PATIENCE).await.success());
    assert_eq!(Story::of(&sink, &trace).counts(), [0, 1, 1, 0]);
    let drained = sink.logs().into_iter().filter(|line| line.message == "worker drained").count();
    assert_eq!(drained, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_begins_a_trace_decides_whether_it_is_exported() {
    let sink = Sink::start(Mode::Takes).await;
    let cluster = Cluster::start().await;
    let sampler = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0")];
    let mut worker = cluster.worker_with("w1", &[], &[&sink.environment()[..], &sampler].concat());
    let mut submitted = Vec::new();
    for flags in [None, Some("00"), Some("01")] {
        let traceparent =
            flags.map(|flags| format!("00-0af7651916cd43dd8448eb211c803{flags}c-b7ad6b7169203331-{flags}"));
        let asked = NewTask { traceparent, ..task("fail", r#"{"until":2}"#) };
        let id = cluster.client.submit(&asked, RetryDeadline::Unlimited).await.unwrap().id;
        submitted.push(trace_of(&cluster, &id).await);
    }
    worker.signal(Signal::SIGTERM);
    assert!(worker.end(PATIENCE).await.success());
    let counts: Vec<[usize; 4]> = submitted.iter().map(|trace| Story::of(&sink, trace).counts()).collect();
    assert_eq!(counts, [[0; 4], [0; 4], [0, 2, 2, 0]], "{submitted:?}");
}

/// Publisher and worker come to the same trace, told or not: the same ratio exports all of it or nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_its_publisher_does_not_export_is_not_told() {
    let sink = Sink::start(Mode::Takes).await;
    let cluster = Cluster::start().await;
    let mut counts = Vec::new();
    for (id, publisher, worker) in [("none", "0", "0"), ("told", "1", "0"), ("below", "0", "1")] {
        let sampler = |ratio| [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", ratio)];
        let mut worker = cluster.worker_with("w1", &[], &[&sink.environment()[..], &sampler(worker)].concat());
        let mut submit = cluster.command(&["submit", "fail", r#"{"until":2}"#, "--id", id]);
        submit.envs(sink.environment()).envs(sampler(publisher)).stdout(Stdio::null());
        assert!(tokio::task::spawn_blocking(move || submit.status().unwrap()).await.unwrap().success());
        let trace = trace_of(&cluster, id).await;
        assert_eq!(trace, TraceContext::of_task("default", "fail", id).trace_id());
        worker.signal(Signal::SIGTERM);
        assert!(worker.end(PATIENCE).await.success());
        counts.push(Story::of(&sink, &trace).counts());
    }
    assert_eq!(counts, [[0; 4], [1, 2, 2, 0], [0, 2, 2, 0]]);
}
