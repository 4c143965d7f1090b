//! One process that runs a handler, below its guard: how it is started, asked to end, ended, and judged by its end. Also
//! what such a process and its worker have agreed upon: the names of its variables and how a guard reports a failure.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use millpond::outcome::Failure;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use super::child_logs;
use super::child_status::ChildStatus;
use super::handlers_toml::{ChildProgram, ChildSpec};
use super::line_reader::{LineReader, ReadLine};
use super::process_tree::oom_kills;
use crate::call::Call;

/// In the environment of a child: its kind.
pub(crate) const ENV_KIND: &str = "MILLPOND_KIND";
/// In the environment of a child that is this program again: whether every worker has a handler of the kind.
pub(crate) const ENV_BUILT_IN: &str = "MILLPOND_CHILD_BUILT_IN";
/// The name under which this program is a guard: `argv[0]`. `ps` shows it with the child's name.
pub(crate) const GUARD_NAME: &str = "millpond-guard";
/// The signal that has a guard end everything below it.
pub(crate) const END_ALL: Signal = Signal::SIGUSR1;
/// The exit code of a guard that cannot start its command, and how its last line begins: the task has not run.
pub(crate) const EXIT_CANNOT_START: i32 = 127;
pub(crate) const CANNOT_START: &str = "cannot start ";
/// Longest log line of a child, in bytes; a longer one comes as several.
const LOG_LINE_BYTES_MAX: usize = 16 * 1024;
/// How long the log lines of a process that has ended may take to be read.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(1);

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// What a task brings fits into no command line, or into no environment.
    #[error("{0}")]
    DoesNotFit(io::Error),
    /// The command is not there, or not a program. Another task would fail in the same way.
    #[error("{0}")]
    CannotStart(String),
}

/// The process itself: its guard, or the bare child where there are no guards.
pub(crate) struct ProcessHandle {
    child: Child,
    group: Option<u32>,
}

/// A running process with this worker's ends of its pipes.
pub(crate) struct ChildProcess {
    pub(crate) handle: ProcessHandle,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: LineReader<ChildStderr>,
    pub(crate) status: Arc<ChildStatus>,
    oom_kills_before: Option<u64>,
}

/// The command line of a handler; `argv` where the task names it.
fn command_line(spec: &ChildSpec, name: &str, argv: Option<&[String]>) -> Vec<OsString> {
    let command: Vec<OsString> = match &spec.program {
        ChildProgram::Command(words) => words.iter().map(OsString::from).collect(),
        ChildProgram::Xargs { .. } => argv.unwrap_or_default().iter().map(OsString::from).collect(),
        ChildProgram::Own { built_in: true } => vec![own_program(), name.into()],
        ChildProgram::Own { built_in: false } => {
            std::iter::once(own_program()).chain(std::env::args_os().skip(1)).collect()
        }
    };
    spec.table.wrap.iter().map(OsString::from).chain(command).collect()
}

/// The path of this program, which is good for any program that opens it, also when the file was replaced meanwhile.
fn own_program() -> OsString {
    if cfg!(target_os = "linux") {
        return format!("/proc/{}/exe", std::process::id()).into();
    }
    std::env::current_exe().map_or_else(|_| "millpond-worker".into(), Into::into)
}

#[cfg(target_os = "linux")]
fn guarded(name: &str, line: Vec<OsString>) -> Command {
    let mut command = Command::new(own_program());
    command.arg0(GUARD_NAME).arg(name).args(line);
    command
}

