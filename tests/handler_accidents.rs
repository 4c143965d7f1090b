//! Accidents of those who write handlers: each costs its own task at the most, ends within its time, and says what it was.

use std::process::Stdio;
use std::time::{Duration, Instant};

use millpond::bus::publish::RetryDeadline;
use millpond::client::NewTask;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Cluster, Process, output, task, text, until};

/// A folder with `handlers.toml` and the programs that it names.
struct Folder {
    dir: TempDir,
}

impl Folder {
    fn new(handlers: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("handlers.toml", handlers)].iter().chain(files) {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Self { dir }
    }

    fn worker(&self, cluster: &Cluster, name: &str) -> Process {
        self.worker_with(cluster, name, &[])
    }

    fn worker_with(&self, cluster: &Cluster, name: &str, env: &[(&str, &str)]) -> Process {
        let path = self.dir.path().join("handlers.toml");
        cluster.worker_with(name, &["--handlers", path.to_str().unwrap()], env)
    }

    fn worker_below(&self, cluster: &Cluster, name: &str, starter: &[&str]) -> Process {
        let path = self.dir.path().join("handlers.toml");
        cluster.worker_below(starter, name, &["--handlers", path.to_str().unwrap()], &[])
    }
}

async fn submit(cluster: &Cluster, kind: &str, arguments: &str) -> String {
    let once = NewTask { attempts_max: Some(1), ..task(kind, arguments) };
    cluster.client.submit(&once, RetryDeadline::Unlimited).await.unwrap().id
}

/// Runs a task with one attempt.
async fn run(cluster: &Cluster, kind: &str, arguments: &str) -> Value {
    let id = submit(cluster, kind, arguments).await;
    cluster.ended(&id).await
}

/// The failure of a task that must be dead of this type.
fn failed<'a>(ended: &'a Value, failure_type: &str) -> &'a Value {
    let failure = &ended["dead"]["failure"];
    assert_eq!((&ended["status"], &failure["type"]), (&json!("dead"), &json!(failure_type)), "{ended}");
    failure
}

