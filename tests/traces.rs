//! The spans of programs: those of a handler in Rust, however it runs, below its attempt; those of millpond in a program with a tracer
//! provider of its own; links from a replay to what came before; and how all of it, and metrics, is sent, as the standard variables say.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use millpond::bus::publish::RetryDeadline;
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;

use crate::harness::{Cluster, PATIENCE, Process, free_port, task, text, until};
use crate::otlp_sink::{Mode, SeenSpan, Sink, hex};
use crate::rust_client::example;

/// Each span of a trace, by the names from its root on.
fn paths(spans: &[SeenSpan], trace: &str) -> Vec<String> {
    let of_trace: Vec<&SeenSpan> = spans.iter().filter(|span| span.trace == trace).collect();
    let path = |span: &SeenSpan| {
        let (mut path, mut at) = (span.name.clone(), span);
        while let Some(parent) = of_trace.iter().find(|other| other.span == at.parent) {
            path = format!("{} > {path}", parent.name);
            at = parent;
        }
        // One whose parent is missing is no root.
        if at.parent.is_empty() { path } else { format!("? > {path}") }
    };
    let mut paths: Vec<String> = of_trace.iter().map(|span| path(span)).collect();
    paths.sort_unstable();
    paths
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_of_a_handler_are_below_its_attempt_however_it_runs() {
    let Some(program) = example("traced") else { return };
    let (sink, cluster) = (Sink::behind_collector().await, Cluster::start().await);
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("traced.log");
    let mut command = Command::new(program);
    command.env("MILLPOND_WORKER_NATS_URL", cluster.nats.url("worker")).envs(sink.environment());
    command.args(["--name", "w1", "--log-file"]).arg(&log);
    let mut worker = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let mut submit = cluster.command(&[
        "submit",
        "fetch",
        "\"one two\"",
        "--id",
        "t1",
        "--continuation",
        "count",
        "--continuation",
        "rank",
        "--wait",
    ]);
    submit.envs(sink.environment());
    let ended = tokio::task::spawn_blocking(move || submit.output().unwrap()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "20\n", "{ended:?}");
    let trace = text(&cluster.ended("t1").await, "trace");
    worker.signal(Signal::SIGTERM);
    assert!(worker.end(PATIENCE).await.success());
    let (publish, process) = ("publish tasks.default.fetch", "process tasks.default");
    let (fetch, count) =
        (format!("{publish} > {process}.fetch"), format!("{publish} > {process}.fetch > {process}.count"));
    let rank = format!("{count} > {process}.rank");
    let mut expected = vec![
        publish.to_owned(),
        format!("{publish} > wait tasks.default.fetch"),
        fetch.clone(),
        format!("{fetch} > read"),
        format!("{fetch} > wait tasks.default.count"),
        count.clone(),
        format!("{count} > split"),
        format!("{count} > wait tasks.default.rank"),
        rank.clone(),
        format!("{rank} > sort"),
        format!("{rank} > sort > compare"),
    ];
    expected.sort_unstable();
    let spans = sink.spans();
    assert_eq!(paths(&spans, &trace), expected);
    // The child has exported nothing itself: its spans come with the worker's.
    let sort = spans.iter().find(|span| span.name == "sort").unwrap();
    assert_eq!((sort.resource["service.instance.id"].as_str(), sort.fields["words"].as_str()), ("w1", "2"));
    // Fields of spans are in the log file without colours.
    let log = std::fs::read_to_string(log).unwrap();
    assert!(!log.contains('\x1b') && !log.contains("u{1b}"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_with_its_own_provider_sees_the_spans_of_millpond_in_it() {
    let Some(program) = example("own_provider") else { return };
    let sink = Sink::behind_collector().await;
    let mut command = Command::new(program);
    command.envs(sink.environment());
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "hello hello you\n", "{ended:?}");
    let spans = sink.spans();
    let root = spans.iter().find(|span| span.name == "order").unwrap();
    let publish = "order > publish tasks.default.greet";
    let (first, wait) = (format!("{publish} > process tasks.default.greet"), "wait tasks.default.greet");
    let second = format!("{first} > process tasks.default.greet");
    let mut expected = vec![
        "order".to_owned(),
        publish.to_owned(),
        format!("{publish} > {wait}"),
        first.clone(),
        format!("{first} > write a greeting"),
        format!("{first} > {wait}"),
        second.clone(),
        format!("{second} > write a greeting"),
    ];
    expected.sort_unstable();
    assert_eq!(paths(&spans, &root.trace), expected);
    assert_eq!(spans.len(), expected.len(), "no other trace: {spans:?}");
    for span in spans.iter().filter(|span| span.name.contains("tasks.")) {
        assert_eq!(span.resource["service.name"], "own-program");
        assert_eq!((span.scope.0.as_str(), span.fields["messaging.system"].as_str()), ("millpond", "nats"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_linked_with_the_attempt_that_died() {
    let (sink, mut cluster) = (Sink::behind_collector().await, Cluster::start().await);
    cluster.restart_collector_with(&sink.environment());
    let (_producer, _) = cluster.producer().await;
    let mut worker = cluster.worker_with("w1", &["--queues", "default,other"], &sink.environment());
    for id in ["here", "moved"] {
        let dies =
            millpond::client::NewTask { id: Some(id.to_owned()), ..task("fail", r#"{"how":"fatal","until":2}"#) };
        cluster.client.submit(&dies, RetryDeadline::Unlimited).await.unwrap();
        assert_eq!(cluster.ended(id).await["status"], "dead");
    }
    for arguments in [&["dead", "retry", "here"][..], &["dead", "retry", "moved", "--to-queue", "other", "--args", "1"]]
    {
        let replayed = cluster.command(arguments).output().unwrap();
        assert!(replayed.status.success(), "{replayed:?}");
    }
    until("the end of what runs again", PATIENCE, async || {
        (cluster.get("/api/v1/task", &[("id", "here".into())]).await?["status"] == "done").then_some(())
    })
    .await;
    cluster.ended("moved@default").await;
    worker.signal(Signal::SIGTERM);
    assert!(worker.end(PATIENCE).await.success());
    let spans = sink.spans();
    let attempt = |id: &str, attempt: &str| {
        let is_of = |span: &&SeenSpan| {
            span.name.starts_with("process ") && span.fields["task_id"] == id && span.fields["attempt"] == attempt
        };
        spans.iter().find(is_of).unwrap_or_else(|| panic!("{id} {attempt}: {spans:#?}"))
    };
    for (again, before) in
        [(attempt("here", "2"), attempt("here", "1")), (attempt("moved@default", "1"), attempt("moved", "1"))]
    {
        assert!(again.links.contains(&(before.trace.clone(), before.span.clone())), "{again:?} {before:?}");
    }
}

/// Runs one task on a worker with this environment, to its end; the worker's log.
async fn exported(cluster: &Cluster, environment: &[(&str, &str)]) -> String {
    let mut worker = cluster.worker_with("w1", &[], environment);
    let id = cluster.client.submit(&task("square", "3"), RetryDeadline::Unlimited).await.unwrap().id;
    assert_eq!(cluster.ended(&id).await["result"], 9);
    worker.signal(Signal::SIGTERM);
    assert!(worker.end(PATIENCE).await.success());
    cluster.log("w1")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_standard_variables_say_how_it_is_sent() {
    let cluster = Cluster::start().await;
    let sent = async |environment: &[(&str, &str)]| {
        let sink = Sink::start(Mode::Takes).await;
        exported(&cluster, &[&sink.environment()[..], environment].concat()).await;
        sink
    };
    assert!(sent(&[("OTEL_SDK_DISABLED", "true")]).await.requests().is_empty());
    let named = sent(&[
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=all,x-key=a%20b"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-tenant=spans"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team=blue,service.version=mine"),
        ("OTEL_SERVICE_NAME", "renamed"),
    ])
    .await;
    let requests = named.requests();
    for (path, tenant, key) in [("/v1/traces", "spans", None), ("/v1/logs", "all", Some("a b"))] {
        let (_, headers) = requests.iter().find(|(of, _)| of == path).unwrap();
        assert_eq!(
            (headers["x-tenant"].to_str().unwrap(), &headers["content-encoding"]),
            (tenant, &"gzip".parse().unwrap())
        );
        assert_eq!(
            headers.get("x-key").map(|value| value.to_str().unwrap()),
            key,
            "the more particular variable alone"
        );
        assert_eq!(headers["content-type"], "application/x-protobuf");
    }
    let spans = named.spans();
    assert_eq!(spans.iter().filter(|span| span.name.starts_with("process ")).count(), 1);
    let resource = &spans[0].resource;
    let of = |name: &str| resource[name].as_str();
    assert_eq!((of("service.name"), of("team"), of("service.version")), ("renamed", "blue", "mine"));
    assert!(sent(&[("OTEL_TRACES_SAMPLER", "always_off")]).await.spans().is_empty());
    // An address for one signal is the whole URL.
    let sink = Sink::start(Mode::Takes).await;
    let url = format!("{}/v1/traces", sink.url);
    exported(&cluster, &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &url)]).await;
    assert_eq!((sink.spans().len(), sink.logs().len()), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_busy_gets_it_later_and_one_that_is_silent_is_left_in_time() {
    let cluster = Cluster::start().await;
    let busy = Sink::start(Mode::IsBusyTwice).await;
    let only_traces = ("OTEL_LOGS_EXPORTER", "none");
    exported(&cluster, &[&busy.environment()[..], &[only_traces]].concat()).await;
    assert_eq!(busy.spans().len(), 2, "nothing is lost");
    let silent = Sink::start(Mode::Hangs).await;
    let listen = format!("127.0.0.1:{}", free_port());
    let environment = [&silent.environment()[..], &[only_traces, ("OTEL_EXPORTER_OTLP_TIMEOUT", "300")]].concat();
    let mut worker = cluster.worker_with("w1", &["--listen", &listen], &environment);
    let started = Instant::now();
    cluster.client.submit(&task("square", "3"), RetryDeadline::Unlimited).await.unwrap();
    let dropped = "millpond_telemetry_dropped_total{signal=\"traces\"} 2";
    until("what is dropped", PATIENCE, async || {
        let page = reqwest::get(format!("http://{listen}/metrics")).await.ok()?.text().await.ok()?;
        page.contains(dropped).then_some(())
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(8), "ten seconds are the default: {:?}", started.elapsed());
    worker.signal(Signal::SIGTERM);
    assert!(worker.end(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_is_wrong_is_named() {
    let cluster = Cluster::start().await;
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
    ] {
        let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"), (name, value)];
        let mut worker = cluster.worker_with("w1", &[], &environment);
        assert!(!worker.end(PATIENCE).await.success(), "{name}");
        let said = cluster.log("w1");
        assert!(said.contains(name) && !said.contains("secret"), "{name}: {said}");
    }
}

/// The sum of a metric's points, by all requests' last one; and the number of points of a histogram.
fn last(sink: &Sink, name: &str) -> Option<f64> {
    let metric = sink.metrics().into_iter().rfind(|metric| metric.name == name)?;
    let points = match metric.data? {
        Data::Sum(sum) => sum.data_points,
        Data::Gauge(gauge) => gauge.data_points,
        Data::Histogram(histogram) => {
            let counts = histogram.data_points.iter().map(|point| point.bucket_counts.iter().sum::<u64>());
            return Some(millpond::telemetry::gauge(counts.sum::<u64>()));
        }
        _ => return None,
    };
    Some(points.into_iter().map(|point| if let Some(Value::AsDouble(value)) = point.value { value } else { 0.0 }).sum())
}

/// Trace and span of each exemplar of a histogram.
fn exemplars(sink: &Sink, name: &str) -> Vec<(String, String)> {
    let points = sink.metrics().into_iter().filter(|metric| metric.name == name).flat_map(|metric| match metric.data {
        Some(Data::Histogram(histogram)) => histogram.data_points,
        _ => panic!("{name} is a histogram"),
    });
    points.flat_map(|point| point.exemplars).map(|one| (hex(&one.trace_id), hex(&one.span_id))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_the_same_names_and_values_over_otlp_and_for_prometheus() {
    let (sink, mut cluster) = (Sink::behind_collector().await, Cluster::start().await);
    let soon = [("OTEL_METRIC_EXPORT_INTERVAL", "200")];
    let environment = [&sink.environment()[..], &soon].concat();
    cluster.restart_collector_with(&environment);
    let listen = format!("127.0.0.1:{}", free_port());
    let mut worker = cluster.worker_with("w1", &["--listen", &listen], &environment);
    for (kind, arguments, status) in
        [("square", "3", "done"), ("fail", r#"{"until":2}"#, "done"), ("fail", r#"{"how":"fatal"}"#, "dead")]
    {
        let id = cluster.client.submit(&task(kind, arguments), RetryDeadline::Unlimited).await.unwrap().id;
        assert_eq!(cluster.ended(&id).await["status"], status);
    }
    let expected = [
        ("millpond_attempts_total", 4.0),
        ("millpond_retries_total", 1.0),
        ("millpond_dead_letters_total", 1.0),
        ("millpond_message_run_seconds", 4.0),
        ("millpond_tasks_ended_total", 4.0),
        ("millpond_queue_workers", 1.0),
    ];
    for (name, value) in expected {
        until(name, PATIENCE, async || (last(&sink, name) == Some(value)).then_some(())).await;
    }
    let attempts = until("the spans of all attempts", PATIENCE, async || {
        let attempts: Vec<_> = sink.spans().into_iter().filter(|span| span.name.starts_with("process ")).collect();
        (attempts.len() == 4).then_some(attempts)
    })
    .await;
    for name in ["millpond_message_wait_seconds", "millpond_message_run_seconds", "millpond_message_settle_seconds"] {
        let exemplars = exemplars(&sink, name);
        assert!(!exemplars.is_empty(), "{name}");
        for (trace, span) in exemplars {
            assert!(
                attempts.iter().any(|attempt| attempt.trace == trace && attempt.span == span),
                "{name} {attempts:?}"
            );
        }
    }
    let page = reqwest::get(format!("http://{listen}/metrics")).await.unwrap().text().await.unwrap();
    for line in [
        r#"millpond_attempts_total{kind="fail",status="failed"} 2"#,
        r#"millpond_retries_total{kind="fail"} 1"#,
        r#"millpond_dead_letters_total{kind="fail"} 1"#,
        r#"millpond_publish_seconds_count{stream="RESULTS"}"#,
    ] {
        assert!(page.contains(line), "{line} in {page}");
    }
    let attempts = sink.metrics().into_iter().rfind(|metric| metric.name == "millpond_attempts_total").unwrap();
    let Some(Data::Sum(sum)) = attempts.data else { panic!("a counter is a sum") };
    assert!(sum.is_monotonic && sum.data_points.iter().all(|point| point.start_time_unix_nano > 0));
    worker.signal(Signal::SIGTERM);
    assert!(worker.end(PATIENCE).await.success());
    // Whoever wants none gets none.
    let quiet = Sink::start(Mode::Takes).await;
    let off = [("OTEL_METRIC_EXPORT_INTERVAL", "50"), ("OTEL_METRICS_EXPORTER", "none")];
    exported(&cluster, &[&quiet.environment()[..], &off].concat()).await;
    assert!(quiet.metrics().is_empty());
}
