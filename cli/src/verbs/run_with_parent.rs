//! `run-with-parent`: becomes a program that is not ours, and that the kernel kills as soon as its parent is gone, however that
//! ended. `up` runs nats-server this way: there is no process between the two that could be killed alone. The program holds a
//! lock for as long as it lives, so that its folder has one user.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use millpond_service::program::keep_files_private;
use nix::unistd::{Pid, getppid};

/// How long a user of the folder that was killed may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(2);
/// How often it is looked for meanwhile.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// `run-with-parent`.
#[derive(clap::Args, Debug)]
pub struct RunWithParentArgs {
    /// File that the program holds locked; it names the process.
    #[arg(long)]
    lock: PathBuf,
    /// The program and its arguments.
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

/// Becomes the program.
///
/// # Errors
/// When another process holds the lock, the parent is gone, or the program cannot be started.
pub async fn run(args: RunWithParentArgs, parent: Option<i32>) -> anyhow::Result<Infallible> {
    let (program, arguments) = args.command.split_first().context("no program to run")?;
    let lock = take(&args.lock).await?;
    end_with_parent()?;
    if parent.is_some_and(|parent| getppid() != Pid::from_raw(parent)) {
        bail!("the parent is gone");
    }
    keep_files_private();
    // Unlike the file itself, a duplicate of it is inherited, and with it the lock.
    let inherited: OwnedFd = nix::unistd::dup(&lock)?;
    let error = Command::new(program).args(arguments).stdin(Stdio::null()).exec();
    drop(inherited);
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}

/// Has the kernel kill this process, and what it becomes, when the thread that has started it ends. That is the main thread of
/// `up`, which lives as long as `up` does (`up/process.rs` checks it).
#[cfg(target_os = "linux")]
fn end_with_parent() -> nix::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
}

/// Elsewhere the program stays behind when its parent is killed; the next one that is started finds it by its lock.
#[cfg(not(target_os = "linux"))]
fn end_with_parent() -> nix::Result<()> {
    Ok(())
}

/// Takes the lock and writes down who has it.
async fn take(path: &Path) -> anyhow::Result<File> {
    let opened = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let mut file = opened.with_context(|| format!("cannot open {}", path.display()))?;
    let started = Instant::now();
    while let Err(error) = file.try_lock() {
        if started.elapsed() > GONE_WITHIN {
            let folder = path.parent().unwrap_or(path).display();
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            match (error, holder.trim()) {
                (TryLockError::Error(error), _) => {
                    return Err(error).context(format!("cannot lock {}", path.display()));
                }
                (_, "") => bail!("another process uses {folder}: end it, or choose another folder with --state"),
                (_, pid) => bail!(
                    "process {pid} uses {folder} (a nats-server, most likely): end it with `kill {pid}`, or choose another folder with --state"
                ),
            }
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "{}", std::process::id())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_holds_the_lock_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = take(&path).await.unwrap();
        let refused = take(&path).await.unwrap_err().to_string();
        assert!(refused.contains(&format!("process {} uses", std::process::id())), "{refused}");
        drop(lock);
        take(&path).await.unwrap();
    }
}
