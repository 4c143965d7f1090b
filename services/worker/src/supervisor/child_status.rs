//! What is known of a child while it lives. The child's own actor writes it; the sampler, the heartbeat and the evidence of
//! a failure read it.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use millpond::outcome::{
    ChildEvidence, EVIDENCE_LINE_BYTES_MAX, EVIDENCE_LINES_MAX, EVIDENCE_LOG_BYTES_MAX, cut, json_bytes,
};
use millpond::telemetry::TraceContext;
use millpond::worker_record::{ChildRecord, ChildState};

use super::guard_report::{ANSWER_WITHIN, GuardReport};
use super::process_tree::ProcessUsage;
use crate::call::Call;

/// Longest note that a child may send with its progress, in bytes; a longer one is cut.
const PROGRESS_NOTE_BYTES_MAX: usize = 200;

/// Bytes that a task may log at once; more comes at [`LOG_BYTES_PER_S`].
pub(super) const LOG_BURST_BYTES: usize = 1024 * 1024;
/// Bytes a second that a task may log beyond [`LOG_BURST_BYTES`].
pub(super) const LOG_BYTES_PER_S: usize = 64 * 1024;

/// Whether a line of a child may go to the log.
pub(super) enum LogAllowance {
    Within,
    /// It is the first one after so many that were left out.
    Again {
        lines: u64,
    },
    /// It is the first one that is left out.
    Begins,
    Beyond,
}

/// What a child may log.
struct LogBucket {
    bytes: usize,
    filled: Instant,
    left_out: u64,
}

impl Default for LogBucket {
    fn default() -> Self {
        Self { bytes: LOG_BURST_BYTES, filled: Instant::now(), left_out: 0 }
    }
}

/// The task that a child works on.
#[derive(Debug, Clone)]
pub(crate) struct RunningTask {
    pub(crate) id: String,
    pub(crate) attempt: u32,
    pub(crate) trace: Option<TraceContext>,
    since: Instant,
    /// The child has written something since.
    has_spoken: bool,
}

/// One child, as others see it.
pub(crate) struct ChildStatus {
    /// `<worker>/<kind>-<n>`.
    pub(crate) name: String,
    pub(crate) worker: String,
    pub(crate) kind: String,
    started_ms: i64,
    /// How many children of this name were started before.
    restarts: u32,
    observed: Mutex<Observed>,
    report: OnceLock<GuardReport>,
}

/// The part of the status that changes.
#[derive(Default)]
struct Observed {
    /// The guard's process id, or the child's where there is no guard.
    pid: Option<u32>,
    state: ChildState,
    running: Option<RunningTask>,
    done: u64,
    usage: ProcessUsage,
    cpu_share: f64,
    /// When CPU time was last read, and how much there was.
    sampled: Option<(Instant, Duration)>,
    progress: Option<f64>,
    note: Option<String>,
    log: VecDeque<String>,
    log_bytes: usize,
    allowance: LogBucket,
    first_line: Option<String>,
    /// When its exact memory may be read again.
    exact_memory_due: Option<Instant>,
    /// The child's memory when it was found above its limit.
    over_memory: Option<u64>,
}

impl ChildStatus {
    pub(crate) fn new(worker: &str, kind: &str, number: u32, restarts: u32, done: u64) -> Self {
        Self {
            name: format!("{worker}/{kind}-{number}"),
            worker: worker.to_owned(),
            kind: kind.to_owned(),
            started_ms: millpond::now_ms(),
            restarts,
            observed: Mutex::new(Observed { done, ..Observed::default() }),
            report: OnceLock::new(),
        }
    }

    fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes its process, and where the guard of it reports.
    pub(super) fn started(&self, pid: Option<u32>, report: Option<GuardReport>) {
        self.observed().pid = pid;
        if let Some(report) = report {
            let _ = self.report.set(report);
        }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.observed().pid
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.observed().running.is_some()
    }

    pub(crate) fn stopping(&self) {
        self.observed().state = ChildState::Stopping;
    }

    /// Notes that the child works on `call` from now on. `alone`: no other task was written to it, so that no log line so
    /// far belongs to this one.
    pub(crate) fn runs(&self, call: &Call, alone: bool) {
        let (id, attempt, trace) = (call.id.clone(), call.attempt, call.trace);
        let mut observed = self.observed();
        observed.state = ChildState::Busy;
        observed.running = Some(RunningTask { id, attempt, trace, since: Instant::now(), has_spoken: false });
        (observed.progress, observed.note) = (None, None);
        observed.allowance.bytes = LOG_BURST_BYTES;
        if alone {
            observed.log_bytes = 0;
            observed.log.clear();
        }
    }

