//! Official NATS libraries on one cluster: the programs of `examples/clients` print what docs/clients.md says, those of
//! `tests/clients` try each cell of a table in the ordinary ways of their library, and nobody loses the end of a task in an outage.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::calls::script;
use crate::harness::{Cluster, Process, busy_turn, until};

/// The table, row by row: what each library does in its ordinary ways, at the first try.
const CELLS: [&str; 23] = [
    "publish",
    "duplicate",
    "reply_to",
    "http_wait",
    "delayed",
    "expires",
    "timeout_and_attempts",
    "death",
    "continuation",
    "unique",
    "batch",
    "job",
    "results_ordered",
    "results_acked",
    "results_durable",
    "results_filters",
    "results_looked_up",
    "call",
    "pipe",
    "buckets",
    "claim_check",
    "denied",
    "other_roles",
];

/// The programs of the page, the same in each language, and what they print. `{}` is a name of the language's own.
const PROGRAMS: [(&str, &[&str], &str); 10] = [
    ("publish", &[], "stored in TASKS\n"),
    ("idempotent", &["order-{}"], "stored\nduplicate\n"),
    ("delayed", &[], "144\nnot before its time\n"),
    ("wait", &["wait-{}", "1"], "done\n"),
    // The same again: a duplicate, whose end was told before this one listened.
    ("wait", &["wait-{}", "1"], "done\n"),
    ("job", &["job-{}"], "all have ended\n"),
    ("results", &["job-{}"], "[0,1,4,9,16,25,36,49,64,81]\n"),
    ("call", &[], "144\n500 error\nno worker answers\n"),
    ("payload", &["large-{}"], "the same\n"),
    ("bucket", &["limit-{}"], "another was faster\n6 listed\n6\n"),
];

