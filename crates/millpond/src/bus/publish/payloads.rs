//! Large payloads in the bucket `millpond_payloads`, an Object Store as every NATS client knows it. Each put makes a new
//! object, chunk after chunk, so that it needs no more memory than one; each get is checked by size and SHA-256.
//! Nothing is ever deleted here: the bucket's age limit does it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::jetstream::object_store::{ObjectInfo, ObjectOptions};
use async_nats::{Message, StatusCode};
use bytes::{Bytes, BytesMut};
use data_encoding::{BASE64URL, HEXLOWER};
use futures_util::StreamExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::bus::error::describe;
use crate::bus::publish::{PublishError, RetryDeadline};
use crate::bus::read::raw::RawMessage;
use crate::bus::{Bus, from_nats};
use crate::limits::PAYLOAD_RETENTION;
use crate::payload::{PayloadRef, StoredPayload};
use crate::wire::headers::{HEADER_EXPECTED_SEQUENCE, HEADER_MSG_ID};
use crate::wire::streams::BUCKET_PAYLOADS;
use crate::wire::subject::check_token;

/// The stream of the bucket.
const PAYLOADS_STREAM: &str = "OBJ_millpond_payloads";
/// How long before its payload expires a task must start: the fetch takes time, and clocks differ.
pub const PAYLOAD_EXPIRY_MARGIN: Duration = Duration::from_secs(3600);

/// Bytes of one chunk of a stored payload: what other clients use.
const PAYLOAD_CHUNK_BYTES: usize = 128 * 1024;
/// A last chunk of fewer bytes is no message of its own.
const SHORT_CHUNK_BYTES: usize = 4 * 1024;
/// Bytes of chunks that one request asks the server for.
const PAYLOAD_PAGE_BYTES: usize = 4 * 1024 * 1024;
/// How long a fetch goes on without an answer of the server.
const PAYLOAD_STALLED_AFTER: Duration = Duration::from_secs(15);

/// Reads of a message that is not there, before it counts as missing: a replica of the stream may lag behind.
const READS_MAX: u32 = 4;
/// Pause between two such reads, and before a request without an answer is sent again.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Why a payload could not be put into the store.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// Its source cannot be read to its end.
    #[error("the payload cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// The server does not store it.
    #[error(transparent)]
    Store(#[from] PublishError),
}

impl PutError {
    /// The same for a payload in memory, which can always be read.
    #[must_use]
    pub fn into_publish(self) -> PublishError {
        match self {
            Self::Store(error) => error,
            Self::Read(error) => PublishError::Refused { subject: "a payload".to_owned(), reason: error.to_string() },
        }
    }
}

/// Why a payload could not be had from the store.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// There is no such object.
    #[error(
        "object {object} is not in the bucket {BUCKET_PAYLOADS}; it was deleted, or is older than {}",
        humantime::format_duration(PAYLOAD_RETENTION)
    )]
    Missing {
        /// Its name.
        object: String,
    },
    /// It is not what was stored.
    #[error("object {object} of the bucket {BUCKET_PAYLOADS} {reason}")]
    Damaged {
        /// Its name.
        object: String,
        /// In what it differs.
        reason: String,
    },
    /// It has more bytes than the caller takes.
    #[error(
        "object {object} has {bytes} bytes, at most {bytes_max} fit here; `nats object get {BUCKET_PAYLOADS} {object}` has it"
    )]
    TooLarge {
        /// Its name.
        object: String,
        /// Its size.
        bytes: u64,
        /// What the caller takes.
        bytes_max: u64,
    },
    /// The server gives no usable answer: it is not known whether the object is there.
    #[error("nats-server does not give object {object}: {reason}; try again")]
    NoAnswer {
        /// Its name.
        object: String,
        /// The answer, or how long there was none.
        reason: String,
    },
    /// What was read cannot be written where it should go.
    #[error("the payload cannot be written: {0}")]
    Write(#[from] std::io::Error),
}

/// Subject of an object's description.
fn meta_subject(object: &str) -> String {
    format!("$O.{BUCKET_PAYLOADS}.M.{}", BASE64URL.encode(object.as_bytes()))
}

/// Subject of its chunks.
fn chunk_subject(nuid: &str) -> String {
    format!("$O.{BUCKET_PAYLOADS}.C.{nuid}")
}

/// An object that is being read: chunk after chunk, of which a page is in memory.
pub struct PayloadReader {
    bus: Bus,
    at: PayloadRef,
    /// Of its chunks.
    subject: String,
    /// What was read so far.
    hash: Sha256,
    size: u64,
    /// Chunks that the server has given, and the sequence from which it is asked for more.
    page: VecDeque<(u64, Bytes)>,
    next: u64,
}

