//! One process that runs a handler, below its guard: how it is started, asked to end, ended, and judged by its end. Also
//! what such a process and its worker have agreed upon: the names of its variables and how a guard reports a failure.

use std::ffi::OsString;
use std::io::{self, ErrorKind, PipeWriter};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use millpond::outcome::Failure;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::child_environment;
use super::child_logs;
use super::child_status::ChildStatus;
use super::child_user::ChildUser;
use super::guard_report::GuardReport;
use super::handlers_toml::{ChildMode, ChildProgram, ChildSpec};
use super::line_reader::ReadLine;
use super::log_reader::LogReader;
use super::process_tree::oom_kills;
use crate::call::Call;

/// In the environment of a child: its kind.
pub(crate) const ENV_KIND: &str = "MILLPOND_KIND";
/// In the environment of a child that is this program again: whether every worker has a handler of the kind.
pub(crate) const ENV_BUILT_IN: &str = "MILLPOND_CHILD_BUILT_IN";
/// In the environment of a child that runs a Rust handler: set where its worker exports spans, and wants those of the handler.
pub(crate) const ENV_SPANS: &str = "MILLPOND_CHILD_SPANS";
/// In the environment of a warm child: a file descriptor for its answers, so that its standard output is free.
pub(crate) const ENV_FD_OUT: &str = "MILLPOND_FD_OUT";
/// In the environment of a guard: the file that is to be the child's [`ENV_FD_OUT`].
pub(crate) const ENV_GUARD_OUT: &str = "MILLPOND_GUARD_OUT";
/// In the environment of a guard: the file that it reports to.
pub(crate) const ENV_GUARD_REPORT: &str = "MILLPOND_GUARD_REPORT";
/// In the environment of a guard: the user that it becomes.
pub(crate) const ENV_GUARD_USER: &str = "MILLPOND_GUARD_USER";
/// The name under which this program is a guard: `argv[0]`. `ps` shows it with the child's name.
pub(crate) const GUARD_NAME: &str = "millpond-guard";
/// The signal that has a guard end everything below it.
pub(crate) const END_ALL: Signal = Signal::SIGUSR1;
/// The exit code of a guard that cannot start its command, and how its last line begins: the task has not run.
pub(crate) const EXIT_CANNOT_START: i32 = 127;
pub(crate) const CANNOT_START: &str = "cannot start ";
/// How the first line of a guard begins that can start nothing, and that of `env` (`#!/usr/bin/env python4`).
const CANNOT_START_LINES: [&str; 3] = [CANNOT_START, "env: ", "/usr/bin/env: "];
/// The exit code of `env` when it finds a file that is no program.
const EXIT_NO_PROGRAM: i32 = 126;
/// Log lines that say why a kind is broken.
const FAULT_LINES: usize = 5;
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
    pub(crate) stderr: LogReader,
    pub(crate) status: Arc<ChildStatus>,
    /// What a warm child writes to [`ENV_FD_OUT`].
    pub(crate) fd_out: Option<pipe::Receiver>,
    /// The other end, which the guard has opened for the child. It is kept, so that the pipe does not end when a child closes
    /// what it does not use.
    _fd_out: Option<PipeWriter>,
    oom_kills_before: Option<u64>,
}

/// The command line of a handler; `argv` where the task names it.
fn command_line(spec: &ChildSpec, name: &str, argv: Option<&[String]>) -> Vec<OsString> {
    let command: Vec<OsString> = match &spec.program {
        ChildProgram::Command(words) => words.iter().map(OsString::from).collect(),
        ChildProgram::Xargs { .. } => argv.unwrap_or_default().iter().map(OsString::from).collect(),
        ChildProgram::Own { built_in: true } => vec![own_program(spec), name.into()],
        ChildProgram::Own { built_in: false } => {
            std::iter::once(own_program(spec)).chain(std::env::args_os().skip(1)).collect()
        }
    };
    spec.table.wrap.iter().map(OsString::from).chain(command).collect()
}

/// The path of this program for a child. Another user may not look into the worker: its guard, which is this program too, finds
/// itself, and other programs before the command find the file.
fn own_program(spec: &ChildSpec) -> OsString {
    match &spec.user {
        None => this_program(),
        Some(_) if spec.table.wrap.is_empty() => "/proc/self/exe".into(),
        Some(_) => std::env::current_exe().map_or_else(|_| this_program(), Into::into),
    }
}

/// The path of this program, which is good for any program that opens it, also when the file was replaced meanwhile.
fn this_program() -> OsString {
    if cfg!(target_os = "linux") {
        return format!("/proc/{}/exe", std::process::id()).into();
    }
    std::env::current_exe().map_or_else(|_| "millpond-worker".into(), Into::into)
}