#[cfg(not(target_os = "linux"))]
fn guarded(_: &str, line: Vec<OsString>) -> Command {
    let mut words = line.into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

impl ProcessHandle {
    /// Waits until the process and all below it have ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn wait(&mut self) -> ExitStatus {
        let status = self.child.wait().await.unwrap_or_default();
        if let Some(group) = self.group.take() {
            // Somebody may have ended the guard itself: the processes that it guarded are in its group.
            let _ = killpg(Pid::from_raw(group.cast_signed()), Signal::SIGKILL);
        }
        status
    }

    /// Sends SIGTERM to the command itself.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Kills the process and all below it.
    pub(crate) fn end_all(&self) {
        #[cfg(target_os = "linux")]
        self.signal(END_ALL);
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

impl ChildProcess {
    /// Starts the handler of `spec` under the name of `status`.
    ///
    /// # Errors
    /// [`StartError`].
    pub(crate) fn start(
        spec: &ChildSpec,
        status: Arc<ChildStatus>,
        argv: Option<&[String]>,
        env: &[(&str, String)],
    ) -> Result<Self, StartError> {
        let mut command = guarded(&status.name, command_line(spec, &status.name, argv));
        // A program's own handlers may read their settings in the environment. Any other handler has no business with the
        // worker's own settings and passwords.
        if spec.program != (ChildProgram::Own { built_in: false }) {
            for (name, _) in std::env::vars_os().filter(|(name, _)| is_own_setting(name)) {
                command.env_remove(name);
            }
        }
        command.env("MILLPOND_WORKER", &status.worker).env("MILLPOND_CHILD", &status.name).env(ENV_KIND, &spec.kind);
        if let ChildProgram::Own { built_in } = spec.program {
            command.env(ENV_BUILT_IN, if built_in { "1" } else { "0" });
        }
        command.envs(&spec.table.env).envs(env.iter().map(|(name, value)| (*name, value)));
        if let Some(directory) = &spec.table.directory {
            command.current_dir(directory);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::ArgumentListTooLong => StartError::DoesNotFit(error),
            _ => StartError::CannotStart(error.to_string()),
        })?;
        status.started(child.id());
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stderr =
            child.stderr.take().ok_or_else(|| StartError::CannotStart("it has no standard error".to_owned()))?;
        let stderr = LineReader::new(stderr, LOG_LINE_BYTES_MAX);
        let handle = ProcessHandle { group: child.id(), child };
        Ok(Self { handle, stdin, stdout, stderr, status, oom_kills_before: oom_kills() })
    }

    /// Logs the lines that are left of a process that has ended, and passes each to `keep`.
    pub(crate) async fn last_lines(&mut self, mut keep: impl FnMut(&[u8])) {
        let all = async {
            while let ReadLine::Line(line) | ReadLine::TooLong(line) = self.stderr.next().await {
                child_logs::log(&self.status, &line);
                keep(&line);
            }
        };
        let _ = tokio::time::timeout(LAST_LINES_WITHIN, all).await;
    }

    /// Why the guard could not start the command, if so. The process may have been given a task since the guard wrote it.
    pub(crate) fn never_started(&self, exit: ExitStatus) -> Option<String> {
        let line = self.status.first_line().filter(|line| line.starts_with(CANNOT_START));
        line.filter(|_| exit.code() == Some(EXIT_CANNOT_START))
    }

    /// Why the process ended while it had no task.
    pub(crate) fn fault(&self, exit: ExitStatus) -> String {
        self.never_started(exit).unwrap_or_else(|| self.failure(exit, None, None).message)
    }

    /// Why the task failed during which the process ended; `killed`: the reason for which this worker has killed it.
    pub(crate) fn failure(&self, exit: ExitStatus, memory_max: Option<u64>, killed: Option<Failure>) -> Failure {
        let over = self.status.over_memory();
        let by_kernel = exit.signal() == Some(Signal::SIGKILL as i32) && oom_kills() > self.oom_kills_before;
        let mut failure = match (over, killed) {
            (Some(rss), _) => Failure::new(
                "oom",
                format!("it used {}, its limit is {}", mib(rss), memory_max.map_or_else(String::new, mib)),
            ),
            (None, Some(killed)) => killed,
            (None, None) if by_kernel => Failure::new("oom", "the kernel killed it for want of memory"),
            (None, None) => match (exit.code(), exit.signal().and_then(|n| Signal::try_from(n).ok())) {
                (Some(code), _) => Failure::new("exit", self.with_last_line(format!("it ended with exit code {code}"))),
                (None, Some(signal)) => Failure::new("signal", format!("it was ended by {signal}")),
                (None, None) => Failure::new("signal", "it was ended by a signal"),
            },
        };
        failure.child = Some(self.status.evidence(Some(exit), failure.kind == "oom"));
        failure
    }

    fn with_last_line(&self, text: String) -> String {
        match self.status.last_line() {
            Some(line) => format!("{text}; its last line: {line}"),
            None => text,
        }
    }
}

fn is_own_setting(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("MILLPOND_") || name == "NATS_URL"
}

/// The variables by which a process of one use learns of its task.
pub(crate) fn task_environment(call: &Call) -> Vec<(&'static str, String)> {
    let mut env = vec![("MILLPOND_TASK_ID", call.id.clone()), ("MILLPOND_ATTEMPT", call.attempt.to_string())];
    env.extend(call.trace.map(|trace| ("TRACEPARENT", trace.to_traceparent())));
    env
}

/// A size as people read it.
fn mib(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}
