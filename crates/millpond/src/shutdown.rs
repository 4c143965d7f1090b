//! One token that every loop of a service waits for: cancelled on SIGTERM or SIGINT, or when the parent goes.

use tokio_util::sync::CancellationToken;

/// A token that the first SIGTERM or SIGINT cancels.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cancelled = token.clone();
    spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(token)
}

/// Cancels the token when standard input ends: the parent that holds the other end of the pipe is gone.
/// This is how a child learns of a parent that was killed and could not say so.
pub fn on_stdin_end(token: &CancellationToken) {
    use std::io::Read;
    let token = token.clone();
    // A plain thread: a blocking read would hold back the runtime's shutdown.
    std::thread::spawn(move || {
        let mut sink = [0u8; 64];
        while matches!(std::io::stdin().read(&mut sink), Ok(n) if n > 0) {}
        token.cancel();
    });
}

/// A task that lives as long as the process and that nobody needs to wait for.
#[expect(clippy::disallowed_methods, reason = "the one place for tasks that shutdown does not wait for")]
pub fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(future));
}
