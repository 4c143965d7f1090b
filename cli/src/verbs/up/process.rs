//! A process of the cluster that `up` starts: this program again, with its log in a file. It has a process group of its own,
//! so that Ctrl-C reaches only `up`, and a pipe from `up` as standard input, whose end tells it that `up` is gone.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use millpond::retry::RetryPolicy;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// How long a dead process waits to be started again. The longest delay is less than the time after which what a dead worker held
/// is given out again, so that a task that kills its workers keeps none of its neighbours waiting. A program that cannot start is
/// tried again that often too, which costs a few hundredths of a core.
const RESTART: RetryPolicy = RetryPolicy {
    delay: Duration::from_millis(200),
    delay_max: Duration::from_secs(2),
    jitter: 0.0,
    ..RetryPolicy::DEFAULT
};
/// A process that has lived this long is started again after the first delay.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// A log that is larger is put aside, in bytes.
const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How to start a process.
pub(super) struct ProcessSpec {
    name: String,
    log: PathBuf,
    arguments: Vec<OsString>,
    env: Vec<(String, String)>,
}

impl ProcessSpec {
    pub(super) fn new(dir: &Path, name: &str, arguments: Vec<OsString>, env: Vec<(String, String)>) -> Self {
        let log = dir.join("log").join(format!("{name}.log"));
        Self { name: name.to_owned(), log, arguments, env }
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        // The kernel ends nats-server with the thread that has started it (`run-with-parent`).
        if std::thread::current().name() != Some("main") {
            bail!("{} must be started by the main thread, which lives as long as this process", self.name);
        }
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.log);
        let log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        let program = std::env::current_exe().context("this program cannot be found again")?;
        let mut command = Command::new(program);
        command.args(&self.arguments).envs(self.env.iter().map(|(n, v)| (n, v)));
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).process_group(0);
        command.spawn().with_context(|| format!("cannot start {}", self.name))
    }
}

/// A running process, or one that waits to be started again.
pub(super) struct ClusterProcess {
    spec: ProcessSpec,
    child: Child,
    /// Bytes of its log that were there before its first start.
    log_before: u64,
    started: Instant,
    /// How often it has died since it was last stable.
    deaths: u32,
    /// When it died, while it waits to be started again.
    died: Option<Instant>,
}

impl ClusterProcess {
    pub(super) fn start(spec: ProcessSpec) -> anyhow::Result<Self> {
        let log_before = std::fs::metadata(&spec.log).map_or(0, |known| known.len());
        let child = spec.spawn()?;
        Ok(Self { spec, child, log_before, started: Instant::now(), deaths: 0, died: None })
    }

    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }

    /// The last lines that it has logged, for an error message.
    pub(super) fn log_tail(&self) -> String {
        log_tail(&self.spec.log, self.log_before)
    }

    /// The last lines that it has logged, once it has ended.
    pub(super) async fn died(&mut self) -> String {
        // Without a status there is no process either.
        let _ = self.child.wait().await;
        self.log_tail()
    }

    /// How it ended; none while it runs.
    pub(super) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Starts it again when it has died and its delay is over. A process that exited successfully, because an operator
    /// drained it, stays away.
    pub(super) fn restart_if_dead(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.ended()?.filter(|status| !status.success()) else { return Ok(()) };
        let died = match self.died {
            Some(died) => died,
            None => {
                let (name, log) = (&self.spec.name, self.spec.log.display());
                note!("millpond: {name} ended ({status}), starting it again; log: {log}");
                self.deaths = if self.started.elapsed() > STABLE_AFTER { 1 } else { self.deaths + 1 };
                *self.died.insert(Instant::now())
            }
        };
        if died.elapsed() >= RESTART.delay(self.deaths, 0.0) {
            (self.died, self.started) = (None, Instant::now());
            self.child = self.spec.spawn()?;
        }
        Ok(())
    }

    /// Puts its log aside as `<name>.log.1` when it is large. The process goes on writing to the same file, at its end.
    pub(super) fn rotate_log(&self) {
        let log = &self.spec.log;
        if std::fs::metadata(log).is_ok_and(|known| known.len() > LOG_BYTES_MAX) {
            let rotated = std::fs::copy(log, log.with_extension("log.1"));
            let emptied = rotated.and_then(|_| OpenOptions::new().write(true).open(log)?.set_len(0));
            if let Err(error) = emptied {
                note!("millpond: cannot put {} aside: {error}", log.display());
            }
        }
    }

    /// Tells it to drain.
    pub(super) fn terminate(&self) {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Waits for its end, and kills it when that takes too long.
    pub(super) async fn wait(&mut self, limit: Duration) {
        if tokio::time::timeout(limit, self.child.wait()).await.is_err() {
            note!("millpond: {} does not end, killing it", self.spec.name);
            let _ = self.child.kill().await;
        }
    }
}

/// The last lines of a log behind its first `before` bytes, for an error message.
pub(super) fn log_tail(path: &Path, before: u64) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = text.get(usize::try_from(before).unwrap_or(0)..).unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines.iter().rev().take(3).rev().copied().collect::<Vec<_>>().join(" | ");
    format!("{tail} (log: {})", path.display())
}