impl PayloadReader {
    /// The next chunk; none at the end. The last one comes only when all of them together are what was stored, so that what lacks
    /// it is not taken for the whole.
    ///
    /// # Errors
    /// [`GetError`]; nothing comes after it.
    ///
    /// # Cancel safety
    /// Safe: what was given out by then is not given out again.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, GetError> {
        if self.size >= self.at.size {
            // Of nothing, there is no last chunk.
            return if self.at.size == 0 { self.check_whole().map(|()| None) } else { Ok(None) };
        }
        if self.page.is_empty() {
            self.page = self.next_page().await?;
        }
        let Some((seq, chunk)) = self.page.pop_front() else { return Ok(None) };
        (self.next, self.size) = (seq + 1, self.size + chunk.len() as u64);
        self.hash.update(&chunk);
        if self.size > self.at.size || self.size == self.at.size && !self.page.is_empty() {
            return Err(self.damaged(format!("has more than its {} bytes", self.at.size)));
        }
        if self.size == self.at.size {
            self.check_whole()?;
        }
        Ok(Some(chunk))
    }

    /// Some more chunks, one at the least.
    async fn next_page(&self) -> Result<VecDeque<(u64, Bytes)>, GetError> {
        let (heard, mut reads) = (Instant::now(), 0);
        loop {
            let page = match self.bus.page_of_chunks(&self.subject, self.next).await {
                Ok(page) => page,
                Err(reason) => {
                    let chunk = self.bus.next_raw_message(PAYLOADS_STREAM, self.next, &self.subject).await;
                    check_readable(&self.at.object, chunk.ok().flatten())?;
                    self.bus.wait_for_answer(&self.at.object, heard, reason).await?;
                    continue;
                }
            };
            if !page.is_empty() {
                return Ok(page.into());
            }
            reads += 1;
            if reads >= READS_MAX {
                return Err(self.damaged(format!("has only {} of its {} bytes", self.size, self.at.size)));
            }
            tokio::time::sleep(READ_AGAIN_AFTER).await;
        }
    }

    fn check_whole(&self) -> Result<(), GetError> {
        let found = HEXLOWER.encode(&self.hash.clone().finalize());
        if found == self.at.sha256 {
            return Ok(());
        }
        Err(self.damaged(format!("has SHA-256 {found} instead of {}", self.at.sha256)))
    }

    fn damaged(&self, reason: String) -> GetError {
        GetError::Damaged { object: self.at.object.clone(), reason }
    }
}

impl Bus {
    /// Puts what a reader gives into the store, as a new object. Returns once the server has all of it.
    ///
    /// # Errors
    /// [`PutError`]; what was stored by then goes with the age of the bucket.
    ///
    /// # Cancel safety
    /// Not safe: a dropped put leaves a part that nobody knows of.
    pub async fn put_payload(
        &self,
        from: &mut (impl AsyncRead + Unpin + ?Sized),
        deadline: RetryDeadline,
    ) -> Result<StoredPayload, PutError> {
        let object = crate::random_token();
        let keep = i64::try_from((PAYLOAD_RETENTION - PAYLOAD_EXPIRY_MARGIN).as_millis()).unwrap_or(i64::MAX);
        // From its start: the first chunk goes first.
        let until_ms = crate::now_ms().saturating_add(keep);
        let subject = chunk_subject(&object);
        let (mut hash, mut size, mut chunks, mut last) = (Sha256::new(), 0, 0, 0);
        let mut ahead = BytesMut::new();
        loop {
            let chunk = read_chunk(from, &mut ahead).await?;
            if chunk.is_empty() {
                break;
            }
            hash.update(&chunk);
            (size, chunks) = (size + chunk.len(), chunks + 1);
            // Stored only behind the chunk before: a resend can neither double it nor change the order.
            let headers = vec![(HEADER_EXPECTED_SEQUENCE.to_owned(), last.to_string())];
            last = match self.store(&subject, &headers, chunk, deadline).await {
                Ok(stored) => stored.seq,
                // It was stored, and sent again because the ack was lost: nobody else stores under this subject.
                Err(refused @ PublishError::NotLast { .. }) => {
                    self.last_sequence(&subject, last).await.ok_or(refused)?
                }
                Err(error) => return Err(error.into()),
            };
        }
        let digest = hash.finalize();
        let info = ObjectInfo {
            name: object.clone(),
            description: None,
            metadata: std::collections::HashMap::new(),
            headers: None,
            options: Some(ObjectOptions { link: None, max_chunk_size: Some(PAYLOAD_CHUNK_BYTES) }),
            bucket: BUCKET_PAYLOADS.to_owned(),
            nuid: object.clone(),
            size,
            chunks,
            modified: None,
            digest: Some(format!("SHA-256={}", BASE64URL.encode(&digest))),
            deleted: false,
        };
        let headers = vec![(HEADER_MSG_ID.to_owned(), format!("{object}-m"))];
        let text = serde_json::to_vec(&info).unwrap_or_default();
        self.store(&meta_subject(&object), &headers, Bytes::from(text), deadline).await?;
        let at = PayloadRef { object, size: size as u64, sha256: HEXLOWER.encode(&digest) };
        Ok(StoredPayload { at, until_ms })
    }

