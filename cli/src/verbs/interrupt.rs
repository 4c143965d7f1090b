//! Ctrl-C while a verb waits for work that goes on without it: the first is for the verb, which tells what becomes of the work;
//! the second ends the process at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit;

/// Whether Ctrl-C was pressed.
pub(super) struct Interrupt(CancellationToken);

impl Interrupt {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the signal cannot be listened to.
    pub(super) fn listen() -> std::io::Result<Self> {
        let mut signals = signal(SignalKind::interrupt())?;
        let pressed = CancellationToken::new();
        let first = pressed.clone();
        // A task of its own: the verb may be held up by a reader of its output who does not read.
        millpond::shutdown::spawn(async move {
            signals.recv().await;
            first.cancel();
            signals.recv().await;
            std::process::exit(exit::INTERRUPTED.into());
        });
        Ok(Self(pressed))
    }

    /// Returns once Ctrl-C was pressed.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn pressed(&self) {
        self.0.cancelled().await;
    }
}