#[cfg(target_os = "linux")]
fn guarded(name: &str, line: Vec<OsString>) -> Command {
    let mut command = Command::new(this_program());
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
        command.env_clear().envs(child_environment::passed(&spec.table.env_pass));
        command.env("MILLPOND_WORKER", &status.worker).env("MILLPOND_CHILD", &status.name).env(ENV_KIND, &spec.kind);
        if let ChildProgram::Own { built_in } = spec.program {
            command.env(ENV_BUILT_IN, if built_in { "1" } else { "0" });
            if millpond::telemetry::is_exported() {
                command.env(ENV_SPANS, "1");
            }
        }
        command.envs(spec.user.iter().flat_map(ChildUser::environment));
        command.envs(&spec.table.env).envs(env.iter().map(|(name, value)| (*name, value)));
        if let Some(user) = &spec.user {
            command.env(ENV_GUARD_USER, user.ids().to_text());
        }
        let report = GuardReport::open().filter(|_| cfg!(target_os = "linux")).map(|(report, path)| {
            command.env(ENV_GUARD_REPORT, path);
            report
        });
        if let Some(directory) = &spec.table.directory {
            command.current_dir(directory);
        }
        let (fd_out, fd_out_writer) =
            if spec.table.mode == ChildMode::Stream { fd_out(&mut command) } else { (None, None) };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if !spec.attached {
            command.process_group(0);
        }
        let mut child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::InvalidInput | ErrorKind::ArgumentListTooLong => StartError::DoesNotFit(error),
            _ => StartError::CannotStart(error.to_string()),
        })?;
        status.started(child.id(), report);
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stderr =
            child.stderr.take().ok_or_else(|| StartError::CannotStart("it has no standard error".to_owned()))?;
        let stderr = LogReader::new(stderr);
        let handle = ProcessHandle { group: child.id().filter(|_| !spec.attached), child };
        let oom_kills_before = oom_kills();
        Ok(Self { handle, stdin, stdout, stderr, status, fd_out, _fd_out: fd_out_writer, oom_kills_before })
    }

    /// How many bytes of what was written to its standard input the process has not read; none where that is not known. After
    /// its end it tells whether a task has begun.
    pub(crate) fn unread(&self) -> Option<u64> {
        let stdin = self.stdin.as_ref().filter(|_| cfg!(target_os = "linux"))?;
        rustix::io::ioctl_fionread(stdin).ok()
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
        let is_code = [EXIT_CANNOT_START, EXIT_NO_PROGRAM].iter().any(|code| exit.code() == Some(*code));
        let said = |line: &String| CANNOT_START_LINES.iter().any(|start| line.starts_with(start));
        self.status.first_line().filter(|line| is_code && said(line))
    }

    /// Why the process ended while it had no task.
    pub(crate) fn fault(&self, exit: ExitStatus) -> String {
        self.never_started(exit).unwrap_or_else(|| self.before_a_task(exit, &self.failure(exit, None, None)))
    }

    /// Why the process is of no use that ended although no task had begun in it, with the last lines that it wrote.
    pub(crate) fn before_a_task(&self, exit: ExitStatus, failure: &Failure) -> String {
        let ended = matches!(failure.kind.as_str(), "exit" | "signal");
        let how = if ended { how_it_ended(exit) } else { failure.message.clone() };
        match self.status.last_lines(FAULT_LINES) {
            lines if lines.is_empty() => format!("{how} before it read a task"),
            lines => format!("{how} before it read a task; its last lines: {}", lines.join(" | ")),
        }
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
            (None, None) if exit.code().is_some() => Failure::new("exit", self.with_last_line(how_it_ended(exit))),
            (None, None) => Failure::new("signal", how_it_ended(exit)),
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

/// A pipe for the answers of a warm child, whose writing end its guard opens. There is none where there are no guards.
fn fd_out(command: &mut Command) -> (Option<pipe::Receiver>, Option<PipeWriter>) {
    let Some((reader, writer)) = io::pipe().ok().filter(|_| cfg!(target_os = "linux")) else { return (None, None) };
    let Ok(reader) = pipe::Receiver::from_owned_fd(reader.into()) else { return (None, None) };
    command.env(ENV_GUARD_OUT, format!("/proc/{}/fd/{}", std::process::id(), writer.as_raw_fd()));
    (Some(reader), Some(writer))
}

fn how_it_ended(exit: ExitStatus) -> String {
    match (exit.code(), exit.signal().and_then(|n| Signal::try_from(n).ok())) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("it was ended by {signal}"),
        (None, None) => "it was ended by a signal".to_owned(),
    }
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
