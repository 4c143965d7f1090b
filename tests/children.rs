//! Handlers in processes of their own: whatever a child does to itself, its one task pays and its neighbours do not; and
//! whatever becomes of the worker, no child stays behind.

use std::path::Path;
use std::time::{Duration, Instant};

use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Cluster, PATIENCE, Process, statuses, task, text, until};

/// A folder with `handlers.toml`: one kind, `child`, run by tests/handlers/child.py.
struct Handlers {
    dir: TempDir,
}

impl Handlers {
    fn new(arguments: &str, fields: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/handlers/child.py").canonicalize().unwrap();
        Self::of(&format!("[child]\ncommand = [\"python3\", {script:?} {arguments}]\n{fields}"))
    }

    fn of(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("handlers.toml"), text).unwrap();
        Self { dir }
    }

    fn worker(&self, cluster: &Cluster, name: &str, more: &[&str]) -> Process {
        let path = self.dir.path().join("handlers.toml");
        let arguments = [&["--handlers", path.to_str().unwrap()], more].concat();
        cluster.worker(name, &arguments, None)
    }
}

/// Runs one task of the kind `child` with one attempt; how it ended.
async fn run(cluster: &Cluster, arguments: Value) -> Value {
    let once = NewTask { attempts_max: Some(1), ..task("child", &arguments.to_string()) };
    let id = cluster.client.submit(&once, RetryDeadline::Unlimited).await.unwrap().id;
    cluster.ended(&id).await
}

/// The failure of a task that must be dead.
fn failure(ended: &Value) -> &Value {
    assert_eq!(ended["status"], "dead", "{ended}");
    &ended["dead"]["failure"]
}

