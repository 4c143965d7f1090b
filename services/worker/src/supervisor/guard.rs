//! The guard: a small process between the worker and a child, so that nothing below it outlives the worker, however the
//! worker ends. It is the subreaper of everything below; it learns of the worker's end by the other end of its standard
//! error. (The kernel's parent-death signal follows a thread, and misses grandchildren.) It ends as its child ended.
//! SIGTERM goes on to the child; SIGUSR1 ends all that is below. Linux only: elsewhere a child is started bare.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout};

use super::proc::descendants;
use super::{CANNOT_START, EXIT_CANNOT_START};

/// Name under which this program is a guard: `argv[0]`. `ps` shows it with the child's name.
pub(crate) const GUARD_NAME: &str = "millpond-guard";
/// The signal that ends everything below a guard.
pub(crate) const END_ALL: Signal = Signal::SIGUSR1;
/// How long a guard waits between two looks at what it has killed, in milliseconds.
const LOOK_EVERY_MS: u16 = 2;
/// The same when it may kill nothing of it; then it gives up.
const LOOK_EVERY_MS_MAX: u16 = 1000;

/// Guards `command` (after the child's name); never comes back.
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> ! {
    let name = arguments.next().unwrap_or_default();
    let Some(program) = arguments.next() else {
        eprintln!("{CANNOT_START}{}: no command", name.display());
        std::process::exit(EXIT_CANNOT_START);
    };
    let started = start(&program, arguments);
    let (signals, child) = match started {
        Ok(started) => started,
        Err(error) => {
            eprintln!("{CANNOT_START}{}: {error}", program.display());
            std::process::exit(EXIT_CANNOT_START);
        }
    };
    end_as(watch(&signals, child))
}

fn start(program: &OsString, arguments: impl Iterator<Item = OsString>) -> io::Result<(SignalFd, Child)> {
    nix::sys::prctl::set_child_subreaper(true)?;
    // Before the signals are blocked: it would inherit that. What happens in between is looked at first thing in `watch`.
    let child = Command::new(program).args(arguments).spawn()?;
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, END_ALL] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // From here on only the child holds the pipes of its tasks and results: their ends are its ends.
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok((signals, child))
}

/// Until the child has ended, or the worker has; then nothing is left below.
fn watch(signals: &SignalFd, child: Child) -> ExitStatus {
    let child = Pid::from_raw(child.id().cast_signed());
    let stderr = io::stderr();
    let mut ended = None;
    loop {
        reap(child, &mut ended);
        if ended.is_some() {
            end_all(child, &mut ended);
            return ended.unwrap_or_default();
        }
        let mut fds =
            [PollFd::new(stderr.as_fd(), PollFlags::empty()), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::NONE);
        let [worker, _] = &fds;
        if worker.revents().is_some_and(|events| !events.is_empty()) {
            end_all(child, &mut ended);
            return ended.unwrap_or_default();
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            match i32::try_from(signal.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok()) {
                Some(Signal::SIGCHLD) => {}
                Some(END_ALL) => {
                    end_all(child, &mut ended);
                    return ended.unwrap_or_default();
                }
                Some(other) => drop(kill(child, other)),
                None => {}
            }
        }
    }
}

/// Takes every zombie; notes how the child ended.
fn reap(child: Pid, ended: &mut Option<ExitStatus>) {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => *ended = Some(ExitStatus::from_raw(code << 8)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                *ended = Some(ExitStatus::from_raw(signal as i32));
            }
            // A signal that has no name here (a real-time one) ended somebody; if it was the child, it is gone now.
            Err(Errno::EINVAL) if kill(child, None) == Err(Errno::ESRCH) => {
                *ended = Some(ExitStatus::from_raw(Signal::SIGKILL as i32));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Kills what is below until there is nothing: what loses its parent meanwhile becomes a child of this process.
fn end_all(child: Pid, ended: &mut Option<ExitStatus>) {
    let mut pause_ms = LOOK_EVERY_MS;
    loop {
        let below = descendants(std::process::id());
        reap(child, ended);
        let kills = below.iter().map(|pid| kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL));
        let refused = kills.filter(|killed| *killed == Err(Errno::EPERM)).count();
        // What has taken another user's rights (sudo) is not ours to end.
        if below.is_empty() || (refused == below.len() && pause_ms > LOOK_EVERY_MS_MAX) {
            return;
        }
        let _ = poll(&mut [], PollTimeout::from(pause_ms));
        pause_ms = if refused == below.len() { pause_ms * 2 } else { LOOK_EVERY_MS };
    }
}

/// Ends as the child did, so that the worker sees the same code or signal.
fn end_as(status: ExitStatus) -> ! {
    // The child may dump its core; a copy of the guard's says nothing.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    if let Some(signal) = status.signal().and_then(|n| Signal::try_from(n).ok()) {
        let mut blocked = SigSet::empty();
        blocked.add(signal);
        let _ = blocked.thread_unblock();
        // Twice: the runtime's own handler of SIGSEGV takes itself out at the first.
        let _ = raise(signal);
        let _ = raise(signal);
    }
    std::process::exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}
