//! `shared`: state that programs share, keys with revisions in a bucket. The counterpart of `multiprocessing`'s managers.
//! Not for queues, and not for what changes a thousand times a second: each write is a stored message.
//!
//! Any NATS client may write here, also headers and keys that the client of this crate cannot read (`wire/header_block.rs`). So
//! everything is read raw: what one program writes costs no other its connection.

use std::time::Duration;

use async_nats::jetstream::kv;
use bytes::Bytes;

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::read::buckets::{BucketChange, open};
use crate::bus::read::raw::RawMessage;
use crate::wire::streams::BUCKET_SHARED;

/// Largest value of a shared key, in bytes.
const SHARED_VALUE_BYTES_MAX: usize = 512 * 1024;
/// The stream of the bucket.
const STREAM_SHARED: &str = "KV_millpond_shared";
/// What stands before a key in its subject.
const KEY_PREFIX: &str = "$KV.millpond_shared.";
/// How often a watch asks for changes: a consumer would bring them at once, and with them what costs the connection.
const WATCH_POLL: Duration = Duration::from_millis(100);
/// How long a watch waits before it asks a server again that did not answer.
const WATCH_RETRY: Duration = Duration::from_millis(500);

/// A value and which write it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedEntry {
    /// The value.
    pub value: Bytes,
    /// Grows with each write to the bucket; 0 stands for "no value".
    pub revision: u64,
}

/// Why a value was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// Not a key.
    #[error("{0:?} is not a key: use A-Z a-z 0-9 _ - = / and dots inside, such as config/limit")]
    Key(String),
    /// Too large.
    #[error(
        "a value of {bytes} bytes is too large, at most {SHARED_VALUE_BYTES_MAX} fit; keep the data elsewhere and share where it is"
    )]
    TooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// Somebody else wrote first.
    #[error("key {key} is not at revision {expected} (any more): read it again")]
    Conflict {
        /// The key.
        key: String,
        /// What was expected.
        expected: u64,
    },
    /// The server.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// The shared keys. Cheap to clone.
#[derive(Clone)]
pub struct SharedState {
    bus: Bus,
    store: kv::Store,
}

fn check(key: &str) -> Result<(), SharedError> {
    let visible = |b: u8| b.is_ascii_alphanumeric() || b"_-=/.".contains(&b);
    let fits = !key.is_empty() && key.bytes().all(visible) && !key.starts_with('.') && !key.ends_with('.');
    if fits && !key.contains("..") { Ok(()) } else { Err(SharedError::Key(key.to_owned())) }
}

fn fits(value: &Bytes) -> Result<(), SharedError> {
    let bytes = value.len();
    if bytes <= SHARED_VALUE_BYTES_MAX { Ok(()) } else { Err(SharedError::TooLarge { bytes }) }
}

