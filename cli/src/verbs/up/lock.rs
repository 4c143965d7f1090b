//! The lock on the state folder: a second `up` on the same folder is refused.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, anyhow};

/// Held while `up` runs.
#[derive(Debug)]
pub(super) struct StateFolderLock(#[expect(dead_code, reason = "held for its lock")] File);

impl StateFolderLock {
    /// Creates the folder and locks it.
    ///
    /// # Errors
    /// When another `up` holds the lock, or the folder cannot be made.
    pub(super) fn take(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let file = File::create(dir.join("lock"))?;
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
