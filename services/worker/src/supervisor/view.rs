//! What may be seen of a child while it lives: by its log lines, by the sampler, by the heartbeat, and by whoever writes
//! the evidence of its end.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millpond::limits::{EVIDENCE_LINES_MAX, EVIDENCE_LOG_BYTES_MAX, PROGRESS_NOTE_BYTES_MAX};
use millpond::outcome::{ChildEvidence, cut};
use millpond::telemetry::TraceContext;
use millpond::worker_record::{ChildRecord, ChildState};

use super::proc::Usage;

/// The task that a child works on.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) id: String,
    pub(crate) attempt: u32,
    pub(crate) trace: Option<TraceContext>,
    pub(crate) since: Instant,
}

/// One child, as others see it.
pub(crate) struct View {
    /// `<worker>/<kind>-<n>`.
    pub(crate) name: String,
    pub(crate) worker: String,
    pub(crate) kind: String,
    started_ms: i64,
    /// Times that a child of this name was started before it.
    restarts: u32,
    now: Mutex<Now>,
}

struct Now {
    /// The guard's process, or the child's where there is no guard.
    pid: Option<u32>,
    state: ChildState,
    running: Option<Running>,
    done: u64,
    usage: Usage,
    cpu_share: f64,
    sampled: Option<(Instant, Duration)>,
    progress: Option<f64>,
    note: Option<String>,
    log: VecDeque<String>,
    log_bytes: usize,
    first_line: Option<String>,
    /// Its memory when it was found above its limit.
    over_memory: Option<u64>,
}

impl View {
    pub(crate) fn new(worker: &str, kind: &str, number: u32, restarts: u32, done: u64) -> Self {
        let now = Now {
            pid: None,
            state: ChildState::Starting,
            running: None,
            done,
            usage: Usage::default(),
            cpu_share: 0.0,
            sampled: None,
            progress: None,
            note: None,
            log: VecDeque::new(),
            log_bytes: 0,
            first_line: None,
            over_memory: None,
        };
        Self {
            name: format!("{worker}/{kind}-{number}"),
            worker: worker.to_owned(),
            kind: kind.to_owned(),
            started_ms: millpond::now_ms(),
            restarts,
            now: Mutex::new(now),
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn started(&self, pid: Option<u32>) {
        self.now().pid = pid;
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.now().pid
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.now().running.is_some()
    }

    pub(crate) fn be(&self, state: ChildState) {
        self.now().state = state;
    }

    /// It works on this task now. `alone`: nothing was written ahead, and the lines so far are not its own.
    pub(crate) fn runs(&self, running: Running, alone: bool) {
        let mut now = self.now();
        (now.state, now.running) = (ChildState::Busy, Some(running));
        (now.progress, now.note) = (None, None);
        if alone {
            now.log_bytes = 0;
            now.log.clear();
        }
    }

    /// It has answered, and waits.
    pub(crate) fn waits(&self) {
        let mut now = self.now();
        (now.state, now.running) = (ChildState::Idle, None);
        (now.progress, now.note) = (None, None);
    }

    pub(crate) fn answered(&self) {
        self.now().done += 1;
    }

    pub(crate) fn progressed(&self, progress: Option<f64>, note: Option<String>) {
        let mut now = self.now();
        now.progress = progress.or(now.progress);
        now.note = note.map(|n| cut(n, PROGRESS_NOTE_BYTES_MAX)).or(now.note.take());
    }

    pub(crate) fn running(&self) -> Option<Running> {
        self.now().running.clone()
    }

    /// Keeps a log line for the evidence.
    pub(crate) fn logged(&self, line: &str) {
        let mut now = self.now();
        let line = cut(line.to_owned(), EVIDENCE_LOG_BYTES_MAX / 8);
        now.log_bytes += line.len();
        if now.first_line.is_none() {
            now.first_line = Some(line.clone());
        }
        now.log.push_back(line);
        while now.log.len() > EVIDENCE_LINES_MAX || now.log_bytes > EVIDENCE_LOG_BYTES_MAX {
            now.log_bytes -= now.log.pop_front().map_or(0, |l| l.len());
        }
    }

    /// Notes what it uses; its share of a core since the sample before.
    pub(crate) fn sampled(&self, usage: Usage) {
        let (mut now, at) = (self.now(), Instant::now());
        if let Some((before, cpu)) = now.sampled {
            let wall = at.duration_since(before).as_secs_f64().max(1e-3);
            now.cpu_share = usage.cpu.saturating_sub(cpu).as_secs_f64() / wall;
        }
        (now.usage, now.sampled) = (usage, Some((at, usage.cpu)));
    }

    /// Notes its memory only.
    pub(crate) fn weighed(&self, rss_bytes: u64) {
        self.now().usage.rss_bytes = rss_bytes;
    }

    pub(crate) fn went_over_memory(&self, rss_bytes: u64) {
        let mut now = self.now();
        now.usage.rss_bytes = rss_bytes;
        now.over_memory = Some(rss_bytes);
    }

    pub(crate) fn over_memory(&self) -> Option<u64> {
        self.now().over_memory
    }

    /// The last log line, for a message.
    pub(crate) fn last_line(&self) -> Option<String> {
        self.now().log.back().cloned()
    }

    /// The first log line of its life, whatever has run since: there a guard says that it can start nothing.
    pub(crate) fn first_line(&self) -> Option<String> {
        self.now().first_line.clone()
    }

    /// What is known of it now, and of its end where it has ended.
    pub(crate) fn evidence(&self, ended: Option<ExitStatus>, oom: bool) -> Box<ChildEvidence> {
        let now = self.now();
        Box::new(ChildEvidence {
            name: self.name.clone(),
            exit_code: ended.and_then(|e| e.code()),
            signal: ended.and_then(|e| e.signal()),
            oom,
            rss_bytes: now.usage.rss_bytes,
            log: now.log.iter().cloned().collect(),
        })
    }

    pub(crate) fn record(&self) -> ChildRecord {
        let now = self.now();
        ChildRecord {
            name: self.name.clone(),
            kind: self.kind.clone(),
            pid: now.pid.unwrap_or(0),
            state: now.state,
            task: now.running.as_ref().map(|r| r.id.clone()),
            task_ms: now.running.as_ref().map(|r| u64::try_from(r.since.elapsed().as_millis()).unwrap_or(u64::MAX)),
            progress: now.progress,
            note: now.note.clone(),
            done: now.done,
            restarts: self.restarts,
            cpu_percent: (now.cpu_share * 1000.0).round() / 10.0,
            rss_bytes: now.usage.rss_bytes,
            started_ms: self.started_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guard_said_is_known_after_its_child_was_given_a_task() {
        let view = View::new("w1", "k", 1, 0, 0);
        assert_eq!(view.first_line(), None);
        ["cannot start x: no such file", "second"].iter().for_each(|line| view.logged(line));
        let running = Running { id: "t".to_owned(), attempt: 1, trace: None, since: Instant::now() };
        view.runs(running, true);
        assert_eq!(view.last_line(), None, "the lines of a task are its own");
        assert_eq!(view.first_line().as_deref(), Some("cannot start x: no such file"));
    }
}