fn fault(error: &(dyn std::error::Error + 'static)) -> SharedError {
    BusError::new(BUCKET_SHARED, error).into()
}

impl SharedState {
    /// Opens the bucket.
    ///
    /// # Errors
    /// [`SharedError::Bus`]; most likely setup has not run yet.
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn open(bus: &Bus) -> Result<Self, SharedError> {
        Ok(Self { bus: bus.clone(), store: open(bus, BUCKET_SHARED).await? })
    }

    /// The value of a key, if it has one.
    ///
    /// # Errors
    /// [`SharedError`].
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn get(&self, key: &str) -> Result<Option<SharedEntry>, SharedError> {
        let stored = self.stored(key).await?.filter(|stored| !stored.is_removal());
        Ok(stored.map(|stored| SharedEntry { value: stored.payload, revision: stored.seq }))
    }

    /// What lies under a key: its value, or that it was removed.
    async fn stored(&self, key: &str) -> Result<Option<RawMessage>, SharedError> {
        check(key)?;
        Ok(self.bus.last_raw_message(STREAM_SHARED, &format!("{KEY_PREFIX}{key}")).await?)
    }

    /// Writes a value whatever was there; the new revision.
    ///
    /// # Errors
    /// [`SharedError`].
    ///
    /// # Cancel safety
    /// When this is dropped, the change may be made or not; making it again is safe.
    pub async fn set(&self, key: &str, value: Bytes) -> Result<u64, SharedError> {
        check(key)?;
        fits(&value)?;
        self.store.put(key, value).await.map_err(|e| fault(&e))
    }

    /// Writes a value if the key is at this revision, 0 for "has no value"; the new revision.
    ///
    /// # Errors
    /// [`SharedError::Conflict`] when it is not.
    ///
    /// # Cancel safety
    /// When this is dropped, the value may be written or not; read it to know.
    pub async fn compare_and_set(&self, key: &str, value: Bytes, expected: u64) -> Result<u64, SharedError> {
        check(key)?;
        fits(&value)?;
        let written = |e: kv::UpdateError| match e.kind() {
            kv::UpdateErrorKind::WrongLastRevision => SharedError::Conflict { key: key.to_owned(), expected },
            _ => fault(&e),
        };
        match self.store.update(key, value.clone(), expected).await.map_err(written) {
            Err(SharedError::Conflict { .. }) if expected == 0 => {}
            done => return done,
        }
        // A key that was removed has no value, and yet a revision.
        let removed = self.stored(key).await?.filter(RawMessage::is_removal);
        let removal = removed.ok_or_else(|| SharedError::Conflict { key: key.to_owned(), expected })?;
        self.store.update(key, value, removal.seq).await.map_err(written)
    }

    /// Reads, computes and writes until nobody was faster; what was written.
    ///
    /// # Errors
    /// [`SharedError`], but never a conflict.
    ///
    /// # Cancel safety
    /// When this is dropped, the value may be written or not; read it to know.
    pub async fn update(&self, key: &str, new: impl Fn(Option<&Bytes>) -> Bytes) -> Result<SharedEntry, SharedError> {
        loop {
            let before = self.get(key).await?;
            let (revision, value) = (before.as_ref().map_or(0, |e| e.revision), new(before.as_ref().map(|e| &e.value)));
            match self.compare_and_set(key, value.clone(), revision).await {
                Ok(revision) => return Ok(SharedEntry { value, revision }),
                Err(SharedError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes a key.
    ///
    /// # Errors
    /// [`SharedError`].
    ///
    /// # Cancel safety
    /// When this is dropped, the change may be made or not; making it again is safe.
    pub async fn remove(&self, key: &str) -> Result<(), SharedError> {
        check(key)?;
        self.store.delete(key).await.map_err(|e| fault(&e))
    }

    /// All keys that have a value, sorted. Of a key that is no text (another client's), what is no text is U+FFFD.
    ///
    /// # Errors
    /// [`SharedError`].
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn keys(&self) -> Result<Vec<String>, SharedError> {
        let (mut keys, mut read) = (Vec::new(), 0);
        while let Some(stored) = self.bus.next_raw_message(STREAM_SHARED, read + 1, ">").await? {
            read = stored.seq;
            if !stored.is_removal() {
                keys.push(key_of(&stored));
            }
        }
        keys.sort_unstable();
        Ok(keys)
    }

    /// All keys as they are now, then their changes, for ever: each within about 100 ms. Of several changes of a key in that time
    /// the last one is told.
    #[must_use]
    pub fn watch(&self) -> SharedWatch {
        SharedWatch { bus: self.bus.clone(), read: 0 }
    }
}

/// The keys and their changes, for ever. After a fault it starts again with all keys.
pub struct SharedWatch {
    bus: Bus,
    /// The sequence of what was read last.
    read: u64,
}

impl SharedWatch {
    /// The next key or change.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> BucketChange {
        loop {
            match self.bus.next_raw_message(STREAM_SHARED, self.read + 1, ">").await {
                Ok(Some(stored)) => {
                    self.read = stored.seq;
                    let (key, stored_ms) = (key_of(&stored), stored.stored_ms);
                    let value = (!stored.is_removal()).then_some(stored.payload);
                    return BucketChange { key, value, stored_ms };
                }
                Ok(None) => tokio::time::sleep(WATCH_POLL).await,
                Err(error) => {
                    tracing::debug!(bucket = BUCKET_SHARED, %error, "cannot be watched now, will try again");
                    // The bucket may be another one by then, whose sequences begin anew.
                    self.read = 0;
                    tokio::time::sleep(WATCH_RETRY).await;
                }
            }
        }
    }
}

fn key_of(stored: &RawMessage) -> String {
    stored.subject.strip_prefix(KEY_PREFIX).unwrap_or(&stored.subject).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for (key, fit) in [
            ("a", true),
            ("config/limit", true),
            ("a.b", true),
            ("", false),
            (".a", false),
            ("a b", false),
            ("a..b", false),
            ("ä", false),
        ] {
            assert_eq!(check(key).is_ok(), fit, "{key:?}");
        }
    }
}
