//! The rules of the house that a program can check.

use std::fs;
use std::path::{Path, PathBuf};

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn files(dir: &Path, extension: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name().into_string().unwrap();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push((path.strip_prefix(root()).unwrap().to_owned(), fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

pub fn sources() -> Vec<(PathBuf, String)> {
    let found = files(&root(), "rs");
    assert!(found.len() > 40, "the sources are found");
    found
}

#[test]
fn files_say_what_they_are_for() {
    for (path, text) in sources() {
        let header = text.lines().take_while(|l| l.starts_with("//!")).count();
        assert!((1..=10).contains(&header), "{} opens with 1 to 10 lines of //!", path.display());
    }
}

#[test]
fn only_the_bus_names_the_nats_client() {
    for (path, text) in sources() {
        // The raw ceiling of `bench` is what the bus is measured against.
        let allowed =
            ["crates/millpond/src/bus", "cli/src/verbs/bench/raw.rs", "tests"].iter().any(|p| path.starts_with(p));
        assert!(allowed || !text.contains("async_nats::"), "{} names async_nats", path.display());
    }
}

#[test]
fn what_is_listened_to_is_heard_by_its_subject() {
    // Answers come to an inbox that nobody else knows; the raw rounds of `bench` are what the bus is measured against.
    let answers = ["consume/ownership.rs", "consume/pull.rs", "publish/acks.rs", "publish/payloads.rs", "read/find.rs"];
    for (path, text) in sources() {
        let Ok(within) = path.strip_prefix("crates/millpond/src/bus") else { continue };
        let (allowed, inbox) = (within.ends_with("subscription.rs"), answers.iter().any(|a| within.ends_with(a)));
        for line in text.lines().filter(|line| line.contains("client.subscribe(") || line.contains("queue_subscribe("))
        {
            assert!(allowed || inbox && line.contains("inbox"), "{} subscribes by itself: {line}", path.display());
        }
    }
}

/// In a cluster one message whose expectation of the last id does not hold stops its stream, for good; and who asks whether a task is
/// stored asks TASKS or LATER, because DUE would store the question and replace what waits.
#[test]
fn no_publish_stops_or_wipes_a_stream() {
    // The name is known where names of headers are checked, and nowhere else.
    let (stops, replaces) = (["Nats-Expected-Last", "Msg-Id"].join("-"), ["HEADER_ROLLUP", "Nats-Rollup"]);
    let own = "crates/millpond/src/wire";
    let may_replace = ["publish/stored_already.rs", "publish/payloads.rs", "publish/schedules.rs", "operate/later.rs"]
        .map(|file| format!("crates/millpond/src/bus/{file}"));
    for (path, text) in sources().into_iter().filter(|(path, _)| !path.starts_with("tests")) {
        // Unit tests publish nothing.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let names = path.strip_prefix(own).is_ok_and(|within| within.ends_with("header_names.rs"));
        assert!(names || !text.contains(&stops), "{} names {stops}", path.display());
        assert!(
            path.starts_with(own)
                || may_replace.iter().any(|may| path.ends_with(may))
                || !replaces.iter().any(|name| text.contains(name)),
            "{} publishes what replaces other messages",
            path.display()
        );
        let raw = ["expected_last_message_id", "expected_last_msg_id"].iter().any(|builder| text.contains(builder));
        assert!(!raw, "{} has the NATS client send {stops}", path.display());
    }
    let asks = fs::read_to_string(root().join(&may_replace[0])).unwrap();
    let sent: Vec<&str> = asks.split("try_store(").skip(1).filter_map(|call| call.split(',').next()).collect();
    assert_eq!(sent, ["&place"]);
    let places: Vec<&str> = asks.split("=> subject.").skip(1).filter_map(|place| place.split(',').next()).collect();
    assert_eq!(places, ["task()", "later()"], "whether a task is stored is asked of TASKS and LATER alone");
    let topology = fs::read_to_string(root().join("crates/millpond/src/bus/topology.rs")).unwrap();
    let tasks = topology.split("let published").nth(1).unwrap().split("name: STREAM_DUE").next().unwrap();
    assert!(tasks.contains("published(STREAM_TASKS,") && tasks.contains("published(STREAM_LATER,"));
    assert!(tasks.contains("allow_direct") && !tasks.contains("allow_rollup"), "TASKS and LATER take no rollup");
}

#[test]
fn words_have_no_io_no_clock_and_no_dice() {
    for word in [
        "task",
        "batch",
        "outcome",
        "payload",
        "dead_letter",
        "job",
        "later",
        "schedule",
        "cron",
        "worker_record",
        "retry",
        "chain",
        "signature",
        "limits",
    ] {
        let path = root().join(format!("crates/millpond/src/{word}.rs"));
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for banned in
            ["tokio::", "Instant::now", "SystemTime", "Timestamp::now", "rand::", "std::env", "std::fs", "async fn"]
        {
            assert!(!code.contains(banned), "{word}.rs uses {banned}");
        }
    }
}

#[test]
fn services_do_not_know_each_other() {
    for (service, others) in [
        ("producer", ["millpond_worker", "millpond_collector"]),
        ("worker", ["millpond_producer", "millpond_collector"]),
        ("collector", ["millpond_producer", "millpond_worker"]),
    ] {
        for (path, text) in files(&root().join("services").join(service), "rs") {
            assert!(others.iter().all(|o| !text.contains(o)), "{} names another service", path.display());
        }
    }
    let source = |path: &str| fs::read_to_string(root().join("services/worker/src").join(path)).unwrap();
    let execute = source("run/execute.rs");
    assert!(!execute.contains("settle::") && !execute.contains("millpond::bus"), "execute knows nothing of settling");
    for path in ["run/mod.rs", "run/remainder.rs"] {
        assert!(!source(path).contains("settle::"), "{path} knows nothing of settling");
    }
    for path in ["settle/mod.rs", "settle/turned_away.rs", "outbox/mod.rs", "outbox/message.rs"] {
        let text = source(path);
        assert!(!text.contains("handlers::") && !text.contains("run::"), "{path} knows nothing of handlers");
    }
}

#[test]
fn no_grpc_comes_in() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for banned in ["tonic", "grpcio", "openssl-sys"] {
        assert!(!lock.contains(&format!("name = \"{banned}\"")), "{banned} is in Cargo.lock");
    }
}

#[test]
fn every_environment_variable_is_documented() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let develop = fs::read_to_string(root().join("docs/develop.md")).unwrap();
    let mut seen = 0;
    for (path, text) in sources().into_iter().filter(|(path, _)| !path.starts_with("tests")) {
        for part in text.split('"').skip(1).step_by(2) {
            let is_variable = part.starts_with("MILLPOND_")
                && part.chars().all(|c| c.is_ascii_uppercase() || c == '_')
                && !part.ends_with('_');
            if is_variable {
                seen += 1;
                let told = readme.contains(part) || develop.contains(part);
                assert!(told, "{part} of {} is not in README.md or docs/develop.md", path.display());
            }
        }
    }
    assert!(seen > 15, "the variables are found");
}

#[test]
fn every_metric_is_documented() {
    let told = fs::read_to_string(root().join("docs/observability.md")).unwrap();
    let mut seen = 0;
    for (path, text) in sources().into_iter().filter(|(path, _)| !path.starts_with("tests")) {
        for call in ["gauge!(\"", "counter!(\"", "histogram!(\"", "took(\""] {
            for name in text.split(call).skip(1).filter_map(|rest| rest.split('"').next()) {
                seen += 1;
                assert!(
                    told.contains(&format!("`{name}`")),
                    "{name} of {} is not in docs/observability.md",
                    path.display()
                );
            }
        }
    }
    assert!(seen > 30, "the metrics are found");
}

#[test]
fn every_failpoint_is_listed() {
    let develop = fs::read_to_string(root().join("docs/develop.md")).unwrap();
    for (path, text) in sources().into_iter().filter(|(path, _)| !path.starts_with("tests")) {
        for part in text.split("failpoint::hit(\"").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(develop.contains(&format!("`{name}`")), "{name} of {} is not in docs/develop.md", path.display());
        }
    }
}

#[test]
fn architecture_is_short_and_its_paths_exist() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    assert!(text.lines().count() <= 150);
    for name in
        text.split('`').skip(1).step_by(2).filter(|n| n.contains('/') && !n.contains([' ', '<', '{', '*', ':', '$']))
    {
        let places = [root().join(name), root().join("crates/millpond/src").join(name)];
        assert!(places.iter().any(|p| p.exists()), "ARCHITECTURE.md names {name}, which is not there");
    }
}
