//! `run-with-parent`: runs a program that is not ours and stops it when standard input ends, so that the program never
//! outlives a parent that was killed. `up` runs nats-server this way.

use std::ffi::OsString;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use crate::exit;

/// How long the program may take to end after SIGTERM.
const END_WITHIN: Duration = Duration::from_secs(10);

/// `run-with-parent`.
#[derive(clap::Args, Debug)]
pub struct RunWithParentArgs {
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Runs the program until it ends or standard input does.
///
/// # Errors
/// When the program cannot be started.
pub async fn run(args: RunWithParentArgs) -> anyhow::Result<ExitCode> {
    let stop = millpond::shutdown::on_signal()?;
    millpond::shutdown::on_stdin_end(&stop);
    let (program, arguments) = args.command.split_first().context("no program to run")?;
    let mut child = Command::new(program).args(arguments).stdin(Stdio::null()).process_group(0).spawn()?;
    tokio::select! {
        status = child.wait() => return Ok(exit::of_process(status?, exit::TASK_FAILED)),
        () = stop.cancelled() => {}
    }
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    match tokio::time::timeout(END_WITHIN, child.wait()).await {
        Ok(status) => Ok(exit::of_process(status?, exit::TASK_FAILED)),
        Err(_) => {
            child.kill().await?;
            Ok(ExitCode::FAILURE)
        }
    }
}
