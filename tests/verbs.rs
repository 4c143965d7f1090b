//! What a user does beside publishing: commands over the cluster, workers looked at and drained, `top`.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Output, Stdio};

use millpond::bus::publish::RetryDeadline;
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, task, until};

/// Runs the command with this on standard input.
async fn cli(cluster: &Cluster, arguments: &[&str], input: &str) -> Output {
    let mut command = cluster.command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_owned();
    let run = move || {
        let mut child = command.spawn().unwrap();
        // It may not want it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn objects(output: &Output) -> Vec<Value> {
    out(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn xargs(cluster: &Cluster, arguments: &[&str]) -> Output {
    cli(cluster, &[&["xargs"], arguments].concat(), "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn xargs_writes_what_commands_write_in_the_order_of_the_lines() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--allow-xargs", "sh,echo", "--slots", "4"], None);
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    let script = "sleep 0.0$((($1 * 7) % 5)); echo out $1; echo err $1 >&2";
    let lines: String = (1..=30).map(|n| format!("{n}\n")).collect();
    let all = cli(&cluster, &["xargs", "--", "sh", "-c", script, "sh"], &lines).await;
    let wanted = |word: &str| (1..=30).map(|n| format!("{word} {n}\n")).collect::<String>();
    assert_eq!((out(&all), said(&all), all.status.code()), (wanted("out"), wanted("err"), Some(0)));
    // Unordered loses and repeats nothing.
    let any = cli(&cluster, &["xargs", "--unordered", "echo"], &lines).await;
    let mut numbers: Vec<u32> = out(&any).lines().map(|n| n.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=30).collect::<Vec<_>>());
    // Bytes that are no text, lines with spaces, blank lines, NULs.
    let bytes = xargs(&cluster, &["sh", "-c", r#"printf '\377\n'; printf '%s' "$1""#, "sh", ":::", "a  b"]).await;
    assert_eq!(bytes.stdout, b"\xff\na  b", "{}", said(&bytes));
    assert_eq!(out(&cli(&cluster, &["xargs", "-0", "echo"], "a\nb\0c\0").await), "a\nb\nc\n");
    assert_eq!(out(&cli(&cluster, &["xargs", "--tag", "echo", "-", "{#}"], "x\n\ny").await), "x\t- 1\ny\t- 2\n");
    assert_eq!(out(&cli(&cluster, &["xargs", "-n2", "echo", "<{/.}>"], "d/a.c\nb\nc").await), "<a> <b>\n<c>\n");
    let dry = xargs(&cluster, &["--dry-run", "convert", "{}", "{//}/{/.}.webp", ":::", "a b.png", "c/d.png"]).await;
    assert_eq!(out(&dry), "convert 'a b.png' './a b.webp'\nconvert c/d.png c/d.webp\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn xargs_tells_how_commands_ended() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &["--allow-xargs", "sh,echo"], None);
    cluster.worker_is("w1", |w| w["state"] == "live").await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let script = "echo $1; case $1 in kill) kill -9 $$;; *) exit $1;; esac";
    let log = path("log");
    let ended = ["--json", "--joblog", &log, "sh", "-c", script, "sh", ":::", "0", "3", "kill"];
    let ended = xargs(&cluster, &ended).await;
    let rows = objects(&ended);
    let ends: Vec<_> = rows.iter().map(|r| (&r["index"], &r["input"], &r["exit_code"], &r["signal"])).collect();
    let null = Value::Null;
    assert_eq!(ends[0], (&json!(0), &json!("0"), &json!(0), &null));
    assert_eq!(ends[1], (&json!(1), &json!("3"), &json!(3), &null));
    assert_eq!(ends[2], (&json!(2), &json!("kill"), &null, &json!(9)));
    assert_eq!((&rows[1]["stdout"], rows[1]["argv"][4].as_str()), (&json!("3\n"), Some("3")));
    assert_eq!(ended.status.code(), Some(2), "two failed: {}", said(&ended));
    let log = std::fs::read_to_string(log).unwrap();
    let log: Vec<&str> = log.lines().collect();
    assert_eq!((log.len(), log[0].split('\t').count()), (4, 6));
    assert!(log[2].starts_with("2\t-\t-\t3\t0\tsh -c ") && log[3].starts_with("3\t-\t-\t-1\t9\tsh "), "{log:?}");
    // What is not allowed says who must allow it; it is tried once.
    let refused = xargs(&cluster, &["rm", ":::", "x"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        said(&refused).contains("not_allowed") && said(&refused).contains("--allow-xargs rm"),
        "{}",
        said(&refused)
    );
    let missing = xargs(&cluster, &["--timeout", "200ms", "sh", "-c", "sleep 9", ":::", "x"]).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(said(&missing).contains("timeout"), "{}", said(&missing));
    // It succeeds at the third try.
    let third = async |tries: &str, file: &str| {
        let script = r#"echo >> "$1"; test $(wc -l < "$1") -ge 3"#;
        xargs(&cluster, &["--tries", tries, "sh", "-c", script, "sh", ":::", file]).await.status.code()
    };
    assert_eq!(third("3", &path("three")).await, Some(0));
    assert_eq!(third("2", &path("two")).await, Some(1));
    assert_eq!(std::fs::read(path("two")).unwrap().len(), 2);
    let wrong = xargs(&cluster, &["-a", "lines", "echo", ":::", "x"]).await;
    assert_eq!(wrong.status.code(), Some(2), "{}", said(&wrong));
}

#[tokio::test(flavor = "multi_thread")]
async fn xargs_says_at_once_that_nobody_runs_commands_and_waits() {
    let cluster = Cluster::start().await;
    let mut command = cluster.command(&["xargs", "echo", ":::", "hello"]);
    let mut waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = waiting.stderr.take().unwrap();
    let first = move || BufReader::new(stderr).lines().next().unwrap().unwrap();
    let first = tokio::task::spawn_blocking(first).await.unwrap();
    assert!(first.contains("no live worker") && first.contains("--allow-xargs echo"), "{first}");
    let _worker = cluster.worker("w1", &["--allow-xargs", "echo"], None);
    let mut written = String::new();
    let read = move || {
        waiting.stdout.take().unwrap().read_to_string(&mut written).unwrap();
        (written, waiting.wait().unwrap().code())
    };
    assert_eq!(tokio::task::spawn_blocking(read).await.unwrap(), ("hello\n".to_owned(), Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_finishes_what_runs_and_leaves() {
    let cluster = Cluster::start().await;
    let nobody = cli(&cluster, &["worker", "drain", "nobody"], "").await;
    assert_eq!(nobody.status.code(), Some(1));
    assert!(said(&nobody).contains("nobody") && said(&nobody).contains("worker ls"), "{}", said(&nobody));
    let mut worker = cluster.worker("w1", &[], None);
    let id = cluster.client.submit(&task("sleep", "15"), RetryDeadline::Unlimited).await.unwrap().id;
    until("start of the task", PATIENCE, async || {
        let why = cluster.get("/api/v1/why", &[("id", id.clone())]).await?;
        (why["state"] == "running").then_some(())
    })
    .await;
    let asked = cli(&cluster, &["worker", "drain", "w1"], "").await;
    assert_eq!((out(&asked).as_str(), asked.status.code()), ("w1 draining\n", Some(0)), "{}", said(&asked));
    let early = cli(&cluster, &["worker", "drain", "w1", "--wait", "--timeout", "1ms"], "").await;
    assert!(early.status.code() == Some(1) && said(&early).contains("draining"), "{}", said(&early));
    let gone = cli(&cluster, &["worker", "drain", "--all", "--wait"], "").await;
    assert_eq!((out(&gone).as_str(), gone.status.code()), ("w1 gone\n", Some(0)), "{}", said(&gone));
    assert_eq!(worker.end(PATIENCE).await.code(), Some(0));
    assert_eq!(cluster.ended(&id).await["status"], "done");
    assert_eq!(cluster.attempts(&id).await, [("w1".to_owned(), "done".to_owned())]);
}

/// Squares after as many seconds as its argument says, half done at once.
const PYSQUARE: &str = r#"
import json, sys, time
for line in sys.stdin:
    call = json.loads(line)
    if "shutdown" in call:
        break
    print(json.dumps({"progress": 0.5}), flush=True)
    time.sleep(call["args"])
    print(json.dumps({"ok": call["args"] ** 2}), flush=True)
"#;
const HANDLERS: &str = r#"
[pysquare]
command = ["python3", "pysquare.py"]
slots = 1

[broken]
command = ["no-such-program-anywhere"]
slots = 1
"#;

#[tokio::test(flavor = "multi_thread")]
async fn workers_children_queues_and_jobs_are_seen() {
    let mut cluster = Cluster::start().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pysquare.py"), PYSQUARE).unwrap();
    let handlers = folder.path().join("handlers.toml");
    std::fs::write(&handlers, HANDLERS).unwrap();
    let _worker = cluster.worker("w1", &["--handlers", handlers.to_str().unwrap()], None);
    let squares = cli(&cluster, &["map", "square", "--range", "1..=10", "--job", "squares"], "").await;
    assert!(squares.status.success(), "{}", said(&squares));
    cluster.job_ends("squares", 10, PATIENCE).await;
    let id = cluster.client.submit(&task("pysquare", "600"), RetryDeadline::Unlimited).await.unwrap().id;
    cluster
        .worker_is("w1", |w| {
            let busy = |c: &Value| c["state"] == "busy" && c["progress"] == 0.5 && c["rss_bytes"] != 0;
            w["children"].as_array().is_some_and(|all| all.iter().any(busy)) && w["troubles"]["broken"].is_string()
        })
        .await;
    let listed = out(&cli(&cluster, &["worker", "ls"], "").await);
    let line = |text: &str, with: &str| text.lines().find(|l| l.starts_with(with)).unwrap_or_default().to_owned();
    assert!(line(&listed, "w1 ").contains("broken cannot start: "), "{listed}");
    let child = line(&listed, "  w1/pysquare-1  busy");
    assert!(child.contains(&id) && child.contains("50%") && child.contains("MiB"), "{listed}");
    assert_eq!(objects(&cli(&cluster, &["worker", "ls", "--json"], "").await).len(), 1);
    for arguments in [&["top", "--once"][..], &["top"]] {
        let top = out(&cli(&cluster, arguments, "").await);
        assert!(top.starts_with("workers 1 live | running 1 | done 0.0/s | failed 0.0/s | "), "{top}");
        assert!(line(&top, "  w1/pysquare-1  busy").contains(&id), "{top}");
        assert!(line(&top, "default ").ends_with("open"), "{top}");
        assert!(line(&top, "squares ").contains("100% of 10"), "{top}");
    }
    let json = objects(&cli(&cluster, &["top", "--once", "--json"], "").await);
    let [json] = json.as_slice() else { panic!("one object: {json:?}") };
    let children = json["workers"][0]["children"].as_array().unwrap();
    assert!(children.iter().any(|c| c["kind"] == "pysquare" && c["task"] == id.as_str()), "{json}");
    assert_eq!((&json["totals"]["running"], &json["totals"]["done_per_s"]), (&json!(1), &json!(0.0)));
    assert_eq!((&json["queues"][0]["queue"], &json["error"]), (&json!("default"), &Value::Null));
    cluster.collector.kill9();
    assert_eq!(cli(&cluster, &["top", "--once"], "").await.status.code(), Some(69));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_helm_prints_at_the_end_does_what_it_says() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker("w1", &[], None);
    let notes = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/millpond/templates/NOTES.txt");
    let notes = std::fs::read_to_string(notes).unwrap();
    let commands: Vec<&str> =
        notes.lines().filter(|line| line.starts_with("  ") && line.contains("millpond ")).collect();
    let commands: Vec<&&str> = commands.iter().filter(|line| !line.contains("kubectl")).collect();
    assert_eq!(commands.len(), 2, "{commands:?}");
    let folder = tempfile::tempdir().unwrap();
    for line in commands {
        let millpond = cluster.command(&[]);
        // Fewer than there, where it computes for long.
        let line = line.replace("head -n 1000", "head -n 3");
        let mut shell = std::process::Command::new("sh");
        shell.args(["-ec", &line]).current_dir(folder.path());
        shell.envs(millpond.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let path = std::path::Path::new(crate::harness::MILLPOND).parent().unwrap().to_owned();
        let others = std::env::var_os("PATH").unwrap();
        let path = std::env::join_paths(std::iter::once(path).chain(std::env::split_paths(&others))).unwrap();
        let ended = crate::harness::output({
            shell.env("PATH", path);
            shell
        })
        .await;
        assert!(ended.status.success(), "{line}: {}", said(&ended));
        if line.contains("submit square 12 --wait") {
            assert_eq!(out(&ended), "144\n");
        }
    }
    let counted = std::fs::read_to_string(folder.path().join("out.ndjson")).unwrap();
    assert_eq!(counted, "6872\n".repeat(3));
}
