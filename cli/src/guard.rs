//! `millpond guard`: runs a program that is not ours and ends it when standard input ends, so that it never outlives a
//! parent that was killed. `up` runs nats-server under it.

use std::ffi::OsString;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// How long the program may take after SIGTERM.
const END_WITHIN: Duration = Duration::from_secs(10);

/// What to run.
#[derive(clap::Args, Debug)]
pub struct GuardArgs {
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Runs the program until it ends or standard input does.
///
/// # Errors
/// When the program cannot be started.
pub async fn run(args: GuardArgs) -> anyhow::Result<ExitCode> {
    let gone = CancellationToken::new();
    millpond::shutdown::on_stdin_end(&gone);
    let stopped = millpond::shutdown::on_signal()?;
    let (program, arguments) = args.command.split_first().context("no program to run")?;
    let mut child = Command::new(program).args(arguments).stdin(Stdio::null()).process_group(0).spawn()?;
    tokio::select! {
        status = child.wait() => return Ok(code(status?.code())),
        () = gone.cancelled() => {}
        () = stopped.cancelled() => {}
    }
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    match tokio::time::timeout(END_WITHIN, child.wait()).await {
        Ok(status) => Ok(code(status?.code())),
        Err(_) => {
            child.kill().await?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn code(code: Option<i32>) -> ExitCode {
    ExitCode::from(u8::try_from(code.unwrap_or(1)).unwrap_or(1))
}
