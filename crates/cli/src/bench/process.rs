//! CPU time and memory of the cluster's processes, from /proc; nothing where there is none.

use std::collections::BTreeMap;
use std::path::Path;

use nix::unistd::{SysconfVar, getpid, getppid, sysconf};

/// The server's program.
const NATS_SERVER: &str = "nats-server";

/// What a process has used.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    /// User and system time, in seconds.
    pub(super) cpu_s: f64,
    /// Resident memory, in bytes.
    pub(super) rss: u64,
}

/// The processes of the cluster by name: what `up` started, and this one (`bench`).
pub(super) fn snapshot() -> BTreeMap<String, Used> {
    let up = getppid().as_raw();
    let parents: BTreeMap<i32, i32> = pids().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let below_up = |pid: i32| {
        let parent = parents.get(&pid).copied();
        parent == Some(up) || parent.and_then(|p| parents.get(&p)).copied() == Some(up)
    };
    let mut found = BTreeMap::new();
    for pid in parents.keys().copied().filter(|pid| *pid == up || below_up(*pid)) {
        if let (Some(name), Some(used)) = (name(pid, up), used(pid)) {
            found.insert(name, used);
        }
    }
    found
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn stat(pid: i32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.get(1)?.parse().ok()
}

fn used(pid: i32) -> Option<Used> {
    let fields = stat(pid)?;
    let field = |n: usize| fields.get(n)?.parse::<u32>().ok();
    let ticks = f64::from(field(11)?) + f64::from(field(12)?);
    let unit = |name| sysconf(name).ok().flatten().and_then(|n| u32::try_from(n).ok());
    let cpu_s = ticks / f64::from(unit(SysconfVar::CLK_TCK)?);
    Some(Used { cpu_s, rss: u64::from(field(21)?) * u64::from(unit(SysconfVar::PAGE_SIZE)?) })
}

/// What it is: the program, or the service that `millpond` runs.
fn name(pid: i32, up: i32) -> Option<String> {
    if pid == getpid().as_raw() {
        return Some("bench".to_owned());
    }
    if pid == up {
        return Some("up".to_owned());
    }
    let text = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&str> = text.split('\0').collect();
    let program = Path::new(words.first()?).file_name()?.to_str()?;
    let service = words.iter().find(|word| ["collector", "producer", "worker", "guard"].contains(word));
    match (program, service) {
        ("millpond", Some(&"guard")) => None,
        ("millpond", Some(service)) => Some((*service).to_owned()),
        // In the cache its version is in its name.
        (program, _) if program.starts_with(NATS_SERVER) => Some(NATS_SERVER.to_owned()),
        (program, _) => Some(program.to_owned()),
    }
}