/// What each library makes of a refusal.
fn errors(language: &str) -> &'static str {
    match language {
        "python" => {
            "a subject of another shape: NoRespondersError\n\
             the same by JetStream: NoStreamResponseError\n\
             too large: 10054\n\
             a unique key that is taken: 10071\n\
             not allowed: TimeoutError\n"
        }
        "javascript" => {
            "a subject of another shape: RequestError\n\
             the same by JetStream: JetStreamNotEnabled\n\
             too large: 10054\n\
             a unique key that is taken: 10071\n\
             not allowed: PermissionViolationError\n"
        }
        "go" => {
            "a subject of another shape: true nats: no responders available for request\n\
             the same by JetStream: true nats: no response from stream\n\
             too large: true 10054\n\
             a unique key that is taken: true 10071\n\
             not allowed: true context deadline exceeded\n"
        }
        "java" => {
            "a subject of another shape: null\n\
             the same by JetStream: Error Publishing: 503 No Responders Available For Request\n\
             too large: 10054\n\
             a unique key that is taken: 10071\n\
             not allowed: Timeout or no response waiting for NATS JetStream server\n"
        }
        _ => {
            "a subject of another shape: exit code 1\n\
             too large: exit code 1\n\
             a unique key that is taken: exit code 1\n\
             not allowed: exit code 1\n"
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// A library with its programs, installed.
#[derive(Clone)]
struct Language {
    name: String,
    /// Where `tests/clients/install.sh` has put it.
    dir: PathBuf,
}

impl Language {
    /// Those of MILLPOND_TEST_CLIENTS, or those of CI; without what cannot be had on this machine.
    fn all() -> Vec<Self> {
        let names = std::env::var("MILLPOND_TEST_CLIENTS").unwrap_or_else(|_| "python javascript go".to_owned());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
        let installed = names.split_whitespace().filter(|name| {
            let mut install = Command::new(root().join("tests/clients/install.sh"));
            let output = install.arg(&dir).arg(name).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let is_there = output.status.success();
            assert!(is_there || std::env::var_os("CI").is_none(), "CI needs the library for {name}: {said}");
            if !is_there {
                eprintln!("skipped: the library for {name} cannot be installed on this machine: {said}");
            }
            is_there
        });
        installed.map(|name| Self { name: name.to_owned(), dir: dir.clone() }).collect()
    }

    /// A program of `examples/clients`; `table` is that of `tests/clients`.
    fn command(&self, program: &str) -> Command {
        let folder = if program == "table" { "tests/clients" } else { "examples/clients" };
        let source = |ending: &str| root().join(folder).join(&self.name).join(format!("{program}.{ending}"));
        let installed = |name: &str| self.dir.join(&self.name).join(name);
        match self.name.as_str() {
            "python" => {
                let mut command = Command::new(installed("bin/python"));
                command.arg("-B").arg(source("py"));
                command
            }
            "javascript" => {
                let mut command = Command::new("node");
                command.arg(installed(&format!("{program}.js")));
                command
            }
            "go" if program == "table" => Command::new(installed("table")),
            "go" => {
                let mut command = Command::new(installed("examples"));
                command.arg(program);
                command
            }
            "java" => {
                let (first, rest) = program.split_at(1);
                let path = format!("{}:{}", installed("lib/*").display(), installed("classes").display());
                let mut command = Command::new("java");
                command.args(["-cp", &path]).arg(format!("{}{rest}", first.to_uppercase()));
                command
            }
            _ => {
                let path = format!("{}:{}", installed("").display(), std::env::var("PATH").unwrap());
                let mut command = Command::new("sh");
                command.arg(source("sh")).env("PATH", path);
                command
            }
        }
    }
}

/// A cluster, and the settings that `millpond env` prints of it.
struct Settings {
    variables: Vec<(&'static str, String)>,
    dir: TempDir,
}

impl Settings {
    fn of(cluster: &Cluster, producer_url: &str) -> Self {
        let variables = vec![
            ("MILLPOND_NATS_URL", cluster.nats.url("client")),
            ("MILLPOND_PUBLISHER_NATS_URL", cluster.nats.url("publisher")),
            ("MILLPOND_PRODUCER_NATS_URL", cluster.nats.url("producer")),
            ("MILLPOND_PRODUCER_URL", producer_url.to_owned()),
            ("MILLPOND_COLLECTOR_URL", cluster.collector_url()),
            ("MILLPOND_TOKEN", cluster.nats.secrets.token.clone()),
        ];
        Self { variables, dir: tempfile::tempdir().unwrap() }
    }

    fn command(&self, language: &Language, program: &str, arguments: &[&str]) -> tokio::process::Command {
        let mut command = language.command(program);
        command.args(arguments.iter().map(|argument| argument.replace("{}", &language.name)));
        command.current_dir(self.dir.path()).envs(self.variables.iter().cloned()).stdin(Stdio::null());
        let mut command = tokio::process::Command::from(command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn run(&self, language: &Language, program: &str, arguments: &[&str]) -> Output {
        let output = self.command(language, program, arguments).output();
        let limit = Duration::from_secs(if program == "table" { 240 } else { 90 });
        let output = tokio::time::timeout(limit, output).await;
        output.unwrap_or_else(|_| panic!("{} {program} does not end", language.name)).unwrap()
    }

    async fn prints(&self, language: &Language, program: &str, arguments: &[&str], wanted: &str) {
        let output = self.run(language, program, arguments).await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let what = format!("{} {program}: {}", language.name, String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{what}\n{said}");
        assert_eq!(said, wanted, "{what}");
    }

    /// All programs of the page, then the table.
    async fn try_all(&self, language: &Language) {
        for (program, arguments, wanted) in PROGRAMS {
            self.prints(language, program, arguments, wanted).await;
        }
        self.prints(language, "errors", &["key-{}"], errors(&language.name)).await;
        if language.name == "shell" {
            return;
        }
        let output = self.run(language, "table", &[]).await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let wanted: String = CELLS.iter().map(|cell| format!("ok {cell}\n")).collect();
        assert_eq!(said, wanted, "{}: {}", language.name, String::from_utf8_lossy(&output.stderr));
    }
}

/// Two workers, with a kind that converses.
fn workers(cluster: &Cluster, dir: &TempDir) -> [Process; 2] {
    let handlers = dir.path().join("handlers.toml");
    let talk = format!("[talk]\ncommand = [\"python3\", {:?}]\nmode = \"once\"\npipe = true\n", script("talk.py"));
    std::fs::write(&handlers, talk).unwrap();
    ["w1", "w2"].map(|name| cluster.worker(name, &["--handlers", handlers.to_str().unwrap()], None))
}

/// A command that is said again until it has gone well: a collector that was cut off needs a moment.
async fn done(cluster: &Cluster, arguments: &[&str]) {
    until(&arguments.join(" "), Duration::from_secs(60), async || {
        let ended = cluster.started(arguments).wait_with_output().await.unwrap();
        ended.status.success().then_some(())
    })
    .await;
}

/// The server is away for some seconds while all of them wait; their tasks run as soon as it is back.
async fn an_outage(cluster: &mut Cluster, settings: &Settings, languages: &[Language]) {
    done(cluster, &["queue", "pause", "default"]).await;
    let wait = |language| settings.command(language, "wait", &["outage-{}", "1"]).spawn().unwrap();
    let waiting: Vec<_> = languages.iter().map(wait).collect();
    until("all tasks", Duration::from_secs(60), async || {
        let subject = "tasks.default.sleep";
        let answer = cluster.nats.asked("$JS.API.STREAM.INFO.TASKS", &json!({ "subjects_filter": ">" })).await;
        let subjects = answer["state"]["subjects"].as_object()?;
        let of_jobs = format!("{subject}.j-");
        let count: u64 = subjects
            .iter()
            .filter(|(name, _)| *name == subject || name.starts_with(&of_jobs))
            .filter_map(|(_, count)| count.as_u64())
            .sum();
        (count == languages.len() as u64).then_some(())
    })
    .await;
    cluster.nats.kill9();
    // The length of the outage is what is tried.
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.nats.restart();
    done(cluster, &["queue", "resume", "default"]).await;
    for (child, language) in waiting.into_iter().zip(languages) {
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
        let output = output.unwrap_or_else(|_| panic!("{}: nothing is told after an outage", language.name)).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n", "{}: {output:?}", language.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn official_libraries_are_full_citizens() {
    let languages = tokio::task::spawn_blocking(Language::all).await.unwrap();
    let _turn = busy_turn().await;
    let mut cluster = Cluster::start().await;
    let (_producer, producer_url) = cluster.producer().await;
    let settings = std::sync::Arc::new(Settings::of(&cluster, &producer_url));
    let _workers = workers(&cluster, &settings.dir);
    cluster
        .worker_is("w1", |worker| worker["kinds"].as_array().is_some_and(|kinds| kinds.contains(&json!("talk"))))
        .await;
    let mut running = JoinSet::new();
    for language in languages.clone() {
        let settings = settings.clone();
        running.spawn(async move { settings.try_all(&language).await });
    }
    while let Some(ended) = running.join_next().await {
        if let Err(failed) = ended {
            std::panic::resume_unwind(failed.into_panic());
        }
    }
    an_outage(&mut cluster, &settings, &languages).await;
}

/// The files that the page names, and the blocks below.
fn blocks() -> Vec<(String, String)> {
    let page = std::fs::read_to_string(root().join("docs/clients.md")).unwrap();
    let mut lines = page.lines();
    let mut blocks = Vec::new();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("<!-- file: ").and_then(|rest| rest.strip_suffix(" -->")) else { continue };
        assert!(lines.next().unwrap().starts_with("```"), "{name} is a fenced block");
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push((name.to_owned(), format!("{}\n", block.join("\n"))));
    }
    blocks
}

#[test]
fn the_page_has_the_programs_that_are_tried() {
    let blocks = blocks();
    for (name, block) in &blocks {
        let file = std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(&file, block, "{name} and docs/clients.md differ");
    }
    let shown: BTreeSet<&str> = blocks.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(shown.len(), blocks.len(), "a program is shown twice");
    let programs = PROGRAMS.map(|(program, _, _)| program).into_iter().chain(["errors"]);
    for program in programs.collect::<BTreeSet<_>>() {
        let upper = format!("{}{}", program[..1].to_uppercase(), &program[1..]);
        for name in [
            format!("python/{program}.py"),
            format!("javascript/{program}.js"),
            format!("go/{program}.go"),
            format!("java/{upper}.java"),
            format!("shell/{program}.sh"),
        ] {
            assert!(shown.contains(format!("examples/clients/{name}").as_str()), "{name} is not on the page");
        }
    }
}
