//! Files with secrets: written in one step, readable by their owner only.

use std::io::Write;
use std::path::Path;

use anyhow::Context;

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