    /// Notes that the child has no task.
    pub(crate) fn waits(&self) {
        let mut observed = self.observed();
        (observed.state, observed.running) = (ChildState::Idle, None);
        (observed.progress, observed.note) = (None, None);
    }

    pub(crate) fn answered(&self) {
        self.observed().done += 1;
    }

    pub(crate) fn progressed(&self, progress: Option<f64>, note: Option<String>) {
        let mut observed = self.observed();
        Self::spoke(&mut observed);
        observed.progress = progress.or(observed.progress);
        observed.note = note.map(|n| cut(n, PROGRESS_NOTE_BYTES_MAX)).or(observed.note.take());
    }

    pub(crate) fn running(&self) -> Option<RunningTask> {
        self.observed().running.clone()
    }

    /// Whether a line of so many bytes may go to the log.
    pub(super) fn allow_log(&self, bytes: usize) -> LogAllowance {
        let mut observed = self.observed();
        let bucket = &mut observed.allowance;
        let since = bucket.filled.elapsed();
        let more = LOG_BYTES_PER_S.saturating_mul(usize::try_from(since.as_millis()).unwrap_or(usize::MAX)) / 1000;
        if more > 0 {
            bucket.bytes = bucket.bytes.saturating_add(more).min(LOG_BURST_BYTES);
            bucket.filled = Instant::now();
        }
        // Lines come again in runs, not one by one between those that are left out.
        let needed = if bucket.left_out > 0 { LOG_BYTES_PER_S.max(bytes) } else { bytes };
        if bucket.bytes < needed {
            bucket.left_out += 1;
            return if bucket.left_out == 1 { LogAllowance::Begins } else { LogAllowance::Beyond };
        }
        bucket.bytes -= bytes;
        match std::mem::take(&mut bucket.left_out) {
            0 => LogAllowance::Within,
            lines => LogAllowance::Again { lines },
        }
    }

    /// Keeps a log line for the evidence of a failure.
    pub(crate) fn logged(&self, line: &str) {
        let mut observed = self.observed();
        Self::spoke(&mut observed);
        let line = cut(line.to_owned(), EVIDENCE_LINE_BYTES_MAX);
        observed.log_bytes += json_bytes(&line);
        if observed.first_line.is_none() {
            observed.first_line = Some(line.clone());
        }
        observed.log.push_back(line);
        while observed.log.len() > EVIDENCE_LINES_MAX || observed.log_bytes > EVIDENCE_LOG_BYTES_MAX {
            observed.log_bytes -= observed.log.pop_front().map_or(0, |l| json_bytes(&l));
        }
    }

    /// Notes what the child uses, and its share of a core since the sample before.
    pub(crate) fn sampled(&self, usage: ProcessUsage) {
        let (mut observed, at) = (self.observed(), Instant::now());
        if let Some((before, cpu)) = observed.sampled {
            let wall = at.duration_since(before).as_secs_f64().max(1e-3);
            observed.cpu_share = usage.cpu.saturating_sub(cpu).as_secs_f64() / wall;
        }
        (observed.usage, observed.sampled) = (usage, Some((at, usage.cpu)));
    }

    /// Notes the child's memory alone.
    pub(crate) fn memory_sampled(&self, rss_bytes: u64) {
        self.observed().usage.rss_bytes = rss_bytes;
    }

    /// Whether its exact memory may be read now: that was long enough ago, and is not under way.
    pub(crate) fn exact_memory_begins(&self) -> bool {
        let (mut observed, now) = (self.observed(), Instant::now());
        let begins = observed.exact_memory_due.is_none_or(|due| due <= now);
        if begins {
            observed.exact_memory_due = Some(now + ANSWER_WITHIN * 2);
        }
        begins
    }

    /// What it and all below it need for themselves, in bytes, as its guard reads it; none when the guard does not answer.
    pub(crate) async fn exact_memory(&self) -> Option<u64> {
        self.report.get()?.memory(self.pid()?).await
    }

    /// Its exact memory was read; it is not read again for so long.
    pub(crate) fn exact_memory_read(&self, pause: Duration) {
        self.observed().exact_memory_due = Some(Instant::now() + pause);
    }

