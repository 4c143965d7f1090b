//! Files for payloads that are too large for memory: a folder of this process alone, made when it is first needed,
//! removed with the worker, and swept by the next one when this one could not. No NATS.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use millpond_service::unwritable::unwritable;

/// How the folders are named, so that those of workers that are gone are found.
const PREFIX: &str = "millpond-spool-";
/// In each folder: locked while its worker lives. Unlike a process id it means the same in every container.
const LOCK: &str = "lock";

/// The folder of this worker's payload files.
#[derive(Debug)]
pub(crate) struct PayloadFiles {
    base: PathBuf,
    folder: Mutex<Option<PayloadFolder>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct PayloadFolder {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

/// A file with a payload; dropping this removes the file.
#[derive(Debug)]
pub(crate) struct PayloadFile {
    pub(crate) path: PathBuf,
}

impl PayloadFiles {
    /// In the folder `base`; what workers that are gone left there is removed.
    pub(crate) fn new(base: PathBuf) -> Self {
        if let Some(reason) = unwritable(&base) {
            tracing::warn!(reason, "tasks with arguments that are too large for memory cannot run here (--spool)");
        }
        sweep(&base);
        Self { base, folder: Mutex::default(), next: AtomicU64::new(0) }
    }

    /// A new file, open for writing; nobody but this user may read it, until it is given to another.
    pub(crate) async fn create(&self) -> io::Result<(tokio::fs::File, PayloadFile)> {
        let path = self.folder()?.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let file = tokio::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).await?;
        Ok((file, PayloadFile { path }))
    }

    fn folder(&self) -> io::Result<PathBuf> {
        let mut folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        // A program that cleans up temporary files may have removed the folder.
        if folder.as_ref().is_none_or(|made| !made.path.is_dir()) {
            *folder = Some(PayloadFolder::make(&self.base)?);
        }
        Ok(folder.as_ref().map(|made| made.path.clone()).unwrap_or_default())
    }
}

impl PayloadFolder {
    /// The folder has its name only once it is locked: a sweep of another worker must not find it before.
    fn make(base: &Path) -> io::Result<Self> {
        let nonce = millpond::random_token();
        let (young, path) = (base.join(format!(".{PREFIX}{nonce}")), base.join(format!("{PREFIX}{nonce}")));
        // A file may be given to another user, whose child then finds its way there.
        DirBuilder::new().mode(0o711).create(&young)?;
        let lock = File::options().write(true).create_new(true).mode(0o600).open(young.join(LOCK))?;
        lock.lock()?;
        std::fs::rename(&young, &path)?;
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for PayloadFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

impl Drop for PayloadFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes folders whose workers are gone. A folder that cannot be removed belongs to another user.
fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let lock = File::open(entry.path().join(LOCK));
        if is_ours && lock.is_ok_and(|lock| lock.try_lock().is_ok()) && std::fs::remove_dir_all(entry.path()).is_ok() {
            tracing::info!(folder = %entry.path().display(), "removed files of a worker that is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_go_with_their_use_and_folders_with_their_worker() {
        let base = tempfile::tempdir().unwrap();
        let count = || std::fs::read_dir(base.path()).unwrap().count();
        let spool = PayloadFiles::new(base.path().to_owned());
        assert_eq!(count(), 0, "nothing is made before it is needed");
        let (_, first) = spool.create().await.unwrap();
        let (_, second) = spool.create().await.unwrap();
        assert!(first.path != second.path && second.path.is_file());
        let path = first.path.clone();
        drop(first);
        assert!(!path.exists());
        // Another worker sweeps what is left of a third one, and leaves this one alone.
        let gone = base.path().join(format!("{PREFIX}gone"));
        std::fs::create_dir(&gone).unwrap();
        std::fs::write(gone.join(LOCK), "").unwrap();
        std::fs::write(gone.join("7"), "left").unwrap();
        let other = PayloadFiles::new(base.path().to_owned());
        assert!(!gone.exists() && second.path.is_file());
        drop((spool, other));
        assert_eq!(count(), 0);
    }
}
