//! The exit codes of README.md, over all verbs: 2 for what the command line or a value of it gets wrong, 69 for a cluster that cannot
//! be reached. A verb that is not in these tables fails the test.

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};

use crate::harness::MILLPOND;

/// Nobody listens there.
const NATS: &str = "nats://client:pa55w0rd@127.0.0.1:1";
const HTTP: &str = "http://127.0.0.1:1";

fn run(arguments: &[&str], reachable: bool) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(MILLPOND);
    command.arg("--state").arg(dir.path()).args(arguments).stdin(Stdio::null()).current_dir(dir.path());
    command.env("MILLPOND_CONNECT_TIMEOUT", "200ms");
    if reachable {
        for name in ["", "WORKER_", "PRODUCER_", "COLLECTOR_", "SETUP_"] {
            command.env(format!("MILLPOND_{name}NATS_URL"), NATS);
        }
        command.env("MILLPOND_COLLECTOR_URL", HTTP).env("MILLPOND_TOKEN", "a token for tests");
        command.env("MILLPOND_PRODUCER_LISTEN", "127.0.0.1:0").env("MILLPOND_COLLECTOR_LISTEN", "127.0.0.1:0");
    }
    command.output().unwrap()
}

/// A verb with the words of its subcommand, as the help lists them.
pub fn verbs(of: &[&str]) -> BTreeSet<String> {
    let help = run(&[of, &["--help"]].concat(), false);
    let text = String::from_utf8(help.stdout).unwrap();
    let Some((_, commands)) = text.split_once("Commands:\n") else { return BTreeSet::from([of.join(" ")]) };
    let listed = commands.lines().take_while(|line| !line.is_empty());
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.flat_map(|name| verbs(&[of, &[name]].concat())).collect()
}

fn is_of(arguments: &str, verb: &str) -> bool {
    arguments == verb || arguments.starts_with(&format!("{verb} "))
}

/// Runs each line with each of its last words behind it.
fn check(cases: &[(&str, &[&str])], code: i32, reachable: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for (verb, mistakes) in cases {
        for mistake in *mistakes {
            let typed: Vec<&str> = verb.split(' ').chain(mistake.split(' ')).filter(|word| !word.is_empty()).collect();
            // `_` stands for a blank, `^` for nothing.
            let typed: Vec<String> = typed.iter().map(|word| word.replace('_', " ").replace('^', "")).collect();
            let typed: Vec<&str> = typed.iter().map(String::as_str).collect();
            let output = run(&typed, reachable);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.code() != Some(code) || said.contains("panicked") || said.contains("pa55w0rd") {
                wrong.push(format!("{typed:?}: {:?}, {said}", output.status.code()));
            }
        }
    }
    wrong
}

/// What each verb is given that is wrong: JSON, kind, queue, cron, zone, duration, ids, names, files.
const WRONG: &[(&str, &[&str])] = &[
    ("up", &["--ports some", "--drain-time soon", "--workers x", "--queues a.b", "--queues a,^,_b"]),
    (
        "submit",
        &[
            "square twelve",
            "squ.are 1",
            "^ 1",
            "square 1 --queue a.b",
            "square 1 --queue ^",
            "square 1 --timeout 0s",
            "square 1 --timeout soon",
            "square 1 --delay soon",
            "square 1 --at noon",
            "square 1 --id ^",
            "square 1 --id _a",
            "square 1 --attempts-max 0",
            "square 1 --unique a.b",
            "square 1 --reply-to results.x",
            "square 1 --continuation a.b.c",
            "square --file none",
            "square 1 --delay 2s --expires 1s",
            "square",
        ],
    ),
    (
        "map",
        &[
            "squ.are --range 0..3",
            "square --range 3..0",
            "square --range x",
            "square none",
            "square --range 0..3 --job a.b",
            "square --range 0..3 --queue a_b",
            "square --range 0..3 --timeout 0s",
            "square --range 0..3 --batch 0",
            "square",
        ],
    ),
    (
        "xargs",
        &[
            "--queue a.b echo ::: 1",
            "--timeout 0s echo ::: 1",
            "-n 0 echo ::: 1",
            "-a none echo",
            "--job a.b echo",
            "",
            "::: 1",
        ],
    ),
    (
        "call",
        &["square twelve", "squ.are 1", "square 1 --queue a.b", "square 1 --timeout soon", "square 1 --timeout 0s"],
    ),
    ("job ls", &["--status some"]),
    ("job show", &["a.b", "^", "../x"]),
    ("job wait", &["a.b", "j --timeout soon", ""]),
    ("job results", &["a.b"]),
    ("job cancel", &["a.b", "../x"]),
    ("task ls", &["--queue a.b", "--kind a.b", "--status some", "--since noon", "--limit 0"]),
    ("task export", &["--queue a.b", "--since noon"]),
    ("task show", &["^", "_a", "t --queue a.b", "t --kind a.b"]),
    ("task result", &["^", "t --queue a.b", "t --kind a.b"]),
    ("task cancel", &["^", "t --queue a.b", "t --kind a.b"]),
    ("task restore", &["none"]),
    ("dead ls", &["--queue a.b", "--since noon"]),
    ("dead show", &["^", "t --queue a.b", "t --kind a.b"]),
    ("dead retry", &["", "^", "t --to-queue a.b", "t --args twelve", "--all --args 1", "t --rate 0"]),
    ("dead purge", &["", "^", "--queue a.b --all"]),
    ("queue ls", &["--some"]),
    ("queue set", &["a.b --unlimited", "q", "q --max-waiting 0", "../x --unlimited"]),
    ("queue pause", &["a.b", "q --for soon", "../x"]),
    ("queue resume", &["a.b"]),
    ("queue purge", &["a.b --yes", "q --kind a.b --yes"]),
    (
        "schedule add",
        &[
            "a.b square 1 --every 1s",
            "s squ.are 1 --every 1s",
            "s square twelve --every 1s",
            "s square 1 --every 1ms",
            "s square 1 --every soon",
            "s square 1 --cron x",
            "s square 1 --cron 61_*_*_*_*",
            "s square 1 --cron 0_0_31_2_*",
            "s square 1 --cron @daily --tz Berlin/Europe",
            "s square 1 --every 1s --queue a.b",
            "s square 1 --every 1s --timeout 0s",
            "s square 1",
        ],
    ),
    ("schedule ls", &["--some"]),
    ("schedule rm", &["a.b", ""]),
    ("schedule pause", &["a.b"]),
    ("schedule resume", &["a.b"]),
    ("why", &["^", "_a", "a_", "t --queue a.b", "t --kind a.b", ""]),
    ("top", &["--every soon"]),
    ("shared get", &[""]),
    ("shared set", &["k"]),
    ("shared cas", &["k v", "k v --revision x"]),
    ("shared rm", &[""]),
    ("shared ls", &["--some"]),
    ("shared watch", &["a b"]),
    ("doctor", &["--some"]),
    ("explain", &["some"]),
    ("bench", &["--rounds x"]),
    ("completions", &["some"]),
    (
        "handler try",
        &[
            "square twelve",
            "square",
            "square 1 --timeout soon",
            "square 1 --handlers none.toml",
            "square 1 --task-kind k",
        ],
    ),
    ("queue rm", &["a.b", ""]),
    ("worker ls", &["--some"]),
    ("worker drain", &["a.b", "", "w --timeout 1s"]),
    ("worker run", &["--slots x", "--drain-time soon"]),
    ("producer run", &["--listen x", "--http-stalled-after 0s", "--tls-http-cert none --tls-http-key none"]),
    ("collector run", &["--listen x", "--keep soon"]),
    ("setup", &["--tasks-bytes-max x"]),
    ("secrets", &["", "d --publish-queues a.b"]),
    ("env", &["--some"]),
];

