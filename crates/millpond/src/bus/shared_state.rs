//! `shared`: state that programs share, keys with revisions in a bucket. The counterpart of `multiprocessing`'s managers.
//! Not for queues, and not for what changes a thousand times a second: each write is a stored message.

use async_nats::jetstream::kv;
use bytes::Bytes;
use futures_util::StreamExt;

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::bus::read::buckets::{BucketWatch, open};
use crate::wire::streams::BUCKET_SHARED;

/// Largest value of a shared key, in bytes.
const SHARED_VALUE_BYTES_MAX: usize = 512 * 1024;

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
        check(key)?;
        let entry = self.store.entry(key).await.map_err(|e| fault(&e))?;
        let put = entry.filter(|e| e.operation == kv::Operation::Put);
        Ok(put.map(|e| SharedEntry { value: e.value, revision: e.revision }))
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
        let conflict = || SharedError::Conflict { key: key.to_owned(), expected };
        if expected == 0 {
            return self.store.create(key, value).await.map_err(|e| match e.kind() {
                kv::CreateErrorKind::AlreadyExists => conflict(),
                _ => fault(&e),
            });
        }
        self.store.update(key, value, expected).await.map_err(|e| match e.kind() {
            kv::UpdateErrorKind::WrongLastRevision => conflict(),
            _ => fault(&e),
        })
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

    /// All keys, sorted.
    ///
    /// # Errors
    /// [`SharedError`].
    ///
    /// # Cancel safety
    /// Safe: nothing is changed.
    pub async fn keys(&self) -> Result<Vec<String>, SharedError> {
        let keys = self.store.keys().await.map_err(|e| fault(&e))?;
        let mut keys: Vec<String> = keys.filter_map(async |key| key.ok()).collect().await;
        keys.sort_unstable();
        Ok(keys)
    }

    /// All keys as they are now, then their changes, for ever.
    #[must_use]
    pub fn watch(&self) -> BucketWatch {
        BucketWatch::new(&self.bus, BUCKET_SHARED)
    }
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
