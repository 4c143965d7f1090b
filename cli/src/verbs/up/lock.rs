//! The lock on the state folder: a second `up` on the same folder is refused.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, anyhow};

use crate::private_file;

/// Held while `up` runs.
#[derive(Debug)]
pub(super) struct StateFolderLock(#[expect(dead_code, reason = "held for its lock")] File);

impl StateFolderLock {
    /// Creates the folder and locks it.
    ///
    /// # Errors
    /// When another `up` holds the lock, or the folder cannot be made.
    pub(super) fn take(dir: &Path) -> anyhow::Result<Self> {
        // A folder of somebody else, with other things in it, stays as open as it is.
        if !dir.exists() || dir.join("secrets.json").exists() {
            private_file::folder(dir)?;
        }
        let lock = dir.join("lock");
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&lock);
        let file = file.with_context(|| format!("cannot make {}", lock.display()))?;
        file.try_lock().map_err(|_| {
            anyhow!(
                "another `millpond up` runs on {}: use that one, or choose another folder with --state",
                dir.display()
            )
        })?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let lock = StateFolderLock::take(dir.path()).unwrap();
        assert!(StateFolderLock::take(dir.path()).is_err());
        drop(lock);
        assert!(StateFolderLock::take(dir.path()).is_ok());
    }
}
