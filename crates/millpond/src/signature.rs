//! Signatures of tasks: HMAC-SHA256 over everything that decides what runs, so that workers with a key run only tasks that were
//! published with the key. No I/O, no clock. `bus/publish/mod.rs` signs each task that it stores, `bus/consume/pull.rs` verifies
//! each that it takes; docs/protocol.md has the text that is signed, and what it does not protect.

use std::fmt;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::wire::header_names::is_read;
use crate::wire::headers::{HEADER_ID, HEADER_MSG_ID, HEADER_SCHEDULE_TARGET, HEADER_SIGNATURE, Headers};

/// Keys of a cluster at once: the new one, and older ones with which tasks that still wait were signed.
const SIGNING_KEYS_MAX: usize = 8;
/// Shortest key that signs tasks, in characters.
const SIGNING_KEY_CHARS_MIN: usize = 32;
/// Version of the text that is signed.
const VERSION: &str = "v1";
/// Bytes of a key's SHA-256 that identify it.
const KEY_ID_BYTES: usize = 4;

/// Why keys are refused. Never shows one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SigningKeyError {
    /// Too short to be safe.
    #[error(
        "signing key {number} has {chars} characters, it must have {SIGNING_KEY_CHARS_MIN} or more; make one with `openssl rand -hex 32`"
    )]
    TooShort {
        /// Which of them, from 1.
        number: usize,
        /// Its length.
        chars: usize,
    },
    /// More than rotation needs.
    #[error("{count} signing keys are too many, at most {SIGNING_KEYS_MAX} are taken: the new one, then older ones")]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// Why the signature of a task is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distrust {
    /// There is none.
    Unsigned,
    /// It does not fit the message, or its key is not known.
    BadSignature,
}

impl Distrust {
    /// The reason of its dead letter.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::BadSignature => "bad_signature",
        }
    }

    /// Whether a dead letter has this reason: a replay must not sign it.
    #[must_use]
    pub fn is_reason(reason: &str) -> bool {
        [Self::Unsigned, Self::BadSignature].iter().any(|distrust| distrust.reason() == reason)
    }

    /// One line for a person.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::Unsigned => {
                "it has no signature (header Millpond-Signature): publish it with MILLPOND_SIGNING_KEY of the workers"
            }
            Self::BadSignature => {
                "its signature does not fit: it was altered, moved, or signed with a key that this worker does not have"
            }
        }
    }
}

struct SigningKey {
    id: String,
    mac: Hmac<Sha256>,
}

/// The keys of a cluster: the first one signs, each verifies. Cheap to clone; its `Debug` shows no key.
#[derive(Clone)]
pub struct Signer {
    keys: std::sync::Arc<[SigningKey]>,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signer").field(&self.key_ids()).finish()
    }
}

impl Signer {
    /// Parses `new[,old]`.
    ///
    /// # Errors
    /// [`SigningKeyError`]; its text has no part of a key.
    pub fn new(keys: &str) -> Result<Self, SigningKeyError> {
        let keys: Vec<&str> = keys.split(',').map(str::trim).collect();
        if keys.len() > SIGNING_KEYS_MAX {
            return Err(SigningKeyError::TooMany { count: keys.len() });
        }
        let read = (1..).zip(keys).map(|(number, key)| {
            let chars = key.chars().count();
            if chars < SIGNING_KEY_CHARS_MIN {
                return Err(SigningKeyError::TooShort { number, chars });
            }
            let digest = Sha256::digest(key.as_bytes());
            let id = HEXLOWER.encode(digest.get(..KEY_ID_BYTES).unwrap_or_default());
            let mac = Hmac::new_from_slice(key.as_bytes()).map_err(|_| SigningKeyError::TooShort { number, chars })?;
            Ok(SigningKey { id, mac })
        });
        Ok(Self { keys: read.collect::<Result<_, _>>()? })
    }

    /// The ids of the keys, for logs: the first 8 hex digits of their SHA-256.
    #[must_use]
    pub fn key_ids(&self) -> Vec<&str> {
        self.keys.iter().map(|key| key.id.as_str()).collect()
    }

