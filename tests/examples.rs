//! The examples, run as their README says: the `millpond up` line and then `run.sh`, each with its exact result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::harness::{MILLPOND, PATIENCE, Process, output, until};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// A cluster as the README of an example starts it.
struct Example {
    folder: PathBuf,
    state: TempDir,
    up: Process,
}

impl Example {
    async fn start(name: &str) -> Self {
        let (folder, state) = (root().join("examples").join(name), tempfile::tempdir().unwrap());
        let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
        let line = readme.lines().find(|line| line.starts_with("millpond up")).expect("a line `millpond up …`");
        let flags = line.split('#').next().unwrap().split_whitespace().skip(2);
        let log = std::fs::File::create(state.path().join("up.log")).unwrap();
        let mut command = Command::new(MILLPOND);
        command.current_dir(root()).arg("--state").arg(state.path()).args(["up", "--ports", "auto"]).args(flags);
        let up = Process::start(command.stdout(log.try_clone().unwrap()).stderr(log));
        let env = state.path().join("env");
        until("env file", PATIENCE, async || env.exists().then_some(())).await;
        Self { folder, state, up }
    }

    /// `run.sh`, not started yet.
    fn script(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.arg(self.folder.join("run.sh")).args(arguments).current_dir(self.state.path());
        command.env("MILLPOND", MILLPOND).env("MILLPOND_STATE", self.state.path());
        command
    }

    /// Runs `run.sh` to its end; the lines of its standard output.
    async fn run(&self, arguments: &[&str]) -> Vec<String> {
        lines(&output(self.script(arguments)).await)
    }

