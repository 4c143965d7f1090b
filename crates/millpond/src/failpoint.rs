//! Named places where a test kills the process, as `kill -9` would. Debug builds only; a release build has none.
//!
//! `MILLPOND_FAILPOINT=<name>` kills at the first hit, `<name>:<n>` at the n-th. docs/develop.md lists the names.

/// Ends the process without a word when this is the failpoint that was asked for.
#[inline]
pub fn hit(name: &str) {
    #[cfg(debug_assertions)]
    armed::hit(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// The failpoint asked for, and the hits that remain.
    static ARMED: OnceLock<Option<(String, AtomicU32)>> = OnceLock::new();

    pub(super) fn hit(name: &str) {
        let armed = ARMED.get_or_init(|| {
            let asked = std::env::var("MILLPOND_FAILPOINT").ok()?;
            let (name, hits) = asked.split_once(':').unwrap_or((&asked, "1"));
            Some((name.to_owned(), AtomicU32::new(hits.parse().unwrap_or(1))))
        });
        if let Some((asked, hits)) = armed
            && asked == name
            && hits.fetch_sub(1, Ordering::SeqCst) == 1
        {
            let pid = std::process::id().to_string();
            let _ = std::process::Command::new("kill").args(["-9", &pid]).status();
            std::process::abort();
        }
    }
}
