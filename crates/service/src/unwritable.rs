//! Why a file cannot be written, for a person who mounted a volume: whose it is, and who this process is.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, getegid, geteuid};

/// Bits of a file's mode that a person sets.
const MODE_BITS: u32 = 0o7777;

/// What keeps this process from writing a file, or from making it; none when nothing does.
#[must_use]
pub fn unwritable(path: &Path) -> Option<String> {
    let there = path.ancestors().find(|path| path.exists())?;
    let mut wanted = AccessFlags::W_OK;
    if there.is_dir() {
        wanted |= AccessFlags::X_OK;
    }
    let refused = access(there, wanted).err()?;
    let shown = there.display();
    if refused == Errno::EROFS {
        return Some(format!("{shown} is on a file system that is read-only"));
    }
    let found = there.metadata().ok()?;
    let (user, group) = (geteuid(), getegid());
    Some(format!(
        "{shown} is of user {} and group {}, mode {:04o}, and this process is user {user} of group {group}: \
         `chown {user}:{group} {shown}` gives it to it, in Kubernetes fsGroup: {group} of the pod",
        found.uid(),
        found.gid(),
        found.mode() & MODE_BITS
    ))
}

/// The same behind another text.
#[must_use]
pub fn with_reason(text: String, path: &Path) -> String {
    match unwritable(path) {
        Some(reason) => format!("{text}: {reason}"),
        None => text,
    }
}