    /// The sequence of the last chunk, when it is one behind `before`.
    async fn last_sequence(&self, subject: &str, before: u64) -> Option<u64> {
        for _ in 0..READS_MAX {
            let found = self.last_of(subject).await.ok().flatten();
            if let Some(last) = found.as_ref().and_then(sequence).filter(|last| *last > before) {
                return Some(last);
            }
            tokio::time::sleep(READ_AGAIN_AFTER).await;
        }
        None
    }

    /// Writes an object to `into`, and checks that it is what was stored. What is written counts only when this returns
    /// without an error.
    ///
    /// # Errors
    /// [`GetError`].
    ///
    /// # Cancel safety
    /// Not safe: a part may be written.
    pub async fn get_payload(
        &self,
        at: &PayloadRef,
        into: &mut (impl AsyncWrite + Unpin + ?Sized),
    ) -> Result<(), GetError> {
        let mut reader = self.read_payload(at).await?;
        while let Some(chunk) = reader.chunk().await? {
            into.write_all(&chunk).await?;
        }
        Ok(into.flush().await?)
    }

    /// Begins to read an object that was stored as `at` says.
    ///
    /// # Errors
    /// [`GetError`]: it is not there, has another size, or the server does not answer.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read_payload(&self, at: &PayloadRef) -> Result<PayloadReader, GetError> {
        let info = self.description(&at.object).await?;
        let (bus, at, subject) = (self.clone(), at.clone(), chunk_subject(&info.nuid));
        let reader = PayloadReader { bus, at, subject, hash: Sha256::new(), size: 0, page: VecDeque::new(), next: 1 };
        if info.size as u64 != reader.at.size {
            return Err(reader.damaged(format!("has {} bytes instead of {}", info.size, reader.at.size)));
        }
        if check_token("object", &info.nuid).is_err() {
            return Err(reader.damaged("has a description that cannot be read".to_owned()));
        }
        Ok(reader)
    }

    /// The same, into memory; `bytes_max` is what the caller takes.
    ///
    /// # Errors
    /// [`GetError`].
    pub async fn get_payload_bytes(&self, at: &PayloadRef, bytes_max: usize) -> Result<Vec<u8>, GetError> {
        let size = usize::try_from(at.size).ok().filter(|size| *size <= bytes_max);
        let Some(size) = size else {
            let (object, bytes_max) = (at.object.clone(), bytes_max as u64);
            return Err(GetError::TooLarge { object, bytes: at.size, bytes_max });
        };
        let mut bytes = Vec::with_capacity(size);
        self.get_payload(at, &mut bytes).await?;
        Ok(bytes)
    }

    /// The description of an object.
    async fn description(&self, object: &str) -> Result<ObjectInfo, GetError> {
        let (subject, heard, mut reads) = (meta_subject(object), Instant::now(), 0);
        loop {
            let found = match self.last_of(&subject).await {
                Ok(found) => found,
                Err(reason) => {
                    let description = self.last_raw_message(PAYLOADS_STREAM, &subject).await;
                    check_readable(object, description.ok().flatten())?;
                    self.wait_for_answer(object, heard, reason).await?;
                    continue;
                }
            };
            let info = found.map(|message| serde_json::from_slice::<ObjectInfo>(&message.payload));
            match info {
                Some(Ok(info)) if !info.deleted => return Ok(info),
                Some(Err(error)) => {
                    let reason = format!("has a description that cannot be read: {error}");
                    return Err(GetError::Damaged { object: object.to_owned(), reason });
                }
                Some(Ok(_)) => return Err(GetError::Missing { object: object.to_owned() }),
                None => {
                    reads += 1;
                    if reads >= READS_MAX {
                        return Err(GetError::Missing { object: object.to_owned() });
                    }
                    tokio::time::sleep(READ_AGAIN_AFTER).await;
                }
            }
        }
    }

    async fn wait_for_answer(&self, object: &str, since: Instant, reason: String) -> Result<(), GetError> {
        if since.elapsed() >= PAYLOAD_STALLED_AFTER {
            return Err(GetError::NoAnswer { object: object.to_owned(), reason });
        }
        tokio::time::sleep(READ_AGAIN_AFTER).await;
        Ok(())
    }

    /// The last message of a subject of the bucket; none when there is none.
    async fn last_of(&self, subject: &str) -> Result<Option<Message>, String> {
        let mut answers = self.request_messages(&json!({ "last_by_subj": subject })).await?;
        answer(&mut answers).await
    }

    /// Some chunks from a sequence on, with their sequences; none when there are no more.
    async fn page_of_chunks(&self, subject: &str, from: u64) -> Result<Vec<(u64, Bytes)>, String> {
        let count = PAYLOAD_PAGE_BYTES / PAYLOAD_CHUNK_BYTES;
        let request = json!({ "seq": from, "next_by_subj": subject, "batch": count, "max_bytes": PAYLOAD_PAGE_BYTES });
        let mut answers = self.request_messages(&request).await?;
        let mut page = Vec::new();
        loop {
            match answer(&mut answers).await {
                Ok(Some(message)) => {
                    let seq = sequence(&message).ok_or("a chunk without its sequence")?;
                    page.push((seq, message.payload));
                }
                Ok(None) => return Ok(page),
                // What came is in order and without a gap.
                Err(_) if !page.is_empty() => return Ok(page),
                Err(reason) => return Err(reason),
            }
        }
    }

    async fn request_messages(&self, request: &Value) -> Result<async_nats::Subscriber, String> {
        let inbox = self.client.new_inbox();
        let answers = self.client.subscribe(inbox.clone()).await.map_err(|e| describe(&e))?;
        let subject = format!("$JS.API.DIRECT.GET.{PAYLOADS_STREAM}");
        let sent = self.client.publish_with_reply(subject, inbox, Bytes::from(request.to_string())).await;
        sent.map_err(|e| describe(&e))?;
        Ok(answers)
    }
}

