//! Ctrl-C and SIGTERM. They end a verb at once, except one that tells first what becomes of the work that goes on without it: then the
//! first is for the verb, and the second ends the process. Each is listened to, because nothing else ends a process that is the first of
//! its container.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit;

/// Whether the verb deals with the signals itself.
static IS_HEEDED: AtomicBool = AtomicBool::new(false);

/// How long a verb may take to be dropped at the first signal: it may be held up by a reader of its output who does not read.
const ENDS_WITHIN: Duration = Duration::from_millis(500);

/// A token that the first SIGTERM or SIGINT cancels, for a verb that deals with the signals itself.
///
/// # Errors
/// When the signals cannot be listened to.
pub(super) fn on_signal() -> std::io::Result<CancellationToken> {
    IS_HEEDED.store(true, Ordering::Relaxed);
    millpond::shutdown::on_signal()
}

/// A token that the first signal cancels, of a verb that does not deal with signals. The process ends soon after.
///
/// # Errors
/// When the signals cannot be listened to.
pub(crate) fn unheeded() -> std::io::Result<CancellationToken> {
    let mut signals = Signals::listen()?;
    let pressed = CancellationToken::new();
    let first = pressed.clone();
    millpond::shutdown::spawn(async move {
        loop {
            signals.next().await;
            if !IS_HEEDED.load(Ordering::Relaxed) {
                break;
            }
        }
        first.cancel();
        let _ = tokio::time::timeout(ENDS_WITHIN, signals.next()).await;
        std::process::exit(exit::INTERRUPTED.into());
    });
    Ok(pressed)
}

/// Both signals.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Whether one of the signals came.
pub(super) struct Interrupt(CancellationToken);

impl Interrupt {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the signals cannot be listened to.
    pub(super) fn listen() -> std::io::Result<Self> {
        let mut signals = Signals::listen()?;
        IS_HEEDED.store(true, Ordering::Relaxed);
        let pressed = CancellationToken::new();
        let first = pressed.clone();
        // A task of its own: the verb may be held up by a reader of its output who does not read.
        millpond::shutdown::spawn(async move {
            signals.next().await;
            first.cancel();
            signals.next().await;
            std::process::exit(exit::INTERRUPTED.into());
        });
        Ok(Self(pressed))
    }

    /// Returns once one of them came.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn pressed(&self) {
        self.0.cancelled().await;
    }
}