const ANSWERS: &str = r#"
import json, os, sys, time
out = sys.stdout
if "fd" in sys.argv:
    out = os.fdopen(int(os.environ["MILLPOND_FD_OUT"]), "w")
    print('{"ready": true}', file=out, flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    args = task["args"]
    if args == "print":
        print("a print of mine")
        print()
        print(json.dumps({"level": "info", "message": {"ok": 5}}))
        os.write(1, b"\xff\xfe of a library\n")
    if args == "answer-like":
        print('{"ok": "printed"}')
    if args == "nan":
        print('{"ok": NaN}')
        time.sleep(60)
    if args == "long":
        os.write(1, b"x" * 200000 + b"\n")
    if args == "silent":
        time.sleep(60)
    # Without a flush.
    print(json.dumps({"ok": args}), file=out)
    if out is not sys.stdout:
        out.flush()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_prints_is_a_line_of_its_log() {
    let cluster = Cluster::start().await;
    let handlers = "
        [plain]\ncommand = ['python3', 'answers.py']\nslots = 1\ntimeout = '3s'
        [own]\ncommand = ['python3', 'answers.py', 'fd']\nslots = 1\ntimeout = '3s'
        [shell]\ncommand = ['sh', '-c', 'read task; sleep 60']\nslots = 1\ntimeout = '1s'";
    let folder = Folder::new(handlers, &[("answers.py", ANSWERS)]);
    let _worker = folder.worker(&cluster, "w1");
    for kind in ["plain", "own"] {
        for arguments in ["print", "long"] {
            let ended = run(&cluster, kind, &json!(arguments).to_string()).await;
            assert_eq!((&ended["status"], &ended["result"]), (&json!("done"), &json!(arguments)), "{kind}: {ended}");
        }
    }
    let log = cluster.log("w1");
    let printed: Vec<&str> = log.lines().filter(|line| line.contains("a print of mine")).collect();
    assert_eq!(printed.len(), 2, "{log}");
    for line in printed {
        assert!(line.contains("INFO") && line.contains("stream=\"stdout\"") && line.contains("task_id="), "{line}");
    }
    assert!(log.contains("\u{fffd}\u{fffd} of a library"), "{log}");
    // Only where answers have a descriptor of their own may a handler print what looks like one.
    assert_eq!(run(&cluster, "own", r#""answer-like""#).await["result"], "answer-like");
    // A line that is meant for the worker and cannot be read is not waited for.
    let started = Instant::now();
    let ended = run(&cluster, "plain", r#""nan""#).await;
    assert!(text(failed(&ended, "bad_output"), "message").contains("NaN"), "{ended}");
    assert!(started.elapsed() < Duration::from_secs(3), "at once: {:?}", started.elapsed());
    let ended = run(&cluster, "plain", r#""silent""#).await;
    assert!(text(failed(&ended, "timeout"), "message").contains("has written nothing since"), "{ended}");
    assert!(text(failed(&ended, "timeout"), "message").contains("Python: print(…, flush=True)"), "{ended}");
    let ended = run(&cluster, "shell", "1").await;
    let message = text(failed(&ended, "timeout"), "message");
    assert!(message.contains("does it flush each answer?"), "the hint for Python fits Python alone: {message}");
}

const CRASHES: &str = r#"
import json, os, sys, time
for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    if task["args"] == "crash":
        os.kill(os.getpid(), 11)
        time.sleep(60)
    if task["args"] == "fat":
        held = bytearray(120 << 20)
        time.sleep(60)
    if task["args"] == "wrong":
        print('{"ok": NaN}', flush=True)
        time.sleep(60)
    print(json.dumps({"ok": task["args"]}), flush=True)
"#;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "seconds count; `.ci/run` runs it alone"]
async fn inputs_that_crash_do_not_stop_their_kind() {
    let cluster = Cluster::start().await;
    let table = |kind| format!("[{kind}]\ncommand = ['python3', 'crashes.py']\nmemory = '60MiB'\nslots = 1\n");
    let kinds = ["crash", "fat", "wrong"];
    let folder = Folder::new(&kinds.map(table).concat(), &[("crashes.py", CRASHES)]);
    let _worker = folder.worker(&cluster, "w1");
    for kind in kinds {
        assert_eq!(run(&cluster, kind, r#""warm""#).await["result"], "warm");
        let mut bad = Vec::new();
        for _ in 0..8 {
            bad.push(submit(&cluster, kind, &format!("\"{kind}\"")).await);
        }
        let started = Instant::now();
        let good = run(&cluster, kind, r#""good""#).await;
        assert_eq!((&good["result"], &good["attempt"]), (&json!("good"), &json!(1)), "{good}");
        assert!(started.elapsed() < Duration::from_secs(5), "{kind}: {:?}", started.elapsed());
        for id in bad {
            assert_eq!(cluster.ended(&id).await["status"], "dead", "each bad input is blamed on its own task");
        }
    }
    let record = cluster.worker_is("w1", |_| true).await;
    assert!(record["troubles"].is_null(), "the handler is not taken for broken: {record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_ran_uses_up_no_attempt_and_goes_on_when_it_is_mended() {
    let cluster = Cluster::start().await;
    let kinds = ["import", "env", "ends", "once_env"];
    let handlers = "
        [import]\ncommand = ['python3', 'import.py']
        [env]\ncommand = ['./env.py']
        [ends]\ncommand = ['sh', 'ends.sh']
        [once_env]\ncommand = ['./env.py']\nmode = 'once'";
    let broken = "#!/usr/bin/env no-such-interpreter-4\n";
    let files = [("import.py", "import no_such_module_4\n"), ("env.py", broken), ("ends.sh", "echo nothing to do\n")];
    let folder = Folder::new(handlers, &files);
    let program = folder.dir.path().join("env.py");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let _worker = folder.worker(&cluster, "w1");
    let mut ids = Vec::new();
    for kind in kinds {
        ids.push(submit(&cluster, kind, "5").await);
    }
    let record = cluster.worker_is("w1", |w| w["troubles"].as_object().is_some_and(|t| t.len() == kinds.len())).await;
    let trouble = |kind| text(&record["troubles"], kind);
    assert!(trouble("import").contains("No module named 'no_such_module_4'"), "{record}");
    assert!(trouble("env").contains("no-such-interpreter-4"), "{record}");
    assert!(trouble("ends").contains("exit code 0 before it read a task"), "{record}");
    assert!(trouble("once_env").contains("no-such-interpreter-4"), "{record}");
    let problems = until("a problem for each broken kind", Duration::from_secs(20), async || {
        let problems = cluster.get("/api/v1/problems", &[]).await?;
        let rows = problems["rows"].as_array()?.iter().filter(|row| row["kind"] == "broken_kind").count();
        (rows == kinds.len()).then_some(problems)
    })
    .await;
    assert!(problems.to_string().contains("no_such_module_4"), "with its last lines: {problems}");
    let works = "import sys\nfor line in sys.stdin:\n    print('{\"ok\": \"mended\"}' if '\"id\"' in line else 7)\n";
    std::fs::write(folder.dir.path().join("import.py"), works).unwrap();
    std::fs::write(&program, format!("#!/usr/bin/env python3\n{works}")).unwrap();
    std::fs::write(folder.dir.path().join("ends.sh"), "while read -r task; do echo '{\"ok\": \"mended\"}'; done\n")
        .unwrap();
    for (id, result) in ids.iter().zip([json!("mended"), json!("mended"), json!("mended"), json!(7)]) {
        let ended = cluster.ended(id).await;
        assert_eq!((&ended["result"], &ended["attempt"]), (&result, &json!(1)), "{ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_child_is_not_ready_was_not_started() {
    let cluster = Cluster::start().await;
    let handlers = "[slow]\ncommand = ['sh', 'slow.sh']\nstart_within = '60s'\n";
    let slow = r#"until [ -e loaded ]; do sleep 0.1; done
        echo '{"ready": true}'
        while read -r task; do echo '{"ok": 1}'; done"#;
    let folder = Folder::new(handlers, &[("slow.sh", slow)]);
    let id = cluster.client.submit(&task("slow", "1"), RetryDeadline::Unlimited).await.unwrap().id;
    // More often than a task may be started that kills its workers.
    for n in 1..=5 {
        let name = format!("w{n}");
        let mut worker = folder.worker(&cluster, &name);
        // It has the task, and a child that loads.
        cluster.worker_is(&name, |w| w["held"] == 1 && w["running"] == 1).await;
        worker.kill9();
    }
    std::fs::write(folder.dir.path().join("loaded"), "").unwrap();
    let _worker = folder.worker(&cluster, "last");
    let ended = cluster.ended(&id).await;
    assert_eq!((&ended["status"], &ended["attempt"]), (&json!("done"), &json!(1)), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_every_kind_is_a_result() {
    let cluster = Cluster::start().await;
    let once = |kind, text, result| format!("[{kind}]\ncommand = ['printf', '{text}']\nmode = 'once'\n{result}\n");
    let handlers = [
        once("png", r"\211PNG\r\n\032\n", ""),
        once("latin", r"caf\351\n", ""),
        once("number", "144\\n", ""),
        once("text", "144\\n", "result = 'text'"),
        once("bytes", "144\\n", "result = 'bytes'"),
        once("json", "two words", "result = 'json'"),
        once("no_text", r"caf\351", "result = 'text'"),
    ];
    let folder = Folder::new(&handlers.concat(), &[]);
    let _worker = folder.worker(&cluster, "w1");
    for (kind, result) in [
        ("png", json!({"base64": "iVBORw0KGgo="})),
        ("latin", json!({"base64": "Y2Fm6Qo="})),
        ("number", json!(144)),
        ("text", json!("144")),
        ("bytes", json!({"base64": "MTQ0Cg=="})),
    ] {
        assert_eq!(run(&cluster, kind, "1").await["result"], result, "{kind}");
    }
    for (kind, start) in [("json", "begin: two words"), ("no_text", "begin: caf\\xe9")] {
        let ended = run(&cluster, kind, "1").await;
        assert!(text(failed(&ended, "bad_output"), "message").contains(start), "{ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_with_half_a_character_stays_itself() {
    let cluster = Cluster::start().await;
    let script = r#"
import json, os, sys
for line in sys.stdin:
    name = os.fsdecode(bytes.fromhex(json.loads(line)["args"]))
    print(json.dumps({"error": {"type": "ValueError", "message": "no such report: " + name, "traceback": name}, "retry": False}))
"#;
    let folder = Folder::new("[size]\ncommand = ['python3', 'size.py']\n", &[("size.py", script)]);
    let _worker = folder.worker(&cluster, "w1");
    let id = cluster.client.submit(&task("size", r#""636166e9""#), RetryDeadline::Unlimited).await.unwrap().id;
    let ended = cluster.ended(&id).await;
    let failure = failed(&ended, "ValueError");
    assert_eq!(
        (&failure["message"], &failure["traceback"]),
        (&json!("no such report: caf\u{fffd}"), &json!("caf\u{fffd}"))
    );
    assert_eq!((&failure["retry"], &ended["attempt"]), (&json!(false), &json!(1)), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_gets_the_environment_that_is_meant_for_it() {
    let cluster = Cluster::start().await;
    let script = "import json, os, sys\nfor line in sys.stdin:\n    print(json.dumps({'ok': dict(os.environ)}))\n";
    let handlers = "[env]\ncommand = ['python3', 'env.py']\nenv_pass = ['AWS_*']\nenv = { MODE = 'fast' }
        [once]\ncommand = ['env']\nmode = 'once'\n";
    let folder = Folder::new(handlers, &[("env.py", script)]);
    let secrets = ["PGPASSWORD", "OTEL_EXPORTER_OTLP_HEADERS", "MILLPOND_SIGNING_KEYS", "GITHUB_TOKEN"];
    let mut set: Vec<(&str, &str)> = secrets.iter().map(|name| (*name, "secret")).collect();
    set.extend([
        ("AWS_REGION", "eu-1"),
        ("LC_ALL", "C.UTF-8"),
        ("https_proxy", "http://proxy"),
        ("CUDA_VISIBLE_DEVICES", "0"),
    ]);
    let _worker = folder.worker_with(&cluster, "w1", &set);
    let env = run(&cluster, "env", "1").await["result"].clone();
    for (name, value) in &set {
        let expected = if secrets.contains(name) { Value::Null } else { json!(value) };
        assert_eq!(env[name], expected, "{name}: {env}");
    }
    assert_eq!(
        (&env["MODE"], &env["MILLPOND_KIND"], &env["PYTHONUNBUFFERED"]),
        (&json!("fast"), &json!("env"), &json!("1"))
    );
    assert!(env["MILLPOND_FD_OUT"].is_string() && env["MILLPOND_WORKER_NATS_URL"].is_null(), "{env}");
    assert!(!env["PATH"].is_null() && env["MILLPOND_GUARD_OUT"].is_null(), "{env}");
    let once = text(&run(&cluster, "once", "1").await, "result");
    assert!(
        once.contains("MILLPOND_TASK_ID=") && once.contains("MILLPOND_ATTEMPT=1") && !once.contains("secret"),
        "{once}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handlers_text_forges_no_line_and_tracebacks_stay_together() {
    let cluster = Cluster::start().await;
    let script = r#"
import json, sys, traceback
for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    print(json.dumps({"level": "info", "message": "first\n2026-01-01T00:00:00Z ERROR forged \x1b[2K\r"}), file=sys.stderr)
    try:
        {}["missing"]
    except KeyError:
        traceback.print_exc()
    print(json.dumps({"ok": 1}))
"#;
    let folder = Folder::new("[logs]\ncommand = ['python3', 'logs.py']\n", &[("logs.py", script)]);
    let _worker = folder.worker(&cluster, "w1");
    assert_eq!(run(&cluster, "logs", "1").await["result"], 1);
    let log = cluster.log("w1");
    assert!(log.contains("\n    | 2026-01-01T00:00:00Z ERROR forged ") && !log.contains(['\u{1b}', '\r']), "{log}");
    let mut lines = log.lines().skip_while(|line| !line.contains("exception.type=KeyError"));
    assert!(lines.next().unwrap().contains("ERROR KeyError: 'missing' "), "{log}");
    let rest: Vec<&str> = lines.take_while(|line| line.starts_with("    | ")).collect();
    assert!(
        rest[0].starts_with("    | Traceback (most recent call last):")
            && rest.len() >= 3
            && rest.last().unwrap().starts_with("    | KeyError: 'missing'"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_processes_share_counts_once() {
    let cluster = Cluster::start().await;
    let script = r#"
import json, os, sys, time
for line in sys.stdin:
    held = bytearray(60 << 20)
    for at in range(0, len(held), 4096):
        held[at] = 1
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        children.append(pid)
    time.sleep(1.5)
    if json.loads(line)["args"] == "more":
        more = bytearray(b"y" * (80 << 20))
        time.sleep(30)
    print(json.dumps({"ok": len(held)}))
    for pid in children:
        os.kill(pid, 9)
        os.wait()
"#;
    let folder =
        Folder::new("[shared]\ncommand = ['python3', 'shared.py']\nmemory = '120MiB'\n", &[("shared.py", script)]);
    let _worker = folder.worker(&cluster, "w1");
    let ended = run(&cluster, "shared", "1").await;
    assert_eq!(ended["result"], 60 << 20, "60 MiB shared by four are 60 MiB: {ended}");
    let ended = run(&cluster, "shared", r#""more""#).await;
    let oom = failed(&ended, "oom");
    assert!(oom["child"]["rss_bytes"].as_u64().is_some_and(|bytes| bytes > 120 << 20), "what the limit saw: {oom}");
}

#[tokio::test(flavor = "multi_thread")]
async fn built_in_kinds_are_off_unless_they_are_named() {
    let cluster = Cluster::start().await;
    let flags = ["--built-in", "square", "--unknown-kind-after", "2s"];
    let _worker = cluster.worker_with("w1", &flags, &[("MILLPOND_WORKER_BUILT_IN", "")]);
    assert_eq!(run(&cluster, "square", "12").await["result"], 144);
    let ended = run(&cluster, "fail", r#"{"how": "exit"}"#).await;
    assert_eq!(ended["dead"]["reason"], "unknown_kind", "{ended}");
    assert!(text(&ended["dead"]["failure"], "message").contains("--built-in"), "it says how: {ended}");
    let wrong = cluster.worker_with("w2", &["--built-in", "sqare"], &[]).end(Duration::from_secs(20)).await;
    assert!(!wrong.success());
    assert!(cluster.log("w2").contains("sqare is no built-in kind; these are: echo, square"), "{}", cluster.log("w2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_goes_neither_to_this_machine_nor_on_for_ever() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut server = tokio::task::JoinSet::new();
    server.spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let mut request = [0; 4096];
                let read = stream.read(&mut request).await.unwrap_or(0);
                if request[..read].starts_with(b"GET /loop") {
                    let _ = stream
                        .write_all(
                            b"HTTP/1.1 302 Found\r\nLocation: /loop\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                        )
                        .await;
                    return;
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                let piece = vec![b'x'; 1 << 20];
                for _ in 0..200 {
                    if stream.write_all(&piece).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let cluster = Cluster::start().await;
    let fetch = async |url: String| run(&cluster, "fetch", &json!({"url": url, "tries": 1}).to_string()).await;
    let mut worker = cluster.worker("w1", &[], None);
    for host in ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"] {
        let ended = fetch(format!("http://{host}:{port}/page")).await;
        assert_eq!(failed(&ended, "not_allowed")["retry"], false, "{host}: {ended}");
    }
    worker.kill9();
    let _worker = cluster.worker("w2", &["--fetch-local"], None);
    let ended = fetch(format!("http://127.0.0.1:{port}/loop")).await;
    assert!(text(failed(&ended, "fetch"), "message").contains("redirects"), "{ended}");
    let ended = fetch(format!("http://127.0.0.1:{port}/page")).await;
    assert_eq!(failed(&ended, "too_large")["retry"], false, "{ended}");
    server.abort_all();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_cannot_take_all_slots_for_as_long_as_it_likes() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--slots", "2", "--task-timeout", "2s", "--task-timeout-max", "1h"], None);
    let long = |timeout: &str| NewTask {
        timeout: Some(millpond::config::duration(timeout).unwrap()),
        attempts_max: Some(1),
        ..task("spin", "1000")
    };
    let submit = async |task: &NewTask| cluster.client.submit(task, RetryDeadline::Unlimited).await.unwrap().id;
    let ended = cluster.ended(&submit(&long("2h")).await).await;
    assert_eq!(ended["dead"]["reason"], "timeout_too_long", "{ended}");
    assert!(text(&ended["dead"]["failure"], "message").contains("2h"), "{ended}");
    for _ in 0..4 {
        submit(&long("30m")).await;
    }
    cluster.worker_is("w1", |w| w["running"] == 1).await;
    // One slot is for the others.
    for n in [7, 8, 9] {
        assert_eq!(run(&cluster, "is_prime", &n.to_string()).await["status"], "done");
    }
}

/// A worker that a supervisor starts again whenever it has ended.
struct Supervised<'a> {
    cluster: &'a Cluster,
    worker: Process,
    started: u32,
}

impl<'a> Supervised<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        Self { cluster, worker: cluster.worker("w1", &[], None), started: 1 }
    }

    fn again(&mut self) {
        if self.worker.ended().is_some() {
            self.started += 1;
            self.worker = self.cluster.worker(&format!("w{}", self.started), &[], None);
        }
    }

    /// The task once it is dead, while its workers are started again.
    async fn until_dead(&mut self, id: &str, limit: Duration) -> Value {
        until("the end of the task", limit, async || {
            self.again();
            let task = self.cluster.get("/api/v1/task", &[("id", id.to_owned())]).await?;
            (task["status"] == "dead").then_some(task)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_of_a_task_that_kills_its_worker_live() {
    let cluster = Cluster::start().await;
    let mut supervised = Supervised::start(&cluster);
    let submit = async |kind: &str, arguments: &str| {
        cluster.client.submit(&task(kind, arguments), RetryDeadline::Unlimited).await.unwrap().id
    };
    let mut neighbours = Vec::new();
    for _ in 0..8 {
        neighbours.push(submit("sleep", "1").await);
    }
    let killer = submit("fail", r#"{"how": "exit"}"#).await;
    let dead = supervised.until_dead(&killer, Duration::from_secs(180)).await;
    assert_eq!(dead["dead"]["reason"], "kills_workers", "{dead}");
    assert!(supervised.started <= 5, "four deaths at the most: {}", supervised.started);
    for id in neighbours {
        let ended = cluster.ended(&id).await;
        assert_eq!((&ended["status"], &ended["attempt"]), (&json!("done"), &json!(1)), "{ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_kills_its_worker_takes_no_item_of_its_batch_with_it() {
    let cluster = Cluster::start().await;
    let mut supervised = Supervised::start(&cluster);
    let mut items = vec![json!({"how": "never"}); 16];
    items[11] = json!({"how": "exit"});
    let batch = NewTask {
        id: Some("b".into()),
        job: Some("j".into()),
        index: Some(0),
        batch: Some(16),
        ..task("fail", &Value::from(items).to_string())
    };
    cluster.client.submit(&batch, RetryDeadline::Unlimited).await.unwrap();
    let dead = supervised.until_dead("b/11", Duration::from_secs(120)).await;
    assert_eq!((&dead["dead"]["reason"], &dead["attempt"]), (&json!("kills_workers"), &json!(1)), "{dead}");
    assert!(supervised.started <= 5, "four deaths at the most: {}", supervised.started);
    let ends = cluster.job_ends("j", 16, Duration::from_secs(60)).await;
    for (n, end) in ends.iter().enumerate() {
        // The handler answers with the number of the attempt.
        let expected = if n == 11 { (json!("dead"), Value::Null) } else { (json!("done"), json!(1)) };
        assert_eq!((&end["status"], &end["result"]), (&expected.0, &expected.1), "{n}: {end}");
    }
    assert_eq!(supervised.worker.ended(), None, "nothing is left that kills");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_of_one_attempt_is_not_started_again_when_its_worker_died() {
    let cluster = Cluster::start().await;
    let mut supervised = Supervised::start(&cluster);
    let id = submit(&cluster, "fail", r#"{"how": "exit"}"#).await;
    let dead = supervised.until_dead(&id, Duration::from_secs(60)).await;
    assert_eq!((&dead["dead"]["reason"], supervised.started), (&json!("worker_lost"), 2), "{dead}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_tried_without_a_cluster_and_with_what_failed_on_one() {
    let cluster = Cluster::start().await;
    let script = r#"
import json, sys
for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    print("looking at", task["id"])
    if task["args"] == "bad":
        print(json.dumps({"error": {"type": "ValueError", "message": f"no good in attempt {task['attempt']}"}, "retry": False}))
    else:
        print(json.dumps({"ok": [task["args"]]}))
"#;
    let folder = Folder::new("[judge]\ncommand = ['python3', 'judge.py']\n", &[("judge.py", script)]);
    let handlers = folder.dir.path().join("handlers.toml");
    let try_with = async |more: &[&str]| {
        let mut command = cluster.command(&["handler", "try", "--handlers", handlers.to_str().unwrap(), "judge"]);
        command.args(more);
        let output = output(command).await;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, answer, said) = try_with(&["5"]).await;
    assert_eq!((code, answer.as_str()), (Some(0), "[5]\n"), "{said}");
    assert!(said.contains("looking at try") && said.contains("took ") && said.contains(" MiB at the most"), "{said}");
    let (code, answer, said) = try_with(&[r#""bad""#]).await;
    assert_eq!((code, answer.as_str()), (Some(1), ""), "{said}");
    assert!(said.contains("ValueError") && said.contains("no good in attempt 1"), "{said}");
    let (code, ..) = try_with(&["not json"]).await;
    assert_ne!(code, Some(0));
    // What failed there fails here.
    let _worker = folder.worker(&cluster, "w1");
    let id = submit(&cluster, "judge", r#""bad""#).await;
    assert_eq!(cluster.ended(&id).await["status"], "dead");
    let (code, _, said) = try_with(&["--task", &id]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("looking at {id}")) && said.contains("no good in attempt 1"), "{said}");
    let waiting = cluster.get("/api/v1/dead", &[]).await.unwrap();
    assert_eq!(waiting["rows"].as_array().map(Vec::len), Some(1), "its letter waits as before: {waiting}");
}

const AS_ANOTHER: &str = r#"
import json, os, sys, time
out = os.fdopen(int(os.environ["MILLPOND_FD_OUT"]), "w")
def refused(what):
    try:
        return str(what())
    except PermissionError:
        return "refused"
for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    args = task.get("args")
    if args == "hang":
        time.sleep(600)
    if args == "fat":
        held = bytearray(b"x" * (120 << 20))
        time.sleep(60)
    if "file" in task:
        answer = len(open(task["file"]).read())
    else:
        open("/dev/stderr", "w").write("by its name\n")
        answer = {
            "ids": [os.getuid(), os.geteuid(), os.getgid()], "groups": sorted(os.getgroups()), "pid": os.getpid(),
            "caps": sorted({line.split()[1] for pid in ("self", os.getppid()) for line in open(f"/proc/{pid}/status")
                            if line[:6] in ("CapInh", "CapPrm", "CapEff", "CapAmb")}),
            "guard": [line.split() for line in open(f"/proc/{os.getppid()}/status") if line.startswith("Uid:")][0],
            "env": [os.environ.get(name) for name in ["HOME", "USER", "LOGNAME", "MILLPOND_GUARD_USER"]],
            "signal": refused(lambda: os.kill(args, 0)), "environ": refused(lambda: open(f"/proc/{args}/environ").read()),
        }
    print(json.dumps({"ok": answer}), file=out, flush=True)
"#;

/// Whether a test that needs root can run.
fn is_root() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    if !root {
        println!("skipped: only root may start processes as another user");
    }
    root
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_may_run_as_another_user() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::start().await;
    let folder = as_another("nobody");
    let worker = folder.worker(&cluster, "w1");
    is_kept_apart(&cluster, worker, "nobody").await;
}

/// A worker that is not root and has what it needs, as a unit of systemd with `User=` and `AmbientCapabilities=` has.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_capabilities_alone_may_start_another_user() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::start().await;
    let folder = as_another("daemon");
    let needed = "-all,+chown,+kill,+setgid,+setuid";
    let (inheritable, ambient) = (format!("--inh-caps={needed}"), format!("--ambient-caps={needed}"));
    let starter = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &inheritable, &ambient];
    let worker = folder.worker_below(&cluster, "w1", &starter);
    is_kept_apart(&cluster, worker, "daemon").await;
}

/// Handlers that run as this user.
fn as_another(user: &str) -> Folder {
    let uid = nix::unistd::User::from_name(user).unwrap().unwrap().uid;
    let handlers = format!(
        "[other]\ncommand = ['python3', 'other.py']\nuser = '{user}'\nslots = 1\nmemory = '80MiB'
        [once]\ncommand = ['id', '-un']\nmode = 'once'\nuser = {uid}
        [square]\nisolate = true\nuser = '{user}'"
    );
    let folder = Folder::new(&handlers, &[("other.py", AS_ANOTHER)]);
    std::fs::set_permissions(folder.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// Runs them: they are that user in all, reach nothing of the worker's, and end with it.
async fn is_kept_apart(cluster: &Cluster, mut worker: Process, user: &str) {
    let user = nix::unistd::User::from_name(user).unwrap().unwrap();
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    let seen = run(cluster, "other", &worker.pid().to_string()).await["result"].clone();
    assert_eq!(seen["caps"], json!(["0000000000000000"]), "neither it nor its guard has any: {seen}");
    assert_eq!((&seen["ids"], &seen["groups"]), (&json!([uid, uid, gid]), &json!([gid])), "{seen}");
    assert_eq!(
        seen["guard"],
        json!(["Uid:", uid.to_string(), uid.to_string(), uid.to_string(), uid.to_string()]),
        "{seen}"
    );
    assert_eq!(seen["env"], json!([user.dir.to_str(), user.name, user.name, null]), "{seen}");
    assert_eq!((&seen["signal"], &seen["environ"]), (&json!("refused"), &json!("refused")), "{seen}");
    assert!(cluster.log("w1").contains("by its name"), "its pipes are its own: {}", cluster.log("w1"));
    assert_eq!(run(cluster, "once", "1").await["result"], user.name);
    assert_eq!(run(cluster, "square", "12").await["result"], 144);
    // Large arguments are a file that it may read; its memory is read by its guard.
    let large = format!("\"{}\"", "y".repeat(9 << 20));
    let id = submit_file(cluster, "other", &large).await;
    assert_eq!(cluster.ended(&id).await["result"], large.len());
    let ended = run(cluster, "other", r#""fat""#).await;
    let oom = failed(&ended, "oom");
    assert!(oom["child"]["rss_bytes"].as_u64().is_some_and(|bytes| bytes > 80 << 20), "what the limit saw: {oom}");
    // It ends with its worker, however that ends.
    let hangs = submit(cluster, "other", r#""hang""#).await;
    // The task runs before its child does, which is started anew.
    let guard_of = |worker: &Value| {
        let mut children = worker["children"].as_array()?.iter();
        children.find(|child| child["task"] == hangs.as_str())?["pid"].as_u64()
    };
    let record = cluster.worker_is("w1", |worker| guard_of(worker).is_some()).await;
    let guard = guard_of(&record).unwrap();
    worker.kill9();
    let gone = async || (!std::path::Path::new(&format!("/proc/{guard}")).exists()).then_some(());
    until("the end of the guard", Duration::from_secs(10), gone).await;
}

/// A control group of the kernel with a limit of memory, version 1 or 2.
struct MemoryGroup(std::path::PathBuf);

impl MemoryGroup {
    /// None where this machine does not let one be made.
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("millpond-test-{}", std::process::id());
        let limits = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        limits.into_iter().find_map(|(root, limit)| {
            let group = Self(std::path::Path::new(root).join(&name));
            std::fs::create_dir(&group.0).ok()?;
            // Nothing of it may be swapped out instead.
            for (file, text) in [("memory.swappiness", "0"), ("memory.swap.max", "0")] {
                let _ = std::fs::write(group.0.join(file), text);
            }
            std::fs::write(group.0.join(limit), bytes.to_string()).ok().map(|()| group)
        })
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// No limit of the kind's own: the kernel kills, as in a container with a limit of memory.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_kernel_kills_for_want_of_memory_costs_its_task_and_says_so() {
    let Some(group) = is_root().then(|| MemoryGroup::new(256 << 20)).flatten() else {
        println!("skipped: no control group can be made here");
        return;
    };
    let cluster = Cluster::start().await;
    let script = r#"
import json, sys
for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    held = bytearray(b"x" * (task["args"] << 20))
    print(json.dumps({"ok": len(held)}), flush=True)
    held = None
"#;
    let folder = Folder::new(
        "[fat]
command = ['python3', 'fat.py']
slots = 1
",
        &[("fat.py", script)],
    );
    let enter = format!(r#"echo $$ > {}/cgroup.procs && exec "$0" "$@""#, group.0.display());
    let mut worker = folder.worker_below(&cluster, "w1", &["sh", "-c", &enter]);
    assert_eq!(run(&cluster, "fat", "1").await["result"], 1 << 20);
    for _ in 0..2 {
        let ended = run(&cluster, "fat", "1000").await;
        let failure = failed(&ended, "oom");
        assert!(failure["message"].as_str().unwrap().contains("the kernel killed it"), "{failure}");
        assert_eq!((&failure["child"]["oom"], &failure["child"]["signal"]), (&json!(true), &json!(9)), "{failure}");
        let started = Instant::now();
        assert_eq!(run(&cluster, "fat", "1").await["result"], 1 << 20);
        assert!(started.elapsed() < Duration::from_secs(5), "the next one runs soon: {:?}", started.elapsed());
    }
    assert!(worker.ended().is_none(), "the worker lives: {}", cluster.log("w1"));
    worker.kill9();
    let is_empty = async || std::fs::read_to_string(group.0.join("cgroup.procs")).ok()?.is_empty().then_some(());
    until("the end of all in the group", Duration::from_secs(10), is_empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_start_another_user_says_so_and_ends() {
    use std::os::unix::process::CommandExt;

    let cluster = Cluster::start().await;
    let folder = Folder::new("[a]\ncommand = ['true']\nuser = 'no-such-user'\n", &[]);
    let path = folder.dir.path().join("handlers.toml");
    let start = async |uid: Option<u32>| {
        let mut command = cluster.command(&["worker", "run", "--name", "w1", "--handlers", path.to_str().unwrap()]);
        command.env("MILLPOND_WORKER_NATS_URL", cluster.nats.url("worker")).current_dir("/");
        uid.map(|uid| command.uid(uid).gid(uid));
        let output = output(command).await;
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = start(None).await;
    assert!(said.contains("handler [a]: `user`: there is no user no-such-user on this machine"), "{said}");
    if !is_root() {
        return;
    }
    std::fs::set_permissions(folder.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(&path, "[a]\ncommand = ['true']\nuser = 'root'\n").unwrap();
    let said = start(None).await;
    assert!(said.contains("root is the user of the worker itself"), "{said}");
    let said = start(Some(65534)).await;
    assert!(said.contains("the worker may not start processes as root, because it runs as user 65534"), "{said}");
}

/// Submits the arguments as a file; the id of the task.
async fn submit_file(cluster: &Cluster, kind: &str, arguments: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), arguments).unwrap();
    let path = file.path().to_str().unwrap();
    let command = cluster.command(&["submit", kind, "--attempts-max", "1", "--file", path]);
    let output = output(command).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_arguments_reach_isolated_handlers_and_trials() {
    let cluster = Cluster::start().await;
    let script =
        "import json, sys\nfor line in sys.stdin:\n    task = json.loads(line)\n    if task.get('shutdown'): break
    n = len(open(task['file']).read()) if 'file' in task else task['args'] * 2
    print(json.dumps({'error': f'{n} in attempt {task[\"attempt\"]}', 'retry': False}))\n";
    let handlers = "[square]\nisolate = true\n[measure]\ncommand = ['python3', 'measure.py']\n";
    let folder = Folder::new(handlers, &[("measure.py", script)]);
    let _worker = folder.worker(&cluster, "w1");
    // Blanks make a number large.
    let large = |number: &str| format!("{}{number}", " ".repeat(9 << 20));
    assert_eq!(cluster.ended(&submit_file(&cluster, "square", &large("12")).await).await["result"], 144);
    // As large as a file for a handler, and small enough for a line although it lies elsewhere.
    for (arguments, said) in
        [(large("7"), format!("{} in attempt 1", (9 << 20) + 1)), ("21".to_owned(), "42 in attempt 1".to_owned())]
    {
        let stored = cluster.client.put_payload(&mut arguments.as_bytes(), RetryDeadline::Unlimited).await.unwrap();
        let task = NewTask { stored: Some(stored), attempts_max: Some(1), ..task("measure", "") };
        let id = cluster.client.submit(&task, RetryDeadline::Unlimited).await.unwrap().id;
        let ended = cluster.ended(&id).await;
        assert_eq!(ended["dead"]["failure"]["message"], said.as_str(), "{ended}");
        let (code, _, tried) = try_task(&cluster, &folder, "measure", &["--task", &id], "", &[]).await;
        assert!(code == Some(1) && tried.contains(&said), "{tried}");
    }
}

/// `handler try` in a folder, with what is typed: its exit code, its standard output, its standard error.
async fn try_task(
    cluster: &Cluster,
    folder: &Folder,
    kind: &str,
    more: &[&str],
    typed: &str,
    env: &[(&str, &str)],
) -> (Option<i32>, String, String) {
    let handlers = folder.dir.path().join("handlers.toml");
    let mut command = cluster.command(&["handler", "try", "--handlers", handlers.to_str().unwrap(), kind]);
    command.args(more).envs(env.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let typed = typed.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), typed.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_debugged_at_the_terminal() {
    let cluster = Cluster::start().await;
    let script = r#"
import json, os, sys
out = os.fdopen(int(os.environ["MILLPOND_FD_OUT"]), "w") if "fd" in sys.argv else sys.stdout
if "fd" in sys.argv:
    print('{"ready": true}', file=out, flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if task.get("shutdown"):
        break
    breakpoint()
    print(json.dumps({"ok": task["args"]}), file=out, flush=True)
"#;
    let handlers = "[plain]\ncommand = ['python3', 'bug.py']\ntimeout = '1s'\n[own]\ncommand = ['python3', 'bug.py', 'fd']\ntimeout = '1s'\n";
    let folder = Folder::new(handlers, &[("bug.py", script)]);
    for kind in ["plain", "own"] {
        let typed = "import time; time.sleep(1.5)\np task['args'] + 37\ntask['args'] = 6\nc\n";
        let (code, answer, said) = try_task(&cluster, &folder, kind, &["--debug", "5"], typed, &[]).await;
        assert_eq!((code, answer.as_str()), (Some(0), "6\n"), "{kind}: {said}");
        assert!(said.contains("(Pdb) ") && said.contains("42\n"), "{kind}: {said}");
        // A person answers a question once it is there to be read.
        let path = folder.dir.path().join("handlers.toml");
        let command = cluster.command(&["handler", "try", "--handlers", path.to_str().unwrap(), kind, "--debug", "5"]);
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (mut keyboard, mut screen, mut shown) =
            (child.stdin.take().unwrap(), child.stderr.take().unwrap(), Vec::new());
        for typed in ["p 40 + 2\n", "c\n"] {
            while !shown.ends_with(b"(Pdb) ") {
                let read = tokio::time::timeout(Duration::from_secs(20), screen.read_buf(&mut shown)).await;
                let shown = String::from_utf8_lossy(&shown);
                assert!(read.is_ok_and(|read| read.unwrap() > 0), "{kind}: no question: {shown}");
            }
            shown.push(b'\n');
            keyboard.write_all(typed.as_bytes()).await.unwrap();
        }
        let ended = child.wait_with_output().await.unwrap();
        assert_eq!((ended.status.code(), ended.stdout.as_slice()), (Some(0), &b"5\n"[..]), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_tried_where_its_signature_fits() {
    const KEY: &str = "key-0123456789abcdef0123456789abcdef";
    let cluster = Cluster::start().await;
    let script =
        "import json, sys\nfor line in sys.stdin:\n    task = json.loads(line)\n    if task.get('shutdown'): break
    print(json.dumps({'error': f'{task[\"args\"]} of {task[\"traceparent\"]}', 'retry': False}))\n";
    let folder = Folder::new("[fails]\ncommand = ['python3', 'fails.py']\n", &[("fails.py", script)]);
    let _worker = folder.worker_with(&cluster, "w1", &[("MILLPOND_SIGNING_KEY", KEY)]);
    let signer = millpond::signature::Signer::new(KEY).unwrap();
    let client = cluster.client.clone().with_signer(Some(signer));
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let alone = NewTask { id: Some("alone".into()), traceparent: Some(traceparent.into()), ..task("fails", "[1, 2]") };
    client.submit(&alone, RetryDeadline::Unlimited).await.unwrap();
    let batch = NewTask {
        id: Some("b".into()),
        job: Some("j".into()),
        index: Some(0),
        batch: Some(2),
        ..task("fails", "[3, 4]")
    };
    client.submit(&batch, RetryDeadline::Unlimited).await.unwrap();
    cluster
        .client
        .submit(&NewTask { id: Some("unsigned".into()), ..task("fails", "5") }, RetryDeadline::Unlimited)
        .await
        .unwrap();
    for id in ["alone", "b/1"] {
        assert_eq!(cluster.ended(id).await["status"], "dead");
    }
    let tried = async |id: &str, key: &str| {
        try_task(&cluster, &folder, "fails", &["--task", id], "", &[("MILLPOND_SIGNING_KEY", key)]).await
    };
    for (id, arguments) in [("alone", "[1, 2]"), ("b/1", "4")] {
        let (code, _, said) = tried(id, KEY).await;
        assert!(code == Some(1) && said.contains(&format!("{arguments} of ")), "{id}: {said}");
        let (_, _, said) = tried(id, "another-0123456789abcdef0123456789").await;
        assert!(said.contains("it is not run") && !said.contains(&format!("{arguments} of ")), "{id}: {said}");
    }
    let (_, _, said) = tried("alone", KEY).await;
    assert!(said.contains("0af7651916cd43dd8448eb211c80319c"), "with its trace: {said}");
    let refused = until("the refusal", Duration::from_secs(20), async || {
        let dead = cluster.get("/api/v1/dead", &[("reason", "unsigned".into())]).await?;
        dead["rows"].as_array()?.first().cloned()
    })
    .await;
    for key in [KEY, ""] {
        let (_, _, said) = tried(&text(&refused, "id"), key).await;
        assert!(said.contains("it is not run"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_xargs_get_the_variables_that_are_named() {
    let cluster = Cluster::start().await;
    let set = [("AWS_REGION", "eu-1"), ("GITHUB_TOKEN", "secret")];
    let _worker = cluster.worker_with("w1", &["--allow-xargs", "env", "--xargs-env-pass", "AWS_*"], &set);
    let ended = run(&cluster, "xargs", r#"{"argv": ["env"]}"#).await;
    let env = text(&ended["result"], "stdout");
    assert!(env.contains("AWS_REGION=eu-1\n") && !env.contains("secret"), "{env}");
    let wrong = cluster.worker_with("w2", &["--allow-xargs", "env", "--xargs-env-pass", "A*B"], &[]);
    assert!(!{ wrong }.end(Duration::from_secs(20)).await.success());
    assert!(cluster.log("w2").contains("--xargs-env-pass: \"A*B\" is not the name"), "{}", cluster.log("w2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn why_says_that_a_child_is_silent() {
    let cluster = Cluster::start().await;
    let handlers = "[silent]\ncommand = ['sh', '-c', 'read task; sleep 60']\n[talks]\ncommand = ['sh', '-c', 'read task; echo here >&2; sleep 60']\n";
    let folder = Folder::new(handlers, &[]);
    let _worker = folder.worker(&cluster, "w1");
    let (silent, talks) = (submit(&cluster, "silent", "1").await, submit(&cluster, "talks", "1").await);
    let why = async |id: &str| cluster.get("/api/v1/why", &[("id", id.to_owned())]).await;
    let said = until("what is said of a silent child", Duration::from_secs(40), async || {
        let sentence = text(&why(&silent).await?, "sentence");
        sentence.contains("has written nothing since").then_some(sentence)
    })
    .await;
    assert!(said.contains("w1/silent-1") && said.contains("flush"), "{said}");
    let sentence = text(&why(&talks).await.unwrap(), "sentence");
    assert!(sentence.contains("it runs on w1") && !sentence.contains("written nothing"), "{sentence}");
}
