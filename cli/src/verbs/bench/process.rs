//! CPU time and memory of the cluster's processes; empty where there is no /proc.

use std::collections::BTreeMap;

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    /// User and system time, in seconds.
    pub(super) cpu_s: f64,
    /// Resident memory, in bytes.
    pub(super) rss: u64,
}

#[cfg(not(target_os = "linux"))]
pub(super) fn snapshot() -> BTreeMap<String, Used> {
    BTreeMap::new()
}

/// The processes of the cluster by name: what `up` started, and this one (`bench`).
#[cfg(target_os = "linux")]
pub(super) fn snapshot() -> BTreeMap<String, Used> {
    linux::snapshot().unwrap_or_default()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::path::Path;

    use nix::unistd::{getpid, getppid};
    use procfs::process::{Process, Stat};
    use procfs::{ProcResult, page_size, ticks_per_second};

    use super::{BTreeMap, Used};

    /// The server's program.
    const NATS_SERVER: &str = "nats-server";

    pub(super) fn snapshot() -> ProcResult<BTreeMap<String, Used>> {
        let up = getppid().as_raw();
        // A process that ends meanwhile is left out.
        let all: Vec<(Process, Stat)> = procfs::process::all_processes()?
            .filter_map(|process| process.ok().and_then(|process| process.stat().ok().map(|stat| (process, stat))))
            .collect();
        let cluster = all.iter().filter(|(_, stat)| stat.pid == up || stat.ppid == up);
        Ok(cluster.filter_map(|(process, stat)| Some((name(process, up)?, used(stat)?))).collect())
    }

    fn used(stat: &Stat) -> Option<Used> {
        let number = |n: u64| u32::try_from(n).ok().map(f64::from);
        let cpu_s = number(stat.utime + stat.stime)? / number(ticks_per_second())?;
        Some(Used { cpu_s, rss: stat.rss * page_size() })
    }

    /// The name of a process: its program, or the service that `millpond` runs.
    fn name(process: &Process, up: i32) -> Option<String> {
        if process.pid == getpid().as_raw() {
            return Some("bench".to_owned());
        }
        if process.pid == up {
            return Some("up".to_owned());
        }
        let words = process.cmdline().ok()?;
        let program = Path::new(words.first()?).file_name()?.to_str()?;
        let service = words.iter().find(|word| ["collector", "producer", "worker"].contains(&word.as_str()));
        match (program, service) {
            ("millpond", Some(service)) => Some(service.clone()),
            // A cached program has its version in its name.
            (program, _) if program.starts_with(NATS_SERVER) => Some(NATS_SERVER.to_owned()),
            (program, _) => Some(program.to_owned()),
        }
    }
}