fn log(failure: &Value) -> Vec<&str> {
    failure["child"]["log"].as_array().map(|lines| lines.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

/// Whether a process runs; one that has ended and that nobody has asked for yet does not.
fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

async fn gone(pid: i32) {
    until(&format!("end of process {pid}"), Duration::from_secs(1), async || (!runs(pid)).then_some(())).await;
}

/// Processes below `root`.
fn below(root: u32) -> Vec<i32> {
    let mut found = vec![root.cast_signed()];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
    }
    found.split_off(1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_is_blamed_on_its_task_with_its_evidence() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::new("", "slots = 1");
    let _worker = handlers.worker(&cluster, "w1", &[]);
    assert_eq!(run(&cluster, json!(7)).await["result"], 7);
    let crashed = run(&cluster, json!({"how": "segfault"})).await;
    let crash = failure(&crashed);
    assert_eq!((&crash["type"], &crash["child"]["signal"]), (&json!("signal"), &json!(11)), "{crash}");
    assert_eq!(crash["child"]["name"], "w1/child-1");
    assert_eq!(log(crash), ["about to crash"]);
    let left = run(&cluster, json!({"how": "exit"})).await;
    let exit = failure(&left);
    assert_eq!((&exit["type"], &exit["child"]["exit_code"]), (&json!("exit"), &json!(3)), "{exit}");
    assert!(text(exit, "message").contains("leaving with 3"), "{exit}");
    let raised = run(&cluster, json!({"how": "raise"})).await;
    let told = failure(&raised);
    assert_eq!(
        (&told["type"], &told["traceback"], &told["retry"]),
        (&json!("ValueError"), &json!("line 1"), &json!(false))
    );
    // Others go on, in another process of the same name.
    assert_eq!(run(&cluster, json!("next")).await["result"], "next");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_is_no_answer_ends_the_child_and_says_why() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::new("", "slots = 1");
    let _worker = handlers.worker(&cluster, "w1", &[]);
    for (how, kind, words) in [
        ("garbage", "bad_output", "this is no"),
        ("long_line", "result_too_large", "bytes"),
        ("close", "bad_output", "closed its standard output"),
    ] {
        let ended = run(&cluster, json!({ "how": how })).await;
        let failure = failure(&ended);
        assert_eq!(failure["type"], kind, "{how}: {failure}");
        assert!(text(failure, "message").contains(words), "{how}: {failure}");
        assert_eq!(run(&cluster, json!(how)).await["result"], how, "the next task runs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_uses_too_much_memory_is_ended_during_its_task() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::new("", "slots = 2\nmemory = \"200MiB\"");
    let _worker = handlers.worker(&cluster, "w1", &[]);
    let slow = NewTask { attempts_max: Some(1), ..task("child", r#"{"how": "progress", "seconds": 5}"#) };
    let neighbour = cluster.client.submit(&slow, RetryDeadline::Unlimited).await.unwrap().id;
    let ended = run(&cluster, json!({"how": "memory"})).await;
    let oom = failure(&ended);
    assert_eq!((&oom["type"], &oom["child"]["oom"]), (&json!("oom"), &json!(true)), "{oom}");
    assert!(oom["child"]["rss_bytes"].as_u64().unwrap() > 200 << 20, "{oom}");
    assert!(text(oom, "message").contains("200.0 MiB"), "{oom}");
    assert_eq!(cluster.ended(&neighbour).await["attempt"], 1, "the neighbour was left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_takes_too_long_is_told_then_asked_then_killed() {
    let cluster = Cluster::start().await;
    let times = "soft_timeout = \"500ms\"\ntimeout = \"2s\"\ngrace = \"300ms\"";
    let deaf = Handlers::new(", \"deaf\", \"ready\"", &format!("slots = 1\nstart_within = \"20s\"\n{times}"));
    let _worker = deaf.worker(&cluster, "w1", &[]);
    let started = Instant::now();
    let ended = run(&cluster, json!({"how": "hang"})).await;
    let late = failure(&ended);
    assert_eq!((&late["type"], &late["child"]["signal"]), (&json!("timeout"), &json!(9)), "{late}");
    assert!(started.elapsed() >= Duration::from_secs(2), "not before its hard timeout");
    assert_eq!(log(late), ["asked to end, and staying"], "SIGTERM came first: {late}");
    // One that ends when it is asked has not reached its hard timeout.
    let polite = Handlers::new("", "slots = 1\nsoft_timeout = \"500ms\"\ntimeout = \"1h\"\ngrace = \"300ms\"");
    let _worker = polite.worker(&cluster, "w2", &["--queues", "polite"]);
    let hangs = NewTask { queue: "polite".into(), attempts_max: Some(1), ..task("child", r#"{"how": "hang"}"#) };
    let id = cluster.client.submit(&hangs, RetryDeadline::Unlimited).await.unwrap().id;
    let ended = cluster.ended(&id).await;
    assert_eq!(failure(&ended)["type"], "timeout", "{ended}");
    assert_eq!(failure(&ended)["child"]["signal"], 15, "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn children_that_cannot_start_burn_no_task() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("late.py");
    let hangs = Handlers::new(", \"hang\"", "slots = 1\nstart_within = \"300ms\"").dir;
    let mut text = std::fs::read_to_string(hangs.path().join("handlers.toml")).unwrap().replace("[child]", "[hangs]");
    text += &format!("\n[late]\ncommand = [{program:?}]\nslots = 1\n");
    let handlers = Handlers::of(&text);
    let _worker = handlers.worker(&cluster, "w1", &[]);
    let submit = async |kind: &str| cluster.client.submit(&task(kind, "5"), RetryDeadline::Unlimited).await.unwrap().id;
    let (late, hanging) = (submit("late").await, submit("hangs").await);
    let record = cluster.worker_is("w1", |w| w["troubles"].as_object().is_some_and(|t| t.len() == 2)).await;
    assert!(text_of(&record, "late").contains("cannot start"), "{record}");
    assert!(text_of(&record, "hangs").contains("start_within"), "{record}");
    // Once its command is there, the same attempt runs.
    std::fs::write(&program, "#!/bin/sh\nwhile read -r line; do echo '{\"ok\": \"at last\"}'; done\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let ended = cluster.ended(&late).await;
    assert_eq!((&ended["result"], &ended["attempt"]), (&json!("at last"), &json!(1)), "{ended}");
    let waiting = cluster.get("/api/v1/task", &[("id", hanging)]).await;
    assert!(waiting.is_none_or(|task| task["status"] == "retrying" || task["attempt"] == 1), "it was not burned");
    cluster.worker_is("w1", |w| w["troubles"].as_object().is_some_and(|t| t.len() == 1)).await;
}

fn text_of(record: &Value, kind: &str) -> String {
    text(&record["troubles"], kind)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_between_two_items_of_a_batch_costs_one_item() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::new("", "slots = 1");
    let _worker = handlers.worker(&cluster, "w1", &[]);
    let batch = NewTask {
        job: Some("torn".into()),
        index: Some(0),
        batch: Some(6),
        attempts_max: Some(1),
        payload: r#"[0, {"how": "pid"}, {"how": "exit"}, 3, {"how": "leave"}, 5]"#.into(),
        ..task("child", "")
    };
    cluster.client.submit(&batch, RetryDeadline::Unlimited).await.unwrap();
    let ends = cluster.job_ends("torn", 6, PATIENCE).await;
    assert_eq!(statuses(&ends), ["done", "done", "dead", "done", "done", "done"]);
    assert_eq!((&ends[0]["result"], &ends[3]["result"], &ends[5]["result"]), (&json!(0), &json!(3), &json!(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_its_task_or_its_worker() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::new("", "slots = 2");
    let mut worker = handlers.worker(&cluster, "w1", &[]);
    let pid_of = |ended: &Value| i32::try_from(ended["result"].as_i64().unwrap()).unwrap();
    let grandchild = pid_of(&run(&cluster, json!({"how": "fork"})).await);
    assert!(runs(grandchild), "it stays while its child lives");
    // Two tasks that take long keep both children busy.
    let mut ids = Vec::new();
    for _ in 0..2 {
        let long = task("child", r#"{"how": "progress", "seconds": 600}"#);
        ids.push(cluster.client.submit(&long, RetryDeadline::Unlimited).await.unwrap().id);
    }
    let busy =
        |w: &Value| w["children"].as_array().is_some_and(|c| c.iter().filter(|c| c["progress"] == 0.4).count() == 2);
    let record = cluster.worker_is("w1", busy).await;
    assert_eq!(record["children"][0]["note"], "nearly half");
    let all = below(worker.pid());
    assert!(all.len() >= 5 && all.contains(&grandchild), "two guards, two children, a grandchild: {all:?}");
    worker.kill9();
    for pid in all {
        gone(pid).await;
    }
    // The tasks run elsewhere within 5 s.
    let died = Instant::now();
    let _second = handlers.worker(&cluster, "w2", &[]);
    cluster.worker_is("w2", busy).await;
    assert!(died.elapsed() < Duration::from_secs(8), "5 s, and what the records lag behind: {:?}", died.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_is_killed_takes_its_child_along() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::new("", "slots = 1");
    let _worker = handlers.worker(&cluster, "w1", &[]);
    let child = run(&cluster, json!({"how": "pid"})).await["result"].as_i64().unwrap();
    let record = cluster.worker_is("w1", |w| w["children"][0]["pid"].as_u64().is_some_and(|pid| pid > 0)).await;
    let guard = record["children"][0]["pid"].as_i64().unwrap();
    let command = std::fs::read_to_string(format!("/proc/{guard}/cmdline")).unwrap();
    assert!(command.starts_with("millpond-guard\0w1/child-1\0python3\0"), "{command:?}");
    kill(Pid::from_raw(guard.try_into().unwrap()), Signal::SIGKILL).unwrap();
    gone(child.try_into().unwrap()).await;
    assert_eq!(run(&cluster, json!(1)).await["result"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn children_are_recycled_and_told_to_shut_down() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::new(", \"ready\"", "slots = 1\ntasks_per_child = 2\nstart_within = \"20s\"");
    let mut worker = handlers.worker(&cluster, "w1", &[]);
    let mut pids = Vec::new();
    for _ in 0..4 {
        pids.push(run(&cluster, json!({"how": "pid"})).await["result"].as_i64().unwrap());
    }
    assert!(pids[0] == pids[1] && pids[1] != pids[2] && pids[2] == pids[3], "{pids:?}");
    worker.signal(Signal::SIGTERM);
    assert!(worker.end(PATIENCE).await.success());
    let log = cluster.log("w1");
    assert!(log.matches("shutting down").count() >= 2, "each was told before it ended: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_learns_its_name_and_not_the_workers_passwords() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::new("", "slots = 1\nenv = { MILLPOND_OWN = \"mine\" }");
    let _worker = handlers.worker(&cluster, "w1", &[]);
    let env = run(&cluster, json!({"how": "env"})).await["result"].clone();
    assert_eq!(
        env,
        json!({ "MILLPOND_WORKER": "w1", "MILLPOND_CHILD": "w1/child-1", "MILLPOND_KIND": "child", "MILLPOND_OWN": "mine", "MILLPOND_FD_OUT": env["MILLPOND_FD_OUT"] })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_for_each_task_and_its_exit_code() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::of(
        r#"
        [upper]
        command = ["tr", "a-z", "A-Z"]
        mode = "once"
        [code]
        command = ["sh", "-c", "read code; echo \"leaving with $code, task $MILLPOND_TASK_ID\" >&2; exit $code"]
        mode = "once"
        attempts = 2
        [slow]
        command = ["sh", "-c", "sleep 4243"]
        mode = "once"
        timeout = "300ms"
        attempts = 1
        "#,
    );
    let _worker = handlers.worker(&cluster, "w1", &[]);
    let run = async |kind: &str, arguments: &str| {
        let id = cluster.client.submit(&task(kind, arguments), RetryDeadline::Unlimited).await.unwrap().id;
        (cluster.ended(&id).await, id)
    };
    assert_eq!(run("upper", "\"words\"").await.0["result"], "WORDS");
    assert_eq!(run("upper", "12").await.0["result"], 12);
    let (ended, id) = run("code", "3").await;
    assert_eq!((&failure(&ended)["child"]["exit_code"], &ended["attempt"]), (&json!(3), &json!(2)), "{ended}");
    assert_eq!(log(failure(&ended)), [format!("leaving with 3, task {id}")]);
    let (ended, _) = run("code", "65").await;
    assert_eq!((failure(&ended)["retry"].clone(), &ended["attempt"]), (json!(false), &json!(1)), "{ended}");
    let (ended, _) = run("slow", "1").await;
    assert_eq!(failure(&ended)["type"], "timeout", "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rust_handler_in_a_process_of_its_own_may_crash() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::of("[fail]\nisolate = true\nslots = 1\n[square]\nisolate = true\n");
    let mut worker = handlers.worker(&cluster, "w1", &[]);
    for (arguments, kind) in [(r#"{"how": "exit"}"#, "exit"), (r#"{"how": "panic"}"#, "panic")] {
        let once = NewTask { attempts_max: Some(1), ..task("fail", arguments) };
        let id = cluster.client.submit(&once, RetryDeadline::Unlimited).await.unwrap().id;
        assert_eq!(failure(&cluster.ended(&id).await)["type"], kind);
    }
    let id = cluster.client.submit(&task("square", "12"), RetryDeadline::Unlimited).await.unwrap().id;
    assert_eq!(cluster.ended(&id).await["result"], 144);
    assert!(worker.ended().is_none(), "the worker lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_tasks_do_not_wait_for_computing_ones() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--slots", "1", "--io-slots", "8"], None);
    let submit = async |kind: &str, arguments: &str| {
        cluster.client.submit(&task(kind, arguments), RetryDeadline::Unlimited).await.unwrap().id
    };
    let warm = submit("sleep", "0").await;
    cluster.ended(&warm).await;
    let computing = [submit("spin", "6").await, submit("spin", "0").await];
    cluster.worker_is("w1", |w| w["running"] == 1).await;
    let started = Instant::now();
    for id in [submit("sleep", "0.1").await, submit("sleep", "0.1").await] {
        assert_eq!(cluster.ended(&id).await["status"], "done");
    }
    assert!(started.elapsed() < Duration::from_secs(5), "not behind the computing ones: {:?}", started.elapsed());
    for id in computing {
        assert_eq!(cluster.ended(&id).await["attempt"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_children_do_is_told_live_and_in_metrics() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::new("", "slots = 1");
    let password = cluster.nats.secrets.passwords["collector"].clone();
    let options = async_nats::ConnectOptions::with_user_and_password("collector".into(), password);
    let options = options.custom_inbox_prefix("_INBOX_collector");
    let listening = options.connect(format!("127.0.0.1:{}", cluster.nats.port)).await.unwrap();
    let mut events = listening.subscribe("events.worker.w1").await.unwrap();
    listening.flush().await.unwrap();
    let _worker = handlers.worker(&cluster, "w1", &["--listen", "127.0.0.1:0"]);
    assert_eq!(run(&cluster, json!(5)).await["result"], 5);
    let told = async {
        loop {
            let event = futures_util::StreamExt::next(&mut events).await.unwrap();
            let record: Value = serde_json::from_slice(&event.payload).unwrap();
            // The child's own count is up before that of the kind, which waits for the end to be kept.
            if record["by_kind"]["child"]["done"] == 1 {
                return record;
            }
        }
    };
    let record = tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert_eq!((&record["children"][0]["name"], &record["children"][0]["done"]), (&json!("w1/child-1"), &json!(1)));
    let sampled = |w: &Value| w["children"][0]["rss_bytes"].as_u64().is_some_and(|rss| rss > 1 << 20);
    let record = cluster.worker_is("w1", sampled).await;
    let metrics =
        reqwest::get(format!("http://{}/metrics", text(&record, "http"))).await.unwrap().text().await.unwrap();
    for wanted in [
        r#"millpond_child_resident_memory_bytes{child="w1/child-1",kind="child"}"#,
        r#"millpond_child_cpu_ratio{child="w1/child-1",kind="child"}"#,
        r#"millpond_attempts_total{kind="child",status="done"} 1"#,
    ] {
        assert!(metrics.contains(wanted), "{wanted}: {metrics}");
    }
}

/// By itself, because a flood takes all cores that it gets: `.ci/run` does that.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "floods all cores; `.ci/run` runs it alone"]
async fn a_child_that_floods_its_log_is_ended_in_time() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::of(
        r#"
        [stream]
        command = ["sh", "-c", "read task; yes >&2"]
        timeout = "5s"
        attempts = 1
        [once]
        command = ["sh", "-c", "exec yes >&2"]
        mode = "once"
        timeout = "5s"
        attempts = 1
        "#,
    );
    let mut worker = handlers.worker(&cluster, "w1", &["--log", "warn"]);
    for kind in ["stream", "once"] {
        let id = cluster.client.submit(&task(kind, "1"), RetryDeadline::Unlimited).await.unwrap().id;
        let ended = cluster.ended(&id).await;
        assert_eq!(failure(&ended)["type"], "timeout", "{kind}: {ended}");
        assert_eq!(log(failure(&ended)).len(), 50, "{kind}: the last lines are kept");
    }
    worker.signal(Signal::SIGTERM);
    assert!(worker.end(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_has_its_own_log_lines() {
    let cluster = Cluster::start().await;
    let handlers = Handlers::of(
        r#"
        [negative]
        command = ["sh", "-c", '''
            while read -r line; do
                n=${line##*\"args\":}; n=${n%%,*}
                echo "looking at $n" >&2
                if [ "$n" -lt 0 ]; then echo "{\"error\": \"no\"}"; else echo "{\"ok\": $n}"; fi
            done''']
        slots = 1
        attempts = 1
        "#,
    );
    let _worker = handlers.worker(&cluster, "w1", &[]);
    let numbers: Vec<String> = (0..60).map(|n| if n % 3 == 2 { format!("-{n}") } else { n.to_string() }).collect();
    let batch = NewTask {
        job: Some("logs".into()),
        index: Some(0),
        batch: Some(60),
        payload: format!("[{}]", numbers.join(",")).into(),
        ..task("negative", "")
    };
    cluster.client.submit(&batch, RetryDeadline::Unlimited).await.unwrap();
    let ends = cluster.job_ends("logs", 60, PATIENCE).await;
    for (n, end) in ends.iter().enumerate().filter(|(n, _)| n % 3 == 2) {
        let ended = cluster.ended(&text(end, "id")).await;
        assert_eq!(log(failure(&ended)), [format!("looking at -{n}")]);
    }
}

/// An hour in short: nothing but liveness keeps the lease. By itself, because it takes all cores: `.ci/run` does that.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "burns all cores for 90 s; `.ci/run` runs it alone"]
async fn a_long_task_keeps_its_lease_while_all_slots_compute() {
    let cluster = Cluster::start().await;
    let cores = std::thread::available_parallelism().unwrap().get();
    let _worker = cluster.worker("w1", &["--slots", &cores.to_string()], None);
    let mut ids = Vec::new();
    for _ in 0..cores {
        ids.push(cluster.client.submit(&task("spin", "90"), RetryDeadline::Unlimited).await.unwrap().id);
    }
    for id in ids {
        let ended = until("end of a long task", PATIENCE * 3, async || {
            let task = cluster.get("/api/v1/task", &[("id", id.clone())]).await?;
            (task["status"] == "done").then_some(task)
        });
        assert_eq!(ended.await["result"], 90.0);
        assert_eq!(cluster.attempts(&id).await, [("w1".to_owned(), "done".to_owned())]);
    }
    let starts = cluster.log("w1");
    assert!(!starts.contains("WARN"), "no lease was late: {starts}");
}
