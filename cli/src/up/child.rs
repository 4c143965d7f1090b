//! A child process of `up`: this program again, with its log in a file, in a process group of its own (so that Ctrl-C
//! reaches only `up`), and with a pipe to `up` as standard input: when `up` is gone, the pipe ends, and so does the child.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

/// First delay before a dead child is started again; it doubles.
const REVIVE_AFTER: Duration = Duration::from_millis(200);
/// Longest delay.
const REVIVE_AFTER_MAX: Duration = Duration::from_secs(10);
/// A child that lived this long starts with the first delay again.
const SETTLED_AFTER: Duration = Duration::from_secs(30);

/// How to start a child.
pub(super) struct Spec {
    name: String,
    log: PathBuf,
    arguments: Vec<OsString>,
    env: Vec<(String, String)>,
}

impl Spec {
    pub(super) fn new(dir: &Path, name: &str, arguments: Vec<OsString>, env: Vec<(String, String)>) -> Self {
        let log = dir.join("log").join(format!("{name}.log"));
        Self { name: name.to_owned(), log, arguments, env }
    }

    pub(super) fn service(dir: &Path, name: &str, arguments: &[&str], env: Vec<(&str, String)>) -> Self {
        let mut all: Vec<OsString> = vec!["--state".into(), dir.into()];
        all.extend(arguments.iter().map(OsString::from));
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self::new(dir, name, all, env)
    }

    fn spawn(&self) -> anyhow::Result<tokio::process::Child> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        let program = std::env::current_exe().context("this program cannot be found again")?;
        let mut command = Command::new(program);
        command.args(&self.arguments).envs(self.env.iter().map(|(n, v)| (n, v)));
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).process_group(0);
        command.spawn().with_context(|| format!("cannot start {}", self.name))
    }
}

/// A running child, or one that waits to be started again.
pub(super) struct Child {
    spec: Spec,
    process: tokio::process::Child,
    started: Instant,
    delay: Duration,
    died: Option<Instant>,
}

impl Child {
    pub(super) fn start(spec: Spec) -> anyhow::Result<Self> {
        let process = spec.spawn()?;
        Ok(Self { spec, process, started: Instant::now(), delay: REVIVE_AFTER, died: None })
    }

    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }

    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.process.try_wait()?)
    }

    /// Starts it again when it has died and its delay is over. One that left in good order (an operator drained it) stays
    /// away.
    pub(super) fn revive(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.ended()?.filter(|status| !status.success()) else { return Ok(()) };
        let died = *self.died.get_or_insert_with(|| {
            eprintln!(
                "millpond: {} ended ({status}), starting it again; log: {}",
                self.spec.name,
                self.spec.log.display()
            );
            Instant::now()
        });
        if self.started.elapsed() > SETTLED_AFTER {
            self.delay = REVIVE_AFTER;
        }
        if died.elapsed() >= self.delay {
            self.delay = (self.delay * 2).min(REVIVE_AFTER_MAX);
            (self.died, self.started) = (None, Instant::now());
            self.process = self.spec.spawn()?;
        }
        Ok(())
    }

    /// Asks it to drain.
    pub(super) fn signal(&self) {
        if let Some(pid) = self.process.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Waits for its end; ends it when that takes too long.
    pub(super) async fn wait(&mut self, limit: Duration) {
        if tokio::time::timeout(limit, self.process.wait()).await.is_err() {
            eprintln!("millpond: {} does not end, killing it", self.spec.name);
            let _ = self.process.kill().await;
        }
    }
}