    /// Adds the signature of a task that is stored under `subject` to its headers, in place of an older one.
    pub fn sign(&self, subject: &str, headers: &mut Headers, payload: &[u8]) {
        let Some(key) = self.keys.first() else { return };
        headers.retain(|(name, _)| name != HEADER_SIGNATURE);
        // A message that waits for its time is verified under the subject that it is delivered to.
        let target = headers.iter().find(|(name, _)| name == HEADER_SCHEDULE_TARGET).map(|(_, v)| v.clone());
        let arrives = target.filter(|_| subject.starts_with("sched."));
        let mac = digest(key.mac.clone(), arrives.as_deref().unwrap_or(subject), headers, payload);
        headers.push((HEADER_SIGNATURE.to_owned(), key.text(mac)));
    }

    /// Verifies a task that arrived on `subject` (`tasks.…` or `due.…`).
    ///
    /// # Errors
    /// [`Distrust`] when its signature is missing or does not fit.
    pub fn verify(&self, subject: &str, headers: &Headers, payload: &Bytes) -> Result<(), Distrust> {
        let given = headers.iter().find(|(name, _)| name == HEADER_SIGNATURE);
        let (_, given) = given.ok_or(Distrust::Unsigned)?;
        self.fits(given, |mac| digest(mac, subject, headers, payload))
    }

    /// The signature of what a job's end starts, by who submits the job.
    #[must_use]
    pub fn sign_continuation(&self, job: (&str, u32), queue: &str, kind: &str) -> Option<String> {
        let key = self.keys.first()?;
        Some(key.text(continuation_digest(key.mac.clone(), job, queue, kind)))
    }

    /// Verifies that who submitted a job wanted this task at its end.
    ///
    /// # Errors
    /// [`Distrust`] when its signature is missing or does not fit.
    pub fn verify_continuation(
        &self,
        given: Option<&str>,
        job: (&str, u32),
        queue: &str,
        kind: &str,
    ) -> Result<(), Distrust> {
        self.fits(given.ok_or(Distrust::Unsigned)?, |mac| continuation_digest(mac, job, queue, kind))
    }

    /// Whether a signature is that of what `feed` puts into the code, by one of the keys.
    fn fits(&self, given: &str, feed: impl Fn(Hmac<Sha256>) -> Hmac<Sha256>) -> Result<(), Distrust> {
        let mut parts = given.trim().splitn(3, ':');
        let (version, id, text) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
        let mac = HEXLOWER.decode(text.as_bytes()).map_err(|_| Distrust::BadSignature)?;
        let mut candidates = self.keys.iter().filter(|key| version == Some(VERSION) && Some(key.id.as_str()) == id);
        // `verify_slice` compares in constant time.
        let fits = candidates.any(|key| feed(key.mac.clone()).verify_slice(&mac).is_ok());
        fits.then_some(()).ok_or(Distrust::BadSignature)
    }
}

impl SigningKey {
    /// A signature as it is written.
    fn text(&self, mac: Hmac<Sha256>) -> String {
        format!("{VERSION}:{}:{}", self.id, HEXLOWER.encode(&mac.finalize().into_bytes()))
    }
}

/// Feeds one part of the signed text after its length, so that no two tasks have the same text.
fn put(mac: &mut Hmac<Sha256>, part: &[u8]) {
    mac.update(&(part.len() as u64).to_be_bytes());
    mac.update(part);
}

/// Feeds what a job's end starts. No task has such a first pair of parts.
fn continuation_digest(mut mac: Hmac<Sha256>, (job, epoch): (&str, u32), queue: &str, kind: &str) -> Hmac<Sha256> {
    let epoch = epoch.to_string();
    for part in [VERSION, "continuation", job, &epoch, queue, kind] {
        put(&mut mac, part.as_bytes());
    }
    mac
}

