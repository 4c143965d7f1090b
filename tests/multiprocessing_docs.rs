//! docs/from-multiprocessing.md: what it shows is run as it stands, and prints what it says.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{MILLPOND, PATIENCE, Process, output, until};

/// The files that the page names, and its commands with what they print.
struct Page {
    files: Vec<(String, String)>,
    commands: Vec<(String, String)>,
}

fn page() -> Page {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/from-multiprocessing.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    let mut page = Page { files: Vec::new(), commands: Vec::new() };
    while let Some(line) = lines.next() {
        let named = line.strip_prefix("<!-- file: ").and_then(|rest| rest.strip_suffix(" -->"));
        if named.is_none() && line != "```console" {
            continue;
        }
        if named.is_some() {
            assert!(lines.next().unwrap().starts_with("```"));
        }
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if let Some(name) = named {
            page.files.push((name.to_owned(), format!("{}\n", block.join("\n"))));
            continue;
        }
        for line in block {
            match line.strip_prefix("$ ") {
                Some(command) => page.commands.push((command.to_owned(), String::new())),
                None => {
                    page.commands.last_mut().expect("a block begins with a command").1.push_str(&format!("{line}\n"))
                }
            }
        }
    }
    page
}

/// Ids are drawn at random: the page writes ID for them.
fn without_ids(text: &str) -> String {
    let words = text.split(' ').scan(false, |after_task, word| {
        let shown = if std::mem::replace(after_task, word == "task") { "ID" } else { word };
        Some(shown)
    });
    words.collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_page_shows_is_so() {
    let (page, dir) = (page(), tempfile::tempdir().unwrap());
    assert!(page.commands.len() > 15, "the page has its commands");
    for (name, text) in &page.files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let state = dir.path().join("state");
    let mut up = Command::new(MILLPOND);
    up.current_dir(dir.path()).arg("--state").arg(&state);
    up.args(["up", "--workers", "2", "--handlers", "handlers.toml", "--ports", "auto"]);
    let log = std::fs::File::create(dir.path().join("up.log")).unwrap();
    let mut up = Process::start(up.stdout(Stdio::from(log.try_clone().unwrap())).stderr(log));
    until("env file", PATIENCE, async || state.join("env").exists().then_some(())).await;
    let path = format!("{}:{}", Path::new(MILLPOND).parent().unwrap().display(), std::env::var("PATH").unwrap());
    for (line, expected) in &page.commands {
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(dir.path()).env("PATH", &path).env("MILLPOND_STATE", &state);
        let running = output(command);
        let output = tokio::time::timeout(PATIENCE, running).await.unwrap_or_else(|_| panic!("{line} does not end"));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(&without_ids(&said), expected, "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    up.signal(Signal::SIGTERM);
    assert!(up.end(Duration::from_secs(40)).await.success());
}