    async fn millpond(&self, arguments: &[&str]) -> Vec<Value> {
        let mut command = Command::new(MILLPOND);
        command.arg("--state").arg(self.state.path()).args(arguments);
        lines(&output(command).await).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn workers(&self) -> Vec<Value> {
        self.millpond(&["worker", "ls", "--json"]).await
    }

    async fn end(mut self) {
        self.up.signal(Signal::SIGTERM);
        assert!(self.up.end(Duration::from_secs(40)).await.success());
    }
}

fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Whether a process runs; one that is dead and that nobody has waited for does not.
fn lives(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_have_names_and_do_not_outlive_their_worker() {
    let example = Example::start("01-processes").await;
    let printed = example.run(&[]).await;
    let answers: Vec<Value> = printed.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let greeted: Vec<&str> = answers.iter().map(|a| a["hello"].as_str().unwrap()).collect();
    assert_eq!(greeted, ["ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal"]);
    let names = ["w1/hello-1", "w1/hello-2", "w2/hello-1", "w2/hello-2"];
    assert!(answers.iter().all(|a| names.contains(&a["child"].as_str().unwrap())), "{answers:?}");
    for worker in ["w1/", "w2/"] {
        assert!(answers.iter().any(|a| a["child"].as_str().unwrap().starts_with(worker)), "{answers:?}");
    }
    let workers = example.workers().await;
    let children = |worker: &Value| worker["children"].as_array().unwrap().clone();
    let seen: Vec<Value> = workers.iter().flat_map(children).map(|child| child["name"].clone()).collect();
    assert_eq!(json!(seen), json!(names));
    // Daemons: the guards, and the children themselves, are gone with their worker.
    let w1 = workers.iter().find(|w| w["name"] == "w1").unwrap();
    let own = |a: &&Value| a["child"].as_str().unwrap().starts_with("w1/");
    let mut pids: Vec<u64> = answers.iter().filter(own).map(|a| a["pid"].as_u64().unwrap()).collect();
    pids.extend(children(w1).iter().map(|child| child["pid"].as_u64().unwrap()));
    assert!(pids.len() >= 3 && pids.iter().all(|pid| lives(*pid)), "{pids:?}");
    let worker = i32::try_from(w1["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    until("end of the children", Duration::from_secs(1), async || (!pids.iter().any(|pid| lives(*pid))).then_some(()))
        .await;
    example.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_finds_the_primes() {
    let example = Example::start("02-pool").await;
    let printed = example.run(&[]).await;
    let said: Vec<&str> = printed.iter().map(String::as_str).filter(|line| !line.contains("the job is")).collect();
    let callback = "apply_async: the callback hears false";
    assert_eq!(said, ["map: 1229 primes", "map_async: 1229 primes", "apply: true", callback]);
    // They ran in Python.
    let workers = example.workers().await;
    let children = workers.iter().flat_map(|w| w["children"].as_array().unwrap());
    let done: u64 = children.filter(|c| c["kind"] == "is_prime").map(|c| c["done"].as_u64().unwrap()).sum();
    assert!(done > 0, "{workers:?}");
    example.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_ten_blocks_its_producers_and_is_joined() {
    let example = Example::start("03-queue").await;
    let printed = example.run(&[]).await;
    // Each producer prints its job when all of its input is stored.
    let (mut jobs, said): (Vec<&String>, Vec<&String>) =
        printed.iter().partition(|line| line.starts_with("a-") || line.starts_with("b-"));
    jobs.sort();
    assert_eq!(jobs.len(), 2, "{printed:?}");
    let wanted = ["full: 10 wait, both producers block", "joined: 40 and 60 items", "consumers: 1", "consumer gone"];
    assert_eq!(said, wanted);
    for (job, items) in jobs.into_iter().zip([1..=40, 101..=160]) {
        let ends = example.millpond(&["job", "results", job, "--json"]).await;
        let eaten: Vec<i64> = ends.iter().map(|end| end["result"]["item"].as_i64().unwrap()).collect();
        assert_eq!(eaten, items.collect::<Vec<_>>(), "{job}");
    }
    let queues = example.millpond(&["queue", "ls", "--json"]).await;
    let line = queues.iter().find(|queue| queue["queue"] == "line").unwrap();
    assert_eq!((&line["waiting"], &line["max_waiting"]), (&json!(0), &json!(10)));
    assert!(example.workers().await.iter().all(|w| w["name"] != "consumer" || w["state"] != "live"));
    example.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_square_and_leave() {
    let example = Example::start("06-distributed").await;
    let refused = "exit code 69: cannot connect to NATS";
    let (wrong_key, no_server) = (format!("wrong key: {refused}"), format!("no server: {refused}"));
    let expected = ["sum of squares: 338350", "both workers have left", &wrong_key, &no_server];
    assert_eq!(example.run(&[]).await, expected);
    let workers = example.workers().await;
    assert!(workers.iter().all(|w| w["name"] != "left" && w["name"] != "right"), "{workers:?}");
    example.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_converse_over_a_pipe() {
    let example = Example::start("04-pipe").await;
    let printed = example.run(&[]).await;
    let expected = [
        "call: 144",
        "child: {'hello': 'parent'}",
        "child: 4",
        "child: 3",
        "child: 2",
        "child: 1",
        "child: 0",
        "child: {'heard': 5}",
        "exit code 0",
        r#"{"hello": "shell"}"#,
        "6",
        "7",
    ];
    assert_eq!(printed, expected);
    example.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crawler_counts_its_successes_by_process() {
    let example = Example::start("05-crawler").await;
    let printed = example.run(&[]).await;
    assert_eq!((printed.len(), printed[0].as_str()), (5, "90 good, 10 bad"), "{printed:?}");
    let counted = |field: &str, worker: &Value| worker["by_kind"]["fetch"][field].as_u64().unwrap_or(0);
    let workers = until("counts of all workers", PATIENCE, async || {
        let workers = example.workers().await;
        let sum = |field: &str| workers.iter().map(|w| counted(field, w)).sum::<u64>();
        ((sum("done"), sum("failed")) == (90, 10)).then_some(workers)
    })
    .await;
    assert_eq!(workers.len(), 4);
    for (worker, line) in workers.iter().zip(&printed[1..]) {
        assert_eq!(*line, format!("{} got {}", worker["name"].as_str().unwrap(), counted("done", worker)));
        assert!(counted("done", worker) > 0, "{printed:?}");
    }
    let dead = example.millpond(&["dead", "ls", "--kind", "fetch", "--json"]).await;
    let why: Vec<&str> = dead.iter().map(|d| d["failure"]["message"].as_str().unwrap()).collect();
    assert!(why.iter().all(|text| text.contains("after 3 tries")), "{why:?}");
    assert_eq!(why.iter().filter(|text| text.contains("status 500")).count(), 4, "{why:?}");
    example.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_sees_what_each_child_uses() {
    let example = Example::start("07-monitor").await;
    let script = example.script(&[]);
    let mut running = JoinSet::new();
    running.spawn(output(script));
    let mut most: BTreeMap<String, (f64, u64)> = BTreeMap::new();
    until("samples of every child", PATIENCE, async || {
        for child in example.workers().await.iter().flat_map(|w| w["children"].as_array().unwrap()) {
            let (cpu, rss) = most.entry(child["name"].as_str().unwrap().to_owned()).or_default();
            *cpu = cpu.max(child["cpu_percent"].as_f64().unwrap());
            *rss = (*rss).max(child["rss_bytes"].as_u64().unwrap());
        }
        // They hold 20, 40, 60 and 80 MiB, and Python itself.
        let mut sizes: Vec<u64> = most.values().map(|(_, rss)| rss >> 20).collect();
        sizes.sort_unstable();
        let all_hold = sizes.iter().zip([20, 40, 60, 80]).all(|(seen, held)| (held..held + 40).contains(seen));
        (most.len() == 4 && all_hold && most.values().all(|(cpu, _)| *cpu > 0.0)).then_some(())
    })
    .await;
    assert!(most.keys().eq(&["w1/burn-1", "w1/burn-2", "w1/burn-3", "w1/burn-4"]), "{most:?}");
    let printed = lines(&running.join_next().await.unwrap().unwrap());
    for child in most.keys() {
        assert_eq!(printed.iter().filter(|line| line.starts_with(child)).count(), 4, "{printed:?}");
    }
    assert!(printed.iter().any(|line| line.contains("busy") && line.contains("MiB held")), "{printed:?}");
    example.end().await;
}

/// What the example writes as line `n`, and with which level it comes.
fn expected(n: usize) -> (&'static str, String) {
    let level = match (n % 2, n % 3) {
        (1, 1) => "warn",
        (1, 2) => "error",
        _ => "info",
    };
    (level, format!("line {n}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_log_line_of_every_child_is_in_one_file() {
    let example = Example::start("08-logs").await;
    let printed = example.run(&["all.log"]).await;
    let said = ["2500", "2500", "2500", "2500"].map(str::to_owned).into_iter();
    let counted = (1..=4).map(|n| format!("logs/chatter-{n} 2500"));
    assert_eq!(printed, said.chain(counted).collect::<Vec<_>>());
    let text = std::fs::read_to_string(example.state.path().join("all.log")).unwrap();
    let mut by_child: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let mut tasks: BTreeMap<String, String> = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let (fields, level) = (&line, line["log.level"].as_str().unwrap().to_owned());
        let message = fields["message"].as_str().unwrap().to_owned();
        let Some(child) = fields["child"].as_str().filter(|_| message.starts_with("line ")) else { continue };
        assert_eq!((&fields["kind"], &fields["attempt"]), (&json!("chatter"), &json!(1)), "{line}");
        assert_eq!(fields["trace.id"].as_str().map(str::len), Some(32), "{line}");
        let task = fields["task_id"].as_str().unwrap();
        assert_eq!(tasks.entry(child.to_owned()).or_insert_with(|| task.to_owned()), task);
        by_child.entry(child.to_owned()).or_default().push((level, message));
    }
    let children = ["logs/chatter-1", "logs/chatter-2", "logs/chatter-3", "logs/chatter-4"];
    assert!(by_child.keys().eq(&children), "{:?}", by_child.keys());
    let wanted: Vec<(String, String)> = (0..2500).map(expected).map(|(level, text)| (level.to_owned(), text)).collect();
    for (child, lines) in &by_child {
        assert!(*lines == wanted, "each line of {child} once, in order, with its level; {} lines", lines.len());
    }
    example.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exception_is_kept_retried_and_buried() {
    let example = Example::start("09-exceptions").await;
    let printed = example.run(&[]).await;
    // The line of an item that has failed is empty: no JSON value is.
    assert_eq!(printed[..4], ["2.0", "3.0", "", "4.0"]);
    let told = printed[4..].join("\n");
    assert!(told.contains("ValueError: negative value: -1") && told.contains("exhausted"), "{told}");
    let dead = example.millpond(&["dead", "ls", "--json"]).await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    let shown = example.millpond(&["dead", "show", dead[0]["id"].as_str().unwrap(), "--json"]).await;
    let letter = &shown[0];
    assert_eq!(
        (&letter["attempt"], &letter["reason"], &letter["payload"]),
        (&json!(3), &json!("exhausted"), &json!(-1))
    );
    let before = letter["failures"].as_array().unwrap();
    assert_eq!(before.iter().map(|f| f["attempt"].clone()).collect::<Vec<_>>(), [json!(1), json!(2)]);
    for failure in before.iter().map(|f| &f["failure"]).chain([&letter["failure"]]) {
        assert_eq!((&failure["type"], &failure["message"]), (&json!("ValueError"), &json!("negative value: -1")));
        let traceback = failure["traceback"].as_str().unwrap();
        assert!(traceback.contains("root.py") && traceback.contains("raise ValueError"), "{traceback}");
        assert!(failure["child"]["name"].as_str().unwrap().starts_with("w1/square_root-"), "{failure}");
    }
    assert_eq!(letter["failure"]["child"]["log"], json!(["the root of -1 is wanted"]));
    let jobs = example.millpond(&["job", "ls", "--json"]).await;
    assert_eq!((&jobs[0]["done"], &jobs[0]["dead"]), (&json!(3), &json!(1)), "{jobs:?}");
    example.end().await;
}