    pub(crate) fn went_over_memory(&self, rss_bytes: u64) {
        let mut observed = self.observed();
        observed.usage.rss_bytes = rss_bytes;
        observed.over_memory = Some(rss_bytes);
    }

    pub(crate) fn over_memory(&self) -> Option<u64> {
        self.observed().over_memory
    }

    /// The last lines that it wrote, at the most so many.
    pub(crate) fn last_lines(&self, lines_max: usize) -> Vec<String> {
        let observed = self.observed();
        observed.log.iter().skip(observed.log.len().saturating_sub(lines_max)).cloned().collect()
    }

    /// For how long it has worked on its task without writing anything.
    pub(crate) fn silence(&self) -> Option<Duration> {
        let observed = self.observed();
        observed.running.as_ref().filter(|running| !running.has_spoken).map(|running| running.since.elapsed())
    }

    /// Notes that it wrote something during its task.
    fn spoke(observed: &mut Observed) {
        if let Some(running) = &mut observed.running {
            running.has_spoken = true;
        }
    }

    pub(crate) fn last_line(&self) -> Option<String> {
        self.observed().log.back().cloned()
    }

    /// The first log line of the child's life, whatever has run since: a guard that can start nothing writes it.
    pub(crate) fn first_line(&self) -> Option<String> {
        self.observed().first_line.clone()
    }

    /// What is known of the child now, and of its end when it has ended.
    pub(crate) fn evidence(&self, exit: Option<ExitStatus>, oom: bool) -> Box<ChildEvidence> {
        let observed = self.observed();
        Box::new(ChildEvidence {
            name: self.name.clone(),
            exit_code: exit.and_then(|e| e.code()),
            signal: exit.and_then(|e| e.signal()),
            oom,
            rss_bytes: self.memory_seen(&observed, exit.is_some() && oom),
            log: observed.log.iter().cloned().collect(),
        })
    }

    /// What the limit saw, else what was read last. Where the kernel has killed it, or it ended before it was read, the most that one
    /// of its processes had.
    fn memory_seen(&self, observed: &Observed, killed_by_kernel: bool) -> u64 {
        let read = observed.usage.rss_bytes;
        let peak = || self.report.get().map_or(0, GuardReport::peak);
        observed.over_memory.unwrap_or_else(|| if killed_by_kernel || read == 0 { read.max(peak()) } else { read })
    }

    pub(crate) fn record(&self) -> ChildRecord {
        let observed = self.observed();
        let running = observed.running.as_ref();
        ChildRecord {
            name: self.name.clone(),
            kind: self.kind.clone(),
            pid: observed.pid.unwrap_or(0),
            state: observed.state,
            task: running.map(|task| task.id.clone()),
            silent: running.is_some_and(|task| !task.has_spoken),
            task_ms: running.map(|task| u64::try_from(task.since.elapsed().as_millis()).unwrap_or(u64::MAX)),
            progress: observed.progress,
            note: observed.note.clone(),
            done: observed.done,
            restarts: self.restarts,
            cpu_percent: (observed.cpu_share * 1000.0).round() / 10.0,
            rss_bytes: observed.usage.rss_bytes,
            started_ms: self.started_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_guard_is_known_after_its_child_was_given_a_task() {
        let status = ChildStatus::new("w1", "k", 1, 0, 0);
        assert_eq!(status.first_line(), None);
        ["cannot start x: no such file", "second"].iter().for_each(|line| status.logged(line));
        status.runs(&Call::for_test("t", "1"), true);
        assert_eq!(status.last_line(), None, "only the lines of its own task are a task's evidence");
        assert_eq!(status.first_line().as_deref(), Some("cannot start x: no such file"));
    }

    #[test]
    fn a_flood_of_log_lines_is_bounded() {
        let status = ChildStatus::new("w1", "k", 1, 0, 0);
        status.runs(&Call::for_test("t", "1"), true);
        let logged = (0..1000).filter(|_| matches!(status.allow_log(10_000), LogAllowance::Within)).count();
        assert!((104..120).contains(&logged), "a burst, and little more: {logged}");
        assert!(matches!(status.allow_log(1), LogAllowance::Beyond));
        status.runs(&Call::for_test("u", "1"), true);
        assert!(matches!(status.allow_log(1), LogAllowance::Again { lines: 880.. }), "the next task has its own share");
    }
}
