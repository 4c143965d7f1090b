//! One process of a handler, below its guard: started, asked to end, ended, read. Knows no tasks.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use millpond::limits::CHILD_LOG_LINE_BYTES_MAX;
use millpond::outcome::Failure;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use super::lines::{Found, Lines};
use super::proc::oom_kills;
use super::spec::{Program, Spec};
use super::view::View;
use super::{CANNOT_START, ENV_BUILT_IN, ENV_KIND, EXIT_CANNOT_START, logs};

/// How long the log lines of a process that has ended may take to be read.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(1);

/// The process itself: its guard, or the bare child where there are no guards.
pub(crate) struct Handle {
    child: Child,
    group: Option<u32>,
}

/// A running process and what it holds of ours.
pub(crate) struct Process {
    pub(crate) handle: Handle,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: Lines<ChildStderr>,
    pub(crate) view: Arc<View>,
    oom_kills_before: Option<u64>,
}

/// The command line of a handler; `argv` where the task names it.
fn command_line(spec: &Spec, name: &str, argv: Option<&[String]>) -> Vec<OsString> {
    let command: Vec<OsString> = match &spec.program {
        Program::Command(words) => words.iter().map(OsString::from).collect(),
        Program::Xargs { .. } => argv.unwrap_or_default().iter().map(OsString::from).collect(),
        Program::Own { built_in: true } => vec![own_program(), name.into()],
        Program::Own { built_in: false } => std::iter::once(own_program()).chain(std::env::args_os().skip(1)).collect(),
    };
    spec.wrap.iter().map(OsString::from).chain(command).collect()
}

/// Also when the file was replaced meanwhile, and for whatever program opens it.
fn own_program() -> OsString {
    if cfg!(target_os = "linux") {
        return format!("/proc/{}/exe", std::process::id()).into();
    }
    std::env::current_exe().map_or_else(|_| "millpond-worker".into(), Into::into)
}

#[cfg(target_os = "linux")]
fn guarded(name: &str, line: Vec<OsString>) -> Command {
    let mut command = Command::new(own_program());
    command.arg0(super::guard::GUARD_NAME).arg(name).args(line);
    command
}

#[cfg(not(target_os = "linux"))]
fn guarded(_: &str, line: Vec<OsString>) -> Command {
    let mut words = line.into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

impl Handle {
    /// Waits for its end, and for the end of all below it.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn wait(&mut self) -> ExitStatus {
        let status = self.child.wait().await.unwrap_or_default();
        if let Some(group) = self.group.take() {
            // If the guard itself was ended: what it guarded is in its group.
            let _ = killpg(Pid::from_raw(group.cast_signed()), Signal::SIGKILL);
        }
        status
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Ends it and all below it at once.
    pub(crate) fn end_all(&self) {
        #[cfg(target_os = "linux")]
        self.signal(super::guard::END_ALL);
        #[cfg(not(target_os = "linux"))]
        if let Some(pid) = self.child.id() {
            let _ = killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id() {
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
    }
}

impl Process {
    /// Starts the handler of `spec` under the name of `view`.
    pub(crate) fn start(
        spec: &Spec,
        worker: &str,
        view: Arc<View>,
        argv: Option<&[String]>,
        env: &[(&str, String)],
    ) -> io::Result<Self> {
        let mut command = guarded(&view.name, command_line(spec, &view.name, argv));
        // A program's own handlers may read their settings there.
        if spec.program != (Program::Own { built_in: false }) {
            // A handler has no business with the worker's own settings and passwords.
            for (name, _) in std::env::vars_os().filter(|(name, _)| is_own_setting(name)) {
                command.env_remove(name);
            }
        }
        command.env("MILLPOND_WORKER", worker).env("MILLPOND_CHILD", &view.name).env(ENV_KIND, &spec.kind);
        if let Program::Own { built_in } = spec.program {
            command.env(ENV_BUILT_IN, if built_in { "1" } else { "0" });
        }
        command.envs(&spec.env).envs(env.iter().map(|(name, value)| (*name, value)));
        if let Some(directory) = &spec.directory {
            command.current_dir(directory);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        view.started(child.id());
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stderr = child.stderr.take().ok_or_else(|| io::Error::other("it has no standard error"))?;
        let stderr = Lines::new(stderr, CHILD_LOG_LINE_BYTES_MAX);
        let handle = Handle { group: child.id(), child };
        Ok(Self { handle, stdin, stdout, stderr, view, oom_kills_before: oom_kills() })
    }

    /// Makes what it still says a part of the log, and gives it to `keep`. It must have ended.
    pub(crate) async fn last_lines(&mut self, mut keep: impl FnMut(&[u8])) {
        let all = async {
            while let Found::Line(line) | Found::TooLong(line) = self.stderr.next().await {
                logs::line(&self.view, &line);
                keep(&line);
            }
        };
        let _ = tokio::time::timeout(LAST_LINES_WITHIN, all).await;
    }

    /// Why its guard could not start it, if so. It may have been given a task since the guard said it.
    pub(crate) fn never_started(&self, status: ExitStatus) -> Option<String> {
        let said = self.view.first_line().filter(|line| line.starts_with(CANNOT_START));
        said.filter(|_| status.code() == Some(EXIT_CANNOT_START))
    }

    /// Why it ended, when it had no task.
    pub(crate) fn fault(&self, status: ExitStatus) -> String {
        self.never_started(status).unwrap_or_else(|| self.failure(status, None, None).message)
    }

    /// Why its task failed, from how it ended; `killed`: by us, for this reason.
    pub(crate) fn failure(&self, status: ExitStatus, memory_max: Option<u64>, killed: Option<Failure>) -> Failure {
        let over = self.view.over_memory();
        let by_kernel = status.signal() == Some(Signal::SIGKILL as i32) && oom_kills() > self.oom_kills_before;
        let mut failure = match (over, killed) {
            (Some(rss), _) => Failure::new(
                "oom",
                format!("it used {}, its limit is {}", mib(rss), memory_max.map_or_else(String::new, mib)),
            ),
            (None, Some(killed)) => killed,
            (None, None) if by_kernel => Failure::new("oom", "the kernel killed it for want of memory"),
            (None, None) => match (status.code(), status.signal().and_then(|n| Signal::try_from(n).ok())) {
                (Some(code), _) => Failure::new("exit", self.with_last_line(format!("it ended with exit code {code}"))),
                (None, Some(signal)) => Failure::new("signal", format!("it was ended by {signal}")),
                (None, None) => Failure::new("signal", "it was ended by a signal"),
            },
        };
        failure.child = Some(self.view.evidence(Some(status), failure.kind == "oom"));
        failure
    }

    fn with_last_line(&self, text: String) -> String {
        match self.view.last_line() {
            Some(line) => format!("{text}; its last line: {line}"),
            None => text,
        }
    }
}

fn is_own_setting(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("MILLPOND_") || name == "NATS_URL"
}

/// A size for people.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}
