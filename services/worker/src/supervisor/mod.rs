//! Handlers that run in processes of their own, in any language: started, watched, limited, ended. No NATS, no storage,
//! nothing of settling. [`Pool`] is the children of one kind; this file watches all of them.

mod converse;
#[cfg(target_os = "linux")]
pub(crate) mod guard;
mod lines;
mod logs;
mod once;
mod order;
mod pool;
mod proc;
mod process;
mod spec;
mod stream;
mod view;
pub(crate) mod xargs;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use millpond::limits::{CHILD_MEMORY_LOOK_EVERY, CHILD_SAMPLE_EVERY, CHILDREN_LISTED_MAX};
use millpond::worker_record::ChildRecord;
use nix::sys::signal::kill;
use nix::unistd::Pid;

pub(crate) use order::Timeouts;
pub(crate) use pool::{NotNow, Pool, Ticket};
pub(crate) use proc::{Usage, usage};
pub(crate) use spec::{Program, Spec, read as read_specs};

use view::View;

/// In a child: its kind.
pub(crate) const ENV_KIND: &str = "MILLPOND_KIND";
/// In a child that is this program again: whether the kind is one that every worker knows.
pub(crate) const ENV_BUILT_IN: &str = "MILLPOND_CHILD_BUILT_IN";
/// How a guard ends, and how its last line begins, when the command cannot be started: its task has not run.
const EXIT_CANNOT_START: i32 = 127;
const CANNOT_START: &str = "cannot start ";

/// All pools of a worker. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Supervisor {
    pools: Arc<[Arc<Pool>]>,
}

impl Supervisor {
    /// Over these pools; their children are started.
    pub(crate) fn start(pools: Vec<Arc<Pool>>) -> Self {
        pools.iter().for_each(Pool::warm);
        Self { pools: pools.into() }
    }

    /// Samples children, and ends those that use too much memory, until it is aborted.
    pub(crate) async fn watch(self) {
        let limited = self.pools.iter().any(|pool| pool.spec.memory_max.is_some());
        let mut tick = tokio::time::interval(if limited { CHILD_MEMORY_LOOK_EVERY } else { CHILD_SAMPLE_EVERY });
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sampled = Instant::now();
        loop {
            tick.tick().await;
            let sample = sampled.elapsed() + CHILD_MEMORY_LOOK_EVERY / 2 >= CHILD_SAMPLE_EVERY;
            if sample {
                sampled = Instant::now();
            }
            for pool in &*self.pools {
                for view in pool.views() {
                    look(&view, pool.spec.memory_max, sample);
                }
            }
        }
    }

    /// The children, by name.
    pub(crate) fn records(&self) -> Vec<ChildRecord> {
        let views = self.pools.iter().flat_map(|pool| pool.views());
        views.take(CHILDREN_LISTED_MAX).map(|view| view.record()).collect()
    }

    /// Kinds whose children cannot be started, and why.
    pub(crate) fn troubles(&self) -> BTreeMap<String, String> {
        self.pools.iter().filter_map(|pool| Some((pool.spec.kind.clone(), pool.trouble()?))).collect()
    }

    /// Ends all children: told to shut down, then asked, then ended.
    pub(crate) async fn close(&self) {
        futures_util::future::join_all(self.pools.iter().map(|pool| pool.close())).await;
    }
}

fn look(view: &View, memory_max: Option<u64>, sample: bool) {
    let weigh = memory_max.is_some() && view.is_busy();
    let Some(pid) = view.pid().filter(|_| sample || weigh) else { return };
    let usage = usage(&proc::descendants(pid));
    if sample {
        view.sampled(usage);
    } else {
        view.weighed(usage.rss_bytes);
    }
    let over = weigh && memory_max.is_some_and(|max| usage.rss_bytes > max);
    if over && view.over_memory().is_none() {
        view.went_over_memory(usage.rss_bytes);
        // Its own actor sees it end, and blames the task.
        #[cfg(target_os = "linux")]
        let _ = kill(Pid::from_raw(pid.cast_signed()), guard::END_ALL);
        #[cfg(not(target_os = "linux"))]
        let _ = kill(Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL);
    }
}
