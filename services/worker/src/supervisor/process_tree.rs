//! What the kernel knows of processes: which are below which, their memory and processor time, and whether it has killed
//! one for want of memory. Linux only: elsewhere nothing is known, and no limit of memory can be kept.

use std::time::Duration;

/// What some processes use together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ProcessUsage {
    /// Resident memory, in bytes.
    pub(crate) rss_bytes: u64,
    /// User and system time of the living processes, since their start.
    pub(crate) cpu: Duration,
    /// Processes.
    pub(crate) processes: u32,
}

#[cfg(target_os = "linux")]
mod linux {
    use std::time::Duration;

    use procfs::process::Process;

    use super::ProcessUsage;

    /// Every process below `root` without `root` itself, parents first.
    pub(crate) fn descendants(root: u32) -> Vec<u32> {
        let mut found = children(root);
        let mut next = 0;
        while let Some(&pid) = found.get(next) {
            next += 1;
            found.extend(children(pid));
        }
        found
    }

    /// Each thread of a process has children of its own.
    fn children(pid: u32) -> Vec<u32> {
        let Ok(threads) = Process::new(pid.cast_signed()).and_then(|process| process.tasks()) else {
            return Vec::new();
        };
        threads.flatten().filter_map(|thread| thread.children().ok()).flatten().collect()
    }

    /// What `pids` use together; processes that are gone use nothing.
    pub(crate) fn usage(pids: &[u32]) -> ProcessUsage {
        let (page, tick) = (procfs::page_size(), procfs::ticks_per_second());
        let stats = pids.iter().filter_map(|pid| Process::new(pid.cast_signed()).ok()?.stat().ok());
        stats.fold(ProcessUsage::default(), |sum, stat| ProcessUsage {
            rss_bytes: sum.rss_bytes + stat.rss * page,
            cpu: sum.cpu + Duration::from_micros((stat.utime + stat.stime) * 1_000_000 / tick.max(1)),
            processes: sum.processes + 1,
        })
    }

    /// Memory of `pids` that nothing but them needs, in bytes: anonymous and shared memory, each page divided by the processes
    /// that share it, and what of it was swapped out. Files that are mapped can be read again, and do not count. A process that
    /// may not be looked into counts with its resident memory.
    pub(crate) fn own_memory(pids: &[u32]) -> u64 {
        pids.iter().map(|pid| rollup(*pid).unwrap_or_else(|| usage(&[*pid]).rss_bytes)).sum()
    }

    fn rollup(pid: u32) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let kib = |line: &str| {
            let (name, value) = line.split_once(':')?;
            let counts = ["Pss_Anon", "Pss_Shmem", "SwapPss"].contains(&name);
            value.trim().strip_suffix(" kB").filter(|_| counts)?.trim().parse::<u64>().ok()
        };
        let counted: Vec<u64> = text.lines().filter_map(kib).collect();
        // Kernels before 5.4 do not tell files from the rest.
        (counted.len() == 3).then(|| counted.iter().sum::<u64>() * 1024)
    }

    /// What `pids` have resident and swapped out together, in bytes: their own memory is not more than that.
    pub(crate) fn resident_and_swapped(pids: &[u32]) -> u64 {
        let swapped = pids.iter().filter_map(|pid| Process::new(pid.cast_signed()).ok()?.status().ok()?.vmswap);
        usage(pids).rss_bytes + swapped.sum::<u64>() * 1024
    }

    /// How many processes of this control group (v2 or v1) the kernel has killed for want of memory; none outside of one.
    pub(crate) fn oom_kills() -> Option<u64> {
        let groups = Process::myself().ok()?.cgroups().ok()?;
        groups.into_iter().find_map(|group| {
            let path = group.pathname.trim_start_matches('/');
            let file = match group.controllers.as_slice() {
                [] => format!("/sys/fs/cgroup/{path}/memory.events"),
                some if some.iter().any(|c| c == "memory") => {
                    format!("/sys/fs/cgroup/memory/{path}/memory.oom_control")
                }
                _ => return None,
            };
            let text = std::fs::read_to_string(file).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
            line.trim().parse().ok()
        })
    }
}

#[cfg(target_os = "linux")]
pub(crate) use linux::{descendants, oom_kills, own_memory, resident_and_swapped, usage};

#[cfg(not(target_os = "linux"))]
pub(crate) fn usage(_: &[u32]) -> ProcessUsage {
    ProcessUsage::default()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn resident_and_swapped(_: &[u32]) -> u64 {
    0
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn descendants(_: u32) -> Vec<u32> {
    Vec::new()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn oom_kills() -> Option<u64> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something_and_its_children_are_found() {
        let me = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(descendants(me).contains(&child.id()));
        assert!(usage(&[me]).rss_bytes > 1 << 20 && usage(&[me]).processes == 1);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!descendants(me).contains(&child.id()));
    }

    #[test]
    fn own_memory_is_a_part_of_what_is_resident() {
        let held = vec![1_u8; 32 << 20];
        let (me, before) = ([std::process::id()], std::time::Instant::now());
        let own = own_memory(&me);
        assert!(own > 32 << 20 && own <= resident_and_swapped(&me), "{own} in {:?}", before.elapsed());
        assert_eq!(held.len(), 32 << 20);
    }
}
