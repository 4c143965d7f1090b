//! Files with secrets: written in one step, readable by their owner only; and folders that only their owner enters.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;

/// Makes a folder, with those above it where they are missing; one that is there is made private.
///
/// # Errors
/// When it cannot be made, or is another user's.
pub fn folder(path: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    let private = made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700)));
    private.with_context(|| format!("cannot make {}", path.display()))
}

/// Writes a file: a reader finds the old content or the new one, never a part.
///
/// # Errors
/// When its folder cannot be written.
pub fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let folder = path.parent().unwrap_or(Path::new("."));
    // A temporary file is readable by its owner only, and stays so when it is renamed.
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(cannot)?;
    file.write_all(content).and_then(|()| file.as_file().sync_all()).with_context(cannot)?;
    file.persist(path).with_context(cannot)?;
    Ok(())
}
