//! The guard: a small process between the worker and a child, so that no process below it outlives the worker, however the
//! worker ends. The guard is the subreaper of everything below it, and it learns of the worker's end by the other end of its
//! standard error. (The kernel's parent-death signal follows a thread, and misses grandchildren.) The guard ends as its
//! child ended. It passes SIGTERM on to the child; SIGUSR1 has it kill everything below, SIGUSR2 read the memory of all below. It
//! is of the user of its child. Linux only: elsewhere a child is started bare.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, UsageWho, getrusage, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup, dup2_stdin, dup2_stdout};

use super::child_process::{
    CANNOT_START, END_ALL, ENV_FD_OUT, ENV_GUARD_OUT, ENV_GUARD_REPORT, ENV_GUARD_USER, EXIT_CANNOT_START,
};
use super::child_user::UserIds;
use super::guard_report::{MEASURE, ReportLine};
use super::process_tree::{descendants, own_memory};

/// How long a guard waits before it checks again what is left of the processes that it has killed, in milliseconds.
const KILL_POLL_MS: u16 = 2;
/// The longest such wait, in milliseconds: it doubles while the guard may kill none of them, and then the guard gives up.
const KILL_POLL_MS_MAX: u16 = 1000;

/// Guards a command. `arguments` are the child's name, then the command.
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> ! {
    let name = arguments.next().unwrap_or_default();
    let Some(program) = arguments.next() else {
        let _ = writeln!(io::stderr(), "{CANNOT_START}{}: no command", name.display());
        std::process::exit(EXIT_CANNOT_START);
    };
    // Before it becomes another user, who may not open what is the worker's.
    let report = Report::open();
    let (signals, child) = match start(&program, arguments) {
        Ok(started) => started,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{CANNOT_START}{}: {error}", program.display());
            std::process::exit(EXIT_CANNOT_START);
        }
    };
    report.write(ReportLine::Ready);
    let ended = watch(&signals, child, &report);
    let peak_kib = getrusage(UsageWho::RUSAGE_CHILDREN).map_or(0, |usage| usage.max_rss());
    report.write(ReportLine::Peak(u64::try_from(peak_kib).unwrap_or(0) * 1024));
    end_as(ended)
}

/// Where the guard reports; nowhere, when that cannot be opened.
#[derive(Clone)]
struct Report(Option<Arc<File>>);

impl Report {
    fn open() -> Self {
        let file = std::env::var_os(ENV_GUARD_REPORT).and_then(|path| File::options().write(true).open(path).ok());
        Self(file.map(Arc::new))
    }

    fn write(&self, line: ReportLine) {
        if let Some(mut file) = self.0.as_deref() {
            // One write: a line comes whole.
            let _ = file.write_all(line.to_text().as_bytes());
        }
    }

    /// Reads the memory of all below, on a thread: what is large takes a while, and signals must not wait for it.
    fn measure(&self) {
        let report = self.clone();
        let measure = move || report.write(ReportLine::Memory(own_memory(&descendants(std::process::id()))));
        let _ = std::thread::Builder::new().spawn(measure);
    }
}

/// Becomes the user that the child is to be.
fn become_user(out: Option<&OwnedFd>) -> io::Result<()> {
    let Ok(text) = std::env::var(ENV_GUARD_USER) else { return Ok(()) };
    let user = UserIds::parse(&text).ok_or(io::ErrorKind::InvalidInput)?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let pipes: Vec<_> =
        [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()].into_iter().chain(out.map(AsFd::as_fd)).collect();
    user.adopt(&pipes).map_err(|error| io::Error::other(format!("it cannot become its user ({error})")))
}

fn start(program: &OsString, arguments: impl Iterator<Item = OsString>) -> io::Result<(SignalFd, Child)> {
    nix::sys::prctl::set_child_subreaper(true)?;
    // A duplicate is inherited, unlike the file itself. It is closed here when the child has been started.
    let out = std::env::var_os(ENV_GUARD_OUT).and_then(|path| File::options().write(true).open(path).ok());
    let out = out.and_then(|file| dup(file).ok());
    become_user(out.as_ref())?;
    let mut command = Command::new(program);
    command.args(arguments).env_remove(ENV_GUARD_OUT).env_remove(ENV_GUARD_REPORT).env_remove(ENV_GUARD_USER);
    if let Some(out) = &out {
        command.env(ENV_FD_OUT, out.as_raw_fd().to_string());
    }
    // The child is started before the signals are blocked, because it would inherit that. `watch` begins with a check for
    // a signal that came in between.
    let child = command.spawn()?;
    drop(out);
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, END_ALL, MEASURE] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // From here on only the child holds the pipes of its tasks and results, so that they end when it does.
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok((signals, child))
}

/// Waits until the child or the worker has ended, and kills everything below.
fn watch(signals: &SignalFd, child: Child, report: &Report) -> ExitStatus {
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
                Some(MEASURE) => report.measure(),
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

/// Reaps every zombie, and notes how the child ended.
fn reap(child: Pid, ended: &mut Option<ExitStatus>) {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => *ended = Some(ExitStatus::from_raw(code << 8)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                *ended = Some(ExitStatus::from_raw(signal as i32));
            }
            // A signal without a name in `nix` (a real-time one) ended some process: the child, when it is gone now.
            Err(Errno::EINVAL) if kill(child, None) == Err(Errno::ESRCH) => {
                *ended = Some(ExitStatus::from_raw(Signal::SIGKILL as i32));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Kills everything below until nothing is left: a process that loses its parent meanwhile becomes a child of the guard.
fn end_all(child: Pid, ended: &mut Option<ExitStatus>) {
    let mut pause_ms = KILL_POLL_MS;
    loop {
        let below = descendants(std::process::id());
        reap(child, ended);
        let kills = below.iter().map(|pid| kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL));
        let refused = kills.filter(|killed| *killed == Err(Errno::EPERM)).count();
        // A process that has taken another user's rights (sudo) cannot be killed by the guard.
        if below.is_empty() || (refused == below.len() && pause_ms > KILL_POLL_MS_MAX) {
            return;
        }
        let _ = poll(&mut [], PollTimeout::from(pause_ms));
        pause_ms = if refused == below.len() { pause_ms * 2 } else { KILL_POLL_MS };
    }
}

/// Ends as the child did, so that the worker sees the same code or signal.
fn end_as(status: ExitStatus) -> ! {
    // The child may dump its core; a core of the guard would tell nothing.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    if let Some(signal) = status.signal().and_then(|n| Signal::try_from(n).ok()) {
        let mut blocked = SigSet::empty();
        blocked.add(signal);
        let _ = blocked.thread_unblock();
        // The signal is raised twice: at the first SIGSEGV Rust's own handler only removes itself.
        let _ = raise(signal);
        let _ = raise(signal);
    }
    std::process::exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}
