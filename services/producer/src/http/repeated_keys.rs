//! What an `Idempotency-Key` was used for lately: the server tells a repeated id, not whether it comes with the same task. This
//! producer remembers that for as long as the server does.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;
use millpond::client::{NewTask, Submitted};
use millpond::wire::headers::HEADER_IDEMPOTENCY_KEY;
use millpond_service::error_answer::ErrorAnswer;
use sha2::{Digest, Sha256};

/// Keys that are remembered; older ones are forgotten.
const KEYS_MAX: usize = 65_536;

/// The digests of tasks, by queue and key.
pub(crate) struct RepeatedKeys(Mutex<LruCache<(String, String), [u8; 32]>>);

impl RepeatedKeys {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(LruCache::new(NonZeroUsize::new(KEYS_MAX).unwrap_or(NonZeroUsize::MIN))))
    }

    /// Remembers a task that was stored, and refuses one that was not because its key stands for another task.
    ///
    /// # Errors
    /// 409, when the key was used for another kind or body.
    pub(super) fn check(&self, task: &NewTask, stored: &Submitted) -> Result<(), ErrorAnswer> {
        let (name, digest) = ((task.queue.clone(), stored.id.clone()), digest(task));
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !stored.duplicate {
            known.put(name, digest);
            return Ok(());
        }
        match known.get(&name) {
            Some(before) if *before != digest => Err(ErrorAnswer::conflict(format!(
                "{HEADER_IDEMPOTENCY_KEY} {:?} stands for another task of queue {}, with another kind or body: nothing was stored; \
                 choose another key",
                stored.id, task.queue
            ))),
            _ => Ok(()),
        }
    }
}

/// A digest of what runs: the kind and the arguments.
fn digest(task: &NewTask) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(task.kind.as_bytes());
    digest.update([0]);
    match &task.stored {
        Some(stored) => digest.update(stored.at.sha256.as_bytes()),
        None => digest.update(&task.payload),
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_for_one_task() {
        let keys = RepeatedKeys::new();
        let task = |kind: &str, payload: &'static str| NewTask {
            queue: "q".into(),
            kind: kind.into(),
            payload: payload.into(),
            ..NewTask::default()
        };
        let stored = |duplicate| Submitted { id: "k".into(), duplicate };
        assert!(keys.check(&task("a", "1"), &stored(true)).is_ok(), "another producer may have stored it");
        assert!(keys.check(&task("a", "1"), &stored(false)).is_ok());
        assert!(keys.check(&task("a", "1"), &stored(true)).is_ok());
        assert!(keys.check(&task("a", "2"), &stored(true)).is_err());
        assert!(keys.check(&task("b", "1"), &stored(true)).is_err());
        let elsewhere = NewTask { queue: "other".into(), ..task("a", "2") };
        assert!(keys.check(&elsewhere, &stored(true)).is_ok());
    }
}