/// A message that the NATS client cannot read costs the connection whenever it is read: without an answer, it is looked at raw.
fn check_readable(object: &str, message: Option<RawMessage>) -> Result<(), GetError> {
    let Some(Err(why)) = message.map(|message| message.headers()) else { return Ok(()) };
    Err(GetError::Damaged { object: object.to_owned(), reason: format!("has a message that cannot be read: {why}") })
}

/// The next message of an answer; none at its end, or where there is none.
async fn answer(answers: &mut async_nats::Subscriber) -> Result<Option<Message>, String> {
    let message = tokio::time::timeout(ANSWER_WITHIN, answers.next()).await;
    let message = message.map_err(|_| format!("no answer within {}", humantime::format_duration(ANSWER_WITHIN)))?;
    let message = message.ok_or("the connection is closed")?;
    match message.status {
        None | Some(StatusCode::OK) => Ok(Some(message)),
        // 204 ends a page, 404 means that there is none.
        Some(status) if matches!(status.as_u16(), 204 | 404) => Ok(None),
        Some(status) => Err(format!("{status} {}", message.description.unwrap_or_default())),
    }
}

fn sequence(message: &Message) -> Option<u64> {
    let headers = from_nats(message.headers.as_ref());
    headers.iter().find(|(name, _)| name == "Nats-Sequence").and_then(|(_, seq)| seq.parse().ok())
}

/// As many bytes as a chunk has. The last one has fewer, or a few more: what is short goes with the chunk before. `ahead` is what was
/// read of the next one.
async fn read_chunk(from: &mut (impl AsyncRead + Unpin + ?Sized), ahead: &mut BytesMut) -> std::io::Result<Bytes> {
    let known = PAYLOAD_CHUNK_BYTES + SHORT_CHUNK_BYTES;
    ahead.reserve(known - ahead.len());
    let mut rest = from.take((known - ahead.len()) as u64);
    while rest.read_buf(ahead).await? > 0 {}
    let bytes = if ahead.len() < known { ahead.len() } else { PAYLOAD_CHUNK_BYTES };
    Ok(ahead.split_to(bytes).freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_short_end_goes_with_the_chunk_before() {
        let (chunk, short) = (PAYLOAD_CHUNK_BYTES, SHORT_CHUNK_BYTES);
        for (size, expected) in [
            (0, vec![]),
            (1, vec![1]),
            (chunk, vec![chunk]),
            (chunk + short - 1, vec![chunk + short - 1]),
            (chunk + short, vec![chunk, short]),
            (2 * chunk + 2, vec![chunk, chunk + 2]),
        ] {
            let bytes: Vec<u8> = (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let (mut from, mut ahead, mut chunks) = (bytes.as_slice(), BytesMut::new(), Vec::new());
            loop {
                let next = read_chunk(&mut from, &mut ahead).await.unwrap();
                if next.is_empty() {
                    break;
                }
                chunks.push(next);
            }
            assert_eq!(chunks.iter().map(Bytes::len).collect::<Vec<_>>(), expected);
            assert_eq!(chunks.concat(), bytes);
        }
    }
}