/// Feeds the signed text of a task.
fn digest(mut mac: Hmac<Sha256>, subject: &str, headers: &Headers, payload: &[u8]) -> Hmac<Sha256> {
    let mut put = |part: &[u8]| put(&mut mac, part);
    let (stream, address) = subject.split_once('.').unwrap_or((subject, ""));
    // What is published as a new task has its id in `Nats-Msg-Id`, what waits in DUE in `Millpond-Id`.
    let id = if stream == "tasks" || stream == "later" { HEADER_MSG_ID } else { HEADER_ID };
    let get = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map_or("", |(_, value)| value.as_str());
    for part in [VERSION, stream, address, get(id)] {
        put(part.as_bytes());
    }
    let mut signed: Vec<(&str, String)> = headers
        .iter()
        .filter(|(name, _)| is_read(name) && name != HEADER_SIGNATURE)
        .map(|(name, value)| (name.as_str(), as_it_arrives(value)))
        .collect();
    // The sort is stable: of two headers with one name the first counts.
    signed.sort_by_key(|(name, _)| *name);
    put(&(signed.len() as u64).to_be_bytes());
    for (name, value) in &signed {
        put(name.as_bytes());
        put(value.as_bytes());
    }
    put(payload);
    mac
}

/// A header's value as it arrives: without line breaks, and without blanks around it.
fn as_it_arrives(value: &str) -> String {
    let value: String = value.chars().map(|c| if c == '\r' || c == '\n' { ' ' } else { c }).collect();
    value.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = "0123456789abcdef0123456789abcdef";
    const OLD: &str = "an older key of thirty-two chars or more";

    fn headers(list: &[(&str, &str)]) -> Headers {
        list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    fn signed(keys: &str, subject: &str, list: &[(&str, &str)], payload: &[u8]) -> Headers {
        let mut headers = headers(list);
        Signer::new(keys).unwrap().sign(subject, &mut headers, payload);
        headers
    }

    fn signature(headers: &Headers) -> &str {
        &headers.iter().find(|(n, _)| n == HEADER_SIGNATURE).unwrap().1
    }

    #[test]
    fn a_fixed_vector() {
        // docs/protocol.md has the same, and a few lines of Python that make it.
        let task = [(HEADER_MSG_ID, "a1"), ("Millpond-Timeout", "30s"), ("Millpond-Attempts-Max", "2")];
        let headers = signed(NEW, "tasks.default.square", &task, b"12");
        assert_eq!(signature(&headers), "v1:3eb1bd43:c57c47d4626803048ca9cba27a539f38d5b6f4e1ea3f9bb7f4cdae188d48cd04");
    }

    #[test]
    fn only_what_was_signed_verifies() {
        let signer = Signer::new(NEW).unwrap();
        let task = [(HEADER_MSG_ID, "a1"), ("Millpond-Timeout", "30s"), ("traceparent", "00-1")];
        let good = signed(NEW, "tasks.q.k.j-j", &task, b"12");
        let verify =
            |subject: &str, headers: &Headers, payload: &'static [u8]| signer.verify(subject, headers, &payload.into());
        assert_eq!(verify("tasks.q.k.j-j", &good, b"12"), Ok(()));
        for subject in
            ["tasks.q.k", "tasks.q.k.j-i", "tasks.q.k.u-j", "tasks.q2.k.j-j", "tasks.q.k2.j-j", "due.q.k.j-j"]
        {
            assert_eq!(verify(subject, &good, b"12"), Err(Distrust::BadSignature), "{subject}");
        }
        assert_eq!(verify("tasks.q.k.j-j", &good, b"13"), Err(Distrust::BadSignature));
        let altered = |name: &str, value: Option<&str>| {
            let mut headers = good.clone();
            headers.retain(|(n, _)| n != name);
            headers.extend(value.map(|v| (name.to_owned(), v.to_owned())));
            verify("tasks.q.k.j-j", &headers, b"12")
        };
        for (name, value) in [
            (HEADER_MSG_ID, Some("a2")),
            (HEADER_MSG_ID, None),
            ("Millpond-Timeout", Some("31s")),
            ("Millpond-Timeout", None),
            ("Millpond-Index", Some("0")),
            ("Millpond-Id", Some("a1")),
            ("Millpond-Unheard-Of", Some("x")),
            ("millpond-unheard-of", Some("x")),
            ("Idempotency-Key", Some("x")),
            ("nats-msg-id", Some("x")),
            (HEADER_SIGNATURE, Some("v1:00000000:00")),
            (HEADER_SIGNATURE, Some("what")),
        ] {
            assert_eq!(altered(name, value), Err(Distrust::BadSignature), "{name} {value:?}");
        }
        assert_eq!(altered(HEADER_SIGNATURE, None), Err(Distrust::Unsigned));
        // Trace headers are not signed.
        assert_eq!(altered("traceparent", Some("00-2")), Ok(()));
        assert_eq!(altered("Nats-Expected-Stream", Some("TASKS")), Ok(()));
    }

    #[test]
    fn a_scheduled_task_verifies_where_it_is_delivered() {
        let signer = Signer::new(NEW).unwrap();
        let task = [(HEADER_SCHEDULE_TARGET, "due.q.k"), (HEADER_ID, "a1"), ("Millpond-Note", " line\nbreak ")];
        let mut headers = signed(NEW, "sched.q.k.-.KEY", &task, b"1");
        headers.retain(|(name, _)| !name.starts_with("Nats-") && name != "Millpond-Note");
        headers.push(("Millpond-Note".into(), "line break".into()));
        assert_eq!(signer.verify("due.q.k", &headers, &Bytes::from_static(b"1")), Ok(()));
        assert!(signer.verify("due.q.k2", &headers, &Bytes::from_static(b"1")).is_err());
    }

    #[test]
    fn a_continuation_is_signed_for_its_job() {
        let signer = Signer::new(NEW).unwrap();
        let signed = signer.sign_continuation(("j", 1), "q", "k").unwrap();
        // docs/protocol.md has the same.
        assert_eq!(signed, "v1:3eb1bd43:4ae6fc5c32daa7fbd8801ab1a8ee1ac2740421b73ef4a2982c22b0eb5daeaac6");
        assert_eq!(signer.verify_continuation(Some(&signed), ("j", 1), "q", "k"), Ok(()));
        for (job, queue, kind) in
            [(("j", 2), "q", "k"), (("i", 1), "q", "k"), (("j", 1), "k", "q"), (("j", 1), "q", "l")]
        {
            assert_eq!(signer.verify_continuation(Some(&signed), job, queue, kind), Err(Distrust::BadSignature));
        }
        assert_eq!(signer.verify_continuation(None, ("j", 1), "q", "k"), Err(Distrust::Unsigned));
    }

    #[test]
    fn keys_rotate_and_are_never_shown() {
        let payload = Bytes::from_static(b"1");
        let old = signed(OLD, "tasks.q.k", &[], &payload);
        let both = Signer::new(&format!("{NEW}, {OLD}")).unwrap();
        assert_eq!(both.verify("tasks.q.k", &old, &payload), Ok(()));
        assert_eq!(Signer::new(NEW).unwrap().verify("tasks.q.k", &old, &payload), Err(Distrust::BadSignature));
        let mut again = old.clone();
        both.sign("tasks.q.k", &mut again, &payload);
        assert_eq!((again.len(), Signer::new(NEW).unwrap().verify("tasks.q.k", &again, &payload)), (1, Ok(())));
        let shown = format!("{both:?}");
        assert!(!shown.contains(NEW) && shown.contains(both.key_ids()[0]), "{shown}");
        let short = Signer::new(&format!("{NEW},short")).unwrap_err();
        assert_eq!(short, SigningKeyError::TooShort { number: 2, chars: 5 });
        assert!(!short.to_string().contains("key short") && Signer::new("").is_err());
        assert!(matches!(Signer::new(&[NEW; 9].join(",")), Err(SigningKeyError::TooMany { count: 9 })));
    }
}
