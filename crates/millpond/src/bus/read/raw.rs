//! Messages as they are stored, byte for byte. The server gives them out as JSON with base64, so that the NATS client parses
//! nothing of them: the only way to look at a message whose headers it cannot read.

use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::bus::Bus;
use crate::bus::error::BusError;
use crate::wire::header_block::{self, UnreadableMessage};
use crate::wire::headers::Headers;

/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How often a request is sent again whose connection was lost.
const TRIES: usize = 10;
/// What a record of a bucket says that was written by no plain publish.
const HEADER_KV_OPERATION: &str = "KV-Operation";
/// The operations that remove a key.
const KV_REMOVALS: [&str; 2] = ["DEL", "PURGE"];
/// With this header the server itself says that a key is gone.
const HEADER_MARKER_REASON: &str = "Nats-Marker-Reason";
/// Error code of a server that has no such message.
const NO_MESSAGE_FOUND: u64 = 10037;

/// A stored message.
#[derive(Debug, Clone)]
pub struct RawMessage {
    /// Sequence in its stream.
    pub seq: u64,
    /// Its subject; what is no text in it is U+FFFD.
    pub subject: String,
    /// Its headers as they were published; empty when it has none.
    pub header_block: Vec<u8>,
    /// Its payload.
    pub payload: Bytes,
    /// When the server stored it, Unix time in milliseconds.
    pub stored_ms: i64,
}

impl RawMessage {
    /// Its headers.
    ///
    /// # Errors
    /// [`UnreadableMessage`] when the NATS client cannot read it.
    pub fn headers(&self) -> Result<Headers, UnreadableMessage> {
        header_block::parse(&self.subject, &self.header_block)
    }

    /// Whether it is the record of a bucket that says that its key was removed. Headers that cannot be read say nothing.
    #[must_use]
    pub fn is_removal(&self) -> bool {
        let headers = self.headers().unwrap_or_default();
        headers.iter().any(|(name, value)| match name.as_str() {
            HEADER_KV_OPERATION => KV_REMOVALS.contains(&value.as_str()),
            name => name == HEADER_MARKER_REASON,
        })
    }
}

#[derive(Deserialize)]
struct StreamApiAnswer {
    message: Option<StoredMessage>,
    success: Option<bool>,
    error: Option<StreamApiError>,
}

#[derive(Deserialize)]
struct StoredMessage {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: String,
}

#[derive(Deserialize)]
struct StreamApiError {
    err_code: u64,
    description: String,
}

impl Bus {
    /// The first message of a stream from sequence `from` on whose subject fits the filter; none when there is none.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn next_raw_message(
        &self,
        stream: &str,
        from: u64,
        filter: &str,
    ) -> Result<Option<RawMessage>, BusError> {
        self.raw_message(stream, &json!({ "seq": from.max(1), "next_by_subj": filter })).await
    }

    /// The newest message of a stream on a subject; none when there is none.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer.
    pub async fn last_raw_message(&self, stream: &str, subject: &str) -> Result<Option<RawMessage>, BusError> {
        self.raw_message(stream, &json!({ "last_by_subj": subject })).await
    }

    async fn raw_message(&self, stream: &str, request: &Value) -> Result<Option<RawMessage>, BusError> {
        let what = format!("the raw read of {stream}");
        let answer = self.ask(&format!("$JS.API.STREAM.MSG.GET.{stream}"), request, &what).await?;
        let unreadable = |reason: &str| BusError::Unreadable { what: what.clone(), reason: reason.to_owned() };
        let message = match (answer.message, answer.error) {
            (Some(message), _) => message,
            (None, Some(error)) if error.err_code == NO_MESSAGE_FOUND => return Ok(None),
            (None, Some(error)) => return Err(BusError::refused(&what, error.description)),
            (None, None) => return Err(unreadable("it has neither a message nor an error")),
        };
        let bytes = |text: &str| BASE64.decode(text.as_bytes()).map_err(|_| unreadable("it is not base64"));
        let stored = message.time.parse::<jiff::Timestamp>().map_err(|_| unreadable("its time is not RFC 3339"))?;
        Ok(Some(RawMessage {
            seq: message.seq,
            header_block: bytes(&message.hdrs)?,
            payload: Bytes::from(bytes(&message.data)?),
            stored_ms: stored.as_millisecond(),
            subject: message.subject,
        }))
    }

    /// Removes one message. Whoever holds it cannot settle it any more.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer; a message that is not there is no error.
    pub async fn remove_message(&self, stream: &str, seq: u64) -> Result<(), BusError> {
        let what = format!("the removal of message {seq} of {stream}");
        let request = json!({ "seq": seq, "no_erase": true });
        let answer = self.ask(&format!("$JS.API.STREAM.MSG.DELETE.{stream}"), &request, &what).await?;
        match answer.error {
            Some(error) if answer.success != Some(true) && self.has_message(stream, seq).await? => {
                Err(BusError::refused(&what, error.description))
            }
            _ => Ok(()),
        }
    }

    /// Removes the messages on subjects that fit the filter up to this sequence: a bucket lets nobody remove a single message.
    ///
    /// # Errors
    /// [`BusError`] when the server does not answer, or refuses it.
    pub async fn purge_up_to(&self, stream: &str, filter: &str, seq: u64) -> Result<(), BusError> {
        let what = format!("the removal of {filter} from {stream}");
        let request = json!({ "filter": filter, "seq": seq + 1 });
        match self.ask(&format!("$JS.API.STREAM.PURGE.{stream}"), &request, &what).await?.error {
            Some(error) => Err(BusError::refused(&what, error.description)),
            None => Ok(()),
        }
    }

    async fn has_message(&self, stream: &str, seq: u64) -> Result<bool, BusError> {
        Ok(self.raw_message(stream, &json!({ "seq": seq })).await?.is_some())
    }

    async fn ask(&self, subject: &str, request: &Value, what: &str) -> Result<StreamApiAnswer, BusError> {
        let request = Bytes::from(request.to_string());
        let mut connection = self.connection.clone();
        for _ in 0..TRIES {
            connection.mark_unchanged();
            let answer = async_nats::Request::new().payload(request.clone()).timeout(Some(ANSWER_WITHIN));
            tokio::select! {
                answer = self.client.send_request(subject.to_owned(), answer) => {
                    return read_answer(what, &answer.map_err(|e| BusError::new(what, &e))?.payload);
                }
                // What is looked for may cost the connection meanwhile, and the answer with it: requested again at once.
                Ok(()) = connection.changed() => {}
            }
        }
        Err(BusError::closed(what))
    }
}

fn read_answer(what: &str, answer: &[u8]) -> Result<StreamApiAnswer, BusError> {
    // Base64 makes it longer than any message: the bound of `wire/decode.rs` does not fit. The server has written it.
    serde_json::from_slice(answer).map_err(|e| BusError::new(what, &e))
}
