//! Handlers that run in processes of their own, in any language: they are started, watched, limited and ended here.
//! [`Children`] are those of one kind; this file watches the children of all kinds. No NATS, no storage, no settling.

mod child_environment;
mod child_logs;
pub(crate) mod child_process;
mod child_status;
mod child_user;
mod children;
mod guard_report;
mod handlers_toml;
pub(crate) mod line_protocol;
mod line_reader;
mod log_line;
mod log_reader;
pub(crate) mod once;
mod process_tree;
mod stop_times;
#[cfg(target_os = "linux")]
pub(crate) mod subreaper_guard;
mod warm;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millpond::worker_record::{CHILDREN_LISTED_MAX, ChildRecord};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::task::JoinSet;

pub(crate) use child_environment::check_pattern as check_env_pattern;
pub(crate) use child_user::ChildUser;
pub(crate) use children::{ChildTicket, ChildUnavailable, Children};
pub(crate) use handlers_toml::{ChildProgram, ChildSpec, read as read_handlers_toml};
pub(crate) use process_tree::{ProcessUsage, usage};
pub(crate) use stop_times::Timeouts;

use child_status::ChildStatus;

/// How often the CPU time and memory of children are read.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);
/// How often the memory of a busy child with a limit is read.
const MEMORY_SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// The exact memory of a child is read for a twentieth of the time at the most: the
/// kernel walks over all pages, which was seen to take 50 ms for each GiB on a busy machine.
const EXACT_MEMORY_SHARE: u32 = 20;

/// The children of all kinds of a worker. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Supervisor {
    kinds: Arc<[Arc<Children>]>,
}

impl Supervisor {
    /// Supervises the children of these kinds, and starts them.
    pub(crate) fn start(kinds: Vec<Arc<Children>>) -> Self {
        kinds.iter().for_each(Children::warm_up);
        Self { kinds: kinds.into() }
    }

    /// Samples the children, and ends those that use too much memory, until it is aborted.
    pub(crate) async fn watch(self) {
        let limited = self.kinds.iter().any(|children| children.spec.table.memory.is_some());
        let mut tick = tokio::time::interval(if limited { MEMORY_SAMPLE_EVERY } else { SAMPLE_EVERY });
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sampled = Instant::now();
        // At most one for each child.
        let mut measuring = JoinSet::new();
        loop {
            tick.tick().await;
            while measuring.try_join_next().is_some() {}
            let sample_all = sampled.elapsed() + MEMORY_SAMPLE_EVERY / 2 >= SAMPLE_EVERY;
            if sample_all {
                sampled = Instant::now();
            }
            for children in &*self.kinds {
                for status in children.statuses() {
                    if let Some(max) = sample(&status, children.spec.table.memory, sample_all) {
                        measuring.spawn(measure(status, max));
                    }
                }
            }
        }
    }

    /// The memory that is resident for all children now, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let pids = self.kinds.iter().flat_map(|children| children.statuses()).filter_map(|status| status.pid());
        pids.map(|pid| usage(&process_tree::descendants(pid)).rss_bytes).sum()
    }

    /// The records of the children, by kind and number.
    pub(crate) fn records(&self) -> Vec<ChildRecord> {
        let statuses = self.kinds.iter().flat_map(|children| children.statuses());
        statuses.take(CHILDREN_LISTED_MAX).map(|status| status.record()).collect()
    }

    /// The kinds whose children cannot be started, and why.
    pub(crate) fn troubles(&self) -> BTreeMap<String, String> {
        self.kinds.iter().filter_map(|children| Some((children.spec.kind.clone(), children.trouble()?))).collect()
    }

    /// Ends all children: each is told to shut down, then gets SIGTERM, then is killed.
    pub(crate) async fn close(&self) {
        futures_util::future::join_all(self.kinds.iter().map(|children| children.close())).await;
    }
}

/// Reads what one child uses, if it is due. Returns its limit when its exact memory must be read.
fn sample(status: &ChildStatus, memory_max: Option<u64>, sample_all: bool) -> Option<u64> {
    let memory_max = memory_max.filter(|_| status.is_busy() && status.over_memory().is_none());
    let pid = status.pid().filter(|_| sample_all || memory_max.is_some())?;
    let pids = process_tree::descendants(pid);
    let used = usage(&pids);
    if used.processes == 0 {
        // It has just ended: what was seen before is its evidence.
        return None;
    }
    if sample_all {
        status.sampled(used);
    } else {
        status.memory_sampled(used.rss_bytes);
    }
    // The kernel walks over all pages to tell what processes share: a cheap bound comes first.
    memory_max.filter(|max| process_tree::resident_and_swapped(&pids) > *max && status.exact_memory_begins())
}

/// Reads the exact memory of a child, and ends the child when it is above its limit.
async fn measure(status: Arc<ChildStatus>, max: u64) {
    let started = Instant::now();
    let mut own = status.exact_memory().await;
    if own.is_some_and(|own| own > max) {
        // Processes are read one after the other: pages that a fork shared in between were counted twice.
        own = status.exact_memory().await.min(own);
    }
    status.exact_memory_read(started.elapsed() * EXACT_MEMORY_SHARE);
    let (Some(own), Some(pid)) = (own.filter(|own| *own > max), status.pid()) else { return };
    status.went_over_memory(own);
    // The actor of the child sees its end, and blames the task.
    let signal = if cfg!(target_os = "linux") { child_process::END_ALL } else { nix::sys::signal::Signal::SIGKILL };
    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
}