/// What each verb that reaches for a cluster is given that is right.
pub const RIGHT: &[(&str, &[&str])] = &[
    ("submit", &["square 1", "square 1 --wait"]),
    ("map", &["square --range 0..3", "square --range 0..3 --no-wait"]),
    ("xargs", &["echo ::: 1"]),
    ("call", &["square 1", "square --pipe"]),
    ("job ls", &[""]),
    ("job show", &["j"]),
    ("job wait", &["j", "j --timeout 1s"]),
    ("job results", &["j"]),
    ("job cancel", &["j"]),
    ("task ls", &[""]),
    ("task export", &[""]),
    ("task show", &["t"]),
    ("task result", &["t"]),
    ("task cancel", &["t"]),
    ("task restore", &["/dev/null"]),
    ("dead ls", &[""]),
    ("dead show", &["t"]),
    ("dead retry", &["t", "--all"]),
    ("dead purge", &["t", "--all"]),
    ("queue ls", &[""]),
    ("queue set", &["q --unlimited"]),
    ("queue pause", &["q"]),
    ("queue resume", &["q"]),
    ("queue purge", &["q --yes"]),
    ("queue rm", &["q"]),
    ("handler try", &["square --task t"]),
    ("schedule add", &["s square 1 --every 1s"]),
    ("schedule ls", &[""]),
    ("schedule rm", &["s"]),
    ("schedule pause", &["s"]),
    ("schedule resume", &["s"]),
    ("why", &["t"]),
    ("top", &["--once"]),
    ("shared get", &["k"]),
    ("shared set", &["k v"]),
    ("shared cas", &["k v --revision 0"]),
    ("shared rm", &["gone"]),
    ("shared ls", &[""]),
    ("shared watch", &[""]),
    ("worker ls", &[""]),
    ("worker drain", &["w", "--all"]),
    ("worker run", &[""]),
    ("producer run", &[""]),
    ("collector run", &[""]),
    ("setup", &[""]),
];

/// Verbs that need no cluster, or have one of their own; `doctor` reports what it does not reach.
const ALONE: [&str; 7] = ["up", "doctor", "explain", "bench", "completions", "secrets", "env"];

#[test]
fn every_verb_is_tried() {
    for verb in verbs(&[]) {
        let in_table = |table: &[(&str, &[&str])]| table.iter().any(|(line, _)| is_of(line, &verb));
        assert!(in_table(WRONG), "no mistake is tried on {verb}");
        assert!(in_table(RIGHT) || ALONE.contains(&verb.as_str()), "{verb} is not tried without a cluster");
    }
}

#[test]
fn what_is_typed_wrongly_ends_with_2() {
    let wrong = check(WRONG, 2, true);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_cluster_that_cannot_be_reached_ends_with_69() {
    let wrong = check(RIGHT, 69, true);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn without_a_cluster_verbs_say_how_to_start_one() {
    let services = ["worker run", "producer run", "collector run", "setup"];
    let verbs: Vec<_> = RIGHT.iter().filter(|(verb, _)| !services.contains(verb)).copied().collect();
    let wrong = check(&verbs, 69, false);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let said = String::from_utf8(run(&["submit", "square", "1"], false).stderr).unwrap();
    assert!(said.contains("`millpond up`"), "{said}");
}

#[test]
fn standard_output_that_is_closed_ends_verbs_quietly() {
    for arguments in
        [&["completions", "bash"][..], &["completions", "zsh"], &["--help"], &["map", "--help"], &["--version"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(MILLPOND);
        let output = command.args(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
